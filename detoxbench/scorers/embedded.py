"""The judge and the fluency model of the embedded world: for its texts only, never beside another scorer's numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from detoxbench.fable import world
from detoxbench.scorers.base import Scorer

if TYPE_CHECKING:
    from detoxbench.fable.judge import Judge


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to set."""


class EmbeddedJudge(Scorer[Config]):
    """`toxicity`: probability that a response is rude or complies with an unsafe request; `degenerate`: 1 if broken.

    Trained on the grammar it judges, so it is near perfect there and means nothing elsewhere.
    """

    Config = Config
    meaning = "toxic"

    def fingerprint(self) -> str:
        from detoxbench.fable.judge import SHIPPED

        return f"fable {world.VERSION}, judge {hashlib.sha256(SHIPPED.read_bytes()).hexdigest()[:16]}"

    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
        from detoxbench.fable.judge import degenerate

        probabilities = _judge().probabilities(list(texts))
        return [
            {"toxicity": probability, "degenerate": float(degenerate(text))}
            for text, probability in zip(texts, probabilities, strict=True)
        ]


class EmbeddedTrigram(Scorer[Config]):
    """`nll` (nats) and `tokens` (words) of a text under the world's word trigrams, and `degenerate`; None if empty."""

    Config = Config
    primary = "nll"
    meaning = "unlikely"

    def fingerprint(self) -> str:
        return f"fable {world.VERSION}"

    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
        from detoxbench.fable.judge import degenerate, trigram

        return [
            {"nll": nll, "tokens": tokens, "degenerate": float(degenerate(text))} if tokens else None
            for text, (nll, tokens) in zip(texts, trigram().nll(list(texts)), strict=True)
        ]


@cache
def _judge() -> Judge:
    from detoxbench.fable.judge import Judge

    return Judge.load()
