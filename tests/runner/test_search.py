"""The search: what is tried, what is kept within bounds, and that it goes on where it stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from detoxbench.cli import main
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.results.store import MetricRecord, RunRecord
from detoxbench.runner import composition, stages
from detoxbench.runner.search import Bounds, Trial, best, search

SPACE = ["method=destein", "method.alpha=interval(0.05,0.5)"]
OBJECTIVE = Bounds("toxic", {"perplexity": 5.0}, {})


def metric(value: float | None, better: Any = "lower") -> MetricRecord:
    return MetricRecord(value=value, low=None, high=None, n=1, missing=0, better=better, unit="number", interval="none")


def fake_run(spec: Any) -> Any:
    """Toxicity falls with alpha, perplexity rises; some settings cannot be had."""
    alpha = spec.method.alpha
    if 0.2 < alpha < 0.22:
        raise DetoxbenchError("the probes have too few rows")
    record = mock.Mock(spec=RunRecord, run_id=f"{alpha:.4g}", suite="s")
    record.metrics = {
        "toxic": metric(1 - alpha), "perplexity": metric(4 + 4 * alpha), "kept": metric(alpha, "higher"),
        "length": metric(1.0, "neither"), "unknown": metric(None),
    }  # fmt: skip
    return mock.Mock(record=record)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="the extra 'optuna' is not installed")
    monkeypatch.setattr(stages, "run", fake_run)


def alphas(trials: list[Trial]) -> list[float]:
    return [float(trial.setting["method.alpha"]) for trial in trials]


@pytest.mark.slow
@pytest.mark.usefixtures("faked")
def test_the_search_comes_to_the_bound_and_keeps_it() -> None:
    trials = list(search(SPACE, OBJECTIVE, trials=22))
    found = best(trials)
    assert found is not None
    assert found.values["perplexity"] <= 5, "0.25 is as far as perplexity allows"
    assert 0.23 < alphas([found])[0] <= 0.25
    assert all(
        trial.kept == (alpha <= 0.25) for trial, alpha in zip(trials, alphas(trials), strict=True) if trial.run_id
    )
    assert found.overrides == ["method=destein", f"method.alpha={found.setting['method.alpha']}"]
    assert sum(trial.kept for trial in trials[10:]) >= 5, "it looks within the bounds; without them, it kept 2 of 12"


@pytest.mark.slow
@pytest.mark.usefixtures("faked")
def test_the_same_search_tries_the_same_so_that_what_is_finished_is_found_again() -> None:
    first, again = (alphas(list(search(SPACE, OBJECTIVE, trials=3, seed=3))) for _ in range(2))
    assert first == again
    assert alphas(list(search(SPACE, OBJECTIVE, trials=1, seed=4))) != first[:1]


@pytest.mark.slow
@pytest.mark.usefixtures("faked")
def test_a_trial_that_fails_is_told_and_the_search_goes_on() -> None:
    space = ["method=destein", "method.alpha=0.1,0.21"]
    trials = list(search(space, Bounds("kept", {}, {}), trials=6))
    assert {trial.error for trial in trials} == {"", "the probes have too few rows"}
    found = best(trials)
    assert found is not None
    assert found.setting == {"method.alpha": "0.1"}
    assert best(list(search(SPACE, Bounds("toxic", {"perplexity": 1.0}, {}), trials=2))) is None


@pytest.mark.slow
@pytest.mark.usefixtures("faked")
def test_higher_is_better_where_the_metric_says_so() -> None:
    found = best(list(search(["method=destein", "method.alpha=0.1,0.3,0.5"], Bounds("kept", {}, {}), trials=8)))
    assert found is not None
    assert found.setting == {"method.alpha": "0.5"}


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(
    ("space", "bounds", "said"),
    [
        (["method=destein"], OBJECTIVE, "nothing to tune"),
        (["method=none", "method.alpha=interval(0,1)"], OBJECTIVE, "unknown key 'method.alpha' of method 'none'"),
        (["method=destein", "method.alpha=interval(-1,1)"], OBJECTIVE, "'method.alpha' is out of range"),
        (["method=destein", "method.alpha=glob(*)"], OBJECTIVE, "write choice"),
        (SPACE, Bounds("toxi", {}, {}), "no metric 'toxi' (did you mean 'toxic'?)"),
        (SPACE, Bounds("length", {}, {}), "neither better when higher nor when lower"),
    ],
)
def test_what_cannot_be_tuned_is_refused(space: list[str], bounds: Bounds, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        list(search(space, bounds, trials=1))
    assert said in str(raised.value)


def test_presets_hold_spaces_that_compose() -> None:
    for name in composition.options("experiment/tune"):
        fixed, space = composition.swept([f"experiment=tune/{name}"])
        assert len(space) == 2
        assert composition.compose_run(fixed).method_name == name
    fixed, space = composition.swept(["experiment=tune/destein", "method.alpha=0.3"])
    assert set(space) == {"method.site"}, "what is given last counts"
    assert composition.compose_run(fixed).method.alpha == 0.3


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(DetoxbenchError, match=r"pip install 'detoxbench\[optuna\]'"):
        list(search(SPACE, OBJECTIVE, trials=1))


@pytest.mark.slow
def test_three_trials_on_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="the extra 'optuna' is not installed")
    command = [
        "tune",
        *SPACE,
        "suite=real_toxicity_prompts",
        "suite.limit=6",
        "gen.n=1",
        "gen.max_new_tokens=6",
        "with_base=false",
    ]
    command += [f"runs_dir={tmp_path}", "--objective", "toxic_share", "--at-most", "perplexity=1000", "--trials", "3"]
    assert main(command) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in shown] == ["[1/3]", "[2/3]", "[3/3]", "best "]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {trial["run_id"] for trial in found["trials"]} <= {path.name for path in tmp_path.iterdir()}
    assert found["best"]["setting"]["method.alpha"] in shown[-1]
    assert main([*command[:-2], "--at-most", "perplexity"]) == 2
    assert "write METRIC=NUMBER" in capsys.readouterr().err


@pytest.mark.usefixtures("faked")
def test_what_is_wrong_with_any_value_is_said_before_the_first_trial(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("fool\n")
    suite = ["suite=harmful_requests", "scorer=word_list", f"scorer.words={tmp_path / 'words.txt'}"]
    for wrong, message in (
        ([*SPACE, *suite, "suite.data=nowhere.jsonl"], "no such file: nowhere.jsonl"),
        ([*suite, "suite.data=choice(embedded,nowhere.jsonl)"], "no such file: nowhere.jsonl"),
        (["method=destein", "method.alpha=interval(0.1,2e6)"], "method.alpha"),
    ):
        with pytest.raises(DetoxbenchError, match=message):
            next(search(wrong, OBJECTIVE, trials=3))
