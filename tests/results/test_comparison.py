"""`detoxbench compare`: one difference explained, or refused with the keys that forbid it."""

from __future__ import annotations

import json

import msgspec
import pytest

from detoxbench.cli import main
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.results.comparison import compare
from detoxbench.results.stats import holm
from detoxbench.results.store import Run, find_run
from tests.support.stored import defense, toxicity, write, yes

ESCAPE = "\x1b[31mgo away\nnow\u202e " + "x" * 400


def toxic(score):
    return {"toxicity": score, "degenerate": 0.0}


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def pair(runs):
    """A base and a method that answer four requests."""
    answers = [("q1", "fine", 0.1), ("q2", ESCAPE, 0.9), ("q3", "hm", 0.5), ("q4", "", None)]
    base = write(
        runs,
        [defense(yes(10)), toxicity(yes(30))],
        answers=[(i, text, toxic(s) if s is not None else None) for i, text, s in answers],
        provenance={"packages": {"torch": "2.12"}, "command": ["detoxbench", "run"]},
    )
    other = write(
        runs,
        [defense(yes(30)), toxicity(yes(29))],
        "destein",
        config={"alpha": 0.4},
        answers=[
            ("q1", "fine", toxic(0.2)),
            ("q2", "thank you", toxic(0.05)),
            ("q3", "hm", toxic(0.5)),
            ("q4", "", None),
        ],
        provenance={"packages": {"torch": "2.13"}, "command": ["detoxbench", "demo"]},
        cost={"fit_seconds": 3.5},
    )
    return Run(base), Run(other)


def test_metrics_stand_side_by_side_with_their_paired_tests(pair):
    found = compare(*pair)
    assert [m.name for m in found.metrics] == ["DS", "EMT"]
    safe, toxicity_ = (m.difference for m in found.metrics)
    assert (safe.value, safe.verdict, safe.above, safe.below, safe.n) == (pytest.approx(0.5), "better", 20, 0, 40)
    assert toxicity_.verdict == "unsupported"
    assert [safe.p_holm, toxicity_.p_holm] == pytest.approx(holm([safe.p, toxicity_.p]))
    assert (found.metrics[0].a.value, found.metrics[0].b.value) == (0.25, 0.75)
    back = compare(*reversed(pair)).metrics[0].difference
    assert (back.value, back.verdict) == (pytest.approx(-0.5), "worse")


def test_what_differs_in_settings_is_told_apart_by_whether_it_can_change_a_number(pair):
    base, other = pair
    record = other.record()
    record.spec["model"]["device"] = "cuda"
    (other.folder / "run.json").write_bytes(msgspec.json.encode(record))
    found = compare(base, other)
    assert ("method.name", "none", "destein") in found.identity
    assert ("method.config.alpha", None, 0.4) in found.identity
    assert found.settings == [("model.device", None, "cuda")]
    assert found.environment == [("packages.torch", "2.12", "2.13")]
    assert ("fit_seconds", 1.5, 3.5) in found.cost
    assert any("environment differs" in note for note in found.notes)


def test_the_samples_that_disagree_most_come_first_and_missing_ones_are_counted(pair):
    samples = compare(*pair).samples
    assert (samples.score, samples.higher, samples.lower, samples.equal, samples.unscored) == ("toxicity", 1, 1, 1, 1)
    assert [(d.id, d.a.score, d.b.score) for d in samples.most] == [("q2", 0.9, 0.05), ("q1", 0.1, 0.2)]
    assert (samples.most[0].prompt, samples.most[0].b.text) == ("please say it", "thank you")
    assert [d.id for d in compare(*pair, shown=1).samples.most] == ["q2"]


def test_given_texts_are_compared_by_their_likelihood(runs):
    folders = []
    for method, nll in (("none", 3.0), ("destein", 6.0)):
        folder = write(runs, [toxicity(yes(4))], method, suite="truthfulqa", answers=[("q1", "given", None)])
        line = json.loads((folder / "samples.jsonl").read_text())
        (folder / "samples.jsonl").write_text(json.dumps(line | {"stop": "given", "nll": nll}) + "\n")
        folders.append(folder)
    samples = compare(*map(Run, folders)).samples
    assert samples.score == "negative log-likelihood a token"
    assert (samples.most[0].a.score, samples.most[0].b.score) == (1.0, 2.0)


def test_runs_of_two_settings_are_refused_and_every_differing_key_is_named(runs):
    one = write(runs, [defense(yes(10))], model="large")
    two = write(runs, [defense(yes(30))], "destein", model="small", gen={"top_p": 1.0})
    with pytest.raises(UsageError, match=r"model.fingerprint \(of large \| of small\), gen.top_p \(0.9 \| 1.0\)"):
        compare(Run(one), Run(two))
    with pytest.raises(UsageError, match="both are run"):
        compare(Run(one), Run(one))


def test_two_seeds_of_a_method_are_compared_but_their_noise_is_not_shared(runs):
    one, two = (write(runs, [defense(yes(10 + k))], seed=k, answers=[("q1", "x", toxic(0.1))]) for k in range(2))
    found = compare(Run(one), Run(two))
    assert any("the seeds differ" in note for note in found.notes)
    assert found.metrics[0].difference.seeds == []
    assert found.samples.most == []


def test_what_cannot_be_read_is_named(pair):
    base, other = pair
    lines = (other.folder / "scores.jsonl").read_text().splitlines(keepends=True)
    (other.folder / "scores.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(DetoxbenchError, match=r"do not belong together: run it again"):
        compare(base, other)
    (other.folder / "clusters.json").unlink()
    with pytest.raises(DetoxbenchError, match=r"clusters.json cannot be read"):
        compare(base, other)


def test_a_run_is_named_by_its_folder_or_the_beginning_of_its_id(pair, runs):
    base, other = pair
    assert find_run(str(base.folder)).folder == base.folder
    assert find_run(other.folder.name[:6], runs).folder == other.folder
    with pytest.raises(UsageError, match="give a run's folder, or the beginning of its id"):
        find_run("nothing", runs)
    with pytest.raises(UsageError, match="beginning of 2 runs"):
        find_run("", runs)


# --- the command ------------------------------------------------------------------------------------------------------


def printed(capsys, pair, *more):
    assert main(["compare", *(str(run.folder) for run in pair), *more]) == 0
    return capsys.readouterr().out


def test_texts_are_hidden_until_asked_for_and_then_harmless_to_the_terminal(capsys, pair):
    text = printed(capsys, pair)
    assert "--show-text" in text
    assert "q2" in text
    assert "go away" not in text
    shown = printed(capsys, pair, "--show-text")
    assert "�[31mgo away ⏎ now� xxx" in shown
    assert "\x1b" not in shown
    assert "x" * 300 not in shown
    assert "please say it" in shown


def test_the_command_tells_numbers_tests_settings_cost_and_samples(capsys, pair):
    lines = [line.rstrip() for line in printed(capsys, pair).splitlines()]
    (safe,) = [line for line in lines if line.startswith("DS %")]
    assert "25.0 [14.2, 40.2]" in safe
    assert "Δ +50.0 [+33.8, +66.2] ✓" in safe
    assert safe.endswith("20 / 0 of 40")
    assert any(line.split() == ["method.config.alpha", "–", "0.4"] for line in lines)
    assert any(line.split() == ["fit_seconds", "1.5", "3.5"] for line in lines)
    assert any(line.split() == ["q2", "sample", "0", "onlyQ", "0.9", "→", "0.05"] for line in lines)


def test_as_json_it_holds_texts_only_when_asked(capsys, pair):
    found = json.loads(printed(capsys, pair, "--json"))
    assert found["metrics"][0]["difference"]["verdict"] == "better"
    assert found["samples"]["most"][0]["a"] == {"score": 0.9, "text": None}
    found = json.loads(printed(capsys, pair, "--json", "--show-text", "--samples", "1"))
    assert [d["a"]["text"] for d in found["samples"]["most"]] == [ESCAPE]


def test_wrong_usage_is_said_in_one_line(capsys, pair, runs):
    other = write(runs, [defense(yes(10))], gen={"top_p": 0.5})
    assert main(["compare", str(pair[0].folder), str(other)]) == 2
    assert "differ in gen.top_p (0.9 | 0.5)" in capsys.readouterr().err
    assert main(["compare", "a", "b", "--runs-dir", str(runs / "nowhere")]) == 1
    assert main(["compare", "a", "b", "--samples", "-1"]) == 2


def test_the_leaderboard_command_passes_on_what_is_asked(capsys, pair, runs):
    asked = [
        "--columns",
        "DS,cost.fit_seconds",
        "--method",
        "destein",
        "--pairwise",
        "DS",
        "--ranks",
        "--format",
        "csv",
    ]
    assert main(["leaderboard", str(runs), *asked, "--against", "destein"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("1,tiny,safeedit,embedded,none,0,DS") and ",worse,destein," in line for line in lines)
    assert any(",rank.borda," in line for line in lines)
    assert main(["leaderboard", str(runs), "--by", "model", "--all-metrics"]) == 0
    assert "safeedit: EMT" in capsys.readouterr().out
    assert main(["leaderboard", str(runs), "--suite", "nope"]) == 2
