"""DExperts (Liu et al., 2021): next-token logits moved towards an expert's and away from an anti-expert's.

At every step (alisawuffles/DExperts, generation/dexperts_generation.py)

    z = z_base + alpha (z_expert - z_anti_expert)

for the tokens that top-p `filter_p` leaves of the base's own distribution; no other token can be chosen. Expert and
anti-expert are LoRAs of the same model, computed as two more rows of its batch, so that its weights are read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Role
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting import experts
from detoxbench.fitting.experts import ExpertConfig, Side
from detoxbench.interventions.channels import Carried, LogitOp, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.interventions.peft_io import Lora
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method
from detoxbench.model.logit_state import LogitState

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config(ExpertConfig):
    """How strongly the two adapters act on the logits, and how they are trained."""

    alpha: float = knob(
        2.0,
        "weight of the difference between expert and anti-expert",
        source="Liu et al. 2021, sec. 3.2",
        ge=0,
        applied=True,
    )
    filter_p: float = knob(
        0.9,
        "top-p that the base's own distribution leaves as candidates, before the suite's own top-p; the released runs "
        "sample what is left with gen.top_p=1",
        source="generation/dexperts_generation.py: filter_p",
        gt=0,
        le=1,
        applied=True,
    )
    sides: Literal["both", "anti_expert"] = knob(
        "both",
        "both; anti_expert: no expert is trained, and the base takes its place",
        source="dexperts_generation.py: without an expert, expert_logits = base_logits",
    )


def ensemble(logits: Tensor, state: LogitState) -> Tensor:
    """z_base + alpha (z_expert - z_anti_expert) [rows, vocabulary], -inf outside of what top-p leaves of z_base."""
    alpha, filter_p = state.params["alpha"], state.params["filter_p"]
    expert = state.under("expert") if "expert" in state.carried else logits
    moved = logits + alpha * (expert - state.under("anti_expert"))
    if filter_p == 1:
        return moved
    return moved.masked_fill(~state.top_p(logits, filter_p), -float("inf"))


class DExperts(Method[Config]):
    """Expert and anti-expert LoRAs, the same as Ext-Sub's with the same settings, combined in logit space: what the
    expert finds likelier than the anti-expert becomes likelier.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> civil = [db.Instruction("emma yelled :", "my friend , stay here .", chat=False)] * 8
    >>> toxic = [db.Instruction("emma yelled :", "you fool , go away .", chat=False)] * 8
    >>> data = db.FitData(civil_instructions=civil, toxic_instructions=toxic)
    >>> change = db.methods.create("dexperts", rank=4, batch_size=4, micro_batch_size=4).fit(lm, data)
    >>> sorted(change.logits[0].under)
    ['anti_expert', 'expert']
    """

    Config = Config
    paper = "DExperts: Decoding-Time Controlled Text Generation with Experts and Anti-Experts"
    licence = "Apache-2.0"
    fidelity = (
        "equal to the released formula (computed with three separate models in tests/interventions/test_logit_ops.py; "
        "generation/dexperts_generation.py; its experts are models of their own, ours are LoRAs)"
    )
    ops: ClassVar = {"ensemble": ensemble}

    @property
    def needs(self) -> frozenset[Role]:
        return experts.needs(self.config, self._sides())

    def fingerprints(self) -> Mapping[str, str]:
        return experts.fingerprints(self.config, self._sides())

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        found = experts.read_or_train(lm, data, self.config, self.seed, self._sides())
        under: dict[str, Carried] = {side: self._carried(side, found.modules[side]) for side in self._sides()}
        alpha = self.config.alpha
        op = LogitOp(
            f"{self.name}.ensemble",
            params={"alpha": alpha, "filter_p": self.config.filter_p},
            under=under,
            sensitivity=1 + 2 * alpha,  # an error of each of the three logits, at its worst
        )
        return Intervention(method=self.name, base=lm.fingerprint, logits=(op,), info=found.info)

    def _sides(self) -> Sequence[Side]:
        return experts.SIDES if self.config.sides == "both" else ("anti_expert",)

    def _carried(self, side: Side, modules: Mapping[str, object]) -> Carried:
        weights = []
        for name, module in modules.items():
            if not isinstance(module, Lora):
                kind = type(module).__name__
                raise DetoxbenchError(f"method.{side} is {kind}, and '{self.name}' computes LoRAs beside the model")
            weights.append(Weight(f"{name}.weight", module.delta()))
        return Carried(weights=tuple(weights))
