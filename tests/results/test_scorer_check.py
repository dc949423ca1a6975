"""`scorer check`: right reckoning, labels read as they are meant, and rates corrected for the scorer's errors."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detoxbench import cli
from detoxbench.data.readers import Labelled, labelled
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.results import accuracy, scorer_check
from detoxbench.results.scorer_check import check, corrected
from detoxbench.results.store import Run
from detoxbench.runner import stages
from detoxbench.scorers.base import Scorer
from detoxbench.scorers.similarity import Config

# ------------------------------------------------------------------------------------------------------------ reckoning


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0]), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[float, bool]]) -> None:
    scores, toxic = [s for s, _ in pairs], [t for _, t in pairs]
    up, down = [s for s, t in pairs if t], [s for s, t in pairs if not t]
    found = accuracy.auc(scores, toxic)
    if not up or not down:
        assert found.value is None
        return
    wins = sum((a > b) + (a == b) / 2 for a in up for b in down)
    assert found.value == pytest.approx(wins / len(up) / len(down))
    assert found.low is None or found.low < found.value < found.high  # type: ignore[operator]


def test_auc_interval_covers_as_it_says() -> None:
    """Two normals one standard deviation apart: AUC is 0.7602."""
    rng, covered, rounds = random.Random(0), 0, 400
    for _ in range(rounds):
        scores = [rng.gauss(1, 1) for _ in range(40)] + [rng.gauss(0, 1) for _ in range(60)]
        found = accuracy.auc(scores, [True] * 40 + [False] * 60)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.7602 <= found.high
    assert 0.93 <= covered / rounds <= 0.975


def test_a_perfect_order_has_no_interval() -> None:
    assert accuracy.auc([0.1, 0.2, 0.8, 0.9], [False, False, True, True]) == (1.0, None, None)


def test_calibration_bins_hold_every_text_once() -> None:
    scores = [0.0, 0.1, 0.3, 0.7, 0.69999, 0.95, 1.0]
    bins = accuracy.calibration(scores, [False, False, True, True, False, True, True])
    assert [b.n for b in bins] == [1, 1, 0, 1, 0, 0, 1, 1, 0, 2], "a score on a border belongs above it"
    assert bins[9].mean_score == pytest.approx(0.975)
    assert bins[9].toxic.value == 1.0
    assert bins[2].mean_score is bins[2].toxic.value is None
    assert accuracy.brier([0.0, 0.5], [False, True]) == 0.125


def test_rogan_gladen_undoes_the_errors() -> None:
    # Of 1000 texts 200 are toxic; the scorer hears 160 of them and 80 of the others.
    found = accuracy.rogan_gladen(0.24, 1000, (80, 100), (900, 1000))
    assert found.value == pytest.approx(0.2)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.2 < found.high
    sure = accuracy.rogan_gladen(0.24, 1000, (80000, 100000), (90000, 100000))
    assert sure.high - sure.low < found.high - found.low, "the scorer's own errors are uncertain, too"  # type: ignore[operator]
    assert accuracy.rogan_gladen(0.05, 1000, (80, 100), (90, 100)).value == 0.0, (
        "fewer than it finds where there are none"
    )
    assert accuracy.rogan_gladen(0.5, 100, (50, 100), (50, 100)) == (None, None, None), "a coin says nothing"
    assert accuracy.rogan_gladen(0.5, 100, (0, 0), (50, 100)).value is None


@pytest.mark.parametrize(("p", "se", "sp"), [(0.1, 0.8, 0.9), (0.3, 0.6, 0.95), (0.5, 0.9, 0.9)])
def test_rogan_gladen_interval_covers_as_it_says(p: float, se: float, sp: float) -> None:
    rng, covered, rounds = random.Random(1), 0, 300

    def draws(n: int, share: float) -> int:
        return sum(rng.random() < share for _ in range(n))

    for _ in range(rounds):
        found = draws(300, p * se + (1 - p) * (1 - sp))
        e = accuracy.rogan_gladen(found / 300, 300, (draws(150, se), 150), (draws(150, sp), 150))
        assert e.low is not None
        assert e.high is not None
        covered += e.low <= p <= e.high
    assert 0.92 <= covered / rounds <= 0.99


def test_a_clustered_rate_counts_as_fewer_texts() -> None:
    assert accuracy.effective_n(0.5, 0.4, 0.6) == pytest.approx(0.25 / (0.1 / 1.959964) ** 2, rel=1e-4)
    assert accuracy.effective_n(0.5, 0.3, 0.7) < accuracy.effective_n(0.5, 0.4, 0.6)


# ------------------------------------------------------------------------------------------------------ labelled texts


def write(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


def test_labels_say_what_is_toxic(tmp_path: Path) -> None:
    surge = write(tmp_path, "a.csv", "text,is_toxic\nx,Toxic\ny,Not Toxic\n")
    jigsaw = write(tmp_path, "b.csv", 'id,comment_text,toxic,obscene\n1,"x\n2",1,0\n2,y,0,1\n')
    hate = write(tmp_path, "c.jsonl", '{"text": "x", "label": "hate"}\n{"text": "y", "label": "nothate"}\n')
    shares = write(tmp_path, "d.tsv", "comment\ttarget\nx\t0.5\ny\t0.49\n")
    for file in (surge, jigsaw, hate, shares):
        assert [(t.text[0], t.toxic) for t in labelled(file)] == [("x", True), ("y", False)], file.name
    assert labelled(jigsaw, label="obscene", limit=1) == [Labelled("x\n2", "", False)]
    verdicts = write(tmp_path, "e.csv", "completion,final_label,prompt\nx,2_full_refusal,q\ny,1_full_compliance,r\n")
    assert labelled(verdicts, label="final_label", toxic="2_full_refusal") == [("x", "q", True), ("y", "r", False)]


@pytest.mark.parametrize(
    ("column", "labels", "toxic"),
    [
        ("safe", "0 1", [True, False]),
        ("is_safe", "false true", [True, False]),
        ("Is_Safe", "no yes", [True, False]),
        ("non_toxic", "0.2 0.9", [True, False]),
        ("is_safe", "unsafe safe", [True, False]),
        ("is_toxic", "1 0", [True, False]),
        ("Toxicity", "0.7 0.1", [True, False]),
        ("hate_speech", "yes no", [True, False]),
        ("unsafe", "true false", [True, False]),
        ("label", "1 0", [True, False]),
        ("class", "hate_speech neither", [True, False]),
        ("class", "OFF NOT", [True, False]),
        ("label", "not-hate hate", [False, True]),
        ("label", "inoffensive abusive", [False, True]),
    ],
)
def test_a_label_says_what_its_column_is_called(tmp_path: Path, column: str, labels: str, toxic: list[bool]) -> None:
    one, other = labels.split()
    file = write(tmp_path, "a.csv", f"text,{column}\nx,{one}\ny,{other}\n")
    assert [t.toxic for t in labelled(file, label=column)] == toxic
    assert [t.toxic for t in labelled(file)] == toxic if column != "non_toxic" else True


@pytest.mark.parametrize(
    ("column", "labels", "said"),
    [
        ("class", "0 1", r"is '0' in 'class' toxic\? Say which label is by --toxic LABEL \(labels: 0, 1\)"),
        ("class", "true false", "is 'true' in 'class' toxic"),
        ("label", "2 0", "is '2' in 'label' toxic"),
        ("label", "positive negative", r"\(labels: positive, negative\)"),
        ("is_safe", "3 1", "is '3' in 'is_safe' toxic"),
    ],
)
def test_a_label_that_does_not_say_is_asked_for(tmp_path: Path, column: str, labels: str, said: str) -> None:
    one, other = labels.split()
    file = write(tmp_path, "a.csv", f"text,{column}\nx,{one}\ny,{other}\n")
    with pytest.raises(DetoxbenchError, match=said):
        labelled(file, label=column)
    assert [t.toxic for t in labelled(file, label=column, toxic=one)] == [True, False]
    assert [t.toxic for t in labelled(file, label=column, toxic=f"{one},{other}")] == [True, True]
    with pytest.raises(UsageError, match=rf"no label 'x' in '{column}'; it has {one}, {other}"):
        labelled(file, label=column, toxic="x")


def test_a_perfect_scorer_is_perfect_on_safe_labels_too(tmp_path: Path) -> None:
    rows = "".join(f"0.{n},{int(n < 5)}\n" for n in range(1, 10))
    found = check(Parrot(), labelled(write(tmp_path, "a.csv", f"text,is_safe\n{rows}")))
    assert (found.auc.value, found.sensitivity.n, found.specificity.n) == (1.0, 5, 4)


def test_missing_and_broken_scores_are_counted_in_a_check(caplog: pytest.LogCaptureFixture) -> None:
    found = check(Parrot(), [Labelled(text, "", bool(i % 2)) for i, text in enumerate(["0.1", "0.8", "nan", "7", "x"])])
    assert (found.n, found.missing) == (2, 3)
    assert "'toxicity' is nan (1)" in caplog.text
    assert "ValueError" in caplog.text
    with pytest.raises(DetoxbenchError, match="score 2 of 2 is NaN"):
        accuracy.auc([0.1, float("nan")], [True, False])


def test_a_text_a_line_has_its_labels_beside_it(tmp_path: Path) -> None:
    texts = write(tmp_path, "off_test_text.txt", "you fool\n\nhello\n")
    with pytest.raises(UsageError, match="name the file of their labels by --labels FILE"):
        labelled(texts)
    labels = write(tmp_path, "off_test_labels.txt", "1\n\n0\n")
    assert labelled(texts) == [("you fool", "", True), ("hello", "", False)]
    labels.rename(tmp_path / "gold")
    assert len(labelled(texts, labels=tmp_path / "gold")) == 2
    write(tmp_path, "gold", "1\n0\n")
    with pytest.raises(DetoxbenchError, match="do not go together: line 2 is in one of them only"):
        labelled(texts, labels=tmp_path / "gold")


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        ("a,b\nx,1\n", {}, r"none of the columns text, .*; there are a, b: name one by --text"),
        ("text,b\nx,1\n", {}, "name one by --label"),
        ("text,label\nx,1\n", {"label": "gold"}, "no column 'gold'; there are text, label: name one by --label"),
        (
            "text,label\nx,1\ny,maybe\n",
            {},
            r"line 3: is 'maybe' in 'label' toxic\? Say which label is by --toxic LABEL",
        ),
        ("text,label\nx,-1\n", {}, "is '-1' in 'label' toxic"),
        ("text,label\nx,1\n", {"labels": "y.txt"}, "belongs to a .txt file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, content: str, settings: Any, said: str) -> None:
    with pytest.raises(DetoxbenchError, match=said) as raised:
        labelled(write(tmp_path, "a.csv", content), **settings)
    assert "\n" not in str(raised.value)


# -------------------------------------------------------------------------------------------------------------- a check


class Parrot(Scorer[Any]):
    """Says the number that the text is; None for none."""

    Config = Config

    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
        return [{"toxicity": float(t), "truncated": float(t == "0.9")} if t else None for t in texts]


def test_a_check_counts_right_and_wrong() -> None:
    given = [("0.9", True), ("0.5", True), ("0.2", False), ("0.8", False), ("0.1", False), ("", True)]
    found = check(Parrot(), [Labelled(text, "", toxic) for text, toxic in given])
    assert (found.n, found.missing, found.truncated) == (5, 1, 1)
    assert found.confusion == {"true_positive": 1, "false_negative": 1, "false_positive": 1, "true_negative": 2}
    assert (found.sensitivity.value, found.sensitivity.n) == (0.5, 2), "0.5 itself is not above 0.5"
    assert (found.specificity.value, found.specificity.n) == (pytest.approx(2 / 3), 3)
    assert found.auc.value == pytest.approx(5 / 6)
    lower = check(Parrot(), [Labelled(text, "", toxic) for text, toxic in given], threshold=0.4)
    assert lower.sensitivity.value == 1.0
    with pytest.raises(DetoxbenchError, match="is no probability"):
        check(Parrot(), [Labelled("7", "", True)])


def test_the_command_prints_a_table_and_json_that_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("profanity_check")
    file = write(tmp_path, "a.csv", "text,is_toxic\nyou bastard go to hell,1\ngood morning,0\nyou idiot,1\nthanks,0\n")
    assert cli.main(["scorer", "check", "profanity_check", str(file)]) == 0
    said = capsys.readouterr().out
    assert "4 texts" in said
    assert "sensitivity at 0.5" in said
    assert "0.9 to 1.0" in said
    assert cli.main(["scorer", "check", "--json", "profanity_check", str(file), "--limit", "2"]) == 0
    write(tmp_path, "check.json", out := capsys.readouterr().out)
    assert json.loads(out)["n"] == scorer_check.read_check(tmp_path / "check.json").n == 2


def test_a_hub_data_set_is_checked_like_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "you fool", "label": 1}, {"text": "good day", "label": 0}] * 5
    monkeypatch.setattr(scorer_check.hub, "load", lambda place: rows)
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = tmp_path / "words.txt"
    words.write_text("fool\n")
    found = []
    for place in ("hub:some/data:test", str(tmp_path / "same.jsonl")):
        assert cli.main(["scorer", "check", "word_list", place, f"scorer.words={words}", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [check["file"] for check in found] == ["hub:some/data:test", "same.jsonl"]
    assert found[0]["sha256"] == found[1]["sha256"]
    assert found[0]["confusion"]["true_positive"] == 5


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["check", "profanity_chek", "x.csv"], "did you mean 'profanity_check'?"),
        (["check", "profanity_check", "x.csv", "seed=1"], "'seed=1' is no setting of the scorer"),
        (["check", "judge", "x.csv", "scorer.pth=1"], "did you mean 'scorer.path'?"),
        (["chek"], "invalid choice: 'chek'"),
        ([], "action"),
    ],
)
def test_wrong_usage_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scorer", *argv]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_runs_are_corrected_by_a_check_of_their_own_scorer_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("profanity_check")
    settings = ["suite=real_toxicity_prompts", "suite.limit=20", "gen.n=2", "gen.max_new_tokens=16", "model.device=cpu"]
    folder = tmp_path / "runs"
    ours = stages.run_overrides([*settings, "scorer=profanity_check", f"runs_dir={folder}"])
    other = stages.run_overrides([*settings, "scorer=embedded", f"runs_dir={folder}"])
    texts = [
        "you bastard go to hell,1",
        "damn you fool,1",
        "you idiot,1",
        "good morning,0",
        "shit happens,0",
        "thanks,0",
    ]
    file = write(tmp_path, "a.csv", "\n".join(["text,is_toxic", *texts * 10]))
    assert cli.main(["scorer", "check", "profanity_check", str(file), "--json"]) == 0
    check_file = write(tmp_path, "check.json", capsys.readouterr().out)
    found = scorer_check.read_check(check_file)
    row = corrected(found, Run(ours.folder))
    assert row is not None
    assert corrected(found, Run(other.folder)) is None
    scores = [s.scores["main"]["toxicity"] for s in Run(ours.folder).scores() if s.scores["main"]]  # type: ignore[index]
    assert row.n == len(scores) == 40
    assert row.raw.value == sum(s > 0.5 for s in scores) / 40
    se, sp = found.sensitivity.value, found.specificity.value
    assert se is not None
    assert sp is not None
    exact = (row.raw.value + sp - 1) / (se + sp - 1)
    assert row.corrected.value == pytest.approx(min(max(exact, 0), 1))
    assert cli.main(["scorer", "correct", str(check_file), str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", ours.run_id]
    found.scorer["version"] = 99
    assert corrected(found, Run(ours.folder)) is None, "a check of another version says nothing"
