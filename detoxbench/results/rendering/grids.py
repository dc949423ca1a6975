"""What every format shows of a table beside its metrics: costs and counts, all pairs of rows, ranks."""

from __future__ import annotations

from typing import NamedTuple

from detoxbench.results.costs import COSTS, USUAL
from detoxbench.results.tables import LEVEL, Cell, Column, Pairwise, Table
from detoxbench.results.words import delta
from detoxbench.text import short

NOT_SHOWN = ("requests", "contested_tokens", "missing_texts")
"""Counts that are shown only where columns are named; missing texts have a note."""


class Grid(NamedTuple):
    """A block of text: a title, and columns of a heading and a text for each of `labels`."""

    title: str
    labels: list[str]
    columns: list[tuple[str, list[str]]]

    def headings(self) -> list[str]:
        """The headings, of the labels first."""
        return ["method", *(heading for heading, _ in self.columns)]

    def lines(self) -> list[list[str]]:
        """For each label its line: the label and its text in each column."""
        return [[label, *(texts[i] for _, texts in self.columns)] for i, label in enumerate(self.labels)]


def setting(table: Table) -> str:
    """What its rows share, for people; `shared` has the rest."""
    shown = {k: v for k, v in table.shared.items() if k.startswith(("model.", "gen.")) or k in table.apart}
    return ", ".join(f"{k.removeprefix('gen.')}={short(v)}" for k, v in shown.items())


def delta_of(cell: Cell, column: Column) -> str:
    """A cell's difference in words; empty where there is none."""
    return delta(cell.difference, column.unit, cell.value)


def extra_columns(table: Table) -> list[tuple[str, list[str]]]:
    """The costs and counts beside the metrics: (heading, a text for each row)."""
    columns = []
    for name in _extra_names(table):
        kind, _, key = name.partition(".")
        columns.append(_count_column(table, key) if kind == "counts" else _cost_column(table, key))
    return columns


def _extra_names(table: Table) -> list[str]:
    """The names of the columns beside the metrics: "cost.KEY" and "counts.KEY"."""
    if table.beside is not None:
        return table.beside
    counted = dict.fromkeys(k for row in table.rows for k in row.counts if k not in NOT_SHOWN)
    # What never happened is said in a note.
    happened = [k for k in counted if any(row.counts.get(k) for row in table.rows)]
    return [*(f"cost.{k}" for k in USUAL), *(f"counts.{k}" for k in happened)]


def _count_column(table: Table, key: str) -> tuple[str, list[str]]:
    counts = [row.counts.get(key) for row in table.rows]
    return key.replace("_", " "), ["–" if n is None else str(n) for n in counts]


def _cost_column(table: Table, key: str) -> tuple[str, list[str]]:
    cost = COSTS.get(key)
    shown = cost.shown if cost else "{:.3g}".format
    values = [row.cost.get(key) for row in table.rows]
    return cost.heading if cost else key, ["–" if v is None else shown(v) for v in values]


def extra_grids(table: Table) -> list[Grid]:
    """The grids below the table, where the table has them: the differences of all pairs of rows, and ranks."""
    units = {column.name: column.unit for column in table.columns}
    pairs = [_pairs_grid(pairs, units[pairs.metric]) for pairs in table.pairwise]
    return [*pairs, _ranks_grid(table)] if table.standings else pairs


def _pairs_grid(pairs: Pairwise, unit: str) -> Grid:
    tests = sum(d is not None and d.p is not None for row in pairs.differences for d in row) // 2
    numbered = [f"({i}) {label}" for i, label in enumerate(pairs.labels, 1)]
    columns = [
        (f"minus ({j + 1})", [delta(row[j], unit).removeprefix("Δ ") or "–" for row in pairs.differences])
        for j in range(len(numbered))
    ]
    title = f"{pairs.metric}: the row minus the column (p < {LEVEL} after Holm over {tests} tests)"
    return Grid(title, numbered, columns)


def _ranks_grid(table: Table) -> Grid:
    standings = table.standings
    columns = [
        ("rank", [str(s.rank) for s in standings]),
        ("95 % of ranks", ["–" if s.low is None else f"{s.low} to {s.high}" for s in standings]),
        ("first", ["–" if s.first is None else f"{100 * s.first:.0f} %" for s in standings]),
        ("Borda points", [f"{s.points:.2f}" for s in standings]),
        ("front", ["yes" if s.front else "–" for s in standings]),
    ]
    title = f"Ranks over all metrics with a direction; Pareto front over {', '.join(table.front)}"
    return Grid(title, [s.label for s in standings], columns)
