"""Boards as LaTeX: a `table` of booktabs each."""

from __future__ import annotations

import re
from collections.abc import Sequence

from detoxbench.results.rendering.grids import extra_columns, extra_grids
from detoxbench.results.table_notes import fidelity
from detoxbench.results.tables import EMBEDDED, LEVEL, Board, Column, Row, Table
from detoxbench.results.words import heading_of, value_of
from detoxbench.text import clean

ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': r"{\char34}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "…": r"\ldots{}", "–": "--", "·": r"$\cdot$"}
    | {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$", "Δ": r"$\Delta$", "≠": r"$\neq$"}
    | {"✓": r"$\checkmark$", "✗": r"$\times$", "�": "?"}
)
MINUS = re.compile(r"(?<![\w.])-(?=\d)")
"""A hyphen that is a number's sign."""


def render(board: Board) -> str:
    """Values with intervals in small print, * where a difference to the reference is supported.

    Bold is a row that is better than each other one by a test.
    """
    lines = ["% needs \\usepackage{booktabs} and \\usepackage{amssymb}"]
    for table in board.tables:
        lines += ["", *_table_environment(table)]
    lines += ["", *(f"% {clean(note)}" for note in board.notes)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _table_environment(table: Table) -> list[str]:
    extra = extra_columns(table)
    headings = ["method", *map(heading_of, table.columns), *(heading for heading, _ in extra)]
    rows = [
        [_escaped(row.shown), *(_value(row, c) for c in table.columns), *(_escaped(texts[i]) for _, texts in extra)]
        for i, row in enumerate(table.rows)
    ]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(_caption(table))}}}"]
    lines += _tabular([_escaped(heading) for heading in headings], rows)
    for grid in extra_grids(table):
        lines += [r"\par\medskip", rf"{_escaped(grid.title)}\par\smallskip"]
        body = [[_escaped(text) for text in line] for line in grid.lines()]
        lines += _tabular([_escaped(heading) for heading in grid.headings()], body)
    lines += [rf"\par\smallskip {{\scriptsize {_escaped(note)}\par}}" for note in fidelity(table.rows)]
    return [*lines, r"\end{table}"]


def _caption(table: Table) -> str:
    """What the table is, and what the marks in it mean; not escaped yet."""
    caption = f"{table.title}. In brackets: 95 % intervals."
    if table.against is not None:
        caption += f" *: differs from {table.against} (p < {LEVEL}, paired, Holm)."
    if any(column.best for column in table.columns):
        caption += " Bold: better than each other row by a test."
    if EMBEDDED in table.notes:
        caption += f" Note: {EMBEDDED}."
    return caption


def _value(row: Row, column: Column) -> str:
    cell = row.cells[column.name]
    value, _, bounds = _escaped(value_of(cell, column)).partition(" ")
    if column.best == row.label:
        value = rf"\textbf{{{value}}}"
    if cell.difference is not None and cell.difference.verdict != "unsupported":
        value += "$^{*}$"
    return rf"{value} {{\scriptsize {bounds}}}" if bounds else value


def _tabular(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A `tabular` of texts that are escaped already."""
    # An empty group first: behind a line's end LaTeX reads * and [ as options.
    head, *body = (f"{'{}' * texts[0].startswith(('*', '['))}{' & '.join(texts)} \\\\" for texts in (headings, *rows))
    return [
        rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
        *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
        r"\end{tabular}",
    ]


def _escaped(text: str) -> str:
    return MINUS.sub("$-$", clean(text).translate(ESCAPES))
