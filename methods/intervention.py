"""An intervention that was fitted before, by a run or from Python, as a row of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detoxbench.config import runtime
from detoxbench.data.examples import FitData
from detoxbench.interventions import saved
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where it lies. What it is enters the identity by the content of its files."""

    path: str | None = runtime(None, "folder of a run (runs/ID), or of a saved intervention", required=True)


class FromIntervention(Method[Config]):
    """A method that begins with an intervention which lies on disk and belongs to this very model."""

    Config = Config

    @property
    def guides(self) -> Sequence[str]:
        return saved.told(self.config.path).guides if self.config.path else []

    def fingerprints(self) -> Mapping[str, str]:
        return {"path": saved.fingerprint(self.given("path"))}


class SavedIntervention(FromIntervention):
    """Takes an intervention that lies on disk, as it is: nothing is fitted. It must be of this very model.

    >>> import tempfile
    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> kind = db.methods.create("self_reminder", prefix="be kind . ").fit(lm, db.FitData())
    >>> folder = tempfile.mkdtemp() + "/kind"
    >>> kind.save(folder)
    >>> row = db.methods.create("intervention", path=folder).fit(lm, db.FitData())
    >>> (row.prompts == kind.prompts, row.info["method"])
    (True, 'self_reminder')
    """

    fidelity = "cannot be checked here (a change as it lies on disk: the run that fitted it says how near it is)"

    @property
    def reads_texts(self) -> bool:
        return not self.config.path or saved.told(self.config.path).reads_texts

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        found = saved.load(self.given("path"), lm)
        return dataclasses.replace(found, method=self.name, info={"method": found.method, **found.info})
