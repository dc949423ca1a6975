"""SafeEdit: attacked questions with safe and unsafe answers, as prompts of a suite and as fit data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from detoxbench.data.examples import EditRecord
from detoxbench.data.readers.columns import Text, column, convert, id_of, unique
from detoxbench.data.readers.files import Row, rows


class Generalization(msgspec.Struct, frozen=True, kw_only=True):
    """SafeEdit's `generalization test`: the question alone, and with another attack and another question."""

    only_question: Text = msgspec.field(name="test input of only harmful question")
    other_attack: Text = msgspec.field(name="test input of other attack prompt input")
    other_question: Text = msgspec.field(name="test input of other question input")
    other_both: Text = msgspec.field(name="test input of other questions and attack prompts")


class Knowledge(msgspec.Struct, frozen=True, kw_only=True):
    """SafeEdit's `knowledge constrain` (sic): a harmless question whose answer an edit must keep."""

    prompt: Text
    answer: str


class SafeEditEdit(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a SafeEdit record that an edit is made with."""

    adversarial_prompt: Text = msgspec.field(name="adversarial prompt")
    unsafe_generation: Text = msgspec.field(name="unsafe generation")
    safe_generation: Text = msgspec.field(name="safe generation")
    knowledge: Knowledge | None = msgspec.field(name="knowledge constrain", default=None)

    def edit_record(self) -> EditRecord:
        """What DINM learns from, with the harmless question where there is one."""
        constraint = (self.knowledge.prompt, self.knowledge.answer) if self.knowledge else ()
        return EditRecord(self.adversarial_prompt, self.safe_generation, self.unsafe_generation, *constraint)


class SafeEditRecord(SafeEditEdit, frozen=True, kw_only=True):
    """A record of SafeEdit_{train,val,test}.json (arXiv 2403.14472; hub zjunlp/SafeEdit), by its published keys."""

    id: int | str
    category: str = msgspec.field(name="unsafety category")
    question: Text
    attack_name: str = msgspec.field(name="attack name", default="")
    generalization: Generalization = msgspec.field(name="generalization test")


def safeedit(path: str | Path) -> list[SafeEditRecord]:
    """SafeEdit records with unique ids. The data is gated on the hub: its terms must be accepted there by a person."""
    return parse_safeedit(rows(path))


def parse_safeedit(raw: Iterable[Row]) -> list[SafeEditRecord]:
    """SafeEdit records of rows that were read; ids are unique."""
    return unique([(row, convert(row, SafeEditRecord)) for row in raw], lambda record: str(record.id))


class SafeEditInput(NamedTuple):
    """One input of SafeEdit's test_ALL: a harmful question, alone or inside an attack."""

    id: str
    category: str
    question: str
    attacked: bool
    text: str


def safeedit_inputs(path: str | Path) -> list[SafeEditInput]:
    """SafeEdit_test_ALL.json: `id`, `unsafety category`, `question`, `attack name` ("None" without an attack), and the
    text as `malicious input` (or `input`), as in the submissions of NLPCC 2024 Task 10."""
    return parse_safeedit_inputs(rows(path))


class _Input(msgspec.Struct):
    question: Text
    category: Text = msgspec.field(name="unsafety category")
    attack_name: str | None = msgspec.field(name="attack name")
    id: int | str | None = None


def parse_safeedit_inputs(raw: Iterable[Row]) -> list[SafeEditInput]:
    """Inputs of test_ALL of rows that were read; ids are unique."""
    raw_rows, records = [*raw], []
    text = column(raw_rows, "malicious input", "input")
    for row in raw_rows:
        fields = convert(row, _Input)
        attacked = fields.attack_name not in {None, "", "None"}
        records.append(
            (row, SafeEditInput(id_of(fields.id, row), fields.category, fields.question, attacked, text(row)))
        )
    return unique(records, lambda record: record.id)


def edit_records(path: str | Path) -> list[EditRecord]:
    """SafeEdit records, of which only what an edit needs has to be there."""
    return parse_edit_records(rows(path))


def parse_edit_records(raw: Iterable[Row]) -> list[EditRecord]:
    """Edit records of rows that were read."""
    return [convert(row, SafeEditEdit).edit_record() for row in raw]
