"""What methods learn from: pairs of texts, instructions with responses, sets of paraphrases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from detoxbench.data.readers.files import Row, Text, Texts, convert, field, id_of, rows, unique
from detoxbench.method import Instruction, Pair, ParaphraseSet


def pairs(path: str | Path) -> list[Pair]:
    """Toxic texts with a civil version: two-element lists [toxic, civil] (DeStein), or the columns `toxic` and one of
    `civil`, `nontoxic`, `neutral`, `neutral1` (ParaDetox, whose further versions are not used)."""
    return [_pair(row) for row in rows(path)]


def _pair(row: Row) -> Pair:
    if isinstance(row.value, list):
        return Pair(*convert(row, tuple[Text, Text]))
    return Pair(field(row, "toxic"), field(row, "civil", "nontoxic", "neutral", "neutral1"))


def instructions(path: str | Path) -> list[Instruction]:
    """`instruction` or `prompt` (an `input` is joined to it by a space), `output`, `response` or `completion`, and
    `chat` (default true)."""
    return [_instruction(row) for row in rows(path)]


class _InstructionRow(msgspec.Struct):
    input: str = ""
    chat: bool = True


def _instruction(row: Row) -> Instruction:
    rest = convert(row, _InstructionRow)
    prompt = field(row, "instruction", "prompt")
    response = field(row, "output", "response", "completion")
    return Instruction(f"{prompt} {rest.input}" if rest.input else prompt, response, rest.chat)


def paraphrase_sets(path: str | Path) -> list[ParaphraseSet]:
    """`paraphrases` and `paraphrases_toxic` (the files of contrastive perplexity), or `positives` and `negatives`, with
    an `id` whose beginning names the group; or a table with the columns `toxic` and `neutral1`, `neutral2`, ...
    (ParaDetox). Repetitions within a set are dropped."""
    made = [(row, _paraphrase_set(row)) for row in rows(path)]
    return unique(made, lambda found: found.anchor)


class _Released(msgspec.Struct):
    paraphrases: Texts
    paraphrases_toxic: Texts
    id: int | str | None = None


class _Plain(msgspec.Struct):
    positives: Texts
    negatives: Texts
    id: int | str | None = None


def _paraphrase_set(row: Row) -> ParaphraseSet:
    if isinstance(row.value, Mapping) and "toxic" in row.value:
        field(row, "neutral1")
        neutral = [v for k, v in row.value.items() if re.fullmatch(r"neutral\d+", k) and v]
        return ParaphraseSet(id_of(row.value.get("id"), row), tuple(dict.fromkeys(neutral)), (field(row, "toxic"),))
    given: _Released | _Plain
    if isinstance(row.value, Mapping) and "paraphrases" in row.value:
        given = convert(row, _Released)
        positives, negatives = given.paraphrases, given.paraphrases_toxic
    else:
        given = convert(row, _Plain)
        positives, negatives = given.positives, given.negatives
    return ParaphraseSet(id_of(given.id, row), tuple(dict.fromkeys(positives)), tuple(dict.fromkeys(negatives)))
