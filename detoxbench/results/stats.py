"""Intervals and tests on per-cluster sums: how uncertain a number is, and whether two numbers differ.

A metric is a ratio, sum(total) / sum(count) over clusters (prompts or records). Clusters are independent, what is
inside one is not, so everything here works on clusters. All intervals are 95 %, all p-values two-sided.

One run has a closed form (Wilson) or a cluster bootstrap. Several seeds are averaged; what they are evidence of depends
on what was fitted under each (`seed_kind`). Where that is one and the same intervention, or where there are two seeds,
only clusters are drawn from a population: the average is resampled by clusters like one run. From three seeds with
different fits on the seeds are drawn too, and since they share their clusters the variance has two levels: "two-way
clustered" (Cameron, Gelbach and Miller 2011), with Satterthwaite's degrees of freedom. Resampling seeds too would be
simpler, but three seeds are too few to resample: in 1,000 simulated triples (100 clusters) such intervals covered 75 %
where seeds differ much and 99 % where they differ little.

How often these intervals hold the true value is simulated in tests/support/coverage_simulation.py; docs/statistics.md
has the figures, and why the variance between seeds is not pooled over the rows of a table.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detoxbench.errors import NonFiniteError
from detoxbench.records import Measure
from detoxbench.results.store import MetricRecord

Sums = tuple[Mapping[Any, float], Mapping[Any, float]]
"""One run's (total, count), each by cluster."""
Array = NDArray[np.float64]
Fits = Sequence[Sequence[Hashable]]
SeedKind = Literal["repeats", "these", "drawn"]

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


class PairedDifference(NamedTuple):
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
    (t_0.975 + t_0.8) standard errors (Bloom 1995). None where seeds count as drawn: their degrees of freedom are
    themselves random, and the formula does not hold."""
    above: int = 0
    """Clusters in which a is higher than b. For one yes or no a cluster, above / below is the matched odds ratio."""
    below: int = 0


class Panel(NamedTuple):
    """Sums of many runs, [rows, seeds, clusters]: a row is a configuration, count 0 stands for not observed.

    fits[row][seed] says what was fitted: equal where it is the same intervention. None: another one under every seed.
    """

    totals: Array
    counts: Array
    fits: Fits | None = None

    def rows(self, at: slice | Sequence[int]) -> Panel:
        """These rows alone."""
        fits = self.all_fits()
        chosen = fits[at] if isinstance(at, slice) else [fits[r] for r in at]
        return Panel(self.totals[at], self.counts[at], chosen)

    def row(self, r: int) -> Panel:
        """Row `r` alone."""
        return self.rows([r])

    def all_fits(self) -> Fits:
        """`fits`; where they are None, another fit under every seed."""
        rows, seeds = self.totals.shape[:2]
        return [range(seeds)] * rows if self.fits is None else self.fits


def seed_kind(fits: Sequence[Hashable]) -> SeedKind:
    """What several seeds of a row are evidence of, by what was fitted under each. All averages follow this one rule.

    "repeats": the same intervention, sampled again. The average describes this intervention, whatever the seed.
    "these": two seeds with different fits. The average describes these two: two cannot say how far others would lie.
    "drawn": three or more seeds with different fits. The average describes new seeds too.
    """
    if len(set(fits)) < 2:
        return "repeats"
    return "these" if len(fits) == 2 else "drawn"


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
    totals, counts, _ = panel([[(total, count)]])
    return _over_clusters(totals[0], counts[0], binary, share, seed)


def _over_clusters(totals: Array, counts: Array, binary: bool, share: bool, seed: int = 0) -> Interval:
    """95 % interval of the mean over seeds of their ratios, [seeds, clusters], for these seeds and new clusters."""
    if binary and len(totals) == 1 and totals.size and _one_each(totals, counts):
        return Interval(*wilson(totals.sum(), counts.sum()), "Wilson")
    return _degenerate(totals, counts, share) or _bootstrap(totals, counts, seed)


def _bootstrap(totals: Array, counts: Array, seed: int) -> Interval:
    """BCa over the clusters, which are resampled together under all seeds, [seeds, clusters]."""
    # 1. Clusters ordered by value: the resamples then depend neither on their names nor on their order.
    order = np.lexsort((*counts[::-1], *totals[::-1]))
    totals, counts = totals[:, order], counts[:, order]
    clusters = totals.shape[1]
    # 2. The estimate, and the influence of each cluster on it, [clusters].
    ratios = _per_cluster(totals.sum(1), counts.sum(1))  # [seeds]
    value = float(ratios.mean())
    influence = _influence(totals[None], counts[None], ratios[None])[0].mean(0)
    if np.abs(influence).max() <= 1e-12 * np.abs(_per_cluster(totals, counts)).max():
        return Interval(None, None, "none: all clusters equal")
    # 3. The estimates of the resamples, their bias and their acceleration (Efron 1987).
    draws = _resampled(totals, counts, ratios, np.random.default_rng(seed))  # [resamples]
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    tie = 1e-12 * np.abs(draws).max()  # resamples equal to the estimate count half, whatever rounding made of them
    below = ((draws < value - tie).mean() + (draws <= value + tie).mean()) / 2
    bias = _NORMAL.inv_cdf(min(max(float(below), 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    # 4. The levels whose quantiles are the bounds: those of the t distribution, corrected for both.
    reach = math.sqrt(clusters / (clusters - 1)) * _t_quantile(0.975, clusters - 1)
    levels = [_NORMAL.cdf(bias + (bias + z) / max(1 - acceleration * (bias + z), 1e-3)) for z in (-reach, reach)]
    low, high = np.quantile(draws, levels)
    # The interval holds the estimate, except for rounding or a bias beyond `reach`, which no data we tried has.
    return Interval(min(float(low), value), max(float(high), value), "cluster bootstrap (BCa)")


def _resampled(totals: Array, counts: Array, ratios: Array, rng: np.random.Generator) -> Array:
    """The mean over seeds of their ratios in each of `RESAMPLES` draws of clusters with replacement, [resamples]."""
    clusters = totals.shape[1]
    draws = np.empty(RESAMPLES)
    step = max(1, 100_000 // clusters)  # so much stays in the cache: 0.8 MB of indices at a time
    for start in range(0, RESAMPLES, step):
        rows = rng.integers(clusters, size=(min(step, RESAMPLES - start), clusters))  # [resamples, clusters]
        # How often each cluster is drawn, [resamples, clusters]: counted at once, each resample in bins of its own.
        places = rows + clusters * np.arange(len(rows))[:, None]
        times = np.bincount(places.ravel(), minlength=places.size).reshape(places.shape).astype(float)
        t, n = times @ totals.T, times @ counts.T  # [resamples, seeds]
        # A seed that has none of the drawn clusters keeps its value.
        draws[start : start + step] = np.where(n > 0, _per_cluster(t, n), ratios).mean(1)
    return draws


def panel(rows: Sequence[Sequence[Sums | None]], fits: Fits | None = None) -> Panel:
    """rows[r][s] is the sums of row r under seed s (None: there are none) as arrays over all clusters observed.

    Raises ValueError naming a cluster whose sum or count is not finite.
    """
    cluster_tuples = {
        tuple(run[1]) for seeds in rows for run in seeds if run
    }  # mostly one: all runs have the same clusters
    names = sorted({c for clusters in cluster_tuples for c in clusters})
    place = {name: k for k, name in enumerate(names)}
    where = {clusters: [place[c] for c in clusters] for clusters in cluster_tuples}
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
    return Panel(totals.compress(observed, 2), counts.compress(observed, 2), fits)


def over_seeds(
    sums: Panel, *, binary: bool = False, share: bool = False, seed: int = 0
) -> list[tuple[float | None, Interval]]:
    """For each row the mean over seeds of its values, and the 95 % interval of that.

    Seeds without an observation are left out. `seed_kind` says what the seeds stand for. Repeats of one fit, and two
    seeds, are taken as they are: the interval is for new prompts. Where seeds count as drawn, it is for new prompts and
    new seeds; shares are then treated on the logit scale. All intervals stay within the range of the metric.
    """
    results: list[tuple[float | None, Interval]] = []
    for at in _chunks(sums):
        part = sums.rows(at)
        totals, counts = part.totals, part.counts
        ratios, has_value = _ratios(totals, counts)
        kinds = _seed_kinds(has_value, part.all_fits())
        value = ratios.sum(1) / np.maximum(has_value.sum(1), 1)
        influence, clusters = _influence(totals, counts, ratios), (counts > 0).any(1).sum(1)
        error, freedom = _two_way(influence, ratios, has_value, clusters, kinds)
        for r, kind in enumerate(kinds):
            observed = (counts[r] > 0).any(0)
            t, n = totals[r][has_value[r]][:, observed], counts[r][has_value[r]][:, observed]
            v = float(value[r]) if len(t) else None
            if v is None or kind != "drawn":
                bounds = _over_clusters(t, n, binary, share, seed)
            else:
                bounds = _degenerate(t, n, share) or _t_interval(v, float(error[r]), float(freedom[r]), t, n, share)
            method = bounds.method + (_SUFFIX[kind] if bounds.low is not None else "")
            results.append((v, bounds._replace(method=method)))
    return results


_SUFFIX: dict[SeedKind, str] = {"repeats": "", "these": ", for these 2 seeds", "drawn": ""}
"""What the name of an interval's method says of the seeds."""


def _seed_kinds(has_value: NDArray[np.bool_], *fits: Fits) -> list[SeedKind]:
    """`seed_kind` of each row, over the seeds that it has. A difference has the fits of both sides: two seeds count as
    different fits where those of one side differ."""
    return [
        seed_kind([tuple(f[r][s] for f in fits) for s in np.flatnonzero(seen).tolist()])
        for r, seen in enumerate(has_value)
    ]


def paired_differences(a: Panel, b: Panel, *, binary: bool = False, share: bool = False) -> list[PairedDifference]:
    """Each row of `a` minus the same row of `b` (or its only row): over seeds the mean of the differences of values.

    A cluster enters a seed's difference where both sides have observed it. What two runs have in common in a cluster
    cancels, so this interval is narrower than the two runs' own. They have in common the difficulty of the prompt, and
    a part of the sampling noise: it is keyed by seed, prompt, sample and token, and a cluster's sums are over the same
    samples, so pairing clusters pairs the samples. The variance is that of the clusters' differences, averaged over
    seeds (paired t); where the seeds of either side count as drawn (`seed_kind`) it has two levels, as in `over_seeds`.
    The p-value is of the same t, except for one seed of yes or no answers: McNemar's exact test.
    """
    results: list[PairedDifference] = []
    for at in _chunks(a):
        sides = a.rows(at), (b.row(0) if len(b.totals) == 1 else b.rows(at))
        both = (sides[0].counts > 0) & (sides[1].counts > 0)
        results += _paired(_where(both, sides[0]), _where(both, sides[1]), binary, share)
    return results


def _where(observed: NDArray[np.bool_], side: Panel) -> Panel:
    """`side` where it is `observed`, [rows, seeds, clusters], else 0; a single row is repeated for all rows."""
    fits = [*side.all_fits()] * (len(observed) // len(side.totals))
    return Panel(np.where(observed, side.totals, 0), np.where(observed, side.counts, 0), fits)


class _Rows(NamedTuple):
    """The statistics of the differences of many rows, each [rows]."""

    value: Array
    clusters: NDArray[np.int64]
    above: NDArray[np.int64]
    below: NDArray[np.int64]
    error: Array
    """Standard error of the value."""
    freedom: Array
    """Its degrees of freedom."""
    spread: Array
    """Standard deviation of the clusters' differences."""
    scale: Array
    """The largest number among the clusters: what differs by less than 1e-12 of it is equal."""
    flat: NDArray[np.bool_]
    """Whether all clusters are equal but for rounding; where seeds count as drawn, these too."""
    exact: NDArray[np.bool_]
    """Whether McNemar's exact test is for it: one seed, one yes or no a cluster."""
    kinds: Sequence[SeedKind]


def _paired(a: Panel, b: Panel, binary: bool, share: bool) -> list[PairedDifference]:
    """`paired_differences` of panels in which both sides have the same clusters."""
    rows = _rows_of(a, b, binary)
    return [_difference(rows, r, a, b, share) for r in range(len(rows.value))]


def _rows_of(a: Panel, b: Panel, binary: bool) -> _Rows:
    """The arithmetic of `paired_differences`, all rows at once."""
    # 1. Each seed's difference, [rows, seeds], and its mean over seeds, [rows].
    ratios_a, has_value = _ratios(a.totals, a.counts)
    ratios_b, _ = _ratios(b.totals, b.counts)
    by_seed = ratios_a - ratios_b
    seeds, clusters = has_value.sum(1), (a.counts > 0).any(1).sum(1)  # [rows]
    value = by_seed.sum(1) / np.maximum(seeds, 1)
    # 2. The influence of each cluster on the difference of its seed, [rows, seeds, clusters], and its standard error.
    influence = _influence(a.totals, a.counts, ratios_a) - _influence(b.totals, b.counts, ratios_b)
    kinds = _seed_kinds(has_value, a.all_fits(), b.all_fits())
    error, freedom = _two_way(influence, by_seed, has_value, clusters, kinds)
    spread = np.sqrt((_over(influence.sum(1), seeds) ** 2).sum(1) / np.maximum(clusters - 1, 1))
    # 3. Rows whose whole spread is rounding.
    values_a, values_b = _per_cluster(a.totals, a.counts), _per_cluster(b.totals, b.counts)  # [rows, seeds, clusters]
    scale = np.maximum(*(np.abs(values).max((1, 2), initial=0) for values in (values_a, values_b)))
    drawn = np.array([kind == "drawn" for kind in kinds])[:, None]  # [rows, 1]
    seeds_off = np.where(has_value & drawn, np.abs(by_seed - value[:, None]), 0)  # [rows, seeds]
    clusters_off = np.where(drawn, np.abs(influence).max(1, initial=0), np.abs(influence.sum(1)))  # [rows, clusters]
    flat = np.maximum(clusters_off.max(1, initial=0), seeds_off.max(1, initial=0)) <= 1e-12 * scale
    # 4. In how many clusters each side is higher, by the means over seeds, [rows, clusters].
    means = _over(values_a.sum(1) - values_b.sum(1), seeds)
    above, below = (means > 1e-12 * scale[:, None]).sum(1), (means < -1e-12 * scale[:, None]).sum(1)
    exact = (seeds == 1) & (_one_each(a.totals, a.counts) & _one_each(b.totals, b.counts) & binary)
    return _Rows(value, clusters, above, below, error, freedom, spread, scale, flat, exact, kinds)


def _difference(rows: _Rows, r: int, a: Panel, b: Panel, share: bool) -> PairedDifference:
    """The difference of row `r`, with its interval and test."""
    v, n, signs = float(rows.value[r]), int(rows.clusters[r]), (int(rows.above[r]), int(rows.below[r]))
    if n == 0:
        return PairedDifference(None, None, None, None, 0, "none: no cluster in common")
    if n == 1:
        return PairedDifference(v, None, None, None, 1, "none: one cluster", None, None, *signs)
    if rows.flat[r]:
        # Without spread there is no interval; the sign test is left, one sign a cluster.
        p = 2.0 ** (1 - n) if abs(v) > 1e-12 * rows.scale[r] else 1.0
        return PairedDifference(v, None, None, p, n, "none: every cluster differs by the same", None, None, *signs)
    # 1. The interval, within the possible range of a difference of the metric.
    error, freedom = float(rows.error[r]), float(rows.freedom[r])
    half = _t_quantile(0.975, freedom) * error
    lowest, highest = _range(np.concatenate([_observed(side.totals[r], side.counts[r]) for side in (a, b)]))
    furthest = 1.0 if share else highest - lowest
    low, high = max(v - half, -furthest), min(v + half, furthest)
    # 2. The test.
    exact, drawn = bool(rows.exact[r]), rows.kinds[r] == "drawn"
    p = _mcnemar(*signs) if exact else _t_tail(abs(v) / error, freedom)
    method = f"{'two-way clustered ' if drawn else ''}paired t{_SUFFIX[rows.kinds[r]]}{', McNemar' if exact else ''}"
    # 3. How large it is, and how large it would have to be.
    effect = v / float(rows.spread[r]) if rows.spread[r] > 0 else None
    detectable = None if drawn else half + _t_quantile(POWER, freedom) * error
    return PairedDifference(v, low, high, p, n, method, effect, detectable, *signs)


def _observed(totals: Array, counts: Array) -> Array:
    """The values of all clusters and seeds that have one."""
    seen = counts > 0
    values: Array = totals[seen] / counts[seen]
    return values


def _range(values: Array) -> tuple[float, float]:
    """The range of the mean of a metric, as far as the `values` of single clusters show it: no further from 0 than
    they are. So it is never negative where none of them is, and never above 1 where none can be."""
    return min(0.0, float(values.min())), max(0.0, float(values.max()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down adjustment, to compare with the level for all tests together (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def _chunks(sums: Panel) -> Iterator[slice]:
    """The rows in parts that limit the memory: about 16 MB an array."""
    rows, seeds, clusters = sums.totals.shape
    step = max(1, 2_000_000 // max(1, seeds * clusters))
    return (slice(start, start + step) for start in range(0, rows, step))


def _over(sums: Array, seeds: NDArray[np.int64]) -> Array:
    """sums[row, ...] / seeds[row]; a row without seeds is unchanged."""
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
    """The influence of each cluster on its seed's ratio, [rows, seeds, clusters].

    Its mean over the clusters that any seed of the row has observed is 0. It is 0 for clusters without observations.
    """
    clusters = (counts > 0).any(1).sum(1)
    mean = counts.sum(2) / np.maximum(clusters, 1)[:, None]
    influence: Array = (totals - ratios[:, :, None] * counts) / np.where(mean > 0, mean, 1)[:, :, None]
    return influence


def _two_way(
    influence: Array,
    ratios: Array,
    has_value: NDArray[np.bool_],
    clusters: NDArray[np.int64],
    kinds: Sequence[SeedKind],
) -> tuple[Array, Array]:
    """Standard error of each row's mean of `ratios` over seeds, and its degrees of freedom.

    The variance between clusters and that between seeds both contain the residual noise, so it is subtracted once.
    Where seeds differ by no more than that noise, they are taken not to differ at all. Where seeds do not count as
    drawn, the variance is that between clusters alone.
    """
    # 1. Degrees of freedom of clusters (c) and of seeds (s), [rows].
    seeds = np.maximum(has_value.sum(1), 1)
    c, s = np.maximum(clusters - 1, 1), np.maximum(seeds - 1, 1)
    # 2. Variance of the value by its clusters, [rows], from each one's mean over seeds, [rows, clusters].
    mean = _over(influence.sum(1), seeds)
    between_clusters = (mean**2).sum(1) / c / np.maximum(clusters, 1)
    # 3. Variance of the value by its seeds, [rows], from how far each is from their mean, [rows, seeds].
    off = np.where(has_value, ratios - (ratios.sum(1) / seeds)[:, None], 0)
    between_seeds = (off**2).sum(1) / s / seeds
    # 4. The residual noise, [rows]: the sum of squares around each cluster's mean over seeds is the sum of all
    #    squares, over [seeds, clusters], less that of the means.
    squares = (influence**2).sum((1, 2)) - seeds * (mean**2).sum(1)
    rest = np.maximum(squares, 0) / (s * c) / (seeds * np.maximum(clusters, 1))
    # 5. The sum of both variances less that noise, with Satterthwaite's degrees of freedom, [rows].
    within = np.maximum(between_clusters, rest)
    variance = np.maximum(between_clusters + between_seeds - rest, within)
    parts = between_clusters**2 / c + between_seeds**2 / s
    freedom = np.maximum(1, variance**2 / np.where(parts > 0, parts, 1))
    # 6. Where seeds do not differ, or are not drawn, clusters alone.
    drawn = np.array([kind == "drawn" for kind in kinds])
    pooled = between_seeds <= rest
    variance = np.where(drawn, np.where(pooled, within, variance), between_clusters)
    return np.sqrt(variance), np.where(drawn & ~pooled, freedom, c)


def _t_interval(value: float, error: float, freedom: float, totals: Array, counts: Array, share: bool) -> Interval:
    """The interval of one row, [seeds, clusters], within the range of the metric."""
    half = _t_quantile(0.975, freedom) * error
    if not (share and 0 < value < 1):
        lowest, highest = _range(_observed(totals, counts))
        return Interval(max(value - half, lowest), min(value + half, highest), "two-way clustered t")
    half = min(half / (value * (1 - value)), 700)  # beyond, exp() overflows and the interval is all of 0..1 anyway
    odds = value / (1 - value)
    low, high = (1 / (1 + math.exp(s * half) / odds) for s in (1, -1))
    return Interval(low, high, "two-way clustered t (logit)")


def _degenerate(totals: Array, counts: Array, share: bool) -> Interval | None:
    """The interval of one row, [seeds, clusters], where there is no spread to estimate it from; None where there is."""
    clusters = totals.shape[1]
    if clusters == 0:
        return Interval(None, None, "none: no cluster")
    if clusters == 1:
        return Interval(None, None, "none: one cluster")
    values = totals[counts > 0] / counts[counts > 0]
    if np.ptp(values) > 1e-12 * np.abs(values).max():
        return None
    if share and values[0] in (0.0, 1.0):
        # All yes or all no still bounds a share: computed as if every cluster had given a single answer.
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
    """McNemar's exact p-value: the chance that a fair coin splits the clusters that disagree at least as unevenly."""
    from scipy.special import bdtr  # imported late: a table without tests needs no scipy, and answers sooner

    return min(1.0, 2 * float(bdtr(min(above, below), above + below, 0.5)))


def _t_tail(t: float, freedom: float) -> float:
    """P(|T| > t) of Student's t."""
    from scipy.special import stdtr

    return 2 * float(stdtr(freedom, -t))


def _t_quantile(level: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))
