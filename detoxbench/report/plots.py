"""The charts of a report as figures for print, PNG and SVG, by matplotlib (extra `plots`)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detoxbench.config import BASE
from detoxbench.errors import DetoxbenchError
from detoxbench.report.content import ChartAxis, Content, Section, Sweep, default_axes, names, read_content
from detoxbench.report.drawing import COLOURS, GREY, MARKS, heading, multiples, require_matplotlib, style
from detoxbench.results.costs import COSTS
from detoxbench.results.ranking import pareto
from detoxbench.results.selection import EVERYTHING, Selection
from detoxbench.results.tables import Cell, Row
from detoxbench.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plots(folder: str | Path, output: str | Path, only: Selection = EVERYTHING) -> list[Path]:
    """Write the figures of the runs under `folder` into the folder `output`; returns the PNG files, SVGs beside them.

    Per suite metrics-SUITE, cost-SUITE and sweep-METHOD-KNOB-SUITE; per model tradeoff-MODEL. Raises DetoxbenchError
    where matplotlib is missing, there are no runs or `output` cannot be written.
    """
    require_matplotlib()
    content = read_content(folder, only)
    output = Path(output)
    with style():
        figures: dict[str, Figure | None] = {}
        for name, section in zip(names(content), content.sections, strict=True):
            figures[f"metrics {name}"] = _metrics(content, section)
            figures[f"cost {name}"] = _costs(content, section)
            for sweep in section.sweeps:
                figures[f"sweep {sweep.method} {sweep.knob} {sweep.fixed} {name}"] = _sweep(content, section, sweep)
        for model in content.models:
            figures[f"tradeoff {model}"] = _tradeoff(content, model)
        try:
            output.mkdir(parents=True, exist_ok=True)
            stems: dict[str, Figure] = {}
            for title, figure in figures.items():
                stem = re.sub(r"[^A-Za-z0-9_.=]+", "-", title).strip("-.")
                if figure is not None:
                    stems[f"{stem}-{len(stems)}" if stem in stems else stem] = figure
            return [_save(figure, output / stem) for stem, figure in stems.items()]
        except OSError as error:
            raise DetoxbenchError(f"cannot write figures to '{output}': {error.strerror or error}") from None


def _save(figure: Figure, stem: Path) -> Path:
    figure.savefig(f"{stem}.svg", metadata={"Date": None})
    figure.savefig(f"{stem}.png", metadata={"Software": None})
    return Path(f"{stem}.png")


def _look(content: Content, method: str) -> dict[str, Any]:
    if method == BASE:
        return {"color": GREY, "marker": "o", "markerfacecolor": "white"}
    other_methods = [name for name in content.methods if name != BASE]
    i = other_methods.index(method)
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}


def _rows(section: Section) -> list[Row]:
    return [section.table.rows[i] for i in section.measured]


def _scaled(cell: Cell, unit: str) -> tuple[float, float, float]:
    """(value, down, up) with the interval's lengths, shares in per cent; nan where missing, 0 without interval."""
    factor = 100 if unit == "share" else 1
    if cell.value is None:
        return math.nan, 0.0, 0.0
    if cell.low is None or cell.high is None:
        return factor * cell.value, 0.0, 0.0
    # The interval of a mean over few seeds or of a skewed metric need not be around the value by more than rounding.
    return factor * cell.value, max(0.0, factor * (cell.value - cell.low)), max(0.0, factor * (cell.high - cell.value))


def _seeds(cell: Cell, unit: str) -> list[float]:
    """The value under each seed, where there are several."""
    known = [v for v in cell.by_seed if v is not None]
    return [100 * v if unit == "share" else v for v in known] if len(cell.by_seed) > 1 else []


def _labels(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [clean(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _metrics(content: Content, section: Section) -> Figure | None:
    """Every metric of a table: a mark a row with its 95 % interval, a point a seed, the base as a dashed line."""
    rows = _rows(section)
    columns = [c for c in section.table.columns if any(r.cells[c.name].value is not None for r in rows)]
    if not columns:
        return None
    bases = [row for row in rows if row.method["name"] == BASE]

    def draw(axes: Axes, i: int) -> None:
        column = columns[i]
        for y, row in enumerate(rows):
            value, down, up = _scaled(row.cells[column.name], column.unit)
            look = _look(content, row.method["name"])
            axes.errorbar(value, y, xerr=[[down], [up]], ms=4, lw=1, **look)
            seeds = _seeds(row.cells[column.name], column.unit)
            axes.plot(seeds, [y] * len(seeds), ".", ms=2.5, color=look["color"], alpha=0.6)
        if len(bases) == 1:
            axes.axvline(
                _scaled(bases[0].cells[column.name], column.unit)[0], color=GREY, lw=0.8, ls=(0, (3, 3)), zorder=0
            )
        _labels(axes, [row.shown for row in rows])
        axes.set_title(heading(column.name, column.better, column.unit))

    return multiples(len(columns), 0.6 + 0.16 * len(rows), draw, share_y=True)


def _costs(content: Content, section: Section) -> Figure | None:
    rows = _rows(section)
    telling = [key for key in COSTS if len({row.cost.get(key) for row in rows}) > 1]
    if not telling:
        return None

    def draw(axes: Axes, i: int) -> None:
        cost = COSTS[telling[i]]
        for y, row in enumerate(rows):
            value = row.cost.get(telling[i])
            if value is not None:
                axes.barh(y, value, height=0.6, color=_look(content, row.method["name"])["color"], alpha=0.85)
                axes.annotate(
                    cost.shown(value), (value, y), (2, 0), textcoords="offset points", va="center", fontsize=6
                )
        _labels(axes, [row.shown for row in rows])
        axes.margins(x=0.25)
        axes.set_xticks([])  # the bars say their values
        axes.spines["bottom"].set_visible(False)
        axes.set_title(heading(cost.words, cost.better, ""))

    return multiples(len(telling), 0.6 + 0.16 * len(rows), draw, share_y=True)


def _sweep(content: Content, section: Section, sweep: Sweep) -> Figure | None:
    rows = [section.table.rows[i] for i in sweep.rows]
    columns = [c for c in section.table.columns if any(r.cells[c.name].value is not None for r in rows)]
    bases = [row for row in _rows(section) if row.method["name"] == BASE]

    def draw(axes: Axes, i: int) -> None:
        column = columns[i]
        look = _look(content, sweep.method)
        points = [
            (at, *_scaled(row.cells[column.name], column.unit)) for at, row in zip(sweep.values, rows, strict=True)
        ]
        at, values = [p[0] for p in points], [p[1] for p in points]
        axes.plot(at, values, ms=3.5, lw=1.2, **look)
        axes.fill_between(
            at,
            [v - d for _, v, d, _ in points],
            [v + u for _, v, _, u in points],
            color=look["color"],
            alpha=0.15,
            lw=0,
        )
        if len(bases) == 1:
            value, down, up = _scaled(bases[0].cells[column.name], column.unit)
            axes.axhline(value, color=GREY, lw=0.8, ls=(0, (3, 3)))
            axes.axhspan(value - down, value + up, color=GREY, alpha=0.1, lw=0)
        axes.set_title(heading(column.name, column.better, column.unit))
        axes.set_xlabel(clean(sweep.knob))

    return multiples(len(columns), 1.7, draw) if columns else None


def _tradeoff(content: Content, model: str) -> Figure | None:
    """The default axes of the page, with the Pareto front."""
    from matplotlib.figure import Figure

    chosen = default_axes(content, model)
    if chosen is None:
        return None
    points = [(key, method, x, y) for key, method, x, y in placed(content, *chosen) if not math.isnan(x[0] + y[0])]
    if not points:
        return None
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    better = [axis.better for axis in chosen]
    on_front = pareto([(x[0], y[0]) for _, _, x, y in points], better)  # type: ignore[arg-type]
    labels = _points(axes, content, points, on_front)
    steps = sorted((x[0], y[0]) for front, (_, _, x, y) in zip(on_front, points, strict=True) if front)
    where: Literal["post", "pre"] = "post" if better[0] == "lower" else "pre"
    axes.step(*zip(*steps, strict=True), where=where, color="#1d1c1a", lw=0.8, zorder=0)
    _scale(axes.xaxis, chosen[0], [p[2][0] for p in points])
    _scale(axes.yaxis, chosen[1], [p[3][0] for p in points])
    axes.set_xlabel(_axis_label(content, chosen[0]))
    axes.set_ylabel(_axis_label(content, chosen[1]))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [clean(m) for m in content.methods if clean(m) in handles]
    figure.legend([handles[m] for m in order], order, loc="outside lower center", ncols=3, fontsize=7)
    _thin(figure, labels)
    return figure


def _points(axes: Axes, content: Content, points: Sequence[Point], on_front: Sequence[bool]) -> list[Any]:
    """Draw the points with their intervals, those on the front first and larger. Returns their labels."""
    labels = []
    for front, (key, method, (x, left, right), (y, down, up)) in sorted(
        zip(on_front, points, strict=True), key=lambda p: not p[0]
    ):
        drawn = axes.errorbar(
            x, y, xerr=[[left], [right]], yerr=[[down], [up]], ms=6 if front else 4, lw=0.7, **_look(content, method)
        )
        drawn.set_label(clean(method))
        labels.append(
            axes.annotate(clean(content.labels[key]), (x, y), (5, 4), textcoords="offset points", fontsize=6.5)
        )
    return labels


def _axis_label(content: Content, axis: ChartAxis) -> str:
    words = COSTS[axis.name].words if axis.cost else axis.name
    return heading(f"{content.sections[axis.section].table.suite}: {words}", axis.better, axis.unit)


def _scale(axis: Any, of: ChartAxis, values: Sequence[float]) -> None:
    """Logarithmic where the values span a factor of 20 and more, as on the page."""
    if of.unit != "share" and min(values) > 0 and max(values) / min(values) >= 20:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")


def _thin(figure: Figure, labels: Sequence[Any]) -> None:
    """Of labels that overlap only the first stays; the legend names all methods."""
    figure.draw_without_rendering()
    boxes: list[Any] = []
    for label in labels:
        box = label.get_window_extent()
        if any(box.overlaps(other) for other in boxes):
            label.set_visible(False)
        else:
            boxes.append(box)


Placed = tuple[float, float, float]
"""On one axis: the value, and the lengths of its interval below and above it."""
Point = tuple[str, str, Placed, Placed]
"""Key of the configuration, method, place on x, place on y."""


def placed(content: Content, x: ChartAxis, y: ChartAxis) -> list[Point]:
    """The configurations that the sections of both axes have measured."""

    def on(axis: ChartAxis) -> dict[str, tuple[str, Placed]]:
        section = content.sections[axis.section]
        values = {}
        for i in section.measured:
            row = section.table.rows[i]
            cost = row.cost.get(axis.name)
            value = (
                (math.nan if cost is None else cost, 0.0, 0.0)
                if axis.cost
                else _scaled(row.cells[axis.name], axis.unit)
            )
            values[section.keys[i]] = (str(row.method["name"]), value)
        return values

    across, up = on(x), on(y)
    return [(key, method, value, up[key][1]) for key, (method, value) in across.items() if key in up]
