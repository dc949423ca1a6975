"""Rows to records: which column holds what, and the checks of a row; every complaint names file, line and field."""

from __future__ import annotations

import re
import statistics
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any, TypeVar

import msgspec

from detoxbench.data.labels import words
from detoxbench.data.readers.files import Row, kind
from detoxbench.errors import DetoxbenchError

R = TypeVar("R")
NAMING = frozenset({"behavior"})
"""Columns that may only name what another column says in full, whatever their order in the file."""
Text = Annotated[str, msgspec.Meta(min_length=1)]
Texts = Annotated[list[Text], msgspec.Meta(min_length=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
LABEL_WORDS = 4
"""A column of at most so many words (median), beside a column of twice as many, only names what that one says."""


def embedded(values: Iterable[Any], what: str) -> list[Row]:
    """Rows of the embedded data."""
    return [Row(n, f"embedded {what} {n}", value) for n, value in enumerate(values, 1)]


def convert(row: Row, cls: type[R]) -> R:
    """The row's value as a `cls`, every field checked. Columns fit in any case: "Prompt", "isSafe", "is_safe"."""
    value = row.value
    if isinstance(value, Mapping) and isinstance(cls, type) and issubclass(cls, msgspec.Struct):
        alike = _columns_of(cls.__struct_encode_fields__, tuple(value))
        for name, columns in alike.items():
            if len(columns) > 1:
                raise DetoxbenchError(f"{row.place}: {_quoted(columns)} are one name, '{name}': rename or remove one")
        names = {columns[0]: name for name, columns in alike.items()}
        value = {names.get(key, key): inner for key, inner in value.items()}
    table = _holds_only_text(value)  # from a .csv file, which has no numbers and no null
    if table:
        value = {key: inner for key, inner in value.items() if inner}
    try:
        return msgspec.convert(value, cls, strict=not table)
    except msgspec.ValidationError as error:
        # "Object missing required field `x` - at `$.y`" -> "missing field 'x', in 'y'"
        reason = str(error).replace("`", "'").replace("Object missing required", "missing")
        reason = re.sub(r" - at '\$\.?(.*)'$", r", in '\1'", reason)
        raise DetoxbenchError(f"{row.place}: {reason}") from None


def _holds_only_text(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(inner, str) for inner in value.values())


@lru_cache(maxsize=256)
def _columns_of(fields: tuple[str, ...], present: tuple[str, ...]) -> dict[str, list[str]]:
    """Field -> the columns of that name, however they are written; fields without one are left out."""
    return {name: columns for name in fields if (columns := _alike(present, name))}


def _alike(columns: Iterable[str], name: str) -> list[str]:
    return [column for column in columns if _words(column) == _words(name)]


_words = lru_cache(maxsize=4096)(words)


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))


def optional(row: Row, *names: str) -> Any:
    """The value under the first of `names`, in any case, that the row has and fills; None where there is none."""
    fields = row.value if isinstance(row.value, Mapping) else {}
    for name in names:
        for column in _alike(fields, name):
            if fields[column] not in (None, "", []):
                return fields[column]
    return None


def optional_text(row: Row, *names: str) -> str | None:
    """As `optional`, of what must be text. Raises DetoxbenchError where it is not, so that nothing is left out."""
    value = optional(row, *names)
    if value is not None and not isinstance(value, str):
        raise DetoxbenchError(f"{row.place}: expected text, got {kind(value)}, in {' or '.join(map(repr, names))}")
    return value


def column(rows: Sequence[Row], *names: str) -> Callable[[Row], str]:
    """A function that reads the text that each of these rows has under one of `names`, in any case.

    Where rows fill several of these columns with different texts, columns that only name what an earlier one says (a
    "Behavior" of two words beside a "Goal" of twelve) are left out, with a warning. Raises DetoxbenchError, naming the
    columns, where more than one is left, and where a column holds lists or objects written as text; the function
    returned raises it for a row without a text.
    """
    columns = _without_names(rows, _filled(rows, names))
    for row in rows:
        rivals = [name for name in columns if _has(row, name)]
        if len({row.value[name] for name in rivals}) > 1:
            raise DetoxbenchError(
                f"{row.place}: {_quoted(rivals)} may both be what is asked for: rename or remove the one that is not"
            )
    return partial(_text_of, columns=columns, names=names)


def _without_names(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """`columns` without those that only name what another column says. Raises DetoxbenchError as `refuse_written`."""
    texts = {name: [str(row.value[name]) for row in rows if _has(row, name)] for name in columns}
    length = {name: statistics.median(len(text.split()) for text in texts[name]) for name in columns}
    left = list[str]()
    for name in sorted(columns, key=lambda name: _words(name) in NAMING):
        longer = [other for other in left if length[name] <= LABEL_WORDS and 2 * length[name] <= length[other]]
        described = [other for other in longer if any(_has(row, name) and _has(row, other) for row in rows)]
        if described:
            warnings.warn(
                f"{rows[0].file}: '{name}' only names what '{described[0]}' says: it is not asked", stacklevel=3
            )
        else:
            left.append(name)
            refuse_written(texts[name], name, rows)
    return left


def _text_of(row: Row, columns: Sequence[str], names: Sequence[str]) -> str:
    """The row's text in the first of `columns` that it fills. Raises DetoxbenchError, saying what is wrong with it."""
    if not isinstance(row.value, Mapping):
        raise DetoxbenchError(f"{row.place}: expected an object, got {kind(row.value)}")
    filled = [name for name in columns if _has(row, name)]
    alike = [name for wanted in names for name in _alike(row.value, wanted)]
    for name in (*filled, *alike):
        value = row.value[name]
        if not isinstance(value, str) or not value.strip():
            raise DetoxbenchError(f"{row.place}: expected text that is not empty, got {kind(value)}, in '{name}'")
        return value
    alternatives = f" (or {', '.join(map(repr, names[1:]))})" if names[1:] else ""
    listed = ", ".join(map(str, row.value)) or "none"
    raise DetoxbenchError(f"{row.place}: missing field '{names[0]}'{alternatives}; there are {listed}")


_WRITTEN = re.compile(r"""\s*(?:\[\s*(?:['"{\[].*)?\]|\{\s*['"][^'"]*['"]\s*:.*\}|array\(.*\))\s*""", re.DOTALL)


def refuse_written(texts: Sequence[str], name: str, rows: Sequence[Row]) -> None:
    """Raises DetoxbenchError where all of a column's texts are lists or objects written as text, as pandas writes them
    into a .csv file."""
    if texts and all(_WRITTEN.fullmatch(text) for text in texts):
        raise DetoxbenchError(
            f"{rows[0].place}: '{name}' holds lists or objects written as text: save the data as .jsonl or .parquet"
        )


def _filled(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Columns of these names, in their order, that hold a text in any row."""
    columns = dict.fromkeys(key for row in rows if isinstance(row.value, Mapping) for key in row.value)
    alike = [column for name in names for column in _alike(columns, name)]
    return [column for column in alike if any(_has(row, column) for row in rows)]


def _has(row: Row, name: str) -> bool:
    value = row.value.get(name) if isinstance(row.value, Mapping) else None
    return isinstance(value, str) and bool(value.strip())


def id_of(own_id: int | str | None, row: Row) -> str:
    """The record's own id, or its number."""
    return str(row.number) if own_id is None else str(own_id)


def unique(records: list[tuple[Row, R]], key: Callable[[R], Hashable]) -> list[R]:
    """The records, of which no two have the same key."""
    places: dict[Hashable, str] = {}
    for row, record in records:
        other = places.setdefault(key(record), row.place)
        if other != row.place:
            raise DetoxbenchError(f"{row.place}: id {key(record)!r} is there twice, first at {other}")
    return [record for _, record in records]
