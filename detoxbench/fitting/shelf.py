"""What several fits learn alike is learned once: LoRAs that several methods train, directions that every strength uses.

A run opens a shelf around its fit (`sharing`), and what is learned through `once` is taken from it where it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from detoxbench.config import digest

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.lm import LanguageModel


class Learned(NamedTuple):
    """Tensors, and what was recorded while they were learned (JSON values)."""

    tensors: Mapping[str, Tensor]
    info: Mapping[str, Any]


class Shelf(Protocol):
    """Where it is kept."""

    def kept(self, key: str, learn: Callable[[], Learned]) -> Learned:
        """What is kept under the key; learned, and kept, if there is nothing."""


_SHELF: ContextVar[Shelf | None] = ContextVar("shelf", default=None)


@contextmanager
def sharing(shelf: Shelf) -> Iterator[None]:
    """While open, what is learned through `once` is taken from the shelf where it is there."""
    token = _SHELF.set(shelf)
    try:
        yield
    finally:
        _SHELF.reset(token)


_UPON: ContextVar[tuple[str, ...]] = ContextVar("upon", default=())


@contextmanager
def upon(change: str) -> Iterator[None]:
    """While open, what is learned is learned on a model with one more intervention in force, which this identifies."""
    token = _UPON.set((*_UPON.get(), change))
    try:
        yield
    finally:
        _UPON.reset(token)


def once(lm: LanguageModel, reads: Callable[[], Any], learn: Callable[[], Learned]) -> Learned:
    """What `learn` gives, from the shelf, if there is one, by the model and by all else that it `reads` (JSON values).
    A model that something is in force on is another one: it is told by what it stands `upon`, and else learns anew."""
    shelf, changes = _SHELF.get(), _UPON.get()
    if shelf is None or len(lm.in_force.methods) != len(changes):
        return learn()
    model = [lm.fingerprint, str(lm.dtype), lm.device.type, *([lm.low_rank, *changes] if changes else [])]
    return shelf.kept(digest([*model, reads()]), learn)
