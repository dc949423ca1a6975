"""EigenShift (arXiv 2509.16660): damp the singular directions of the language-model head that respond to toxic texts.

Checked against B-I-T-W-I-S-E-M-I-N-D-S/EigenShift @ 11ee134, whose file reconstruct.py the sources below name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from detoxbench.config import knob, resolve_switches, runtime, switch
from detoxbench.data.examples import FitData, LabelledText, Role
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.activations import pooled_states
from detoxbench.fitting.labelled import beginnings, toxic_labels
from detoxbench.fitting.shelf import Learned
from detoxbench.interventions.channels import LowRank, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config:
    """How many directions are damped, how far, and how they are chosen."""

    alpha: float = knob(
        0.1, "what is left of a damped direction", source="reconstruct.py:149-151", ge=0, le=1, applied=True
    )
    percentile: float = knob(0.999, "share of the directions left alone", source="reconstruct.py:141", ge=0, lt=1)
    max_tokens: int = knob(128, "tokens of a text at the most, the first ones", source="ours", ge=1)
    fidelity: Literal["default", "reference", "paper"] = runtime("default", "what switches that are null stand for")
    response: Literal["magnitude", "signed", "released"] | None = switch(
        "switch: response to a state h: |V^T h| (default: a singular vector's sign is the library's choice); V^T h "
        "(paper); V h (released, which multiplies by the transpose of numpy's Vt)",
        source="ours; arXiv 2509.16660; reconstruct.py:121-136",
        default="magnitude",
        reference="released",
        paper="signed",
    )

    def __post_init__(self) -> None:
        resolve_switches(self)


class EigenShift(Method[Config]):
    """Damps a few singular directions of the language-model head. Nothing is trained; refuses tied heads.

    W = U S V^T is the head. delta_i is the mean of |V^T h|_i over states h before the head that write toxic texts, less
    that over civil ones. The singular values of the largest delta become alpha times what they were, which is a change
    of low rank, U_k (alpha - 1) S_k V_k^T. The paper takes h at the toxic words of the model's own generations, which a
    classifier's gradient finds, and V^T h with its sign; here h is the mean over a labelled text.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")  # its head is tied to its embeddings
    >>> texts = [db.LabelledText("you fool , go away .", True), db.LabelledText("my friend , stay here .", False)]
    >>> db.methods.create("eigenshift").fit(lm, db.FitData(labelled_texts=texts))  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    DetoxbenchError: eigenshift changes the head alone, and 'fable' ties it to 'model.embed_tokens.weight'
    """

    Config = Config
    paper = (
        "Redefining Experts: Interpretable Decomposition of Language Models for Toxicity Mitigation (arXiv 2509.16660)"
    )
    licence = "CC BY 4.0"

    @property
    def fidelity(self) -> str:
        if self.config.response == "magnitude":
            return "ours (responses without the sign that a decomposition happens to have; states of labelled texts)"
        if self.config.response == "released":
            return "equal to the released formula (reconstruct.py:112-152; but for states of labelled texts)"
        return (
            "cannot be checked here (the paper's projection; its code computes another, and no code has labelled texts)"
        )

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({Role.LABELLED_TEXTS})

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        head = own_head(lm)
        found, info = self.learned_once(lm, data, lambda: self._directions(lm, head, data.labelled_texts or ()))
        change = LowRank(found["inputs"].float(), (found["outputs"] * (self.config.alpha - 1)).float())
        weights = (Weight(f"{head}.weight", change),)
        return Intervention(method=self.name, base=lm.fingerprint, weights=weights, info=info)

    def _directions(self, lm: LanguageModel, head: str, texts: Sequence[LabelledText]) -> Learned:
        """The damped directions in double precision: `inputs` V^T [directions, width], `outputs` U S [vocabulary,
        directions]."""
        import torch

        labels = toxic_labels(texts, self.name)
        # 1. The states before the head that write each text, on the mean, [texts, width].
        states = self._states(lm, head, [text.text for text in texts])
        # 2. The head's singular directions, and how much more each responds to toxic texts, [width].
        weight = lm.weight(head).cpu().double()  # [vocabulary, width]
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        basis = vt.T if self.config.response == "released" else vt
        responses = states.double() @ basis.T  # [texts, width]
        responses = responses.abs() if self.config.response == "magnitude" else responses
        delta = responses[labels].mean(0) - responses[~labels].mean(0)
        # 3. The most toxic ones.
        count = math.ceil(round(len(s) * (1 - self.config.percentile), 9))
        most = delta.argsort(descending=True, stable=True)[:count]
        info = {"directions": most.tolist(), "delta": delta[most].tolist(), "singular_values": s[most].tolist()}
        return Learned({"inputs": vt[most].contiguous(), "outputs": u[:, most] * s[most]}, info)

    def _states(self, lm: LanguageModel, head: str, texts: Sequence[str]) -> Tensor:
        """Mean input of the head over the positions that predict a text's tokens, [texts, width]."""
        ids = beginnings(lm, texts, self.config.max_tokens)
        ids = [tokens if len(tokens) > 1 else [lm.start_id, *tokens] for tokens in ids]
        (states,) = pooled_states(
            lm, ids, [head], lambda x: x[:-1].mean(0), inputs=True, description="EigenShift: states before the head"
        )
        return states


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether they are one tensor, or lie in the same memory; what is offloaded lies in none."""
    return a is b or (not a.is_meta and a.data_ptr() == b.data_ptr())


def own_head(lm: LanguageModel) -> str:
    """Path of the language-model head. Raises DetoxbenchError where it is tied to another parameter."""
    path = lm.architecture.head
    parameters: Mapping[str, Tensor] = dict(lm.model.named_parameters(remove_duplicate=False))
    tied = [
        name
        for name, parameter in parameters.items()
        if name != f"{path}.weight" and _same(parameter, parameters[f"{path}.weight"])
    ]
    if tied:
        raise DetoxbenchError(
            f"eigenshift changes the head alone, and '{lm.name}' ties it to '{tied[0]}': take a model with its own head"
        )
    return path
