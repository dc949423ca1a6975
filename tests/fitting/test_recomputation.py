"""Gradient checkpointing: every number is the same, and less is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench.authoring.conformance import Case
from detoxbench.config import identity
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.fitting.recomputation import recomputed
from tests.support import elsewhere
from tests.support.tiny import same, state, tiny

KNOB = "gradient_checkpointing"
TRAINED = [n for n in db.methods.names() if KNOB in db.methods.get(n).Config.__dataclass_fields__]
FAST = {"ext_sub", "dinm"}


def kept(name: str, wanted: bool, family: str, folder: Path, **more: Any) -> tuple[str, int]:
    """What a fit gives, and how many bytes its passes kept for a gradient outside of layers that are computed again."""
    method = db.methods.create(name, **{**elsewhere.settings(name, family, folder), **more, KNOB: wanted})
    lm, data, held = tiny(family), fit_data(fit_spec()(limit=12), method.needs)[0], list[int]()
    before = state(lm)

    def pack(x: torch.Tensor) -> torch.Tensor:
        held.append(x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        digest = Case(method, family).fit(lm, data).digest()
    assert same(state(lm), before)
    assert all("forward" not in vars(lm.architecture.module(path)) for path in lm.architecture.layers)
    return digest, sum(held)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(n, f, id=f"{n}-{f}", marks=[] if n in FAST and f == "llama" else pytest.mark.slow)
        for n in TRAINED
        for f in ("llama", "gpt2", "gemma2", "gpt_neox")
    ],
)
@pytest.mark.filterwarnings("ignore:before training|training has")
def test_a_fit_is_the_same_bit_for_bit_and_keeps_less(name: str, family: str, tmp_path: Path) -> None:
    settings = {"layer": 0} if name == "ft_l" else {"layers": (0,)} if name == "dinm" else {}
    whole, again = (kept(name, wanted, family, tmp_path, **settings) for wanted in (False, True))
    assert whole[0] == again[0]
    assert again[1] < whole[1]


def test_parameters_in_full_and_lower_precision_too(tmp_path: Path) -> None:
    settings = {"parameters": ("mlp.down_proj",)}
    whole, again = (kept("sft", wanted, "llama", tmp_path, **settings) for wanted in (False, True))
    assert whole[0] == again[0]
    assert again[1] < whole[1]


def test_it_is_no_part_of_a_run(tmp_path: Path) -> None:
    assert len(TRAINED) == 13
    for name in TRAINED:
        settings = elsewhere.settings(name, "llama", tmp_path)
        plain, other = (db.methods.create(name, **settings, **{KNOB: wanted}).config for wanted in (False, True))
        assert identity(plain) == identity(other)


def test_reading_without_a_gradient_is_as_ever() -> None:
    lm, calls = tiny(), list[int]()
    layer = lm.architecture.module(lm.architecture.layers[1])
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    ids = torch.arange(4, 12)[None]
    with recomputed(lm, True):
        with torch.no_grad():
            lm.model(ids)
        assert len(calls) == 1
        lm.model(ids).logits.sum().backward()
        assert len(calls) == 3
