"""Text for people: untrusted text without control characters, values and errors in one short line."""

from __future__ import annotations

import json
from typing import Any


def clean(text: str) -> str:
    """The text without control characters (terminal escapes, line breaks, bidi): names may come from plugins."""
    return "".join(c if c.isprintable() else "�" for c in text)


def short(value: Any, limit: int = 32) -> str:
    """A configuration value for people."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(value: Any, limit: int = 80) -> str:
    """A value in one line without control characters: packs are untrusted."""
    text = clean(f"{value:.6g}" if isinstance(value, float) else str(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def first_line(error: BaseException) -> str:
    """An error of another library in one line: the first of its message, or its type where it has no message."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
