"""Rows compared over several metrics: Borda points, the stability of ranks, and the Pareto front.

A rank is no test: two rows whose ranks differ may not differ by any test. `stability` says how firm ranks are.
Rows that were not measured (numbers that papers report), and rows of broken texts, take no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detoxbench.errors import UsageError, did_you_mean
from detoxbench.results.costs import COSTS
from detoxbench.results.stats import seed_kind

if TYPE_CHECKING:
    from detoxbench.results.store import Clusters
    from detoxbench.results.tables import Row, Table

Array = NDArray[np.float64]
Direction = Literal["higher", "lower"]

RESAMPLES = 1000
UTILITY = ("perplexity", "perplexity_under_base", "fluency_bits")
"""The metrics of utility for the Pareto front: the first of these that a table has as a column."""
COST = "cost.fit_seconds"


class Ranking(NamedTuple):
    """A row's Borda points, between 0 and 1, and its rank (1 is best; rows with equal points share the best rank)."""

    label: str
    points: float
    rank: int


class RankInterval(NamedTuple):
    """Where 95 % of a row's ranks lie, and the share of resamples in which it is first (tied rows share it equally)."""

    label: str
    low: int
    high: int
    first: float


class Axis(NamedTuple):
    """A metric or cost that rows are compared by, and which way it is better."""

    name: str
    better: Direction


def borda(table: Table, metrics: Sequence[str] | None = None) -> list[Ranking]:
    """The measured rows by Borda points over `metrics` (all columns with a direction unless named), best first.

    A row's points on a metric are the share of the other rows it beats there, a tie counting half; its points are
    their mean over the metrics it has a value of (Borda's count, normalised; HELM's mean win rate). A missing value is
    left out on both sides, and a row without any value out of the list. Raises UsageError for an unknown metric.
    """
    axes = _metrics(table, metrics)
    rows = _measured(table)
    values = np.array([[_coordinate(row, axis.name) for axis in axes] for row in rows], dtype=float)
    points = _points(_upward(values.reshape(len(rows), len(axes)), axes))
    ranks = _ranks(points)
    rankings = [Ranking(r.label, float(p), int(k)) for r, p, k in zip(rows, points, ranks, strict=True) if p == p]
    return sorted(rankings, key=lambda ranking: ranking.rank)


def stability(
    table: Table,
    clusters: Mapping[str, Clusters],
    metrics: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[RankInterval]:
    """How firm the ranks of `borda` are, in the rows' order: ranks are computed in each of `resamples` resamples.

    `clusters` holds the sums of each run of the table, by run id. Prompts (or records) are resampled for all rows and
    metrics at once, so that what rows have in common changes no rank. The resampling is the Bayesian bootstrap (Rubin
    1981), which weighs clusters instead of drawing them, so that no metric is ever left without clusters. Where a row's
    seeds count as drawn from a population (`stats.seed_kind`) they are drawn too, one fewer than there are: so the
    variance of a mean of few seeds is right (McCarthy and Snowden 1985). Rows with the same seeds draw the same. Rows
    without clusters or without any value are left out.
    """
    axes = _metrics(table, metrics)
    rows = [r for r in _measured(table) if all(i in clusters for i in r.run_ids)]
    # 1. The values of all rows in every resample, [rows, axes, resamples]; nan where there is none.
    values = _resampled(rows, axes, clusters, resamples, np.random.default_rng(seed))
    # 2. Borda points of the rows that have any, [resamples, rows].
    points = np.array([_points(_upward(v, axes)) for v in np.moveaxis(values, 2, 0)]).reshape(resamples, len(rows))
    known = ~np.isnan(points).any(0)
    points = points[:, known]
    if not points.size:
        return []
    # 3. Ranks [resamples, rows]; for each row the share of first ranks, and where 95 % of the ranks lie.
    ranks = np.array([_ranks(p) for p in points])
    best = ranks == 1
    first = (best / best.sum(1, keepdims=True)).mean(0)
    low, high = np.quantile(ranks, [0.025, 0.975], axis=0, method="inverted_cdf")
    labels = [row.label for row, k in zip(rows, known, strict=True) if k]
    return [
        RankInterval(label, int(a), int(b), float(f)) for label, a, b, f in zip(labels, low, high, first, strict=True)
    ]


def _resampled(
    rows: Sequence[Row],
    axes: Sequence[Axis],
    clusters: Mapping[str, Clusters],
    resamples: int,
    rng: np.random.Generator,
) -> Array:
    """The value of each row on each axis in each resample of clusters and seeds, [rows, axes, resamples]."""
    # 1. One weight a resample for every cluster of any row, [resamples, clusters].
    names = sorted({c for r in rows for i in r.run_ids for counts in clusters[i].count.values() for c in counts})
    place = {name: k for k, name in enumerate(names)}
    weights = rng.exponential(size=(resamples, len(names)))
    drawn: dict[tuple[tuple[int, ...], bool], Array] = {}
    values = np.full((len(rows), len(axes), resamples), np.nan)
    for i, row in enumerate(rows):
        # 2. How often each seed of the row is drawn, [seeds, resamples]; rows with the same seeds draw the same.
        seeds = tuple(row.seeds), seed_kind(row.fits or row.seeds) == "drawn"
        if seeds not in drawn:
            drawn[seeds] = _seed_weights(rng, len(row.seeds), resamples, seeds[1])
        for j, axis in enumerate(axes):
            # 3. The ratio of each seed, [seeds, resamples], and their mean over the seeds that have one.
            runs = [clusters[run_id] for run_id in row.run_ids]
            ratios = np.array([_ratio(run, axis.name, weights, place) for run in runs])
            weight = np.where(np.isnan(ratios), 0.0, drawn[seeds])
            whole = weight.sum(0)
            mean = np.nansum(weight * np.nan_to_num(ratios), 0) / np.where(whole > 0, whole, 1)
            values[i, j] = np.where(whole > 0, mean, np.nan)
    return values


def _ratio(run: Clusters, metric: str, weights: Array, place: Mapping[str, int]) -> Array:
    """A run's sum of totals by sum of counts in each resample, [resamples]; nan where it has not observed the metric.

    `weights` [resamples, clusters]; `place` gives the column of each cluster.
    """
    total, count = run.total.get(metric, {}), run.count.get(metric, {})
    seen = [c for c, n in count.items() if n > 0]
    if not seen:
        return np.full(len(weights), np.nan)
    seen_weights = weights[:, [place[c] for c in seen]]  # [resamples, clusters seen]
    ratio: Array = (seen_weights @ [total[c] for c in seen]) / (seen_weights @ [count[c] for c in seen])
    return ratio


def pareto(points: Sequence[Sequence[float | None]], better: Sequence[Direction]) -> list[bool]:
    """Which points lie on the front: no other is at least as good on every axis and better on one.

    points[i][k] is point i on axis k. A point with a missing coordinate is not on the front and beats no other; equal
    points are on it together.
    """
    values = np.array([[np.nan if v is None else v for v in p] for p in points], dtype=float)
    values = values.reshape(len(points), len(better)) * [1.0 if b == "higher" else -1.0 for b in better]
    whole = ~np.isnan(values).any(1)
    front = []
    for value, complete in zip(values, whole, strict=True):
        competitors = values[whole]
        beaten = ((competitors >= value).all(1) & (competitors > value).any(1)).any()
        front.append(bool(complete and not beaten))
    return front


def pareto_axes(table: Table, names: Sequence[str] | None = None) -> list[Axis]:
    """The axes of a table's Pareto front: `names`, which are columns with a direction or cost.KEY.

    Unless named: the first column with a direction (a suite lists its metrics of toxicity first), the first of
    `UTILITY` that is a column, and `COST`. Raises UsageError for a name that the table does not have.
    """
    if names is None:
        columns = _metrics(table, None)
        utility = [axis for name in UTILITY for axis in columns[1:] if axis.name == name]
        return [*columns[:1], *utility[:1], Axis(COST, "lower")]
    costs = {f"cost.{key}": None for row in table.rows for key in row.cost}
    directed = {axis.name: axis for axis in _metrics(table, None)}
    known = [*directed, *costs]
    for name in names:
        if name not in known:
            raise _unknown(name, known, table)
    return [
        directed.get(n) or Axis(n, COSTS[key].better if (key := n.removeprefix("cost.")) in COSTS else "lower")
        for n in names
    ]


def pareto_front(table: Table, names: Sequence[str] | None = None) -> list[bool]:
    """For each row of `table`, whether it lies on the front over `pareto_axes`; a reported row never does."""
    axes = pareto_axes(table, names)
    points = [
        [_coordinate(row, a.name) if row.run_ids and not row.broken else None for a in axes] for row in table.rows
    ]
    return pareto(points, [axis.better for axis in axes])


def _metrics(table: Table, names: Sequence[str] | None) -> list[Axis]:
    known = [Axis(c.name, c.better) for c in table.columns if c.better != "neither"]
    if names is None:
        return known
    by_name = {axis.name: axis for axis in known}
    for name in names:
        if name not in by_name:
            raise _unknown(name, by_name, table)
    return [by_name[name] for name in names]


def _unknown(name: str, known: Sequence[str] | Mapping[str, object], table: Table) -> UsageError:
    near = did_you_mean(name, known)
    return UsageError(f"no '{name}' with a direction in the table of '{table.suite}'{near}; known: {', '.join(known)}")


def _measured(table: Table) -> list[Row]:
    return [row for row in table.rows if row.run_ids and not row.broken]


def _coordinate(row: Row, name: str) -> float | None:
    if name.startswith("cost."):
        cost = row.cost.get(name.removeprefix("cost."))
        # Times are no more repeatable than this: a fit of a microsecond does not beat one of two.
        return round(cost, 1) if cost is not None and name.endswith("seconds") else cost
    return row.cells[name].value


def _upward(values: Array, axes: Sequence[Axis]) -> Array:
    """`values`, [rows, axes], turned so that higher is better everywhere."""
    turned: Array = values * [1.0 if axis.better == "higher" else -1.0 for axis in axes]
    return turned


def _points(values: Array) -> Array:
    """Borda points of each row of `values`, [rows, axes], higher is better; nan where there is nothing to compare."""
    mine, other = values[:, None, :], values[None, :, :]
    known = ~(np.isnan(mine) | np.isnan(other))
    known &= ~np.eye(len(values), dtype=bool)[:, :, None]
    wins = (np.where(known, mine > other, 0) + np.where(known, mine == other, 0) / 2).sum(1)
    opponents = known.sum(1)
    share = wins / np.maximum(opponents, 1)
    metrics = (opponents > 0).sum(1)
    points: Array = np.where(metrics > 0, np.where(opponents > 0, share, 0).sum(1) / np.maximum(metrics, 1), np.nan)
    return points


def _ranks(points: Array) -> NDArray[np.int64]:
    """1 + how many have more points; nan counts as less than any. Rounding apart, equal points share a rank."""
    rounded = np.round(np.where(np.isnan(points), -1.0, points), 12)
    ranks: NDArray[np.int64] = 1 + (rounded[None, :] > rounded[:, None]).sum(1)
    return ranks


def _seed_weights(rng: np.random.Generator, seeds: int, resamples: int, drawn: bool) -> Array:
    """How often each seed is drawn, [seeds, resamples]; once each where they are taken as they are."""
    if not drawn:
        return np.ones((seeds, resamples))
    return rng.multinomial(seeds - 1, [1 / seeds] * seeds, size=resamples).T.astype(float)
