"""Generated texts read by the unmodified model: how likely they are, and with their words in reverse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from detoxbench.engine.likelihood import NOTHING, Continuation, continuation, window_nlls
from detoxbench.records import BaseReading, Request, Sample
from detoxbench.results import broken_text

if TYPE_CHECKING:
    from detoxbench.lm import LanguageModel

CHUNK = 64
"""Samples read, and written, at a time. Last bits depend on the chunk, so a resumed run has the same chunks."""
DIGITS = 4
"""Decimals kept, in nats."""


def chunks(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    """The samples that are read together."""
    return [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]


def readings(lm: LanguageModel, requests: Mapping[str, Request], chunk: Sequence[Sample]) -> list[BaseReading | None]:
    """The reading of each sample of a chunk; None for a text without a token of its own after its prompt.

    `requests` are by id; no intervention may be in force on `lm`. Each text is read after its prompt, in the chat
    template where that was used: as it is, and with its words in reverse.
    """
    pairs = [_in_both_orders(lm, requests[sample.id], sample.text) for sample in chunk]
    windows = [window for pair in pairs for part in pair for window in part.all]
    nlls = iter([nll for nll, _ in window_nlls(lm, windows)])
    sums = [[_sum(nlls, part) for part in pair] for pair in pairs]
    return [_reading(*pair, *nll) for pair, nll in zip(pairs, sums, strict=True)]


def _in_both_orders(lm: LanguageModel, request: Request, text: str) -> tuple[Continuation, Continuation]:
    """What is read for a text, and for the text with its words in reverse: `NOTHING` where the words are few."""
    as_written = continuation(lm, msgspec.structs.replace(request, text=text))
    if len(broken_text.words(text)) < broken_text.ORDER_WORDS:
        return as_written, NOTHING
    return as_written, continuation(lm, msgspec.structs.replace(request, text=broken_text.words_reversed(text)))


def _sum(nlls: Iterator[float], part: Continuation) -> float:
    return sum(next(nlls) for _ in part.windows) - sum(next(nlls) for _ in part.prompt_correction)


def _reading(as_written: Continuation, in_reverse: Continuation, nll: float, reversed_nll: float) -> BaseReading | None:
    if as_written.tokens < 1:
        return None
    compared = in_reverse.tokens > 0 and not as_written.truncated_prompt and not in_reverse.truncated_prompt
    return BaseReading(
        nll=round(nll, DIGITS), tokens=as_written.tokens, reversed_nll=round(reversed_nll, DIGITS) if compared else None
    )
