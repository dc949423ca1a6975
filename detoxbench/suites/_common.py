"""What the built-in suites share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from detoxbench.data import readers
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.records import Measure, Sample, Scored, by_cluster

R = TypeVar("R")
EMBEDDED_SEED = 0
"""Seed of the embedded questions. It is fixed, so that every run gets the same ones."""


def read(
    data: str,
    limit: int | None,
    parse: Callable[[Iterable[readers.Row]], list[R]],
    embedded: Callable[[], Iterable[Any]],
) -> list[R]:
    """The first `limit` records of the embedded data or of the file `data`, all of which are checked."""
    if data != "embedded":
        return parse(readers.rows(data))[:limit]
    try:
        return parse(readers.embedded(embedded(), "record"))[:limit]
    except ValueError as error:
        raise UsageError(str(error)) from None


def first_of_each(records: Iterable[R], part: Callable[[R], Hashable], limit: int | None) -> list[R]:
    """The first `limit` records of each part, in their order. Files are often sorted by part."""
    seen: Counter[Hashable] = Counter()
    chosen = []
    for record in records:
        seen[part(record)] += 1
        if limit is None or seen[part(record)] <= limit:
            chosen.append(record)
    return chosen


def measure(
    name: str,
    better: Literal["higher", "lower", "neither"],
    values: Iterable[tuple[str, float | None]],
    *,
    unit: Literal["share", "number"],
    yes_no: bool = False,
    headline: bool = True,
) -> Measure:
    """A measure from (cluster, value) pairs; `yes_no` ones are binary if no cluster holds a half or several values."""
    total, count, missing = by_cluster(list(values))
    binary = yes_no and set(total.values()) <= {0.0, 1.0} and set(count.values()) <= {1.0}
    return Measure(name, better, total, count, missing, unit, binary, headline)


def main_score(sample: Sample, scored: Scored, primary: str) -> float | None:
    """The main scorer's number; None for an empty text, even if the scorer gives one (Perspective gives none)."""
    columns = scored.scores.get("main")
    return columns.get(primary) if columns and sample.text.strip() else None


def refusal_of(sample: Sample, scored: Scored) -> float | None:
    """1 if the auxiliary scorer "refusal" says that the answer refuses, 0 if not; an empty answer does neither."""
    columns = scored.scores.get("refusal")
    return columns["refusal"] if columns and sample.text.strip() else None


def degenerate_share(samples: Sequence[Sample], scores: Sequence[Scored]) -> list[Measure]:
    """Share of broken texts, if a scorer marks them: [] or one measure. On such texts a safety score means nothing."""
    values = [
        (sample.record, next((c["degenerate"] for c in scored.scores.values() if c and "degenerate" in c), None))
        for sample, scored in zip(samples, scores, strict=True)
    ]
    if all(value is None for _, value in values):
        return []
    return [measure("degenerate_share", "lower", values, unit="share", yes_no=True)]


def nll_of(sample: Sample) -> float:
    """The negative log-likelihood of a given text, in nats: infinite for one outside of what a decoding method can say.
    Raises DetoxbenchError where the sample was generated."""
    if sample.nll is None and sample.stop == "given":
        return math.inf
    if sample.nll is None:
        raise DetoxbenchError(f"sample '{sample.id}' has no likelihood: it is no text that was given to be read")
    return sample.nll


def preferred(
    name: str,
    samples: Iterable[Sample],
    cost: Callable[[Sample], float] = nll_of,
    *,
    side: Callable[[Sample], str] = lambda sample: sample.kind,
    headline: bool = True,
) -> Measure:
    """Share of records whose right text costs less than every wrong one (a tie is wrong; None where both are infinite);
    `side` says which of them a sample is, "right" or "wrong"."""
    best: dict[str, dict[str, float]] = {}
    for sample in samples:
        sides = best.setdefault(sample.record, {})
        which = side(sample)
        sides[which] = min(sides.get(which, float("inf")), cost(sample))
    values = [(record, less(sides["right"], sides["wrong"])) for record, sides in best.items()]
    return measure(name, "higher", values, unit="share", yes_no=True, headline=headline)


def less(right: float, wrong: float) -> float | None:
    """1 where the right text costs less than the wrong one, else 0; None where both are outside of what can be said."""
    return None if right == wrong == math.inf else float(right < wrong)


def perplexity(
    name: str, values: Sequence[tuple[str, float, int]], *, missing: int = 0, headline: bool = True
) -> Measure:
    """exp(sum of NLL / sum of units) over (cluster, NLL, units); an infinite NLL counts as missing.

    A measure is a ratio of sums over clusters, so each NLL x of n units becomes P n (1 + x / n - m), with m the mean
    NLL of a unit and P = exp(m): their sum over all units is P, and their spread that of P by the delta method.
    """
    finite = [value for value in values if math.isfinite(value[1])]
    missing += len(values) - len(finite)
    if not finite:
        return Measure(name, "lower", {}, {}, missing, headline=headline)
    mean = sum(nll for _, nll, _ in finite) / sum(n for _, _, n in finite)
    value = math.exp(min(mean, 700.0))  # beyond that there is no float
    total: dict[str, float] = {}
    count: dict[str, float] = {}
    for cluster, nll, n in finite:
        total[cluster] = total.get(cluster, 0.0) + value * (n + nll - mean * n)
        count[cluster] = count.get(cluster, 0.0) + n
    return Measure(name, "lower", total, count, missing, headline=headline)


def nll_per_token(sample: Sample) -> float:
    """Mean nats of a given text's tokens."""
    return nll_of(sample) / sample.tokens
