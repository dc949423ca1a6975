"""The path that the first README showed: `from detoxbench import Intervention, LogitOp` is the same."""

from detoxbench.interventions.channels import Dense, Hook, LogitOp, LowRank, Prefix, Prompt, Weight  # noqa: F401
from detoxbench.interventions.intervention import Intervention, compose  # noqa: F401
