"""Intervals and tests: against closed forms, against simulation, and by their symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm, ttest_rel
from scipy.stats import t as student

from detoxbench.records import Measure
from detoxbench.results import stats
from tests.support import coverage_simulation as simulation


def sums(values, counts=None):
    """(total, count) by cluster of the clusters' means `values`, each of `counts` observations (1 unless given)."""
    counts = np.ones(len(values)) if counts is None else counts
    names = [f"c{i}" for i in range(len(values))]
    return dict(zip(names, map(float, values * counts), strict=True)), dict(zip(names, map(float, counts), strict=True))


def over_seeds(runs, fits=None, **how):
    """Of the seeds of one row."""
    (found,) = stats.over_seeds(stats.panel([runs], fits and [fits]), **how)
    return found


def difference(a, b, fits=None, **how):
    """Of two rows, each a list of seeds."""
    both = stats.panel([a, b], fits)
    (found,) = stats.paired_differences(both.row(0), both.row(1), **how)
    return found


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yes", "n", "low", "high"),
    # Newcombe (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_yes_or_no_answers_have_wilsons_interval(yes, n, low, high):
    found = stats.interval(*sums(np.arange(n) < yes), binary=True)
    assert found.method == "Wilson"
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_ends_stops_exactly_at_zero_and_one():
    none, every = (stats.interval(*sums(np.full(7, v)), binary=True) for v in (0.0, 1.0))
    assert none.low == 0.0
    assert every.high == 1.0
    assert none.high == pytest.approx(1 - every.low)


def test_a_metric_called_binary_with_several_answers_a_cluster_is_resampled():
    assert "bootstrap" in stats.interval(*sums(np.array([1.0, 0.5, 0.0]), np.full(3, 2.0)), binary=True).method


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (120, 1.9799)])
def test_students_t_as_tabled(freedom, quantile):
    assert stats._t_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)
    assert stats._t_tail(quantile, freedom) == pytest.approx(0.05, abs=1e-5)


def test_mcnemar_is_the_binomial_test_on_the_clusters_that_disagree():
    a, b = np.array([1] * 10 + [0] * 2 + [1] * 30), np.array([0] * 10 + [1] * 2 + [1] * 30)
    found = difference([sums(a)], [sums(b)], binary=True)
    assert found.value == pytest.approx(8 / 42)
    assert found.p == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12)


def test_one_seeds_difference_is_the_paired_t_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 25))
    found = difference([sums(a)], [sums(b)])
    half = 2.0639 * (a - b).std(ddof=1) / 5  # t of 24 degrees of freedom
    assert (found.low, found.high) == pytest.approx(((a - b).mean() - half, (a - b).mean() + half), abs=1e-4)


def test_the_paired_t_interval_of_a_ratio_agrees_with_the_paired_cluster_bootstrap():
    rng = np.random.default_rng(1)
    counts_a, counts_b = rng.integers(3, 30, (2, 200)).astype(float)
    a = rng.gamma(2, 1, 200)
    b = a + rng.normal(0.2, 0.5, 200)
    found = difference([sums(a, counts_a)], [sums(b, counts_b)])
    rows = rng.integers(200, size=(4000, 200))
    draws = (a * counts_a)[rows].sum(1) / counts_a[rows].sum(1) - (b * counts_b)[rows].sum(1) / counts_b[rows].sum(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.08)


def test_seeds_and_clusters_both_count_in_the_variance_as_worked_by_hand():
    """Cameron, Gelbach and Miller (2011), eq. 2.11, of an analysis of variance; Satterthwaite's degrees of freedom."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(1, 12)) + rng.normal(0, 1.5, (3, 1)) + rng.normal(0, 0.5, (3, 12))
    off = x - x.mean(1, keepdims=True)
    clusters, seeds = off.mean(0).var(ddof=1) / 12, x.mean(1).var(ddof=1) / 3
    rest = ((off - off.mean(0)) ** 2).sum() / (2 * 11) / 36
    variance = clusters + seeds - rest
    freedom = variance**2 / (clusters**2 / 11 + seeds**2 / 2)
    value, found = over_seeds([sums(row) for row in x])
    half = student.ppf(0.975, freedom) * math.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half))
    nothing = [sums(np.zeros(12))] * 3  # the difference to nothing is the value itself
    against = difference([sums(row) for row in x], nothing)
    assert (against.low, against.high) == pytest.approx((found.low, found.high))
    assert against.p == pytest.approx(2 * student.sf(abs(value) / math.sqrt(variance), freedom))


def test_holm_as_worked_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_the_size_of_a_difference_and_what_is_detectable_by_hand():
    a, b = np.array([3.0, 2.0, 4.0, 1.0, 5.0]), np.array([1.0, 2.0, 1.0, 2.0, 1.0])
    found = difference([sums(a)], [sums(b)])
    spread = (a - b).std(ddof=1)
    assert found.effect == pytest.approx(1.6 / spread)
    assert found.detectable == pytest.approx((2.7764 + 0.9410) * spread / math.sqrt(5), rel=1e-4)  # t of 4
    assert (found.above, found.below) == (3, 1)
    assert difference([sums(a)] * 2, [sums(b)] * 2).detectable == pytest.approx(found.detectable)
    assert difference([sums(a)] * 3, [sums(b)] * 3).detectable is None  # three fits: drawn


def test_rows_are_compared_as_if_each_were_alone():
    rng = np.random.default_rng(5)
    rows = [
        [sums(rng.normal(size=12 - k), rng.integers(1, 4, 12 - k).astype(float)) for _ in range(3)] for k in range(4)
    ]
    rows[1][2] = None  # a seed that was not run
    rows[2][0] = ({}, {})  # one without an observation
    rows[3] = [rows[3][0], None, None]
    both = stats.panel(rows)
    for row, (value, together) in zip(rows, stats.over_seeds(both), strict=True):
        alone = over_seeds(row)
        assert together.method == alone[1].method
        assert (value, *together[:2]) == pytest.approx((alone[0], *alone[1][:2]))
    found = stats.paired_differences(both, both.row(0))
    for row, together in zip(rows, found, strict=True):
        pairs = [(x, y) for x, y in zip(row, rows[0], strict=True) if x and x[1]]
        alone = difference([x for x, _ in pairs], [y for _, y in pairs])
        assert together[5] == alone[5]
        assert together[:5] + together[6:] == pytest.approx(alone[:5] + alone[6:])


def test_many_rows_are_done_in_parts(monkeypatch):
    rng = np.random.default_rng(6)
    both = stats.panel([[sums(rng.normal(size=9)), sums(rng.normal(size=9))] for _ in range(5)])
    whole = stats.over_seeds(both), stats.paired_differences(both, both.row(2)), stats.paired_differences(both, both)
    monkeypatch.setattr(stats, "_chunks", lambda found: [slice(0, 2), slice(2, 4), slice(4, 6)])
    assert (stats.over_seeds(both), stats.paired_differences(both, both.row(2))) == whole[:2]
    assert stats.paired_differences(both, both) == whole[2]


# --- what seeds stand for ---------------------------------------------------------------------------------------------


def test_seeds_are_repeats_these_two_or_drawn():
    assert [stats.seed_kind(f) for f in ([], ["a"], "aa", "aaaaa")] == ["repeats"] * 4
    assert stats.seed_kind("ab") == "these"
    assert [stats.seed_kind(f) for f in ("abc", "aab")] == ["drawn"] * 2


def test_repeats_of_one_fit_are_one_run_with_as_many_samples_a_cluster():
    rng = np.random.default_rng(2)
    for share in (False, True):
        x = rng.integers(0, 2, (3, 40, 5)).astype(float) * rng.random((1, 40, 1)).round()
        seeds = [sums(run.mean(1), np.full(40, 5.0)) for run in x]
        together = sums(x.mean((0, 2)), np.full(40, 15.0))
        value, found = over_seeds(seeds, ["fit"] * 3, share=share)
        assert value == pytest.approx(stats.estimate(*together))
        assert found.method == "cluster bootstrap (BCa)"
        assert found[:2] == pytest.approx(stats.interval(*together, share=share)[:2], rel=0.02)  # other resamples


def test_two_fits_are_taken_as_they_are_and_it_is_said():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 2, 25))
    _, same = over_seeds([sums(x) for x in a], ["fit", "fit"])
    _, these = over_seeds([sums(x) for x in a], ["one", "other"])
    assert these == (same.low, same.high, "cluster bootstrap (BCa), for these 2 seeds")
    for fits, said in ((["x", "x"], ""), (["x", "y"], ", for these 2 seeds")):
        found = difference([sums(x) for x in a], [sums(x) for x in b], [fits, ["base", "base"]])
        tested = ttest_rel(a.mean(0), b.mean(0))
        bounds = tested.confidence_interval(0.95)
        assert (found.p, found.low, found.high) == pytest.approx((tested.pvalue, bounds.low, bounds.high))
        assert found.method == f"paired t{said}"


def test_a_difference_counts_seeds_as_drawn_where_the_fits_of_either_side_differ():
    rng = np.random.default_rng(4)
    a, b = ([sums(x) for x in rng.normal(size=(3, 25)) + rng.normal(size=(3, 1))] for _ in range(2))
    same, other = ["x"] * 3, ["x", "y", "z"]
    methods = [difference(a, b, fits).method for fits in ((same, same), (same, other), (other, same), (other, other))]
    assert methods == ["paired t", *["two-way clustered paired t"] * 3]


def test_the_seeds_that_have_no_value_do_not_count():
    rng = np.random.default_rng(5)
    a, b = ([sums(x) for x in rng.normal(size=(3, 25))] for _ in range(2))
    fits = [["x", "y", "z"], ["base"] * 3]
    assert difference([a[0], None, a[2]], b, fits).method == "paired t, for these 2 seeds"
    assert difference([a[0], None, None], b, fits).method == "paired t"
    assert over_seeds([a[0], None, a[2]], fits[0])[1].method == "cluster bootstrap (BCa), for these 2 seeds"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.05, 0.6), st.booleans())
def test_a_second_seed_that_agrees_never_makes_a_difference_less_certain_than_the_weaker_of_the_two(
    seed, apart, one_fit
):
    rng = np.random.default_rng(seed)
    hard = rng.beta(0.7, 0.9, 30)
    base = [sums(np.clip(hard + rng.normal(0, 0.1, 30), 0, 1)) for _ in range(2)]
    kept = [1 - apart, (1 - apart) * (1 if one_fit else rng.random())]
    other = [sums(np.clip(hard * k + rng.normal(0, 0.1, 30), 0, 1)) for k in kept]
    alone = [difference([x], [y]) for x, y in zip(other, base, strict=True)]
    fits = ["fit", "fit" if one_fit else "another"], ["base", "base"]
    if all(d.value < 0 for d in alone):
        assert difference(other, base, fits).p <= max(d.p for d in alone) + 1e-12


def test_a_second_seed_that_agrees_never_loses_what_both_support():
    for one_fit in (True, False):
        agree, lost = simulation.second_seeds(REPEATS, 20, one_fit=one_fit)
        assert 100 < agree < 900
        assert lost == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=1, max_size=4), st.sampled_from([1.0, 9.0]))
def test_no_interval_leaves_what_a_metric_can_be(seeds, most):
    """Neither of a number between 0 and 1 or 0 and 9, nor of a difference of two."""
    runs = [sums(most * np.array(values)) for values in seeds]
    for fits in (["fit"] * len(runs), list(range(len(runs)))):
        _, found = over_seeds(runs, fits)
        if found.low is not None:
            assert 0 <= found.low <= found.high <= most + 1e-9
        apart = difference(runs, [*runs[1:], runs[0]], [fits, fits])
        if apart.low is not None:
            assert -most - 1e-9 <= apart.low <= apart.high <= most + 1e-9


# --- against SciPy's bootstrap ----------------------------------------------------------------------------------------


def scipys_bca(totals, counts):
    """SciPy's BCa interval of sum(total) / sum(count), from our own resamples, at the levels that we widen to the t
    distribution."""

    def ratio(t, n, axis=-1):
        return t.sum(axis) / n.sum(axis)

    clusters = len(totals)
    value = np.array([ratio(totals, counts)])
    draws = stats._resampled(totals[None], counts[None], value, np.random.default_rng(0))
    reach = math.sqrt(clusters / (clusters - 1)) * student.ppf(0.975, clusters - 1)
    # Two resamples of its own, in whose place ours then stand.
    empty = bootstrap((totals, counts), ratio, n_resamples=2, paired=True, method="percentile")
    empty.bootstrap_distribution = draws
    found = bootstrap(
        (totals, counts), ratio, n_resamples=0, bootstrap_result=empty, paired=True, method="BCa",
        confidence_level=norm.cdf(reach) - norm.cdf(-reach),
    )  # fmt: skip
    return tuple(found.confidence_interval)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(-8, 8), min_size=6, max_size=40).filter(lambda values: len(set(values)) > 1))
def test_the_bootstrap_interval_of_a_mean_is_scipys_bca(values):
    """Also with ties among the resamples, which whole numbers make many of."""
    x = np.sort(np.array(values, dtype=float))  # the resamples are drawn of clusters in this order
    found = stats.interval(*sums(x))
    assert found.method == "cluster bootstrap (BCa)"
    assert (found.low, found.high) == pytest.approx(scipys_bca(x, np.ones(len(x))), rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(20, 60))
def test_the_bootstrap_interval_of_a_ratio_is_nearly_scipys_bca(seed, clusters):
    """SciPy's acceleration leaves clusters out one by one, where ours takes their influence: the same in the limit."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, clusters).astype(float)
    totals = np.sort(rng.gamma(1.0, 2.0, clusters) * counts)
    low, high = scipys_bca(totals, counts)
    found = stats.interval(*sums(totals / counts, counts))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * (high - low))


# --- where there is nothing to say ------------------------------------------------------------------------------------


def test_without_clusters_with_one_and_with_no_spread_the_method_says_why():
    assert stats.estimate({}, {}) is None
    assert stats.interval({}, {}) == (None, None, "none: no cluster")
    assert stats.interval({"a": 3.0}, {"a": 1.0}) == (None, None, "none: one cluster")
    assert stats.interval(*sums(np.full(9, 0.3))) == (None, None, "none: all clusters equal")
    assert over_seeds([None]) == (None, (None, None, "none: no cluster"))


def test_a_share_that_is_zero_everywhere_still_has_an_upper_bound():
    low, high, method = stats.interval(*sums(np.zeros(100), np.full(100, 4.0)), share=True)
    assert (low, method) == (0.0, "Wilson on clusters")
    assert high == pytest.approx(0.03699, abs=1e-5)  # that of 0 of 100, not of 0 of 400


def test_no_cluster_in_common_is_no_difference_not_zero():
    a, b = ({"x": 1.0}, {"x": 1.0}), ({"y": 0.0}, {"y": 1.0})
    assert difference([a], [b])[:6] == (None, None, None, None, 0, "none: no cluster in common")


def test_identical_runs_differ_by_nothing_and_are_not_significant():
    run = sums(np.random.default_rng(0).random(30))
    for seeds in (1, 3):
        found = difference([run] * seeds, [run] * seeds)
        assert (found.value, found.low, found.p) == (0.0, None, 1.0)


def test_only_clusters_of_both_sides_enter_a_difference():
    a, b = sums(np.array([1.0, 2.0, 3.0, 100.0])), sums(np.array([0.0, 2.0, 1.0]))
    found = difference([a], [b])
    assert (found.value, found.n) == (pytest.approx(1.0), 3)


def test_a_sum_that_is_not_finite_names_metric_and_cluster():
    bad = Measure(name="perplexity", better="lower", total={"r1": 1.0, "r2": math.inf}, count={"r1": 1, "r2": 1})
    with pytest.raises(ValueError, match=r"'perplexity'.*'r2'"):
        stats.attach([bad])


def test_attach_turns_measures_into_records():
    total, count = sums(np.array([1.0, 0.0, 1.0, 1.0]))
    measure = Measure("DS", "higher", total, count, missing=2, unit="share", binary=True, headline=False)
    record = stats.attach([measure])["DS"]
    assert (record.value, record.n, record.missing, record.better, record.unit) == (0.75, 4, 2, "higher", "share")
    assert (record.interval, record.headline) == ("Wilson", False)
    assert (record.low, record.high) == stats.interval(total, count, binary=True)[:2]


def test_intervals_of_shares_stay_inside_what_shares_can_be():
    rare = [sums(np.arange(20) < k) for k in (1, 0, 1)]
    value, found = over_seeds(rare, share=True)
    assert 0 < found.low < value < found.high < 0.3
    assert over_seeds(rare)[1].low == 0  # a number that is never negative
    far = difference([sums(np.array([1.0, 1, 1, 0.5]))], [sums(np.array([0.0, 0, 0.4, 0]))], share=True)
    assert (far.high, far.low > 0) == (1.0, True)


def test_seeds_that_repeat_each_other_are_not_taken_for_new_evidence():
    run = sums(np.random.default_rng(0).random(60))
    one = stats.interval(*run)
    value, three = over_seeds([run] * 3)
    assert value == pytest.approx(stats.estimate(*run))
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.1)


# --- simulation (tests/support/coverage_simulation.py) --------------------------------------------------------------

REPEATS = 1000
"""The coverage of a true 95 % interval then has a standard error of 0.7 points."""


@pytest.mark.slow
@pytest.mark.parametrize("case", simulation.ONE[:1] + simulation.ONE[2:3] + simulation.ONE[4:5], ids=lambda c: c.what)
def test_one_runs_intervals_cover_as_they_say(case):
    covered, method = simulation.over_seeds(case, REPEATS, 11)
    assert method == ("Wilson" if case.binary else "cluster bootstrap (BCa)")
    assert 0.93 <= covered <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("case", [*simulation.REPEATS[1:3], simulation.SEVERAL[2]], ids=lambda c: f"{c.what} {c.seeds}")
def test_repeats_and_two_fits_cover_as_they_say(case):
    covered, method = simulation.over_seeds(case, REPEATS, 12)
    assert method.startswith("cluster bootstrap (BCa)")
    assert 0.92 <= covered <= 0.97
    covered, wrong, method = simulation.differences(case, REPEATS, 15)
    assert method.startswith("paired t")
    assert 0.93 <= covered <= 0.97
    assert wrong <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.0, 0.2, 0.5])
def test_three_seeds_cover_as_they_say(between):
    (case,) = [c for c in simulation.SEVERAL if c.seeds == 3 and c.what.endswith(str(between))]
    covered, method = simulation.over_seeds(case, REPEATS, 13)
    assert method == "two-way clustered t"
    assert 0.92 <= covered <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("case", simulation.ONE, ids=lambda c: c.what)
def test_a_difference_that_is_not_there_is_found_at_most_as_often_as_said(case):
    covered, wrong, _ = simulation.differences(case, REPEATS, 14)
    assert 0.93 <= covered <= 0.97
    # McNemar's exact test errs to the safe side: its p-values come in steps.
    assert (0.01 if case.binary else 0.03) <= wrong <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.0, 0.2, 0.5])
def test_over_three_seeds_too(between):
    (case,) = [c for c in simulation.SEVERAL if c.seeds == 3 and c.what.endswith(str(between))]
    covered, wrong, _ = simulation.differences(case, REPEATS, 16)
    assert 0.92 <= covered <= 0.985  # where seeds do not differ the few degrees of freedom err to the safe side
    assert wrong <= 0.08


@pytest.mark.slow
@pytest.mark.parametrize("case", simulation.ONE, ids=lambda c: c.what)
def test_what_is_called_detectable_is_found_four_times_in_five(case):
    least = 0.7 if case.binary else 0.76  # McNemar's exact test, again
    assert least <= simulation.power(case, REPEATS, 17) <= 0.84


@pytest.mark.slow
def test_pooling_the_seeds_over_rows_would_claim_too_much():
    """Why it is not done: a row whose seeds differ while the others' do not gets an interval that is far too short."""
    own, pooled = simulation.pooling(simulation.EFFECTS["one row's seeds differ"], 3, REPEATS, 18)
    assert own.min() >= 0.92
    assert pooled.min() <= 0.85


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", simulation.ONE + simulation.REPEATS + simulation.SEVERAL, ids=lambda c: f"{c.what}, {c.seeds} seeds"
)
def test_all_situations_cover_as_documented(case):
    least = 0.91
    assert least <= simulation.over_seeds(case, 4000, 21)[0] <= 0.975
    covered, wrong, _ = simulation.differences(case, 4000, 22)
    assert least <= covered <= 0.98
    assert wrong <= 1.02 - least


def test_pairing_is_deeper_where_the_noise_of_samples_is_shared():
    """Keyed noise gives two models the same luck in the same sample: differences are then told apart that are not
    where each run draws its own, on the same prompts."""
    rng = np.random.default_rng(19)
    hard = rng.normal(0, 1, 100)
    luck, other = rng.normal(0, 1, (2, 100, 4))
    a = sums(hard + luck.mean(1), np.full(100, 4.0))
    shared = sums(hard + luck.mean(1) - 0.1 + rng.normal(0, 0.1, 100), np.full(100, 4.0))
    apart = sums(hard + other.mean(1) - 0.1 + rng.normal(0, 0.1, 100), np.full(100, 4.0))
    keyed, free = difference([a], [shared]), difference([a], [apart])
    assert keyed.high - keyed.low < (free.high - free.low) / 3
    assert keyed.p < 0.001
    assert keyed.detectable < 0.1 < free.detectable


def test_pairing_finds_what_two_intervals_do_not():
    rng = np.random.default_rng(15)
    hard = rng.normal(0, 1, 100)
    a, b = sums(hard + 0.2 + rng.normal(0, 0.3, 100)), sums(hard + rng.normal(0, 0.3, 100))
    one, other = stats.interval(*a), stats.interval(*b)
    unpaired = math.hypot(one.high - one.low, other.high - other.low)
    found = difference([a], [b])
    assert found.high - found.low < unpaired / 2
    assert found.low > 0
    assert one.low < other.high


# --- symmetries -------------------------------------------------------------------------------------------------------

runs = st.lists(
    st.tuples(st.floats(-50, 50).map(lambda v: round(v, 3)), st.integers(1, 9)), min_size=2, max_size=25
).map(lambda rows: ({f"c{i}": v * n for i, (v, n) in enumerate(rows)}, {f"c{i}": n for i, (_, n) in enumerate(rows)}))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(runs, st.randoms(use_true_random=False), st.sampled_from([0.25, 3.0, 1000.0]))
def test_an_interval_holds_its_estimate_and_knows_no_names_no_order_and_no_units(run, random, factor):
    total, count = run
    value, found = stats.estimate(total, count), stats.interval(total, count)
    if found.low is None:
        return
    assert found.low <= value <= found.high

    names = list(total)
    random.shuffle(names)
    renamed = {c: f"other {i}" for i, c in enumerate(names)}
    shuffled = stats.interval({renamed[c]: total[c] for c in names}, {renamed[c]: count[c] for c in names})
    assert shuffled == found

    scaled = stats.interval({c: v * factor for c, v in total.items()}, count)
    assert (scaled.low, scaled.high) == pytest.approx((found.low * factor, found.high * factor), rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(runs, min_size=2, max_size=4), st.sampled_from([0.25, 1000.0]))
def test_seeds_and_differences_hold_their_estimates_and_know_no_units(seeds, factor):
    scaled = [({c: v * factor for c, v in total.items()}, count) for total, count in seeds]
    value, found = over_seeds(seeds)
    if found.low is not None:
        assert found.low <= value <= found.high
        assert over_seeds(scaled)[1].high == pytest.approx(found.high * factor, rel=1e-6, abs=1e-6)
    forth = difference(seeds[:1], seeds[1:2])
    back = difference(seeds[1:2], seeds[:1])
    assert forth.p == pytest.approx(back.p)
    assert forth.value == pytest.approx(-back.value, abs=1e-9)
    if forth.low is not None:
        assert forth.low <= forth.value <= forth.high
        assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 4), min_size=12, max_size=12), min_size=1, max_size=3))
def test_an_interval_of_a_share_stays_between_zero_and_one(answers):
    value, found = over_seeds([sums(np.array(a) / 4, np.full(12, 4.0)) for a in answers], share=True)
    if found.low is not None:
        assert 0 <= found.low <= value + 1e-12
        assert value - 1e-12 <= found.high <= 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_never_lowers_a_p_value(p_values):
    adjusted = stats.holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert list(np.array(adjusted)[order]) == sorted(adjusted)
