"""ProFS against its formula in plain torch, with whole projection matrices as the released code has them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench.data.examples import FitData, Pair, Preference
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.profs import toxic_subspace
from tests.support.on_fable import fitted, toxicity
from tests.support.tiny import METHOD_FAMILIES, logits_of, tiny

THINGS = ("pear", "plum", "fish", "hat", "cup")
PREFERENCES = [Preference(f"about the {t}", f"a lovely {t} , stay", f"you rotten {t} , go away", False) for t in THINGS]
DATA = FitData(preferences=PREFERENCES)


def fit(lm: LanguageModel, data: FitData = DATA, *, seed: int = 0, **config: Any) -> Intervention:
    return db.methods.create("profs", seed=seed, **config).fit(lm, data)


def released(lm: LanguageModel, layer: int, rank: int, *, centre: bool = True) -> torch.Tensor:
    """The edited matrix [out, in] as detox.py makes it, by whole D x D projections."""

    def embeddings(texts: list[str]) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        module = lm.model.get_submodule(lm.architecture.layers[layer])
        handle = module.register_forward_hook(lambda *a: seen.append(a[2] if torch.is_tensor(a[2]) else a[2][0]))
        for text in texts:
            with torch.no_grad():
                lm.model(torch.tensor([lm.tokens(text)]))
        handle.remove()
        return torch.stack([states[0].mean(0) for states in seen]).double()

    preferred = embeddings([p.chosen for p in PREFERENCES])
    matrix = (preferred - embeddings([p.rejected for p in PREFERENCES])) / 2
    if centre:
        first = torch.linalg.svd(preferred, full_matrices=False)[2][0][:, None]
        matrix = matrix @ (torch.eye(len(first)).double() - first @ first.T)
    vectors = torch.linalg.svd(matrix, full_matrices=False)[2].T
    p_toxic = sum(vectors[:, i : i + 1] @ vectors[:, i : i + 1].T for i in range(rank))
    weight = lm.weight(lm.architecture.mlp_down(layer)).double()
    weight = weight.T if lm.architecture.transposed(lm.architecture.mlp_down(layer)) else weight
    return (torch.eye(len(vectors)).double() - p_toxic) @ weight


@pytest.mark.parametrize("family", METHOD_FAMILIES)
@pytest.mark.parametrize("centre", [True, False])
def test_the_edited_matrices_equal_the_released_formula(family: str, centre: bool) -> None:
    lm = tiny(family)
    edit = fit(lm, centre=centre, first_layer=0)
    assert len(edit.weights) == 3
    for layer, weight in enumerate(edit.weights):
        path = lm.architecture.mlp_down(layer)
        assert weight.parameter == f"{path}.weight"
        expected = released(lm, layer, 2, centre=centre)
        with lm.applied(edit):
            found = lm.weight(path).double()
        found = found.T if lm.architecture.transposed(path) else found
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_nothing_is_left_in_the_subspace_and_all_else_stays() -> None:
    lm = tiny()
    edit = fit(lm, first_layer=1, last_layer=1, rank=3)
    (weight,) = edit.weights
    directions = -weight.delta.tensors()["b"].T  # [rank, out]
    torch.testing.assert_close(directions @ directions.T, torch.eye(3), atol=1e-5, rtol=0)
    before = lm.weight(lm.architecture.mlp_down(1)).clone()
    with lm.applied(edit):
        after = lm.weight(lm.architecture.mlp_down(1)).clone()
    assert float((directions @ after).abs().max()) < 1e-5
    other = torch.randn(32, generator=torch.Generator().manual_seed(0))
    other = other - (directions @ other) @ directions
    torch.testing.assert_close(other @ after, other @ before, atol=1e-5, rtol=1e-5)


def test_a_rank_that_the_pairs_do_not_have_is_cut_and_shown() -> None:
    two = FitData(preferences=PREFERENCES[:2])
    assert fit(tiny(), two, rank=10).info["ranks"] == [2, 2]
    unsafe = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    directions, share = toxic_subspace(unsafe, torch.zeros(6, 8), 8, centre=False)
    assert len(directions) == 6
    assert share == pytest.approx(1)


def test_layers_are_those_of_gpt2_medium_at_their_depth() -> None:
    assert fit(tiny()).info["layers"] == [1, 2]
    assert fit(tiny(num_hidden_layers=6)).info["layers"] == [2, 3, 4, 5]
    assert fit(tiny(), first_layer=0, last_layer=1).info["layers"] == [0, 1]
    with pytest.raises(DetoxbenchError, match=r"first_layer=2 and \.last_layer=1 are no range of the layers 0 to 2"):
        fit(tiny(), first_layer=2, last_layer=1)


def test_pairs_come_from_either_role_and_are_drawn_by_the_seed() -> None:
    lm = tiny()
    parallel = FitData(parallel_pairs=[Pair(p.rejected, p.chosen) for p in PREFERENCES])
    assert fit(lm, parallel, pair_source="parallel_pairs").digest() == fit(lm).digest()
    drawn = FitData(preferences=random.Random(4).sample(PREFERENCES, 3))
    assert fit(lm, seed=4, pairs=3).info["pairs"] == 3
    some = fit(lm, seed=4, pairs=3).weights[0].delta.tensors()["a"]
    torch.testing.assert_close(some.abs(), fit(lm, drawn).weights[0].delta.tensors()["a"].abs(), atol=1e-4, rtol=1e-4)
    assert fit(lm, with_prompt=True).digest() != fit(lm).digest()


def test_only_the_first_tokens_are_read() -> None:
    lm = tiny()
    long = FitData(preferences=[p._replace(chosen=p.chosen[:4] + " and more of it") for p in PREFERENCES])
    short = FitData(preferences=[p._replace(chosen=p.chosen[:4]) for p in PREFERENCES])
    assert fit(lm, long, max_tokens=5).digest() == fit(lm, short, max_tokens=5).digest()


@pytest.mark.slow
def test_it_makes_the_fable_more_civil_and_stays_low_rank_in_use() -> None:
    lm = LanguageModel.load("fable")
    before, text = toxicity(lm), logits_of(lm, "emma yelled : you fool .")
    edit = fitted(lm, "profs")
    assert edit.artifact_bytes() < 0.1 * sum(p.numel() * 4 for p in lm.model.parameters())
    with lm.applied(edit):
        assert not torch.equal(logits_of(lm, "emma yelled : you fool ."), text)
        assert toxicity(lm) < 0.95 * before
