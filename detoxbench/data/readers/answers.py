"""Questions with known answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from detoxbench.data.readers.columns import Text, Texts, column, convert, id_of, optional, optional_text, unique
from detoxbench.data.readers.files import Row, rows
from detoxbench.errors import DetoxbenchError


class QuestionAnswer(NamedTuple):
    """A question and the answers that count as right; `task` is None where the file does not name one."""

    id: str
    task: str | None
    prompt: str
    answers: tuple[str, ...]


class TrueAndFalse(NamedTuple):
    """A question of TruthfulQA, and its answers, each "right", "wrong" or "none" (not in it) under MC1 and MC2."""

    question: str
    answers: dict[str, tuple[str, str]]


def question_answers(path: str | Path) -> list[QuestionAnswer]:
    """`prompt`, `question` or `document`, with `answer` or `summary`, and perhaps `id` and `task`.

    An answer is a text (GSM8K: the solution), a list of texts (NQ-open), or TriviaQA's {"value", "aliases"}. So
    XSum's, NQ-open's, TriviaQA's, GSM8K's and SQuAD's (`answers`) published forms are read as they are. A `context` or
    `passage` that a question is about stands before it; where only some questions have one, this is warned of.
    Questions with `choices` or `options` are refused: they cannot be answered without them.
    """
    return parse_question_answers(rows(path))


class _Aliases(msgspec.Struct):
    value: Text
    aliases: list[Text] = []


class _Spans(msgspec.Struct):
    text: Texts


class _Question(msgspec.Struct):
    answer: Text | Texts | _Aliases | None = None
    answers: Texts | _Spans | None = None
    id: int | str | None = None
    task: str | None = None


def parse_question_answers(raw: Iterable[Row]) -> list[QuestionAnswer]:
    """Questions with accepted answers, of rows that were read."""
    raw_rows, records = [*raw], []
    question, answer = column(raw_rows, "prompt", "question", "document"), column(raw_rows, "answer", "summary")
    contexts = [optional_text(row, "context", "passage") for row in raw_rows]
    if (without := contexts.count(None)) and any(contexts):
        row = raw_rows[contexts.index(None)]
        warnings.warn(f"{row.place}: {without} of {len(contexts)} questions have no context", stacklevel=2)
    for row, context in zip(raw_rows, contexts, strict=True):
        if optional(row, "choices", "options") is not None:
            raise DetoxbenchError(f"{row.place}: a question of several choices, which are not asked: use suite=lm_eval")
        fields = convert(row, _Question)
        prompt = question(row) if context is None else f"{context}\n\n{question(row)}"
        accepted = _accepted(fields.answer or fields.answers or answer(row))
        records.append((row, QuestionAnswer(id_of(fields.id, row), fields.task, prompt, accepted)))
    return unique(records, lambda question: question.id)


def _accepted(answer: str | list[str] | _Aliases | _Spans) -> tuple[str, ...]:
    if isinstance(answer, _Spans):
        return tuple(dict.fromkeys(answer.text))
    if isinstance(answer, _Aliases):
        return tuple(dict.fromkeys((answer.value, *answer.aliases)))
    return (answer,) if isinstance(answer, str) else tuple(answer)


def truthfulqa(path: str | Path) -> list[TrueAndFalse]:
    """TruthfulQA's mc_task.json: `question`, `mc1_targets` and `mc2_targets` (answer -> 1 if it is true, else 0, or, as
    on the hub, `choices` and `labels`)."""
    return parse_truthfulqa(rows(path))


class _TruthfulQARow(msgspec.Struct):
    question: Text
    mc1_targets: dict[Text, Literal[0, 1]]
    mc2_targets: dict[Text, Literal[0, 1]]


def parse_truthfulqa(raw: Iterable[Row]) -> list[TrueAndFalse]:
    """TruthfulQA's questions with their true and false answers, of rows that were read."""
    records = []
    for row in raw:
        if optional(row, "Best Answer") is not None:
            raise DetoxbenchError(f"{row.place}: TruthfulQA.csv has no targets of MC1 and MC2: give mc_task.json")
        fields = convert(_by_answer(row), _TruthfulQARow)
        for name, targets in (("mc1_targets", fields.mc1_targets), ("mc2_targets", fields.mc2_targets)):
            if set(targets.values()) != {0, 1}:
                raise DetoxbenchError(f"{row.place}: expected true (1) and false (0) answers, in '{name}'")
        both = fields.mc1_targets | fields.mc2_targets
        label = {0: "wrong", 1: "right", None: "none"}
        answers = {a: (label[fields.mc1_targets.get(a)], label[fields.mc2_targets.get(a)]) for a in both}
        records.append(TrueAndFalse(fields.question, answers))
    return records


def _by_answer(row: Row) -> Row:
    """A row whose targets are `choices` and `labels`, as answer -> label."""
    if not isinstance(row.value, Mapping):
        return row
    value = dict(row.value)
    for name, targets in row.value.items():
        if isinstance(targets, Mapping) and targets.keys() == {"choices", "labels"}:
            if len(targets["choices"]) != len(targets["labels"]):
                raise DetoxbenchError(f"{row.place}: as many labels as choices are needed, in '{name}'")
            value[name] = dict(zip(targets["choices"], targets["labels"], strict=True))
    return row._replace(value=value)


class _HaluEvalQA(msgspec.Struct):
    question: Text
    right_answer: Text
    hallucinated_answer: Text


class _HaluEvalSummary(msgspec.Struct):
    document: Text
    right_summary: Text
    hallucinated_summary: Text


def halueval(path: str | Path) -> list[tuple[str, str, str]]:
    """HaluEval's qa_data.json or summarization_data.json: (prompt, right answer, hallucinated answer).

    The published files end in .json and hold JSON Lines; a JSON list is read too. Dialogues are not read.
    """
    return parse_halueval(rows(path))


def parse_halueval(raw: Iterable[Row]) -> list[tuple[str, str, str]]:
    """(question, right answer, hallucinated answer) of rows that were read."""
    records = []
    for row in raw:
        if isinstance(row.value, Mapping) and "document" in row.value:
            summary = convert(row, _HaluEvalSummary)
            prompt = f"Summarize the following document:\n{summary.document}"
            records.append((prompt, summary.right_summary, summary.hallucinated_summary))
        else:
            qa = convert(row, _HaluEvalQA)
            records.append((qa.question, qa.right_answer, qa.hallucinated_answer))
    return records
