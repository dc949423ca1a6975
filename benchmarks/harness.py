"""How two ways of doing the same work are compared: interleaved in one process, checked to give the same, and weighed.

A figure is a ratio between both sides in one run, so that it means something on another machine, or on this one when
it is busy.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from detoxbench.errors import DetoxbenchError
from detoxbench.runner.cost import Meter

T = TypeVar("T")
U = TypeVar("U")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table."""

    name: str
    against: str
    """What the plain side does."""
    reached: float
    """Median over the repeats."""
    low: float
    high: float
    """The smallest and the largest of the repeats."""
    unit: str
    target: float | None = None
    better: Literal["higher", "lower"]
    repeats: int = 1
    seconds: float | None = None
    """Median, ours; `against_seconds` is the other side's."""
    against_seconds: float | None = None
    peak_mb: float | None = None
    """The most memory held at a time on top of what was held before (model and data), MiB, ours; None where it cannot
    be told (a CPU outside Linux)."""
    against_peak_mb: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the target is reached; a row without one only informs."""
        if self.target is None:
            return True
        return self.reached >= self.target if self.better == "higher" else self.reached <= self.target


def compare(
    name: str,
    ours: Callable[[], T],
    theirs: Callable[[], U],
    *,
    target: float | None,
    against: str = "a plain loop",
    repeats: int = 3,
    check: Callable[[T, U], None] | None = None,
    unit: Literal["x faster", "x the time"] = "x faster",
    device: str = "cpu",
    note: str = "",
) -> Row:
    """Run both sides once to warm up and `check` their results, then `repeats` times in turn on the clock (ours,
    theirs, ours, ...), and once more each for the memory.

    The ratio is taken of each pair. "x faster" is their time by ours and wants to reach the target, "x the time" is
    ours by theirs and wants to stay below it; `memory_row` makes a row of the peaks. `check` raises where the two did
    not do the same work.
    """
    sides: tuple[Callable[[], Any], Callable[[], Any]] = ours, theirs
    first, second = ours(), theirs()
    if check is not None:
        check(first, second)
    del first, second
    pairs = [tuple(_seconds(side, device) for side in sides) for _ in range(repeats)]
    mine, others = zip(*pairs, strict=True)
    ratios = [b / a if unit == "x faster" else a / b for a, b in pairs]
    peaks = [peak_mb(side, device) for side in sides]
    return Row(
        name=name,
        against=against,
        reached=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        unit=unit,
        target=target,
        better="higher" if unit == "x faster" else "lower",
        repeats=repeats,
        seconds=statistics.median(mine),
        against_seconds=statistics.median(others),
        peak_mb=peaks[0],
        against_peak_mb=peaks[1],
        note=note,
    )


def memory_row(row: Row, *, target: float | None, name: str | None = None) -> Row:
    """The same comparison as our peak memory by theirs; it wants to stay below the target.

    Raises DetoxbenchError where memory could not be told.
    """
    if row.peak_mb is None or not row.against_peak_mb:
        raise DetoxbenchError(f"benchmark '{row.name}': the peak memory is not to be had on this system")
    ratio = row.peak_mb / row.against_peak_mb
    return msgspec.structs.replace(
        row, name=name or row.name, reached=ratio, low=ratio, high=ratio, repeats=1,
        unit="x the memory", target=target, better="lower",
    )  # fmt: skip


def measured(
    name: str,
    values: Sequence[float],
    unit: str,
    *,
    target: float | None = None,
    against: str = "-",
    better: Literal["higher", "lower"] = "lower",
    note: str = "",
) -> Row:
    """A row of a quantity that was measured elsewhere, once or several times."""
    return Row(
        name=name, against=against, reached=statistics.median(values), low=min(values), high=max(values), unit=unit,
        target=target, better=better, repeats=len(values), note=note,
    )  # fmt: skip


def _seconds(side: Callable[[], object], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    result = side()
    _wait(device)
    seconds = time.perf_counter() - start
    del result
    return seconds


def peak_mb(side: Callable[[], object], device: str) -> float | None:
    """The most memory that `side` held at a time on top of what was held before, MiB."""
    import torch

    if not device.startswith("cuda"):
        try:  # glibc: what was freed goes back to the system, else a second run would seem to need nothing
            ctypes.CDLL(None).malloc_trim(0)
        except (AttributeError, OSError, TypeError):
            return None
    with Meter(torch.device(device)) as before:
        pass
    with Meter(torch.device(device)) as meter:
        side()
    if before.peak_mb is None or meter.peak_mb is None:
        return None
    return max(0.0, meter.peak_mb - before.peak_mb)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
