"""Attacked prompts with the answers that a model is edited towards: as tokens, and in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from detoxbench.data.examples import FitData
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel


class EditText(NamedTuple):
    """A prompt with its answer."""

    ids: list[int]
    answer: list[int]
    """Token ids of the answer: in raw text they may be others than the last of `ids`."""
    cut: int
    """Tokens that it lost in front to fit the context."""


def edit_text(lm: LanguageModel, prompt: str, space: str, answer: str, alone: str | None) -> EditText:
    """Prompt and answer as token ids, cut in front to fit the context.

    In raw text `space` stands before the answer; behind a chat template stands what the template puts there. The
    answer's ids are those behind the prompt's or, in raw text and with `alone`, those of `alone` + answer by itself.
    Raises DetoxbenchError where an answer leaves no room for its prompt.
    """
    text, raw = lm.rendered(prompt, chat=True)
    gap = space if lm.template is None else lm.template.turn[0]
    before, ids = lm.joined(text, gap + answer if answer else "", special=raw)
    if raw and alone is not None:
        label = lm.tokens(alone + answer)
    else:
        label = ids[next((i for i, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), len(before)) :]
    cut = max(0, len(ids) - (lm.context or len(ids)))
    if len(label) >= len(ids) - cut:
        raise DetoxbenchError(f"a response of {len(label)} tokens leaves no room for its prompt in '{lm.name}'")
    return EditText(ids[cut:], label, cut)


def fitted_in_batches(
    records: Sequence[FitData],
    wanted: Sequence[int],
    size: int,
    fit: Callable[[Sequence[FitData]], list[Intervention]],
) -> Iterator[Intervention]:
    """For `Method.fit_many`: the interventions of the `wanted` among all `records`, fitted `size` at a time.

    Batches are cut from all records, so that the batch of one does not depend on which are wanted.
    """
    fitted: dict[int, list[Intervention]] = {}
    for i in wanted:
        if i // size not in fitted:
            fitted = {i // size: fit(records[i // size * size :][:size])}
        yield fitted[i // size][i % size]
