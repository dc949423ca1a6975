"""Weights in few bits: what acts beside them works, what would change them is refused by name, and the run says so."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench.authoring.conformance import Case
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.model import precision
from detoxbench.runner.cell import RunCell, checkpoint_folder, prepare
from detoxbench.runner.composition import compose_run
from detoxbench.runner.plan import plan
from tests.support import elsewhere
from tests.support.adapters import adapter_folder
from tests.support.quantised import quantised
from tests.support.tiny import tiny, write

REFUSED = r"is quantised or packed"


def texts(lm: LanguageModel) -> list[str]:
    return [s.text for s in lm.generate(["who", "the cat"], max_new_tokens=4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lm = tiny()
    return write(lm, tmp_path / "model")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bitsandbytes were there."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: n if n == "bitsandbytes" else find_spec(n, *a))


def cell(folder: Path, *more: str) -> RunCell:
    spec = compose_run(["model=hf", f"model.path={folder}", "suite=safeedit", "suite.records=2", *more])
    return prepare(spec, checkpoint_folder(spec, download=False))


def test_it_is_part_of_a_run_that_has_it_and_of_no_other(folder: Path, installed: None) -> None:
    plain, packed = cell(folder), cell(folder, "model.quantization=nf4")
    assert "quantization" not in plain.identity["model"]  # as before there was a choice: runs keep their ids
    assert packed.identity["model"]["quantization"] == "nf4"
    assert len({plain.keys.run, packed.keys.run, cell(folder, "model.quantization=int8").keys.run}) == 3
    assert (plain.low_rank, packed.low_rank) == ("merged", "side_path")  # nothing can be merged into packed weights


def test_without_bitsandbytes_it_is_refused_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    spec = compose_run(["model=hf", f"model.path={folder}", "suite=safeedit", "model.quantization=int8"])
    said = r"model\.quantization=int8 needs bitsandbytes: pip install 'detoxbench\[bitsandbytes\]', or set it to none"
    with pytest.raises(DetoxbenchError, match=said):
        plan(spec)
    with pytest.raises(DetoxbenchError, match=r"quantization=nf4 needs bitsandbytes"):
        LanguageModel.load(str(folder), quantization="nf4")


def test_weights_in_few_bits_are_not_read_and_count_as_coarse() -> None:
    lm = quantised()
    down = lm.architecture.mlp_down(1)
    with pytest.raises(DetoxbenchError, match=rf"'{down}\.weight' of .* {REFUSED} \(int8\), and cannot be read"):
        lm.weight(down)
    assert lm.weight(lm.architecture.attention_out(1)).dtype == torch.float32
    assert lm.low_rank == "side_path"
    assert LanguageModel(lm.model.float(), lm.tokenizer).low_rank == "side_path"
    assert precision.spacing(lm.model) == 2.0**-7  # near-ties are counted, and not decided alone


FAST = {"caa", "dinm", "ext_sub", "profs", "checkpoint"}


def _methods() -> list[Any]:
    return [pytest.param(n, id=n, marks=[] if n in FAST else pytest.mark.slow) for n in db.methods.names()]


@pytest.mark.parametrize("name", _methods())
def test_a_method_acts_beside_packed_weights_or_says_what_it_cannot_do(name: str, tmp_path: Path) -> None:
    lm = quantised()
    case = Case(db.methods.create(name, **elsewhere.settings(name, "llama", tmp_path)), "llama")
    plain, said = texts(lm), ""
    try:
        made = case.fit(lm, case.data)
        with lm.applied(made):
            texts(lm)
    except DetoxbenchError as error:
        said = str(error)
    # What is given for a model in float32 is of another one.
    assert not said or re.search(f"^'model[^\n]*{REFUSED}|was fitted on base model", said), said
    assert texts(lm) == plain


def test_an_adapter_fits_a_map_whose_weight_is_held_in_another_shape(tmp_path: Path) -> None:
    lm, plain = quantised("column"), tiny()
    adapter = adapter_folder(plain, tmp_path, target_modules=["down_proj"], spread=0.4)
    before = texts(lm)
    with lm.applied(Intervention.from_peft(adapter, lm)):
        assert texts(lm) != before
    assert texts(lm) == before


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_model_is_loaded_in_few_bits(quantization: Any, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    lm = LanguageModel.load(str(folder), quantization=quantization, dtype="bfloat16", device="cpu")
    whole = LanguageModel.load(str(folder), dtype="bfloat16", device="cpu")
    held, plain = (sum(p.numel() * p.element_size() for p in m.model.parameters()) for m in (lm, whole))
    assert held < 0.7 * plain
    ids = torch.arange(3, 20)[None]
    apart = (lm.model(ids).logits.float() - whole.model(ids).logits.float()).abs().max()
    assert 0 < float(apart) < 1  # of logits up to 2
    assert lm.fingerprint == whole.fingerprint
    overrides = ["model=hf", f"model.path={folder}", f"model.quantization={quantization}", "model.dtype=bfloat16"]
    overrides += ["suite=safeedit", "suite.records=2", "gen.max_new_tokens=2", f"runs_dir={tmp_path / 'runs'}"]
    result = db.run([*overrides, "method=self_reminder"])
    assert result.record.identity["model"]["quantization"] == quantization
