"""Files to rows, and the checks of a row: every complaint is one line with file, line and field."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from detoxbench.data import hub
from detoxbench.errors import DetoxbenchError

R = TypeVar("R")
Text = Annotated[str, msgspec.Meta(min_length=1)]
Texts = Annotated[list[Text], msgspec.Meta(min_length=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Row(NamedTuple):
    """One record before it is checked: its number (line or list position, from 1), where it stands, what it holds."""

    number: int
    place: str
    value: Any


# ------------------------------------------------------------------------------------------------------- files to rows


def rows(path: str | Path) -> list[Row]:
    """The rows of a file, by its ending: .json, .jsonl, .csv, .tsv or .txt; or of a hub data set (hub:OWNER/NAME)."""
    if str(path).startswith(hub.PREFIX):
        found = hub.load(str(path))
        return filled(path, [Row(n, f"{path} row {n}", value) for n, value in enumerate(found, 1)])
    readers: dict[str, Callable[[str | Path], list[Row]]] = {
        ".json": read_json, ".jsonl": read_jsonl, ".csv": read_table, ".tsv": read_table,
        ".txt": read_lines,
    }  # fmt: skip
    ending = Path(path).suffix.lower()
    if ending not in readers:
        raise DetoxbenchError(f"'{path}' cannot be read: its name must end in {', '.join(readers)}")
    return readers[ending](path)


def read_json(path: str | Path) -> list[Row]:
    """The items of a file that is one JSON list."""
    value = decode(content(path), path)
    if not isinstance(value, list):
        raise DetoxbenchError(f"{path} must be a JSON list of records, not {_kind(value)}")
    return filled(path, [Row(n, f"{path} record {n}", item) for n, item in enumerate(value, 1)])


def read_jsonl(path: str | Path) -> list[Row]:
    """The lines of a JSON Lines file; blank lines are skipped."""
    # Only a newline ends a line: JSON strings may hold U+2028 and its like, at which splitlines() would cut.
    lines = [(n, line) for n, line in enumerate(content(path).split("\n"), 1) if line.strip()]
    return filled(path, [Row(n, f"{path} line {n}", decode(line, path, n)) for n, line in lines])


def read_table(path: str | Path) -> list[Row]:
    """The rows of a .csv or .tsv file with a header, as dicts of text; a missing cell at the end of a row is empty."""
    delimiter = "\t" if str(path).lower().endswith(".tsv") else ","
    # Strict, and with quotes in .tsv too: ParaDetox quotes cells that hold line breaks, and a quote that is never
    # closed would otherwise swallow the rest of the file.
    reader = csv.reader(io.StringIO(content(path), newline=""), delimiter=delimiter, strict=True)
    found: list[Row] = []
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            place = f"{path} line {start}"
            if header is None:
                header = cells
            elif len(cells) > len(header):
                raise DetoxbenchError(f"{place} has {len(cells)} cells, the header only {len(header)}")
            elif cells:
                cells += [""] * (len(header) - len(cells))
                found.append(Row(start, place, dict(zip(header, cells, strict=True))))
            start = reader.line_num + 1
    except csv.Error as error:
        reason = "a quoted cell is never closed" if "unexpected end" in str(error) else str(error)
        raise DetoxbenchError(f"{path} line {start}: {reason}") from None
    return filled(path, found)


def read_lines(path: str | Path) -> list[Row]:
    """The lines of a text file without the blanks around them; empty lines are skipped."""
    lines = [(n, line.strip()) for n, line in enumerate(content(path).split("\n"), 1)]
    return filled(path, [Row(n, f"{path} line {n}", line) for n, line in lines if line])


def read_text(path: str | Path) -> str:
    """A file of plain text that is not empty."""
    text = content(path)
    if not text.strip():
        raise DetoxbenchError(f"{path} holds no text")
    return text


def content(path: str | Path) -> str:
    """All of a UTF-8 file, as text."""
    try:
        data = Path(path).expanduser().read_bytes()
    except FileNotFoundError:
        raise DetoxbenchError(f"no such file: {path}") from None
    except OSError as error:
        raise DetoxbenchError(f"'{path}' cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DetoxbenchError(f"{path} line {line} is not UTF-8: convert the file (iconv -t UTF-8)") from None


def decode(text: str, path: str | Path, line: int | None = None) -> Any:
    """`text` as strict JSON: no NaN, no half of a surrogate pair. It is the given line of the file, or all of it."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        reason, _, at = str(error).removeprefix("JSON is malformed: ").partition(" (byte ")
        if "truncated" in reason:
            what, offset = "is cut off in the middle of its JSON", len(text.rstrip())
        else:
            what, offset = f"is not valid JSON: {reason}", int(at.rstrip(")") or 0)
        read = text.encode()[:offset].count(b"\n") + 1
        raise DetoxbenchError(f"{path} line {line or read} {what}") from None


def filled(path: str | Path, found: list[Row]) -> list[Row]:
    """`found`, which must not be empty."""
    if not found:
        raise DetoxbenchError(f"{path} holds no records")
    return found


# ----------------------------------------------------------------------------------------------------- rows to records


def embedded(values: Iterable[Any], what: str) -> list[Row]:
    """Rows of the embedded data."""
    return [Row(n, f"embedded {what} {n}", value) for n, value in enumerate(values, 1)]


def convert(row: Row, cls: type[R]) -> R:
    """The row's value as a `cls`, every field checked."""
    try:
        return msgspec.convert(row.value, cls)
    except msgspec.ValidationError as error:
        # "Object missing required field `x` - at `$.y`" -> "missing field 'x', in 'y'"
        reason = str(error).replace("`", "'").replace("Object missing required", "missing")
        reason = re.sub(r" - at '\$\.?(.*)'$", r", in '\1'", reason)
        raise DetoxbenchError(f"{row.place}: {reason}") from None


def field(row: Row, *names: str) -> str:
    """The text under the first of `names` that the row has."""
    if not isinstance(row.value, Mapping):
        raise DetoxbenchError(f"{row.place}: expected an object, got {_kind(row.value)}")
    wanted = f"'{names[0]}'" + (f" (or {', '.join(map(repr, names[1:]))})" if names[1:] else "")
    for name in names:
        if name in row.value:
            value = row.value[name]
            if not isinstance(value, str) or not value:
                raise DetoxbenchError(f"{row.place}: expected text that is not empty, got {_kind(value)}, in '{name}'")
            return value
    raise DetoxbenchError(f"{row.place}: missing field {wanted}")


def _kind(value: Any) -> str:
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object", bool: "true or false"}
    return "nothing" if value is None or value == "" else names[type(value)]


def id_of(given: int | str | None, row: Row) -> str:
    """The record's own id, or its number."""
    return str(row.number) if given is None else str(given)


def unique(made: list[tuple[Row, R]], key: Callable[[R], Hashable]) -> list[R]:
    """The records, of which no two have the same key."""
    places: dict[Hashable, str] = {}
    for row, record in made:
        other = places.setdefault(key(record), row.place)
        if other != row.place:
            raise DetoxbenchError(f"{row.place}: id {key(record)!r} is there twice, first at {other}")
    return [record for _, record in made]
