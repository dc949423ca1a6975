"""Records as JSON and JSON Lines: what is stored can be read again; the lines of an unfinished stage are chained."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from detoxbench.errors import DetoxbenchError
from detoxbench.files.writing import write_atomic

S = TypeVar("S")

log = logging.getLogger("detoxbench")


def encode(value: msgspec.Struct) -> bytes:
    """`value` as JSON that reads back as what it was.

    Raises DetoxbenchError for what would not: a number that is not finite (JSON has none), half a character, a wrong
    type. What is stored can be read, or it is not stored.
    """
    try:
        data = msgspec.json.encode(value)
        back = msgspec.json.decode(data, type=type(value))
    except UnicodeEncodeError as error:
        raise DetoxbenchError(f"{_name(value)} cannot be stored: half a character in a text ({error})") from None
    except (msgspec.ValidationError, TypeError) as error:
        odd = _not_finite(msgspec.to_builtins(value, str_keys=True)) or str(error)
        raise DetoxbenchError(f"{_name(value)} cannot be stored: {odd}") from None
    if odd := _not_finite(msgspec.to_builtins(value, str_keys=True)):
        raise DetoxbenchError(f"{_name(value)} cannot be stored: {odd}")
    if msgspec.json.decode(msgspec.json.encode(back)) != msgspec.json.decode(data):
        raise DetoxbenchError(f"{_name(value)} cannot be stored: it reads back otherwise")
    return data


def _name(value: msgspec.Struct) -> str:
    key = getattr(value, "id", None) or getattr(value, "record", None) or getattr(value, "run_id", None)
    return type(value).__name__.lstrip("_") + (f" of '{key}'" if isinstance(key, str) else "")


def _not_finite(value: Any, where: str = "") -> str:
    """The first number in `value` that is not finite, with its place; an empty string where there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where.lstrip('.')} is {value}"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next((odd for key, inner in items if (odd := _not_finite(inner, f"{where}.{key}"))), "")


def encode_lines(rows: Sequence[msgspec.Struct]) -> bytes:
    """JSON Lines. Raises as `encode`."""
    return b"".join(encode(row) + b"\n" for row in rows)


def read_lines(path: Path, cls: type[S]) -> list[S]:
    """The rows of a JSON Lines file. Raises DetoxbenchError naming the line that does not fit."""
    return decode_lines(path.read_bytes(), cls, path)


def decode_lines(data: bytes, cls: type[S], path: Path) -> list[S]:
    """`read_lines` of bytes that were read from `path`."""
    decoder = msgspec.json.Decoder(cls)
    rows: list[S] = []
    lines = data.split(b"\n")
    if lines.pop():  # what follows the last newline: nothing, or half a line
        raise DetoxbenchError(f"{path} line {len(lines) + 1} is cut off: delete the run folder and run again")
    for number, line in enumerate(lines, 1):
        try:
            rows.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise DetoxbenchError(f"{path} line {number}: {error}") from None
    return rows


_CHECK = b',"check":"%s"}'


class _Chain:
    """Makes the lines of an unfinished stage: each row gets a `check` that covers it, all rows before it, and the name
    of the stage, so that a row that is damaged, missing, or another stage's shows."""

    def __init__(self, path: Path) -> None:
        self._check = path.parent.name.encode()

    def line(self, row: bytes) -> bytes:
        self._check = hashlib.sha256(self._check + row).hexdigest()[:16].encode()
        return row.removesuffix(b"}") + _CHECK % self._check + b"\n"


def chained_lines(path: Path, rows: Sequence[msgspec.Struct]) -> bytes:
    """What `appending` leaves in `path` after these rows."""
    chain = _Chain(path)
    return b"".join([chain.line(encode(row)) for row in rows])


def unfinished_lines(path: Path, cls: type[S]) -> list[S]:
    """The rows that `appending` has left so far in `path`, up to the first line that is not what was written; a last
    line that a kill cut off is no damage."""
    decoder, chain = msgspec.json.Decoder(cls), _Chain(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    end = len(_CHECK % (b"0" * 16))
    rows: list[S] = []
    for line in lines:
        row = line[:-end] + b"}"
        if chain.line(row) != line + b"\n":
            break
        rows.append(decoder.decode(row))
    if lost := len(lines) - len(rows):
        log.warning("'%s' is damaged at line %d: from there on it is done again (%d lines)", path, len(rows) + 1, lost)
    return rows


@contextmanager
def appending(
    path: Path, cls: type[S], whole: int = 1
) -> Iterator[tuple[list[S], Callable[[Sequence[msgspec.Struct]], None]]]:
    """(rows that an earlier try left, a function that appends rows and has them on disk when it returns).

    Rows from the first damaged line on are dropped, and so are those beyond a multiple of `whole`.
    """
    rows = unfinished_lines(path, cls)
    rows = rows[: len(rows) - len(rows) % whole]
    chain = _Chain(path)
    write_atomic(path, b"".join([chain.line(encode(row)) for row in rows]))  # type: ignore[arg-type]
    with open(path, "ab") as file:

        def append(new: Sequence[msgspec.Struct]) -> None:
            file.write(b"".join([chain.line(data) for data in [encode(row) for row in new]]))
            file.flush()
            os.fsync(file.fileno())

        yield rows, append


def of_process(path: Path, rank: int) -> Path:
    """Where one of several processes appends what belongs into `path`: the first one there, each other one beside."""
    return path.with_name(f"{path.stem}.{rank}{path.suffix}") if rank else path


def gathered(path: Path, cls: type[S]) -> list[S]:
    """The rows in `path`, with those that other processes left beside it (`of_process`), which are moved into it."""
    others = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))
    with appending(path, cls) as (rows, append):
        for other in others:
            new = unfinished_lines(other, cls)
            append(new)  # type: ignore[arg-type]
            rows += new
    for other in others:  # a kill before this leaves rows twice
        other.unlink()
    return rows
