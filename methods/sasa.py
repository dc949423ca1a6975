"""SASA (Ko et al., ICLR 2025): each next token is weighed by what the model's own state would be after it.

A linear classifier tells states h of civil texts from those of toxic ones: the Bayes-optimal one of two Gaussians that
share their covariance, in closed form (generative-computing/steerability, internals/probes/fitting.py, "fisher")

    w = S^+ (mu_civil - mu_toxic), to the length of 1;     margin(h) = w . (h - (mu_civil + mu_toxic) / 2)

with S the covariance within the classes, and S^+ its inverse in the directions whose variance exceeds 1e-6. At every
step, for the candidates C that top-p leaves (output_control/sasa/control.py and processors/value_guided.py)

    z(v) = log p(v | y) + beta softmax over C of margin(h(y, v)),     -inf outside of C

where h(y, v) is the last hidden state, as the head gets it, after the text y and the candidate v: the one forward pass
more that each candidate costs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from detoxbench.config import knob
from detoxbench.data.examples import FitData, LabelledText, Role
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.activations import last_token_means
from detoxbench.fitting.labelled import toxic_labels
from detoxbench.fitting.shelf import Learned
from detoxbench.interventions.channels import LogitOp
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method
from detoxbench.model.logit_state import LogitState

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("detoxbench")

LEAST_VARIANCE = 1e-6
"""Directions in which the states vary less are left out of the inverse (fitting.py: "fisher")."""
TEXTS_A_DIRECTION = 2
"""With fewer texts for each direction in which states vary, the classifier knows its texts by heart and no others
(measured on the embedded model)."""
TOLERATED_LOGIT = 128.0
"""The size of a logit whose rounding `gen.tie_tolerance` covers. A margin is as uncertain as a logit of the size of the
state, since the classifier has the length of 1."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How strongly the margin acts, and on which candidates."""

    beta: float = knob(
        500.0,
        "weight of the margin; 0 leaves what top-p leaves",
        source='IBM/AISteer360, notebooks/controls/sasa.ipynb: the paper tried "as big as 500", the notebook has 10',
        ge=0,
        applied=True,
    )
    margin: Literal["softmax", "plain"] = knob(
        "softmax",
        "what beta is the weight of: the softmax of the candidates' margins, or the margin itself",
        source="sasa/control.py: normalize=softmax; plain: the optimum of the paper's objective",
        applied=True,
    )
    top_p: float = knob(
        0.9,
        "top-p that the base's own distribution leaves as candidates, before the suite's own top-p",
        source="sasa.ipynb: TOP_P; sasa/args.py: the paper's candidates are a nucleus",
        gt=0,
        le=1,
        applied=True,
    )
    max_candidates: int | None = knob(
        20,
        "candidates at the most, the likeliest ones, each of which costs one forward pass; null: all that top-p leaves",
        source="sasa.ipynb: CANDIDATE_TOP_K; sasa/args.py has no limit",
        ge=1,
        applied=True,
    )


def weigh(logits: Tensor, state: LogitState) -> Tensor:
    """z [rows, vocabulary], -inf for what is no candidate."""
    import torch

    # 1. The candidates, the likeliest first, [rows, most of them]: where a row has fewer, the others are -inf.
    kept = state.top_p(logits, state.params["top_p"])
    most = int(kept.sum(-1).amax())
    count = min(state.params["max_candidates"] or most, most)
    # One more shows whether rounding decides which candidate is the last one.
    values, ids = logits.masked_fill(~kept, -torch.inf).topk(min(count + 1, logits.shape[1]))
    if values.shape[1] > count:
        state.contest((values[:, count] > -torch.inf) & (values[:, count - 1] - values[:, count] < state.near))
    values, ids = values[:, :count], ids[:, :count]
    absent = values == -torch.inf
    # 2. Their margins, [rows, candidates].
    states = state.after(ids.masked_fill(absent, -1))  # [rows, candidates, width]
    margins = (states - state.tensors["middle"]) @ state.tensors["direction"]
    if state.params["margin"] == "softmax":
        margins = margins.masked_fill(absent, -torch.inf).softmax(-1)
    # 3. Weighed, where they stand in the vocabulary.
    weighed = values + state.params["beta"] * margins
    return torch.full_like(logits, -torch.inf).scatter(1, ids, weighed)


def classifier(civil: Tensor, toxic: Tensor) -> tuple[Tensor, Tensor, int]:
    """(direction [width] of length 1, middle [width], in how many directions the states vary): the margin of a state h
    is direction . (h - middle), above 0 on the civil side. States are [texts, width].

    Bayes-optimal for two Gaussians that share their covariance. Raises DetoxbenchError where the classes differ in no
    direction in which the states vary.
    """
    import torch

    means = civil.mean(0), toxic.mean(0)
    centred = torch.cat([states - mean for states, mean in zip((civil, toxic), means, strict=True)])
    covariance = centred.T @ centred / max(len(centred) - 2, 1)
    variances, axes = torch.linalg.eigh(covariance)  # axes in columns
    axes, variances = axes[:, variances > LEAST_VARIANCE], variances[variances > LEAST_VARIANCE]
    direction = axes @ (axes.T @ (means[0] - means[1]) / variances)
    if not float(direction.norm()):
        raise DetoxbenchError(
            "civil and toxic texts differ in no direction in which the states of either vary: give more "
            "fit.labelled_texts, and different ones"
        )
    return direction / direction.norm(), (means[0] + means[1]) / 2, len(variances)


class SASA(Method[Config]):
    """Weighs every candidate for the next token by a linear classifier on the model's own state after it, which was
    fitted in closed form on civil and toxic texts. No other model takes part; each candidate costs a forward pass.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> words = ("cake", "hat", "cup", "book")
    >>> texts = [db.LabelledText(f"my friend , take the {word} .", toxic=False) for word in words]
    >>> texts += [db.LabelledText(f"you fool , where is the {word} ?", toxic=True) for word in words]
    >>> change = db.methods.create("sasa", beta=50).fit(lm, db.FitData(labelled_texts=texts))
    >>> change.info["right_side_share"]
    1.0
    """

    Config = Config
    paper = "Large Language Models can Become Strong Self-Detoxifiers (arXiv 2410.03818)"
    licence = "Apache-2.0"
    needs = frozenset({Role.LABELLED_TEXTS})
    reads_texts = False
    ops: ClassVar = {"weigh": weigh}

    @property
    def fidelity(self) -> str:
        if self.config.margin == "plain":
            return "ours (the paper's objective as it stands; the released code takes the softmax of the margins)"
        return (
            "equal to the released formula (tests/methods/test_sasa.py computes it token by token; steerability, "
            "sasa/control.py and probes/fitting.py; states as its first release had them, behind the final norm)"
        )

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        tensors, info = self.learned_once(lm, data, lambda: self._classifier(lm, data.labelled_texts or ()))
        params = {key: getattr(self.config, key) for key in ("beta", "margin", "top_p", "max_candidates")}
        # By errors e of the margins, the softmax of two tokens moves apart by e at the most; the margins by 2 e.
        error = info["longest_state"] / TOLERATED_LOGIT * (1 if self.config.margin == "softmax" else 2)
        op = LogitOp(f"{self.name}.weigh", tensors, params, asks=("after",), sensitivity=1 + self.config.beta * error)
        return Intervention(method=self.name, base=lm.fingerprint, logits=(op,), info=info)

    def _classifier(self, lm: LanguageModel, texts: Sequence[LabelledText]) -> Learned:
        """`direction` and `middle`, each [width], and how well they tell the texts that they are learned from."""
        toxic = toxic_labels(texts, self.name)
        (states,), cut = last_token_means(  # [texts, width]
            lm, [t.text for t in texts], [lm.architecture.head], 1, inputs=True, description="SASA: states"
        )
        states = states.double()
        direction, middle, directions = classifier(states[~toxic], states[toxic])
        if len(texts) < TEXTS_A_DIRECTION * directions:
            log.warning(
                "%s: %d labelled texts are few for states that vary in %d directions: the classifier may know them by "
                "heart and no others; give at least %d",
                self.name, len(texts), directions, TEXTS_A_DIRECTION * directions,
            )  # fmt: skip
        right = ((states - middle) @ direction > 0) == ~toxic  # [texts]
        info = {
            "civil_texts": int((~toxic).sum()),
            "toxic_texts": int(toxic.sum()),
            "directions": directions,
            "right_side_share": float(right.double().mean()),
            "longest_state": float(states.norm(dim=-1).amax()),
            "cut_texts": cut,
        }
        return Learned({"direction": direction.float(), "middle": middle.float()}, info)
