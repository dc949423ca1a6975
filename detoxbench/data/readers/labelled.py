"""Texts that people have labelled toxic or civil: .csv, .tsv, .json, .jsonl, or a .txt with its labels beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detoxbench.data import hub
from detoxbench.data.labels import says_toxic, side, words
from detoxbench.data.readers.files import Row, ending, read_lines, rows
from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean

TEXT = ("text", "comment_text", "comment", "tweet", "sentence", "response", "completion")
LABEL = ("is_toxic", "label", "toxic", "toxicity", "class", "unsafe", "target", "is_safe", "safe", "is_unsafe", "hate",
         "is_hate", "hateful", "hate_speech", "offensive", "harmful", "is_harmful")  # fmt: skip
"""Columns that are looked for, in this order, in any case, where none is named."""
_CONVENTION = {"label", "labels", "target"}
"""Columns that say nothing themselves, in which 1 is toxic by custom (`target` is the toxic share in Jigsaw's data)."""
log = logging.getLogger("detoxbench")


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

    A label is toxic when it equals `toxic` (or one of several, with commas between), or else when it says so ("toxic",
    "hate"). A number (from 0.5 on), true and yes say that a text is what its column is called: toxic in `is_toxic`,
    civil in `is_safe`. Where it says neither they mean toxic in `label`, which is said, and nothing elsewhere
    ("class"), where `toxic` must be given.
    A .txt file holds a text a line, and `labels` (by default the same name with "labels" for "text") a label a line.
    Raises DetoxbenchError naming file, line and column.
    """
    given, found = rows(file), list[Labelled]()
    if not str(file).startswith(hub.PREFIX) and ending(file) == ".txt":
        of_line = _labels_beside(Path(file), labels)
        if {row.number for row in given} != of_line.keys():
            odd = min({row.number for row in given} ^ of_line.keys())
            raise DetoxbenchError(f"{file} and its labels do not go together: line {odd} is in one of them only")
        names = [Path(labels).stem if labels else "", Path(file).stem]  # "offensive_test_text": what a 1 says
        name = next((name for name in names if side(name)), "label")
        values = [of_line[row.number].value for row in given]
        verdicts = _verdicts(values, [row.place for row in given], name, toxic)
        found = [Labelled(row.value, "", verdict) for row, verdict in zip(given, verdicts, strict=True)]
        return found[:limit]
    if labels is not None:
        raise UsageError("a file of labels belongs to a .txt file: other files have a column of labels (--label)")
    fields = [row.value if isinstance(row.value, Mapping) else {} for row in given]
    if text is None:
        _require_one(given[0], TEXT, "text", lambda name: [value.get(name) for value in fields])
    if label is None and toxic is None:
        _require_one(given[0], LABEL, "label", lambda name: _certain([value.get(name) for value in fields], name))
    text, label = _column(given[0], text, TEXT, "text"), _column(given[0], label, LABEL, "label")
    for row, value in zip(given, fields, strict=True):
        if not isinstance(value.get(text), str):
            raise DetoxbenchError(f"{row.place}: no text in '{text}'")
    verdicts = _verdicts([value.get(label) for value in fields], [row.place for row in given], label, toxic)
    for value, verdict in zip(fields, verdicts, strict=True):
        asked = value.get(prompt)
        found.append(Labelled(value[text], asked if isinstance(asked, str) else "", verdict))
    return found[:limit]


def _labels_beside(file: Path, labels: str | Path | None) -> dict[int, Row]:
    guess = file.with_name(file.name.replace("text", "labels"))
    if labels is None and (guess == file or not guess.is_file()):
        raise UsageError(f"'{file}' holds texts only: name the file of their labels by --labels FILE")
    return {row.number: row for row in read_lines(labels or guess)}


def _require_one(row: Row, known: Iterable[str], what: str, read: Callable[[str], list[Any] | None]) -> None:
    """Raises UsageError where two known columns give different texts or labels."""
    there = list(row.value) if isinstance(row.value, Mapping) else []
    columns = [name for name in there if str(name).casefold() in known]
    given = {name: values for name in columns if (values := read(name)) and any(v is not None for v in values)}
    first = next(iter(given), None)
    for name, values in given.items():
        if first is not None and values != given[first]:
            raise UsageError(f"{row.place}: '{first}' and '{name}' do not say the same: name one by --{what}")


def _certain(values: Sequence[Any], column: str) -> list[bool] | None:
    """Which labels say toxic; None where one does not."""
    named = side(column) or ("toxic" if words(column) in _CONVENTION else None)
    verdicts = [says_toxic(value, named) for value in values]
    return [verdict is True for verdict in verdicts] if None not in verdicts else None


def _column(row: Row, given: str | None, known: Iterable[str], what: str) -> str:
    there = list(row.value) if isinstance(row.value, Mapping) else []
    folded = {str(name).casefold(): name for name in reversed(there)}
    name = given or next((folded[name] for name in known if name in folded), None)
    if name not in there:
        wanted = f"no column '{given}'" if given else f"none of the columns {', '.join(known)}"
        raise UsageError(
            f"{row.place}: {wanted}; there are {', '.join(map(str, there)) or 'none'}: name one by --{what}"
        )
    return str(name)


def _verdicts(values: Sequence[Any], places: Sequence[str], column: str, toxic: str | None) -> list[bool]:
    """Which labels say toxic. Raises DetoxbenchError, listing the labels, where one does not say, and UsageError where
    none is `toxic`."""
    there = list(dict.fromkeys(str(value) for value in values))
    listed = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    if toxic is not None:
        wanted = {toxic} if toxic in there else set(toxic.split(","))
        if missing := sorted(wanted - set(there)):
            raise UsageError(f"no label '{missing[0]}' in '{column}'{did_you_mean(missing[0], there)}; it has {listed}")
        return [str(value) in wanted for value in values]
    named = side(column)
    if named is None and words(column) in _CONVENTION:
        named = "toxic"
        if not any(side(value) for value in there):
            log.warning("'%s' does not say what its 1 means: taken for toxic (--toxic 0 turns it round)", column)
    verdicts = []
    for value, place in zip(values, places, strict=True):
        verdict = says_toxic(value, named)
        if verdict is None:
            raise DetoxbenchError(
                f"{place}: is {value!r} in '{column}' toxic? Say which label is by --toxic LABEL (labels: {listed})"
            )
        verdicts.append(verdict)
    return verdicts
