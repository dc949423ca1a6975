"""Tasks of lm-evaluation-harness through our engine: its own model's numbers, and one line for each error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import detoxbench as db
from detoxbench import cli
from detoxbench.config import GenSpec
from detoxbench.engine import likelihood
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.interventions.channels import Prompt
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.records import Measure, Sample
from detoxbench.results import stats
from detoxbench.suites import lm_eval as suite_module
from detoxbench.suites.lm_eval import Config, LMEval
from tests.suites.test_suites import lines, named, value
from tests.support.tiny import tiny

harness = pytest.importorskip("lm_eval", reason="the extra lm_eval is not installed")

TASKS = ("colours", "rest", "text", "last")
WORDS = ["red", "green", "blue as the sea", "old gold"]
PERPLEXITIES = ("word_perplexity", "byte_perplexity", "bits_per_byte")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four tasks, one of each kind, and a group, over documents of its own."""
    path = tmp_path_factory.mktemp("tasks")
    documents = [
        {"q": f"what is {'the' if n % 2 else 'a'} colour of {'abcdefghijkl'[n]}?", "words": WORDS, "gold": n % 4}
        for n in range(12)
    ]
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": lines(path / "documents.jsonl", documents)},
            "cache_dir": str(path / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "q: {{q}}\na: ",
        "metadata": {"version": 2.0},
    }
    target = "{{words[gold]}}"
    mean = {"aggregation": "mean", "higher_is_better": True}
    tasks: dict[str, dict[str, Any]] = {
        "colours": {
            "output_type": "multiple_choice",
            "doc_to_choice": "words",
            "doc_to_target": "gold",
            "num_fewshot": 2,
            "metric_list": [
                {"metric": "acc", **mean},
                {"metric": "acc_norm", **mean},
                {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
            ],
        },
        "rest": {
            "output_type": "generate_until",
            "doc_to_target": target,
            "generation_kwargs": {"until": ["p", "'''"]},
            "metric_list": [{"metric": "exact_match", **mean}],
            "filter_list": [
                {"name": "as_is", "filter": [{"function": "take_first"}]},
                {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]},
            ],
        },
        "text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{q}}",
            "metric_list": [
                {
                    "metric": name,
                    "aggregation": "bits_per_byte" if "bits" in name else "weighted_perplexity",
                    "higher_is_better": False,
                }
                for name in PERPLEXITIES
            ],
        },
        "last": {
            "output_type": "loglikelihood",
            "doc_to_target": target,
            "metric_list": [
                {"metric": "acc", **mean},
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            ],
        },
    }
    fewer = {"data_files": {"test": lines(path / "fewer.jsonl", documents[:5])}, "cache_dir": str(path / "cache")}
    tasks["last"]["dataset_kwargs"] = fewer
    for name, task in tasks.items():
        (path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **task}))
    by_task = {"metric": "acc", "aggregation": "mean", "weight_by_size": False}
    group = {"group": "both", "task": ["colours", "last"], "aggregate_metric_list": [by_task]}
    (path / "both.yaml").write_text(yaml.safe_dump(group))
    return path


@pytest.fixture(autouse=True)
def own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the index of the harness's own 14,000 tasks takes seconds."""
    from lm_eval.tasks import TaskManager

    def few(include_path: Any = None, include_defaults: bool = True) -> Any:
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", few)


def suite_of(folder: Path, *tasks: str, **more: Any) -> LMEval:
    return LMEval(Config(tasks=tasks or TASKS, include=str(folder), **more))


def answered(lm: LanguageModel, suite: LMEval) -> list[Sample]:
    requests = suite.requests()
    given = [r for r in requests if r.text is not None]
    read = [g.sample for batch in likelihood.loglikelihoods(lm, given, {r.id for r in given}) for g in batch]
    return read + lm.generate([r for r in requests if r.text is None], GenSpec(max_new_tokens=12))


def measured(lm: LanguageModel, suite: LMEval) -> dict[str, Measure]:
    return named(suite.measures(answered(lm, suite), [], ""))


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    """What the harness's own model of transformers makes of the tasks."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = tiny()

    def evaluated(tasks: list[str], **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = harness.simple_evaluate(
            model=HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4, device="cpu", **more),
            tasks=tasks,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            gen_kwargs={"max_gen_toks": 12},
        )
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # asks pip and the system, for seconds
        # Of a text alone it reads the start token twice where the tokenizer adds one too.
        found, text = evaluated(["rest", "both"]), evaluated(["text"], add_bos_token=False)
    return {key: found[key] | text[key] for key in ("results", "samples")}


def test_texts_are_read_and_written_as_by_the_harness_itself(folder: Path, expected: dict[str, Any]) -> None:
    suite = suite_of(folder)
    samples = {s.id: s for s in answered(tiny(), suite)}
    for task, found in suite._requests_by_task:
        theirs = {d["doc_id"]: [r[0] for r in d["resps"]] for d in expected["samples"][task.task_name]}
        ours: dict[int, list[Any]] = {}
        for request, instance in found:
            ours.setdefault(instance.doc_id, []).append(suite_module._response(instance, samples[request.id]))
        assert len(ours) == len(theirs) == (5 if task.task_name == "last" else 12)
        for number, made in ours.items():
            if task.OUTPUT_TYPE == "generate_until":
                assert made == theirs[number]
                assert made[0] in {"a", "aaa"}, "cut at a stop string: the texts go on with p or quotes"
            else:
                np.testing.assert_allclose(np.array(made, float), np.array(theirs[number], float), rtol=1e-4)


def test_metrics_are_the_harness_s(folder: Path, expected: dict[str, Any]) -> None:
    found = measured(tiny(), suite_of(folder, "rest", "text", "both"))
    names = {
        "both_acc": ("both", "acc,none"),
        "rest_exact_match_as_is": ("rest", "exact_match,as_is"),
        "rest_exact_match_stripped": ("rest", "exact_match,stripped"),
        **{f"text_{name}": ("text", f"{name},none") for name in PERPLEXITIES},
        **{f"colours_{name}": ("colours", f"{name},none") for name in ("acc", "acc_norm", "mcc")},
        **{f"last_{name}": ("last", f"{name},none") for name in ("acc", "perplexity")},
    }
    assert set(found) == set(names)
    for name, (task, key) in names.items():
        assert value(found[name]) == pytest.approx(expected["results"][task][key], rel=1e-4), name
    assert {m.name for m in found.values() if not m.headline} == {n for n in names if n.startswith(("colours", "last"))}
    assert (found["colours_acc"].better, found["text_word_perplexity"].better) == ("higher", "lower")
    assert (found["colours_acc"].unit, found["text_word_perplexity"].unit) == ("share", "number")
    assert found["colours_acc"].binary
    assert len(found["both_acc"].count) == 12 + 5, "a document is a cluster"


def test_interventions_reach_the_tasks(folder: Path) -> None:
    lm, suite = tiny(), suite_of(folder, "text", "last")
    before = measured(lm, suite)
    with lm.applied(Intervention(method="m", base=lm.fingerprint, prompts=(Prompt(prefix="be kind. "),))):
        after = measured(lm, suite)
    assert value(before["last_perplexity"]) != value(after["last_perplexity"])


def test_the_jackknife_gives_the_aggregate_and_its_spread() -> None:
    """Of a ratio the variance is that of the delta method; of a mean it is the plain one."""
    rng = np.random.default_rng(0)
    nll, words = rng.gamma(4, 2, 150), rng.integers(3, 9, 150)
    pairs = [(str(i), (-x, int(n))) for i, (x, n) in enumerate(zip(nll, words, strict=True))]

    def ratio(values: Any) -> float:
        return -sum(x for x, _ in values) / sum(n for _, n in values)

    total, count = suite_module._jackknife(pairs, ratio)
    whole = nll.sum() / words.sum()
    assert stats.estimate(total, count) == pytest.approx(whole)
    delta = math.sqrt(sum((nll - whole * words) ** 2) / 150 / 149) / words.mean()
    assert np.std(list(total.values()), ddof=1) / math.sqrt(150) == pytest.approx(delta, rel=0.02)
    many = [(str(i), float(x)) for i, x in enumerate(rng.normal(size=1001))]
    total, count = suite_module._jackknife(many, np.mean)
    assert len(count) == suite_module.PARTS
    assert stats.estimate(total, count) == pytest.approx(np.mean([x for _, x in many]))
    assert suite_module._jackknife([("a", 3.0)], np.mean) == ({"a": 3.0}, {"a": 1.0})
    assert suite_module._jackknife([("a", 3.0), ("b", 800.0)], lambda v: math.exp(sum(v))) == ({}, {}), "no number"
    assert suite_module._jackknife([("a", 3.0), ("b", math.nan)], np.mean) == ({}, {})


def test_examples_limit_and_blanks(folder: Path) -> None:
    first = suite_of(folder, "colours", limit=3).requests()
    assert len(first) == 12
    assert {(r.record, r.kind) for r in first[:4]} == {("colours/0", "colours")}
    assert first[0].prompt.count("q: ") == 3, "two examples, then the question"
    assert first[0].prompt.endswith("\na:")
    assert [r.text for r in first[:4]] == [f"  {w}" for w in WORDS], "the prompt's last blank, and the delimiter's"
    bare = suite_of(folder, "colours", num_fewshot=0).requests()
    assert bare[0].prompt.count("q: ") == 1
    assert first == suite_of(folder, "colours").requests()[:12]


def test_a_chat_is_one_user_message(folder: Path, tmp_path: Path) -> None:
    asked = suite_of(folder, "colours", chat=True).requests()[0]
    assert (asked.chat, asked.text) == (True, "red")
    assert asked.prompt.count("q: ") == 3
    assert not any(r.chat for r in suite_of(folder, "text", chat=True).requests())
    task = yaml.safe_load((folder / "rest.yaml").read_text())
    (tmp_path / "rest.yaml").write_text(yaml.safe_dump({**task, "gen_prefix": "It is"}))
    with pytest.raises(UsageError, match=r"task 'rest' begins the answer itself .*set suite.chat=false"):
        suite_of(tmp_path, "rest", chat=True).requests()


def test_another_answer_filter_or_version_is_another_request(folder: Path, tmp_path: Path) -> None:
    task = yaml.safe_load((folder / "last.yaml").read_text())

    def ids(**changes: Any) -> list[str]:
        (tmp_path / "last.yaml").write_text(yaml.safe_dump({**task, **changes}))
        return [r.id for r in suite_of(tmp_path, "last", limit=1).requests()]

    same = ids()
    assert same == [r.id for r in suite_of(folder, "last", limit=1).requests()]
    assert ids(metadata={"version": 3.0}) != same
    assert ids(doc_to_target="{{words[0]}} ") != same
    assert ids(metric_list=task["metric_list"][:1]) != same
    moved = lines(tmp_path / "moved.jsonl", [json.loads(x) for x in (folder / "fewer.jsonl").open()])
    assert ids(dataset_kwargs={"data_files": {"test": moved}, "cache_dir": str(tmp_path)}) == same


def test_settings_of_a_task_that_are_not_followed_are_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = yaml.safe_load((folder / "rest.yaml").read_text())
    task["generation_kwargs"] |= {"do_sample": True, "temperature": 0.7, "max_gen_toks": 99}
    (tmp_path / "rest.yaml").write_text(yaml.safe_dump(task))
    suite_of(tmp_path, "rest").requests()
    (said,) = [r.getMessage() for r in caplog.records if r.name == "detoxbench"]
    assert "do_sample=True, max_gen_toks=99, temperature=0.7: what is used is gen.*" in said


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dataset_path": "nobody/nothing", "dataset_kwargs": {}}, r"cannot be loaded \(HF_HUB_OFFLINE is set\): .*"),
        ({"test_split": "exam"}, "cannot be loaded .*exam"),
        ({"unsafe_code": True}, "runs code that the model writes"),
    ],
)
def test_a_task_that_cannot_be_asked_is_one_line(
    folder: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    task = yaml.safe_load((folder / "last.yaml").read_text())
    (tmp_path / "last.yaml").write_text(yaml.safe_dump({**task, **changes}))
    with pytest.raises(DetoxbenchError, match=f"task 'last' .*{reason}") as caught:
        suite_of(tmp_path, "last").requests()
    assert "\n" not in str(caught.value)


def test_unknown_tasks_folders_and_a_missing_package_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"unknown task 'colors' of lm-eval \(did you mean 'colours'\?\)"):
        LMEval(Config(tasks=("colors", "both"), include=str(folder))).requests()
    with pytest.raises(UsageError, match=r"suite.include='/nowhere' is no folder"):
        LMEval(Config(tasks=("colours",), include="/nowhere")).requests()
    with pytest.raises(UsageError, match="names the task 'last' twice"):
        suite_of(folder, "both", "last").requests()
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(DetoxbenchError, match=r"needs lm-eval: pip install 'detoxbench\[lm_eval\]'"):
        LMEval().requests()


def test_samples_of_another_version_of_a_task_are_refused(folder: Path) -> None:
    with pytest.raises(DetoxbenchError, match="task 'last' is no longer what was asked: last/0/0#"):
        suite_of(folder, "last").measures([], [], "")


def test_the_embedded_model_knows_its_facts_and_no_scorer_is_asked(tmp_path: Path) -> None:
    result = db.run(["suite=lm_eval", "suite.limit=24", "model=fable", "method=none", f"runs_dir={tmp_path}"])
    metrics = result.record.metrics
    assert metrics.pop("broken_share").value == 0
    assert not metrics.pop("perplexity_under_base").headline
    assert set(metrics) == {"fable_facts_acc", "fable_facts_acc_norm", "fable_answers_exact_match"}
    assert all((m.value or 0) > 0.95 and m.n == 24 for m in metrics.values())
    assert result.record.counts["missing_scores"] is None
    again = db.run(["suite=lm_eval", "suite.limit=24", "model=fable", "method=none", f"runs_dir={tmp_path}"])
    assert again.cached


def test_describe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["describe", "suite", "lm_eval"]) == 0
    assert "lm-eval" in capsys.readouterr().out
