"""An ablation shown: as text for a terminal, and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.results.ablation import INTERACTION, Ablation, Point, written
from detoxbench.results.tables import LEVEL, Column, Difference
from detoxbench.results.words import MARKS, delta, heading_of, value_of
from detoxbench.text import clean, short


def text(found: Ablation, width: int = 120) -> str:
    """For a terminal: for each metric the values with intervals, differences to what is compared with, and a curve."""
    lines = [found.title, ""]
    for column in found.columns:
        lines.append(heading_of(column))
        lines += _curve(found, column, width) if len(found.knobs) == 1 else _grid(found, column)
        changes = {f"trend over {knob}": d for knob, d in found.trends.get(column.name, {}).items()}
        if column.name in found.interactions:
            changes[INTERACTION] = found.interactions[column.name]
        lines += [f"  {_trend(name, d, column)}" for name, d in changes.items()]
        lines.append("")
    tests = sum(
        cell.difference is not None and cell.difference.p is not None
        for point in found.points
        for cell in point.cells.values()
    )
    tests += len(found.interactions) + sum(map(len, found.trends.values()))
    if found.against is not None:
        lines.append(f"Δ: difference to {found.against} on the same prompts and seeds")
    if found.trends:
        lines.append("a step: from one value to the next, by least squares over all of them")
    if tests:
        lines.append(f"✓ better, ✗ worse, ≠ differs (p < {LEVEL} after Holm over {tests} tests); n.s.: not supported")
    return "\n".join(clean(line).rstrip() for line in [*lines, *found.notes]) + "\n"


def _curve(found: Ablation, column: Column, width: int) -> list[str]:
    rows = [("base", found.base)] if found.base else []
    rows += [(_label(point.values), point) for point in found.points]
    cells = [point.cells[column.name] for _, point in rows]
    texts = [
        (name, value_of(cell, column), delta(cell.difference, column.unit, cell.value))
        for (name, _), cell in zip(rows, cells, strict=True)
    ]
    widths = [max(len(t[i]) for t in texts) for i in range(3)]
    room = max(16, min(48, width - sum(widths) - 8))
    bounds = [b for c in cells for b in (c.value, c.low, c.high) if b is not None]
    low, high = min(bounds, default=0.0), max(bounds, default=0.0)

    def place(value: float) -> int:
        return round((value - low) / (high - low) * (room - 1)) if high > low else 0

    lines = []
    for (name, value, difference), cell in zip(texts, cells, strict=True):
        bar = [" "] * room
        if cell.value is not None:
            if cell.low is not None and cell.high is not None:
                for i in range(place(cell.low), place(cell.high) + 1):
                    bar[i] = "─"
            bar[place(cell.value)] = "●"
        lines.append(f"  {name:{widths[0]}}  {value:>{widths[1]}}  {difference:{widths[2]}}  {''.join(bar)}")
    return lines


def _grid(found: Ablation, column: Column) -> list[str]:
    def cell(point: Point | None) -> str:
        if point is None:
            return "–"
        d = point.cells[column.name].difference
        return f"{value_of(point.cells[column.name], column)}{f' {MARKS[d.verdict]}' if d else ''}"

    first, second = found.levels(0), found.levels(1)
    head = [f"{found.knobs[0]} \\ {found.knobs[1]}", *(_label([v]) for v in second)]
    table = [head, *([_label([a]), *(cell(found.at(a, b)) for b in second)] for a in first)]
    if found.base:
        table.append(["base", value_of(found.base.cells[column.name], column), *[""] * (len(second) - 1)])
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


def draw(found: Ablation, out: str | Path) -> None:
    """Write the curves to a .png, .svg or .pdf file: a panel a metric, a line for each value of a second knob.

    Raises UsageError for another kind of file, DetoxbenchError without matplotlib.
    """
    out = Path(out)
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--draw writes .png, .svg or .pdf (given: '{out}')")
    try:
        import matplotlib
    except ImportError:
        raise DetoxbenchError("drawing needs matplotlib: pip install 'detoxbench[plots]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    settings: Any = {
        "svg.hashsalt": "detoxbench",
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "text.parse_math": False,  # names are no formulas
    }
    with pyplot.rc_context(settings):
        across = min(3, len(found.columns))
        down = -(-len(found.columns) // across)
        size = (3.4 * across, 2.6 * down + 0.3)
        figure, grid = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
        for axes, column in zip(grid.flat, found.columns, strict=False):
            _panel(axes, found, column)
        for axes in grid.flat[len(found.columns) :]:
            axes.remove()
        if len(found.knobs) == 2:
            handles, labels = grid.flat[0].get_legend_handles_labels()
            figure.legend(handles, [f"{found.knobs[1]}={text}" for text in labels], loc="outside lower center", ncols=4)
        figure.suptitle(clean(found.title), fontsize=9)
        undated = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(out, dpi=150, metadata=undated[out.suffix])
        pyplot.close(figure)


_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito: told apart by all
_MARKERS = "osD^vP"


def _panel(axes: Any, found: Ablation, column: Column) -> None:
    scale = 100 if column.unit == "share" else 1
    xs = found.levels(0)
    seconds = found.levels(1) if len(found.knobs) == 2 else [None]
    ordered = all(isinstance(x, int | float) for x in xs)
    for i, second in enumerate(seconds):
        aside = 0.08 * (i - (len(seconds) - 1) / 2)  # so that intervals do not hide each other
        line = []
        for k, x in enumerate(xs):
            point = found.at(x, *([second] if len(found.knobs) == 2 else []))
            if point and (cell := point.cells[column.name]).value is not None:
                bounds = [b if b is not None else cell.value for b in (cell.low, cell.high)]
                line.append((k + aside, *(scale * v for v in (cell.value, *bounds))))
        if line:
            place, value, low, high = (np.array(part, float) for part in zip(*line, strict=True))
            axes.errorbar(
                place, value, [value - low, high - value], label=clean(written(second)), capsize=2, linewidth=1,
                markersize=4, color=_COLOURS[i % 6], marker=_MARKERS[i % 6], linestyle="-" if ordered else "none",
            )  # fmt: skip
    if found.base and (cell := found.base.cells[column.name]).value is not None:
        axes.axhline(scale * cell.value, color="0.4", linewidth=0.8, linestyle="--")
        axes.annotate(
            "base", (1, scale * cell.value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7
        )
    names = [clean(short(written(x), 14)) for x in xs]  # evenly apart, as a trend counts steps
    axes.set_xticks(range(len(xs)), names, rotation=20 if sum(map(len, names)) > 30 else 0)
    axes.set_xlabel(clean(found.knobs[0]))
    better = {"higher": " (higher is better)", "lower": " (lower is better)", "neither": ""}[column.better]
    axes.set_title(f"{clean(column.name)}{', %' if scale == 100 else ''}{better}", fontsize=8)
