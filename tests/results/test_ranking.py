"""Ranks: Borda points by hand, how firm ranks are, and what nothing else beats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detoxbench.errors import UsageError
from detoxbench.results import ranking
from detoxbench.results.store import Clusters
from detoxbench.results.tables import Cell, Column, Row, Table

COLUMNS = [
    Column("EMT", "lower", "number"),
    Column("perplexity", "lower", "number"),
    Column("dist", "higher", "number"),
]


def row(label, values, cost=None, seeds=(0,), reported=False, fits=()):
    names = [c.name for c in COLUMNS]
    cells = {n: Cell(v, None, None, "", 0, 0) for n, v in zip(names, values, strict=True)}
    runs = [] if reported else [f"{label}-{seed}" for seed in seeds]
    own = list(seeds) if runs else []
    return Row(label, {"name": label}, own, runs, cells, {"fit_seconds": cost}, {}, list(fits))


def table(*rows, columns=COLUMNS):
    return Table("tiny", "rtp", "embedded", {}, list(columns), list(rows), [])


# --- Borda ------------------------------------------------------------------------------------------------------------


def test_points_are_the_share_of_rows_beaten_and_a_tie_is_half():
    found = ranking.borda(table(row("a", (0.1, 5, 9)), row("b", (0.2, 5, 8)), row("c", (0.3, 4, 7))))
    # a beats two, ties with b behind c, beats two; b: one, half of one, one; c: none, two, none
    assert [(r.label, r.rank) for r in found] == [("a", 1), ("b", 2), ("c", 3)]
    assert [r.points for r in found] == pytest.approx([(1 + 0.25 + 1) / 3, (0.5 + 0.25 + 0.5) / 3, 1 / 3])


def test_rows_with_equal_points_share_a_rank_and_the_next_is_left_out():
    found = ranking.borda(table(row("a", (1, 1, 1)), row("b", (1, 1, 1)), row("c", (2, 2, 0))))
    assert [(r.label, r.rank) for r in found] == [("a", 1), ("b", 1), ("c", 3)]


def test_a_missing_value_neither_wins_nor_loses():
    found = ranking.borda(table(row("a", (0.1, None, None)), row("b", (0.2, 5, 8)), row("c", (None, None, None))))
    assert found == [("a", 1.0, 1), ("b", 0.0, 2)]


def test_what_has_no_direction_and_what_was_not_measured_does_not_count():
    columns = [COLUMNS[0], Column("perplexity", "neither", "number"), COLUMNS[2]]
    rows = row("a", (0.1, 9, 2)), row("b", (0.2, 1, 1)), row("paper", (0.0, 0, 9), reported=True)
    assert [r.label for r in ranking.borda(table(*rows, columns=columns))] == ["a", "b"]
    with pytest.raises(UsageError, match="no 'perplexity' with a direction in the table of 'rtp'; known: EMT, dist"):
        ranking.borda(table(*rows, columns=columns), ["perplexity"])


def test_named_metrics_alone_count():
    rows = row("a", (0.1, 9, 1)), row("b", (0.2, 1, 2))
    assert [r.label for r in ranking.borda(table(*rows), ["perplexity"])] == ["b", "a"]


# --- stability --------------------------------------------------------------------------------------------------------


def clusters_of(values):
    """Clusters of run id -> the value of EMT in each prompt."""
    return {
        run: Clusters(
            total={"EMT": {f"p{i}": float(v) for i, v in enumerate(found)}},
            count={"EMT": {f"p{i}": 1.0 for i in range(len(found))}},
            binary={"EMT": False},
        )
        for run, found in values.items()
    }


def ranks(values, fits=None, **how):
    """By one metric; the values of a run are those of its prompts, or a list of them a seed."""
    runs = {f"{k}-{s}": v for k, seeds in values.items() for s, v in enumerate(seeds)}
    rows = [
        row(k, (np.mean(seeds), 0, 0), seeds=range(len(seeds)), fits=(fits or {}).get(k, ()))
        for k, seeds in values.items()
    ]
    found = ranking.stability(table(*rows, columns=COLUMNS[:1]), clusters_of(runs), **how)
    return {interval.label: interval[1:] for interval in found}


def test_a_rank_is_firm_where_every_prompt_agrees_and_not_where_prompts_decide():
    rng = np.random.default_rng(0)
    hard = rng.random(50)
    firm = ranks({"a": [hard], "b": [hard + 0.01], "c": [hard + 0.02]})
    assert firm == {"a": (1, 1, 1.0), "b": (2, 2, 0.0), "c": (3, 3, 0.0)}
    luck = ranks({"a": [rng.random(50)], "b": [rng.random(50)], "c": [hard + 5]})
    assert luck["a"][:2] == luck["b"][:2] == (1, 2)
    assert luck["a"][2] + luck["b"][2] == pytest.approx(1)
    assert luck["c"] == (3, 3, 0.0)


def test_rows_that_tie_share_the_first_place():
    same = np.random.default_rng(0).random(20)
    assert ranks({"a": [same], "b": [same]}) == {"a": (1, 1, 0.5), "b": (1, 1, 0.5)}


def test_a_rank_that_seeds_decide_is_not_firm():
    prompts = np.random.default_rng(0).random(200) / 100
    apart = ranks({"a": [prompts, prompts + 1, prompts + 2], "b": [prompts + 0.9] * 3})
    assert apart["a"][:2] == apart["b"][:2] == (1, 2)
    assert 0.2 < apart["a"][2] < 0.8
    together = ranks({"a": [prompts, prompts + 1, prompts + 2], "b": [prompts + 0.1, prompts + 1.1, prompts + 2.1]})
    assert together["a"] == (1, 1, 1.0)  # what a seed does to both rows moves no rank


def test_the_spread_of_resampled_means_is_that_of_the_mean():
    """Over prompts and over three seeds alike: a row is first against a fixed one as often as its standard error
    says."""
    rng = np.random.default_rng(1)
    three = [np.full(5, v) + rng.normal(0, 1e-6, 5) for v in (-1.0, 0.0, 1.0)]
    for seeds in ([rng.normal(0, 1, 400)], three):
        error = seeds[0].std() / 20 if len(seeds) == 1 else math.sqrt(1 / 3)
        fixed = [np.full(len(seeds[0]), np.mean(seeds) + 0.55 * error)] * len(seeds)
        first = ranks({"a": seeds, "b": fixed}, resamples=4000)["a"][2]
        # P(z < 0.55); the mean of two drawn of (-1, 0, 1) is below 0.32 in 6 of 9 ways
        assert first == pytest.approx(0.71 if len(seeds) == 1 else 6 / 9, abs=0.03)


def test_seeds_are_not_drawn_where_they_are_repeats_of_one_fit_or_only_two():
    prompts = np.random.default_rng(0).random(200) / 100
    for seeds, fits in (([0, 1, 2], ["same"] * 3), ([0, 2], ["one", "other"])):
        values = {"a": [prompts + s for s in seeds], "b": [prompts + 0.9] * len(seeds)}
        found = ranks(values, fits={"a": fits})
        assert found["a"][:2] == (2, 2)
        assert found["b"][:2] == (1, 1)


def test_a_row_without_clusters_is_left_out_and_none_is_no_error():
    one = clusters_of({"a-0": [1, 2, 3]})
    found = table(row("a", (2, 0, 0)), row("b", (1, 0, 0)), columns=COLUMNS[:1])
    assert ranking.stability(found, one) == []  # nothing to be ranked against
    assert ranking.stability(found, {}) == []
    assert [r.label for r in ranking.stability(found, one | clusters_of({"b-0": [1, 1, 1]}))] == ["a", "b"]


# --- the front --------------------------------------------------------------------------------------------------------


def test_on_the_front_is_what_nothing_beats():
    points = [(0.1, 9.0), (0.2, 8.0), (0.2, 9.0), (0.1, 9.0), (0.3, 7.0), (0.0, None)]
    assert ranking.pareto(points, ["lower", "lower"]) == [True, True, False, True, True, False]
    assert ranking.pareto(points, ["lower", "higher"]) == [True, False, False, True, False, False]
    assert ranking.pareto([], ["lower"]) == []


def test_a_point_with_a_missing_coordinate_beats_no_other():
    assert ranking.pareto([(0.0, None), (0.5, 1.0)], ["lower", "lower"]) == [False, True]


def test_the_axes_are_toxicity_utility_and_cost_unless_named():
    found = table(row("a", (0.1, 5, 9), cost=1.0), row("b", (0.2, 5, 8), cost=0.04), row("c", (0.2, 5, 8), cost=0.01))
    assert ranking.pareto_axes(found) == [("EMT", "lower"), ("perplexity", "lower"), ("cost.fit_seconds", "lower")]
    assert ranking.pareto_front(found) == [True, True, True]  # a hundredth of a second is no advantage
    assert ranking.pareto_axes(found, ["dist", "cost.fit_seconds"])[0] == ("dist", "higher")
    assert ranking.pareto_front(found, ["EMT", "dist"]) == [True, False, False]
    with pytest.raises(UsageError, match=r"no 'cost.fit_second' .*did you mean 'cost.fit_seconds'"):
        ranking.pareto_axes(found, ["cost.fit_second"])


def test_speed_counts_upward_and_reported_rows_are_never_on_the_front():
    found = table(row("a", (0.1, 5, 9)), row("paper", (0.0, 1, 9), reported=True))
    for each, speed in zip(found.rows, (0.5, 0.9), strict=True):
        each.cost["relative_speed"] = speed
    assert ranking.pareto_axes(found, ["cost.relative_speed"])[0].better == "higher"
    assert ranking.pareto_front(found, ["EMT", "cost.relative_speed"]) == [True, False]
