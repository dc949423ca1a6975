"""Intervals and tests on per-cluster sums: what a number is worth, and whether two numbers differ.

A metric is a ratio, sum(total) / sum(count) over clusters (prompts or records). Clusters are independent, what is
inside one is not, so everything here works on clusters. All intervals are 95 %, all p-values two-sided.

One run has a closed form (Wilson) or a cluster bootstrap. Several seeds are averaged, and since they share their
clusters the variance has two levels: "two-way clustered" (Cameron, Gelbach and Miller 2011), with Satterthwaite's
degrees of freedom. Resampling seeds too would be simpler, but three seeds are too few to resample: in 1,000 simulated
triples (100 clusters) such intervals covered 75 % where seeds differ much and 99 % where they differ little.

How often these intervals hold the truth is simulated in tests/coverage_simulation.py; docs/statistics.md has the
figures, and why the variance between seeds is not pooled over the rows of a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detoxbench.errors import NonFiniteError
from detoxbench.store import MetricRecord
from detoxbench.suites.base import Measure

Sums = tuple[Mapping[Any, float], Mapping[Any, float]]
"""One run's (total, count), each by cluster."""
Array = NDArray[np.float64]

RESAMPLES = 2000
POWER = 0.8
"""Of the test that the smallest detectable difference is for."""
_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(0.975)


class Interval(NamedTuple):
    """A 95 % interval and how it was made; without bounds, `method` says why there are none."""

    low: float | None
    high: float | None
    method: str


class Difference(NamedTuple):
    """Mean of a minus b over the `n` clusters that both have; None where there is nothing to compare."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    method: str
    effect: float | None = None
    """The value over the standard deviation of the clusters' differences (Cohen's d_z, 1988, section 2.3.5)."""
    detectable: float | None = None
    """The difference that a test at the level 0.05 finds with a power of 80 %, given the spread seen here:
    (t_0.975 + t_0.8) standard errors (Bloom 1995). Several seeds have none: their degrees of freedom are a matter of
    luck, and the formula does not hold."""
    above: int = 0
    """Clusters in which a is higher than b. For one yes or no a cluster, above / below is the matched odds ratio."""
    below: int = 0


class Panel(NamedTuple):
    """Sums of many runs, [rows, seeds, clusters]: a row is a configuration, count 0 stands for not observed."""

    totals: Array
    counts: Array

    def row(self, r: int) -> Panel:
        """Row `r` alone."""
        return Panel(self.totals[r : r + 1], self.counts[r : r + 1])


def attach(measures: Iterable[Measure]) -> dict[str, MetricRecord]:
    """The measures of one run as records with values and intervals, in the same order.

    Raises NonFiniteError naming a metric that has a sum or count that is not finite.
    """
    records: dict[str, MetricRecord] = {}
    for m in measures:
        try:
            bounds = interval(m.total, m.count, binary=m.binary, share=m.unit == "share")
        except ValueError as error:
            raise NonFiniteError(f"metric '{m.name}': {error}") from None
        records[m.name] = MetricRecord(
            value=estimate(m.total, m.count),
            low=bounds.low,
            high=bounds.high,
            n=sum(n > 0 for n in m.count.values()),
            missing=m.missing,
            better=m.better,
            unit=m.unit,
            interval=bounds.method,
            headline=m.headline,
        )
    return records


def estimate(total: Mapping[Any, float], count: Mapping[Any, float]) -> float | None:
    """sum(total) / sum(count); None without a single observation."""
    n = math.fsum(count.values())
    return math.fsum(total[c] for c in count) / n if n > 0 else None


def interval(
    total: Mapping[Any, float], count: Mapping[Any, float], *, binary: bool = False, share: bool = False, seed: int = 0
) -> Interval:
    """95 % interval of sum(total) / sum(count) for one run.

    Wilson's closed form where every cluster holds one yes or no (`binary`), otherwise a cluster bootstrap: BCa
    (Efron 1987), its levels widened from the normal to the t distribution as percentile intervals are too short for
    few clusters (Hesterberg 2015, section 3.3). `share` says that values lie between 0 and 1.
    """
    totals, counts = (values[0] for values in panel([[(total, count)]]))
    t, n = totals[0], counts[0]
    if binary and len(t) and _one_each(totals, counts):
        return Interval(*wilson(t.sum(), n.sum()), "Wilson")
    known = _degenerate(totals, counts, share)
    if known is not None:
        return known
    # By value: the resamples then depend neither on the clusters' names nor on their order.
    order = np.lexsort((n, t))
    t, n = t[order], n[order]
    value = float(t.sum() / n.sum())
    clusters = len(t)
    draws = np.empty(RESAMPLES)
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // clusters)  # bounds the memory: 16 MB of indices at a time
    for start in range(0, RESAMPLES, step):
        rows = rng.integers(clusters, size=(min(step, RESAMPLES - start), clusters))
        draws[start : start + step] = t[rows].sum(1) / n[rows].sum(1)

    influence = t - value * n
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    tie = 1e-12 * np.abs(draws).max()  # resamples equal to the estimate count half, whatever rounding made of them
    below = ((draws < value - tie).mean() + (draws <= value + tie).mean()) / 2
    bias = _NORMAL.inv_cdf(min(max(float(below), 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    reach = math.sqrt(clusters / (clusters - 1)) * _t_quantile(0.975, clusters - 1)
    levels = [_NORMAL.cdf(bias + (bias + z) / max(1 - acceleration * (bias + z), 1e-3)) for z in (-reach, reach)]
    low, high = np.quantile(draws, levels)
    # Holds the estimate by construction, but for rounding or a bias beyond `reach`, which no data we tried has.
    return Interval(min(float(low), value), max(float(high), value), "cluster bootstrap (BCa)")


def panel(rows: Sequence[Sequence[Sums | None]]) -> Panel:
    """rows[r][s] is the sums of row r under seed s (None: there are none) as arrays over all clusters observed.

    Raises ValueError naming a cluster whose sum or count is not finite.
    """
    asked = {tuple(run[1]) for seeds in rows for run in seeds if run}  # mostly one: all runs have the same clusters
    names = sorted({c for clusters in asked for c in clusters})
    place = {name: k for k, name in enumerate(names)}
    where = {clusters: [place[c] for c in clusters] for clusters in asked}
    totals = np.zeros((len(rows), max(map(len, rows), default=0), len(names)))
    counts = np.zeros_like(totals)
    for r, seeds in enumerate(rows):
        for s, run in enumerate(seeds):
            if run is not None:
                total, count = run
                clusters = tuple(count)
                totals[r, s, where[clusters]] = [total[c] for c in clusters]
                counts[r, s, where[clusters]] = list(count.values())
    bad = ~(np.isfinite(totals) & np.isfinite(counts))
    if bad.any():
        raise ValueError(f"the sum or count of cluster '{names[int(np.argwhere(bad)[0, 2])]}' is not finite")
    seen = counts > 0
    totals[~seen] = 0
    observed = seen.any((0, 1))
    return Panel(totals.compress(observed, 2), counts.compress(observed, 2))


def over_seeds(
    found: Panel, *, binary: bool = False, share: bool = False, seed: int = 0
) -> list[tuple[float | None, Interval]]:
    """For each row the mean over seeds of its values, and the 95 % interval of that.

    Seeds without an observation are left out. One seed is `interval`; with more, clusters and seeds both count as
    drawn from a population: the interval speaks of new prompts and new seeds. Shares are treated on the logit scale,
    which keeps the interval inside 0 and 1.
    """
    results: list[tuple[float | None, Interval]] = []
    for at in _chunks(found):
        totals, counts = found.totals[at], found.counts[at]
        ratios, there = _ratios(totals, counts)
        value = ratios.sum(1) / np.maximum(there.sum(1), 1)
        error, freedom = _two_way(_influence(totals, counts, ratios), ratios, there, (counts > 0).any(1).sum(1))
        for r, seeds in enumerate(there.sum(1)):
            observed = (counts[r] > 0).any(0)
            t, n = totals[r][there[r]][:, observed], counts[r][there[r]][:, observed]
            if seeds < 2:
                one: Sums = (dict(enumerate(t[0])), dict(enumerate(n[0]))) if seeds else ({}, {})
                results.append((estimate(*one), interval(*one, binary=binary, share=share, seed=seed)))
                continue
            v = float(value[r])
            known = _degenerate(t, n, share)
            results.append((v, known or _t_interval(v, float(error[r]), float(freedom[r]), share)))
    return results


def paired_differences(a: Panel, b: Panel, *, binary: bool = False, share: bool = False) -> list[Difference]:
    """Each row of `a` minus the same row of `b` (or its only row): over seeds the mean of the differences of values.

    A cluster enters a seed's difference where both sides have observed it. What two runs have in common in a cluster
    cancels, which is why this interval is narrower than the two runs' own: the difficulty of the prompt, and, since
    sampling noise is keyed by seed, prompt, sample and token, the part of each sample's luck that the two models share
    (a cluster's sums are over the same samples, so pairing clusters pairs the samples). With one seed the variance is
    that of the clusters' differences (paired t), with more it has two levels, as in `over_seeds`. The p-value is of
    the same t, except for one seed of yes or no answers: McNemar's exact test.
    """
    results: list[Difference] = []
    for at in _chunks(a):
        other = slice(None) if len(b.totals) == 1 else at
        both = (a.counts[at] > 0) & (b.counts[other] > 0)
        sides = [(np.where(both, x.totals[y], 0), np.where(both, x.counts[y], 0)) for x, y in ((a, at), (b, other))]
        results += _paired(sides[0], sides[1], binary, share)
    return results


def _paired(a: tuple[Array, Array], b: tuple[Array, Array], binary: bool, share: bool) -> list[Difference]:
    """`paired_differences` of (totals, counts) in which both sides have the same clusters."""
    (totals_a, counts_a), (totals_b, counts_b) = a, b
    ratios_a, there = _ratios(totals_a, counts_a)
    ratios_b, _ = _ratios(totals_b, counts_b)
    by_seed = ratios_a - ratios_b
    seeds, clusters = there.sum(1), (counts_a > 0).any(1).sum(1)
    value = by_seed.sum(1) / np.maximum(seeds, 1)
    influence = _influence(totals_a, counts_a, ratios_a) - _influence(totals_b, counts_b, ratios_b)
    error, freedom = _two_way(influence, by_seed, there, clusters)
    spread = np.sqrt((_over(influence.sum(1), seeds) ** 2).sum(1) / np.maximum(clusters - 1, 1))

    scale = np.maximum(*(np.abs(_per_cluster(t, n)).max((1, 2), initial=0) for t, n in (a, b)))
    # The seeds' values differ from their mean by no more than rounding, and no cluster from the others.
    apart = np.where(there, np.abs(by_seed - value[:, None]), 0).max(1, initial=0)
    flat = np.maximum(np.abs(influence).max((1, 2), initial=0), apart) <= 1e-12 * scale
    means = _over(_per_cluster(totals_a, counts_a).sum(1) - _per_cluster(totals_b, counts_b).sum(1), seeds)
    above, below = (means > 1e-12 * scale[:, None]).sum(1), (means < -1e-12 * scale[:, None]).sum(1)
    exact = (seeds == 1) & (_one_each(totals_a, counts_a) & _one_each(totals_b, counts_b) & binary)

    found = []
    for r in range(len(value)):
        v, n, signs = float(value[r]), int(clusters[r]), (int(above[r]), int(below[r]))
        if n == 0:
            found.append(Difference(None, None, None, None, 0, "none: no cluster in common"))
        elif n == 1:
            found.append(Difference(v, None, None, None, 1, "none: one cluster", None, None, *signs))
        elif flat[r]:
            # No spread to make an interval of; the sign test is left, one sign a cluster.
            p = 2.0 ** (1 - n) if abs(v) > 1e-12 * scale[r] else 1.0
            found.append(Difference(v, None, None, p, n, "none: every cluster differs by the same", None, None, *signs))
        else:
            e, f = float(error[r]), float(freedom[r])
            half = _t_quantile(0.975, f) * e
            low, high = (max(v - half, -1.0), min(v + half, 1.0)) if share else (v - half, v + half)
            p = _mcnemar(*signs) if exact[r] else _t_tail(abs(v) / e, f)
            method = "paired t" if seeds[r] == 1 else "two-way clustered paired t"
            if exact[r]:
                method += ", McNemar"
            detectable = half + _t_quantile(POWER, f) * e if seeds[r] == 1 else None
            effect = v / float(spread[r]) if spread[r] > 0 else None
            found.append(Difference(v, low, high, p, n, method, effect, detectable, *signs))
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: compare each with the level wanted for all of them together (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def _chunks(found: Panel) -> Iterator[slice]:
    """The rows in parts that bound the memory: about 16 MB an array."""
    rows, seeds, clusters = found.totals.shape
    step = max(1, 2_000_000 // max(1, seeds * clusters))
    return (slice(start, start + step) for start in range(0, rows, step))


def _over(sums: Array, seeds: NDArray[np.int64]) -> Array:
    """sums[row, ...] / seeds[row], for rows that have none unchanged."""
    divided: Array = sums / np.maximum(seeds, 1)[:, None]
    return divided


def _per_cluster(totals: Array, counts: Array) -> Array:
    """Each cluster's own ratio; 0 where it has none."""
    ratios: Array = totals / np.where(counts > 0, counts, 1)
    return ratios


def _ratios(totals: Array, counts: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Each seed's ratio, [rows, seeds], and whether it has one (else it stands as 0)."""
    n = counts.sum(2)
    return _per_cluster(totals.sum(2), n), n > 0


def _influence(totals: Array, counts: Array, ratios: Array) -> Array:
    """How far each cluster pulls its seed's ratio from where it is, [rows, seeds, clusters].

    Its mean over the clusters that any seed of the row has observed is 0, and so is what was not observed.
    """
    clusters = (counts > 0).any(1).sum(1)
    mean = counts.sum(2) / np.maximum(clusters, 1)[:, None]
    influence: Array = (totals - ratios[:, :, None] * counts) / np.where(mean > 0, mean, 1)[:, :, None]
    return influence


def _two_way(
    influence: Array, ratios: Array, there: NDArray[np.bool_], clusters: NDArray[np.int64]
) -> tuple[Array, Array]:
    """Standard error of each row's mean of `ratios` over seeds, and its degrees of freedom.

    The variance between clusters and that between seeds both hold the noise that is neither's, so it is taken off
    once. Where seeds differ by no more than that noise they are taken not to differ at all.
    One seed has the variance between clusters alone.
    """
    seeds = np.maximum(there.sum(1), 1)
    c, s = np.maximum(clusters - 1, 1), np.maximum(seeds - 1, 1)
    mean = _over(influence.sum(1), seeds)
    between_clusters = (mean**2).sum(1) / c / np.maximum(clusters, 1)
    off = np.where(there, ratios - (ratios.sum(1) / seeds)[:, None], 0)
    between_seeds = (off**2).sum(1) / s / seeds
    # Sum of squares around each cluster's mean over seeds: of all that is left what the means leave.
    squares = (influence**2).sum((1, 2)) - seeds * (mean**2).sum(1)
    rest = np.maximum(squares, 0) / (s * c) / (seeds * np.maximum(clusters, 1))
    within = np.maximum(between_clusters, rest)
    variance = np.maximum(between_clusters + between_seeds - rest, within)
    parts = between_clusters**2 / c + between_seeds**2 / s
    freedom = np.maximum(1, variance**2 / np.where(parts > 0, parts, 1))
    pooled = (seeds == 1) | (between_seeds <= rest)
    return np.sqrt(np.where(pooled, within, variance)), np.where(pooled, c, freedom)


def _t_interval(value: float, error: float, freedom: float, share: bool) -> Interval:
    half = _t_quantile(0.975, freedom) * error
    if not (share and 0 < value < 1):
        return Interval(value - half, value + half, "two-way clustered t")
    half = min(half / (value * (1 - value)), 700)  # beyond, exp() overflows and the interval is all of 0..1 anyway
    odds = value / (1 - value)
    low, high = (1 / (1 + math.exp(s * half) / odds) for s in (1, -1))
    return Interval(low, high, "two-way clustered t (logit)")


def _degenerate(totals: Array, counts: Array, share: bool) -> Interval | None:
    """Of one row, [seeds, clusters]: the interval where no spread is there to estimate one from; None where it is."""
    clusters = totals.shape[1]
    if clusters == 0:
        return Interval(None, None, "none: no cluster")
    if clusters == 1:
        return Interval(None, None, "none: one cluster")
    values = totals[counts > 0] / counts[counts > 0]
    if np.ptp(values) > 1e-12 * np.abs(values).max():
        return None
    if share and values[0] in (0.0, 1.0):
        # All or nothing still bounds a share: as if every cluster had given a single answer.
        return Interval(*wilson(clusters * float(values[0]), clusters), "Wilson on clusters")
    return Interval(None, None, "none: all clusters equal")


def _one_each(totals: Array, counts: Array) -> NDArray[np.bool_]:
    """For each row, whether every cluster that is observed holds one yes or no."""
    fits: NDArray[np.bool_] = ((counts == 0) | ((counts == 1) & ((totals == 0) | (totals == 1)))).all((-2, -1))
    return fits


def wilson(yes: float, n: float) -> tuple[float, float]:
    """95 % interval of a share, yes of n > 0 (Wilson 1927)."""
    p, z2 = yes / n, _Z * _Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return float(min(max(0.0, middle - half), p)), float(max(min(1.0, middle + half), p))


def _mcnemar(above: int, below: int) -> float:
    """Exact: of the clusters where a and b disagree, how surprising is the split under a fair coin?"""
    from scipy.special import bdtr  # imported late: a table without tests needs no scipy, and answers sooner

    return min(1.0, 2 * float(bdtr(min(above, below), above + below, 0.5)))


def _t_tail(t: float, freedom: float) -> float:
    """P(|T| > t) of Student's t."""
    from scipy.special import stdtr

    return 2 * float(stdtr(freedom, -t))


def _t_quantile(level: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))
