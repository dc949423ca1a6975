"""Every row's own copy of some parameters, tuned towards its own loss by Adam, all rows in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from detoxbench.errors import NonFiniteError
from detoxbench.interventions.routing import per_row_weights
from detoxbench.model.finite import require_finite
from detoxbench.progress import track

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.lm import LanguageModel


class Tuned(NamedTuple):
    """What became of one row: its parameters in fp32, what was measured before each update, how far it moved (norm)."""

    values: dict[str, Tensor]
    curves: dict[str, list[float]]
    moved: float


def tune(
    lm: LanguageModel,
    names: Sequence[Sequence[str]],
    below: Sequence[Mapping[str, Tensor]],
    losses: Callable[[], tuple[Tensor, Mapping[str, Tensor]]],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    stop: float = -math.inf,
    reach: float | None = None,
    description: str,
) -> list[Tuned]:
    """Tune every row's own copy of some parameters by Adam, in fp32.

    `names[i]` are row i's; they begin as the model's or, where it has them, `below[i]`'s, which replace parameters of
    the model and stay. `losses()` reads the batch and gives the rows' losses [rows] with named measurements of each.
    Rows share the passes and nothing else: a loss has a gradient for its own row alone, and Adam works number by
    number. A row whose loss is below `stop` gets no more updates; no number moves further than `reach`. Nothing of the
    model is written to, and gradient flags are given back. Raises DetoxbenchError where a loss is not finite.
    """
    import torch

    parameters = dict(lm.model.named_parameters())
    before = [{**parameters, **now} for now in below]
    start = [{n: old[n].detach().float() for n in own} for own, old in zip(names, before, strict=True)]
    leaves = [{name: w.clone().requires_grad_() for name, w in own.items()} for own in start]
    curves: list[dict[str, list[float]]] = [{} for _ in start]
    going = list(range(len(start)))
    with ExitStack() as undo, torch.enable_grad():
        for p in lm.model.parameters():  # so that nothing is kept for the layers below the tuned ones
            undo.callback(p.requires_grad_, p.requires_grad)
            p.requires_grad_(False)
        undo.enter_context(per_row_weights(lm, [{**now, **own} for now, own in zip(below, leaves, strict=True)]))(going)
        flat = [w for own in leaves for w in own.values()]
        optimizer = torch.optim.Adam(flat, lr=learning_rate, weight_decay=weight_decay)
        for step in track(range(1, steps + 1), description):
            total, measured = losses()
            for name, column in measured.items():
                for i, value in enumerate(column.tolist()):
                    if i in going:
                        curves[i].setdefault(name, []).append(value)
            totals = total.tolist()
            for value in totals:
                if not math.isfinite(value):
                    raise NonFiniteError(
                        f"the loss of '{lm.name}' at update {step} of '{description}' is {value}: lower "
                        "method.learning_rate"
                    )
            going = [i for i in going if totals[i] >= stop]
            if not going:
                break
            optimizer.zero_grad()
            torch.autograd.backward(total[going].sum())
            for w in (w for i, own in enumerate(leaves) if i not in going for w in own.values()):
                w.grad = None  # Adam passes over it
            optimizer.step()
            if reach is not None:
                for own, first in zip(leaves, start, strict=True):
                    for name, w in own.items():
                        w.data.clamp_(first[name] - reach, first[name] + reach)
    values = [{name: w.detach() for name, w in own.items()} for own in leaves]
    for own in values:
        require_finite(own.items(), f"after the last update of '{description}'", "lower method.learning_rate")
    moved = [math.hypot(*(float((b[n] - a[n]).norm()) for n in a)) for a, b in zip(start, values, strict=True)]
    return [Tuned(*parts) for parts in zip(values, curves, moved, strict=True)]
