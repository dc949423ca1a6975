"""Functions that hooks and logit processors name as "METHOD.OP", found through the registered method's `ops`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.registry import METHODS

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model


def bound(op: str, tensors: Mapping[str, Tensor], params: Mapping[str, Any], lm: Model) -> Callable[[Tensor], Tensor]:
    """x -> op(x, tensors, params), with the tensors on the device of `lm`.

    Raises DetoxbenchError for an operation that the method does not have, UsageError for a method that is not
    registered.
    """
    owner, _, name = op.partition(".")
    ops: Mapping[str, Callable[..., Any]] = METHODS.get(owner).ops
    if name not in ops:
        raise DetoxbenchError(f"method '{owner}' has no operation '{name}'; it has: {', '.join(ops) or 'none'}")
    function = ops[name]
    on_device = {k: v.to(lm.device) for k, v in tensors.items()}
    return lambda x: function(x, on_device, params)
