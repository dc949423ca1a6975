"""Direct preference optimisation (Rafailov et al. 2023), as Lee et al. 2024 (ajyl/dpo_toxic @ 0ab7699) detoxify by it.

    loss = -log sigmoid(beta [log p/p_ref (chosen) - log p/p_ref (rejected)])      (trainers.py: dpo_loss)

with p the probability of a whole response given its prompt. The released code sums over the tokens of prompt and
response; the prompt's share cancels, so that only the response's tokens are read here. The reference p_ref is the model
before training: the adapter, or the deltas, switched off and nothing dropped out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Role
from detoxbench.fitting.sides import Contrast, train_on_preferences
from detoxbench.fitting.training import TrainingConfig
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """The loss, and how it is trained."""

    beta: float = knob(0.1, "how strongly the reference holds", source="dpo_toxic: config.yaml", gt=0)
    target_modules: tuple[str, ...] | None = knob(
        ("all-linear",), "module names that get a LoRA, as in `ext_sub`", source="ours: published in full"
    )
    learning_rate: float = knob(
        1e-4, "peak learning rate", source="ours, for a LoRA: the published 1e-6, in full, does nothing to one", gt=0
    )
    epochs: int = knob(2, "passes over the preferences", source="ours: published 5, with an early stop", ge=1)
    batch_size: int = knob(16, "preferences an update", source="ours: published 4", ge=1)


class DPO(Method[Config]):
    """Fine-tuning on preferences: the chosen response is made likelier than the rejected one, measured against the
    model as it was.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> pairs = [db.Preference("emma yelled :", "my friend , stay here .", "you fool , go away .", chat=False)] * 8
    >>> method = db.methods.create("dpo", rank=4, batch_size=4, learning_rate=0.01)
    >>> tuned = method.fit(lm, db.FitData(preferences=pairs))
    >>> tuned.info["margin"][-1] > 0
    True
    """

    Config = Config
    needs = frozenset({Role.PREFERENCES})
    paper = "Direct Preference Optimization (arXiv 2305.18290); A Mechanistic Understanding of Alignment (2401.01967)"
    licence = "MIT"

    @property
    def fidelity(self) -> str:
        trained = "a LoRA at a rate of ours" if self.config.parameters == ("lora",) else "parameters in full"
        return (
            "equal to the released formula (our independent computation of dpo_toxic's trainers.py: dpo_loss; "
            f"{trained}, where published: all in full at 1e-6)"
        )

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        trained = train_on_preferences(
            lm, data.preferences or (), self.config, self.objective, reference=True, seed=self.seed,
            description=self.name,
        )  # fmt: skip
        return Intervention(method=self.name, base=lm.fingerprint, weights=trained.weights, info=trained.record)

    def objective(self, contrast: Contrast) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of a micro-batch of preferences; `margin` is the mean of what is in the sigmoid, and `accuracy` the
        share of preferences where it is above 0."""
        from torch.nn.functional import logsigmoid

        margins = self.config.beta * (contrast.gains(0) - contrast.gains(1))  # [preferences]
        measured = {"margin": float(margins.detach().mean()), "accuracy": float((margins > 0).float().mean())}
        return -logsigmoid(margins).mean(), measured
