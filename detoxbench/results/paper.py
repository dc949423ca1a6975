"""Numbers that papers report, shown beside measured ones: never mixed with them, never tested against them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from detoxbench.results.tables import Board, Cell, Row, Table

FOLDER = Path(__file__).parent / "papers"


class Reported(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number of one paper. `model`, `method` and `suite` are our names for them; `variant` tells rows of one method
    apart. What a paper does not say has no row."""

    model: str
    method: str
    variant: str
    suite: str
    metric: str
    value: float
    unit: Literal["percent", "number"]
    source: str


def reported() -> list[Reported]:
    """All rows of detoxbench/results/papers/*.json."""
    files = sorted(FOLDER.glob("*.json"))
    return [row for file in files for row in msgspec.json.decode(file.read_bytes(), type=list[Reported])]


def beside(board: Board) -> Board:
    """`board` with a row for each method that a paper reports for a table's model and suite, in its metrics."""
    rows = reported()
    return Board([_beside(table, rows) for table in board.tables], board.notes)


def _beside(table: Table, rows: list[Reported]) -> Table:
    units = {column.name: column.unit for column in table.columns}
    lines: dict[tuple[str, str, str], dict[str, Reported]] = {}
    for row in rows:
        if (row.model, row.suite) == (table.model, table.suite) and row.metric in units:
            lines.setdefault((row.method, row.variant, row.source), {})[row.metric] = row
    if not lines:
        return table
    added = []
    for (method, variant, source), by_metric in lines.items():
        cells = {}
        for metric in units:
            published = by_metric.get(metric)
            value = None if published is None else published.value / (100 if published.unit == "percent" else 1)
            cells[metric] = Cell(value, None, None, "none: reported", 0, 0)
        label = f"{method}{f' {variant}' if variant else ''} (reported: {source})"
        added.append(Row(label, {"name": method, "variant": variant, "source": source}, [], [], cells, {}, {}))
    note = "reported: as the paper prints it, under its own setting; it is not compared with what is measured"
    return replace(table, rows=[*table.rows, *added], notes=[*table.notes, note])
