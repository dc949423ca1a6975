"""The channels through which an intervention acts on a model, a file each."""

from detoxbench.interventions.channels.base import Channel, Params
from detoxbench.interventions.channels.deltas import Delta, Dense, LowRank
from detoxbench.interventions.channels.hooks import Carried, Hook, HookState
from detoxbench.interventions.channels.logits import LogitOp
from detoxbench.interventions.channels.outputs import Output
from detoxbench.interventions.channels.prefixes import Prefix
from detoxbench.interventions.channels.prompts import Prompt
from detoxbench.interventions.channels.weights import Weight

__all__ = [
    "Carried",
    "Channel",
    "Delta",
    "Dense",
    "Hook",
    "HookState",
    "LogitOp",
    "LowRank",
    "Output",
    "Params",
    "Prefix",
    "Prompt",
    "Weight",
]
