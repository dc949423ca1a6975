"""Rows from elsewhere: adapters, checkpoints, interventions and texts that others have made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench import cli
from detoxbench.data.examples import FitData
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.fitting.low_rank import low_rank
from detoxbench.interventions.channels import Dense, LowRank, Weight
from detoxbench.records import Request
from detoxbench.results.store import Run
from detoxbench.runner.composition import compose_run
from detoxbench.runner.plan import plan
from detoxbench.runner.stages import run
from tests.support import elsewhere
from tests.support.adapters import adapter_folder, logits, peft_logits
from tests.support.tiny import same, state, tiny, write


def fit(name: str, lm: db.LanguageModel, path: Any, **settings: Any) -> db.Intervention:
    return db.methods.create(name, path=str(path), **settings).fit(lm, FitData())


# --- adapters and interventions --------------------------------------------------------------------------------------


def test_an_adapter_acts_as_peft_loads_it(tmp_path: Path) -> None:
    lm = tiny()
    folder = adapter_folder(lm, tmp_path / "adapter", seed=1)
    with lm.applied(fit("adapter", lm, folder)):
        torch.testing.assert_close(logits(lm), peft_logits(tiny(), folder), atol=1e-5, rtol=1e-4)


def test_an_intervention_acts_as_it_did_where_it_was_fitted_and_on_no_other_model(tmp_path: Path) -> None:
    lm, fitted = tiny(), elsewhere.fitted("dinm")
    fitted.save(tmp_path / "run" / "intervention")
    for place in (tmp_path / "run", tmp_path / "run" / "intervention"):
        with lm.applied(fitted):
            expected = logits(lm)
        with lm.applied(fit("intervention", lm, place)):
            assert torch.equal(logits(lm), expected)
    with pytest.raises(DetoxbenchError, match="was fitted on base model"):
        fit("intervention", tiny(seed=1), tmp_path / "run")


def test_what_holds_no_intervention_is_told(tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match=r"no folder '.*/nowhere': name the folder of a run"):
        fit("intervention", tiny(), tmp_path / "nowhere")
    with pytest.raises(DetoxbenchError, match=r"it has no intervention\.json"):
        fit("intervention", tiny(), tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DetoxbenchError, match="none is kept for the base model"):
        fit("intervention", tiny(), tmp_path)


@pytest.mark.parametrize("name", ["adapter", "checkpoint", "intervention", "generations"])
def test_content_is_identity_and_its_place_is_not(name: str, tmp_path: Path) -> None:
    made = Path(elsewhere.settings(name, "llama", tmp_path)["path"])
    moved = tmp_path / "moved"
    moved = moved.with_suffix(made.suffix) if made.is_file() else moved
    (shutil.copy if made.is_file() else shutil.copytree)(made, moved)

    def identity(path: Path) -> dict[str, Any]:
        return db.methods.create(name, path=str(path)).identity()

    assert identity(made) == identity(moved)
    assert str(tmp_path) not in json.dumps(identity(made))
    assert db.methods.create(name, path=str(made)).places() == {"path": str(made)}
    file = moved if moved.is_file() else max(moved.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    assert identity(made) != identity(moved)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_checkpoint_of_dense_changes_is_restored(family: str, tmp_path: Path) -> None:
    """All weights changed; of GPT-2 the head, which is the embedding, too."""
    folder = elsewhere.edited_checkpoint(tmp_path / "other", family)
    lm, other = tiny(family), db.LanguageModel.load(folder)
    before = state(lm)
    row = fit("checkpoint", lm, folder)
    assert row.info["low_rank_tensors"] == 0
    assert row.info["furthest_off"] < 2e-7
    with lm.applied(row):
        for name, parameter in other.model.named_parameters():
            torch.testing.assert_close(lm.model.get_parameter(name), parameter, atol=1e-6, rtol=0)
        torch.testing.assert_close(logits(lm), logits(other), atol=1e-4, rtol=0)
    assert same(before, state(lm))


def test_a_checkpoint_in_lower_precision_is_restored_to_the_bit(tmp_path: Path) -> None:
    lm, folder = tiny(dtype=torch.bfloat16), elsewhere.edited_checkpoint(tmp_path / "other")
    other = db.LanguageModel.load(folder, dtype="bfloat16")
    with lm.applied(fit("checkpoint", lm, folder)):
        assert same(state(lm), state(other))


@pytest.mark.parametrize(("family", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn"])])
def test_a_merged_lora_is_found_again_with_its_rank(family: str, targets: list[str], tmp_path: Path) -> None:
    lm = tiny(family)
    adapter = fit("adapter", lm, adapter_folder(lm, tmp_path / "adapter", target_modules=targets, seed=2, r=2))
    with lm.applied(adapter):
        expected = logits(lm)
        write(lm, tmp_path / "merged")
    row = fit("checkpoint", lm, tmp_path / "merged")
    assert [w.parameter for w in row.weights] == sorted(
        (w.parameter for w in adapter.weights), key=list(dict(lm.model.named_parameters())).index
    )
    assert all(isinstance(w.delta, LowRank) and len(w.delta.a) == 2 for w in row.weights)
    assert (row.info["low_rank_tensors"], row.info["largest_rank"]) == (len(adapter.weights), 2)
    assert row.artifact_bytes() == adapter.artifact_bytes()
    with lm.applied(row):
        torch.testing.assert_close(logits(lm), expected, atol=1e-5, rtol=0)


def test_low_rank_is_the_smallest_that_restores_and_none_where_it_saves_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    exact = torch.randn(60, 3, generator=g) @ torch.randn(3, 50, generator=g)
    found = low_rank(exact, 1e-5)
    assert found is not None
    assert found.a.shape == (3, 50)
    assert float((found.b @ found.a - exact).abs().max()) <= 1e-5
    assert low_rank(torch.randn(60, 50, generator=g), 1e-5) is None
    assert low_rank(torch.randn(60, 20, generator=g) @ torch.randn(20, 50, generator=g), 1e-5) is None, (
        "half of 60 x 50"
    )
    assert low_rank(exact + 1e-3 * torch.randn(60, 50, generator=g), 1e-5) is None, "not to the last digits"


def test_an_unchanged_checkpoint_changes_nothing(tmp_path: Path) -> None:
    row = fit("checkpoint", tiny(), elsewhere.edited_checkpoint(tmp_path / "same", spread=0.0))
    assert (row.weights, row.info["changed_tensors"], row.info["furthest_off"]) == ((), 0, 0.0)


def saved_model(lm: db.LanguageModel, folder: Path) -> Path:
    return write(lm, folder)


def test_what_is_no_checkpoint_of_this_model_is_refused_by_name(tmp_path: Path) -> None:
    lm = tiny()
    with pytest.raises(DetoxbenchError, match="is a gpt2, 'tiny-llama' a llama"):
        fit("checkpoint", lm, saved_model(tiny("gpt2"), tmp_path / "gpt2"))
    with pytest.raises(DetoxbenchError, match="has intermediate_size=64, 'tiny-llama' 48"):
        fit("checkpoint", lm, saved_model(tiny(intermediate_size=64), tmp_path / "wide"))
    with pytest.raises(DetoxbenchError, match="has num_hidden_layers=2, 'tiny-llama' 3"):
        fit("checkpoint", lm, saved_model(tiny(num_hidden_layers=2), tmp_path / "short"))
    folder = saved_model(lm, tmp_path / "words")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        DetoxbenchError, match="has another vocabulary: 'a' is token 4 of it and token 3 of 'tiny-llama'"
    ):
        fit("checkpoint", lm, folder)


def test_a_checkpoint_is_a_difference_to_the_untouched_model(tmp_path: Path) -> None:
    lm, folder = tiny(), elsewhere.edited_checkpoint(tmp_path / "other")
    with lm.applied(elsewhere.fitted("self_reminder")), pytest.raises(DetoxbenchError, match=r"first in method\.parts"):
        fit("checkpoint", lm, folder)


def test_a_tied_parameter_is_changed_only_where_that_is_meant() -> None:
    lm = tiny("gpt2")
    delta = Dense(torch.ones_like(lm.model.transformer.wte.weight))
    for tied in (False, True):
        change = db.Intervention(
            method="x", base=lm.fingerprint, weights=(Weight("transformer.wte.weight", delta, tied=tied),)
        )
        if tied:
            with lm.applied(change):
                assert lm.model.lm_head.weight is lm.model.transformer.wte.weight
        else:
            with pytest.raises(DetoxbenchError, match="is tied to"), lm.applied(change):
                pass


# --- stored texts ----------------------------------------------------------------------------------------------------


def asked(*prompts: str) -> list[Request]:
    return [Request(id=str(i), prompt=prompt, record=str(i), kind="prompt") for i, prompt in enumerate(prompts)]


def written(folder: Path, *rows: Any) -> str:
    file = folder / "texts.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": {"text": "a b"}, "generations": [{"text": " c"}, {"text": " d"}]}],
        [{"prompt": "a b", "continuations": [" c", " d", None, " e"]}],
        [{"Prompt": " a b ", "Text": " c"}, {"prompt": "a b", "text": " d"}],
        [{"question": "a b", "response": " c"}, {"question": "a b", "response": " d"}],
    ],
)
def test_texts_are_read_in_the_published_forms(rows: list[Any], tmp_path: Path) -> None:
    method = db.methods.create("generations", path=written(tmp_path, *rows))
    assert method.texts(asked("a b"), 2) == {"0": [" c", " d"]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": " c"}, "line 1: expected the prompt as text, got nothing"),
        ({"prompt": "a b"}, r"line 1: missing field 'text' \(or 'generation'"),
        ({"prompt": "a b", "generations": [3]}, "line 1: expected text, got a number"),
        ({"prompt": "a b", "generations": "c"}, "line 1: expected a list of texts, got text"),
    ],
)
def test_a_row_without_its_parts_is_named(row: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match=said):
        db.methods.create("generations", path=written(tmp_path, row)).texts(asked("a b"), 1)


def test_an_empty_text_is_an_answer_and_too_few_are_none(tmp_path: Path) -> None:
    rows = [{"prompt": "a b", "text": ""}, {"prompt": "c d", "text": " x"}]
    method = db.methods.create("generations", path=written(tmp_path, *rows), missing=0.5)
    assert method.texts(asked("a b", "c d"), 1) == {"0": [""], "1": [" x"]}
    with pytest.raises(DetoxbenchError, match=r"has 2 texts for 0 of the 2 prompts .*, and 50% may be missing"):
        method.texts(asked("a b", "c d"), 2)
    assert method.texts(asked("a b", "e f"), 1) == {"0": [""]}


def test_texts_that_hold_their_prompts_are_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "a b", "text": "a b c"}, {"prompt": "d", "text": " d e"})
    with pytest.raises(UsageError, match=r"2 of 2 begin with their prompts.* set method\.holds=whole"):
        db.methods.create("generations", path=path).texts(asked("a b", "d"), 1)
    whole = db.methods.create("generations", path=path, holds="whole")
    assert whole.texts(asked("a b", "d"), 1) == {"0": [" c"], "1": [" e"]}
    with pytest.raises(UsageError, match="a text does not begin with its prompt 'e'"):
        db.methods.create("generations", path=written(tmp_path, {"prompt": "e", "text": "f"}), holds="whole").texts(
            asked("e"), 1
        )


RTP = ["suite=real_toxicity_prompts", "suite.prompts=20", "gen.n=2", "gen.max_new_tokens=8"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of the base, and rows of its own texts: all of them, and without those of one prompt of twenty."""
    folder = tmp_path_factory.mktemp("rows")
    runs = f"runs_dir={folder / 'runs'}"
    base = db.run([*RTP, runs])
    texts = base.folder / "samples.jsonl"
    fewer = folder / "fewer.jsonl"
    lines = texts.read_text().splitlines()
    fewer.write_text("\n".join(lines[2:]) + "\n")
    made = {"base": base, "folder": folder}
    for name, file in (("all", texts), ("fewer", fewer)):
        made[name] = db.run(["method=generations", f"method.path={file}", *RTP, runs])
    return made


def test_stored_texts_of_the_base_are_a_row_with_its_numbers(rows: dict[str, Any]) -> None:
    base, row = rows["base"].record, rows["all"].record
    assert {name: m.value for name, m in row.metrics.items() if name in base.metrics} == {
        name: m.value for name, m in base.metrics.items()
    }
    assert row.counts["equal_to_base"] == row.counts["samples"] == 40
    assert row.counts["missing_texts"] == 0
    assert {sample.stop for sample in Run(rows["all"].folder).samples()} == {"stored"}


def test_what_stored_texts_cost_is_not_measured_and_never_zero(rows: dict[str, Any]) -> None:
    record = rows["all"].record
    assert set(record.cost.values()) == {None}
    for count in ("truncated", "contested_tokens", "cut_prompts", "prompts_in_fit_data"):
        assert record.counts[count] is None, count


def test_missing_texts_are_counted_shown_and_in_no_metric(
    rows: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    record, base = rows["fewer"].record, rows["base"].record
    assert (record.counts["samples"], record.counts["missing_texts"], record.counts["missing_scores"]) == (38, 2, 0)
    assert record.metrics["toxic_share"].n == base.metrics["toxic_share"].n - 1
    samples, scores = (getattr(Run(rows["fewer"].folder), what)() for what in ("samples", "scores"))
    assert [(s.text, s.stop, s.tokens) for s in samples[:2]] == [("", "missing", 0)] * 2
    assert [scored.scores["main"] for scored in scores[:2]] == [None, None]
    table = db.leaderboard(rows["folder"] / "runs").render("md")
    assert (
        "no text was stored for these samples, which are left out: generations path=fewer.jsonl (2 of 40)"
        in table.replace("\\", "")
    )
    assert "taken from elsewhere: generations path=fewer.jsonl: path fewer.jsonl" in table.replace("\\", "")
    assert cli.main(["report", str(rows["folder"] / "runs"), "-o", str(rows["folder"] / "report.html")]) == 0
    assert cli.main(["compare", str(rows["fewer"].folder), str(rows["base"].folder)]) == 0


def test_a_row_of_stored_texts_packs_and_verifies(rows: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    pack = str(rows["folder"] / "pack.zip")
    assert cli.main(["submit", str(rows["fewer"].folder), "-o", pack, "--allow-dirty"]) == 0
    assert cli.main(["verify", pack]) == 0


def test_no_model_writes_a_text_of_such_a_row(rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from detoxbench.engine import generation

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a text was generated")

    monkeypatch.setattr(generation, "generate", refused)
    path = f"method.path={rows['base'].folder / 'samples.jsonl'}"
    folder = rows["folder"] / "again"
    done = db.run(["method=generations", path, *RTP, f"runs_dir={folder}", "with_base=false"])
    assert done.run_id == rows["all"].run_id


@pytest.mark.parametrize("suite", ["likelihood_utility", "mechanism"])
def test_suites_that_need_a_model_refuse_texts_by_name(suite: str, tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "a b", "text": "c"})
    spec = compose_run(["method=generations", f"method.path={path}", "method.missing=0.999", f"suite={suite}"])
    with pytest.raises(UsageError, match=f"method 'generations' has texts and no model: suite '{suite}'"):
        plan(spec)


def test_texts_of_other_prompts_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detoxbench.runner import loaded

    monkeypatch.setattr(loaded, "_loaded", None)
    path = written(tmp_path, {"prompt": "a b", "text": "c"})
    spec = compose_run(["method=generations", f"method.path={path}", *RTP, f"runs_dir={tmp_path}", "with_base=false"])
    with pytest.raises(DetoxbenchError, match="has 2 texts for 0 of the 20 prompts"):
        run(spec)
