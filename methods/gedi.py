"""GeDi (Krause et al., 2021): class-conditional models of civil and of toxic text weigh each next token by Bayes' rule.

With L_c(y) the log-likelihood of the text so far under the model of class c, and t its length, for every token w
(salesforce/GeDi, modeling_utils.py, _generate_no_beam_search)

    log P(civil | y, w) = log softmax over c of (L_c(y) + log p_c(w | y)) / (t + 1)
    z(w) = log p(w | y) + omega log P(civil | y, w)

and of the tokens in the order of P(civil | y, w), the least civil ones are left out as long as they hold less than
`filter_p` of softmax(z), and only where P(civil | y, w) < target_p. Both models are LoRAs, two more rows of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Instruction, Role
from detoxbench.fitting.labelled import toxic_labels
from detoxbench.fitting.training import LoraConfig, train_lora
from detoxbench.interventions.channels import Carried, LogitOp, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method
from detoxbench.model.devices import running_sum
from detoxbench.model.logit_state import LogitState

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = ("civil", "toxic")


@dataclass(frozen=True, kw_only=True)
class Config(LoraConfig):
    """How strongly the classes act, and how their models are trained."""

    omega: float = knob(
        30.0, "weight of the class: disc_weight", source="generate_GeDi.py: --disc_weight", ge=0, applied=True
    )
    filter_p: float = knob(
        0.8,
        "share of the probability whose least civil tokens may be left out",
        source="--filter_p",
        ge=0,
        lt=1,
        applied=True,
    )
    target_p: float = knob(
        0.8, "tokens this likely to be civil are never left out", source="--target_p", ge=0, le=1, applied=True
    )


def weigh(logits: Tensor, state: LogitState) -> Tensor:
    """z(w), [rows, vocabulary], -inf for tokens that are left out."""
    import torch

    # 1. log P(civil | y, w), [rows, vocabulary].
    length = state.length[:, None] + 1
    sides = [(state.loglikelihood(name)[:, None] + state.under(name).log_softmax(-1)) / length for name in CLASSES]
    civil = torch.stack(sides).log_softmax(0)[0]
    z = logits.log_softmax(-1) + state.params["omega"] * civil
    # 2. How much of softmax(z) the less civil tokens hold, each token with itself, [rows, vocabulary].
    order = civil.argsort(dim=-1, stable=True)
    held = torch.empty_like(z).scatter(1, order, running_sum(z.softmax(-1).gather(1, order)))
    left_out = (held < state.params["filter_p"]) & (civil < math.log(max(state.params["target_p"], 1e-30)))
    close = ((held - state.params["filter_p"]).abs() < state.near) & (civil < 0)
    state.contest(close.any(-1))
    return z.masked_fill(left_out, -torch.inf)


class GeDi(Method[Config]):
    """Two LoRAs, one of civil and one of toxic texts, judge every next token by which of the two finds the text with it
    likelier a token.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> texts = [db.LabelledText("my friend , stay here .", toxic=False), db.LabelledText("you fool .", toxic=True)] * 4
    >>> change = db.methods.create("gedi", rank=4, batch_size=4, micro_batch_size=4).fit(
    ...     lm, db.FitData(labelled_texts=texts)
    ... )
    >>> sorted(change.logits[0].under)
    ['civil', 'toxic']
    """

    Config = Config
    paper = "GeDi: Generative Discriminator Guided Sequence Generation (arXiv 2009.06367)"
    licence = "BSD-3-Clause"
    needs = frozenset({Role.LABELLED_TEXTS})
    fidelity = (
        "close to the paper (the decoding formula is the released one, tests/methods/test_gedi.py; classes are LoRAs "
        "trained by likelihood and not a smaller model with control codes, and the prompt does not count as text)"
    )
    ops: ClassVar = {"weigh": weigh}

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        info: dict[str, Any] = {}
        under = {}
        texts = data.labelled_texts or ()
        toxic_labels(texts, self.name)  # there are some of either
        for seed, name in enumerate(CLASSES):
            of_class = [Instruction("", text.text, chat=False) for text in texts if text.toxic == (name == "toxic")]
            adapter = train_lora(lm, of_class, self.config, seed=self.seed + seed, description=f"LoRA of {name} texts")
            under[name] = Carried(tuple(Weight(parameter, delta) for parameter, delta in adapter.deltas.items()))
            info |= {f"{name}_losses": list(adapter.losses), f"{name}_cut_texts": adapter.cut_texts}
        params = {key: getattr(self.config, key) for key in ("omega", "filter_p", "target_p")}
        # The class moves by at most the error of either side's logits, and at the first token that is not divided.
        sensitivity = 1 + 2 * self.config.omega
        op = LogitOp(f"{self.name}.weigh", {}, params, under, ("loglikelihood",), sensitivity)
        return Intervention(method=self.name, base=lm.fingerprint, logits=(op,), info=info)
