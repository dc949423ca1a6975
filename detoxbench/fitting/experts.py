"""An expert and an anti-expert: adapters that are given, or LoRAs trained alike on civil and on toxic instructions.

Methods that combine the two take both from here, so that with the same settings and seed they combine the very same
adapters: in weight space (Ext-Sub) or in logit space (DExperts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from detoxbench.config import runtime
from detoxbench.data.examples import FitData, Role
from detoxbench.fitting.training import LoraConfig, train_lora
from detoxbench.interventions import peft_io
from detoxbench.interventions.peft_io import Ia3, Lora, PrefixTuning
from detoxbench.lm import LanguageModel

Side = Literal["expert", "anti_expert"]
ROLES: Mapping[Side, Role] = {"expert": Role.CIVIL_INSTRUCTIONS, "anti_expert": Role.TOXIC_INSTRUCTIONS}
SIDES: Sequence[Side] = tuple(ROLES)


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(LoraConfig):
    """Where the two adapters are from, and how those are trained that are not given."""

    expert: str | None = runtime(
        None, "existing PEFT adapter (folder or hub id) that is the expert; null trains one on civil instructions"
    )
    anti_expert: str | None = runtime(
        None, "existing PEFT adapter that is the anti-expert; null trains one on toxic instructions"
    )

    def given(self, sides: Sequence[Side]) -> dict[Side, str]:
        """The adapters that are given, of these sides."""
        return {side: path for side in sides if (path := getattr(self, side)) is not None}


class Experts(NamedTuple):
    """Adapters by side, and how they came about."""

    modules: dict[Side, Mapping[str, Lora | Ia3 | PrefixTuning]]
    """Of each side that was asked for, module -> its adapter."""
    dtype: str
    """The type that the given expert is stored in; float32 where one was trained."""
    info: dict[str, Any]
    """Losses and cut texts of those trained."""


def needs(config: ExpertConfig, sides: Sequence[Side] = SIDES) -> frozenset[Role]:
    """The fit data of those sides that have to be trained."""
    return frozenset(ROLES[side] for side in sides if side not in config.given(sides))


def fingerprints(config: ExpertConfig, sides: Sequence[Side] = SIDES) -> dict[str, str]:
    """Side -> digest of the adapter that is given. Raises DetoxbenchError as `peft_io.fingerprint`."""
    return {side: peft_io.fingerprint(path) for side, path in config.given(sides).items()}


def read_or_train(
    lm: LanguageModel, data: FitData, config: ExpertConfig, seed: int, sides: Sequence[Side] = SIDES
) -> Experts:
    """The adapters of these sides; the anti-expert is trained with `seed` + 1. Raises DetoxbenchError for an adapter
    that does not fit, and as `train_lora`; warns where the adapters name another base model."""
    given = {side: peft_io.read(path, lm) for side, path in config.given(sides).items()}
    peft_io.warn_of_other_bases([adapter.base for adapter in given.values()], lm)
    modules: dict[Side, Mapping[str, Lora | Ia3 | PrefixTuning]] = {side: {} for side in SIDES}
    info: dict[str, Any] = {}
    for side in sides:
        if side in given:
            modules[side] = given[side].modules
            continue
        adapter = train_lora(
            lm,
            data.by_role.get(ROLES[side], ()),
            config,
            seed=seed + SIDES.index(side),
            description=f"{side.replace('_', '-')} LoRA",
        )
        modules[side] = {name.removesuffix(".weight"): Lora(w.a, w.b) for name, w in adapter.deltas.items()}
        info |= {f"{side}_losses": list(adapter.losses), f"{side}_cut_texts": adapter.cut_texts}
    return Experts(modules, given["expert"].dtype if "expert" in given else "float32", info)
