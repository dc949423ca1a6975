"""Controls: what a run changes, as much of it, in a random direction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import detoxbench as db
from detoxbench.data.examples import FitData
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels.weights import full
from tests.support import elsewhere
from tests.support.adapters import logits
from tests.support.tiny import tiny


def control(name: str, path: str, seed: int = 0) -> db.Intervention:
    return db.methods.create(name, seed=seed, path=path).fit(tiny(), FitData())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["ext_sub", "dinm"])
def test_every_delta_keeps_its_norm_and_place_and_loses_its_direction(source: str, tmp_path: Path) -> None:
    named = elsewhere.fitted(source)
    path = elsewhere.saved(tmp_path / "run", source)
    drawn = control("random_delta", path)
    assert [w.parameter for w in drawn.weights] == [w.parameter for w in named.weights]
    for a, b in zip(named.weights, drawn.weights, strict=True):
        assert type(a.delta) is type(b.delta)
        assert {k: t.shape for k, t in a.named_tensors().items()} == {k: t.shape for k, t in b.named_tensors().items()}
        one, two = (full(w.delta, False, "cpu") for w in (a, b))
        assert float(two.norm()) == pytest.approx(float(one.norm()), rel=1e-5)
        assert abs(cosine(one, two)) < 0.2
    assert drawn.prompts == named.prompts
    lm = tiny()
    plain = logits(lm)
    with lm.applied(drawn):
        assert not torch.equal(logits(lm), plain)


def test_every_hook_keeps_its_function_and_strength_and_loses_its_direction(tmp_path: Path) -> None:
    named, path = elsewhere.fitted("destein"), elsewhere.saved(tmp_path / "run", "destein")
    drawn = control("random_direction", path)
    for a, b in zip(named.hooks, drawn.hooks, strict=True):
        assert (a.module, a.when, a.op, dict(a.params), a.positions) == (
            b.module,
            b.when,
            b.op,
            dict(b.params),
            b.positions,
        )
        assert float(b.tensors["z"].norm()) == pytest.approx(float(a.tensors["z"].norm()), rel=1e-5)
        assert abs(cosine(a.tensors["z"], b.tensors["z"])) < 0.6  # of 32 numbers


@pytest.mark.parametrize(("name", "source"), [("random_direction", "destein"), ("random_delta", "dinm")])
def test_another_seed_draws_another_one(name: str, source: str, tmp_path: Path) -> None:
    path = elsewhere.saved(tmp_path / "run", source)
    assert control(name, path).digest() == control(name, path).digest() != control(name, path, seed=1).digest()


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("random_direction", "dinm", r"\(dinm\) has no hook with a direction.*random_delta"),
        ("random_delta", "destein", r"\(destein\) changes no weight.*random_direction"),
    ],
)
def test_what_has_nothing_to_draw_is_refused_with_the_other_control(
    name: str, source: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DetoxbenchError, match=said):
        control(name, elsewhere.saved(tmp_path / "run", source))
