"""Processors of the next-token logits, which is what decoding-time methods are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from detoxbench.errors import UsageError, did_you_mean
from detoxbench.interventions.channels.base import Channel, Params
from detoxbench.interventions.channels.hooks import Carried, carried_settings, with_carried, without_carried
from detoxbench.interventions.operations import found, on_device
from detoxbench.model.logit_state import ASKED, LogitFunction

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model


@dataclass(frozen=True)
class LogitOp(Channel):
    """A function on the next-token logits, [rows, vocabulary]: `op(logits, state) -> logits`, see `LogitState`.

    `under` are the interventions that it carries, by the names it asks the state for. `asks` names what else it looks
    at: "hidden", "loglikelihood", "after". `sensitivity` says how many times a rounding error of the logits may grow in
    what it gives: near-ties are looked for within so many times the usual distance.
    """

    compilable: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    op: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    params: Params = field(default_factory=dict)
    under: Mapping[str, Carried] = field(default_factory=dict)
    asks: tuple[str, ...] = ()
    sensitivity: float = 1.0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.asks) - set(ASKED)):
            raise UsageError(
                f"the operation '{self.op}' asks for '{unknown[0]}'{did_you_mean(unknown[0], ASKED)}; there are: "
                f"{', '.join(ASKED)}"
            )

    @property
    def place(self) -> str:
        return self.op

    def named_tensors(self) -> Mapping[str, Tensor]:
        return with_carried(self.tensors, self.under)

    def as_json(self) -> dict[str, Any]:
        more: dict[str, Any] = {
            "under": {name: carried.as_json() for name, carried in self.under.items()},
            "asks": list(self.asks),
            "sensitivity": self.sensitivity,
        }
        usual = {"under": {}, "asks": [], "sensitivity": 1.0}  # left out, as before there was more
        given = {key: value for key, value in more.items() if value != usual[key]}
        return {"op": self.op, "params": dict(self.params), **given}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LogitOp:
        own, under = without_carried(document, tensors)
        asks, sensitivity = tuple(document.get("asks", ())), document.get("sensitivity", 1.0)
        return cls(document["op"], own, document["params"], under, asks, sensitivity)

    def settings(self) -> Params:
        return {self.op: self.params, "sensitivity": self.sensitivity, **carried_settings(self.under)}

    @classmethod
    def put_on(cls, lm: Model, parts: Sequence[LogitOp], undo: ExitStack) -> None:
        for part in parts:
            put_on(lm, part, undo)


def put_on(lm: Model, part: LogitOp, undo: ExitStack, variant: int | None = None) -> None:
    """Have the operation act until `undo` is closed: on all rows, or on those of a `variant` (`Model.variant`)."""
    on = lm.in_force
    companions = {name: carried.put_beside(lm, undo) for name, carried in part.under.items()}
    on.logit_functions.append(
        LogitFunction(
            found(part.op),
            on_device(part.tensors, lm.device),
            part.params,
            companions,
            frozenset(part.asks),
            part.sensitivity,
            variant,
        )
    )
    undo.callback(on.logit_functions.pop)
