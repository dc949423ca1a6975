"""Checks for NaN, infinity, and numbers so large that arithmetic makes them infinite. They are reported where they
arise, because what is computed from them looks like a result: a text of one repeated word is not toxic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detoxbench.errors import NonFiniteError
from detoxbench.model.devices import offloaded, present

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST = 1e19
"""The square of a larger number is infinite in float32, and a norm may give a finite number that means nothing."""


def require_finite(tensors: Iterable[tuple[str, Tensor]], where: str, remedy: str) -> None:
    """Raises NonFiniteError naming `where` and the first of the (name, tensor) pairs that holds NaN, infinity or a
    number beyond `LARGEST`. Reads every tensor once and copies none."""
    for name, tensor in tensors:
        low, high = _bounds(tensor)
        if not (low >= -LARGEST and high <= LARGEST):
            raise NonFiniteError(f"{where}: '{name}' holds {_described(low, high)}: {remedy}")


def require_finite_model(model: nn.Module, where: str) -> None:
    """Every parameter as in `require_finite`, and no NaN or +inf in a buffer: a mask may hold -inf."""
    remedy = "the file is damaged or the number too large for this type: get the file again, or change the dtype"
    if offloaded(model) is None:
        require_finite(model.named_parameters(), where, remedy)
    else:
        for path, module in model.named_modules():
            with present(module):
                require_finite(module.named_parameters(path, recurse=False), where, remedy)
    for name, buffer in model.named_buffers():
        low, high = _bounds(buffer)
        if not high < math.inf:
            raise NonFiniteError(f"{where}: '{name}' holds {_described(low, high)}: {remedy}")


def require_finite_values(values: Any, where: str, remedy: str, *, largest: float = math.inf, path: str = "") -> None:
    """The same for nested maps and lists of plain numbers, which may be up to `largest`; the error names the key."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, float) and not (math.isfinite(values) and abs(values) <= largest):
        raise NonFiniteError(f"{where}: '{path}' is {values}: {remedy}")
    if isinstance(values, Mapping):
        inner = values.items()
    elif isinstance(values, Sequence) and not isinstance(values, str):
        inner = enumerate(values)
    for key, value in inner:
        below = f"{path}.{key}" if path else str(key)
        require_finite_values(value, where, remedy, largest=largest, path=below)


def _bounds(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest value, both NaN where a value is NaN; 0 where nothing can be wrong."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return 0.0, 0.0
    if tensor.element_size() == 1:  # float8 cannot be compared
        tensor = tensor.float()
    low, high = tensor.detach().aminmax()
    return float(low), float(high)


def _described(low: float, high: float) -> str:
    if math.isnan(low):
        return "NaN"
    worst = high if high >= -low else low
    return f"{worst:g}" + ("" if math.isinf(worst) else ", whose square overflows")
