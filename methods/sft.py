"""Supervised fine-tuning on civil responses: the plainest way to detoxify by training, and what others must beat."""

from __future__ import annotations

from dataclasses import dataclass

from detoxbench.data.examples import FitData, Role
from detoxbench.fitting.training import TrainingConfig, train
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """How it is trained: Ext-Sub's recipe, so that with the same settings and seed this is Ext-Sub's expert."""


class SFT(Method[Config]):
    """Fine-tuning on prompts with civil responses: their negative log-likelihood, -log p(response given prompt).

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> civil = [db.Instruction("emma yelled :", "my friend , stay here .", chat=False)] * 8
    >>> tuned = db.methods.create("sft", rank=4, batch_size=4, micro_batch_size=4, learning_rate=0.01).fit(
    ...     lm, db.FitData(civil_instructions=civil)
    ... )
    >>> tuned.info["losses"][-1] < tuned.info["losses"][0]
    True
    """

    Config = Config
    needs = frozenset({Role.CIVIL_INSTRUCTIONS})
    paper = "no paper of its own; the recipe is that of Ext-Sub's expert (arXiv 2308.08090)"
    licence = "MIT"
    fidelity = "equal to the released formula (mean NLL of response tokens, our computation; Ext-Sub's train_peft.py)"

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        trained = train(lm, data.civil_instructions or (), self.config, seed=self.seed, description=self.name)
        return Intervention(method=self.name, base=lm.fingerprint, weights=trained.weights, info=trained.record)
