"""Texts that people have labelled toxic or civil: .csv, .tsv, .json, .jsonl, or a .txt with its labels beside it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detoxbench.data import hub
from detoxbench.data.examples import LabelledText
from detoxbench.data.labels import says_toxic, side, words
from detoxbench.data.readers.files import Row, ending, read_lines, rows
from detoxbench.data.readers.fit import holds_pairs, parse_pairs
from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean

TEXT = ("text", "comment_text", "comment", "tweet", "sentence", "response", "completion")
LABEL = ("is_toxic", "label", "toxic", "toxicity", "class", "unsafe", "target", "is_safe", "safe", "is_unsafe", "hate",
         "is_hate", "hateful", "hate_speech", "offensive", "harmful", "is_harmful")  # fmt: skip
"""Columns that are looked for, in this order, in any case, where none is named."""
_CONVENTION = {"label", "labels", "target"}
"""Columns whose names say nothing, in which 1 is toxic by custom (`target` is the toxic share in Jigsaw's data)."""
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
    civil in `is_safe`. Where the column's name says neither, they mean toxic in `label`, with a warning, and nothing
    elsewhere ("class"), where `toxic` must be given.
    A .txt file holds a text a line, and `labels` (by default the same name with "labels" for "text") a label a line.
    Raises DetoxbenchError naming file, line and column.
    """
    choice = _Choice(text, label, prompt, toxic, labels)
    return _labelled(file, rows(file), choice)[:limit]


def labelled_texts(path: str | Path) -> list[LabelledText]:
    """What `labelled` reads where nothing is named: Jigsaw's and Civil Comments' tables, TweetEval's lines; or pairs of
    a toxic and a civil text (ParaDetox), each of which is two labelled ones. Empty texts are left out and warned of.

    Raises DetoxbenchError naming file, line and column.
    """
    raw_rows = rows(path)
    if holds_pairs(raw_rows):
        return [LabelledText(text, not side) for pair in parse_pairs(raw_rows) for side, text in enumerate(pair)]
    read = [LabelledText(row.text, row.toxic) for row in _labelled(path, raw_rows, _Choice(options=False))]
    texts = [row for row in read if row.text.strip()]
    if len(texts) < len(read):
        warnings.warn(f"{path}: {len(read) - len(texts)} of {len(read)} texts are empty: left out", stacklevel=2)
    return texts


class _Choice(NamedTuple):
    """What the caller of `labelled` names; `options`: the remedies are its command line's (--text, --label, ...)."""

    text: str | None = None
    label: str | None = None
    prompt: str = "prompt"
    toxic: str | None = None
    labels: str | Path | None = None
    options: bool = True

    def remedy(self, option: str, otherwise: str) -> str:
        """What the user can do."""
        return option if self.options else otherwise


def _labelled(file: str | Path, raw_rows: Sequence[Row], choice: _Choice) -> list[Labelled]:
    text, label, prompt, toxic, labels, _ = choice
    if not str(file).startswith(hub.PREFIX) and ending(file) == ".txt":
        of_line = _labels_beside(Path(file), choice)
        if {row.number for row in raw_rows} != of_line.keys():
            odd = min({row.number for row in raw_rows} ^ of_line.keys())
            raise DetoxbenchError(f"{file} and its labels do not go together: line {odd} is in one of them only")
        names = [Path(labels).stem if labels else "", Path(file).stem]  # "offensive_test_text": what a 1 says
        name = next((name for name in names if side(name)), "label")
        values = [of_line[row.number].value for row in raw_rows]
        verdicts = _verdicts(values, [row.place for row in raw_rows], name, choice)
        return [Labelled(row.value, "", verdict) for row, verdict in zip(raw_rows, verdicts, strict=True)]
    if labels is not None:
        raise UsageError("a file of labels belongs to a .txt file: other files have a column of labels (--label)")
    fields = [row.value if isinstance(row.value, Mapping) else {} for row in raw_rows]
    if text is None:
        _require_one(raw_rows[0], TEXT, "text", choice, lambda name: [value.get(name) for value in fields])
    if label is None and toxic is None:
        _require_one(raw_rows[0], LABEL, "label", choice, partial(_certain, fields))
    text = _column(raw_rows[0], text, TEXT, "text", choice)
    label = _column(raw_rows[0], label, LABEL, "label", choice)
    for row, value in zip(raw_rows, fields, strict=True):
        if not isinstance(value.get(text), str):
            raise DetoxbenchError(f"{row.place}: no text in '{text}'")
    verdicts = _verdicts([value.get(label) for value in fields], [row.place for row in raw_rows], label, choice)
    records = []
    for value, verdict in zip(fields, verdicts, strict=True):
        prompt_text = value.get(prompt)
        records.append(Labelled(value[text], prompt_text if isinstance(prompt_text, str) else "", verdict))
    return records


def _labels_beside(file: Path, choice: _Choice) -> dict[int, Row]:
    guess = file.with_name(file.name.replace("text", "labels"))
    if choice.labels is None and (guess == file or not guess.is_file()):
        remedy = choice.remedy(
            "name the file of their labels by --labels FILE",
            "put their labels beside it, a line each, in a file of the same name with 'labels' for 'text'",
        )
        raise UsageError(f"'{file}' holds texts only: {remedy}")
    return {row.number: row for row in read_lines(choice.labels or guess)}


def _require_one(
    row: Row, known: Iterable[str], what: str, choice: _Choice, read: Callable[[str], list[Any] | None]
) -> None:
    """Raises UsageError where two known columns give different texts or labels."""
    present = list(row.value) if isinstance(row.value, Mapping) else []
    columns = [name for name in present if str(name).casefold() in known]
    filled = {name: values for name in columns if (values := read(name)) and any(v is not None for v in values)}
    first = next(iter(filled), None)
    for name, values in filled.items():
        if first is not None and values != filled[first]:
            remedy = choice.remedy(f"name one by --{what}", "remove or rename one")
            raise UsageError(f"{row.place}: '{first}' and '{name}' do not say the same: {remedy}")


def _certain(fields: Sequence[Mapping[str, Any]], column: str) -> list[bool] | None:
    """Which labels in a column say toxic; None where one does not."""
    values = [value.get(column) for value in fields]
    column_side = side(column) or ("toxic" if words(column) in _CONVENTION else None)
    verdicts = [says_toxic(value, column_side) for value in values]
    return [verdict is True for verdict in verdicts] if None not in verdicts else None


def _column(row: Row, chosen: str | None, known: Iterable[str], what: str, choice: _Choice) -> str:
    present = list(row.value) if isinstance(row.value, Mapping) else []
    folded = {str(name).casefold(): name for name in reversed(present)}
    name = chosen or next((folded[name] for name in known if name in folded), None)
    if name not in present:
        wanted = f"no column '{chosen}'" if chosen else f"none of the columns {', '.join(known)}"
        remedy = choice.remedy(f"name one by --{what}", f"call the {what} one of these")
        raise UsageError(f"{row.place}: {wanted}; there are {', '.join(map(str, present)) or 'none'}: {remedy}")
    return str(name)


def _verdicts(values: Sequence[Any], places: Sequence[str], column: str, choice: _Choice) -> list[bool]:
    """Which labels say toxic. Raises DetoxbenchError, listing the labels, where one does not say, and UsageError where
    none is `toxic`."""
    distinct = list(dict.fromkeys(str(value) for value in values))
    listed = ", ".join(distinct[:8]) + (", ..." if len(distinct) > 8 else "")
    if (toxic := choice.toxic) is not None:
        wanted = {toxic} if toxic in distinct else set(toxic.split(","))
        if missing := sorted(wanted - set(distinct)):
            raise UsageError(
                f"no label '{missing[0]}' in '{column}'{did_you_mean(missing[0], distinct)}; it has {listed}"
            )
        return [str(value) in wanted for value in values]
    column_side = side(column)
    if column_side is None and words(column) in _CONVENTION:
        column_side = "toxic"
        if not any(side(value) for value in distinct):
            remedy = choice.remedy("--toxic 0 turns it round", "call it is_civil otherwise")
            log.warning("'%s' does not say what its 1 means: taken for toxic (%s)", column, remedy)
    verdicts = []
    for value, place in zip(values, places, strict=True):
        verdict = says_toxic(value, column_side)
        if verdict is None:
            remedy = choice.remedy("Say which label is by --toxic LABEL", "Write toxic and civil")
            raise DetoxbenchError(f"{place}: is {value!r} in '{column}' toxic? {remedy} (labels: {listed})")
        verdicts.append(verdict)
    return verdicts
