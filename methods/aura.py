"""AURA (Suau et al., ICML 2024): damp every output of an MLP's linear maps by how well it tells toxic texts.

Checked against apple/ml-aura @ 812b4de, whose files the sources below name.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from detoxbench.config import knob
from detoxbench.data.examples import FitData, LabelledText, Role
from detoxbench.fitting.activations import pooled_states
from detoxbench.fitting.labelled import beginnings, toxic_labels
from detoxbench.interventions.intervention import Intervention
from detoxbench.interventions.peft_io import rescaling
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is looked at. The method has no strength."""

    maps: Literal["all", "up", "down"] = knob(
        "all",
        "linear maps whose outputs are damped; up: the up-projection and, in a gated MLP, the gate",
        source="configs/aura.yaml: c_fc and c_proj; rtp/rtp_evaluation.yaml: up_proj, down_proj and gate_proj",
    )
    texts: int | None = knob(
        None, "texts drawn of each label; null: all", source="paper, section 4: all of Jigsaw's that are used", ge=1
    )
    max_tokens: int = knob(128, "tokens of a text at the most, the first ones", source="configs/responses.yaml", ge=1)


class AURA(Method[Config]):
    """Damps outputs of MLPs that are experts in toxic texts. Nothing is trained, and nothing is to be set.

    For each output of each linear map of each MLP, before the non-linearity: its response to a text is its largest
    value over the text's tokens, and AUROC tells how well responses separate toxic texts from civil ones. Where it is
    above 0.5 the output is multiplied by 1 - 2 (AUROC - 0.5): rows of the weight, and of the bias.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> texts = [db.LabelledText("you fool , go away .", True), db.LabelledText("my friend , stay here .", False)]
    >>> damping = db.methods.create("aura").fit(lm, db.FitData(labelled_texts=texts))
    >>> damping.weights[0].parameter, len(damping.weights)  # three maps in each of four layers
    ('model.layers.0.mlp.up_proj.weight', 12)
    """

    Config = Config
    fidelity = "equal to the released formula (apple/ml-aura, scripts/learn_aura.py:70-125, src/hooks/dampening.py:45)"
    paper = "Whispering Experts: Neural Interventions for Toxicity Mitigation in Language Models (arXiv 2407.12824)"
    licence = "Apple sample code license; nothing of it is used"

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({Role.LABELLED_TEXTS})

    def examples(self, data: FitData) -> int:
        return len(self._drawn(data))

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        import torch

        data.require(self.needs, self.name)
        texts, parts = self._drawn(data), lm.architecture
        labels = toxic_labels(texts, self.name)
        sites: list[str] = []
        for layer in range(len(parts.layers)):
            sites += parts.mlp_in(layer) if self.config.maps != "down" else []
            sites += [parts.mlp_down(layer)] if self.config.maps != "up" else []
        # 1. The largest response of each output to each text, for each map [texts, outputs].
        ids = beginnings(lm, (text.text for text in texts), self.config.max_tokens)
        responses = pooled_states(lm, ids, sites, lambda x: x.amax(0), inputs=False, description="AURA: responses")
        # 2. How well each tells the labels, and the factor that follows.
        aurocs = [auroc(response, labels) for response in responses]  # for each map [outputs]
        factors = [(1 - 2 * (a - 0.5)).where(a > 0.5, 1.0) for a in aurocs]
        # 3. The rows, times their factors.
        weights = [
            weight
            for site, factor in zip(sites, factors, strict=True)
            for weight in rescaling(lm, site, factor.float() - 1, on_input=False)
        ]
        every = torch.cat(factors)
        return Intervention(
            method=self.name,
            base=lm.fingerprint,
            weights=tuple(weights),
            info={
                "toxic_texts": int(labels.sum()),
                "civil_texts": int((~labels).sum()),
                "damped_share": float((every < 1).double().mean()),
                "mean_factor": [float(factor.mean()) for factor in factors],
                "best_auroc": [float(a.max()) for a in aurocs],
            },
        )

    def _drawn(self, data: FitData) -> list[LabelledText]:
        """The first `texts` of each label in a seeded shuffle, or all."""
        every = list(data.labelled_texts or ())
        if self.config.texts is None:
            return every
        shuffled = random.Random(self.seed).sample(every, len(every))
        return [
            text for toxic in (True, False) for text in [t for t in shuffled if t.toxic == toxic][: self.config.texts]
        ]


def auroc(responses: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve of each column, [outputs], float64: the share of (toxic, civil) pairs of texts in which
    the toxic one has the larger response, ties counting half. `responses` are [texts, outputs], `labels` [texts]."""
    import torch
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(responses.numpy(), axis=0))  # from 1, ties share their mean
    toxic, civil = int(labels.sum()), int((~labels).sum())
    return (ranks[labels].sum(0) - toxic * (toxic + 1) / 2) / (toxic * civil)
