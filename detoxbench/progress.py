"""Progress bars on stderr; nothing is shown where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from detoxbench.terminal import console

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
Advance = Callable[[float], None]

_shown: Progress | None = None
"""The display of the outermost bar: a terminal has one, and bars inside bars are lines of it."""


def track(iterable: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """`iterable`, with a bar that moves on after every element. `total` is its length unless given."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with bar(description, total) as advance:
        for element in iterable:
            yield element
            advance(1)


@contextmanager
def bar(description: str, total: float | None = None, done: int = 0) -> Iterator[Advance]:
    """A bar over `total` units of work, moved on by calling what it yields: `advance(n)`.

    Choose units that cost the same (tokens rather than texts): the remaining time is the remaining work over the rate
    of the last minutes. `done` units of an earlier, interrupted try count in the bar and not in the rate.
    """
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    global _shown
    outermost = _shown is None
    display = _shown if _shown is not None else _display()
    task = display.add_task(description, total=total, completed=done)
    if outermost:
        _shown = display
        display.start()
    try:
        yield lambda n: display.advance(task, n)
    finally:
        if outermost:
            display.stop()
            _shown = None
        else:
            display.remove_task(task)


def _display() -> Progress:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console(stderr=True),
        speed_estimate_period=180,  # seconds; the default of 30 forgets the rate within one slow batch
    )
