"""Compare ways of detoxifying language models: one interface, one set of metrics, at a stated cost.

import detoxbench as db

lm = db.LanguageModel.load("path-or-hub-id")
intervention = db.methods.create("destein", alpha=0.4).fit(lm, data)
with lm.applied(intervention):
    lm.generate(["Once upon a time"])

db.run(["model=fable", "method=destein", "suite=safeedit"])
db.leaderboard("runs")
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
    from detoxbench.data.examples import FitData, Instruction, Pair
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel
    from detoxbench.results.leaderboard import Leaderboard, leaderboard
    from detoxbench.runner.stages import run_overrides as run

# Imported when first used: `import detoxbench` takes no torch.
_PUBLIC = {
    "FitData": "detoxbench.data.examples:FitData",
    "Instruction": "detoxbench.data.examples:Instruction",
    "Intervention": "detoxbench.interventions.intervention:Intervention",
    "LanguageModel": "detoxbench.lm:LanguageModel",
    "Leaderboard": "detoxbench.results.leaderboard:Leaderboard",
    "Pair": "detoxbench.data.examples:Pair",
    "leaderboard": "detoxbench.results.leaderboard:leaderboard",
    "methods": "detoxbench.methods",
    "run": "detoxbench.runner.stages:run_overrides",
}

__all__ = [
    "FitData",
    "Instruction",
    "Intervention",
    "LanguageModel",
    "Leaderboard",
    "Pair",
    "__version__",
    "leaderboard",
    "methods",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'detoxbench' has no attribute '{name}'")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(import_module(module), attribute) if attribute else import_module(module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
