"""Compare ways of detoxifying language models: one interface, one set of metrics, at a stated cost.

import detoxbench as db

lm = db.LanguageModel.load("path-or-hub-id")
intervention = db.methods.create("destein", alpha=0.4).fit(lm, data)
with lm.applied(intervention):
    lm.generate(["Once upon a time"])

db.run(["model=fable", "method=destein", "suite=safeedit"])
db.leaderboard("runs")

What the author of a method, a suite or a scorer needs is here too: `from detoxbench import Method, knob, ...`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before torch is imported: with one core busy elsewhere, OpenMP's default of spinning while it waits cut training
# from 12,800 to 180 tokens/s; waiting passively it is 11,000.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from detoxbench import methods as methods
    from detoxbench import scorers as scorers
    from detoxbench import suites as suites
    from detoxbench.config import knob as knob
    from detoxbench.config import resolve_switches as resolve_switches
    from detoxbench.config import runtime as runtime
    from detoxbench.config import switch as switch
    from detoxbench.data.examples import EditRecord as EditRecord
    from detoxbench.data.examples import FitData as FitData
    from detoxbench.data.examples import Instruction as Instruction
    from detoxbench.data.examples import LabelledText as LabelledText
    from detoxbench.data.examples import Pair as Pair
    from detoxbench.data.examples import ParaphraseSet as ParaphraseSet
    from detoxbench.data.examples import Preference as Preference
    from detoxbench.data.examples import Query as Query
    from detoxbench.data.examples import Role as Role
    from detoxbench.data.readers import rows as read_rows  # noqa: F401
    from detoxbench.errors import DetoxbenchError as DetoxbenchError
    from detoxbench.errors import NonFiniteError as NonFiniteError
    from detoxbench.errors import UsageError as UsageError
    from detoxbench.fitting.activations import last_token_means as last_token_means
    from detoxbench.fitting.shelf import Learned as Learned
    from detoxbench.fitting.token_losses import token_nlls as token_nlls
    from detoxbench.fitting.training import LoraConfig as LoraConfig
    from detoxbench.fitting.training import TrainingConfig as TrainingConfig
    from detoxbench.fitting.training import optimise as optimise
    from detoxbench.fitting.training import optimise_lora as optimise_lora
    from detoxbench.fitting.training import train_lora as train_lora
    from detoxbench.interventions.channels import Carried as Carried
    from detoxbench.interventions.channels import Channel as Channel
    from detoxbench.interventions.channels import Dense as Dense
    from detoxbench.interventions.channels import Hook as Hook
    from detoxbench.interventions.channels import HookState as HookState
    from detoxbench.interventions.channels import LogitOp as LogitOp
    from detoxbench.interventions.channels import LowRank as LowRank
    from detoxbench.interventions.channels import Output as Output
    from detoxbench.interventions.channels import Prefix as Prefix
    from detoxbench.interventions.channels import Prompt as Prompt
    from detoxbench.interventions.channels import Weight as Weight
    from detoxbench.interventions.intervention import Intervention as Intervention
    from detoxbench.interventions.intervention import compose as compose
    from detoxbench.lm import LanguageModel as LanguageModel
    from detoxbench.methods.base import Method as Method
    from detoxbench.methods.base import Scope as Scope
    from detoxbench.model.logit_state import LogitState as LogitState
    from detoxbench.records import Measure as Measure
    from detoxbench.records import Request as Request
    from detoxbench.records import Sample as Sample
    from detoxbench.records import Scored as Scored
    from detoxbench.records import by_cluster as by_cluster
    from detoxbench.results.leaderboard import Leaderboard as Leaderboard
    from detoxbench.results.leaderboard import leaderboard as leaderboard
    from detoxbench.runner.stages import run_overrides as run  # noqa: F401
    from detoxbench.scorers.base import Scorer as Scorer
    from detoxbench.suites._common import main_score as main_score
    from detoxbench.suites._common import measure as measure
    from detoxbench.suites.base import Observation as Observation
    from detoxbench.suites.base import Probe as Probe
    from detoxbench.suites.base import Suite as Suite

# Imported when first used: `import detoxbench` takes no torch.
_PUBLIC = {
    "by_cluster": "detoxbench.records:by_cluster",
    "Carried": "detoxbench.interventions.channels:Carried",
    "Channel": "detoxbench.interventions.channels:Channel",
    "compose": "detoxbench.interventions.intervention:compose",
    "Dense": "detoxbench.interventions.channels:Dense",
    "DetoxbenchError": "detoxbench.errors:DetoxbenchError",
    "EditRecord": "detoxbench.data.examples:EditRecord",
    "FitData": "detoxbench.data.examples:FitData",
    "Hook": "detoxbench.interventions.channels:Hook",
    "HookState": "detoxbench.interventions.channels:HookState",
    "Instruction": "detoxbench.data.examples:Instruction",
    "Intervention": "detoxbench.interventions.intervention:Intervention",
    "knob": "detoxbench.config:knob",
    "LabelledText": "detoxbench.data.examples:LabelledText",
    "LanguageModel": "detoxbench.lm:LanguageModel",
    "last_token_means": "detoxbench.fitting.activations:last_token_means",
    "Leaderboard": "detoxbench.results.leaderboard:Leaderboard",
    "leaderboard": "detoxbench.results.leaderboard:leaderboard",
    "Learned": "detoxbench.fitting.shelf:Learned",
    "LogitOp": "detoxbench.interventions.channels:LogitOp",
    "LogitState": "detoxbench.model.logit_state:LogitState",
    "LoraConfig": "detoxbench.fitting.training:LoraConfig",
    "LowRank": "detoxbench.interventions.channels:LowRank",
    "main_score": "detoxbench.suites._common:main_score",
    "Measure": "detoxbench.records:Measure",
    "measure": "detoxbench.suites._common:measure",
    "Method": "detoxbench.methods.base:Method",
    "methods": "detoxbench.methods",
    "NonFiniteError": "detoxbench.errors:NonFiniteError",
    "optimise": "detoxbench.fitting.training:optimise",
    "optimise_lora": "detoxbench.fitting.training:optimise_lora",
    "Observation": "detoxbench.suites.base:Observation",
    "Pair": "detoxbench.data.examples:Pair",
    "ParaphraseSet": "detoxbench.data.examples:ParaphraseSet",
    "Preference": "detoxbench.data.examples:Preference",
    "Output": "detoxbench.interventions.channels:Output",
    "Prefix": "detoxbench.interventions.channels:Prefix",
    "Probe": "detoxbench.suites.base:Probe",
    "Prompt": "detoxbench.interventions.channels:Prompt",
    "Query": "detoxbench.data.examples:Query",
    "read_rows": "detoxbench.data.readers:rows",
    "Request": "detoxbench.records:Request",
    "resolve_switches": "detoxbench.config:resolve_switches",
    "Role": "detoxbench.data.examples:Role",
    "run": "detoxbench.runner.stages:run_overrides",
    "runtime": "detoxbench.config:runtime",
    "Sample": "detoxbench.records:Sample",
    "Scope": "detoxbench.methods.base:Scope",
    "Scored": "detoxbench.records:Scored",
    "Scorer": "detoxbench.scorers.base:Scorer",
    "scorers": "detoxbench.scorers",
    "Suite": "detoxbench.suites.base:Suite",
    "suites": "detoxbench.suites",
    "switch": "detoxbench.config:switch",
    "token_nlls": "detoxbench.fitting.token_losses:token_nlls",
    "train_lora": "detoxbench.fitting.training:train_lora",
    "TrainingConfig": "detoxbench.fitting.training:TrainingConfig",
    "UsageError": "detoxbench.errors:UsageError",
    "Weight": "detoxbench.interventions.channels:Weight",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'detoxbench' has no attribute '{name}'")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(import_module(module), attribute) if attribute else import_module(module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
