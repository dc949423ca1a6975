"""Unlearning the rejected responses: negative preference optimisation and what it is compared with.

Of a response y to x, with its tokens w_1 .. w_n and p_ref the model before training, the loss on what is unlearnt is

    npo           -2/beta log sigmoid(-beta log p/p_ref (y))                          (Zhang et al. 2024, Eq. 3)
    simnpo        -2/beta log sigmoid(-beta (log p(y) / n + delta))                   (Fan et al. 2024)
    ga            log p(w), the mean over tokens: gradient ascent on their NLL
    grad_diff     the same, published with a retain term
    unlikelihood  -log(1 - p(w)), the mean over tokens                                (Welleck et al. 2020, Eq. 3)

times forget_weight, plus retain_weight times the mean NLL of the tokens of retain texts. NPO, SimNPO, GradDiff: as
locuslab/open-unlearning @ 19a6141 has them (src/trainer/utils.py: compute_dpo_loss, compute_batch_nll; unlearn/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Instruction, Role
from detoxbench.fitting.sides import Contrast, beside, encoded, train_on_sides
from detoxbench.fitting.training import TrainingConfig
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.fitting.responses import Likelihoods

SMALLEST = 1e-5
"""1 - p is no smaller in the unlikelihood, whose gradient would have no bound (as in fairseq's and ParlAI's code)."""


class Published(NamedTuple):
    """What a loss was published with."""

    beta: float
    forget_weight: float
    retain_weight: float


PUBLISHED = {
    "npo": Published(0.1, 1.0, 1.0),  # open-unlearning: configs/trainer/NPO.yaml
    "simnpo": Published(4.5, 0.125, 1.0),  # SimNPO.yaml
    "ga": Published(0.0, 1.0, 0.0),  # GradAscent.yaml
    "grad_diff": Published(0.0, 1.0, 1.0),  # GradDiff.yaml
    "unlikelihood": Published(0.0, 1.0, 0.0),  # Welleck et al. 2020 add the usual likelihood of the same texts
}


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """The loss, and how it is trained."""

    loss: Literal["npo", "simnpo", "ga", "grad_diff", "unlikelihood"] = knob(
        "npo", "the loss on what is unlearnt; see the head of the file", source="open-unlearning: src/trainer/unlearn"
    )
    forget: Literal["preferences", "toxic_instructions"] = knob(
        "preferences", "what is unlearnt: the rejected responses of preferences, or toxic instructions", source="ours"
    )
    beta: float | None = knob(
        None, "how strongly npo and simnpo saturate; null: as published, 0.1 and 4.5", source="NPO.yaml; SimNPO.yaml",
        gt=0,
    )  # fmt: skip
    delta: float = knob(0.0, "of simnpo: the mean NLL at which a response counts half", source="SimNPO.yaml", ge=0)
    forget_weight: float | None = knob(
        None, "weight of what is unlearnt; null: as published, 0.125 for simnpo, else 1", source="SimNPO.yaml", ge=0
    )
    retain_weight: float | None = knob(
        None, "weight of the NLL of retain texts; null: as published, 0 for ga and unlikelihood, else 1",
        source="open-unlearning: configs/trainer", ge=0,
    )  # fmt: skip
    target_modules: tuple[str, ...] | None = knob(
        ("all-linear",), "module names that get a LoRA, as in `ext_sub`", source="ours: published in full"
    )
    learning_rate: float = knob(1e-4, "peak learning rate", source="ours, for a LoRA; published 1e-5, in full", gt=0)
    epochs: int = knob(1, "passes over what is unlearnt", source="ours: published 10, over 400 texts", ge=1)
    batch_size: int = knob(16, "responses an update", source="ours: published 32", ge=1)

    @property
    def values(self) -> Published:
        """What is used: what is set, and as published where nothing is."""
        given = (self.beta, self.forget_weight, self.retain_weight)
        return Published(*(p if g is None else g for g, p in zip(given, PUBLISHED[self.loss], strict=True)))


class NPO(Method[Config]):
    """Unlearning: toxic responses are made unlikely, by one of five losses, while retain texts stay as likely.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> pairs = [db.Preference("emma yelled :", "my friend , stay here .", "you fool , go away .", chat=False)] * 8
    >>> kept = [db.Instruction("", "the duck slept near the farm .", chat=False)]
    >>> method = db.methods.create("npo", rank=4, batch_size=4, epochs=4, learning_rate=0.01)
    >>> unlearnt = method.fit(lm, db.FitData(preferences=pairs, retain_texts=kept))
    >>> unlearnt.info["forget_nll"][-1] > unlearnt.info["forget_nll"][0]
    True
    """

    Config = Config
    paper = "Negative Preference Optimization (arXiv 2404.05868); SimNPO (2410.07163); Unlikelihood (1908.04319)"
    licence = "MIT"

    @property
    def fidelity(self) -> str:
        trained = "a LoRA at a rate of ours" if self.config.parameters == ("lora",) else "parameters in full"
        where = {
            "ga": "open-unlearning's grad_ascent.py",
            "grad_diff": "open-unlearning's grad_diff.py",
            "unlikelihood": "Eq. 3 of Welleck et al.; 1 - p no smaller than 1e-5",
        }.get(self.config.loss, "open-unlearning's trainer/utils.py and its settings")
        return (
            f"equal to the released formula (our independent computation of {where}; {trained}, where published: all "
            "in full)"
        )

    @property
    def needs(self) -> frozenset[Role]:
        forgotten = {"preferences": Role.PREFERENCES, "toxic_instructions": Role.TOXIC_INSTRUCTIONS}
        retained = {Role.RETAIN_TEXTS} if self.config.values.retain_weight else set()
        return frozenset({forgotten[self.config.forget], *retained})

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        config = self.config
        forgotten = [Instruction(p.prompt, p.rejected, p.chat) for p in data.preferences or ()]
        if config.forget == "toxic_instructions":
            forgotten = [*(data.toxic_instructions or ())]
        rows, cut = encoded(lm, [(example,) for example in forgotten], config)
        epochs, sides = lambda epoch: rows, 1
        if config.values.retain_weight:
            retained, cut_too = encoded(lm, [(example,) for example in data.retain_texts or ()], config)
            epochs, sides = beside([r for (r,) in rows], [r for (r,) in retained], self.seed), 2
            cut += cut_too
        trained = train_on_sides(
            lm, epochs, config, self.objective, sides=sides, reference=config.loss == "npo", seed=self.seed,
            description=f"{self.name} ({config.loss})",
        )  # fmt: skip
        trained = replace(trained, cut_texts=cut)
        return Intervention(method=self.name, base=lm.fingerprint, weights=trained.weights, info=trained.record)

    def objective(self, contrast: Contrast) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of a micro-batch; measured are the mean NLL of a token that is unlearnt, and of one retained."""
        values, forget = self.config.values, contrast.now[0]
        losses: dict[str, Callable[[], Tensor]] = {
            "npo": lambda: _saturating(-contrast.gains(0), values.beta),
            "simnpo": lambda: _saturating(-forget.means - self.config.delta, values.beta),
            "unlikelihood": partial(_unlikelihood, forget),
        }
        loss = values.forget_weight * losses.get(self.config.loss, lambda: -forget.nlls.mean())()
        measured = {"forget_nll": float(forget.nlls.detach().mean())}
        if values.retain_weight:
            retain = contrast.now[1].nlls.mean()
            loss = loss + values.retain_weight * retain
            measured["retain_nll"] = float(retain.detach())
        return loss, measured


def _saturating(score: Tensor, beta: float) -> Tensor:
    """-2/beta log sigmoid(beta score), the mean over responses: falls with the score [rows], and levels off at 0."""
    from torch.nn.functional import logsigmoid

    return -2 / beta * logsigmoid(beta * score).mean()


def _unlikelihood(forget: Likelihoods) -> Tensor:
    """-log(1 - p), the mean over tokens."""
    return -(1 - (-forget.nlls).exp()).clamp(min=SMALLEST).log().mean()
