"""Interventions: put on, taken off bit for bit, saved, loaded, stacked, refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels import Dense, Hook, LowRank, Prompt, Weight
from detoxbench.interventions.intervention import Intervention, compose
from tests.support.tiny import same, state, tiny

FAMILIES = ("llama", "gpt2")


def low_rank(lm, path: str, rank: int = 2, seed: int = 0) -> LowRank:  # type: ignore[no-untyped-def]
    weight = lm.architecture.module(path).weight
    out, into = reversed(weight.shape) if lm.architecture.transposed(path) else weight.shape
    g = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, into, generator=g), torch.randn(out, rank, generator=g))


def everything(lm) -> Intervention:  # type: ignore[no-untyped-def]
    down, out = lm.architecture.mlp_down(1), lm.architecture.attention_out(0)
    hidden = lm.architecture.hidden_size
    return Intervention(
        method="test",
        base=lm.fingerprint,
        weights=(
            Weight(f"{down}.weight", low_rank(lm, down)),
            Weight(f"{down}.bias", Dense(torch.ones(hidden))),
            Weight(f"{out}.weight", Dense(torch.full_like(lm.architecture.module(out).weight, 0.1))),
        ),
        hooks=(Hook(out, "post", "destein.additive", {"z": torch.ones(hidden)}, {"alpha": 0.5}),),
        prompts=(Prompt(prefix="be nice. "),),
        info={"losses": [1.0, 0.5]},
    )


def outputs(lm, text: str = "hello there") -> torch.Tensor:  # type: ignore[no-untyped-def]
    with torch.inference_mode():
        return lm.model(torch.tensor([lm.encode(text)])).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_applied_changes_the_model_and_leaving_restores_it_bit_for_bit(family: str) -> None:
    lm = tiny(family)
    before, plain = state(lm), outputs(lm)
    with lm.applied(everything(lm)):
        assert not torch.allclose(outputs(lm)[:, -1], plain[:, -1], atol=1e-2)
        assert lm.encode("x")[1:4] == lm.encode("be nice. x")[1:4]
    assert same(before, state(lm))
    assert torch.equal(outputs(lm), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_low_rank_delta_is_its_product_however_the_weight_is_stored(family: str) -> None:
    lm = tiny(family)
    path = lm.architecture.mlp_down(0)
    delta, x = low_rank(lm, path), torch.randn(3, low_rank(lm, path).a.shape[1])
    plain = lm.architecture.module(path)(x)
    with lm.applied(Intervention(method="t", base=lm.fingerprint, weights=(Weight(f"{path}.weight", delta),))):
        torch.testing.assert_close(
            lm.architecture.module(path)(x), plain + x @ delta.a.T @ delta.b.T, atol=1e-4, rtol=0
        )


def test_a_failure_while_entering_takes_off_what_was_put_on() -> None:
    lm = tiny()
    whole, before = everything(lm), state(lm)
    broken = Intervention(
        method="t",
        base=lm.fingerprint,
        weights=whole.weights,
        hooks=(*whole.hooks, Hook("no.such", "post", "destein.sphere")),
    )
    with pytest.raises(DetoxbenchError, match=r"no module 'no\.such'"), lm.applied(broken):
        pass
    assert same(before, state(lm))
    assert not any(m._forward_hooks for m in lm.model.modules())


def test_an_error_inside_the_block_takes_it_off_too() -> None:
    lm = tiny()
    before = state(lm)
    with pytest.raises(KeyError), lm.applied(everything(lm)):
        raise KeyError("in the block")
    assert same(before, state(lm))
    assert lm.in_force.prompts == []


def test_contexts_nest_on_the_same_parameter() -> None:
    lm = tiny()
    before = state(lm)
    with lm.applied(everything(lm)):
        middle = state(lm)
        with lm.applied(everything(lm)):
            assert not same(middle, state(lm))
        assert same(middle, state(lm))
    assert same(before, state(lm))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_what_is_loaded(family: str, tmp_path: Path) -> None:
    lm = tiny(family)
    kept = everything(lm)
    kept.save(tmp_path / "kept")
    loaded = Intervention.load(tmp_path / "kept")
    with lm.applied(kept):
        expected = outputs(lm)
    with lm.applied(loaded):
        assert torch.equal(outputs(lm), expected)
    assert loaded.info == kept.info
    assert loaded.artifact_bytes() == kept.artifact_bytes() > 0
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"intervention.json", "tensors.safetensors"}


def test_nothing_is_left_when_saving_fails(tmp_path: Path) -> None:
    lm = tiny()
    bad = Intervention(method="t", base=lm.fingerprint, info={"loss": object()})
    with pytest.raises(TypeError, match="JSON"):
        bad.save(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_another_base_model_is_refused_by_both_fingerprints() -> None:
    one, other = tiny(seed=0), tiny(seed=1)
    with (
        pytest.raises(DetoxbenchError, match=f"{one.fingerprint}.*{other.fingerprint}"),
        other.applied(everything(one)),
    ):
        pass


def test_a_fingerprint_moves_with_any_weight_and_with_nothing_else() -> None:
    assert tiny(seed=0).fingerprint == tiny(seed=0).fingerprint
    lm = tiny()
    with torch.no_grad():
        lm.architecture.module(lm.architecture.mlp_down(2)).weight[0, 0] += 1
    assert type(lm)(lm.model, lm.tokenizer).fingerprint != lm.fingerprint


def test_a_tied_parameter_is_refused_by_name() -> None:
    lm = tiny(tie_word_embeddings=True)
    delta = Dense(torch.ones_like(lm.model.lm_head.weight))
    tied = Intervention(method="t", base=lm.fingerprint, weights=(Weight("lm_head.weight", delta),))
    with (
        pytest.raises(DetoxbenchError, match=r"'lm_head\.weight' is tied to 'model\.embed_tokens\.weight'"),
        lm.applied(tied),
    ):
        pass


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (Weight("model.layers.9.mlp.down_proj.weight", Dense(torch.ones(1))), "no parameter|no module"),
        (Weight("model.layers.0.mlp.down_proj.weight", Dense(torch.ones(2, 2))), r"\(2, 2\).*\(32, 48\)"),
        (Weight("model.norm.bias", Dense(torch.ones(32))), "no parameter 'model.norm.bias'"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused(weight: Weight, message: str) -> None:
    lm = tiny()
    before = state(lm)
    with (
        pytest.raises(DetoxbenchError, match=message),
        lm.applied(Intervention(method="t", base=lm.fingerprint, weights=(weight,))),
    ):
        pass
    assert same(before, state(lm))


def test_composed_deltas_add_up_and_prompts_wrap() -> None:
    lm = tiny()
    path = lm.architecture.mlp_down(0)
    one = Intervention(method="a", base=lm.fingerprint, weights=(Weight(f"{path}.weight", low_rank(lm, path, seed=1)),))
    two = Intervention(
        method="b",
        base=lm.fingerprint,
        weights=(Weight(f"{path}.weight", low_rank(lm, path, seed=2)),),
        prompts=(Prompt(prefix="p"), Prompt(suffix="s")),
    )
    both, wrapped = compose(one, two), lm.encode("u:pxsa:")[1:]
    assert both.method == "a+b"
    with lm.applied(one), lm.applied(two):
        expected = lm.architecture.module(path).weight.clone()
    with lm.applied(both):
        torch.testing.assert_close(lm.architecture.module(path).weight, expected)
        assert lm.encode("x", chat=True) == wrapped
    other = tiny(seed=5)
    with pytest.raises(DetoxbenchError, match="different base models"):
        compose(one, Intervention(method="c", base=other.fingerprint))


def test_a_suffix_stays_away_from_continuations() -> None:
    prompt = Prompt(prefix="<", suffix=">")
    assert prompt.rewrite("x", chat=True) == "<x>"
    assert prompt.rewrite("x", chat=False) == "<x"


def test_bf16_weights_are_restored_bit_for_bit_too() -> None:
    lm = tiny(dtype=torch.bfloat16)
    before = state(lm)
    with lm.applied(everything(lm)):
        assert not same(before, state(lm))
    assert same(before, state(lm))


def test_a_digest_is_of_what_an_intervention_does_and_not_of_what_was_recorded() -> None:
    lm = tiny("llama")
    one = everything(lm)
    assert one.digest() == replace(everything(lm), info={"losses": [9.0]}).digest()
    down = lm.architecture.mlp_down(1)
    others = [
        replace(one, weights=(Weight(f"{down}.weight", low_rank(lm, down, seed=1)), *one.weights[1:])),
        replace(one, weights=one.weights[:-1]),
        replace(one, hooks=tuple(replace(h, params={"alpha": 0.25}) for h in one.hooks)),
        replace(one, hooks=tuple(replace(h, tensors={"z": h.tensors["z"] * 2}) for h in one.hooks)),
        replace(one, prompts=(Prompt(prefix="be kind. "),)),
    ]
    assert len({i.digest() for i in (one, *others)}) == 1 + len(others)
