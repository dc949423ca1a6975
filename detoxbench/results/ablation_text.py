"""An ablation as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detoxbench.results.ablation import Ablation, Point
from detoxbench.results.ablation_effects import INTERACTION
from detoxbench.results.ablation_runs import written
from detoxbench.results.tables import LEVEL, Cell, Column, Difference
from detoxbench.results.words import MARKS, delta, heading_of, value_of
from detoxbench.text import clean, short


def text(ablation: Ablation, width: int = 120) -> str:
    """For a terminal: for each metric the values with intervals, the differences to the reference, and a curve."""
    lines = [ablation.title, ""]
    for column in ablation.columns:
        lines.append(heading_of(column))
        lines += _curve(ablation, column, width) if len(ablation.knobs) == 1 else _grid(ablation, column)
        changes = {f"trend over {knob}": d for knob, d in ablation.trends.get(column.name, {}).items()}
        if column.name in ablation.interactions:
            changes[INTERACTION] = ablation.interactions[column.name]
        lines += [f"  {_trend(name, d, column)}" for name, d in changes.items()]
        lines.append("")
    return "\n".join(clean(line).rstrip() for line in [*lines, *_legend(ablation), *ablation.notes]) + "\n"


def _legend(ablation: Ablation) -> list[str]:
    """What the differences are to, what a step is, and what the marks mean."""
    differences = [cell.difference for point in ablation.points for cell in point.cells.values()]
    tests = sum(d is not None and d.p is not None for d in differences)
    tests += len(ablation.interactions) + sum(map(len, ablation.trends.values()))
    lines = []
    if ablation.against is not None:
        lines.append(f"Δ: difference to {ablation.against} on the same prompts and seeds")
    if ablation.trends:
        lines.append("a step: from one value to the next, by least squares over all of them")
    if tests:
        lines.append(f"✓ better, ✗ worse, ≠ differs (p < {LEVEL} after Holm over {tests} tests); n.s.: not supported")
    return lines


def _curve(ablation: Ablation, column: Column, width: int) -> list[str]:
    """A line for the base and each point: its value, its difference, and both on a common scale."""
    rows = [("base", ablation.base)] if ablation.base else []
    rows += [(_label(point.values), point) for point in ablation.points]
    cells = [point.cells[column.name] for _, point in rows]
    texts = [
        (name, value_of(cell, column), delta(cell.difference, column.unit, cell.value))
        for (name, _), cell in zip(rows, cells, strict=True)
    ]
    widths = [max(len(t[i]) for t in texts) for i in range(3)]
    bars = _bars(cells, max(16, min(48, width - sum(widths) - 8)))
    return [
        f"  {name:{widths[0]}}  {value:>{widths[1]}}  {difference:{widths[2]}}  {bar}"
        for (name, value, difference), bar in zip(texts, bars, strict=True)
    ]


def _bars(cells: Sequence[Cell], width: int) -> list[str]:
    """Each value as a dot on its interval, `width` characters from the least bound of all to the greatest."""
    bounds = [b for c in cells for b in (c.value, c.low, c.high) if b is not None]
    low, high = min(bounds, default=0.0), max(bounds, default=0.0)

    def place(value: float) -> int:
        return round((value - low) / (high - low) * (width - 1)) if high > low else 0

    bars = []
    for cell in cells:
        bar = [" "] * width
        if cell.value is not None:
            if cell.low is not None and cell.high is not None:
                for i in range(place(cell.low), place(cell.high) + 1):
                    bar[i] = "─"
            bar[place(cell.value)] = "●"
        bars.append("".join(bar))
    return bars


def _grid(ablation: Ablation, column: Column) -> list[str]:
    def cell(point: Point | None) -> str:
        if point is None:
            return "–"
        d = point.cells[column.name].difference
        return f"{value_of(point.cells[column.name], column)}{f' {MARKS[d.verdict]}' if d else ''}"

    first, second = ablation.levels(0), ablation.levels(1)
    head = [f"{ablation.knobs[0]} \\ {ablation.knobs[1]}", *(_label([v]) for v in second)]
    table = [head, *([_label([a]), *(cell(ablation.at(a, b)) for b in second)] for a in first)]
    if ablation.base:
        table.append(["base", value_of(ablation.base.cells[column.name], column), *[""] * (len(second) - 1)])
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return ["  " + "  ".join(f"{t:{'>' if i else '<'}{widths[i]}}" for i, t in enumerate(row)) for row in table]


def _trend(name: str, d: Difference, column: Column) -> str:
    if d.verdict == "unsupported":
        way = "none supported"
    else:
        way = "rises" if d.value > 0 else "falls"
    return f"{name}: {way}; a step {delta(d, column.unit, d.value)}"


def _label(values: tuple[Any, ...] | list[Any]) -> str:
    return " ".join(short(written(value), 24) for value in values)
