"""Texts that were generated elsewhere, by their prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detoxbench.data.readers.columns import optional
from detoxbench.data.readers.files import Row, kind, rows
from detoxbench.errors import DetoxbenchError

_PROMPT = ("prompt", "question", "instruction", "query", "input")
_LISTS = ("generations", "continuations", "responses", "outputs", "completions", "answers")
_TEXT = ("text", "generation", "continuation", "response", "output", "completion", "answer")


def stored_texts(path: str | Path) -> dict[str, list[str]]:
    """Prompt -> its texts, in the order of the file: RealToxicityPrompts' form ({"prompt": {"text"}, "generations":
    [{"text"}, ...]}), lists of plain texts, or a text a line (as in samples.jsonl of a run; `prompt` and `text`,
    `response`, ... in any case). A text may be empty; one that is null is left out."""
    return parse_stored_texts(rows(path))


def parse_stored_texts(raw: Iterable[Row]) -> dict[str, list[str]]:
    """Texts by prompt, of rows that were read. Raises DetoxbenchError for a row without a prompt or a text."""
    found: dict[str, list[str]] = {}
    for row in raw:
        prompt = _plain(optional(row, *_PROMPT))
        if not isinstance(prompt, str):
            raise DetoxbenchError(f"{row.place}: expected the prompt as text, got {kind(prompt)}, in '{_PROMPT[0]}'")
        found.setdefault(prompt, []).extend(_texts(row))
    return found


def _texts(row: Row) -> list[str]:
    several = optional(row, *_LISTS)
    if several is not None and not isinstance(several, list):
        raise DetoxbenchError(f"{row.place}: expected a list of texts, got {kind(several)}, in '{_LISTS[0]}'")
    if several is None:
        names = {str(name).casefold(): name for name in row.value} if isinstance(row.value, Mapping) else {}
        column = next((names[name] for name in _TEXT if name in names), None)
        if column is None:
            raise DetoxbenchError(f"{row.place}: missing field '{_TEXT[0]}' (or {', '.join(map(repr, _TEXT[1:]))})")
        several = [row.value[column]]
    texts = [_plain(value) for value in several if value is not None]
    for text in texts:
        if not isinstance(text, str):
            raise DetoxbenchError(f"{row.place}: expected text, got {kind(text)}")
    return texts


def _plain(value: Any) -> Any:
    """The text of {"text": ...}; anything else as it is."""
    return value["text"] if isinstance(value, Mapping) and "text" in value else value
