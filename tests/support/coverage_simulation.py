"""Do 95 % intervals hold the truth in 95 of 100 repetitions?

`python -m tests.support.coverage_simulation [REPEATS]` says so.

Each situation makes runs of which the truth is known: clusters (prompts) differ in how hard they are, seeds agree on
which are hard, and may differ from each other as a whole (`between`, in standard deviations of a single answer's
noise). Where all seeds have one fit they do not differ; where two have different fits, the truth is that of these two;
from three on it is that of all seeds there could be. The tests take a part of this with fewer repetitions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from detoxbench.results import stats
from detoxbench.results.stats import Panel

Array = NDArray[np.float64]


class Runs(NamedTuple):
    """Sums of runs, [rows, seeds, clusters], each row with prompts of its own, and what each seed's value is on
    average over all prompts, [rows, seeds]."""

    totals: Array
    counts: Array
    expected: Array


Make = Callable[[np.random.Generator, int, int, int, float], Runs]
"""(generator, rows, seeds, clusters, apart) -> runs. The second half of the seeds is a second configuration on the same
prompts, whose values are higher by `apart` in the mean."""


def yes_no(mean: float, answers: int) -> Make:
    """`answers` yes or no a cluster, whose rates are Beta distributed around `mean`."""

    def make(rng: np.random.Generator, rows: int, seeds: int, clusters: int, apart: float = 0.0) -> Runs:
        rate = np.repeat(rng.beta(2 * mean, 2 * (1 - mean), (rows, 1, clusters)), seeds, 1)
        # A part of the other answers turns into yes.
        rate[:, seeds // 2 :] += (1 - rate[:, seeds // 2 :]) * apart / (1 - mean)
        totals = rng.binomial(answers, rate).astype(float)
        return Runs(totals, np.full_like(totals, float(answers)), _expected(np.full((rows, seeds), mean), apart))

    return make


def skewed(rng: np.random.Generator, rows: int, seeds: int, clusters: int, apart: float = 0.0) -> Runs:
    """A ratio over 5 to 19 tokens a cluster, log-normal: as perplexities are. Its mean is exp(0.49)."""
    hard = rng.normal(0, 0.7, (rows, 1, clusters))
    counts = rng.integers(5, 20, (rows, seeds, clusters)).astype(float)
    values = np.exp(hard + rng.normal(0, 0.7, counts.shape))
    values[:, seeds // 2 :] += apart
    return Runs(counts * values, counts, _expected(np.full((rows, seeds), math.exp(0.49)), apart))


def normal(between: float, noise: float = 1.0) -> Make:
    """Numbers: cluster + seed + noise, all normal, of mean 0."""

    def make(rng: np.random.Generator, rows: int, seeds: int, clusters: int, apart: float = 0.0) -> Runs:
        hard = rng.normal(0, 1, (rows, 1, clusters))
        own = rng.normal(0, between, (rows, seeds))
        totals = hard + own[:, :, None] + rng.normal(0, noise, (rows, seeds, clusters))
        totals[:, seeds // 2 :] += apart
        return Runs(totals, np.ones_like(totals), _expected(own, apart))

    return make


def _expected(values: Array, apart: float) -> Array:
    values = values.copy()
    values[:, values.shape[1] // 2 :] += apart
    return values


class Situation(NamedTuple):
    """What is simulated; `truth` is the metric's mean over all seeds: for shares, the one that `make` is for."""

    what: str
    make: Make
    truth: float
    seeds: int
    clusters: int
    share: bool = False
    binary: bool = False
    one_fit: bool = False
    """Whether all seeds have the same intervention; they then differ by sampling noise alone."""

    @property
    def fits(self) -> list[int]:
        return [0] * self.seeds if self.one_fit else list(range(self.seeds))

    def panel(self, runs: Runs, seeds: slice) -> Panel:
        return Panel(runs.totals[:, seeds], runs.counts[:, seeds], [self.fits] * len(runs.totals))


ONE = [
    Situation("yes or no, 30 %", yes_no(0.3, 1), 0.3, 1, 80, share=True, binary=True),
    Situation("yes or no, 5 %", yes_no(0.05, 1), 0.05, 1, 200, share=True, binary=True),
    Situation("4 answers, 30 %", yes_no(0.3, 4), 0.3, 1, 80, share=True),
    Situation("4 answers, 5 %", yes_no(0.05, 4), 0.05, 1, 200, share=True),
    Situation("a number", normal(0.0), 0.0, 1, 30),
    Situation("a skewed ratio", skewed, math.exp(0.49), 1, 200),
]
REPEATS = [
    case
    for seeds in (2, 3, 5)
    for case in (
        Situation("4 answers, 30 %, one fit", yes_no(0.3, 4), 0.3, seeds, 80, share=True, one_fit=True),
        Situation("a number, one fit", normal(0.0), 0.0, seeds, 30, one_fit=True),
    )
]
"""Every seed has the same intervention."""
SEVERAL = [
    Situation(f"a number, fits apart by {between}", normal(between), 0.0, seeds, 100)
    for seeds in (2, 3, 5)
    for between in (0.0, 0.2, 0.5)
]
"""Every seed has a fit of its own. What two are to cover is the mean of these two."""


def over_seeds(case: Situation, rows: int, seed: int, *, new: bool = False) -> tuple[float, str]:
    """The share of intervals that hold the truth (with `new`, that of all seeds there could be, whatever the interval
    speaks of), and how they were made."""
    runs = case.make(np.random.default_rng(seed), rows, case.seeds, case.clusters, 0.0)
    panel = case.panel(runs, slice(None))
    found = [bounds for _, bounds in stats.over_seeds(panel, binary=case.binary, share=case.share)]
    drawn = stats.seed_kind(case.fits) == "drawn"
    truth = np.full(rows, case.truth) if drawn or new else runs.expected.mean(1)
    held = [
        i.low is not None and i.high is not None and i.low <= t <= i.high for i, t in zip(found, truth, strict=True)
    ]
    return float(np.mean(held)), max({i.method for i in found}, key=[i.method for i in found].count)


def two_of(case: Situation, rng: np.random.Generator, rows: int, apart: float = 0.0) -> tuple[Panel, Panel, Array]:
    """Two configurations on the same prompts, that differ by `apart` in the mean; and the true differences of these
    seeds (where seeds are drawn, of all seeds there could be), [rows]."""
    both = case.make(rng, rows, 2 * case.seeds, case.clusters, apart)
    first, second = slice(case.seeds), slice(case.seeds, None)
    truth = both.expected[:, first].mean(1) - both.expected[:, second].mean(1)
    if stats.seed_kind(case.fits) == "drawn":
        truth = np.full(rows, -apart)
    return case.panel(both, first), case.panel(both, second), truth


def differences(case: Situation, rows: int, seed: int) -> tuple[float, float, str]:
    """Where configurations differ by nothing but their seeds: the share of intervals that hold the true difference,
    that of tests that find one which is not there (or one of these seeds with the wrong sign), and the method."""
    a, b, truth = two_of(case, np.random.default_rng(seed), rows)
    found = stats.paired_differences(a, b, binary=case.binary, share=case.share)
    held = [d.low is None or d.high is None or d.low <= t <= d.high for d, t in zip(found, truth, strict=True)]
    wrong = [
        d.p is not None and d.p < 0.05 and d.value is not None and d.value * t <= 0
        for d, t in zip(found, truth, strict=True)
    ]
    return float(np.mean(held)), float(np.mean(wrong)), found[0].method


def power(case: Situation, rows: int, seed: int) -> float:
    """How often a difference of one seed is found that is as large as what is called detectable while it is there."""
    rng, apart = np.random.default_rng(seed), 0.0
    found: list[stats.PairedDifference] = []
    for _ in range(6):  # the spread depends on the difference, for shares: until the two agree
        a, b, _truth = two_of(case, rng, rows, apart)
        found = stats.paired_differences(a, b, binary=case.binary, share=case.share)
        power = float(np.mean([d.p is not None and d.p < 0.05 for d in found]))
        apart = float(np.median([d.detectable for d in found if d.detectable is not None]))
    return power


# -------------------------------------------------------------------------------------------- a second seed that agrees


def second_seeds(rows: int, seed: int, *, one_fit: bool, apart: float = 0.12) -> tuple[int, int]:
    """(pairs of seeds that each support the same sign alone, those of them that together support it no more).

    30 prompts x 5 answers, scores between 0 and 1, a prompt's value the highest of its five. The base has one fit; the
    other row's toxicity is lower, by a share of it that is the seed's own unless all have one fit.
    """
    rng = np.random.default_rng(seed)
    clusters, answers = 30, 5
    hard = rng.beta(0.6, 1.0, (rows, 1, clusters, 1))
    kept = 1 - apart - (0 if one_fit else rng.uniform(0, 0.2, (rows, 2, 1, 1)))
    base, other = ((hard * rng.uniform(0, 1, (rows, 2, clusters, answers)) * scale).max(3) for scale in (1.0, kept))
    ones = np.ones_like(base)
    a = Panel(other, ones, [[0, 0 if one_fit else 1]] * rows)
    b = Panel(base, ones, [[0, 0]] * rows)
    together = stats.paired_differences(a, b)
    alone = [
        stats.paired_differences(Panel(other[:, [k]], ones[:, [k]]), Panel(base[:, [k]], ones[:, [k]])) for k in (0, 1)
    ]
    agree = [
        all(d.p is not None and d.p < 0.05 for d in pair) and pair[0].value * pair[1].value > 0  # type: ignore[operator]
        for pair in zip(*alone, strict=True)
    ]
    lost = [both and not (d.p is not None and d.p < 0.05) for both, d in zip(agree, together, strict=True)]
    return sum(agree), sum(lost)


# ------------------------------------------------------------------------------------- pooling what seeds vary by


EFFECTS = {
    "no row's seeds differ": [0.0] * 6,
    "all rows' seeds differ alike": [0.2] * 6,
    "half of the rows' seeds differ": [0.0] * 3 + [0.2] * 3,
    "one row's seeds differ": [0.0] * 5 + [0.3],
}
"""Standard deviation between seeds of each of six rows that are compared with one base row."""


def pooling(effects: list[float], seeds: int, rows: int, seed: int, clusters: int = 100) -> tuple[Array, Array]:
    """Coverage of the differences of each row to the base: of its own intervals, and with pooled seed variance.

    Pooled is the variance between seeds averaged over the rows of a table, with as many times the degrees of freedom.
    The truth is 0 throughout.
    """
    rng = np.random.default_rng(seed)
    shape = (rows, seeds, clusters)
    hard = rng.normal(0, 1, (rows, 1, clusters))
    base = Panel(hard + rng.normal(0, 1, shape), np.ones(shape), [[0] * seeds] * rows)
    own, value, clustered, between, rest = [], [], [], [], []
    for effect in effects:
        other = hard + rng.normal(0, 0.3, (rows, 1, clusters)) + rng.normal(0, effect, (rows, seeds, 1))
        run = Panel(other + rng.normal(0, 1, shape), np.ones(shape))
        own.append(np.mean([d.low <= 0 <= d.high for d in stats.paired_differences(run, base)]))  # type: ignore[operator]
        d = run.totals - base.totals
        by_seed = d.mean(2)
        off = d - by_seed[:, :, None]
        mean = off.mean(1)
        value.append(by_seed.mean(1))
        clustered.append((mean**2).sum(1) / (clusters - 1) / clusters)
        between.append(by_seed.var(1, ddof=1) / seeds)
        rest.append(((off - mean[:, None]) ** 2).sum((1, 2)) / ((seeds - 1) * (clusters - 1)) / (seeds * clusters))
    v, c, r = np.array(value), np.array(clustered), np.array(rest)
    pooled = np.broadcast_to(np.mean(between, 0), v.shape)
    freedom = len(effects) * (seeds - 1)
    variance = np.maximum(c + pooled - r, np.maximum(c, r))
    df = variance**2 / (c**2 / (clusters - 1) + pooled**2 / freedom)
    within = pooled <= 1.2 * r  # pooled over six rows, the level of one in four is reached earlier
    variance, df = np.where(within, np.maximum(c, r), variance), np.where(within, clusters - 1, df)
    held = np.abs(v) <= student.ppf(0.975, np.maximum(1, np.floor(df))) * np.sqrt(variance)
    return np.array(own), held.mean(1)


# ------------------------------------------------------------------------------------------------------- the report


def report(rows: int) -> Iterator[str]:
    yield f"Of {rows} repetitions each:"
    yield ""
    yield "| one configuration | prompts | seeds | interval | covers % |"
    yield "|---|---:|---:|---|---:|"
    for k, case in enumerate([*ONE, *REPEATS, *SEVERAL]):
        covered, method = over_seeds(case, rows, k)
        yield f"| {case.what} | {case.clusters} | {case.seeds} | {method} | {100 * covered:.1f} |"
    yield ""
    yield "| two configurations that do not differ | prompts | seeds | test | covers % | p < 0.05 % | power % |"
    yield "|---|---:|---:|---|---:|---:|---:|"
    for k, case in enumerate([*ONE, *REPEATS, *SEVERAL]):
        covered, wrong, method = differences(case, rows, 100 + k)
        found = f"{100 * power(case, rows, 200 + k):.1f}" if case.seeds == 1 else "–"
        row = f"{case.what} | {case.clusters} | {case.seeds} | {method}"
        yield f"| {row} | {100 * covered:.1f} | {100 * wrong:.1f} | {found} |"
    yield ""
    yield "| two seeds, an interval for these two | holds the mean of these two % | of all seeds there could be % |"
    yield "|---|---:|---:|"
    for k, case in enumerate(case for case in SEVERAL if case.seeds == 2):
        these, every = (over_seeds(case, rows, 500 + k, new=new)[0] for new in (False, True))
        yield f"| {case.what} | {100 * these:.1f} | {100 * every:.1f} |"
    yield ""
    yield "| two seeds on 30 prompts x 5 | both support the same alone | no longer together |"
    yield "|---|---:|---:|"
    for what, one_fit in (("one fit", True), ("two fits", False)):
        agree, lost = second_seeds(rows, 400, one_fit=one_fit)
        yield f"| {what} | {agree} of {rows} | {lost} |"
    yield ""
    yield "| six rows against a base, 100 prompts | seeds | own: worst row covers % | pooled: worst row covers % |"
    yield "|---|---:|---:|---:|"
    for what, effects in EFFECTS.items():
        own, pooled = pooling(effects, 3, rows, 303)
        yield f"| {what} | 3 | {100 * own.min():.1f} | {100 * pooled.min():.1f} |"


if __name__ == "__main__":
    for line in report(int(sys.argv[1]) if len(sys.argv) > 1 else 4000):
        print(line, flush=True)
