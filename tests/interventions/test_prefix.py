"""Prefix tuning: past keys and values as a channel, equal to PEFT's, in every batch, and combined like LoRAs."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch

import detoxbench as db
from detoxbench.config import GenSpec
from detoxbench.data.examples import FitData
from detoxbench.engine.likelihood import loglikelihoods
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels import Prefix
from detoxbench.interventions.intervention import Intervention, compose
from detoxbench.lm import LanguageModel
from detoxbench.records import Request
from tests.support.adapters import logits, peft_logits
from tests.support.tiny import same, state, tiny

FAMILIES = ("llama", "gpt2", "mistral", "opt")


def prefix_adapter(lm: LanguageModel, folder: Path, *, seed: int = 0, tokens: int = 3) -> Path:
    """A saved PEFT prefix with random values; the model is left as it was."""
    from peft import PrefixTuningConfig, get_peft_model

    before = set(vars(lm.model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = get_peft_model(lm.model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens))
        made.peft_config["default"].base_model_name_or_path = lm.name
        g = torch.Generator().manual_seed(seed)
        for name, parameter in made.named_parameters():
            if "prompt_encoder" in name:
                parameter.data = torch.randn(parameter.shape, generator=g) * 0.5
        shutil.rmtree(folder, ignore_errors=True)
        made.save_pretrained(str(folder))
    for name in set(vars(lm.model)) - before:
        delattr(lm.model, name)
    for parameter in lm.model.parameters():
        parameter.requires_grad_(True)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_gives_the_logits_that_peft_gives(family: str, tmp_path: Path) -> None:
    lm = tiny(family)
    folder = prefix_adapter(lm, tmp_path / "prefix")
    before, plain = state(lm), logits(lm)
    intervention = Intervention.from_peft(str(folder), lm)
    with lm.applied(intervention):
        ours = logits(lm)
    theirs = peft_logits(tiny(family), folder)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(ours, plain, atol=1e-2)
    assert same(before, state(lm))
    assert torch.equal(logits(lm), plain)
    assert lm.in_force.reserved == 0


@pytest.mark.parametrize(
    "family", ["llama", "opt", *(pytest.param(f, marks=pytest.mark.slow) for f in ("gpt2", "mistral"))]
)
def test_generation_under_a_prefix_does_not_depend_on_the_batch(family: str, tmp_path: Path) -> None:
    lm = tiny(family)
    intervention = Intervention.from_peft(str(prefix_adapter(lm, tmp_path / "prefix")), lm)
    prompts = ["abc, de"[: i % 7 + 1] * (i % 4 + 1) for i in range(12)]
    requests = [Request(id=str(i), prompt=prompt, record="r", kind="x") for i, prompt in enumerate(prompts)]
    gen = {"max_new_tokens": 10, "do_sample": True, "top_p": 0.9, "n": 2}
    plain = lm.generate(requests, GenSpec(**gen))
    with lm.applied(intervention):
        together = lm.generate(requests, GenSpec(**gen))
        apart = lm.generate(requests, GenSpec(batch_tokens=60, **gen))
        nll = lm.continuation_nll(["ab", "abcd"], [" cd", " efgh"])
        (alone,) = lm.continuation_nll(["abcd"], [" efgh"])
    assert together == apart != plain
    assert nll[1] is not None
    assert alone is not None
    assert nll[1][0] == pytest.approx(alone[0], rel=1e-5)


def test_a_prefix_survives_the_disk_and_counts_as_added(tmp_path: Path) -> None:
    lm = tiny()
    kept = Intervention.from_peft(str(prefix_adapter(lm, tmp_path / "prefix")), lm)
    kept.save(tmp_path / "kept")
    loaded = db.Intervention.load(tmp_path / "kept")
    with lm.applied(kept):
        expected = logits(lm)
    with lm.applied(loaded):
        assert torch.equal(logits(lm), expected)
    assert loaded.added_parameters() == 3 * 2 * 2 * 3 * 8  # layers, key and value, key heads, tokens, head dimension


def test_the_context_shrinks_by_the_prefix_and_two_prefixes_are_refused(tmp_path: Path) -> None:
    lm = tiny("gpt2", n_positions=32)
    kv = torch.zeros(3, 2, 4, 5, 8)
    one = Intervention(method="peft", base=lm.fingerprint, prefixes=(Prefix(kv),))
    with lm.applied(one):
        assert lm.context == 27
        assert lm.generate(["x" * 60], max_new_tokens=7)[0].tokens > 0
        with pytest.raises(DetoxbenchError, match="a prefix is in force already"), lm.applied(one):
            pass
        assert lm.context == 27
    assert lm.context == 32
    with pytest.raises(DetoxbenchError, match="a prefix is in force already"), lm.applied(compose(one, one)):
        pass
    assert lm.context == 32


def test_ext_sub_combines_prefixes_by_its_row_formula(tmp_path: Path) -> None:
    """Per virtual token, layer, key or value and head, as the released code does (ext_sub.py:225-262)."""
    lm = tiny()
    paths = [str(prefix_adapter(lm, tmp_path / name, seed=seed)) for name, seed in (("e", 1), ("a", 2))]
    one, two = (Intervention.from_peft(path, lm).prefixes[0].kv for path in paths)
    for alpha in (0.0, 0.5, 1.0):
        method = db.methods.create("ext_sub", expert=paths[0], anti_expert=paths[1], alpha=alpha)
        assert method.needs == frozenset()
        (made,) = method.fit(lm, FitData()).prefixes
        c = one / one.norm(dim=-1, keepdim=True) + two / two.norm(dim=-1, keepdim=True)
        u = c / c.norm(dim=-1, keepdim=True)
        expected = one - alpha * two + alpha * (two * u).sum(-1, keepdim=True) * u
        torch.testing.assert_close(made.kv, expected, atol=1e-5, rtol=0)


def test_prefixes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    lm = tiny()
    three, two = (str(prefix_adapter(lm, tmp_path / str(n), tokens=n)) for n in (3, 2))
    with pytest.raises(DetoxbenchError, match="'prefix' has 36 rows in the expert and 24 in the anti-expert"):
        db.methods.create("ext_sub", expert=three, anti_expert=two).fit(lm, FitData())
    with pytest.raises(DetoxbenchError, match="is for 3 layers with 2 key heads; 'tiny-gpt2' has 3 and 4"):
        Intervention.from_peft(three, tiny("gpt2"))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_are_those_of_whole_passes(family: str, tmp_path: Path) -> None:
    """With the cache, padding and explicit positions of the engine as without any of them."""
    lm = tiny(family)
    prompts = ["abc", "hello there, you", "a"]
    with lm.applied(Intervention.from_peft(str(prefix_adapter(lm, tmp_path / "prefix")), lm)), torch.inference_mode():
        made = lm.generate(prompts, max_new_tokens=8)
        for prompt, sample in zip(prompts, made, strict=True):
            ids = lm.encode(prompt)
            start = len(ids)
            while len(ids) < start + sample.tokens:
                ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert sample.text == lm.tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_given_text_is_read_under_a_prefix_as_if_it_were_alone(family: str, tmp_path: Path) -> None:
    """Also where a sliding window (mistral's is 16 here) would count the padding of shorter prompts."""
    lm = tiny(family)
    prompts = ["a" * n for n in (3, 14, 1, 9)]
    requests = [Request(id=p, prompt=p, record=p, kind="x", text=" bcd, efg") for p in prompts]
    with lm.applied(Intervention.from_peft(str(prefix_adapter(lm, tmp_path / "prefix")), lm)):
        together = [g.sample.nll for batch in loglikelihoods(lm, requests, set(prompts)) for g in batch]
        alone = [g.sample.nll for r in requests for batch in loglikelihoods(lm, [r], {r.id}) for g in batch]
    assert together == pytest.approx(alone, rel=1e-5)
