"""Functions that hooks and logit processors name as "METHOD.OP", found through the registered method's `ops`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.registry import METHODS

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def found(op: str) -> Callable[..., Any]:
    """The function of that name. Raises DetoxbenchError for an operation that the method does not have, UsageError for
    a method that is not registered."""
    owner, _, name = op.partition(".")
    ops: Mapping[str, Callable[..., Any]] = METHODS.get(owner).ops
    if name not in ops:
        raise DetoxbenchError(f"method '{owner}' has no operation '{name}'; it has: {', '.join(ops) or 'none'}")
    return ops[name]


def on_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors on a device."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def bound(
    op: str, tensors: Mapping[str, Tensor], params: Mapping[str, Any], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """x -> op(x, tensors, params), with the tensors on the device. Raises as `found`."""
    function, moved = found(op), on_device(tensors, device)
    return lambda x: function(x, moved, params)
