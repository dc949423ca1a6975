"""Numbers, intervals and differences in words, the same in every table, page and figure."""

from __future__ import annotations

import math

from detoxbench.results.tables import Cell, Column, Difference, Verdict

MARKS: dict[Verdict, str] = {"better": "✓", "worse": "✗", "differs": "≠", "unsupported": "n.s."}


ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


def number(value: float, unit: str, like: float, sign: str = "") -> str:
    """A share in per cent; a number to as many places as give `like` three digits."""
    if unit == "share":
        value, places = 100 * value, 1
    else:
        places = min(6, max(0, 2 - math.floor(math.log10(abs(like))))) if like else 2
    return f"{round(value, places) + 0.0:{sign}.{places}f}"  # + 0.0: no "-0.0"


def bounded(value: float, low: float | None, high: float | None, unit: str, like: float, sign: str = "") -> str:
    """A number with its interval, where it has one."""
    text = number(value, unit, like, sign)
    if low is None or high is None:
        return text
    return f"{text} [{number(low, unit, like, sign)}, {number(high, unit, like, sign)}]"


def value_of(cell: Cell, column: Column) -> str:
    """A value with its interval."""
    if cell.value is None:
        return "–"
    return bounded(cell.value, cell.low, cell.high, column.unit, cell.value)


def delta(d: Difference | None, unit: str, like: float | None = None) -> str:
    """A difference with its interval and its mark, to as many places as the value `like` that it stands under."""
    if d is None:
        return ""
    return f"Δ {bounded(d.value, d.low, d.high, unit, like or d.value, '+')} {MARKS[d.verdict]}"


def heading_of(column: Column) -> str:
    """A metric's name, which way is better, and its unit."""
    return f"{column.name}{ARROWS[column.better]}{' %' if column.unit == 'share' else ''}"
