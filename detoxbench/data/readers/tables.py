"""Delimited text to records, where a quote may belong to the text or may begin a quoted cell."""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from detoxbench.errors import DetoxbenchError

ENOUGH_LINES = 3
"""So many lines that all have the right number of cells are records, and not one quoted cell with line breaks."""


class Record(NamedTuple):
    """The cells of one record and the line (from 1) that it begins on."""

    line: int
    cells: list[str]


def read(text: str, path: str, delimiters: str) -> list[tuple[int, dict[str, str]]]:
    """The records below the header, with the lines that they begin on; missing cells at the end of one are empty.

    The delimiter is the first of `delimiters` that the header has. Rows with fewer cells than the header are warned of.
    Raises DetoxbenchError naming file and line.
    """
    lines = [f"{line}\n" for line in text.split("\n")]
    delimiter = next((d for d in delimiters if d in lines[0]), delimiters[0])
    records = _records(lines, path, delimiter)
    header = [name.strip() for name in next(records, Record(1, [])).cells]
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise DetoxbenchError(f"{path} has two columns '{twice[0]}': rename or remove one")
    table, short = [], list[int]()
    for line, cells in records:
        if len(cells) > len(header):
            raise DetoxbenchError(f"{path} line {line} has {len(cells)} cells, the header only {len(header)}")
        if len(cells) < len(header):
            short.append(line)
        filled = cells + [""] * (len(header) - len(cells))
        table.append((line, dict(zip(header, filled, strict=True))))
    if short:
        warnings.warn(
            f"{path}: {len(short)} of {len(table)} rows have fewer cells than the header, the first on line "
            f"{short[0]}: a text with a line break needs quotes around it",
            stacklevel=2,
        )
    return table


def _is_spaced(header: str, delimiter: str) -> bool:
    """Whether people wrote a blank behind each delimiter, which would hide the quote that begins a cell."""
    names = _unquoted(header, delimiter)[1:]
    return delimiter != "\t" and bool(names) and all(name.startswith(" ") for name in names)


def _records(lines: Sequence[str], path: str, delimiter: str) -> Iterator[Record]:
    """All records, the header first; empty lines are none.

    A quoted cell may hold line breaks (ParaDetox). But published files also hold texts that begin with a quote of their
    own, which would swallow the records up to the next quote. They are told apart by the lines: where no quote in the
    file has to protect anything, and every line of such a record has as many cells as the header, they are records.
    """
    width = len(_unquoted(lines[0], delimiter))
    spaced = _is_spaced(lines[0], delimiter)
    quotes_protect = any(_protects(line, delimiter, width, spaced) for line in lines)
    start = 0
    while start < len(lines):
        cells, count, reason = _quoted(lines, start, delimiter, spaced)
        inside = [_unquoted(line, delimiter) for line in lines[start : start + count] if line.strip()]
        may_be_records = not quotes_protect and width > 1 and all(len(line) == width for line in inside)
        if reason and not may_be_records:
            raise DetoxbenchError(f"{path} line {start + 1}: {reason}")
        if count > 1 and may_be_records and delimiter != "\t" and count < ENOUGH_LINES:
            raise DetoxbenchError(
                f"{path} line {start + 1}: is this one quoted cell of {count} lines, or {count} records whose texts "
                'hold a quote? Double a quote that belongs to a text, and put the text in quotes ("" inside "...")'
            )
        if may_be_records and (reason or count > 1):
            cells, count = inside[0], 1
            if any(cell.startswith('"') and cell.endswith('"') and '\\"' in cell for cell in cells):
                raise DetoxbenchError(
                    f'{path} line {start + 1}: a quote inside a quoted cell is doubled (""), not written as \\"'
                )
        if any(cells) or len(cells) > 1:
            yield Record(start + 1, cells)
        start += count


def _quoted(lines: Sequence[str], start: int, delimiter: str, spaced: bool) -> tuple[list[str], int, str]:
    """The record that begins on a line, read with quotes; how many lines it takes; and what is wrong with it, or ""."""
    limit = csv.field_size_limit(sys.maxsize)  # texts may be longer than the 131,072 characters of the default
    rest = (lines[i] for i in range(start, len(lines)))
    reader = csv.reader(rest, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    try:
        return next(reader), reader.line_num, ""
    except csv.Error as error:
        return [], 1, "a quoted cell is never closed" if "unexpected end" in str(error) else str(error)
    finally:
        csv.field_size_limit(limit)


def _protects(line: str, delimiter: str, width: int, spaced: bool) -> bool:
    """Whether quotes do their work on a line: they keep a delimiter, or a quote, inside a cell."""
    if '"' not in line:
        return False
    cells, _, reason = _quoted([line], 0, delimiter, spaced)
    doubled = ['"' + cell.replace('"', '""') + '"' for cell in cells if '"' in cell]
    splits = len(_unquoted(line, delimiter)) > width
    return not reason and len(cells) == width and (splits or any(cell in line for cell in doubled))


def _unquoted(line: str, delimiter: str) -> list[str]:
    return line.rstrip("\r\n").split(delimiter)
