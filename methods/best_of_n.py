"""Best of n: the model answers several times, and a guide chooses the answer that it finds least bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Role
from detoxbench.fitting import guides
from detoxbench.fitting.guides import GuideConfig
from detoxbench.interventions.channels import Output
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Config(GuideConfig):
    """How many answers, and who chooses."""

    n: int = knob(4, "answers that each one is chosen from; 16 is usual too", source="arXiv 2009.01325: 4 to 64", ge=1)


class BestOfN(Method[Config]):
    """Draws n answers for every one that is asked for, and keeps the one that a guide finds least bad. The guide is
    never the run's judge. Needs no training of the model; every answer costs n.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> texts = [db.LabelledText("my friend , stay here .", toxic=False), db.LabelledText("you fool .", toxic=True)] * 4
    >>> choice = db.methods.create("best_of_n", n=8).fit(lm, db.FitData(labelled_texts=texts))
    >>> choice.outputs[0].candidates
    8
    """

    Config = Config
    paper = "Learning to summarize from human feedback (arXiv 2009.01325), sec. 4.3: best-of-N sampling"
    fidelity = "ours (the rule is the published one; the guide is whatever scorer is named, or a linear classifier)"
    reads_texts = False

    @property
    def needs(self) -> frozenset[Role]:
        return guides.needs(self.config)

    def fingerprints(self) -> Mapping[str, str]:
        return guides.fingerprints(self.config.guide)

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        guide, tensors = guides.fitted(lm, data, self.config, self.name)
        choice = Output("choose", guide, tensors, candidates=self.config.n)
        return Intervention(method=self.name, base=lm.fingerprint, outputs=(choice,))
