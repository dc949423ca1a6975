"""Settings that only act when a change is applied never make a method learn again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import detoxbench as db
from benchmarks.gpu import CHEAP
from detoxbench.authoring.conformance import EXAMPLES
from detoxbench.config import applied_fields
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.fitting.shelf import Learned, sharing
from tests.support.tiny import tiny

SWEPT: dict[str, dict[str, dict[str, Any]]] = {
    "caa": {
        "strength": {"strength": 2.0},
        "positions": {"positions": "all"},
        "export": {"positions": "all", "export": "bias"},
    },
    "destein": {
        "alpha": {"alpha": 0.1},
        "fusion": {"fusion": "additive"},
        "positions": {"positions": "generated"},
        "gate": {"gate": "cosine"},
        "eps": {"eps": 1e-3},
        "export": {"fusion": "additive", "export": "bias"},
    },
    "dexperts": {"alpha": {"alpha": 0.5}, "filter_p": {"filter_p": 0.5}},
    "eigenshift": {"alpha": {"alpha": 0.5}},
    "ext_sub": {
        "alpha": {"alpha": 0.5},
        "scaling": {"scaling": "expert"},
        "arithmetic": {"arithmetic": "adapter"},
        "ia3": {"ia3": "released"},
        "projection": {"projection": "matrix"},
        "zero_rows": {"zero_rows": "keep_expert"},
    },
    "gedi": {"omega": {"omega": 2.0}, "filter_p": {"filter_p": 0.5}, "target_p": {"target_p": 0.5}},
    "lm_steer": {"strength": {"strength": -1.0}},
    "refusal_direction": {"strength": {"strength": 0.5}, "export": {"export": "bias"}},
    "sasa": {
        "beta": {"beta": 5.0},
        "margin": {"margin": "plain"},
        "top_p": {"top_p": 0.5},
        "max_candidates": {"max_candidates": 3},
    },
    "safe_decoding": {"alpha": {"alpha": 1.0}, "first_m": {"first_m": 3}, "common_tokens": {"common_tokens": 4}},
}
"""Method -> knob that only acts when applied -> settings that differ from the cheap ones in it."""
TRIED = 2
"""Forward passes over a few tokens that try whether a bias is the same as the shift."""
SLOW = {"gedi", "safe_decoding", "dexperts", "ext_sub"}


class Memory:
    """A shelf that keeps things as a disk does."""

    def __init__(self) -> None:
        self.shelf: dict[str, Learned] = {}

    def kept(self, key: str, learn: Callable[[], Learned]) -> Learned:
        if key not in self.shelf:
            self.shelf[key] = learn()
        tensors, info = self.shelf[key]
        return Learned({name: tensors[name].clone() for name in sorted(tensors)}, json.loads(json.dumps(dict(info))))


def test_every_setting_that_only_acts_when_applied_is_tried() -> None:
    every = {name: applied_fields(db.methods.get(name).Config) for name in db.methods.names()}
    assert {n: sorted(k) for n, k in every.items() if k} == {n: sorted(knobs) for n, knobs in SWEPT.items()}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SWEPT])
def test_a_sweep_learns_once_and_gives_what_each_fit_alone_gives(name: str) -> None:
    lm, shelf, passes = tiny(), Memory(), list[Any]()

    def fitted(**changed: Any) -> db.Intervention:
        method = db.methods.create(name, **{**CHEAP.get(name, {}), **changed})
        return method.fit(lm, fit_data(fit_spec()(limit=EXAMPLES), method.needs)[0])

    with sharing(shelf):
        fitted()
        learned = set(shelf.shelf)
        handle = lm.architecture.decoder.register_forward_pre_hook(lambda *_: passes.append(1))
        swept = {knob: fitted(**settings) for knob, settings in SWEPT[name].items()}
        handle.remove()
    assert set(shelf.shelf) == learned != set()
    assert len(passes) <= (TRIED if name in ("caa", "refusal_direction") else 0)
    for knob, settings in SWEPT[name].items():
        alone = fitted(**settings)
        assert swept[knob].digest() == alone.digest(), knob
        assert swept[knob].info == json.loads(json.dumps(dict(alone.info))), knob


@pytest.mark.parametrize("changed", [{"pairs": 7}, {"head_weight": "none"}, {"seed": 1}, {"limit": 8}])
def test_what_the_learning_reads_makes_it_learn_anew(changed: dict[str, Any]) -> None:
    lm, shelf = tiny(), Memory()
    for settings in ({}, changed):
        limit, seed = settings.pop("limit", EXAMPLES), settings.pop("seed", 0)
        method = db.methods.create("destein", seed=seed, **{**CHEAP["destein"], **settings})
        with sharing(shelf):
            method.fit(lm, fit_data(fit_spec()(limit=limit), method.needs)[0])
    assert len(shelf.shelf) == 2
