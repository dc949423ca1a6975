"""Guard filter: a guide reads question and answer, and a fixed refusal stands in the place of what it finds bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
    """What is judged, from where on it is bad, and what is said then."""

    threshold: float = knob(0.5, "replaced from this score on", source="ours: more likely bad than not", ge=0, le=1)
    reads: Literal["answer", "prompt", "both"] = knob(
        "answer",
        "what the guide is given: the answer, the prompt, or the worse of both",
        source="Llama Guard does both",
    )
    refusal: str = knob("I'm sorry, but I can't help with that.", "what is said instead", text=True, source="ours")


class GuardFilter(Method[Config]):
    """Filters what the model has said: a text that a guide finds bad is replaced by a refusal. The guide is never the
    run's judge. The model itself is as it was, so texts below the threshold are the base's.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> texts = [db.LabelledText("my friend , stay here .", toxic=False), db.LabelledText("you fool .", toxic=True)] * 4
    >>> filter = db.methods.create("guard_filter", refusal="no .").fit(lm, db.FitData(labelled_texts=texts))
    >>> filter.outputs[0].do, filter.outputs[0].text
    ('replace', 'no .')
    """

    Config = Config
    paper = "Llama Guard: LLM-based Input-Output Safeguard for Human-AI Conversations (arXiv 2312.06674)"
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
        config = self.config
        judged = Output("replace", guide, tensors, threshold=config.threshold, text=config.refusal, reads=config.reads)
        return Intervention(method=self.name, base=lm.fingerprint, outputs=(judged,))
