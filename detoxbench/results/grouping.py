"""Tables side by side: one for each model with its suites as columns, or one for each suite with models as columns.

A cell keeps what it has in its own table: its interval, and its difference to that table's reference, tested there.
Nothing is averaged over suites or models, and no row of one table is tested against a row of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from detoxbench.config import digest
from detoxbench.records import Counts
from detoxbench.results.settings import differing, named_data, row_labels
from detoxbench.results.tables import Board, Cell, Column, Row, Table, mean_by_key
from detoxbench.text import short

NOT_RUN = Cell(None, None, None, "none: not run", 0, 0)


def grouped(board: Board, by: Literal["model", "suite"]) -> Board:
    """`board` with its tables of one model (or of one suite, scorer and generation) side by side."""
    groups: dict[str, list[Table]] = {}
    for table in board.tables:
        groups.setdefault(digest({k: v for k, v in table.shared.items() if _common(k, by)}), []).append(table)
    return Board([_beside_each_other(tables, by) for tables in groups.values()], board.notes)


def _common(key: str, by: Literal["model", "suite"]) -> bool:
    """Whether tables that stand side by side must agree in this key."""
    return key.startswith("model.") == (by == "model")


def _beside_each_other(tables: list[Table], by: Literal["model", "suite"]) -> Table:
    """One table whose columns are those of all `tables`, a row for each configuration that one of them has."""
    names = _names(tables, by)
    same = _same(tables)
    places = [{digest(same(row)): row for row in table.rows} for table in tables]
    keys = list(dict.fromkeys(key for place in places for key in place))
    examples = [next(place[key] for place in places if key in place) for key in keys]
    labels, order = _labels(examples, same)
    label_of = {keys[i]: label for label, i in zip(labels, order, strict=True)}
    rows = [
        _row(label, names, tables, [place.get(keys[i]) for place in places])
        for label, i in zip(labels, order, strict=True)
    ]
    shared = {k: v for k, v in tables[0].shared.items() if all(t.shared.get(k) == v for t in tables)}
    return Table(
        model=tables[0].model if by == "model" else "by model",
        suite=tables[0].suite if by == "suite" else "by suite",
        scorer=" / ".join(dict.fromkeys(table.scorer for table in tables)),
        shared=shared,
        columns=_columns(names, tables, places, label_of),
        rows=rows,
        notes=_notes(tables, names),
        beside=tables[0].beside,
    )


def _columns(
    names: Sequence[str], tables: Sequence[Table], places: Sequence[Mapping[str, Row]], label_of: Mapping[str, str]
) -> list[Column]:
    """The columns of all tables, each named after its table too; the best row has its label of the joint table."""
    columns = []
    for name, table, place in zip(names, tables, places, strict=True):
        shown = {row.label: label_of[key] for key, row in place.items()}
        columns += [replace(c, name=f"{name}: {c.name}", best=c.best and shown[c.best]) for c in table.columns]
    return columns


def _row(label: str, names: Sequence[str], tables: Sequence[Table], row_by_table: Sequence[Row | None]) -> Row:
    """A configuration's rows of all tables as one; None where a table has none."""
    present = [row for row in row_by_table if row is not None]
    cells = {
        f"{name}: {column.name}": row.cells[column.name] if row else NOT_RUN
        for name, table, row in zip(names, tables, row_by_table, strict=True)
        for column in table.columns
    }
    return Row(
        label=label,
        method=present[0].method,
        seeds=sorted({seed for row in present for seed in row.seeds}),
        run_ids=[run_id for row in present for run_id in row.run_ids],
        cells=cells,
        cost=mean_by_key([row.cost for row in present]),
        counts=_summed([row.counts for row in present]),
        fits=[fit for row in present for fit in row.fits],
        data=present[0].data,
        broken=any(row.broken for row in present),
    )


def _summed(many: Sequence[Counts]) -> Counts:
    """Sums over the tables that counted; the others are named in their own notes."""
    sums: Counts = {}
    for key in dict.fromkeys(k for counts in many for k in counts):
        known = [n for counts in many if (n := counts.get(key)) is not None]
        sums[key] = sum(known) if known else None
    return sums


def _names(tables: list[Table], by: Literal["model", "suite"]) -> list[str]:
    """The name of each table in the headings: the suite or the model, and the settings that differ if need be."""
    names = [table.suite if by == "model" else table.model for table in tables]
    headings = []
    for name, table in zip(names, tables, strict=True):
        same = [t.shared for n, t in zip(names, tables, strict=True) if n == name]
        distinguishing = [f"{key}={short(table.shared.get(key))}" for key in differing(same)]
        headings.append(" ".join([name, *distinguishing]))
    return headings


def _same(tables: Sequence[Table]) -> Callable[[Row], dict[str, Any]]:
    """The function that gives a row's configuration, by which it is recognised in other tables: its method, with all
    that can change a number.

    The fit data are left out where the rows of each table still differ without them: a method that is fitted on each of
    the suite's records has other data in every suite. A row that papers report is recognised by its label.
    """

    def without_data(row: Row) -> dict[str, Any]:
        return {k: v for k, v in whole(row).items() if k != "fit_data"}

    def whole(row: Row) -> dict[str, Any]:
        return row.method if row.run_ids else {"label": row.label}

    distinct = all(len({digest(without_data(row)) for row in table.rows}) == len(table.rows) for table in tables)
    return without_data if distinct else whole


def _labels(rows: list[Row], same: Callable[[Row], dict[str, Any]]) -> tuple[list[str], list[int]]:
    """Labels over all tables and which row each is of: what was measured first, then what papers report."""
    measured = [i for i, row in enumerate(rows) if row.run_ids]
    labels, order = row_labels(named_data([same(rows[i]) for i in measured], [rows[i].data for i in measured]))
    reported = [i for i, row in enumerate(rows) if not row.run_ids]
    return [*labels, *(rows[i].label for i in reported)], [*(measured[k] for k in order), *reported]


def _notes(tables: list[Table], names: list[str]) -> list[str]:
    everywhere = [note for note in tables[0].notes if all(note in table.notes for table in tables)]
    of_one_table = [
        f"{n}: {note}" for n, t in zip(names, tables, strict=True) for note in t.notes if note not in everywhere
    ]
    return [*everywhere, *of_one_table]
