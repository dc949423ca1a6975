"""Which prompts of a file are safe, by what its labels mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detoxbench.data.labels import says_toxic, side
from detoxbench.data.readers.columns import optional
from detoxbench.data.readers.files import Row
from detoxbench.errors import DetoxbenchError

LABELS = (
    "label", "is_safe", "safe", "safety", "is_unsafe", "unsafe", "is_harmful", "harmful", "prompt_harm_label",
    "harm_label", "prompt_label", "is_toxic", "toxic", "data_type",
)  # fmt: skip
"""Columns that may say it, the first that does is taken."""

XSTEST = frozenset({
    "homonyms", "figurative_language", "safe_targets", "safe_contexts", "definitions", "discr", "historical_events",
    "privacy", "real_group_nons_discr", "nons_group_real_discr", "privacy_public", "privacy_fictional",
})  # fmt: skip
"""Types of prompts in XSTest (github.com/paul-rottger/xstest), with and without "contrast_" before them."""


def is_safe(found: Sequence[Row]) -> list[bool | None]:
    """For each prompt True, False, or None where the file does not say.

    A column says it by its values ("safe", "harmful"), or by its name where they are yes and no (`is_safe`). Without
    one, XSTest's types do: those that begin with "contrast" are unsafe. Raises DetoxbenchError where a column says it
    of some rows only, or holds yes and no under a name that says neither.
    """
    for name in LABELS:
        values = [optional(row, name) for row in found]
        verdicts = [None if value is None else says_toxic(value, side(name)) for value in values]
        told = [verdict is not None for verdict in verdicts]
        if any(told) and all(told):
            return [not verdict for verdict in verdicts]
        if any(told) or (name == "label" and _yes_and_no(values)):
            row, value = next((r, v) for r, v, t in zip(found, values, told, strict=True) if not t)
            there = ", ".join(dict.fromkeys(map(str, values)))
            raise DetoxbenchError(
                f"{row.place}: does {value!r} in '{name}' mean safe or unsafe (there are {there})? Write safe and "
                "unsafe, or call the column is_safe or is_unsafe"
            )
    types = [str(optional(row, "type") or "") for row in found]
    if all(name.removeprefix("contrast_") in XSTEST for name in types):
        return [not name.startswith("contrast") for name in types]
    return [None] * len(found)


def _yes_and_no(values: Sequence[Any]) -> bool:
    said = {str(value).lower() for value in values}
    return len(said) > 1 and said <= {"0", "1", "0.0", "1.0", "true", "false", "yes", "no"}
