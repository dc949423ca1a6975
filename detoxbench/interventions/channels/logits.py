"""Processors of the next-token logits, which is what decoding-time methods are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from detoxbench.interventions.channels.base import Channel, Params
from detoxbench.interventions.operations import bound

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model


@dataclass(frozen=True)
class LogitOp(Channel):
    """A function on the next-token logits, [rows, vocabulary]: `op(logits, tensors, params) -> logits`."""

    compilable: ClassVar[bool] = True

    op: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    params: Params = field(default_factory=dict)

    @property
    def place(self) -> str:
        return self.op

    def named_tensors(self) -> Mapping[str, Tensor]:
        return self.tensors

    def as_json(self) -> dict[str, Any]:
        return {"op": self.op, "params": dict(self.params)}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LogitOp:
        return cls(document["op"], tensors, document["params"])

    def settings(self) -> Params:
        return {self.op: self.params}

    @classmethod
    def put_on(cls, lm: Model, parts: Sequence[LogitOp], undo: ExitStack) -> None:
        functions = lm.in_force.logit_functions
        for part in parts:
            functions.append(bound(part.op, part.tensors, part.params, lm))
            undo.callback(functions.pop)
