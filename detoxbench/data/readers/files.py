"""Files to rows: every complaint is one line with file and line."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from detoxbench.data import hub
from detoxbench.data.readers import tables
from detoxbench.errors import DetoxbenchError


class Row(NamedTuple):
    """One record before it is checked: its number (line or list position, from 1), where it stands, what it holds."""

    number: int
    place: str
    value: Any

    @property
    def file(self) -> str:
        """`place` without the line or record in it."""
        return self.place.rsplit(" ", 2)[0]


def rows(path: str | Path) -> list[Row]:
    """The rows of a file, by its ending (one of `ENDINGS`); or of a hub data set (hub:OWNER/NAME)."""
    if str(path).startswith(hub.PREFIX):
        values = hub.load(str(path))
        return filled(path, [Row(n, f"{path} row {n}", value) for n, value in enumerate(values, 1)])
    return _READERS[ending(path)](path)


def ending(path: str | Path) -> str:
    """The ending that says what a file holds, one of `ENDINGS`: ".jsonl" of TEXTS.jsonl.gz. Raises DetoxbenchError."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in _UNPACK:
        suffixes.pop()
    if suffixes and suffixes[-1] in _READERS:
        return suffixes[-1]
    remedy = _CONVERT.get(suffixes[-1] if suffixes else "", "")
    raise DetoxbenchError(f"'{path}' cannot be read: its name must end in {', '.join(ENDINGS)} (or .gz){remedy}")


def read_json(path: str | Path) -> list[Row]:
    """The items of a file that is one JSON list, or an object that holds nothing but one; or, as many data sets name
    their files so, JSON Lines."""
    text = content(path)
    if is_json_lines(text):
        return read_jsonl(path)
    value = decode(text, path)
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        (value,) = value.values()
    if isinstance(value, dict) and value and "\n" not in text.strip():  # JSON Lines of one line
        value = [value]
    if not isinstance(value, list):
        raise DetoxbenchError(f"{path} must be a JSON list of records, not {kind(value)}")
    return filled(path, [Row(n, f"{path} record {n}", item) for n, item in enumerate(value, 1)])


def is_json_lines(text: str) -> bool:
    """Whether a file that is called .json holds an object a line."""
    first, _, rest = text.lstrip().partition("\n")
    return first.startswith("{") and first.rstrip().endswith("}") and rest.lstrip().startswith("{")


def read_jsonl(path: str | Path) -> list[Row]:
    """The lines of a JSON Lines file; blank lines are skipped."""
    # Only a newline ends a line: JSON strings may hold U+2028 and its like, at which splitlines() would cut.
    lines = [(n, line) for n, line in enumerate(content(path).split("\n"), 1) if line.strip()]
    return filled(path, [Row(n, f"{path} line {n}", decode(line, path, n)) for n, line in lines])


def read_table(path: str | Path) -> list[Row]:
    """The rows of a .csv file (commas, or semicolons, tabs or bars where its header has no comma) or .tsv file with a
    header, as dicts of text."""
    delimiters = "\t,;|" if ending(path) == ".tsv" else ",;\t|"
    records = tables.read(content(path), str(path), delimiters)
    return filled(path, [Row(line, f"{path} line {line}", cells) for line, cells in records])


def read_parquet(path: str | Path) -> list[Row]:
    """The rows of a Parquet file, as dicts; classes by the names that a file of the hub gives them."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(Path(path).expanduser())
        values = hub.named(table.to_pylist(), _classes(table.schema.metadata))
    except FileNotFoundError:
        raise DetoxbenchError(f"no such file: {path}") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise DetoxbenchError(f"'{path}' cannot be read: {str(error).splitlines()[0]}") from None
    return filled(path, [Row(n, f"{path} row {n}", value) for n, value in enumerate(values, 1)])


def read_texts(path: str | Path) -> list[Row]:
    """The lines of a .txt, a text each. Raises DetoxbenchError where the file is a table or JSON under a wrong name."""
    lines = read_lines(path)
    if name := _better_ending(content(path), [row.value for row in lines]):
        raise DetoxbenchError(f"{path} does not hold a text a line, it looks like {name}: rename the file so")
    return lines


_HEADER = frozenset({
    "prompt", "text", "goal", "behavior", "question", "instruction", "request", "query", "forbidden_prompt", "sentence",
    "comment", "comment_text", "tweet", "toxic", "label", "id",
})  # fmt: skip
"""Names that the header of a table has, in the data sets of this field."""


def _better_ending(text: str, lines: Sequence[str]) -> str:
    """The ending that a .txt file should have, or "" where its lines are texts."""
    if _is_json(text):
        return ".json"
    if all(line[0] in "{[" and _is_json(line) for line in lines):
        return ".jsonl"
    first = lines[0].lower()
    for delimiter, name in (("\t", ".tsv"), (",", ".csv"), (";", ".csv"), ("|", ".csv")):
        cells = [cell.strip(' "') for cell in first.split(delimiter)]
        names = all(len(cell.split()) <= 2 for cell in cells) and not _HEADER.isdisjoint(cells)
        if len(cells) > 1 and names and 2 * sum(delimiter in line for line in lines) > len(lines):
            return name
    return ".csv" if first.strip('"') in _HEADER else ""


def _is_json(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict | list)
    except (msgspec.DecodeError, RecursionError):
        return False


def _classes(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column -> names of its classes, as the library `datasets` writes them into Parquet files; else {}."""
    try:
        features = msgspec.json.decode((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: list(feature["names"]) for name, feature in features.items() if feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, AttributeError, msgspec.DecodeError):
        return {}


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
    """All of a UTF-8 file, as text, unpacked where it is packed."""
    unpack = _UNPACK.get(Path(path).suffix.lower(), bytes)
    try:
        data = unpack(Path(path).expanduser().read_bytes())
    except FileNotFoundError:
        raise DetoxbenchError(f"no such file: {path}") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DetoxbenchError(f"'{path}' cannot be read: {reason}") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise DetoxbenchError(f"{path} line 1 is not UTF-8: convert the file (iconv -f UTF-16 -t UTF-8)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DetoxbenchError(f"{path} line {line} is not UTF-8: convert the file (iconv -t UTF-8)") from None
    return text if "\n" in text else text.replace("\r", "\n")  # old spreadsheets end their lines so


def decode(text: str, path: str | Path, line: int | None = None) -> Any:
    """`text` as strict JSON: no NaN, no half of a surrogate pair. It is line `line` of the file, or all of it."""
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


def filled(path: str | Path, raw_rows: list[Row]) -> list[Row]:
    """`raw_rows`, which must not be empty. Raises DetoxbenchError."""
    if not raw_rows:
        raise DetoxbenchError(f"{path} holds no records")
    return raw_rows


def kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "nothing"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object", bool: "true or false"}
    return names.get(type(value), type(value).__name__)


_READERS: dict[str, Callable[[str | Path], list[Row]]] = {
    ".json": read_json, ".jsonl": read_jsonl, ".ndjson": read_jsonl, ".csv": read_table, ".tsv": read_table,
    ".txt": read_texts, ".parquet": read_parquet,
}  # fmt: skip
ENDINGS = tuple(_READERS)
_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress,
}  # fmt: skip
_CONVERT = {
    ".zst": "; unpack it first: zstd -d FILE",
    ".zip": "; unpack it first: unzip FILE",
    ".xlsx": "; save the sheet as .csv",
    ".xls": "; save the sheet as .csv",
    ".arrow": "; save it as .parquet",
    ".feather": "; save it as .parquet",
    ".pkl": "; a pickle can run code and is not read: save it as .jsonl",
    ".pickle": "; a pickle can run code and is not read: save it as .jsonl",
}
