"""Which prompts of a file are safe, by what its labels mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detoxbench.data.labels import says_toxic, side, words
from detoxbench.data.readers.columns import optional
from detoxbench.data.readers.files import Row
from detoxbench.errors import DetoxbenchError

LABELS = (
    "prompt_harm_label", "prompt_label", "data_type", "label", "is_safe", "safe", "safety", "is_unsafe", "unsafe",
    "is_harmful", "harmful", "harm_label", "is_toxic", "toxic", "is_hate", "hate", "hateful", "offensive",
)  # fmt: skip
"""Columns that may say whether a prompt is safe; the first that does is taken."""
OF_PROMPTS = LABELS[:3]
"""Those that are about the prompt even where the file holds answers too."""
ANSWERS = ("response", "completion", "answer", "output", "model_output")
KINDS = ("type", "category", "class", "prompt_type", "subset")
"""Columns of kinds of prompts, one of which may be the safe ones."""

XSTEST = frozenset({
    "homonyms", "figurative_language", "safe_targets", "safe_contexts", "definitions", "discr", "historical_events",
    "privacy", "real_group_nons_discr", "nons_group_real_discr", "privacy_public", "privacy_fictional",
})  # fmt: skip
"""Types of prompts in XSTest (github.com/paul-rottger/xstest), with and without "contrast_" before them."""


def is_safe(rows: Sequence[Row]) -> list[bool | None]:
    """For each prompt True, False, or None where the file does not say.

    A column says it by its values ("safe", "harmful"), or by its name where they are yes and no (`is_safe`). Without
    one, XSTest's types do: those that begin with "contrast" are unsafe; or a column of kinds, one of which is "benign".
    Raises DetoxbenchError where a column says it of some rows only, holds yes and no under a name that says neither, or
    stands beside answers (BeaverTails) and may be about them.
    """
    types = [str(optional(row, "type") or "") for row in rows]
    of_xstest = all(name.removeprefix("contrast_") in XSTEST for name in types)
    answers = next((name for name in ANSWERS if any(optional(row, name) is not None for row in rows)), None)
    for name in LABELS:
        values = [optional(row, name) for row in rows]
        verdicts = _verdicts(rows, values, name)
        if None in verdicts:
            continue
        if answers and name not in OF_PROMPTS and not of_xstest:
            raise DetoxbenchError(
                f"{rows[0].place}: does '{name}' speak of the prompt or of the answer in '{answers}'? Call it "
                f"prompt_label if of the prompt (safe or unsafe), or remove '{name}' or '{answers}'"
            )
        return [not verdict for verdict in verdicts]
    if of_xstest:
        return [not name.startswith("contrast") for name in types]
    for name in KINDS:
        values = [optional(row, name) for row in rows]
        if any(isinstance(value, str) and side(value) == "civil" and words(value) not in NO_KIND for value in values):
            return [not verdict for verdict in _verdicts(rows, values, name)]
    return [None] * len(rows)


NO_KIND = frozenset({"none", "neither", "nothing", "neutral", "normal"})
"""Values in a column of kinds for a prompt that is of none of them."""


def _verdicts(rows: Sequence[Row], values: Sequence[Any], name: str) -> list[bool | None]:
    """Which values say unsafe; None for all where the column is not about that."""
    verdicts = [None if value is None else says_toxic(value, side(name)) for value in values]
    certain = [verdict is not None for verdict in verdicts]
    if not all(certain) and (any(certain) or (side(name) is None and _yes_and_no(values))):
        row, value = next((r, v) for r, v, t in zip(rows, values, certain, strict=True) if not t)
        listed = ", ".join(dict.fromkeys(map(str, values)))
        raise DetoxbenchError(
            f"{row.place}: does {value!r} in '{name}' mean safe or unsafe (there are {listed})? Write safe and unsafe, "
            "call the column is_safe or is_unsafe, or kind if it names kinds of requests"
        )
    return verdicts


def _yes_and_no(values: Sequence[Any]) -> bool:
    texts = {str(value).lower() for value in values}
    return len(texts) > 1 and texts <= {"0", "1", "0.0", "1.0", "true", "false", "yes", "no"}
