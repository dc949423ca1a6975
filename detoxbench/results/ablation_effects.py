"""What the settings of an ablation's knobs do to the metrics: differences, trends and interactions, tested together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from detoxbench.results import stats
from detoxbench.results.ablation_runs import AblationRun, order, written
from detoxbench.results.panels import ColumnPanel, clusters_of, mostly_broken, tested, unpraised
from detoxbench.results.tables import Cell, Column, Difference

if TYPE_CHECKING:
    from detoxbench.results.stats import Array, Panel

INTERACTION = "interaction"

Tests = dict[tuple[int, int | str], tuple[Column, stats.PairedDifference, list[int]]]
"""(number of the column, number of the row or name of the contrast) -> column, difference that is tested, its seeds."""


@dataclass(frozen=True)
class Effects:
    """`cells[row][metric]` with differences, whether most of a row's texts are broken, and changes a step by metric."""

    cells: list[dict[str, Cell]]
    broken: list[bool]
    trends: dict[str, dict[str, Difference]]
    interactions: dict[str, Difference]


def effects(
    rows: Sequence[Sequence[AblationRun]],
    over: Sequence[str],
    values: Sequence[tuple[Any, ...]],
    columns: Sequence[Column],
    against: int | None,
    notes: list[str],
) -> Effects:
    """`rows`: the runs of each setting of the knobs, behind them the base's where there is one; `values`: the settings;
    `against`: the row that differences are to. What cannot be read is named in `notes`."""
    members = [[entry.record for entry in row] for row in rows]
    clusters = clusters_of(((entry.run, entry.record) for row in rows for entry in row), notes)
    panels = [ColumnPanel.of(members, column, clusters) for column in columns]
    broken = mostly_broken(members, clusters)
    tests = _tests(panels, len(values), against, contrasts(over, values))
    differences = dict(zip(tests, tested(list(tests.values())), strict=True))

    reference = against is not None and broken[against]
    cells: list[dict[str, Cell]] = [{} for _ in rows]
    for k, panel in enumerate(panels):
        for r, cell in enumerate(panel.cells(members)):
            difference = unpraised(differences.get((k, r)), broken[r], reference)
            cells[r][panel.column.name] = replace(cell, difference=difference)

    any_broken = any(broken[: len(values)])
    changes = {key: unpraised(difference, any_broken, any_broken) for key, difference in differences.items()}
    trends = {c.name: {knob: d for knob in over if (d := changes.get((k, knob)))} for k, c in enumerate(columns)}
    interactions = {c.name: d for k, c in enumerate(columns) if (d := changes.get((k, INTERACTION)))}
    return Effects(cells, broken, {name: of for name, of in trends.items() if of}, interactions)


def _tests(panels: Sequence[ColumnPanel], points: int, against: int | None, weights: Mapping[str, Array]) -> Tests:
    """All that is tested: each point against the reference, and each contrast of the points."""
    tests: Tests = {}
    for k, panel in enumerate(panels):
        if against is not None:
            for r, (difference, seeds) in enumerate(panel.differences(list(range(points)), against)):
                if r != against:
                    tests[k, r] = panel.column, difference, seeds
        for name, point_weights in weights.items():
            column = replace(panel.column, better="neither") if name == INTERACTION else panel.column
            tests[k, name] = column, contrast(panel.sums, point_weights), panel.seeds
    return tests


def contrasts(over: Sequence[str], values: Sequence[tuple[Any, ...]]) -> dict[str, Array]:
    """Weights [point] whose weighted sum of the points is a trend (change a step) or the interaction (change of a trend
    a step), by name; only where the knobs' values have an order and every combination is there."""
    # 1. The levels of each knob, in order.
    levels = [list(dict.fromkeys(map(written, sorted((v[k] for v in values), key=order)))) for k in range(len(over))]
    if len(values) < math.prod(map(len, levels)):
        return {}
    # 2. Least squares over steps one apart: the slope is the sum of x y over the sum of x squared, x centred.
    slopes = [_slope(len(levels[k]), [v[k] for v in values]) for k in range(len(over))]
    # 3. From levels to points: [level] -> [point], the mean over the other knob's levels.
    place = [[knob_levels.index(written(v[k])) for v in values] for k, knob_levels in enumerate(levels)]
    point_weights = {
        over[k]: slope[place[k]] * len(levels[k]) / len(values) for k, slope in enumerate(slopes) if slope is not None
    }
    # 4. The slope over one knob of the slopes over the other.
    if len(over) == 2 and slopes[0] is not None and slopes[1] is not None:
        point_weights[INTERACTION] = slopes[0][place[0]] * slopes[1][place[1]]
    return point_weights


def _slope(levels: int, values: Sequence[Any]) -> Array | None:
    """Weights [level] whose weighted sum is the change a step; None where the values have no order."""
    numbers = all(isinstance(value, int | float) for value in values)
    if not numbers and levels != 2:  # two values have an order anyway
        return None
    x = np.arange(levels) - (levels - 1) / 2
    weights: Array = x / (x**2).sum()
    return weights


def contrast(panel: Panel, weights: Array) -> stats.PairedDifference:
    """The weighted sum of the points' values with its test, over the seeds and clusters that all of them have.

    It is computed as a difference to 0. Each cluster has the value: the weighted sum plus the cluster's influence on
    it. So the clusters' mean is the sum, and their spread gives its error.
    """
    # 1. The points' sums, [point, seed, cluster]: behind them the panel may hold the base.
    totals, counts = panel.totals[: len(weights)], panel.counts[: len(weights)]
    # 2. Seeds that all points have, then clusters that all have under all these seeds.
    seeds = (counts > 0).any(2).all(0)  # [seed]
    totals, counts = totals[:, seeds], counts[:, seeds]
    clusters = (counts > 0).all((0, 1))  # [cluster]
    totals, counts = totals[:, :, clusters], counts[:, :, clusters]
    if not counts.size:
        return stats.PairedDifference(None, None, None, None, 0, "none: no cluster in common")
    # 3. Each cluster's value: the ratio of the sums plus its influence on it.
    ratios = totals.sum(2, keepdims=True) / counts.sum(2, keepdims=True)  # [point, seed, 1]
    values = ratios + (totals - ratios * counts) / counts.mean(2, keepdims=True)  # [point, seed, cluster]
    # 4. The weighted sum over the points, as one row, against a row of zeros.
    combined = np.tensordot(weights, values, 1)[None]  # [1, seed, cluster]
    fits = panel.all_fits()[: len(weights)]
    by_seed = [
        tuple(row_fits[s] for row_fits in fits) for s in np.flatnonzero(seeds).tolist()
    ]  # what all points have fitted
    zeros = stats.Panel(np.zeros_like(combined), np.ones_like(combined), [by_seed])
    return stats.paired_differences(stats.Panel(combined, np.ones_like(combined), [by_seed]), zeros)[0]
