"""Leaderboards: tables of finished runs. Comparable runs share a table."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from detoxbench.config import BASE, digest
from detoxbench.errors import UsageError, did_you_mean
from detoxbench.results import paper as papers
from detoxbench.results import ranking, table_notes
from detoxbench.results.grouping import grouped
from detoxbench.results.panels import ColumnPanel, best_row, clusters_of, compared, fits_of, mostly_broken, pairs
from detoxbench.results.rendering import csv_text, json_text, latex, markdown, terminal
from detoxbench.results.selection import Entry, Selection, finished
from detoxbench.results.settings import differing, embedded, flat, named_data, row_labels
from detoxbench.results.store import Clusters, MetricRecord, RunRecord
from detoxbench.results.tables import BESIDE, Board, Cell, Column, Row, Standing, Table, mean_by_key, sum_by_key

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


@dataclass(frozen=True)
class Leaderboard(Board):
    """What `leaderboard` returns: rich prints it as wide as the terminal, `str()` is the same without colour."""

    def render(self, format: str = "table", *, width: int | None = None) -> str:
        """As "table" (`width` columns, the terminal's unless given), "md", "latex", "csv" (a line a value) or "json".

        Raises UsageError for another format.
        """
        if format == "table":
            return terminal.render(self, width or shutil.get_terminal_size((120, 24)).columns)
        writers: dict[str, Callable[[Board], str]] = {
            "md": markdown.render,
            "latex": latex.render,
            "csv": csv_text.render,
            "json": json_text.render,
        }
        if format not in writers:
            raise UsageError(f"unknown leaderboard format '{format}'; known: table, {', '.join(writers)}")
        return writers[format](self)

    def __str__(self) -> str:
        return self.render()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        return terminal.rich_blocks(self, options.max_width)


@dataclass(frozen=True)
class View:
    """What is wanted of each table; see `leaderboard`."""

    columns: Sequence[str] | None = None
    all_metrics: bool = False
    first: bool = False
    """Only the first metric with a direction: a suite's main measure."""
    against: str | None = None
    pairwise: Sequence[str] = ()
    ranks: bool = False
    pareto: Sequence[str] | None = None


def leaderboard(
    folder: str | Path = "runs",
    *,
    model: Sequence[str] = (),
    suite: Sequence[str] = (),
    method: Sequence[str] = (),
    scorer: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    all_metrics: bool = False,
    against: str | None = None,
    pairwise: Sequence[str] = (),
    ranks: bool = False,
    pareto: Sequence[str] | None = None,
    by: Literal["model", "suite"] | None = None,
    paper: bool = False,
    samples: bool = False,
) -> Leaderboard:
    """The finished runs under `folder` as tables, one for each group of comparable runs.

    Runs are comparable when their identities agree in everything but method and seed. A run that cannot be read is
    named in the notes. Raises DetoxbenchError when there is no such folder, UsageError for a name that matches nothing.

    model, suite, method, scorer: names or patterns ("gpt*"); only runs that match one of each are taken. The base
        (method none) always stays, since differences are to it.
    columns: metrics, "cost.KEY" and "counts.KEY" to show, in this order; otherwise the headline metrics with the usual
        costs and counts, or with `all_metrics` every metric. Only what is shown counts in the correction for
        multiplicity.
    against: what differences are to: a row's label, or a method that has one row. The base unless named.
    pairwise: metrics whose differences between all pairs of rows are wanted.
    ranks: with Borda ranks, how firm they are, and the Pareto front over `pareto` (`ranking.pareto_axes`).
    by: one table for each model or suite instead, with the suites or models of the same setting side by side
        (`grouping.grouped`): of each its first metric with a direction, unless `columns` or `all_metrics` say more.
    paper: with the numbers that papers report for a table's model and suite below what was measured.
    samples: also leave out runs whose samples or scores are damaged, although no table is made of these files.
    """
    if by is not None and (ranks or pareto is not None or pairwise):
        raise UsageError("ranks and pairs are of one table: leave out 'by', which puts several side by side")
    notes: list[str] = []
    entries = finished(folder, Selection(model, suite, method, scorer), notes=notes, whole=samples)
    first = by is not None and columns is None and not all_metrics
    view = View(columns, all_metrics, first, against, pairwise, ranks or pareto is not None, pareto)
    board = board_of(entries, view, notes)
    if not entries:
        nothing = f"no finished runs in '{folder}': run something first (detoxbench run)"
        board = Board(board.tables, [*board.notes, nothing])
    if paper:
        board = papers.beside(board)
    if by is not None:
        board = grouped(board, by)
    return Leaderboard(board.tables, board.notes)


def board_of(entries: Sequence[Entry], view: View, notes: Sequence[str] = ()) -> Board:
    """The tables of runs that were read, one for each group of comparable ones. `notes` come before its own.

    Raises UsageError for a name that `view` asks for and no table has.
    """
    all_notes = list(notes)
    groups: dict[bytes, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_canonical(entry.shared), []).append(entry)
    tables = [_table(group, view, all_notes) for group in groups.values()]
    tables.sort(key=lambda t: (t.suite, t.model, t.scorer, digest(t.shared)))
    if tables:
        _check_names(tables, view)
    if view.columns is not None:
        tables = [table for table in tables if table.columns or table.beside]
    tables = _with_distinguishing(tables)
    return Board(tables, [*all_notes, *table_notes.of_board(tables)])


def _canonical(value: Any) -> bytes:
    """Equal bytes for equal values, in any order of their keys: quicker than a digest, for thousands of runs."""
    return msgspec.json.encode(value, order="sorted")


# --------------------------------------------------------------------------------------------------------- one table


def _table(group: Sequence[Entry], view: View, notes: list[str]) -> Table:
    """The table of comparable runs; what could not be read is named in `notes`."""
    labels, members = _configurations(group)
    # For a single run its run.json is enough; only several need the clusters.
    clusters = clusters_of(((entry.run, entry.record) for entry in group) if len(group) > 1 else (), notes)
    panels = [ColumnPanel.of(members, column, clusters) for column in _columns(group, view)]
    reference = _reference(members, labels, view.against)
    broken = mostly_broken(members, clusters)
    cells = [panel.cells(members) for panel in panels]  # [columns][rows]
    if reference is not None:
        cells = compared(panels, cells, reference, broken)
    names = [panel.column.name for panel in panels]
    by_row = [dict(zip(names, column, strict=True)) for column in zip(*cells, strict=True)] or [{} for _ in labels]
    rows = [_row(*of) for of in zip(labels, members, by_row, broken, strict=True)]
    first = group[0]
    table = Table(
        model=" / ".join(sorted({entry.record.model for entry in group})),
        suite=first.record.suite,
        scorer=first.record.scorer,
        shared=dict(flat(first.shared)),
        columns=[
            replace(panel.column, best=best_row(panel, _praised(column, broken), labels))
            for panel, column in zip(panels, cells, strict=True)
        ],
        rows=rows,
        notes=_notes(group, [panel.column for panel in panels], rows, members, reference, view.against),
        against=None if reference is None else labels[reference],
        beside=None if view.columns is None else [name for name in view.columns if name.startswith(BESIDE)],
        pairwise=[pairs(panel, labels, broken) for panel in panels if panel.column.name in view.pairwise],
    )
    return _ranked(table, clusters, view.pareto) if view.ranks else table


def _configurations(group: Sequence[Entry]) -> tuple[list[str], list[list[RunRecord]]]:
    """A label for each configuration of a method, and its runs in the order of their seeds."""
    by_method: dict[bytes, list[RunRecord]] = {}
    for entry in sorted(group, key=lambda e: e.record.seed):
        by_method.setdefault(_canonical(entry.record.identity["method"]), []).append(entry.record)
    members = list(by_method.values())
    firsts = [records[0] for records in members]
    labels, order = row_labels(named_data([r.identity["method"] for r in firsts], [r.data for r in firsts]))
    return labels, [members[i] for i in order]


def _row(label: str, records: Sequence[RunRecord], cells: dict[str, Cell], broken: bool) -> Row:
    return Row(
        label=label,
        method=records[0].identity["method"],
        seeds=[r.seed for r in records],
        run_ids=[r.run_id for r in records],
        cells=cells,
        cost=mean_by_key([r.cost for r in records]),
        counts=sum_by_key([r.counts for r in records]),
        fits=fits_of(records),
        data=records[0].data,
        fidelity=" | ".join(dict.fromkeys(r.fidelity for r in records if r.fidelity)) or None,
        broken=broken,
    )


def _praised(column: Sequence[Cell], broken: Sequence[bool]) -> list[float | None]:
    """The values of rows that may be the best."""
    return [None if b else cell.value for cell, b in zip(column, broken, strict=True)]


def _notes(
    group: Sequence[Entry],
    columns: Sequence[Column],
    rows: Sequence[Row],
    members: Sequence[Sequence[RunRecord]],
    reference: int | None,
    against: str | None,
) -> list[str]:
    """The notes below a table."""
    toy = any(embedded(entry.record) for entry in group)
    packs = {entry.record.run_id: verified.pack for entry in group if (verified := entry.run.verified())}
    return [
        *table_notes.of_table(columns, rows, against, reference, embedded=toy),
        *table_notes.of_scorers(group[0].record.identity),
        *table_notes.weight_changes([row.label for row in rows], members),
        *table_notes.made_by(entry.record for entry in group),
        *table_notes.verified(rows, packs),
    ]


def _columns(group: Sequence[Entry], view: View) -> list[Column]:
    metrics: dict[str, MetricRecord] = {}
    for entry in group:
        for name, metric in entry.record.metrics.items():
            metrics.setdefault(name, metric)
    if view.columns is not None:
        chosen = [name for name in view.columns if name in metrics]
    else:
        headline = {n for entry in group for n, metric in entry.record.metrics.items() if metric.headline}
        chosen = [name for name in metrics if view.all_metrics or name in headline or name in view.pairwise]
        if view.first:
            chosen = [name for name in chosen if metrics[name].better != "neither"][:1] or chosen[:1]
    return [Column(name, metrics[name].better, metrics[name].unit) for name in chosen]


def _reference(members: list[list[RunRecord]], labels: list[str], against: str | None) -> int | None:
    """The row that differences are to, if there is just one such row."""
    if against in labels:
        return labels.index(against)
    name = BASE if against is None else against
    fits = [i for i, records in enumerate(members) if records[0].identity["method"]["name"] == name]
    return fits[0] if len(fits) == 1 else None


def _ranked(table: Table, clusters: Mapping[str, Clusters], axes: Sequence[str] | None) -> Table:
    known = {c.name for c in table.columns} | {f"cost.{k}" for row in table.rows for k in row.cost}
    names = None if axes is None else [name for name in axes if name in known]
    notes = [] if axes is None else [f"not on the front's axes, absent here: {a}" for a in axes if a not in known]
    firm = {r.label: r for r in ranking.stability(table, clusters)}
    front = dict(zip([row.label for row in table.rows], ranking.pareto_front(table, names), strict=True))
    standings = []
    for label, points, rank in ranking.borda(table):
        low, high, first = firm[label][1:] if label in firm else (None, None, None)
        standings.append(Standing(label, points, rank, low, high, first, front[label]))
    shown = [axis.name for axis in ranking.pareto_axes(table, names)]
    return replace(table, standings=standings, front=shown, notes=[*table.notes, *notes])


# --------------------------------------------------------------------------------------------------------- all tables


def _check_names(tables: Sequence[Table], view: View) -> None:
    """Raises UsageError where `view` names a column, metric or row that no table has."""
    metrics = [column.name for table in tables for column in table.columns]
    rows = [row for table in tables for row in table.rows]
    costs = [f"cost.{key}" for row in rows for key in row.cost]
    counts = [f"counts.{key}" for row in rows for key in row.counts]
    for name in (*(view.columns or ()), *(view.pareto or ())):
        _require_column(name, [*metrics, *costs, *counts])
    for name in view.pairwise:
        _require_column(name, metrics)
    if view.against is not None and not any(table.against for table in tables):
        labels = list(dict.fromkeys(row.label for row in rows))
        near = did_you_mean(view.against, labels)
        raise UsageError(f"no single row '{view.against}' in any table{near}; rows: {', '.join(labels)}")


def _require_column(name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise UsageError(f"no column '{name}' in any table{did_you_mean(name, dict.fromkeys(known))}")


def _with_distinguishing(tables: Sequence[Table]) -> list[Table]:
    """The tables, each with the keys in which it differs from others of its suite (`Table.apart`)."""
    keys = {suite: differing([t.shared for t in tables if t.suite == suite]) for suite in {t.suite for t in tables}}
    return [replace(table, apart={key: table.shared.get(key) for key in keys[table.suite]}) for table in tables]
