"""Texts that people have labelled toxic or civil: .csv, .tsv, .json, .jsonl, or a .txt with its labels beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detoxbench.data.readers.files import Row, read_lines, rows
from detoxbench.errors import DetoxbenchError, UsageError

TEXT = ("text", "comment_text", "comment", "tweet", "sentence", "response", "completion")
LABEL = ("is_toxic", "label", "toxic", "toxicity", "class", "unsafe", "target")
"""Columns that are looked for, in this order, where none is named."""
_TOXIC = {"true", "yes", "toxic", "hate", "hateful", "unsafe", "offensive", "abusive", "harmful"}
_CIVIL = {"false", "no", "neutral", "safe", "normal", "clean", "civil"}
_CIVIL |= {f"{no}{sep}{word}" for no in ("not", "non") for sep in ("", " ") for word in _TOXIC}


class Labelled(NamedTuple):
    """A text, what it answered (or ""), and whether people call it toxic."""

    text: str
    prompt: str
    toxic: bool


def labelled(
    file: str | Path,
    *,
    text: str | None = None,
    label: str | None = None,
    prompt: str = "prompt",
    toxic: str | None = None,
    labels: str | Path | None = None,
    limit: int | None = None,
) -> list[Labelled]:
    """Texts with their labels; `text` and `label` name columns (default: the first of `TEXT` and `LABEL` there is).

    A label is toxic when it equals `toxic`, or else when it says so (1, true, toxic, hate, ...; a number from 0.5 on).
    A .txt file holds a text a line, and `labels` (by default the same name with "labels" for "text") a label a line.
    Raises DetoxbenchError naming file, line and column.
    """
    given, found = rows(file), list[Labelled]()
    if Path(file).suffix.lower() == ".txt":
        of_line = _labels_beside(Path(file), labels)
        if {row.number for row in given} != of_line.keys():
            odd = min({row.number for row in given} ^ of_line.keys())
            raise DetoxbenchError(f"{file} and its labels do not go together: line {odd} is in one of them only")
        for row in given:
            found.append(Labelled(row.value, "", _is_toxic(of_line[row.number].value, toxic, row.place, "label")))
        return found[:limit]
    if labels is not None:
        raise UsageError("a file of labels belongs to a .txt file: other files have a column of labels (--label)")
    text, label = _column(given[0], text, TEXT, "text"), _column(given[0], label, LABEL, "label")
    for row in given:
        value = row.value if isinstance(row.value, Mapping) else {}
        if not isinstance(value.get(text), str):
            raise DetoxbenchError(f"{row.place}: no text in '{text}'")
        asked = value.get(prompt)
        verdict = _is_toxic(value.get(label), toxic, row.place, label)
        found.append(Labelled(value[text], asked if isinstance(asked, str) else "", verdict))
    return found[:limit]


def _labels_beside(file: Path, labels: str | Path | None) -> dict[int, Row]:
    guess = file.with_name(file.name.replace("text", "labels"))
    if labels is None and (guess == file or not guess.is_file()):
        raise UsageError(f"'{file}' holds texts only: name the file of their labels by --labels FILE")
    return {row.number: row for row in read_lines(labels or guess)}


def _column(row: Row, given: str | None, known: Iterable[str], what: str) -> str:
    there = list(row.value) if isinstance(row.value, Mapping) else []
    name = given or next((name for name in known if name in there), None)
    if name not in there:
        wanted = f"no column '{given}'" if given else f"none of the columns {', '.join(known)}"
        raise UsageError(
            f"{row.place}: {wanted}; there are {', '.join(map(str, there)) or 'none'}: name one by --{what}"
        )
    return str(name)


def _is_toxic(value: Any, toxic: str | None, place: str, column: str) -> bool:
    if toxic is not None:
        return str(value) == toxic
    try:
        number = float(value)
    except (TypeError, ValueError):
        said = re.sub(r"[\s_-]+", " ", str(value)).strip().lower()
        if said in _TOXIC or said in _CIVIL:
            return said in _TOXIC
        number = -1.0
    if not 0 <= number <= 1:
        raise DetoxbenchError(f"{place}: is {value!r} in '{column}' toxic? Say which label is by --toxic LABEL")
    return number >= 0.5
