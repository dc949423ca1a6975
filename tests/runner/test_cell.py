"""What is checked of a suite before anything is loaded, and of its measures before anything is stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench import DetoxbenchError, Hook, Measure, Request, Suite, UsageError, runtime, suites
from detoxbench.results.aggregation import Answers, aggregate
from detoxbench.runner.cell import RunCell, checkpoint_folder, prepare
from detoxbench.runner.composition import compose_run
from detoxbench.runner.plan import plan
from tests.support.tiny import tiny, write


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where the questions are."""

    data: str = runtime("embedded", "'embedded' or a file")


def asking(ids: Sequence[Any], measures: Any = ()) -> type[Suite[Any]]:
    """A suite of somebody else that asks requests of these ids."""

    class Questions(Suite[Any]):
        """Questions."""

        needs_scorer = False

        def requests(self) -> list[Request]:
            return [Request(id=id, prompt="why ?", record=str(n), kind="k") for n, id in enumerate(ids)]

        def measures(self, *_: Any) -> Any:
            return measures

    Questions.Config = Config
    return Questions


def prepared(monkeypatch: pytest.MonkeyPatch, cls: type[Suite[Any]], *overrides: str) -> Any:
    monkeypatch.setitem(suites.registry._loaded, "utility", cls)
    monkeypatch.setattr("detoxbench.runner.composition._resolved", without_other_settings)
    spec = compose_run(["suite=utility", *overrides])
    return prepare(spec, checkpoint_folder(spec, download=False))


def without_other_settings(cfg: Any) -> Any:
    """The composed configuration, of the suite no setting but these."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(cfg, resolve=True)
    values["suite"] = {key: value for key, value in values["suite"].items() if key in ("name", "data")}
    return values


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "suite 'utility' asks nothing"),
        (["1", "2", "1"], "asks two requests with id '1': give each an id of its own"),
        ([1], "asks a request with id 1: an id is a text"),
    ],
)
def test_requests_that_cannot_be_told_apart_are_refused(
    monkeypatch: pytest.MonkeyPatch, ids: list[Any], message: str
) -> None:
    with pytest.raises(DetoxbenchError, match=message):
        prepared(monkeypatch, asking(ids))


def test_a_suites_own_questions_are_not_called_the_embedded_world(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cell = prepared(monkeypatch, asking(["1"]))
    assert cell.data_names()["suite.data"] == "utility's own, 1 requests"
    (tmp_path / "mine.jsonl").write_text("{}")
    # No scorer is asked, so the embedded one need not know the data.
    elsewhere = prepared(monkeypatch, asking(["1"]), f"suite.data={tmp_path / 'mine.jsonl'}")
    assert elsewhere.data_names()["suite.data"] == "mine.jsonl, 1 requests"


def test_measures_that_cannot_stand_in_a_table_are_refused() -> None:
    with pytest.raises(UsageError, match="measure 'm' has better='up': choose higher or lower or neither"):
        Measure("m", "up", {}, {})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="measure 'm' has unit='words': choose share or number"):
        Measure("m", "higher", {}, {}, unit="words")  # type: ignore[arg-type]
    one = Measure("m", "higher", {"a": 1.0}, {"a": 1.0})
    for measures, message in (([], "measures nothing"), (None, "gave None"), ([one, one], "gives two measures 'm'")):
        with pytest.raises(DetoxbenchError, match=message):
            aggregate(asking(["1"], measures)(), "toxicity", Answers([], []), None)


def test_a_hook_is_before_or_behind_its_module() -> None:
    with pytest.raises(UsageError, match=r"the hook on 'model.norm' has when='after': choose pre or post"):
        Hook("model.norm", "after", "m.op")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="positions='new': choose all, generated, predicting"):
        Hook("model.norm", "post", "m.op", positions="new")  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    lm, folder = tiny(dtype=torch.bfloat16), tmp_path / "model"
    return write(lm, folder)


def with_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("dtype", "torch_dtype")}
    file.write_text(json.dumps(config | changes))


def cell_of(folder: Path, *more: str) -> RunCell:
    spec = compose_run(["model=hf", f"model.path={folder}", "suite=safeedit", "suite.records=2", *more])
    return prepare(spec, checkpoint_folder(spec, download=False))


def test_auto_is_the_type_of_the_checkpoint_and_its_run(saved: Path) -> None:
    """By config.json in its newer and older form, within a part of it, or else by most of the numbers."""
    for said in ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}, {"text_config": {"dtype": "bfloat16"}}, {}):
        with_config(saved, **said)
        own = cell_of(saved, "model.dtype=auto")
        assert own.spec.model.dtype == own.identity["model"]["dtype"] == "bfloat16"
        assert own.low_rank == "side_path"
        assert own.keys == cell_of(saved, "model.dtype=bfloat16").keys
        assert own.keys != cell_of(saved, "model.dtype=float32").keys
    with_config(saved, dtype="float16")
    assert cell_of(saved, "model.dtype=auto").spec.model.dtype == "float16"
    assert compose_run(["model=llama-2-7b"]).model.dtype == "bfloat16"  # a preset says its type, on every machine
    with_config(saved, dtype="float8_e4m3fn")
    with pytest.raises(
        DetoxbenchError, match=r"is of type float8_e4m3fn, which auto does not load: choose dtype=float"
    ):
        cell_of(saved, "model.dtype=auto")


def test_what_auto_stands_for_is_planned_stored_and_loaded(saved: Path, tmp_path: Path) -> None:
    with_config(saved, dtype="bfloat16")
    settings = ["model=hf", f"model.path={saved}", "model.dtype=auto", f"runs_dir={tmp_path / 'runs'}"]
    settings += ["suite=safeedit", "suite.records=2", "gen.max_new_tokens=2"]
    planned = plan(compose_run(settings))
    assert planned.cells[0][2:] == ("cached", "loaded in bfloat16, the checkpoint's own type (model.dtype=auto)")
    record = db.run(settings).record
    assert record.run_id == planned.run_id
    assert record.spec["model"]["dtype"] == "bfloat16"
    assert plan(compose_run(settings)).finished
    assert str(db.LanguageModel.load(str(saved), dtype="auto").dtype) == "torch.bfloat16"
