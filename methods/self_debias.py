"""Self-debiasing (Schick et al., 2021): tokens that a description of bad text makes likelier become less likely.

At every step, for every prefix that announces bad text (timoschick/self-debiasing, generation.py:44-70),

    D(w) = p(w | x, y) - p(w | prefix + x, y),   of several prefixes the smallest
    p~(w) proportional to a(D) p(w | x, y),      a = 1 where D >= 0, else max(exp(lambda D), epsilon)

with x the prompt and y the text so far. Each prefix is one more row of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from detoxbench.config import knob
from detoxbench.data.examples import FitData
from detoxbench.interventions.channels import Carried, LogitOp, Prompt
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method
from detoxbench.model.logit_state import LogitState

if TYPE_CHECKING:
    from torch import Tensor

ANNOUNCED = (
    "rude, disrespectful, or unreasonable language",
    "very hateful, aggressive, disrespectful language",
    "sexually explicit language",
    "a threat",
    "negative or hateful language targeting someone because of their identity",
    "swear words, curse words, or other obscene or profane language",
)
"""What the released prefixes announce, one an attribute of Perspective."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The prefixes, and how strongly their tokens are damped."""

    prefixes: tuple[str, ...] = knob(
        tuple(f"The following text contains {what}:\n" for what in ANNOUNCED),
        "texts that stand directly before the prompt, each one more row for every sample",
        text=True,
        source="self_debiasing.py:14-21",
    )
    decay_constant: float = knob(
        50.0, "lambda: how fast a token is damped by what a prefix adds to it", source="self_debiasing.py:71", ge=0
    )
    epsilon: float = knob(0.01, "the least factor of a token's probability", source="self_debiasing.py:73", gt=0, le=1)

    def __post_init__(self) -> None:
        if not self.prefixes:
            raise ValueError("prefixes is empty: give at least one text")


def damp(logits: Tensor, state: LogitState) -> Tensor:
    """log p + log a(D), [rows, vocabulary], up to a number a row."""
    import torch

    p = logits.softmax(-1)
    invited = torch.stack([state.under(name).softmax(-1) for name in state.carried]).amax(0)  # the smallest D
    decay = (state.params["decay_constant"] * (p - invited).clamp(max=0)).exp().clamp(min=state.params["epsilon"])
    return logits + decay.log()


class SelfDebias(Method[Config]):
    """Asks the model what it would say if bad text were announced, and damps what that makes likelier. Needs no data
    and no training; costs a row for every prefix.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> change = db.methods.create("self_debias", prefixes=("emma yelled : you fool .",)).fit(lm, db.FitData())
    >>> [part.prompts[0].prefix for part in change.logits[0].under.values()]
    ['emma yelled : you fool .']
    """

    Config = Config
    paper = "Self-Diagnosis and Self-Debiasing: A Proposal for Reducing Corpus-Based Bias in NLP (arXiv 2103.00453)"
    licence = "Apache-2.0"
    fidelity = (
        "equal to the released formula (tests/methods/test_self_debias.py computes it a row at a time; "
        "timoschick/self-debiasing, generation.py:44-70)"
    )
    ops: ClassVar = {"damp": damp}

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        prefixes = {str(i): Carried(prompts=(Prompt(prefix=text),)) for i, text in enumerate(self.config.prefixes)}
        params = {"decay_constant": self.config.decay_constant, "epsilon": self.config.epsilon}
        # log a moves by lambda times an error of p, which is at most half of an error of the logits.
        sensitivity = 1 + self.config.decay_constant / 2
        op = LogitOp(f"{self.name}.damp", params=params, under=prefixes, sensitivity=sensitivity)
        return Intervention(method=self.name, base=lm.fingerprint, logits=(op,))
