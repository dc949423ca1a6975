"""A model over several devices: two GPUs that are pretended, and the disk, from which weights come while they are used.
What is said, read and fitted is what it is on one device, or it is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench.authoring.conformance import Case
from detoxbench.config import ModelSpec, build
from detoxbench.errors import DetoxbenchError, NonFiniteError, UsageError
from detoxbench.lm import LanguageModel
from detoxbench.model import pretrained
from detoxbench.runner.composition import compose_run
from tests.support import elsewhere
from tests.support.pretended_device import pretended_device
from tests.support.tiny import same, state, tiny
from tests.test_devices import CHANNELS, DOWN, GREEDY, change, low_rank, nlls, saved, tensors, texts

FIRST, SECOND = "cuda:0", "cuda:1"
REFUSED = r"offloaded"


@contextmanager
def over_two(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[LanguageModel]:
    """The model in a folder, its layers from the second on and its head on another GPU than the rest."""

    monkeypatch.setattr(pretrained, "_over_devices", lambda _: {"device_map": by_layer(folder)})
    with pretended_device():
        yield LanguageModel.load(str(folder), device_map="auto", **settings)


def by_layer(folder: Path) -> dict[str, str]:
    """The parts that are placed whole, layers and modules beside them, each with its device."""
    lm = LanguageModel.load(str(folder), device="cpu")
    model, decoder = lm.model, lm.architecture.layers[0].rpartition(".")[0]
    around = {decoder.rpartition(".")[0], decoder, ""}
    parts = [n for n, _ in model.named_modules() if n not in around and n.rpartition(".")[0] in around]
    return {name: SECOND if later(name, model.config.tie_word_embeddings) else FIRST for name in parts}


def later(name: str, tied: bool) -> bool:
    number = name.rpartition(".")[2]
    head = name in ("lm_head", "embed_out")
    return (number.isdecimal() and int(number) > 0) or (head and not tied) or "norm" in name or "ln_f" in name


def loaded_on_disk(folder: Path, **settings: Any) -> LanguageModel:
    """The model in a folder, most of it on the disk."""
    return LanguageModel.load(str(folder), device_map="auto", max_memory={"cpu": "20KB"}, **settings)


@pytest.fixture(params=["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    saved(tmp_path / "model", tiny(request.param))
    return tmp_path / "model"


def test_layers_lie_where_they_were_put_and_answers_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LanguageModel.load(str(folder), device="cpu")
    here = texts(lm), texts(lm, GREEDY), nlls(lm)
    with over_two(folder, monkeypatch) as spread:
        assert list(map(str, spread.devices)) == [FIRST, SECOND]
        assert str(spread.device) == FIRST
        assert spread.fingerprint == lm.fingerprint
        assert (texts(spread), texts(spread, GREEDY), nlls(spread)) == here


def test_what_is_on_the_disk_answers_the_same(folder: Path) -> None:
    lm, spread = LanguageModel.load(str(folder), device="cpu"), loaded_on_disk(folder)
    absent = [name for name, parameter in spread.model.named_parameters() if parameter.is_meta]
    assert len(absent) > 10
    assert str(spread.device) == "cpu"
    assert (texts(spread), texts(spread, GREEDY), nlls(spread)) == (texts(lm), texts(lm, GREEDY), nlls(lm))
    down = lm.architecture.mlp_down(2)
    assert f"{down}.weight" in absent
    assert torch.equal(spread.weight(down), lm.weight(down))
    assert spread.model.get_parameter(f"{down}.weight").is_meta


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.filterwarnings("ignore:only .* survives")
def test_a_channel_acts_over_two_devices_as_on_one(
    channel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny()
    saved(tmp_path, lm)
    lm = LanguageModel.load(str(tmp_path), device="cpu")
    intervention = change(lm, **CHANNELS[channel](lm))
    with lm.applied(intervention):
        here = texts(lm), nlls(lm)
    with over_two(tmp_path, monkeypatch) as spread:
        before = state(spread)
        with spread.applied(intervention):
            assert (texts(spread), nlls(spread)) == here
        assert same(state(spread), before)


def test_side_paths_and_hooks_act_beside_what_is_on_the_disk(tmp_path: Path) -> None:
    saved(tmp_path, tiny())
    lm, spread = LanguageModel.load(str(tmp_path), device="cpu"), loaded_on_disk(tmp_path)
    for channel in ("low-rank weights", "a hook", "a prefix"):
        intervention = change(lm, **CHANNELS[channel](lm))
        lm.low_rank = spread.low_rank = "side_path"
        with lm.applied(intervention):
            here = texts(lm), nlls(lm)
        plain = texts(spread)
        with spread.applied(intervention):
            assert (texts(spread), nlls(spread)) == here
        assert texts(spread) == plain
    for channel in ("dense weights", "a new bias"):
        with pytest.raises(DetoxbenchError, match=REFUSED), spread.applied(change(lm, **CHANNELS[channel](lm))):
            pass
    assert texts(spread) == plain
    with spread.routed({"0": change(lm, weights=(low_rank(lm),)), "1": change(lm)}):
        assert len(nlls(spread)) == 2


def _methods(fast: set[str]) -> list[Any]:
    return [pytest.param(n, id=n, marks=[] if n in fast else pytest.mark.slow) for n in db.methods.names()]


@pytest.mark.parametrize("name", _methods({"dinm", "sft"}))
def test_a_method_fits_over_two_devices_as_on_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "model", tiny())
    lm = LanguageModel.load(str(tmp_path / "model"), device="cpu")
    case = fitting(name, tmp_path, lm)
    here = case.fit(lm, case.data)
    with lm.applied(here):
        said = texts(lm)
    with over_two(tmp_path / "model", monkeypatch) as spread:
        made = case.fit(spread, case.data)
        with spread.applied(made):
            assert texts(spread) == said
    mine, theirs = tensors(made), tensors(here)
    assert mine.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(mine[key], tensor, rtol=1e-3, atol=1e-4, msg=f"{key} differs")


def fitting(name: str, folder: Path, lm: LanguageModel) -> Case:
    """A case of the conformance suite whose saved interventions are of this model."""
    case = Case(db.methods.create(name, **elsewhere.settings(name, "llama", folder)), "llama")
    try:
        case.fit(lm, case.data)
    except DetoxbenchError as error:
        pytest.skip(str(error))
    return case


@pytest.mark.parametrize("name", _methods({"dinm", "sft"}))
def test_a_method_fits_beside_the_disk_or_says_what_it_cannot_do(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "model", tiny())
    lm, spread = LanguageModel.load(str(tmp_path / "model"), device="cpu"), loaded_on_disk(tmp_path / "model")
    case = fitting(name, tmp_path, lm)
    plain = texts(spread)
    try:
        made = case.fit(spread, case.data)
        spread.low_rank = "side_path"
        with spread.applied(made):
            texts(spread)
    except DetoxbenchError as error:
        said = str(error)
        assert re.search(REFUSED, said), said
    else:
        here = case.fit(lm, case.data)
        assert {k: t.shape for k, t in tensors(made).items()} == {k: t.shape for k, t in tensors(here).items()}
        for key, tensor in tensors(here).items():
            torch.testing.assert_close(tensors(made)[key], tensor, rtol=1e-3, atol=1e-4, msg=f"{key} differs")
    assert texts(spread) == plain


def test_a_broken_weight_on_the_disk_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    lm = tiny()
    lm.model.get_parameter(DOWN).data[3, 4] = torch.nan
    saved(tmp_path, lm)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.down_proj\.weight' holds NaN"):
        loaded_on_disk(tmp_path)


def test_where_a_model_lies_is_no_part_of_a_run_and_is_checked(tmp_path: Path) -> None:
    saved(tmp_path / "model", tiny())
    overrides = ["model=hf", f"model.path={tmp_path / 'model'}", "suite=safeedit", "suite.records=2"]
    overrides += ["gen.max_new_tokens=2", f"runs_dir={tmp_path / 'runs'}"]
    plain = db.run(overrides)
    spread = ["model.device_map=auto", "model.max_memory={cpu: 20KB}"]
    assert db.run([*overrides, *spread]).cached
    elsewhere_ = db.run([*overrides, *spread, f"runs_dir={tmp_path / 'other'}"])
    assert elsewhere_.run_id == plain.run_id
    assert (elsewhere_.folder / "samples.jsonl").read_bytes() == (plain.folder / "samples.jsonl").read_bytes()
    assert compose_run(["model.device_map=auto", "model.max_memory={0: 1GiB}"]).model.max_memory == {0: "1GiB"}
    with pytest.raises(UsageError, match="device_map=auto chooses among all devices: leave device=auto"):
        build(ModelSpec, {"device_map": "auto", "device": "cuda:1"}, "model")
    with pytest.raises(UsageError, match="max_memory is of device_map=auto"):
        build(ModelSpec, {"max_memory": {"cpu": "1GiB"}}, "model")
