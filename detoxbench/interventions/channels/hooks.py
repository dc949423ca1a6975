"""Hooks: functions on a module's input or output, which is what activation steering is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from detoxbench.errors import UsageError
from detoxbench.interventions.channels.base import Channel, Params
from detoxbench.interventions.operations import bound

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from detoxbench.model.model import Model


@dataclass(frozen=True)
class Hook(Channel):
    """A function on a module's input ("pre") or output ("post"): `op(x, tensors, params) -> x`, x of any batch shape.

    Where the module takes or gives a tuple, x is its first element. `positions` generated leaves the prompt's positions
    as they are while texts are generated; where nothing is generated, all positions count as new.
    """

    module: str
    when: Literal["pre", "post"]
    op: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    params: Params = field(default_factory=dict)
    positions: Literal["all", "generated"] = "all"

    def __post_init__(self) -> None:
        if self.when not in ("pre", "post"):
            raise UsageError(f"the hook on '{self.module}' has when={self.when!r}: choose pre or post")
        if self.positions not in ("all", "generated"):
            raise UsageError(f"the hook on '{self.module}' has positions={self.positions!r}: choose all or generated")

    @property
    def place(self) -> str:
        return self.module

    def named_tensors(self) -> Mapping[str, Tensor]:
        return self.tensors

    def as_json(self) -> dict[str, Any]:
        params = dict(self.params)
        return {"module": self.module, "when": self.when, "op": self.op, "params": params, "positions": self.positions}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Hook:
        d = document
        return cls(d["module"], d["when"], d["op"], tensors, d["params"], d.get("positions", "all"))

    def settings(self) -> Params:
        return {self.op: self.params}

    @classmethod
    def put_on(cls, lm: Model, parts: Sequence[Hook], undo: ExitStack) -> None:
        for hook in parts:
            undo.callback(register(lm, hook).remove)


def register(lm: Model, hook: Hook, rows: Callable[[], Tensor | None] | None = None) -> RemovableHandle:
    """Have the hook act on `lm`: on all rows, or on those whose indices `rows()` gives, [rows under it]; None: none."""
    import torch

    function = bound(hook.op, hook.tensors, hook.params, lm)
    module = lm.architecture.module(hook.module)

    def on_first(value: Any) -> Any:
        return (chosen(value[0]), *value[1:]) if isinstance(value, tuple) else chosen(value)

    def chosen(x: Tensor) -> Tensor:
        if rows is None:
            return steered(x, lm.in_force.prompt_positions[0])
        indices = rows()
        if indices is None:
            return x
        batch = x.reshape(lm.in_force.prompt_positions[0], -1, x.shape[-1])  # as below
        part = steered(batch.index_select(0, indices), len(indices))
        return batch.index_copy(0, indices, part).reshape(x.shape)

    def steered(x: Tensor, rows: int) -> Tensor:
        prompt = lm.in_force.prompt_positions[1] if hook.positions == "generated" else 0
        if not prompt:
            return function(x)
        tokens = x.reshape(rows, -1, x.shape[-1])  # some modules (OPT's MLP) are given all rows as one
        if prompt == tokens.shape[1]:
            return x
        return torch.cat([tokens[:, :prompt], function(tokens[:, prompt:])], 1).reshape(x.shape)

    if hook.when == "pre":
        return module.register_forward_pre_hook(lambda _, args: on_first(args))
    return module.register_forward_hook(lambda _, __, output: on_first(output))
