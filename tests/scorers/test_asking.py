"""Scorers that give NaN, too few rows, or raise: their texts are missing and named, and nothing else is changed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detoxbench import metrics, scorers, suites
from detoxbench.config import build
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.records import by_cluster
from detoxbench.results import table_notes
from detoxbench.results.store import Run
from detoxbench.runner import stages
from detoxbench.runner.composition import compose_run
from detoxbench.runner.plan import plan
from detoxbench.scorers.asking import GIVE_UP, Asking
from detoxbench.scorers.base import HARM, MEANINGS, Scorer


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """Nothing to set."""


Rows = Callable[[Sequence[str]], Any]


class Scripted(Scorer[Any]):
    """Does what `rows` says and counts its calls."""

    Config = Nothing
    cached = True

    def __init__(self, rows: Rows = lambda texts: [{"toxicity": 0.25}] * len(texts), **_: Any) -> None:
        super().__init__(name="scripted")
        self.rows, self.calls = rows, 0

    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> Any:
        self.calls += 1
        return self.rows(texts)


def asked(rows: Rows, texts: Sequence[str]) -> tuple[Any, Asking]:
    asking = Asking(Scripted(rows))
    return asking.score(texts, [""] * len(texts)), asking


GOOD = {"toxicity": 0.25}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"toxicity": math.nan}, "'toxicity' is nan"),
        ({"toxicity": math.inf}, "'toxicity' is inf"),
        ({"toxicity": 0.2, "insult": math.nan}, "'insult' is nan"),
        ({"toxicity": "high"}, "'toxicity' is no number (str)"),
        ({"toxicity": None}, "'toxicity' is no number (NoneType)"),
        ({"toxicity": [0.2, 0.4]}, "'toxicity' is no number (list)"),
        ({"toxicity": torch.tensor([0.2, 0.4])}, "'toxicity' is no number (Tensor)"),
        ({"toxicity": 1.5}, "'toxicity' is no probability"),
        ({"toxicity": -0.1}, "'toxicity' is no probability"),
        ({"insult": 0.2}, "it gave no 'toxicity'"),
        (0.2, "it gave no 'toxicity'"),
    ],
)
def test_what_is_no_score_is_none_and_named(row: Any, reason: str) -> None:
    rows, asking = asked(lambda texts: [row if t == "b" else GOOD for t in texts], ["a", "b", "c"])
    assert rows == [GOOD, None, GOOD]
    assert asking.reasons == {reason: 1}
    assert asking.broken == 0


def test_numbers_of_libraries_are_numbers() -> None:
    given = [{"toxicity": x} for x in (np.float32(0.5), torch.tensor(0.5), True, 0, 1 + 1e-8)]
    rows, asking = asked(lambda texts: given, ["a"] * 5)
    assert [row["toxicity"] for row in rows] == [0.5, 0.5, 1.0, 0.0, 1.0]
    assert all(type(row["toxicity"]) is float for row in rows)
    assert not asking.reasons
    assert asked(lambda texts: [None], ["a"])[0] == [None]


@pytest.mark.parametrize(
    "wrong", [lambda t: [GOOD] * (len(t) - 1), lambda t: [GOOD] * 9, lambda t: None, lambda t: 1 / 0]
)
def test_a_scorer_that_breaks_on_one_text_keeps_the_others(wrong: Rows) -> None:
    texts = [f"{i}" for i in range(8)]
    rows, asking = asked(lambda t: wrong(t) if "5" in t else [GOOD] * len(t), texts)
    assert rows == [GOOD] * 5 + [None] + [GOOD] * 2
    assert asking.broken == asking.reasons.total() == 1


def test_a_scorer_that_is_gone_is_not_asked_a_thousand_times() -> None:
    rows, asking = asked(lambda texts: 1 / 0, ["x"] * 1000)
    assert rows == [None] * 1000
    assert asking.reasons == {"it raised ZeroDivisionError: division by zero": 1000}
    assert asking.scorer.calls < 10 * GIVE_UP  # type: ignore[attr-defined]
    with pytest.raises(DetoxbenchError, match=r"no score for any of 1000 texts.*ZeroDivisionError: .*\(1000\)"):
        asking.require_some(["x"] * 1000, rows)


def test_what_a_scorer_says_of_itself_ends_the_run() -> None:
    def refuse(texts: Sequence[str]) -> Any:
        raise DetoxbenchError("get the key")

    with pytest.raises(DetoxbenchError, match=r"^get the key$"):
        asked(refuse, ["a"])


def test_a_scorer_without_a_word_is_no_result_and_blank_texts_need_none(caplog: pytest.LogCaptureFixture) -> None:
    asking = Asking(Scripted())
    with pytest.raises(DetoxbenchError, match="says itself"):
        asking.require_some(["a", " "], [None, GOOD])
    asking.require_some(["a", " "], [None, GOOD], silent=True)
    asking.require_some(["", " "], [None, None])
    asking.require_some(["a", "b"], [None, GOOD])
    assert not caplog.records


# ----------------------------------------------------------------------------------------------------------------- runs

SETTINGS = ["suite=safeedit", "suite.records=2", "gen.max_new_tokens=4", "with_base=false", "model.device=cpu"]


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: Rows) -> stages.RunResult:
    class Here(Scripted):
        def __init__(self, config: Any = None, **given: Any) -> None:
            super().__init__(rows)

    monkeypatch.setitem(scorers.registry._loaded, "profanity_check", Here)
    return stages.run_overrides([*SETTINGS, "scorer=profanity_check", f"runs_dir={folder}"])


def test_a_run_goes_on_without_the_scores_and_asks_again_for_those_that_broke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad: list[str] = []

    def once(texts: Sequence[str]) -> Any:
        bad.extend(texts[-1:] if not bad else [])
        if bad[0] in texts:
            raise RuntimeError("out of luck")
        return [GOOD] * len(texts)

    with caplog.at_level(logging.WARNING, "detoxbench"):
        first = run(tmp_path, monkeypatch, once)
    missing = first.record.counts["missing_scores"]
    assert 0 < missing < first.record.counts["samples"]
    assert first.record.counts["failed_scores"] >= 1
    said = [r.getMessage() for r in caplog.records if "have no score" in r.getMessage()]
    assert len(said) == 1
    assert "it raised RuntimeError: out of luck" in said[0]
    for line in (first.folder / "scores.jsonl").read_text().splitlines():
        json.loads(line)
    again = run(tmp_path, monkeypatch, lambda texts: [GOOD] * len(texts))
    assert not again.cached
    assert (again.run_id, again.record.counts["missing_scores"]) == (first.run_id, 0)
    assert "failed_scores" not in again.record.counts
    assert all(s.scores["main"] == GOOD for s in Run(again.folder).scores())
    assert run(tmp_path, monkeypatch, lambda texts: 1 / 0).cached


def test_nan_is_missing_and_stays_so_without_being_asked_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def some(texts: Sequence[str]) -> Any:
        seen.extend(texts)
        return [{"toxicity": math.nan if t == seen[0] else 0.25} for t in texts]

    first = run(tmp_path, monkeypatch, some)
    assert first.record.counts["missing_scores"] >= 1
    assert first.record.metrics["DS"].missing + first.record.metrics["DG_avg4"].missing >= 1
    assert run(tmp_path, monkeypatch, some).cached


def test_a_scorer_that_scores_nothing_leaves_no_run_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for broken in (lambda texts: 1 / 0, lambda texts: [{"toxicity": math.nan}] * len(texts), lambda t: [None] * len(t)):
        with pytest.raises(DetoxbenchError, match="gave no score for any of"):
            run(tmp_path, monkeypatch, broken)
    assert not list(tmp_path.glob("*/run.json"))
    assert run(tmp_path, monkeypatch, lambda texts: [GOOD] * len(texts)).record.counts["missing_scores"] == 0


# -------------------------------------------------------------------------------------------------------------- metrics


def test_nan_is_never_harmless_in_a_metric() -> None:
    nan = math.nan
    assert metrics.is_toxic(nan) is metrics.is_toxic(math.inf) is metrics.unsafe_label("x", nan) is None
    assert metrics.max_toxicity([nan, 0.2, None]) == 0.2
    assert metrics.any_toxic([nan, None]) is None
    assert by_cluster([("a", nan), ("a", 1.0), ("b", None)]) == ({"a": 1.0}, {"a": 1.0}, 2)


# ------------------------------------------------------------------------------------------------- what a number means

MEANS = {
    "detoxify": "toxic", "embedded": "toxic", "embedded_trigram": "unlikely", "hf_classifier": "toxic",
    "judge": "unsafe", "perplexity": "unlikely", "perspective": "toxic", "profanity_check": "toxic",
    "refusal": "refuses", "safeedit_classifier": "unsafe", "similarity": "similar", "word_list": "toxic",
}  # fmt: skip
ANY = {"halueval", "likelihood_utility", "lm_eval", "mechanism", "safenlp", "truthfulqa", "utility"}
JUDGED = {
    "bias", "harmful_requests", "over_refusal", "paraphrase_detox", "real_toxicity_prompts", "safeedit",
    "safeedit_test_all", "toxic_instructions",
}  # fmt: skip


def test_every_scorer_says_what_its_number_means() -> None:
    assert {name: cls(name=name).means for name, cls in scorers.working()} == MEANS


@pytest.mark.parametrize("suite", sorted(ANY | JUDGED))
def test_every_suite_takes_the_scorers_that_mean_what_it_reads(suite: str) -> None:
    made = suites.get(suite)(name=suite)
    for name, means in MEANS.items():
        scorer = scorers.get(name)(name=name)
        if suite in ANY or means in HARM:
            made.check_scorers({"main": scorer})
        else:
            with pytest.raises(UsageError, match=rf"suite '{suite}' reads 1 as toxic or unsafe, and .* means {means}"):
                made.check_scorers({"main": scorer})


def test_no_suite_or_scorer_is_left_out() -> None:
    assert set(suites.names()) == ANY | JUDGED
    assert set(scorers.names()) == MEANS.keys()


@pytest.mark.parametrize(
    ("slot", "needs"), [("refusal", "refuses"), ("fluency", "unlikely"), ("similarity", "similar")]
)
def test_a_suites_own_scorers_are_checked_by_slot(slot: str, needs: str) -> None:
    suite = suites.get("over_refusal")(name="over_refusal")
    for name, means in MEANS.items():
        scorer = scorers.get(name)(name=name)
        if means == needs:
            suite.check_scorers({slot: scorer})
        else:
            with pytest.raises(UsageError, match=rf"\({slot}\) reads 1 as {needs}"):
                suite.check_scorers({slot: scorer})


@pytest.mark.parametrize("name", ["hf_classifier", "judge", "word_list"])
def test_a_meaning_that_can_be_set_is_part_of_the_identity(name: str) -> None:
    cls = scorers.get(name)
    turned = cls(build(cls.Config, {"means": "refuses"}, "scorer"), name=name)
    assert turned.means == "refuses"
    assert "means" in {f for f, m in cls.Config.__dataclass_fields__.items() if m.metadata["identity"]}
    with pytest.raises(UsageError, match="means refuses"):
        suites.get("safeedit")(name="safeedit").check_scorers({"main": turned})
    with pytest.raises(UsageError, match=r"'scorer\.means': it is one of toxic, unsafe, refuses"):
        compose_run(["scorer=judge", "scorer.means=good"])


def test_a_scorer_that_does_not_say_is_toxic_by_its_column_or_refused() -> None:
    class Silent(Scripted):
        primary = "safety"

    assert Scripted().means == "toxic"
    with pytest.raises(DetoxbenchError, match=rf"column 'safety' means: set `meaning` .* to one of {MEANINGS[0]}"):
        suites.get("safeedit")(name="safeedit").check_scorers({"main": Silent()})


def test_what_does_not_fit_is_refused_in_plan_and_before_a_weight_is_read(tmp_path: Path) -> None:
    overrides = [*SETTINGS, "scorer=refusal", f"runs_dir={tmp_path}"]
    for act in (lambda: plan(compose_run(overrides)), lambda: stages.run_overrides(overrides)):
        with pytest.raises(UsageError, match="suite 'safeedit' reads 1 as toxic or unsafe"):
            act()
    assert not list(tmp_path.glob("*/*"))


def test_a_table_with_refusals_says_what_turns_them() -> None:
    matcher, others = {"name": "refusal"}, [{"name": "embedded"}, {"name": "not installed here"}]
    for identity in (
        {"scorer": matcher, "suite": {}},
        {"scorer": others[0], "suite": {"scorers": {"refusal": matcher}}},
    ):
        (note,) = table_notes.of_scorers(identity)
        assert note.startswith("scorer refusal: refusals are found by phrases")
        assert "docs/suites.md" in note
    assert table_notes.of_scorers({"scorer": others[0], "suite": {"scorers": {"x": others[1]}}}) == []
