"""Two runs side by side: what differs in their numbers, by a test; in their settings; and in their answers.

Everything is B against A: a difference is B minus A, and "better" is said of B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.records import Sample, Scored
from detoxbench.results.panels import between, mostly_broken, tested, unpraised
from detoxbench.results.settings import differing, flat, shared_identity
from detoxbench.results.store import Clusters, MetricRecord, Run, RunRecord
from detoxbench.results.tables import Column, Difference
from detoxbench.text import short

SHOWN = 10
"""How many of the samples that disagree are kept by default."""


@dataclass(frozen=True)
class Side:
    """One of the two runs, for people."""

    run_id: str
    folder: str
    model: str
    method: str
    suite: str
    scorer: str
    seed: int
    created: str


@dataclass(frozen=True)
class Compared:
    """A metric of both runs; without a difference where they have no cluster in common."""

    name: str
    better: Literal["higher", "lower", "neither"]
    unit: Literal["share", "number"]
    a: MetricRecord
    b: MetricRecord
    difference: Difference | None


class Changed(NamedTuple):
    """A key that differs; a side that has none has None."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Answer:
    """One run's answer: its score, and its text where texts are shown."""

    score: float
    text: str | None


@dataclass(frozen=True)
class Disagreement:
    """One sample of both runs: the same request, the same sample index. Texts are untrusted and may be offensive."""

    id: str
    sample: int
    kind: str
    prompt: str | None
    a: Answer
    b: Answer


@dataclass(frozen=True)
class Samples:
    """The samples that both runs have with a score: which way they went, and where they disagree most.

    `score` names the number that they are compared by: a column of the main scorer, or for given texts the negative
    log-likelihood a token. It is None where there is no such number, and `note` says why.
    """

    score: str | None
    note: str
    higher: int
    lower: int
    equal: int
    unscored: int
    most: list[Disagreement]


@dataclass(frozen=True)
class Comparison:
    """`identity`: what can change a number and differs; `settings` and `environment`: what should not, and differs."""

    a: Side
    b: Side
    metrics: list[Compared]
    identity: list[Changed]
    settings: list[Changed]
    environment: list[Changed]
    cost: list[Changed]
    counts: list[Changed]
    samples: Samples
    notes: list[str]


def compare(a: Run, b: Run, *, all_metrics: bool = False, shown: int = SHOWN) -> Comparison:
    """What distinguishes run `b` from run `a`, and whether a test supports it (Holm over the metrics).

    Headline metrics only unless `all_metrics`; `shown` samples in which they disagree most. Raises UsageError where
    both are the same run, or differ in more than method and seed (naming the keys), DetoxbenchError where a file of
    theirs cannot be read.
    """
    first, second = a.record(), b.record()
    if first.run_id == second.run_id:
        raise UsageError(f"both are run {first.run_id}: name two")
    _check_comparable(first, second)
    identity, settings, environment = _changes(first, second)
    broken = mostly_broken([[first], [second]], {})
    notes = [
        f"WARNING: more than half of the texts of {side} are broken, so it is called better in nothing"
        for side, is_broken in zip("AB", broken, strict=True)
        if is_broken
    ]
    if first.seed != second.seed:
        notes.append("the seeds differ: prompts are paired, but each run has its own sampling noise")
    if environment:
        notes.append("the environment differs too: on another machine or version the last bits of logits differ")
    return Comparison(
        a=_side(a, first),
        b=_side(b, second),
        metrics=_metrics(a, b, first, second, all_metrics),
        identity=identity,
        settings=settings,
        environment=environment,
        cost=_both(first.cost, second.cost),
        counts=_both(first.counts, second.counts),
        samples=_samples(a, b, first, shown),
        notes=notes,
    )


def _check_comparable(a: RunRecord, b: RunRecord) -> None:
    settings_a, settings_b = (dict(flat(shared_identity(record))) for record in (a, b))
    keys = differing([settings_a, settings_b])
    if keys:
        differences = [
            f"{key} ({short(settings_a.get(key, 'absent'))} | {short(settings_b.get(key, 'absent'))})" for key in keys
        ]
        raise UsageError(f"runs {a.run_id} and {b.run_id} are not comparable, they differ in {', '.join(differences)}")


def _side(run: Run, record: RunRecord) -> Side:
    names = (record.model, record.method, record.suite, record.scorer, record.seed, record.created)
    return Side(record.run_id, str(run.folder), *names)


def _changes(a: RunRecord, b: RunRecord) -> tuple[list[Changed], list[Changed], list[Changed]]:
    def between(values_a: dict[str, Any], values_b: dict[str, Any]) -> list[Changed]:
        changes = [Changed(key, values_a.get(key), values_b.get(key)) for key in differing([values_a, values_b])]
        return [change for change in changes if change.a != change.b]  # absent and null say the same

    identity = between(dict(flat(a.identity)), dict(flat(b.identity)))
    # The specification repeats the identity under shorter keys; its other keys have no part in the identity.
    already_shown = {change.key.replace(".config.", ".") for change in identity} | {"method_name", "runs_dir"}
    settings = [c for c in between(dict(flat(a.spec)), dict(flat(b.spec))) if c.key not in already_shown]
    environment = between(dict(flat(a.provenance)), dict(flat(b.provenance)))
    return identity, settings, [c for c in environment if c.key not in ("command", "git.dirty")]


def _both(a: dict[str, Any], b: dict[str, Any]) -> list[Changed]:
    return [Changed(k, a.get(k), b.get(k)) for k in dict.fromkeys([*a, *b]) if (a.get(k), b.get(k)) != (None, None)]


def _metrics(a: Run, b: Run, first: RunRecord, second: RunRecord, all_metrics: bool) -> list[Compared]:
    names = [n for n, m in first.metrics.items() if n in second.metrics and (all_metrics or m.headline)]
    clusters_a, clusters_b = _clusters(a), _clusters(b)
    columns = [Column(n, first.metrics[n].better, first.metrics[n].unit) for n in names]
    seeds = [first.seed] if first.seed == second.seed else []
    differences = [(column, between(clusters_b, clusters_a, column), seeds) for column in columns]
    broken = mostly_broken([[second], [first]], {})
    return [
        Compared(
            c.name, c.better, c.unit, first.metrics[c.name], second.metrics[c.name], unpraised(difference, *broken)
        )
        for c, difference in zip(columns, tested(differences), strict=True)
    ]


def _clusters(run: Run) -> Clusters:
    try:
        return run.clusters()
    except (OSError, msgspec.DecodeError) as error:
        raise DetoxbenchError(f"{run.folder / 'clusters.json'} cannot be read, so nothing is tested: {error}") from None


def _samples(a: Run, b: Run, record: RunRecord, shown: int) -> Samples:
    name, note = _score_name(record)
    sides = [_scored(run, name) for run in (a, b)]
    keys = [key for key in sides[0] if key in sides[1]]
    pairs = [(key, x, y) for key in keys if (x := sides[0][key][1]) is not None and (y := sides[1][key][1]) is not None]
    if not pairs:
        return Samples(None, note or "no sample has a score in both runs", 0, 0, 0, len(keys), [])
    furthest = sorted((p for p in pairs if p[1] != p[2]), key=lambda p: (-abs(p[2] - p[1]), p[0]))[:shown]
    most = []
    for key, x, y in furthest:
        sample_a, sample_b = sides[0][key][0], sides[1][key][0]
        most.append(
            Disagreement(*key, sample_a.label, sample_a.prompt, Answer(x, sample_a.text), Answer(y, sample_b.text))
        )
    return Samples(
        score=name or "negative log-likelihood a token",
        note=note,
        higher=sum(y > x for _, x, y in pairs),
        lower=sum(y < x for _, x, y in pairs),
        equal=sum(y == x for _, x, y in pairs),
        unscored=len(keys) - len(pairs),
        most=most,
    )


def _score_name(record: RunRecord) -> tuple[str | None, str]:
    """The main scorer's column, None where the texts are given; and a remark."""
    from detoxbench import scorers, suites

    try:
        if not suites.get(record.suite).needs_scorer:
            return None, ""
        return scorers.get(record.scorer).primary, ""
    except UsageError as error:
        return "toxicity", f"{error}; samples are compared by 'toxicity'"


def _scored(run: Run, name: str | None) -> dict[tuple[str, int], tuple[Sample, float | None]]:
    try:
        samples, scores = run.samples(), run.scores()
    except OSError as error:
        raise DetoxbenchError(f"a file of run '{run.folder}' is not there: {error}") from None
    if [(s.id, s.sample) for s in samples] != [(s.id, s.sample) for s in scores]:
        raise DetoxbenchError(f"samples.jsonl and scores.jsonl in '{run.folder}' do not belong together: run it again")
    return {(s.id, s.sample): (s, _score(s, c, name)) for s, c in zip(samples, scores, strict=True)}


def _score(sample: Sample, scored: Scored, name: str | None) -> float | None:
    if name is None:
        return sample.nll / sample.tokens if sample.nll is not None and sample.tokens else None
    return (scored.scores.get("main") or {}).get(name)
