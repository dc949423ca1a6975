"""Texts that a model reads: the last word of a text, the better of two, sentences with a rating."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from detoxbench.data.readers.columns import Text, Texts, convert
from detoxbench.data.readers.files import Row, read_lines, rows
from detoxbench.errors import DetoxbenchError


class RatedSentence(NamedTuple):
    """A harmful or harmless sentence about groups, and its toxicity (1 to 5 as published)."""

    text: str
    harmful: bool
    toxicity: float
    groups: tuple[str, ...]


def lambada(path: str | Path) -> list[str]:
    """LAMBADA's texts, of two words at least."""
    return parse_lambada(rows(path))


class _LambadaRow(msgspec.Struct):
    text: Text


def parse_lambada(raw: Iterable[Row]) -> list[str]:
    """The texts of LAMBADA, of rows that were read."""
    texts = []
    for row in raw:
        text = convert(row, _LambadaRow).text.strip()
        if " " not in text:
            raise DetoxbenchError(f"{row.place}: expected at least two words, in 'text'")
        texts.append(text)
    return texts


class _PIQARow(msgspec.Struct):
    goal: Text
    sol1: Text
    sol2: Text
    label: Literal[0, 1] | None = None


def piqa(path: str | Path) -> list[tuple[str, tuple[str, str], int]]:
    """PIQA's valid.jsonl: (goal, solutions, which of them is right: 0 or 1). The label is a field, or a line of
    valid-labels.lst beside it."""
    records = [(row, convert(row, _PIQARow)) for row in rows(path)]
    labels: list[int]
    if all(fields.label is not None for _, fields in records):
        labels = [int(fields.label or 0) for _, fields in records]
    else:
        beside = Path(path).with_name(f"{Path(path).stem}-labels.lst")
        lines = read_lines(beside)
        if len(lines) != len(records):
            raise DetoxbenchError(f"{beside} has {len(lines)} labels for the {len(records)} records of {path}")
        for line in lines:
            if line.value not in {"0", "1"}:
                raise DetoxbenchError(f"{line.place}: expected 0 or 1, got {line.value!r}")
        labels = [int(line.value) for line in lines]
    return [
        (fields.goal, (fields.sol1, fields.sol2), label) for (_, fields), label in zip(records, labels, strict=True)
    ]


def blimp(path: str | Path) -> list[tuple[str, str, str]]:
    """BLiMP's pairs: (grammatical sentence, ungrammatical one, paradigm or "")."""
    return parse_blimp(rows(path))


class _BlimpRow(msgspec.Struct):
    sentence_good: Text
    sentence_bad: Text
    UID: str = ""


def parse_blimp(raw: Iterable[Row]) -> list[tuple[str, str, str]]:
    """(good sentence, bad sentence, paradigm) of rows that were read."""
    records = [convert(row, _BlimpRow) for row in raw]
    return [(row.sentence_good, row.sentence_bad, row.UID) for row in records]


def rated_sentences(path: str | Path) -> list[RatedSentence]:
    """SafeNLP: `text`, `label` ("hate" or "neutral"), `toxicity_score` (above 0) and `target_groups`."""
    return parse_rated_sentences(rows(path))


class _RatedRow(msgspec.Struct):
    text: Text
    label: Literal["hate", "neutral"]
    toxicity_score: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    target_groups: Texts = msgspec.field(default_factory=lambda: ["all_groups"])


def parse_rated_sentences(raw: Iterable[Row]) -> list[RatedSentence]:
    """Sentences with their label, toxicity and groups, of rows that were read."""
    sentences = []
    for row in raw:
        fields = convert(row, _RatedRow)
        harmful = fields.label == "hate"
        sentences.append(RatedSentence(fields.text, harmful, fields.toxicity_score, tuple(fields.target_groups)))
    return sentences
