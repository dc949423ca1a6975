"""Boards for a terminal, by rich: in colour where the terminal has colours, and as wide as it is."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from detoxbench.results.rendering.grids import delta_of, extra_columns, extra_grids, setting
from detoxbench.results.tables import EMBEDDED, Board, Column, Row, Table, Verdict
from detoxbench.results.words import heading_of, value_of
from detoxbench.text import clean

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

COLOURS: dict[Verdict, str] = {"better": "green", "worse": "red", "differs": "cyan", "unsupported": "dim"}


def render(board: Board, width: int) -> str:
    """The board without colours, `width` characters wide."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(board)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def rich_blocks(board: Board, width: int) -> Iterator[RenderableType]:
    """What rich prints of the board, one block under another."""
    from rich.text import Text

    for table in board.tables:
        yield from _table_blocks(table, width)
        yield Text("")
    for note in board.notes:
        yield Text(clean(note), style="yellow")


def _table_blocks(table: Table, width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text(clean(table.title), style="bold")
    yield Text(clean(setting(table)), style="dim")
    labels = _labels(table.rows)
    metrics = [(heading_of(c), [_metric_text(row, c) for row in table.rows]) for c in table.columns]
    yield from _fitted(labels, metrics, width)
    yield from _fitted(labels, extra_columns(table), width)
    for grid in extra_grids(table):
        yield Text(clean(grid.title))
        yield from _fitted(grid.labels, grid.columns, width)
    for note in table.notes:
        yield Text(f"  {clean(note)}", style="yellow" if note == EMBEDDED else "dim")


def _labels(rows: Sequence[Row]) -> list[str]:
    """The rows' labels, with the number of seeds unless every row has one."""
    several = any(len(row.seeds) != 1 for row in rows)
    return [f"{row.shown} ({len(row.seeds)} seeds)" if several else row.shown for row in rows]


def _metric_text(row: Row, column: Column) -> Text:
    """A value, and under it its difference in the colour of its verdict."""
    from rich.text import Text

    cell = row.cells[column.name]
    text = Text(value_of(cell, column), style="bold" if column.best == row.label else "")
    if cell.difference is not None:
        text.append(f"\n{delta_of(cell, column)}", style=COLOURS[cell.difference.verdict])
    return text


def _fitted(
    labels: Sequence[str], columns: Sequence[tuple[str, Sequence[str | Text]]], width: int
) -> Iterator[RenderableType]:
    """One block in as many tables as it takes to stay inside `width`, one under another."""
    from rich.cells import cell_len
    from rich.text import Text

    names = [clean(label) for label in labels]
    label_width = min(max(cell_len(text) for text in [*names, "method"]), max(16, width // 4))
    styled = [
        (clean(heading), [t if isinstance(t, Text) else Text(clean(t)) for t in texts]) for heading, texts in columns
    ]
    for part in _parts(styled, width - label_width):
        yield _rich_table(names, label_width, part)
        yield Text("")


def _parts(columns: Sequence[tuple[str, list[Text]]], width: int) -> Iterator[list[tuple[str, list[Text]]]]:
    """The columns in groups that fit into `width`; one that is wider than that is alone."""
    part: list[tuple[str, list[Text]]] = []
    used = 0
    for column in columns:
        needed = _width(column)
        if part and used + needed > width:
            yield part
            part, used = [], 0
        part.append(column)
        used += needed
    if part:
        yield part


def _width(column: tuple[str, list[Text]]) -> int:
    """Characters of a column's longest line, with the space to the next column."""
    from rich.cells import cell_len

    heading, texts = column
    return max(cell_len(line) for text in [heading, *map(str, texts)] for line in text.split("\n")) + 3


def _rich_table(names: Sequence[str], label_width: int, columns: Sequence[tuple[str, list[Text]]]) -> RenderableType:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("method", width=label_width, overflow="fold")
    for heading, _ in columns:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for i, name in enumerate(names):
        table.add_row(Text(name, style="bold" if i == 0 else ""), *(texts[i] for _, texts in columns))
    return table
