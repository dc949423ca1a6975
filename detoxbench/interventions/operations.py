"""Functions that hooks and logit processors name as "METHOD.OP", found through the registered method's `ops`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.registry import METHODS

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model


def found(op: str) -> Callable[..., Any]:
    """The function of that name. Raises DetoxbenchError for an operation that the method does not have, UsageError for
    a method that is not registered."""
    owner, _, name = op.partition(".")
    ops: Mapping[str, Callable[..., Any]] = METHODS.get(owner).ops
    if name not in ops:
        raise DetoxbenchError(f"method '{owner}' has no operation '{name}'; it has: {', '.join(ops) or 'none'}")
    return ops[name]


def on_device(tensors: Mapping[str, Tensor], lm: Model) -> dict[str, Tensor]:
    """The tensors where the model's are."""
    return {name: tensor.to(lm.device) for name, tensor in tensors.items()}


def bound(op: str, tensors: Mapping[str, Tensor], params: Mapping[str, Any], lm: Model) -> Callable[[Tensor], Tensor]:
    """x -> op(x, tensors, params), with the tensors on the device of `lm`. Raises as `found`."""
    function, moved = found(op), on_device(tensors, lm)
    return lambda x: function(x, moved, params)
