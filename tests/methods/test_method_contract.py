"""What every registered method must keep, whatever it does: one conformance suite over all of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detoxbench as db
from benchmarks.gpu import CHEAP
from detoxbench.config import digest, identity
from detoxbench.data.examples import FitData
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import ROLES, fit_spec
from detoxbench.errors import DetoxbenchError
from detoxbench.methods.base import Method
from tests.support.tiny import same, state, tiny

NAMES = db.methods.names()
FAMILIES = ("llama", "gpt2", "mistral")
DATA, _ = fit_data(fit_spec()(limit=12), frozenset(ROLES))
PROMPTS = ["the cat", "why are you", "please tell me", "at the park", "who"]


def made(name: str, seed: int = 0) -> Method[Any]:
    return db.methods.create(name, seed=seed, **CHEAP.get(name, {}))


def texts(lm: db.LanguageModel) -> list[str]:
    return [s.text for s in lm.generate(PROMPTS, max_new_tokens=12, do_sample=True, n=2)]


@pytest.fixture(scope="module", params=[(name, family) for name in NAMES for family in FAMILIES], ids="-".join)
def fitted(request: pytest.FixtureRequest) -> tuple[str, str, db.Intervention]:
    name, family = request.param
    return name, family, made(name).fit(tiny(family), DATA)


def test_it_changes_the_model_and_is_removed_exactly(fitted: tuple[str, str, db.Intervention]) -> None:
    name, family, intervention = fitted
    lm = tiny(family)
    before, plain = state(lm), texts(lm)
    with lm.applied(intervention):
        changed = texts(lm)
    assert (changed == plain) == (name == "none")
    assert same(before, state(lm))
    assert texts(lm) == plain


def test_it_survives_the_disk(fitted: tuple[str, str, db.Intervention], tmp_path: Path) -> None:
    _, family, intervention = fitted
    lm = tiny(family)
    intervention.save(tmp_path / "kept")
    loaded = db.Intervention.load(tmp_path / "kept")
    with lm.applied(intervention):
        expected = texts(lm)
    with lm.applied(loaded):
        assert texts(lm) == expected
    assert loaded.info == json.loads(json.dumps(dict(intervention.info)))
    assert loaded.artifact_bytes() == intervention.artifact_bytes()


def test_another_base_is_refused(fitted: tuple[str, str, db.Intervention]) -> None:
    _, family, intervention = fitted
    with pytest.raises(DetoxbenchError, match="fit it again on this model"), tiny(family, seed=9).applied(intervention):
        pass


@pytest.mark.parametrize("name", NAMES)
def test_fitting_leaves_everything_as_it_was_and_is_seeded(name: str) -> None:
    lm = tiny()
    before, structure = state(lm), [(n, type(m)) for n, m in lm.model.named_modules()]
    flags, attributes = [p.requires_grad for p in lm.model.parameters()], set(vars(lm.model))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = made(name).fit(lm, DATA)
    assert same(before, state(lm))
    assert structure == [(n, type(m)) for n, m in lm.model.named_modules()]
    assert flags == [p.requires_grad for p in lm.model.parameters()]
    assert attributes == set(vars(lm.model))
    assert all(p.grad is None for p in lm.model.parameters())
    assert not lm.model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    torch.rand(3), random.random()  # the global generators are not what seeds a fit
    again = made(name).fit(lm, DATA)
    with lm.applied(first):
        expected = texts(lm)
    with lm.applied(again):
        assert texts(lm) == expected


@pytest.mark.parametrize("name", [name for name in NAMES if made(name).needs])
def test_missing_data_is_named_with_the_remedy(name: str) -> None:
    role = sorted(r.value for r in made(name).needs)[0]
    with pytest.raises(DetoxbenchError, match=rf"'{name}' needs fit data in the role '{role}'.*fit\.{role}=FILE"):
        made(name).fit(tiny(), FitData())


@pytest.mark.parametrize("name", NAMES)
def test_its_configuration_is_its_identity(name: str) -> None:
    cls = db.methods.get(name)
    assert digest(identity(cls.Config())) == digest(identity(made(name).Config()))
    assert cls.__doc__
    assert cls.version >= 1
