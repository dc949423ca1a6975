"""The next token of every row, out of logits: through the functions in force, checked, with near-ties marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from detoxbench.config import GenSpec
from detoxbench.engine.logits import Place, Rounding, processed, require_finite_logits, sensitivity
from detoxbench.engine.sampling import NO_TOKEN, Near, pick
from detoxbench.engine.streams import Streams
from detoxbench.model import precision

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.backend import Row
    from detoxbench.model.model import Model

FLOAT32_LOSS = 64
"""Units in the last place by which rounding may move a float32 logit; from 130 on more than `tie_tolerance`."""


def next_tokens(
    lm: Model,
    logits: Tensor,
    streams: Streams,
    place: Place,
    keys: Tensor,
    gen: GenSpec,
    step: int,
    spacing: float,
    rows: Sequence[Row],
) -> tuple[Tensor, Tensor]:
    """(the next token of every row, which of them are near-ties), [rows] on the CPU, of the logits of all streams,
    [streams, vocabulary], through the functions in force; `keys` are the rows' noise keys, [rows].

    Where `gen.tie_tolerance` turns near-ties off, there are none in float32 (`spacing`). Raises as `require_tokens`.
    """
    exact, grown = spacing <= precision.FLOAT32, sensitivity(lm)
    tolerance = grown * gen.tie_tolerance if exact else 0.0
    relative = grown * (FLOAT32_LOSS * spacing if exact else spacing)

    def picked(rounding: Rounding) -> tuple[Tensor, Tensor]:
        seen = processed(lm, logits, streams, place, rounding)
        tokens, near_ties = pick(seen, keys, gen, step, tolerance, relative)
        require_tokens(lm, seen, tokens, rows, gen, step)
        return tokens.clamp(min=0), near_ties  # of rows that are done, NO_TOKEN

    rounding = Rounding()
    if exact and gen.tie_tolerance:
        rounding = Rounding(Near(gen.tie_tolerance, FLOAT32_LOSS * spacing), "may")
    tokens, near_ties = picked(rounding)
    if exact and not gen.tie_tolerance:
        return tokens, near_ties.zero_()
    if rounding.cuts and exact:
        others, other_near_ties = picked(Rounding(rounding.near, "surely"))
        near_ties |= other_near_ties | (others != tokens)
    if rounding.contested is not None:
        near_ties |= rounding.contested.cpu()
    return tokens, near_ties


def require_tokens(lm: Model, logits: Tensor, tokens: Tensor, rows: Sequence[Row], gen: GenSpec, step: int) -> None:
    """Raises NonFiniteError, naming method, request and step, where the logits [rows, vocabulary] of a row
    that is not done gave no token (`NO_TOKEN`)."""
    if bool((tokens != NO_TOKEN).all()):  # they are on the CPU: no device is waited for
        return
    largest = logits.amax(-1) / (gen.temperature if gen.do_sample else 1)

    def where(i: int) -> str | None:
        return None if rows[i].done else f"token {step + 1} of request '{rows[i].request.id}'"

    require_finite_logits(lm, largest, [row.request.record for row in rows], where)
