"""What methods learn from: pairs of texts, instructions with responses, sets of paraphrases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from detoxbench.data.examples import Instruction, Pair, ParaphraseSet
from detoxbench.data.readers.columns import Text, Texts, column, convert, id_of, optional, optional_text, unique
from detoxbench.data.readers.files import Row, rows

_FORMS = (
    ("toxic", ("civil", "nontoxic", "neutral", "neutral1")),
    ("toxic_sentence", ("neutral_sentence",)),
    ("toxic_comment", ("neutral_comment", "neutral_comment1")),
    ("en_toxic_comment", ("en_neutral_comment",)),
)
"""Columns of parallel data: ours and ParaDetox's, then those of its forms in several languages and on the hub."""


def _parallel(raw_rows: Sequence[Row]) -> tuple[str, tuple[str, ...]]:
    """The first of `_FORMS` whose toxic column is there."""
    forms = (form for form in _FORMS if any(optional(row, form[0]) is not None for row in raw_rows))
    return next(forms, _FORMS[0])


def pairs(path: str | Path) -> list[Pair]:
    """Toxic texts with a civil version: two-element lists [toxic, civil] (DeStein), or the columns `toxic` and one of
    `civil`, `nontoxic`, `neutral`, `neutral1` (ParaDetox, whose further versions are not used), or those of its forms
    in other languages (`toxic_sentence`, `neutral_sentence`; `toxic_comment`, `neutral_comment1`)."""
    return parse_pairs(rows(path))


def holds_pairs(raw_rows: Sequence[Row]) -> bool:
    """Whether these rows are what `pairs` reads."""
    toxic, civil = _parallel(raw_rows)
    named = (optional(row, toxic) is not None and optional(row, *civil) is not None for row in raw_rows)
    return all(isinstance(row.value, list) for row in raw_rows) or any(named)


def parse_pairs(raw_rows: Sequence[Row]) -> list[Pair]:
    """Toxic texts with a civil version, of rows that were read."""
    toxic_name, civil_names = _parallel(raw_rows)
    toxic, civil = column(raw_rows, toxic_name), column(raw_rows, *civil_names)
    return [
        Pair(*convert(row, tuple[Text, Text])) if isinstance(row.value, list) else Pair(toxic(row), civil(row))
        for row in raw_rows
    ]


def instructions(path: str | Path) -> list[Instruction]:
    """`instruction` or `prompt` (an `input` or `context` is joined to it by a space), `output`, `response` or
    `completion`, and `chat` (default true)."""
    return _instructions(rows(path))


def civil_instructions(path: str | Path) -> list[Instruction]:
    """What `instructions` reads; or what `pairs` reads, whose civil texts are responses to an empty prompt."""
    return _of_side("civil", rows(path))


def toxic_instructions(path: str | Path) -> list[Instruction]:
    """What `instructions` reads; or what `pairs` reads, whose toxic texts are responses to an empty prompt."""
    return _of_side("toxic", rows(path))


def retain_texts(path: str | Path) -> list[Instruction]:
    """What `civil_instructions` reads; or plain texts (lines, a list of texts, the column `text` or `sentence`), which
    are responses to an empty prompt."""
    raw_rows = rows(path)
    if holds_pairs(raw_rows) or any(optional(row, *_RESPONSE) is not None for row in raw_rows):
        return _of_side("civil", raw_rows)
    text = column(raw_rows, "text", "sentence")
    texts = [row.value if isinstance(row.value, str) and row.value.strip() else text(row) for row in raw_rows]
    return [Instruction("", each, chat=False) for each in texts]


def _of_side(side: Literal["civil", "toxic"], raw_rows: Sequence[Row]) -> list[Instruction]:
    if holds_pairs(raw_rows):
        return [Instruction("", getattr(pair, side), chat=False) for pair in parse_pairs(raw_rows)]
    return _instructions(raw_rows)


_RESPONSE = ("output", "response", "completion")


def _instructions(raw_rows: Sequence[Row]) -> list[Instruction]:
    prompt, response = column(raw_rows, "instruction", "prompt"), column(raw_rows, *_RESPONSE)
    records = []
    for row in raw_rows:
        rest = convert(row, Chat)
        about = optional_text(row, "input", "context")
        instruction = prompt(row) if about is None else f"{prompt(row)} {about}"
        records.append(Instruction(instruction, response(row), rest.chat))
    return records


class Chat(msgspec.Struct):
    """Whether a row is asked through the chat template."""

    chat: bool = True


def paraphrase_sets(path: str | Path) -> list[ParaphraseSet]:
    """`paraphrases` and `paraphrases_toxic` (the files of contrastive perplexity), or `positives` and `negatives`, with
    an `id` whose beginning names the group; or a table with the columns `toxic` and `neutral1`, `neutral2`, ...
    (ParaDetox). Repetitions within a set are dropped."""
    records = [(row, _paraphrase_set(row)) for row in rows(path)]
    return unique(records, lambda record: record.anchor)


class _Released(msgspec.Struct):
    paraphrases: Texts
    paraphrases_toxic: Texts
    id: int | str | None = None


class _Plain(msgspec.Struct):
    positives: Texts
    negatives: Texts
    id: int | str | None = None


def _paraphrase_set(row: Row) -> ParaphraseSet:
    toxic_name, civil_names = _parallel([row])
    if optional(row, toxic_name) is not None:
        column([row], civil_names[-1])(row)
        neutral = [v for k, v in row.value.items() if re.fullmatch(r"neutral(_comment)?\d+", k.lower()) and v]
        toxic = column([row], toxic_name)(row)
        return ParaphraseSet(id_of(optional(row, "id"), row), tuple(dict.fromkeys(neutral)), (toxic,))
    fields: _Released | _Plain
    if optional(row, "paraphrases") is not None:
        fields = convert(row, _Released)
        positives, negatives = fields.paraphrases, fields.paraphrases_toxic
    else:
        fields = convert(row, _Plain)
        positives, negatives = fields.positives, fields.negatives
    return ParaphraseSet(id_of(fields.id, row), tuple(dict.fromkeys(positives)), tuple(dict.fromkeys(negatives)))
