"""An ablation as a figure for print: a small chart a metric, a line for each value of a second knob."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detoxbench.errors import UsageError
from detoxbench.report.drawing import COLOURS, GREY, MARKS, heading, multiples, require_matplotlib, style
from detoxbench.results.ablation import Ablation
from detoxbench.results.ablation_runs import written
from detoxbench.results.tables import Column
from detoxbench.text import clean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNDATED: dict[str, dict[str, None]] = {
    ".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None},
}  # fmt: skip
"""Suffixes of files, and the metadata to leave out, so that equal figures give equal bytes."""


def draw(ablation: Ablation, out: str | Path) -> None:
    """Write the curves to a .png, .svg or .pdf file.

    Raises UsageError for another kind of file, DetoxbenchError without matplotlib.
    """
    out = Path(out)
    if out.suffix not in UNDATED:
        raise UsageError(f"--draw writes .png, .svg or .pdf (given: '{out}')")
    require_matplotlib()
    with style():
        _figure(ablation).savefig(out, metadata=UNDATED[out.suffix])


def _figure(ablation: Ablation) -> Figure:
    figure = multiples(len(ablation.columns), 2.0, lambda axes, i: _panel(axes, ablation, ablation.columns[i]))
    if len(ablation.knobs) == 2:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, [f"{ablation.knobs[1]}={text}" for text in labels], loc="outside lower center", ncols=4)
    figure.suptitle(clean(ablation.title), fontsize=8.5)
    return figure


def _panel(axes: Axes, ablation: Ablation, column: Column) -> None:
    """One metric: a line for each value of the second knob, the base as a dashed one."""
    scale = 100 if column.unit == "share" else 1
    _lines(axes, ablation, column, scale)
    if ablation.base and (value := ablation.base.cells[column.name].value) is not None:
        axes.axhline(scale * value, color=GREY, linewidth=0.8, linestyle="--")
        place = (1, scale * value)
        axes.annotate("base", place, xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    names = [clean(short(written(x), 14)) for x in ablation.levels(0)]  # evenly apart, as a trend counts steps
    axes.set_xticks(range(len(names)), names, rotation=20 if sum(map(len, names)) > 30 else 0)
    axes.set_xlabel(clean(ablation.knobs[0]))
    axes.set_title(heading(column.name, column.better, column.unit))


def _lines(axes: Axes, ablation: Ablation, column: Column, scale: int) -> None:
    """Values with their intervals; joined where the first knob's values are numbers."""
    ordered = all(isinstance(x, int | float) for x in ablation.levels(0))
    two = len(ablation.knobs) == 2
    seconds = ablation.levels(1) if two else [None]
    for i, second in enumerate(seconds):
        aside = 0.08 * (i - (len(seconds) - 1) / 2)  # so that intervals do not hide each other
        marks = []
        for k, x in enumerate(ablation.levels(0)):
            point = ablation.at(x, second) if two else ablation.at(x)
            if point and (cell := point.cells[column.name]).value is not None:
                bounds = [b if b is not None else cell.value for b in (cell.low, cell.high)]
                marks.append((k + aside, *(scale * v for v in (cell.value, *bounds))))
        if marks:
            place, value, low, high = (np.array(part, float) for part in zip(*marks, strict=True))
            axes.errorbar(
                place, value, [value - low, high - value], label=clean(written(second)), capsize=2, linewidth=1,
                markersize=4, color=COLOURS[i % len(COLOURS)], marker=MARKS[i % len(MARKS)],
                linestyle="-" if ordered else "none",
            )  # fmt: skip
