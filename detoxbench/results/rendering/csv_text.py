"""Boards as CSV, a line a value, for spreadsheets and programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from detoxbench.results.tables import Board, Cell, Column, Difference, Pairwise, Row, Standing, Table
from detoxbench.text import clean

COLUMNS = (
    "table", "model", "suite", "scorer", "row", "seeds",
    "metric", "better", "unit", "value", "low", "high", "interval", "n", "missing",
    "difference", "difference_low", "difference_high", "p", "p_holm", "verdict",
    "against", "effect", "detectable", "above", "below", "fidelity",
)  # fmt: skip
FORMULA = tuple("=+-@＝＋－＠")
"""A spreadsheet runs what starts like this."""

Line = dict[str, Any]
"""Column -> value; columns that are not in it stay empty."""


def render(board: Board) -> str:
    """A line a value: metrics, then costs (metric "cost.NAME"), counts ("counts.NAME") and ranks ("rank.NAME").

    Differences between all pairs (of `Table.pairwise`) are lines without a value, of the row to `against`.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for number, table in enumerate(board.tables, 1):
        for line in _table_lines(table, number):
            writer.writerow({column: _safe(value) for column, value in line.items()})
    return out.getvalue()


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        value = clean(value)
        return f"'{value}" if value.lstrip().startswith(FORMULA) else value
    return "" if value is None else value


def _table_lines(table: Table, number: int) -> Iterator[Line]:
    starts = {row.label: _start(table, number, row) for row in table.rows}
    for row in table.rows:
        for column in table.columns:
            yield starts[row.label] | _metric_line(row.cells[column.name], column, table.against)
        for line in _extra_lines(row, table.beside):
            yield starts[row.label] | line
    columns = {column.name: column for column in table.columns}
    for pairs in table.pairwise:
        for label, line in _pair_lines(pairs, columns[pairs.metric]):
            yield starts[label] | line
    for standing in table.standings:
        for line in _rank_lines(standing):
            yield starts[standing.label] | line


def _start(table: Table, number: int, row: Row) -> Line:
    """What every line of a row begins with."""
    names = {"table": number, "model": table.model, "suite": table.suite, "scorer": table.scorer}
    return names | {"row": row.label, "seeds": " ".join(map(str, row.seeds)), "fidelity": row.said}


def _metric_line(cell: Cell, column: Column, against: str | None) -> Line:
    line = {"metric": column.name, "better": column.better, "unit": column.unit}
    line |= {key: getattr(cell, key) for key in ("value", "low", "high", "interval", "n", "missing")}
    return line | (_difference(cell.difference, against) if cell.difference else {})


def _difference(d: Difference, against: str | None) -> Line:
    line: Line = {"difference": d.value, "difference_low": d.low, "difference_high": d.high, "against": against}
    keys = ("p", "p_holm", "verdict", "effect", "detectable", "above", "below")
    return line | {key: getattr(d, key) for key in keys}


def _extra_lines(row: Row, wanted: Sequence[str] | None) -> Iterator[Line]:
    """The row's costs and counts: the wanted ones, or all."""
    values = {f"{kind}.{key}": value for kind in ("cost", "counts") for key, value in getattr(row, kind).items()}
    for name in values if wanted is None else wanted:
        yield {"metric": name, "value": values.get(name)}


def _pair_lines(pairs: Pairwise, column: Column) -> Iterator[tuple[str, Line]]:
    """For each pair of rows that was compared the label of the first and the line."""
    for label, differences in zip(pairs.labels, pairs.differences, strict=True):
        for against, d in zip(pairs.labels, differences, strict=True):
            if d is not None:
                line = {"metric": column.name, "better": column.better, "unit": column.unit}
                yield label, line | {"interval": d.method, "n": d.n} | _difference(d, against)


def _rank_lines(s: Standing) -> Iterator[Line]:
    borda = {"better": "lower", "unit": "number", "value": s.rank, "low": s.low, "high": s.high}
    yield {"metric": "rank.borda", **borda}
    yield {"metric": "rank.points", "better": "higher", "unit": "share", "value": s.points}
    yield {"metric": "rank.first", "better": "higher", "unit": "share", "value": s.first}
    yield {"metric": "rank.front", "value": int(s.front)}
