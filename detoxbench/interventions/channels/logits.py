"""Processors of the next-token logits, which is what decoding-time methods are made of.

An operation may carry other interventions (an expert, a prompt that invites toxicity, ...) and ask for the logits of
the same model under each. They are computed as more rows of the same batch, each with its own cache, and never as
second models: the weights are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean
from detoxbench.interventions.channels.base import Channel, Params, below
from detoxbench.interventions.channels.hooks import Hook, register
from detoxbench.interventions.channels.prompts import Prompt
from detoxbench.interventions.channels.weights import Weight, edits, require_eager
from detoxbench.interventions.operations import found, on_device
from detoxbench.interventions.per_row import per_row_weights
from detoxbench.model.in_force import Companion
from detoxbench.model.logit_state import ASKED, LogitFunction

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model


@dataclass(frozen=True)
class Carried:
    """An intervention that an operation on the logits carries. It acts on rows of its own, on top of all else that is
    in force; its low-rank changes are side paths, whatever the model's type."""

    weights: tuple[Weight, ...] = ()
    hooks: tuple[Hook, ...] = ()
    prompts: tuple[Prompt, ...] = ()

    @classmethod
    def channels(cls) -> dict[str, type[Channel]]:
        """Field name -> channel."""
        return {"weights": Weight, "hooks": Hook, "prompts": Prompt}

    def parts(self) -> Iterator[tuple[str, Channel]]:
        """(name in the saved tensors, part) of every part."""
        for name in self.channels():
            yield from ((f"{name}.{i}", part) for i, part in enumerate(getattr(self, name)))

    def named_tensors(self) -> dict[str, Tensor]:
        """All tensors by part and name."""
        return {f"{place}.{name}": t for place, part in self.parts() for name, t in part.named_tensors().items()}

    def as_json(self) -> dict[str, Any]:
        """All that is no tensor."""
        return {f.name: [part.as_json() for part in getattr(self, f.name)] for f in fields(self)}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Carried:
        """The same again, from `as_json` and `named_tensors`."""
        parts: dict[str, Any] = {
            name: tuple(kind.of(d, below(tensors, f"{name}.{i}")) for i, d in enumerate(document[name]))
            for name, kind in cls.channels().items()
        }
        return cls(**parts)

    def put_beside(self, lm: Model, undo: ExitStack) -> Companion:
        """Have it act on the rows that are announced as under it, until `undo` is closed. Raises as `applied`."""
        under: list[Tensor | None] = [None]  # the indices of the rows under it; None: there are none
        set_variants = None
        if self.weights or self.hooks:
            require_eager(lm)
        if self.weights:
            changes = list(edits(lm, self.weights, "side_path"))
            values = {e.parameter: e.value for e in changes if e.value is not None}
            beside = {e.parameter: e.side_path for e in changes if e.side_path is not None}
            if values and lm.in_force.route is not None:
                raise DetoxbenchError(
                    f"'{min(values)}' is changed by an intervention that an operation on the logits carries, and that "
                    "is no low-rank change of a linear map: it cannot stand on top of changes that differ by record"
                )
            set_variants = undo.enter_context(per_row_weights(lm, [values], [beside], must_announce=False))
        for hook in self.hooks:
            undo.callback(register(lm, hook, lambda: under[0]).remove)

        def set_rows(is_under: Sequence[bool]) -> None:
            import torch

            if set_variants is not None:
                set_variants([0 if yes else -1 for yes in is_under])
            indices = [i for i, yes in enumerate(is_under) if yes]
            under[0] = torch.tensor(indices, device=lm.device) if self.hooks and indices else None

        return Companion(self.prompts, set_rows if self.weights or self.hooks else None)


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
        carried = {f"under.{name}.{k}": t for name, c in self.under.items() for k, t in c.named_tensors().items()}
        return {**self.tensors, **carried}

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
        under = {name: Carried.of(d, below(tensors, f"under.{name}")) for name, d in document.get("under", {}).items()}
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("under.")}
        asks, sensitivity = tuple(document.get("asks", ())), document.get("sensitivity", 1.0)
        return cls(document["op"], own, document["params"], under, asks, sensitivity)

    def settings(self) -> Params:
        carried = {f"{n}: {part.place}": part.settings() for n, c in self.under.items() for _, part in c.parts()}
        return {self.op: self.params, "sensitivity": self.sensitivity, **carried}

    @classmethod
    def put_on(cls, lm: Model, parts: Sequence[LogitOp], undo: ExitStack) -> None:
        for part in parts:
            put_on(lm, part, undo)


def put_on(lm: Model, part: LogitOp, undo: ExitStack, variant: int | None = None) -> None:
    """Have the operation act until `undo` is closed: on all rows, or on those of a `variant` (`Model.variant`)."""
    on = lm.in_force
    companions: dict[str, int] = {}
    for name, carried in part.under.items():
        on.companions.append(carried.put_beside(lm, undo))
        undo.callback(on.companions.pop)
        companions[name] = len(on.companions)
    on.logit_functions.append(
        LogitFunction(
            found(part.op),
            on_device(part.tensors, lm),
            part.params,
            companions,
            frozenset(part.asks),
            part.sensitivity,
            variant,
        )
    )
    undo.callback(on.logit_functions.pop)
