"""What a report shows of finished runs: tables, categories, sweeps, points of a trade-off, fit diagnostics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from detoxbench.config import BASE, digest
from detoxbench.errors import DetoxbenchError
from detoxbench.results.costs import COSTS
from detoxbench.results.leaderboard import View, board_of
from detoxbench.results.paper import beside
from detoxbench.results.ranking import pareto_axes
from detoxbench.results.selection import EVERYTHING, Selection, finished
from detoxbench.results.settings import flat, row_labels
from detoxbench.results.store import Run, RunRecord
from detoxbench.results.tables import Cell, Column, Table

POINTS = 400
"""Points of a fit curve that are kept, evenly spread."""
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Group:
    """One metric by category or by layer: `cells[row][part]`, rows as in the table, None where a row has no value."""

    metric: str
    better: Better
    unit: Literal["share", "number"]
    kind: Literal["category", "layer"]
    parts: list[str]
    cells: list[list[Cell | None]]


@dataclass(frozen=True)
class Sweep:
    """Rows of one method that differ in nothing but one number, in its order; `fixed` tells sweeps of a grid apart."""

    method: str
    knob: str
    fixed: str
    values: list[float]
    rows: list[int]


@dataclass(frozen=True)
class Section:
    """A table of the leaderboard and what is drawn beside it."""

    table: Table
    keys: list[str]
    """Per row: identifies its method and configuration, also in other tables."""
    groups: list[Group]
    sweeps: list[Sweep]

    @property
    def measured(self) -> list[int]:
        """The rows that stand for runs; a number that a paper reports is in the table only."""
        return [i for i, row in enumerate(self.table.rows) if row.run_ids]


@dataclass(frozen=True)
class ChartAxis:
    """A metric or cost of one section that can be an axis of a trade-off."""

    section: int
    name: str
    better: Better
    unit: str
    cost: bool = False


@dataclass(frozen=True)
class Curve:
    """A list that a method recorded while fitting: a value a layer, or a value a step (`every` so many steps).

    `labels`: the configurations whose fits recorded the same.
    """

    model: str
    method: str
    labels: list[str]
    name: str
    kind: Literal["layer", "step"]
    values: list[float | None]
    every: int
    length: int


@dataclass(frozen=True)
class Diagnostic:
    """The single numbers that one fit recorded."""

    model: str
    method: str
    label: str
    values: dict[str, float | str]


@dataclass(frozen=True)
class Content:
    """All that a report shows."""

    sections: list[Section]
    notes: list[str]
    methods: list[str]
    """Names, the base first: their order gives colour and mark."""
    curves: list[Curve]
    diagnostics: list[Diagnostic]
    records: dict[str, tuple[Run, RunRecord]]
    """By run id, of the runs in the tables."""

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of their tables."""
        return list(dict.fromkeys(section.table.model for section in self.sections))

    @property
    def labels(self) -> dict[str, str]:
        """Configuration -> its label among all configurations of all tables, in the order of the leaderboard."""
        methods = {s.keys[i]: s.table.rows[i].method for s in self.sections for i in s.measured}
        labels, order = row_labels([_without_data(method) for method in methods.values()])
        keys = list(methods)
        return {keys[i]: label for label, i in zip(labels, order, strict=True)}


def read_content(folder: str | Path, only: Selection = EVERYTHING, *, paper: bool = False) -> Content:
    """Read the runs under `folder`; those whose samples or scores are damaged are left out.

    Raises DetoxbenchError where there is no such folder, or no finished run in it, UsageError for a name in `only` that
    matches nothing.
    """
    notes: list[str] = []
    entries = finished(folder, only, notes=notes, whole=True)
    if not entries:
        nothing = f"no finished runs in '{folder}': run something first (detoxbench run)"
        raise DetoxbenchError("; ".join([*notes, nothing]))
    board = board_of(entries, View(ranks=True), notes)
    board = beside(board) if paper else board
    whole = {digest(t.shared): t for t in board_of(entries, View(all_metrics=True)).tables}
    keys = _keys(board.tables)
    sections = [_section(t, whole[digest(t.shared)], row_keys) for t, row_keys in zip(board.tables, keys, strict=True)]
    shown = {run_id for table in board.tables for row in table.rows for run_id in row.run_ids}
    records = {entry.record.run_id: (entry.run, entry.record) for entry in entries if entry.record.run_id in shown}
    names = {str(row.method["name"]) for table in board.tables for row in table.rows}
    without_fits = Content(
        sections=sections,
        notes=board.notes,
        methods=sorted(names, key=lambda name: (name != BASE, name)),
        curves=[],
        diagnostics=[],
        records=records,
    )
    curves, diagnostics = _fits(without_fits)
    return replace(without_fits, curves=curves, diagnostics=diagnostics)


def names(content: Content) -> list[str]:
    """The name of each section: its suite, and the model or scorer where others of the same suite have another."""
    section_names: list[str] = []
    for section in content.sections:
        table = section.table
        same = [other.table for other in content.sections if other.table.suite == table.suite]
        parts = [table.suite]
        if len({t.model for t in same}) > 1:
            parts.append(table.model)
        if len({t.scorer for t in same}) > 1:
            parts.append(table.scorer)
        name = " · ".join(parts)
        section_names.append(name if name not in section_names else f"{name} ({section_names.count(name) + 1})")
    return section_names


def _keys(tables: Sequence[Table]) -> list[list[str]]:
    """The key of every row: rows of other tables with the same key are the same configuration.

    The fit data are left out where the rows of each table still differ without them: a method that is fitted on each of
    a suite's records has other data in every suite.
    """
    keys_without_data = [[digest(_without_data(row.method)) for row in table.rows if row.run_ids] for table in tables]
    distinct = all(len(set(keys)) == len(keys) for keys in keys_without_data)
    return [[digest(_without_data(row.method) if distinct else row.method) for row in table.rows] for table in tables]


def _without_data(method: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in method.items() if k != "fit_data"}


def _section(table: Table, whole: Table, keys: list[str]) -> Section:
    cells = {digest(row.method): row.cells for row in whole.rows}
    return Section(
        table=table,
        keys=keys,
        groups=list(_groups(whole.columns, [cells.get(digest(row.method), {}) for row in table.rows])),
        sweeps=list(_sweeps(table)),
    )


# ------------------------------------------------------------------------------------------- categories, layers, sweeps

_LAYER = re.compile(r"^layer_(\d+)$")


def _groups(columns: Sequence[Column], rows: Sequence[Mapping[str, Cell]]) -> Iterator[Group]:
    """Metrics that are one quantity by category (EMT@4_on_toxic_prompts, DS_plain) or by layer (patching_layer_3).

    The quantity is the longest metric name with which the other's name begins, or else the part before the first "_".
    A quantity with a single part is left out.
    """
    names = {c.name for c in columns}
    parts: dict[str, list[tuple[str, Column]]] = {}
    for column in columns:
        heads = [name for name in names if column.name.startswith(f"{name}_")]
        head = max(heads, key=len) if heads else column.name.partition("_")[0]
        rest = column.name[len(head) :].lstrip("_")
        if rest and column.name != head:
            parts.setdefault(head, []).append((rest, column))
    for head, members in parts.items():
        numbered = all(rest.isdigit() for rest, _ in members)  # dist_1, dist_2: not parts of one thing
        if len(members) < 2 or numbered or len({(c.better, c.unit) for _, c in members}) > 1:
            continue
        by_layer = all(_LAYER.match(rest) for rest, _ in members)
        if by_layer:
            members.sort(key=lambda member: int(member[0].removeprefix("layer_")))
        first = members[0][1]
        yield Group(
            metric=head,
            better=first.better,
            unit=first.unit,
            kind="layer" if by_layer else "category",
            parts=[rest for rest, _ in members],
            cells=[[row.get(c.name) for _, c in members] for row in rows],
        )


def _sweeps(table: Table) -> Iterator[Sweep]:
    settings = [dict(flat(row.method.get("config", {}))) if row.run_ids else None for row in table.rows]
    groups: dict[tuple[str, str, str], list[tuple[float, int]]] = {}
    for i, (row, config) in enumerate(zip(table.rows, settings, strict=True)):
        for knob, value in (config or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            rest = {**row.method, "config": {k: v for k, v in (config or {}).items() if k != knob}}
            groups.setdefault((row.method["name"], knob, digest(rest)), []).append((float(value), i))
    for (method, knob, _), members in groups.items():
        if len({value for value, _ in members}) < 2:
            continue
        members.sort()
        label = table.rows[members[0][1]].label.removeprefix(method).split()
        fixed = " ".join(word for word in label if not word.startswith(f"{knob}="))
        yield Sweep(method, knob, fixed, [value for value, _ in members], [i for _, i in members])


# ------------------------------------------------------------------------------------------------------------ trade-off


def axes(content: Content, model: str) -> list[ChartAxis]:
    """All possible axes of a trade-off of `model`: metrics with a direction and costs that were measured."""
    known = []
    for i, section in enumerate(content.sections):
        if section.table.model != model:
            continue
        known += [ChartAxis(i, c.name, c.better, c.unit) for c in section.table.columns if c.better != "neither"]
        for key, cost in COSTS.items():
            if any(row.cost.get(key) is not None for row in section.table.rows):
                known.append(ChartAxis(i, key, cost.better, cost.unit, cost=True))
    return known


def default_axes(content: Content, model: str) -> tuple[ChartAxis, ChartAxis] | None:
    """Toxicity against utility (`ranking.pareto_axes`) in the section with most configurations that has both, or else
    the first metric and the first axis that is of another section or a cost; None where there is only one axis."""
    known = axes(content, model)
    order = sorted({axis.section for axis in known}, key=lambda i: -len(content.sections[i].measured))
    for i in order:
        names = [axis.name for axis in pareto_axes(content.sections[i].table)]
        both = [axis for name in names for axis in known if axis.section == i and not axis.cost and axis.name == name]
        if len(both) > 1:
            return both[0], both[1]
    first = next((axis for i in order for axis in known if axis.section == i and not axis.cost), None)
    second = next((axis for axis in known if first and (axis.cost or axis.section != first.section)), None)
    return (first, second) if first and second else None


# ---------------------------------------------------------------------------------------------------------- diagnostics

_LAYERS = re.compile(r"layer|distance|direction|probe", re.IGNORECASE)
"""A recorded list whose name says so has a value a layer; any other has a value a step."""


def _fits(content: Content) -> tuple[list[Curve], list[Diagnostic]]:
    """The diagnostics of every configuration's first run; the same fit under another suite or seed is left out."""
    curves: dict[str, Curve] = {}
    diagnostics: list[Diagnostic] = []
    seen: set[tuple[str, str]] = set()
    labels = content.labels
    for section in content.sections:
        for i in section.measured:
            row, key = section.table.rows[i], section.keys[i]
            _, record = content.records.get(row.run_ids[0], (None, None))
            if record is None or not record.diagnostics or (section.table.model, key) in seen:
                continue
            seen.add((section.table.model, key))
            model, method = section.table.model, str(row.method["name"])
            scalars: dict[str, float | str] = {}
            for name, value in flat(record.diagnostics):
                if isinstance(value, list):
                    for curve in _curve(model, method, labels[key], name, value):
                        same = curves.setdefault(digest([model, method, name, curve.values]), replace(curve, labels=[]))
                        same.labels.append(labels[key])
                elif isinstance(value, int | float | str) and not isinstance(value, bool):
                    scalars[name] = value
            if scalars:
                diagnostics.append(Diagnostic(model, method, labels[key], scalars))
    return sorted(curves.values(), key=lambda c: (c.model, content.methods.index(c.method))), diagnostics


def _curve(model: str, method: str, label: str, name: str, values: list[Any]) -> Iterator[Curve]:
    numbers = [v if isinstance(v, int | float) and not isinstance(v, bool) else None for v in values]
    if len(numbers) < 2 or all(v is None for v in numbers):
        return
    kind: Literal["layer", "step"] = "layer" if _LAYERS.search(name) else "step"
    every = -(-len(numbers) // POINTS)
    yield Curve(model, method, [label], name, kind, numbers[::every], every, len(numbers))
