"""The base model without a change: every other row of a table is compared with it."""

from __future__ import annotations

from dataclasses import dataclass

from detoxbench.data.examples import FitData
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Config:
    """There is nothing to set."""


class Base(Method[Config]):
    """No intervention.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> list(db.methods.create("none").fit(lm, db.FitData()).parts())
    []
    """

    Config = Config
    fidelity = "ours (nothing is changed: the model as it was loaded)"

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return Intervention(method=self.name, base=lm.fingerprint)
