"""The model in memory: one for all runs of a process, and the old one is gone before the next one comes."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

import detoxbench as db
from detoxbench.lm import LanguageModel
from detoxbench.runner import loaded
from detoxbench.runner.cell import prepare
from detoxbench.runner.composition import compose_run
from tests.support.pretended_device import pretended_device
from tests.support.tiny import tiny, write

SUITE = ["suite=safeedit", "suite.records=2", "gen.max_new_tokens=2"]


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models of earlier runs were in memory when one was loaded."""
    monkeypatch.setattr(loaded, "_held", {})
    load, models, counts = LanguageModel.load, list[weakref.ref[Any]](), list[int]()

    def watched(*args: Any, **settings: Any) -> LanguageModel:
        counts.append(sum(model() is not None for model in models))
        lm = load(*args, **settings)
        models.append(weakref.ref(lm.model))
        return lm

    monkeypatch.setattr(LanguageModel, "load", watched)
    return counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, folder = tiny(), tmp_path_factory.mktemp("saved") / "model"
    return write(made, folder)


@pytest.mark.filterwarnings("ignore:only .* survives")
def test_the_old_model_is_let_go_before_the_new_one_is_loaded(alive: list[int], folder: Path, tmp_path: Path) -> None:
    method = ["method=ft_l", "method.num_steps=1", "method.layer=1", "fit.edit_records=embedded"]
    settings = ["model=hf", f"model.path={folder}", f"runs_dir={tmp_path}", *SUITE]
    for dtype in ("float32", "bfloat16"):
        db.run([*settings, *method, f"model.dtype={dtype}"])
    assert alive == [0, 0]


def test_equal_runs_share_a_model(alive: list[int], folder: Path, tmp_path: Path) -> None:
    settings = ["model=hf", f"model.path={folder}", f"runs_dir={tmp_path}", *SUITE]
    db.run([*settings, "method=self_reminder", "seed=1"])
    db.run([*settings, "low_rank=side_path", "seed=2"])
    assert alive == [0]


def test_a_model_that_cannot_be_loaded_leaves_none(alive: list[int], folder: Path, tmp_path: Path) -> None:
    spec = ["model=hf", f"runs_dir={tmp_path}", *SUITE]
    db.run([*spec, f"model.path={folder}"])
    with pytest.raises(db.DetoxbenchError, match="is not available"):
        db.run([*spec, f"model.path={folder}", "model.device=cuda:7", "seed=3"])
    assert not loaded._held


def test_float32_on_a_device_is_advised_against_in_one_line(
    alive: list[int], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "detoxbench")
    said = []
    for dtype, device in (("float32", "cpu"), ("bfloat16", "cuda:1"), ("float32", "cuda:1")):
        overrides = ["model=hf", f"model.path={folder}", f"model.dtype={dtype}", f"model.device={device}", *SUITE]
        spec = compose_run(overrides)
        with pretended_device():
            loaded.language_model(prepare(spec, folder))
        said.append([r.getMessage() for r in caplog.records if "takes twice the memory" in r.getMessage()])
        caplog.clear()
    assert said[:2] == [[], []]
    assert len(said[2]) == 1
    assert said[2][0].startswith("model.dtype=float32 on cuda:1 takes twice")
