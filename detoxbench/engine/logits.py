"""Next-token logits as they are chosen from: through the functions in force, and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from detoxbench.engine.sampling import Near, nucleus
from detoxbench.engine.streams import Streams
from detoxbench.errors import NonFiniteError
from detoxbench.model.logit_state import AFTER, HIDDEN, LOGLIKELIHOOD, LogitFunction, LogitState, Under

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model

Which = Literal["inside", "may", "surely"]
EXACT = Near(0.0, 0.0)
"""No rounding is looked for."""


@dataclass(frozen=True)
class Place:
    """Where in their texts the rows of `processed` are."""

    lengths: Sequence[int]
    """Tokens of each row's text so far, [rows]."""
    tokens: Callable[[Sequence[int]], list[list[int]]]
    """The token ids of the rows whose indices are given: prompt and text so far."""
    keys: Sequence[int] | None = None
    """The noise key of each row, [rows]; None where texts are read."""
    hidden: Tensor | None = None
    """What the head was given, [streams, width]; None where nothing in force asks for it."""
    loglikelihoods: Tensor | None = None
    """log p of the text so far in each stream, [streams], float64; None where nothing in force asks for it."""
    after: Callable[[Sequence[int], Tensor], Tensor] | None = None
    """The hidden states of the rows whose indices are given, after candidates (`LogitState.after`); None where nothing
    in force asks for it."""


def asked(lm: Model, what: str) -> bool:
    """Whether a function in force asks for this ("hidden", "loglikelihood", "after")."""
    return any(what in function.asks for function in lm.in_force.logit_functions)


def sensitivity(lm: Model) -> float:
    """How many times an error of the logits may grow through all functions in force."""
    return math.prod(function.sensitivity for function in lm.in_force.logit_functions)


@dataclass
class Rounding:
    """How functions are asked to choose where rounding decides, and what they say of it."""

    near: Near = EXACT
    """Logits closer than this may change their order."""
    which: Which = "inside"
    """What a top-p leaves: what is inside, or what may be or surely is."""
    cuts: bool = False
    """Whether a function has cut by top-p, so that `which` matters."""
    contested: Tensor | None = None
    """In which rows a choice of another kind hangs on rounding, [rows]; None: in none."""

    def top_p(self, logits: Tensor, p: float) -> Tensor:
        """`LogitState.top_p`."""
        self.cuts = True
        return nucleus(logits, p, self.near, self.which)

    def mark(self, rows: Tensor, on: Sequence[int], count: int) -> None:
        """Of the rows `on`, among `count`, those marked are contested."""
        import torch

        if self.contested is None:
            self.contested = torch.zeros(count, dtype=torch.bool, device=rows.device)
        self.contested[torch.tensor(on, device=rows.device)] |= rows


def processed(lm: Model, logits: Tensor, streams: Streams, place: Place, rounding: Rounding | None = None) -> Tensor:
    """Next-token logits of the rows in float32, [rows, vocabulary], through the functions in force. Given are those of
    all streams, [streams, vocabulary]."""
    import torch

    every, rounding = logits.float(), rounding or Rounding()
    rows = every[: len(streams.records)]
    for function in lm.in_force.logit_functions:
        # 1. The rows that it acts on, by index.
        on = [i for i, r in enumerate(streams.records) if function.variant in (None, lm.variant(r))]
        if not on:
            continue
        some = None if len(on) == len(rows) else torch.tensor(on, device=rows.device)  # [rows that it acts on]
        # 2. What it makes of them, [rows that it acts on, vocabulary].
        state = _state(function, every, streams, on, place, rounding)
        result = function.function(rows if some is None else rows[some], state)
        rows = result if some is None else rows.index_copy(0, some, result)
        # 3. Which of its choices hang on rounding.
        for marked in state.contested:
            rounding.mark(marked, on, len(rows))
    return rows


def _state(
    function: LogitFunction, every: Tensor, streams: Streams, on: Sequence[int], place: Place, rounding: Rounding
) -> LogitState:
    """What the function may look at, of the rows `on`."""
    import torch

    def of(values: Tensor, companion: int) -> Tensor:
        where = streams.places(on, companion)
        begin, end = where[0], where[-1] + 1
        # As a rule they lie side by side, and are not copied.
        side_by_side = where == list(range(begin, end))
        chosen = values[begin:end] if side_by_side else values[torch.tensor(where, device=values.device)]
        return chosen.to(every.device, torch.float32)

    after = place.after if AFTER in function.asks else None
    likelihoods = place.loglikelihoods if LOGLIKELIHOOD in function.asks else None
    return LogitState(
        tensors=function.tensors,
        params=function.params,
        length=torch.tensor([place.lengths[i] for i in on], device=every.device),
        keys=None if place.keys is None else [place.keys[i] for i in on],
        tokens=lambda: place.tokens(on),
        hidden=of(place.hidden, 0) if place.hidden is not None and HIDDEN in function.asks else None,
        loglikelihood_of_row=None if likelihoods is None else of(likelihoods, 0),
        top_p=rounding.top_p,
        near=rounding.near.absolute,
        carried={
            name: Under(of(every, number), None if likelihoods is None else of(likelihoods, number))
            for name, number in function.companions.items()
        },
        states_after=None if after is None else partial(after, on),
    )


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
