"""What is put on a model and taken off again: the last on is the first off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from detoxbench.errors import DetoxbenchError

if TYPE_CHECKING:
    from torch import nn

_STACKS: WeakKeyDictionary[nn.Module, list[InForce]] = WeakKeyDictionary()
"""What is on each model, first to last: kept by the model, since two LanguageModels may share one."""


class InForce(AbstractContextManager[None]):
    """`put_on(undo)` when entered, `undo` when left; also when entering fails half-way.

    What was put on later saved what it found, so it must come off earlier. Leaving in another order raises
    DetoxbenchError and takes nothing off yet: that happens when everything above has been left too, so that the model
    is as found once every block is left, in whatever order that was tried.
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
