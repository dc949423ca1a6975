"""Interventions put on a model and taken off again: the last on is the first off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels.weights import require_eager
from detoxbench.interventions.intervention import Intervention

if TYPE_CHECKING:
    from torch import nn

    from detoxbench.model.model import Model


def applied(lm: Model, intervention: Intervention) -> Applied:
    """Put `intervention` on `lm` (a context), and take it off exactly: touched tensors are copied back from saved
    originals, since adding and subtracting again is not exact. Holds for errors while entering, too. Contexts can be
    nested, and are left in reverse order (`Applied`). Low-rank changes are merged or act as side paths: `lm.low_rank`
    says which (`channels.weights`).

    Entering raises DetoxbenchError when the intervention was fitted on another model, names a part that is not there,
    holds numbers that are NaN or infinite, or would not take effect: on a compiled model, a quantised parameter.
    """
    return Applied(lm.model, intervention.method, lambda undo: _put_on(lm, intervention, undo))


def _put_on(lm: Model, intervention: Intervention, undo: ExitStack) -> None:
    require_base(lm, intervention)
    intervention.require_finite()
    if lm.in_force.route is not None:
        raise DetoxbenchError("interventions are routed to rows: apply what all rows share before that")
    lm.in_force.methods.append(intervention.method)
    undo.callback(lm.in_force.methods.pop)
    if any(not part.compilable for _, part in intervention.parts()):
        require_eager(lm)
    for name, kind in intervention.channels().items():
        kind.put_on(lm, getattr(intervention, name), undo)


def require_base(lm: Model, intervention: Intervention) -> None:
    """Raises DetoxbenchError when the intervention was fitted on another model."""
    if intervention.base != lm.fingerprint:
        raise DetoxbenchError(
            f"this intervention of '{intervention.method}' was fitted on base model {intervention.base}, not on "
            f"{lm.fingerprint} ({lm.name}): fit it again on this model"
        )


_STACKS: WeakKeyDictionary[nn.Module, list[Applied]] = WeakKeyDictionary()
"""What is on each model, first to last: kept by the model, since two Models may share one."""


class Applied(AbstractContextManager[None]):
    """`put_on(undo)` when entered, `undo` when left; also when entering fails half-way.

    Each one saves the state that it finds, so the last one on must be the first one off. Leaving in another order
    raises DetoxbenchError and takes nothing off yet: it comes off when everything above it has been left too. So the
    model is as found once every block is left, in any order.
    """

    def __init__(self, model: nn.Module, name: str, put_on: Callable[[ExitStack], None]) -> None:
        self.name = name
        self._stack = _STACKS.setdefault(model, [])
        self._put_on = put_on
        self._undo = ExitStack()
        self._left = False

    def __enter__(self) -> None:
        if self in self._stack:
            raise DetoxbenchError(f"this block of '{self.name}' is entered already: call applied again for another")
        with ExitStack() as undo:
            self._put_on(undo)
            self._undo = undo.pop_all()
        self._left = False
        self._stack.append(self)

    def __exit__(self, *_: object) -> None:
        if self not in self._stack:
            return  # its leaving was refused before, and it came off with what was above it
        self._left = True
        if self._stack[-1] is not self:
            raise DetoxbenchError(
                f"'{self.name}' cannot come off before '{self._stack[-1].name}', which was put on after it: leave the "
                "blocks in reverse order; it comes off when that one is left"
            )
        while self._stack and self._stack[-1]._left:
            self._stack.pop()._undo.close()
