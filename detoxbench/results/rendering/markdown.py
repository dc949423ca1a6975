"""Boards as Markdown: a heading, a table and a list of notes each."""

from __future__ import annotations

from collections.abc import Sequence

from detoxbench.results.rendering.grids import delta_of, extra_columns, extra_grids, setting
from detoxbench.results.tables import Board, Column, Row, Table
from detoxbench.results.words import heading_of, value_of
from detoxbench.text import clean


def render(board: Board) -> str:
    """The board as Markdown. Names are escaped: they cannot change its structure."""
    lines = [line for table in board.tables for line in _section(table)]
    lines += [f"- {_escaped(note)}" for note in board.notes]
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(table: Table) -> list[str]:
    extra = extra_columns(table)
    headings = ["method", "seeds", *map(heading_of, table.columns), *(heading for heading, _ in extra)]
    rows = [
        [row.shown, str(len(row.seeds)), *(_value(row, c) for c in table.columns), *(texts[i] for _, texts in extra)]
        for i, row in enumerate(table.rows)
    ]
    lines = [f"### {_escaped(table.title)}", "", _escaped(setting(table)), "", *_table_lines(headings, rows)]
    for grid in extra_grids(table):
        lines += [_escaped(grid.title), "", *_table_lines(grid.headings(), grid.lines())]
    return [*lines, *(f"- {_escaped(note)}" for note in table.notes), ""]


def _value(row: Row, column: Column) -> str:
    """A value and its difference."""
    cell = row.cells[column.name]
    return f"{value_of(cell, column)} {delta_of(cell, column)}".rstrip()


def _table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = (f"| {' | '.join(map(_escaped, texts))} |" for texts in (headings, *rows))
    return [head, f"|---|{'---:|' * (len(headings) - 1)}", *body, ""]


def _escaped(text: str) -> str:
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#~$" else c for c in text)
