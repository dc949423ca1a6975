"""What several fits learn alike is learned once, and is the same as if each had learned it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import detoxbench as db
from detoxbench.fitting import training

FEW = ["suite=utility", "suite.limit=2", "with_base=false", "fit.limit=8"]
FAST = ["epochs=1", "batch_size=8", "micro_batch_size=8", "warmup_ratio=0"]


def ran(folder: Path, method: str, *more: str) -> db.RunResult:
    fast = [f"method.{setting}" for setting in FAST]
    return db.run([f"method={method}", *fast, *more, *FEW, f"runs_dir={folder}"])


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The description of every LoRA that is trained."""
    done, train = list[str](), training.optimise_lora

    def watched(*given: Any, **how: Any) -> Any:
        done.append(how["description"])
        return train(*given, **how)

    monkeypatch.setattr(training, "optimise_lora", watched)
    return done


@pytest.mark.slow
def test_one_expert_and_one_anti_expert_serve_all_who_train_them_alike(tmp_path: Path, trainings: list[str]) -> None:
    runs = [ran(tmp_path / "shared", "ext_sub", f"method.alpha={alpha}") for alpha in (1.0, 0.5)]
    assert trainings == ["expert LoRA", "anti-expert LoRA"], "a sweep over alpha never trains again"
    ran(tmp_path / "shared", "dexperts")
    assert len(trainings) == 2
    ran(tmp_path / "shared", "sft", "method.rank=4")
    assert len(trainings) == 3
    # As if each had trained its own, and at the same stated cost.
    assert ran(tmp_path / "alone", "ext_sub", "method.alpha=0.5").record.fit == runs[1].record.fit
    kept = [json.loads(f.read_bytes()) for f in (tmp_path / "shared").glob(".stages/learned-*/learned.json")]
    first, second = (r.record.cost["fit_seconds"] for r in runs)
    assert min(first or 0, second or 0) >= sorted(k["seconds"] for k in kept)[0]
    assert runs[1].record.diagnostics["expert_losses"] == runs[0].record.diagnostics["expert_losses"]


def test_a_damaged_one_is_trained_again(tmp_path: Path, trainings: list[str]) -> None:
    first = ran(tmp_path, "sft")
    (file,) = tmp_path.glob(".stages/learned-*/tensors.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    second = ran(tmp_path, "dexperts", "method.sides=both")
    assert trainings.count("expert LoRA") == 1
    assert len(trainings) == 3
    assert second.record.diagnostics["expert_losses"] == first.record.diagnostics["losses"]


@pytest.mark.slow
def test_what_is_trained_on_a_changed_model_is_not_shared(tmp_path: Path, trainings: list[str]) -> None:
    ran(tmp_path, "sft")
    parts = [f"method.part.{name}.{setting}" for name in ("a", "b") for setting in FAST]
    db.run(["method=compose", "method.parts=[a:sft,b:sft]", *parts, *FEW, f"runs_dir={tmp_path}"])
    assert len(trainings) == 2, "the first part is the same as before, the second is trained on the model with it"


@pytest.mark.slow
def test_a_sweep_over_a_strength_fits_once_for_each_way_the_model_is_loaded(tmp_path: Path) -> None:
    def steered(*settings: str) -> db.RunResult:
        return db.run(["method=destein", "method.pairs=6", *settings, *FEW, f"runs_dir={tmp_path}"])

    runs = [steered(f"method.alpha={alpha}") for alpha in (0.1, 0.2)]
    (kept,) = (json.loads(f.read_bytes()) for f in tmp_path.glob(".stages/learned-*/learned.json"))
    assert runs[0].record.fit != runs[1].record.fit
    assert [run.record.diagnostics["direction_norm"] for run in runs] == [kept["info"]["direction_norm"]] * 2
    assert all((run.record.cost["fit_seconds"] or 0) >= kept["seconds"] for run in runs)
    steered("method.alpha=0.1", "model.chat_template=none")
    assert len([*tmp_path.glob(".stages/learned-*/learned.json")]) == 2
