"""What flows through a run: requests, samples, scores, measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from detoxbench.errors import UsageError

BETTER, UNITS = ("higher", "lower", "neither"), ("share", "number")
Tags = dict[str, str | int | float | list[str]]
"""What a suite wants to find again in the samples, by name. Whole numbers stay whole when they are read back."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to be answered.

    `id` is unique in the suite and keys the sampling noise; `record` is the cluster that intervals resample (a prompt
    or a benchmark record); `kind` says which question of the record it is, in one word, and `tags` what else a suite
    wants to find again in the samples (a category, a group), by name. `chat` prompts go through the model's chat
    template, others are continued as running text. One with a `text` (not empty) is not answered: the model reads the
    text after the prompt, and its sample holds how likely it found it. Where the suite has a `probe`, requests only
    say where to look, and a text may be empty.
    """

    id: str
    prompt: str
    record: str
    kind: str
    chat: bool = False
    text: str | None = None
    tags: Tags = {}

    @property
    def label(self) -> str:
        """Kind and tags for people."""
        return _label(self.kind, self.tags)


def _label(kind: str, tags: Tags) -> str:
    """ "DG_onlyQ/bias": one word after the other."""
    return "/".join([kind, *(", ".join(tag) if isinstance(tag, list) else str(tag) for tag in tags.values())])


class BaseReading(msgspec.Struct, frozen=True, kw_only=True):
    """How likely the unmodified model finds a generated text after its prompt."""

    nll: float
    """Its negative log-likelihood, summed over its `tokens`, in nats."""
    tokens: int
    reversed_nll: float | None
    """The same with its words in reverse; None where it has few words, or does not fit into the context."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One text: generated ("eos", "length": how it ended), given and read ("given"), or written elsewhere ("stored");
    or none, where nothing was stored for a request ("missing").

    `tokens` counts the new tokens, the end token included; of a given text, the tokens that were read.
    """

    id: str
    record: str
    kind: str
    sample: int
    prompt: str
    text: str
    stop: Literal["eos", "length", "given", "stored", "missing"]
    tokens: int
    nll: float | None = None
    """Of a given text: its negative log-likelihood after the prompt, summed over its tokens, in nats."""
    greedy: bool | None = None
    """Of a given text: every token was the most probable one, so greedy generation begins with this text."""
    full_text: str | None = None
    """All that was written, with thinking and its marks, where `text` is the answer alone (`model.thinking`)."""
    base: BaseReading | None = None
    """Of a generated text: how likely the unmodified model finds it. None where the text has no token, and where a
    request has more answers than are read (`broken_text.ANSWERS`)."""
    tags: Tags = {}
    """The request's."""
    values: dict[str, list[float]] | None = None
    """Of a suite with a `probe`: what was measured inside the model, by name (one number, or one a layer)."""

    @property
    def answer(self) -> bool:
        """Whether it is a text that answers its request: not one that was given, nor a missing one."""
        return self.stop not in ("given", "missing")

    @property
    def label(self) -> str:
        """Kind and tags for people."""
        return _label(self.kind, self.tags)


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """A sample's scores, by slot: "main" is the run's scorer, the others are the suite's own; None is missing."""

    id: str
    sample: int
    scores: dict[str, dict[str, float] | None]


@dataclass(frozen=True)
class Measure:
    """One metric as per-cluster sums and counts, so that any interval can be computed from it.

    Its value is sum(total) / sum(count) over the clusters. `missing` counts the values
    that are None or not finite.
    """

    name: str
    better: Literal["higher", "lower", "neither"]
    total: Mapping[str, float]
    count: Mapping[str, float]
    missing: int = 0
    unit: Literal["share", "number"] = "number"
    """share: between 0 and 1, shown as per cent."""
    binary: bool = False
    """Every cluster holds one yes or no: the interval has a closed form."""
    headline: bool = True
    """Shown in the leaderboard unless all metrics are asked for."""

    def __post_init__(self) -> None:
        for field, value, choices in (("better", self.better, BETTER), ("unit", self.unit, UNITS)):
            if value not in choices:
                raise UsageError(f"measure '{self.name}' has {field}={value!r}: choose {' or '.join(choices)}")


def by_cluster(pairs: Sequence[tuple[str, float | None]]) -> tuple[dict[str, float], dict[str, float], int]:
    """Sum and count values by cluster: (total, count, how many were missing: None, NaN or infinite)."""
    total: dict[str, float] = {}
    count: dict[str, float] = {}
    missing = 0
    for cluster, value in pairs:
        if value is None or not math.isfinite(value):
            missing += 1
            continue
        total[cluster] = total.get(cluster, 0.0) + value
        count[cluster] = count.get(cluster, 0.0) + 1
    return total, count, missing


Counts = dict[str, int | None]
"""How often something happened, by name; None where nobody counted it."""


def sample_counts(samples: Sequence[Sample], scores: Sequence[Scored], *, scored: bool) -> Counts:
    """What can be counted from samples and scores alone: part of a run's `counts`.

    A count is None where it cannot be measured: `empty` and `truncated` where every text was given, `truncated` also
    where one was stored, `missing_scores` where no scorer is asked, `degenerate` and `cut_texts` where no scorer has
    that column. `outside`, texts that a decoding method cannot say, is there only where there are any.
    """
    outside = sum(s.stop == "given" and s.nll is None and not s.values for s in samples)
    generated = [s for s in samples if s.answer]
    ends_known = generated and all(s.stop != "stored" for s in generated)
    return {
        "samples": len(samples),
        "empty": sum(not s.text.strip() for s in generated) if generated else None,
        "degenerate": _count_above(scores, "degenerate", above=0.5),
        "truncated": sum(s.stop == "length" for s in generated) if ends_known else None,
        "missing_scores": sum(s.scores["main"] is None for s in scores) if scored else None,
        "cut_texts": _count_above(scores, "truncated", above=0),
        **({"outside": outside} if outside else {}),
    }


def _count_above(scores: Sequence[Scored], column: str, above: float) -> int | None:
    """Samples of which some scorer's `column` is higher than `above`; None where no scorer has that column."""
    values_by_sample = [[c[column] for c in s.scores.values() if c and column in c] for s in scores]
    return sum(any(value > above for value in values) for values in values_by_sample) if any(values_by_sample) else None
