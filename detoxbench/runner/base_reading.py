"""What the unmodified model finds of generated texts: how likely they are, and what their order is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from detoxbench.engine.likelihood import NOTHING, Plan, planned, read_rows
from detoxbench.records import BaseReading, Request, Sample
from detoxbench.results import broken_text

if TYPE_CHECKING:
    from detoxbench.lm import LanguageModel

CHUNK = 64
"""Samples read, and written, at a time: last bits depend on the chunk, so it is the same in a run that goes on."""
DIGITS = 4
"""Decimals kept, in nats."""


def readings(
    lm: LanguageModel, requests: Mapping[str, Request], samples: Sequence[Sample], done: int
) -> Iterator[list[BaseReading | None]]:
    """Chunk by chunk, the readings of `samples[done:]`; None for a text without a token of its own after its prompt.

    `requests` are by id; nothing may be in force on `lm`. Each text is read after its prompt, in the chat template
    where that was used: as it is, and with its words in reverse.
    """
    for start in range(done, len(samples), CHUNK):
        chunk = samples[start : start + CHUNK]
        plans = [_plans(lm, requests[sample.id], sample.text) for sample in chunk]
        nlls = iter([nll for nll, _ in read_rows(lm, [row for pair in plans for plan in pair for row in plan.all])])
        sums = [[_sum(nlls, plan) for plan in pair] for pair in plans]
        yield [_reading(*pair, *nll) for pair, nll in zip(plans, sums, strict=True)]


def _plans(lm: LanguageModel, request: Request, text: str) -> tuple[Plan, Plan]:
    """What is read of a text, and of the same with its words in reverse: nothing where those are few."""
    own = planned(lm, msgspec.structs.replace(request, text=text))
    if len(broken_text.words(text)) < broken_text.ORDER_WORDS:
        return own, NOTHING
    return own, planned(lm, msgspec.structs.replace(request, text=broken_text.words_reversed(text)))


def _sum(nlls: Iterator[float], plan: Plan) -> float:
    return sum(next(nlls) for _ in plan.rows) - sum(next(nlls) for _ in plan.off)


def _reading(own: Plan, other: Plan, nll: float, reversed_nll: float) -> BaseReading | None:
    if own.tokens < 1:
        return None
    compared = other.tokens > 0 and not own.cut and not other.cut
    return BaseReading(
        nll=round(nll, DIGITS), tokens=own.tokens, reversed_nll=round(reversed_nll, DIGITS) if compared else None
    )
