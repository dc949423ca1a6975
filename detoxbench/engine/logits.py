"""Next-token logits as they are chosen from: through the functions in force, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from detoxbench.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model


def processed(lm: Model, logits: Tensor) -> Tensor:
    """Next-token logits [rows, vocabulary] in float32, through the logit functions in force."""
    logits = logits.float()
    for function in lm.in_force.logit_functions:
        logits = function(logits)
    return logits


def require_finite_logits(
    lm: Model, largest: Tensor, records: Sequence[str], where: Callable[[int], str | None]
) -> None:
    """Raises NonFiniteError where the largest logit of a row, [rows], is NaN or infinite: then one of its logits is NaN
    or +inf, or all are -inf, and a token chosen from them would look like an answer. Single logits may be -inf.

    `where(row)` says in words where that was, None for a row that no longer counts; `records[row]` is its record.
    """
    if bool(largest.isfinite().all()):  # the device is waited for once
        return
    for row in largest.isfinite().logical_not().nonzero()[:, 0].tolist():
        if (place := where(row)) is None:
            continue
        methods = "+".join(lm.in_force.of_rows([records[row]])) or "none"
        value = float(largest[row])
        described = "-inf for every token" if value == -math.inf else f"{value}"
        raise NonFiniteError(
            f"the logits of '{lm.name}' ({str(lm.dtype).removeprefix('torch.')}) under method '{methods}' are "
            f"{described} at {place}: nothing is scored; change model.dtype, lower the method's strength, or mend the "
            "model"
        )
