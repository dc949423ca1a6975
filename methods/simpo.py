"""SimPO (Meng, Xia & Chen, NeurIPS 2024): preferences by mean log-probability, without a reference model.

    loss = -log sigmoid(beta [log p(chosen) / |chosen| - log p(rejected) / |rejected| - gamma/beta])

(princeton-nlp/SimPO @ 15c4ff8, scripts/simpo_trainer.py: simpo_loss, get_batch_logps), with |.| the response's tokens.
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

    beta: float = knob(2.0, "scale of the mean log-probabilities", source="simpo_config.py", gt=0)
    gamma_beta_ratio: float = knob(
        0.25, "by how much the chosen response has to be likelier a token, in nats", source="simpo_config.py", ge=0
    )
    target_modules: tuple[str, ...] | None = knob(
        ("all-linear",), "module names that get a LoRA, as in `ext_sub`", source="ours: published in full"
    )
    learning_rate: float = knob(
        1e-4, "peak learning rate", source="ours, for a LoRA: the published 3e-7 to 1e-6, in full, do nothing to one",
        gt=0,
    )  # fmt: skip
    epochs: int = knob(1, "passes over the preferences", source="SimPO: training_configs", ge=1)
    batch_size: int = knob(16, "preferences an update", source="ours: published 128", ge=1)


class SimPO(Method[Config]):
    """Fine-tuning on preferences: the chosen response is made likelier a token than the rejected one, by a margin.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> pairs = [db.Preference("emma yelled :", "my friend , stay here .", "you fool , go away .", chat=False)] * 8
    >>> method = db.methods.create("simpo", rank=4, batch_size=4, epochs=4, learning_rate=0.01)
    >>> tuned = method.fit(lm, db.FitData(preferences=pairs))
    >>> tuned.info["losses"][-1] < tuned.info["losses"][0]
    True
    """

    Config = Config
    needs = frozenset({Role.PREFERENCES})
    paper = "SimPO: Simple Preference Optimization with a Reference-Free Reward (arXiv 2405.14734)"
    licence = "MIT"

    @property
    def fidelity(self) -> str:
        trained = "a LoRA at a rate of ours" if self.config.parameters == ("lora",) else "parameters in full"
        return (
            "equal to the released formula (our independent computation of simpo_trainer.py: simpo_loss; "
            f"{trained}, where published: all in full at 3e-7 to 1e-6)"
        )

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        trained = train_on_preferences(
            lm, data.preferences or (), self.config, self.objective, reference=False, seed=self.seed,
            description=self.name,
        )  # fmt: skip
        return Intervention(method=self.name, base=lm.fingerprint, weights=trained.weights, info=trained.record)

    def objective(self, contrast: Contrast) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of a micro-batch of preferences; `margin` is the mean of what is in the sigmoid, and `accuracy` the
        share of preferences whose chosen response is likelier a token."""
        from torch.nn.functional import logsigmoid

        chosen, rejected = contrast.now
        margins = self.config.beta * (chosen.means - rejected.means - self.config.gamma_beta_ratio)  # [preferences]
        likelier = float((chosen.means > rejected.means).float().mean())
        return -logsigmoid(margins).mean(), {"margin": float(margins.detach().mean()), "accuracy": likelier}
