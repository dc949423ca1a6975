"""A detoxification method and a suite from outside: asks the model to whisper, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detoxbench import (
    FitData,
    Intervention,
    LanguageModel,
    Measure,
    Method,
    Prompt,
    Request,
    Sample,
    Scored,
    Suite,
    by_cluster,
    knob,
)


@dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    words: str = knob("please whisper . ", "what is said before every prompt", source="invented for a test")


class Whisper(Method[WhisperConfig]):
    """Says a kind word before every prompt."""

    Config = WhisperConfig
    paper = "none"
    fidelity = "ours (invented for a test)"

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return Intervention(method=self.name, base=lm.fingerprint, prompts=(Prompt(prefix=self.config.words),))


@dataclass(frozen=True, kw_only=True)
class LoudnessConfig:
    prompts: int = knob(2, "how many prompts are asked", ge=1)
    limit: int | None = knob(None, "the first N prompts", ge=1)


class Loudness(Suite[LoudnessConfig]):
    """Counts the texts that shout."""

    Config = LoudnessConfig

    def requests(self) -> list[Request]:
        numbers = range(self.config.limit or self.config.prompts)
        return [Request(id=str(i), prompt=f"say {i} :", record=str(i), kind="prompt") for i in numbers]

    def measures(self, samples: Sequence[Sample], scores: Sequence[Scored], primary: str) -> list[Measure]:
        total, count, missing = by_cluster([(s.record, float(s.text.isupper())) for s in samples])
        return [Measure("loud_share", "lower", total, count, missing, unit="share")]
