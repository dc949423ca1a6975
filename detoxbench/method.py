"""The path that the first README showed: `from detoxbench import Method, Role` is the same."""

from detoxbench.data.examples import EditRecord, FitData, Instruction, Pair, ParaphraseSet, Role  # noqa: F401
from detoxbench.methods.base import Method, Scope  # noqa: F401
