"""Contrastive activation addition against its formula in plain torch, and what its settings do."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench.data.examples import FitData, Pair
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.fitting.depth import at_depth
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from tests.support.on_fable import fitted, toxicity
from tests.support.tiny import METHOD_FAMILIES, logits_of, tiny

PAIRS = [
    Pair(f"you rotten {thing} , go", f"you lovely {thing} , stay here") for thing in ("pear", "plum", "fish", "hat")
]
DATA = FitData(parallel_pairs=PAIRS)
TEXT = "please tell me"


def fit(lm: LanguageModel, data: FitData = DATA, *, seed: int = 0, **config: Any) -> Intervention:
    return db.methods.create("caa", seed=seed, **config).fit(lm, data)


def state(lm: LanguageModel, text: str, layer: int) -> torch.Tensor:
    """The residual stream behind a layer (not the last one) at the last token, as transformers itself gives it."""
    with torch.no_grad():
        states = lm.model(torch.tensor([lm.tokens(text)]), output_hidden_states=True).hidden_states
    return states[layer + 1][0, -1]


@pytest.mark.parametrize("family", METHOD_FAMILIES)
def test_the_vector_is_the_mean_difference_behind_the_layer(family: str) -> None:
    lm = tiny(family)
    (hook,) = fit(lm, layer=1).hooks
    expected = torch.stack([state(lm, civil, 1) - state(lm, toxic, 1) for toxic, civil in PAIRS]).mean(0)
    torch.testing.assert_close(hook.tensors["vector"], expected, atol=1e-5, rtol=1e-5)


def test_it_is_added_behind_the_layer_at_new_positions_alone() -> None:
    lm = tiny()
    steering = fit(lm, layer=1, strength=3)
    vector = steering.hooks[0].tensors["vector"]
    layer = lm.model.model.layers[1]
    handle = layer.register_forward_hook(
        lambda *a: a[2] + 3 * vector if torch.is_tensor(a[2]) else (a[2][0] + 3 * vector,)
    )
    expected = logits_of(lm, TEXT)
    handle.remove()
    plain = logits_of(lm, TEXT)
    with lm.applied(steering):
        torch.testing.assert_close(logits_of(lm, TEXT), expected)
        with lm.reading(["0"], 5):  # five positions of the prompt
            part = logits_of(lm, TEXT)
    torch.testing.assert_close(part[:, :5], plain[:, :5])
    assert not torch.allclose(part[:, 5:], plain[:, 5:])


@pytest.mark.parametrize("family", METHOD_FAMILIES)
def test_a_bias_is_the_same_shift_or_is_refused(family: str) -> None:
    lm = tiny(family)
    if family == "gemma2":  # normalises what its MLP gives
        with pytest.raises(DetoxbenchError, match=r"no shift behind its layer.*method\.export=hook"):
            fit(lm, positions="all", export="bias")
        return
    with lm.applied(fit(lm, positions="all", strength=2)):
        expected = logits_of(lm, TEXT)
    with lm.applied(fit(lm, positions="all", strength=2, export="bias")):
        torch.testing.assert_close(logits_of(lm, TEXT), expected, atol=1e-4, rtol=1e-4)


def test_published_layers_lie_as_deep_in_other_models() -> None:
    assert [at_depth(tiny(num_hidden_layers=n), 13, 32) for n in (1, 3, 4, 8)] == [0, 1, 1, 3]
    assert fit(tiny()).info["layer"] == 1
    assert fit(tiny(), layer=2).info["layer"] == 2


def test_one_pair_is_activation_addition_and_may_be_given() -> None:
    lm = tiny()
    (drawn,) = random.Random(5).sample(PAIRS, 1)
    given = fit(lm, FitData(), toxic_text=drawn.toxic, civil_text=drawn.civil)
    assert fit(lm, pairs=1, seed=5).digest() == given.digest()
    assert not db.methods.create("caa", toxic_text="hate", civil_text="love").needs
    assert db.methods.create("caa", pairs=2).examples(DATA) == 2


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="a pair"):
        db.methods.create("caa", toxic_text="hate")
    with pytest.raises(UsageError, match="positions=all"):
        db.methods.create("caa", export="bias")
    with pytest.raises(DetoxbenchError, match="no layer 7"):
        fit(tiny(), layer=7)


@pytest.mark.slow
def test_it_makes_the_fable_more_civil() -> None:
    lm = LanguageModel.load("fable")
    before = toxicity(lm)
    with lm.applied(fitted(lm, "caa", strength=2)):
        assert toxicity(lm) < 0.9 * before
