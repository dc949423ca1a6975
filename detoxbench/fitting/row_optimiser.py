"""A copy of some parameters for each row of a batch, tuned by Adam towards the row's own loss, in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from detoxbench.errors import NonFiniteError
from detoxbench.fitting.recomputation import recomputed
from detoxbench.interventions.per_row import per_row_weights
from detoxbench.model.finite import require_finite
from detoxbench.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from detoxbench.lm import LanguageModel

Losses = Callable[[], "tuple[Tensor, Mapping[str, Tensor]]"]
"""losses() -> (the loss of every row [rows], named measurements, each [rows])."""


class Tuned(NamedTuple):
    """The result of one row."""

    values: dict[str, Tensor]
    """Its parameters, fp32."""
    curves: dict[str, list[float]]
    """What was measured before each of its updates."""
    moved: float
    """The norm of the change of all its parameters."""


def tune(
    lm: LanguageModel,
    names: Sequence[Sequence[str]],
    replaced: Sequence[Mapping[str, Tensor]],
    losses: Losses,
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    stop: float = -math.inf,
    norm_constraint: float | None = None,
    gradient_checkpointing: bool = False,
    description: str,
) -> list[Tuned]:
    """Tune every row's own copy of some parameters by Adam, in fp32.

    `names[i]` are row i's parameters. They begin as the model's or, where it has them, as those of `replaced[i]`, which
    replace the model's for this row during all updates. `losses()` reads the batch. Rows share nothing but the passes:
    a loss has a gradient for its own row alone, and Adam treats each number by itself. A row whose loss is below `stop`
    gets no more updates; no number moves further than `norm_constraint`. With `gradient_checkpointing` layers that hold
    no tuned parameter are computed again for the gradient (`recomputed`). Nothing of the model is written to, and
    gradient flags are given back. Raises NonFiniteError where a loss, or a parameter at the end, is not finite.
    """
    import torch

    # 1. Every row's copies, and what they were at the start.
    start = _copies(lm, names, replaced)
    tuned = [{name: w.clone().requires_grad_() for name, w in row.items()} for row in start]
    in_place = [{**fixed, **row} for fixed, row in zip(replaced, tuned, strict=True)]
    curves: list[dict[str, list[float]]] = [{} for _ in start]
    going = list(range(len(start)))
    of_rows = {name for row in in_place for name in row}
    with (
        _frozen(lm),
        recomputed(lm, gradient_checkpointing, but=of_rows),
        per_row_weights(lm, in_place) as set_rows,
        torch.enable_grad(),
    ):
        set_rows(going)
        parameters = [w for row in tuned for w in row.values()]
        optimizer = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay)
        for step in track(range(1, steps + 1), description):
            # 2. The losses before this update.
            total, measured = losses()
            _record(curves, measured, going)
            totals = total.tolist()
            _require_finite_losses(lm, totals, step, description)
            # 3. Rows that are done leave.
            going = [i for i in going if totals[i] >= stop]
            if not going:
                break
            # 4. The update of the others.
            _update(optimizer, total, tuned, going)
            if norm_constraint is not None:
                _clamp(tuned, start, norm_constraint)
    # 5. The result of each row.
    values = [{name: w.detach() for name, w in row.items()} for row in tuned]
    for row in values:
        require_finite(row.items(), f"after the last update of '{description}'", "lower method.learning_rate")
    return [Tuned(*row) for row in zip(values, curves, _distances(start, values), strict=True)]


def _distances(start: Sequence[Mapping[str, Tensor]], values: Sequence[Mapping[str, Tensor]]) -> list[float]:
    """For each row the norm of the change of all its parameters."""
    return [math.hypot(*(float((b[n] - a[n]).norm()) for n in a)) for a, b in zip(start, values, strict=True)]


def _copies(
    lm: LanguageModel, names: Sequence[Sequence[str]], replaced: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """For each row its parameters in fp32, from `replaced` where it has them."""
    parameters = dict(lm.model.named_parameters())
    return [
        {name: (fixed[name] if name in fixed else parameters[name]).detach().float() for name in row_names}
        for row_names, fixed in zip(names, replaced, strict=True)
    ]


@contextmanager
def _frozen(lm: LanguageModel) -> Iterator[None]:
    """Gradient flags of the model are off, so that no activations are kept for the layers below the tuned ones."""
    flags = [(p, p.requires_grad) for p in lm.model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _record(curves: Sequence[dict[str, list[float]]], measured: Mapping[str, Tensor], going: Sequence[int]) -> None:
    """Add what was `measured`, each [rows], to the curves of the rows that are `going` on."""
    for name, column in measured.items():
        values = column.tolist()
        for i in going:
            curves[i].setdefault(name, []).append(values[i])


def _require_finite_losses(lm: LanguageModel, totals: Sequence[float], step: int, description: str) -> None:
    for value in totals:
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the loss of '{lm.name}' at update {step} of '{description}' is {value}: lower method.learning_rate"
            )


def _update(optimizer: Optimizer, total: Tensor, tuned: Sequence[Mapping[str, Tensor]], going: Sequence[int]) -> None:
    """One step of the rows that are `going` on; `total` [rows] are the losses."""
    import torch

    optimizer.zero_grad()
    torch.autograd.backward(total[going].sum())
    for i, row in enumerate(tuned):
        if i not in going:
            for w in row.values():
                w.grad = None  # Adam passes over it
    optimizer.step()


def _clamp(tuned: Sequence[Mapping[str, Tensor]], start: Sequence[Mapping[str, Tensor]], furthest: float) -> None:
    """Bring back each number that is further than `furthest` from where it began."""
    for row, first in zip(tuned, start, strict=True):
        for name, w in row.items():
            w.data.clamp_(first[name] - furthest, first[name] + furthest)
