"""The leaderboard: comparable or kept apart, tested or not claimed, and names that stay text."""

from __future__ import annotations

import csv
import io
import json
from functools import partial

import msgspec
import numpy as np
import pytest

from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.records import Measure
from detoxbench.results import paper
from detoxbench.results.leaderboard import leaderboard
from detoxbench.results.settings import changed_settings
from detoxbench.results.stats import holm, paired_differences, panel
from detoxbench.results.store import Run
from detoxbench.runner.composition import options
from tests.support.stored import CLUSTERS, defense, toxicity, write, yes


@pytest.fixture
def store(tmp_path):
    """A function that writes one run and returns its folder."""
    (tmp_path / "runs").mkdir()
    return partial(write, tmp_path / "runs")


def read(tmp_path, **more):
    return leaderboard(tmp_path / "runs", **more)


def only_table(board):
    (table,) = board.tables
    return table


GOLDEN = """\
tiny · safeedit · scored by embedded
model.fingerprint=of tiny, model.dtype=float32, max_new_tokens=20, do_sample=true, top_p=0.9
method                                 DS ↑ %                         EMT ↓
───────────────────────────────────────────────────────────────────────────
none                        25.0 [14.2, 40.2]          0.500 [0.400, 0.591]
destein alpha=0.2           32.5 [20.1, 48.0]          0.500 [0.400, 0.591]
                    Δ +7.5 [-1.0, +16.0] n.s.                 Δ +0.000 n.s.
destein alpha=0.4           95.0 [83.5, 98.6]          0.125 [0.100, 0.148]
                     Δ +70.0 [+55.2, +84.8] ✓   Δ -0.375 [-0.447, -0.303] ✓

method                fit   speed   prompt   artifact   samples   empty   degenerate   truncated
────────────────────────────────────────────────────────────────────────────────────────────────
none                1.5 s   0.98×       +0    12.3 kB        40       1            2          30
destein alpha=0.2   1.5 s   0.98×       +0    12.3 kB        40       1            2          30
destein alpha=0.4   1.5 s   0.98×       +0    12.3 kB        40       1            2          30

  [low, high]: 95 % interval by prompt or record (Wilson; cluster bootstrap (BCa))
  Δ: difference to the base on the same prompts and seeds; ✓ better, ✗ worse, ≠ differs (p < 0.05
after Holm over the 4 tests of this table); n.s.: not supported
  40 prompts or records tell these differences apart (power 80 %, one test at 0.05): DS 17 points,
EMT 0.1
  fidelity: none, destein alpha=0.2, destein alpha=0.4: not said
  settings that are not the method's defaults: destein alpha=0.2: layers=[1, 2]; destein alpha=0.4:
layers=[1, 2]
  none in any row: missing scores
  EMT: missing values, left out: destein alpha=0.2 2

"""


def test_what_nobody_counted_is_said_to_be_not_measured(store, tmp_path):
    base = {"requests": 40, "samples": 40, "empty": 0, "degenerate": None, "cut_texts": None}
    store([defense(yes(10))], counts=base, schema=2)
    store([defense(yes(13))], "destein", counts={**base, "cut_texts": 0}, schema=2)
    table = only_table(read(tmp_path))
    assert "none in any row: empty" in table.notes
    assert "not measured: degenerate, cut texts (none)" in table.notes
    assert table.rows[0].counts["degenerate"] is None
    (csv,) = [line for line in read(tmp_path).render("csv").splitlines() if "none" in line and "degenerate" in line]
    assert "counts.degenerate,,,," in csv, "an empty cell, not 0"
    assert '"degenerate": null' in read(tmp_path).render("json")
    for format in ("table", "md", "latex", "csv", "json"):
        assert "None" not in read(tmp_path).render(format)


def test_every_row_says_how_near_its_method_is_to_what_was_published(store, tmp_path):
    near = "equal to the released code (golden fixture x: 1 % off)"
    store([defense(yes(10))], fidelity="ours (nothing is changed)")
    store([defense(yes(13))], "destein", seed=0, fidelity=near)
    store([defense(yes(13))], "destein", seed=1)  # the line is that of the runs which have it
    store([defense(yes(20))], "dinm")  # older than the field
    board = read(tmp_path)
    table = only_table(board)
    assert [row.said for row in table.rows] == ["ours (nothing is changed)", near, "not said"]
    notes = [note for note in table.notes if note.startswith("fidelity: ")]
    assert notes == [
        "fidelity: none: ours (nothing is changed)",
        f"fidelity: destein: {near}",
        "fidelity: dinm: not said",
    ]
    assert rf"{{\scriptsize fidelity: destein: {near.replace('%', chr(92) + '%')}\par}}" in board.render("latex")
    lines = csv.DictReader(io.StringIO(board.render("csv")))
    assert {line["row"]: line["fidelity"] for line in lines} == {row.label: row.said for row in table.rows}
    for format in ("table", "md"):
        assert "fidelity: dinm: not said" in board.render(format)


def test_what_a_paper_reports_has_no_fidelity_of_ours(store, tmp_path, monkeypatch):
    row = paper.Reported(
        model="tiny", method="dinm", variant="", suite="safeedit", metric="DS", value=96.02, unit="percent", source="P"
    )
    monkeypatch.setattr(paper, "reported", lambda: [row])
    store([defense(yes(10))])
    assert [r.said for r in only_table(leaderboard(tmp_path / "runs", paper=True)).rows] == ["not said", ""]


def test_a_count_that_one_seed_lacks_is_no_sum(store, tmp_path):
    store([defense(yes(10))], seed=0, counts={"samples": 40, "degenerate": 3})
    store([defense(yes(10))], seed=1, counts={"samples": 40})
    (row,) = only_table(read(tmp_path)).rows
    assert (row.counts["samples"], row.counts["degenerate"]) == (80, None)


def test_the_zeros_that_schema_1_wrote_where_nobody_counted_are_not_measured(store, tmp_path):
    counts = {"samples": 40, "empty": 0, "degenerate": 0, "cut_texts": 0}
    store([defense(yes(10))], counts=counts, schema=1)
    told = Measure("degenerate_share", "lower", yes(0), dict.fromkeys(CLUSTERS, 1.0), unit="share", binary=True)
    store([defense(yes(10)), told], "destein", counts=counts, schema=1)
    old, counted = only_table(read(tmp_path)).rows
    assert old.counts == {"samples": 40, "empty": 0, "degenerate": None, "cut_texts": None}
    assert counted.counts["degenerate"] == 0, "its metric says that somebody counted"


def test_a_small_table_as_printed(store, tmp_path):
    ramp = {c: i / 39 for i, c in enumerate(CLUSTERS)}
    store([defense(yes(10)), toxicity(ramp)])
    store([defense(yes(13)), toxicity(ramp, missing=2)], "destein", config={"alpha": 0.2, "layers": [1, 2]})
    store(
        [defense(yes(38)), toxicity({c: v / 4 for c, v in ramp.items()})],
        "destein",
        config={"alpha": 0.4, "layers": [1, 2]},
    )
    assert read(tmp_path).render("table", width=100) == GOLDEN


# --- comparable or kept apart -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gen": {"top_p": 1.0}}, "tables of safeedit are kept apart by gen.top_p: 0.9 | 1.0"),
        ({"model": "other"}, "model.fingerprint: of other (other) | of tiny (tiny)"),
    ],
)
def test_runs_that_do_not_compare_never_share_a_table_and_the_key_is_named(store, tmp_path, change, named):
    store([defense(yes(10))])
    store([defense(yes(30))], "destein", **change)
    board = read(tmp_path)
    assert len(board.tables) == 2
    assert all(len(t.rows) == 1 and t.rows[0].cells["DS"].difference is None for t in board.tables)
    (note,) = board.notes
    assert named in note
    for format in ("table", "md"):
        assert "kept apart by" in board.render(format, width=200).replace("\\", "")


@pytest.mark.parametrize("key", ["schema", "model", "suite", "scorer", "gen"])
def test_any_difference_in_any_part_of_the_identity_keeps_apart(store, tmp_path, key):
    store([defense(yes(10))])
    folder = store([defense(yes(30))], "destein")
    record = Run(folder).record()
    value = record.identity[key]
    record.identity[key] = {**value, "new": [1]} if isinstance(value, dict) else 0
    (folder / "run.json").write_bytes(msgspec.json.encode(record))
    board = read(tmp_path)
    assert len(board.tables) == 2
    assert f"kept apart by {key}" in board.notes[0]


def test_suites_have_tables_of_their_own_without_a_complaint(store, tmp_path):
    store([defense(yes(10))])
    store([toxicity(yes(10))], suite="real_toxicity_prompts", gen={"top_p": 1.0})
    board = read(tmp_path)
    assert [t.suite for t in board.tables] == ["real_toxicity_prompts", "safeedit"]
    assert board.notes == []


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_labelled_by_the_knobs_that_differ_and_the_base_is_first(store, tmp_path):
    for alpha in (10.0, 2.0):
        store([defense(yes(20))], "destein", config={"alpha": alpha, "heads": 4})
    store([defense(yes(20))], "a_method", config={"alpha": 1})
    store([defense(yes(20))])
    assert [r.label for r in only_table(read(tmp_path)).rows] == [
        "none",
        "a_method",
        "destein alpha=2.0",
        "destein alpha=10.0",
    ]


def test_seeds_are_averaged_and_only_shared_ones_enter_the_difference(store, tmp_path):
    for seed, times in ((0, 10), (1, 12)):
        store([defense(yes(times))], seed=seed)
    for seed, times in ((0, 20), (1, 24), (2, 40)):
        store([defense(yes(times))], "destein", seed)
    table = only_table(read(tmp_path))
    base, row = table.rows
    assert row.seeds == [0, 1, 2]
    assert row.cells["DS"].value == pytest.approx((20 + 24 + 40) / 120)
    assert base.cells["DS"].interval == "cluster bootstrap (BCa)", "the base is the same under every seed"
    assert row.cells["DS"].interval == "two-way clustered t (logit)"
    assert row.cells["DS"].by_seed == [20 / 40, 24 / 40, 1.0]
    difference = row.cells["DS"].difference
    assert difference.seeds == [0, 1]
    assert difference.value == pytest.approx((10 + 12) / 80)
    assert "destein: seeds 0, 1, 2, base 0, 1: differences are over 0, 1" in table.notes
    assert row.counts["truncated"] == 90
    assert row.cost["fit_seconds"] == 1.5


def test_no_seed_in_common_is_no_difference(store, tmp_path):
    store([defense(yes(10))], seed=0)
    store([defense(yes(30))], "destein", seed=1)
    table = only_table(read(tmp_path))
    assert table.rows[1].cells["DS"].difference is None
    assert any("none in common, so no differences" in note for note in table.notes)


def test_without_a_base_nothing_is_compared(store, tmp_path):
    store([defense(yes(10))], "destein")
    store([defense(yes(30))], "ext_sub")
    assert "no base run (method=none) here: no differences" in only_table(read(tmp_path)).notes


def test_headline_metrics_are_shown_and_all_when_asked(store, tmp_path):
    store([defense(yes(10)), toxicity(yes(10), headline=False)])
    assert [c.name for c in only_table(read(tmp_path)).columns] == ["DS"]
    assert [c.name for c in only_table(read(tmp_path, all_metrics=True)).columns] == ["DS", "EMT"]


# --- no test, no claim ------------------------------------------------------------------------------------------------


def test_differences_are_corrected_over_the_whole_table(store, tmp_path):
    """One difference of six is significant alone, and not among twenty."""
    base = [defense(yes(10))]
    store(base)
    better = [defense(yes(17))]
    store(better, "m0", config={"knob": 0})
    pair = panel([[(m.total, m.count)] for m in (*better, *base)])
    alone = paired_differences(pair.row(0), pair.row(1), binary=True)[0].p
    assert only_table(read(tmp_path)).rows[1].cells["DS"].difference.verdict == "better"
    for i in range(1, 20):
        store([defense(yes(11))], f"m{i}", config={"knob": i})
    found = only_table(read(tmp_path)).rows[1].cells["DS"].difference
    assert (found.p, found.p_holm) == (alone, pytest.approx(holm([alone] + [1.0] * 19)[0]))
    assert found.verdict == "unsupported"


def test_a_supported_difference_is_better_or_worse_by_the_metrics_direction(store, tmp_path):
    rng = np.random.default_rng(0)
    noise = dict(zip(CLUSTERS, rng.random(40).tolist(), strict=True))
    up = {c: v + 1 + 0.1 * rng.random() for c, v in noise.items()}
    names = ("higher", "lower", "neither")
    ones = dict.fromkeys(CLUSTERS, 1.0)
    store([Measure(n, n, noise, ones) for n in names])
    store([Measure(n, n, up, ones) for n in names], "destein")
    cells = only_table(read(tmp_path)).rows[1].cells
    assert {n: cells[n].difference.verdict for n in names} == {
        "higher": "better",
        "lower": "worse",
        "neither": "differs",
    }


def test_missing_is_said_and_a_metric_without_a_value_is_no_zero(store, tmp_path):
    store([defense(yes(10), missing=3), toxicity({})])
    board = read(tmp_path)
    table = only_table(board)
    assert "DS: missing values, left out: none 3" in table.notes
    assert "EMT: not measured: none" in table.notes
    assert table.rows[0].cells["EMT"].value is None
    assert "| 25.0 \\[14.2, 40.2\\] | – |" in board.render("md")
    rows = list(csv.DictReader(io.StringIO(board.render("csv"))))
    assert next(r["value"] for r in rows if r["metric"] == "EMT") == ""


@pytest.mark.parametrize(("name", "path"), [("fable", "elsewhere"), ("renamed", "fable"), ("tiny", "tiny")])
def test_the_embedded_world_is_called_no_evidence(store, tmp_path, name, path):
    store([defense(yes(10))], model=name, spec={"model": {"path": path}})
    for format in ("table", "md", "latex", "json"):
        assert ("no evidence about methods" in read(tmp_path).render(format, width=200)) == (name != "tiny")


# --- any two rows -----------------------------------------------------------------------------------------------------


def three(store):
    """A base, a row that is better than it, and one that is better than both."""
    store([defense(yes(10))])
    store([defense(yes(25))], "destein")
    store([defense(yes(38))], "ext_sub")


def test_differences_may_be_to_any_row_by_label_or_method(store, tmp_path):
    three(store)
    for against in ("ext_sub", "destein"):
        table = only_table(read(tmp_path, against=against))
        assert table.against == against
        found = {row.label: row.cells["DS"].difference for row in table.rows}
        assert found[against] is None
        assert found["none"].verdict == "worse"
        assert any(f"Δ: difference to '{against}'" in note for note in table.notes)
    assert found["ext_sub"].value == pytest.approx(13 / 40)


def test_a_row_to_compare_with_must_be_there_and_be_one(store, tmp_path):
    three(store)
    with pytest.raises(UsageError, match=r"no single row 'desten'.*did you mean 'destein'"):
        read(tmp_path, against="desten")
    store([defense(yes(20))], "destein", config={"alpha": 2})
    with pytest.raises(UsageError, match=r"no single row 'destein' in any table.*rows: none, destein alpha"):
        read(tmp_path, against="destein")
    assert only_table(read(tmp_path, against="destein alpha=2")).rows[1].cells["DS"].difference is None


def test_all_pairs_are_tested_together_and_seen_from_both_sides(store, tmp_path):
    three(store)
    (pairs,) = only_table(read(tmp_path, pairwise=["DS"])).pairwise
    assert pairs.labels == ["none", "destein", "ext_sub"]
    there, back = pairs.differences[2][0], pairs.differences[0][2]
    assert (there.value, there.low, there.verdict) == (-back.value, -back.high, "better")
    assert (back.verdict, back.above, back.below) == ("worse", 0, 28)
    half = [pairs.differences[i][j] for i, j in ((1, 0), (2, 0), (2, 1))]
    assert [d.p_holm for d in half] == pytest.approx(holm([d.p for d in half]))
    assert pairs.differences[1][1] is None


def test_how_large_a_difference_is_and_how_large_it_must_be_is_told(store, tmp_path):
    three(store)
    table = only_table(read(tmp_path))
    difference = table.rows[1].cells["DS"].difference
    spread = np.std([0.0] * 25 + [1.0] * 15, ddof=1)
    assert difference.effect == pytest.approx(15 / 40 / spread)
    assert (difference.above, difference.below) == (15, 0)
    (note,) = [note for note in table.notes if "tell these differences apart" in note]
    shown = np.median([100 * row.cells["DS"].difference.detectable for row in table.rows[1:]])
    assert note == (
        f"40 prompts or records tell these differences apart (power 80 %, one test at 0.05): DS {shown:.2g} points"
    )


def test_the_best_is_one_that_beats_every_other_row_by_a_test(store, tmp_path):
    three(store)
    assert only_table(read(tmp_path)).columns[0].best == "ext_sub"
    store([defense(yes(37))], "self_reminder")  # nearly as good: nobody is the best
    assert only_table(read(tmp_path)).columns[0].best is None


def test_to_be_the_best_of_three_takes_more_than_to_be_the_better_of_two(store, tmp_path):
    store([defense(yes(34))])
    store([defense(yes(40))], "ext_sub")  # six answers apart, all to one side: p = 2 / 2**6
    assert only_table(read(tmp_path)).columns[0].best == "ext_sub"
    store([defense(yes(5))], "destein")
    assert only_table(read(tmp_path)).columns[0].best is None


def test_what_seeds_stand_for_is_said_below_the_table_with_each_of_two(store, tmp_path):
    for seed in range(3):
        store([defense(yes(10 + seed))], seed=seed)
        store([defense(yes(20 + seed))], "self_reminder", seed, fit="the same words")
    notes = only_table(read(tmp_path)).notes
    assert "the same intervention under every seed, so that seeds are further samples: none, self_reminder" in notes
    for seed in range(2):
        store([defense(yes(20 + 4 * seed))], "destein", seed, fit=f"of seed {seed}")
    (two,) = [note for note in only_table(read(tmp_path)).notes if "these two" in note]
    assert two.endswith("(take three or more): destein: seeds 0, 1: DS 50 and 60")
    store([defense(yes(20))], "destein", 2, fit="of seed 2")
    notes = only_table(read(tmp_path)).notes
    assert "another fit under every seed, so that intervals and tests are for new seeds too: destein" in notes


def test_runs_without_a_digest_of_their_fit_are_the_same_only_where_a_seed_could_change_nothing(store, tmp_path):
    for seed in range(2):
        store([defense(yes(10 + seed))], seed=seed)
        store([defense(yes(20 + seed))], "self_reminder", seed, cost={"artifact_bytes": 0})
        store([defense(yes(30 + seed))], "destein", seed)
    base, destein, reminder = only_table(read(tmp_path)).rows
    for row, same in ((base, True), (reminder, True), (destein, False)):
        assert (len(set(row.fits)) == 1) == same


def test_a_second_seed_that_agrees_keeps_the_evidence(store, tmp_path):
    """30 prompts x 5, two seeds in which the toxicity falls by .25 and by .48, each supported alone."""
    rng = np.random.default_rng(0)
    prompts = [f"p{i}" for i in range(30)]
    hard = rng.beta(0.9, 0.9, 30)

    def emt(kept):
        values = np.clip(hard * kept + rng.normal(0, 0.05, 30), 0, 1)
        return toxicity(dict(zip(prompts, map(float, values), strict=True)))

    for seed, kept in ((0, 0.5), (1, 0.04)):
        store([emt(1.0)], seed=seed)
        store([emt(kept)], "destein", seed, fit=f"of seed {seed}")
        alone = only_table(leaderboard(tmp_path / "runs")) if seed == 0 else None
        if alone:
            assert alone.rows[1].cells["EMT"].difference.verdict == "better"
    base, destein = (row.cells["EMT"] for row in only_table(read(tmp_path)).rows)
    assert 0 < base.low < base.value < base.high < 1
    assert destein.difference.verdict == "better"
    assert destein.difference.method == "paired t, for these 2 seeds"
    assert -1 < destein.difference.low < destein.difference.high < 0
    # A third and fourth that lie far from these widen it, but never beyond what the metric can be.
    store([emt(1.0)], seed=2)
    store([emt(0.9)], "destein", 2, fit="of seed 2")
    destein = only_table(read(tmp_path)).rows[1].cells["EMT"]
    assert destein.difference.method == "two-way clustered paired t"
    assert 0 <= destein.low < destein.high <= 1
    assert -1 <= destein.difference.low < destein.difference.high <= 1


# --- how a row was made -----------------------------------------------------------------------------------------------


def test_data_settings_version_and_commit_are_told_by_name(store, tmp_path):
    git = {"commit": "0123456789abcdef", "dirty": True}
    made = {"provenance": {"packages": {"detoxbench": "0.1"}, "git": git}}
    store([defense(yes(10))], data={"suite.data": "prompts.jsonl, 40 requests"}, **made)
    for digest, name in (("d1", "own.tsv, 9 examples"), ("d2", "para.tsv, 8 examples")):
        data = {"suite.data": "prompts.jsonl, 40 requests", "fit.parallel_pairs": name}
        store([defense(yes(12))], "destein", config={"alpha": 0.7}, fit_data=digest, data=data, **made)
    table = only_table(read(tmp_path))
    labels = [row.label for row in table.rows]
    assert labels == ["none", "destein fit_data=own.tsv, 9 examples", "destein fit_data=para.tsv, 8 examples"]
    assert "asked: prompts.jsonl, 40 requests" in table.notes
    assert f"fitted on parallel_pairs own.tsv, 9 examples: {labels[1]}" in table.notes
    assert f"settings that are not the method's defaults: {labels[1]}: alpha=0.7; {labels[2]}: alpha=0.7" in table.notes
    assert "made by detoxbench 0.1, commit 0123456789ab with uncommitted changes" in table.notes


def test_a_list_at_its_default_is_not_told():
    """Defaults are tuples, what a run keeps are lists."""
    usual = {"layers": [], "relocate": "per_record"}
    assert changed_settings({"name": "dinm", "config": usual}) == {}
    assert changed_settings({"name": "dinm", "config": usual | {"layers": [1]}}) == {"layers": "[1]"}


def test_a_real_model_on_embedded_data_is_said_to_be_no_evidence(store, tmp_path):
    store([defense(yes(10))], data={"suite.data": "embedded fable, 40 requests"})
    assert any("no evidence about methods" in note for note in only_table(read(tmp_path)).notes)


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_filters_take_names_and_patterns_and_the_base_stays(store, tmp_path):
    three(store)
    store([defense(yes(10))], model="other")
    store([defense(yes(10))], suite="utility", scorer="refusal")
    assert [r.label for r in only_table(read(tmp_path, method=["ext*"], model=["tiny"], suite=["safeedit"])).rows] == [
        "none",
        "ext_sub",
    ]
    assert {t.model for t in read(tmp_path, model=["o*", "tiny"]).tables} == {"other", "tiny"}
    assert [t.suite for t in read(tmp_path, scorer=["refusal"]).tables] == ["utility"]
    with pytest.raises(UsageError, match=r"no run with suite 'safedit' .did you mean 'safeedit'.*there are: safeedit"):
        read(tmp_path, suite=["safedit"])


def test_columns_are_chosen_and_ordered_and_only_they_are_tested(store, tmp_path):
    store([defense(yes(10)), toxicity(yes(10)), toxicity(yes(9), headline=False)])
    store([defense(yes(17)), toxicity(yes(12))], "destein")
    every, one = read(tmp_path), read(tmp_path, columns=["cost.artifact_bytes", "DS", "counts.truncated"])
    difference = [only_table(board).rows[1].cells["DS"].difference for board in (every, one)]
    assert difference[0].p_holm > difference[1].p_holm == difference[1].p
    lines = one.render("md").splitlines()
    assert next(line for line in lines if line.startswith("| method")) == (
        "| method | seeds | DS ↑ % | artifact | truncated |"
    )
    assert {r["metric"] for r in csv.DictReader(io.StringIO(one.render("csv")))} == {
        "DS",
        "cost.artifact_bytes",
        "counts.truncated",
    }
    with pytest.raises(UsageError, match=r"no column 'cost.artefact_bytes'.*did you mean 'cost.artifact_bytes'"):
        read(tmp_path, columns=["cost.artefact_bytes"])
    with pytest.raises(UsageError, match="no column 'ds' in any table"):
        read(tmp_path, pairwise=["ds"])
    store([defense(yes(10))], suite="utility")
    assert [t.suite for t in read(tmp_path, columns=["EMT"]).tables] == ["safeedit"]  # the other has nothing to show


def test_suites_of_a_model_stand_side_by_side_with_their_own_tests(store, tmp_path):
    three(store)
    store([toxicity(yes(30))], suite="real_toxicity_prompts", gen={"top_p": 1.0})
    store([toxicity(yes(5)), defense(yes(3))], "destein", suite="real_toxicity_prompts", gen={"top_p": 1.0})
    own = {t.suite: t for t in read(tmp_path).tables}
    table = only_table(read(tmp_path, by="model"))
    assert [c.name for c in table.columns] == ["real_toxicity_prompts: EMT", "safeedit: DS"]
    assert [r.label for r in table.rows] == ["none", "destein", "ext_sub"]
    assert table.rows[1].cells["safeedit: DS"] == own["safeedit"].rows[1].cells["DS"]
    assert table.rows[1].cells["real_toxicity_prompts: EMT"].difference.verdict == "better"
    assert table.rows[2].cells["real_toxicity_prompts: EMT"].interval == "none: not run"
    assert len(table.rows[1].run_ids) == 2
    assert table.columns[1].best == "ext_sub"
    assert "safeedit: DS ↑ %" in read(tmp_path, by="model").render("table", width=150)
    with pytest.raises(UsageError, match="ranks and pairs are of one table"):
        read(tmp_path, by="model", ranks=True)


def test_a_configuration_is_one_row_over_suites_unless_its_data_alone_tells_rows_apart(store, tmp_path):
    for suite in ("safeedit", "utility"):  # fitted on each of the suite's own records
        store([defense(yes(10))], "dinm", suite=suite, fit_data=f"of {suite}")
    assert [(r.label, len(r.run_ids)) for r in only_table(read(tmp_path, by="model")).rows] == [("dinm", 2)]
    store([defense(yes(10))], "dinm", suite="utility", fit_data="another")
    rows = only_table(read(tmp_path, by="model")).rows
    assert [r.label for r in rows] == ["dinm fit_data=another", "dinm fit_data=of safeedit", "dinm fit_data=of utility"]


def test_models_of_a_suite_stand_side_by_side_under_one_setting_only(store, tmp_path):
    for model in ("large", "small"):
        store([defense(yes(10))], model=model)
        store([defense(yes(30))], "destein", model=model, config={"alpha": 0.4})
    store([defense(yes(10))], gen={"top_p": 0.5}, model="small")
    tables = read(tmp_path, by="suite").tables
    assert [[c.name for c in t.columns] for t in tables] == [["large: DS", "small: DS"], ["small: DS"]]
    assert tables[0].rows[1].label == "destein"
    assert tables[0].shared["gen.top_p"] == 0.9


def test_ranks_and_the_front_are_shown_when_asked(store, tmp_path):
    three(store)
    assert only_table(read(tmp_path)).standings == []
    board = read(tmp_path, pareto=["DS", "cost.fit_seconds"])
    found = only_table(board)
    assert found.front == ["DS", "cost.fit_seconds"]
    assert [(s.label, s.rank, s.front) for s in found.standings] == [
        ("ext_sub", 1, True),
        ("destein", 2, False),
        ("none", 3, False),
    ]
    assert (found.standings[0].low, found.standings[0].high, found.standings[0].first) == (1, 1, 1.0)
    assert "Pareto front over DS, cost.fit_seconds" in board.render("table", width=120)
    rows = list(csv.DictReader(io.StringIO(board.render("csv"))))
    assert [r["value"] for r in rows if r["metric"] == "rank.borda"] == ["1", "2", "3"]
    with pytest.raises(UsageError, match="no column 'nonsense'"):
        read(tmp_path, pareto=["nonsense"])


# --- what cannot be read ----------------------------------------------------------------------------------------------


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_tabulated(store, tmp_path):
    store([defense(yes(10))])
    newer = store([defense(yes(20))], "newer", schema=99)
    torn = store([defense(yes(20))], "torn")
    (torn / "run.json").write_bytes((torn / "run.json").read_bytes()[:50])
    bare = store([defense(yes(20))], "bare")
    (bare / "clusters.json").unlink()
    partial = store([defense(yes(20))], "partial", identity={"model": {}})
    board = read(tmp_path)
    assert [r.label for r in only_table(board).rows] == ["none", "bare"]
    assert only_table(board).rows[1].cells["DS"].difference is None
    for folder, said in ((newer, "newer"), (torn, "unreadable"), (bare, "clusters.json"), (partial, "'method'")):
        assert any(folder.name in note and said in note for note in board.notes), folder


def test_a_copied_run_is_not_counted_twice(store, tmp_path):
    folder = store([defense(yes(10))])
    (tmp_path / "runs" / "a copy").mkdir()
    for file in folder.iterdir():
        (tmp_path / "runs" / "a copy" / file.name).write_bytes(file.read_bytes())
    board = read(tmp_path)
    assert only_table(board).rows[0].seeds == [0]
    assert "a copy" in board.notes[0]


def test_clusters_are_read_only_where_they_are_needed(store, tmp_path):
    folder = store([defense(yes(10))])
    (folder / "clusters.json").unlink()
    assert read(tmp_path).notes == []


def test_no_runs_and_no_folder(tmp_path):
    (tmp_path / "runs").mkdir()
    assert "no finished runs" in read(tmp_path).render("table")
    with pytest.raises(DetoxbenchError, match="no runs folder"):
        leaderboard(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="unknown leaderboard format 'html'"):
        read(tmp_path).render("html")


# --- formats ----------------------------------------------------------------------------------------------------------

HOSTILE = "=cmd|' /C calc'!A0 [red]<b>\x1b[31m\nx\u202e"


@pytest.fixture
def hostile(store, tmp_path):
    store([defense(yes(10))], HOSTILE, model=HOSTILE)
    return read(tmp_path)


def test_a_name_with_markup_stays_text_in_the_terminal(hostile):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    console.print(hostile)
    text = console.file.getvalue()
    assert "[red]<b>�[31m�x�" in text
    assert "\x1b[31m" not in text
    assert "\u202e" not in text


def test_a_name_with_markup_stays_text_in_markdown(hostile):
    lines = hostile.render("md").splitlines()
    (row,) = [line for line in lines if line.startswith("| =cmd")]
    assert r"=cmd\|' /C calc'!A0 \[red\]&lt;b>" in row
    header = next(line for line in lines if line.startswith("| method"))
    assert row.replace(r"\|", "").count("|") == header.count("|")


def test_a_name_like_a_formula_stays_text_in_csv(hostile):
    rows = list(csv.DictReader(io.StringIO(hostile.render("csv"))))
    assert {r["row"][:5] for r in rows} == {"'=cmd"}
    assert {r["model"][:5] for r in rows} == {"'=cmd"}


@pytest.mark.parametrize("name", ["+1", " @SUM(A1)", "-x", "＝1", "\t=1"])
def test_every_way_to_begin_a_formula_is_guarded(store, tmp_path, name):
    store([defense(yes(10))], name)
    (row,) = {r["row"] for r in csv.DictReader(io.StringIO(read(tmp_path).render("csv")))}
    assert row[0] in "'�"


def test_a_name_with_commands_stays_text_in_latex(store, tmp_path):
    store([defense(yes(10))], r"\input{x} 50%_&#$~^<>|", model="a_b")
    store([defense(yes(10))])
    text = read(tmp_path).render("latex")
    row, _ = [line for line in text.splitlines() if "input" in line]  # and its fidelity
    signs = r"\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"
    assert row.startswith(rf"\textbackslash{{}}input\{{x\}} 50\%\_\&\#\${signs} &")
    assert r"\caption{a\_b" in text
    store([defense(yes(10))], '["best"]\u202e')
    lines = read(tmp_path, pairwise=["DS"]).render("latex").splitlines()
    assert any(line.startswith(r"{}[{\char34}best{\char34}]? & ") for line in lines), "no option of the line before"
    assert "\n".join(lines).isascii()


def test_latex_has_booktabs_intervals_in_small_print_and_bold_only_with_a_test(store, tmp_path):
    three(store)
    lines = read(tmp_path, columns=["DS", "cost.artifact_bytes"], pairwise=["DS"]).render("latex").splitlines()
    start = lines.index(r"\begin{tabular}{lrr}")
    assert lines[start + 1 : start + 9] == [
        r"\toprule",
        r"method & DS $\uparrow$ \% & artifact \\",
        r"\midrule",
        r"none & 25.0 {\scriptsize [14.2, 40.2]} & 12.3 kB \\",
        r"destein & 62.5$^{*}$ {\scriptsize [47.0, 75.8]} & 12.3 kB \\",
        r"ext\_sub & \textbf{95.0}$^{*}$ {\scriptsize [83.5, 98.6]} & 12.3 kB \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert any(line.startswith("(1) none & -- & $-$37.5 [$-$53.2, $-$21.8] $") for line in lines)
    store([defense(yes(37))], "self_reminder")
    assert r"\textbf" not in read(tmp_path).render("latex")


def test_negative_numbers_stay_numbers_in_csv(store, tmp_path):
    store([defense(yes(30))])
    store([defense(yes(10))], "destein")
    rows = list(csv.DictReader(io.StringIO(read(tmp_path).render("csv"))))
    row = next(r for r in rows if r["row"] == "destein" and r["metric"] == "DS")
    assert float(row["difference"]) == -0.5
    assert row["verdict"] == "worse"
    assert next(r for r in rows if r["metric"] == "cost.artifact_bytes")["value"] == "12345.0"


def test_json_holds_everything_that_is_shown(store, tmp_path):
    store([defense(yes(10))])
    store([defense(yes(30))], "destein")
    (table,) = json.loads(read(tmp_path).render("json"))["tables"]
    assert table["shared"]["gen.top_p"] == 0.9
    assert table["rows"][1]["cells"]["DS"]["difference"]["verdict"] == "better"
    assert table["rows"][1]["method"]["name"] == "destein"


@pytest.mark.parametrize("width", [80, 120, 160])
def test_nothing_is_cut_off_at_the_terminals_edge(store, tmp_path, width):
    measures = [Measure(f"metric_{i}", "lower", yes(15), dict.fromkeys(CLUSTERS, 1.0), unit="share") for i in range(7)]
    store(measures)
    store(measures, "a_method_with_quite_a_long_name", config={"knob": 1})
    text = read(tmp_path).render("table", width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert all(f"metric_{i} ↓ %" in text for i in range(7))


@pytest.mark.slow
def test_two_thousand_runs_are_tabulated(store, tmp_path):
    few = CLUSTERS[:4]
    for suite in range(20):
        for seed in range(2):
            store([toxicity(yes(1, few))], seed=seed, suite=f"s{suite}")
            for knob in range(49):
                store([toxicity(yes(knob % 5, few))], "m", seed, {"knob": knob}, suite=f"s{suite}")
    tables = read(tmp_path).tables
    assert sum(len(r.seeds) for t in tables for r in t.rows) == 2000


# --- what papers report -----------------------------------------------------------------------------------------------


def test_reported_numbers_stand_below_what_was_measured_and_are_never_tested(store, tmp_path, monkeypatch):
    rows = [
        {"metric": "DS", "value": 96.02, "unit": "percent", "suite": "safeedit"},
        {"metric": "EMT", "value": 0.5, "unit": "number", "suite": "safeedit"},
        {"metric": "DS", "value": 1.0, "unit": "percent", "suite": "another"},
    ]
    common = {"model": "tiny", "method": "dinm", "variant": "", "source": "a paper, Table 1"}
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "dinm.json").write_text(json.dumps([common | row for row in rows]))
    monkeypatch.setattr(paper, "FOLDER", tmp_path / "paper")
    store([defense(yes(10)), toxicity(yes(20))])
    store([defense(yes(30)), toxicity(yes(5))], "destein")

    plain, beside = read(tmp_path), read(tmp_path, paper=True)
    assert [row.label for row in only_table(plain).rows] == ["none", "destein"]
    table = only_table(beside)
    assert table.rows[:2] == only_table(plain).rows  # the correction for multiplicity does not count them
    added = table.rows[2]
    assert added.label == "dinm (reported: a paper, Table 1)"
    assert added.cells["DS"].value == pytest.approx(0.9602)
    assert added.cells["DS"].difference is None
    assert added.cells["EMT"].value == 0.5
    for format in ("table", "md", "csv", "json"):
        assert "a paper" in beside.render(format)


def test_every_shipped_row_names_what_we_know():
    """Models have a preset, methods and suites are registered or are baselines and suites named by a paper."""
    models = options("model")
    for row in paper.reported():
        assert row.model in models, row
        assert row.source
        assert row.metric


def test_a_digest_is_in_a_label_only_where_the_knobs_do_not_suffice(store, tmp_path):
    def fitted_on(folder, data):
        record = msgspec.json.decode((folder / "run.json").read_bytes())
        record["identity"]["method"]["fit_data"] = data
        (folder / "run.json").write_bytes(msgspec.json.encode(record))

    store([defense(yes(10))])
    fitted_on(store([defense(yes(20))], "dinm", config={"steps": 0}), "aaa")
    fitted_on(store([defense(yes(30))], "dinm", config={"steps": 10}), "bbb")
    assert [row.label for row in only_table(read(tmp_path)).rows] == ["none", "dinm steps=0", "dinm steps=10"]
