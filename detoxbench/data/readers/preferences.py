"""Two responses to one prompt, the better one and the worse one, in the forms in which they are published."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detoxbench.data.examples import Preference
from detoxbench.data.readers.columns import column, convert, optional, optional_text
from detoxbench.data.readers.edits import parse_edit_records
from detoxbench.data.readers.files import Row, kind, rows
from detoxbench.data.readers.fit import Chat, holds_pairs, parse_pairs
from detoxbench.errors import DetoxbenchError

HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant:"
"""What begins a turn in HH-RLHF's dialogues."""


def preferences(path: str | Path) -> list[Preference]:
    """`prompt` (or `instruction`, `question`), `chosen`, `rejected` and perhaps `chat` (default true). Or as published:

    - `chosen` and `rejected` as whole dialogues (HH-RLHF: "Human: ... Assistant: ..."; UltraFeedback: lists of messages
      with `role` and `content`). The prompt is what both have in common up to the last answer: of one turn, the
      question itself; of more, the dialogue as running text (`chat` False);
    - `prompt_text`, `unpert_gen_text` (chosen) and `pert_gen_text` (ajyl/dpo_toxic, made by PPLM): running text;
    - `prompt`, `llama3_output` (chosen: a refusal) and `output` (rejected), the training file of circuit breakers;
    - SafeEdit's records: the safe and the unsafe answer to the attacked prompt;
    - what `pairs` reads (ParaDetox): the civil text chosen over the toxic one, without a prompt, as running text.

    Rows of which an answer is empty, or both are equal, are left out and warned of. Raises DetoxbenchError naming file,
    line and column.
    """
    raw_rows = rows(path)
    records = _parsed(raw_rows)
    useful = [record for record in records if record.chosen and record.rejected and record.chosen != record.rejected]
    if not useful:
        raise DetoxbenchError(f"{path}: every row has an empty answer, or two equal ones: there is nothing to prefer")
    if less := len(records) - len(useful):
        reason = "have an empty answer or two equal ones: left out"
        warnings.warn(f"{path}: {less} of {len(records)} rows {reason}", stacklevel=2)
    return useful


def _parsed(raw_rows: Sequence[Row]) -> list[Preference]:
    def holds(name: str) -> bool:
        return any(optional(row, name) is not None for row in raw_rows)

    if holds_pairs(raw_rows):
        return [Preference("", civil, toxic, chat=False) for toxic, civil in parse_pairs(raw_rows)]
    if holds("adversarial prompt"):
        return [Preference(edit.prompt, edit.safe, edit.unsafe) for edit in parse_edit_records(raw_rows)]
    if holds("unpert_gen_text"):
        return _continuations(raw_rows)
    names = ("llama3_output", "output") if holds("llama3_output") else ("chosen", "rejected")
    if any(isinstance(optional(row, "chosen"), list) for row in raw_rows):
        return [_of_dialogues(row, _written(row, "chosen"), _written(row, "rejected")) for row in raw_rows]
    chosen, rejected = (column(raw_rows, name) for name in names)
    if not any(map(holds, _PROMPT)):
        return [_of_dialogues(row, chosen(row), rejected(row)) for row in raw_rows]
    prompt = column(raw_rows, *_PROMPT)
    return [Preference(prompt(row), chosen(row), rejected(row), convert(row, Chat).chat) for row in raw_rows]


_PROMPT = ("prompt", "instruction", "question")


def _continuations(raw_rows: Sequence[Row]) -> list[Preference]:
    """Of ajyl/dpo_toxic. Its texts continue the prompt; a copy of the prompt before one of them is taken away."""
    prompt, names = column(raw_rows, "prompt_text"), ("unpert_gen_text", "pert_gen_text")
    records = []
    for row in raw_rows:
        texts = [(optional_text(row, name) or "").removeprefix(prompt(row)).strip() for name in names]
        records.append(Preference(prompt(row), texts[0], texts[1], chat=False))
    return records


def _of_dialogues(row: Row, chosen: str, rejected: str) -> Preference:
    """Two dialogues that part in their last answer."""
    alike = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen))
    common, mark, _ = chosen[:alike].rpartition(ASSISTANT)
    if not mark:
        raise DetoxbenchError(
            f"{row.place}: 'chosen' and 'rejected' have no question in common, and there is no 'prompt': give one, or "
            "dialogues (Human: ... Assistant: ...) that part in an answer"
        )
    answers = [text[len(common + mark) :].strip() for text in (chosen, rejected)]
    question = common.removeprefix(HUMAN)
    if common.startswith(HUMAN) and HUMAN not in question and ASSISTANT not in question:
        return Preference(question.strip(), answers[0], answers[1])
    return Preference(common + mark, answers[0], answers[1], chat=False)


def _written(row: Row, name: str) -> str:
    """A list of messages (behind those of a `prompt` that is a list, too) as HH-RLHF writes a dialogue."""
    prompt, messages = optional(row, "prompt"), optional(row, name)
    if not isinstance(messages, list):
        raise DetoxbenchError(f"{row.place}: expected a list of messages, got {kind(messages)}, in '{name}'")
    whole = [*prompt, *messages] if isinstance(prompt, list) else messages
    return "".join(_turn(row, name, message) for message in whole)


def _turn(row: Row, name: str, message: Any) -> str:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
    marks = {"user": HUMAN, "assistant": f"{ASSISTANT} ", "system": "\n\nSystem: "}
    if role not in marks or not isinstance(content, str):
        raise DetoxbenchError(
            f"{row.place}: expected messages with a role (user, assistant or system) and a text as content, in '{name}'"
        )
    return marks[role] + content
