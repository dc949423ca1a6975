"""Models that the engine cannot serve are refused before anything is generated, and left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

import detoxbench as db
from detoxbench.engine import serving
from detoxbench.engine.forward import cache_name
from detoxbench.engine.kv_cache import Cache
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.token_losses import plain_head, token_nlls
from detoxbench.interventions.channels import Prefix
from detoxbench.interventions.intervention import Intervention
from tests.support.tiny import CHARACTERS, FAMILIES, same, state, tiny, tokenizer, write

_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256}
_STATE_SPACE = {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "time_step_rank": 4}
OTHERS: dict[str, dict[str, Any]] = {
    "mamba": _STATE_SPACE,
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    "bert": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, **_ATTENTION},
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "lfm2": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        **_ATTENTION,
    },
    "llama4_text": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "intermediate_size_mlp": 48,
        "num_hidden_layers": 2,
        "num_local_experts": 2,
        "head_dim": 8,
        "attention_chunk_size": 16,
        **_ATTENTION,
    },
    "jamba": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "num_experts": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
        **_ATTENTION,
    },
}


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    serving._served.clear()
    yield
    serving._served.clear()


def other(family: str) -> db.LanguageModel:
    ids = {"vocab_size": len(CHARACTERS) + 3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **ids, **OTHERS[family]))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return db.LanguageModel(model, tokenizer(), name=f"tiny-{family}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_the_engine_serves_pass_in_every_precision(family: str, dtype: torch.dtype) -> None:
    serving.require_served(tiny(family, dtype=dtype))


@pytest.mark.parametrize("family", ["lfm2", "jamba", "llama4_text"])
def test_hybrid_models_are_served_whatever_they_share_a_batch_with(family: str) -> None:
    lm = other(family)
    prompts = ["abc", "hello there friend, how are you", "abcd", "hello there friend, how is it"]
    together = [s.text for s in lm.generate(prompts, max_new_tokens=6)]
    assert together == [lm.generate([p], max_new_tokens=6)[0].text for p in prompts]
    assert len(set(together)) == 4
    twice = lm.generate(prompts, n=2, max_new_tokens=6, do_sample=True)
    assert len({s.text for s in twice}) > 4


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mamba", r"off by [\d.]+ in a row that is padded \(rounding is at most [\d.]+\)"),
        ("bart", r"off by [\d.]+ in a row that is padded"),
        ("bert", r"off by [\d.]+ in a row that is not padded"),
        ("rwkv", r"the forward pass of RwkvForCausalLM takes no cache"),
        ("openai-gpt", r"the forward pass of OpenAIGPTLMHeadModel takes no cache"),
    ],
)
def test_a_family_that_the_engine_cannot_serve_is_refused_and_left_alone(
    family: str, reason: str, tmp_path: Path
) -> None:
    lm = other(family)
    before = state(lm)
    for _ in range(2):  # the refusal is not remembered as served
        with pytest.raises(DetoxbenchError, match=rf"the model 'tiny-{family}' .*transformers \d.*{reason}") as error:
            lm.generate(["abc", "hello there"])
        assert "\n" not in str(error.value)
    assert same(before, state(lm))
    write(lm, tmp_path)
    with pytest.raises(DetoxbenchError, match=reason):
        db.LanguageModel.load(str(tmp_path), device="cpu")


class Renamed(LlamaForCausalLM):  # type: ignore[misc]
    """A forward pass that calls the cache `cache`, and swallows all other names."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **kwargs):  # type: ignore[no-untyped-def]
        kwargs.pop("past_key_values", None)
        inner = cache_name(LlamaForCausalLM)
        return super().forward(input_ids, attention_mask, position_ids, **{inner: cache}, **kwargs)


class Swallowing(LlamaForCausalLM):  # type: ignore[misc]
    """One that takes a cache under no name, but says nothing."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):  # type: ignore[no-untyped-def]
        kwargs.pop("past_key_values", None)
        return super().forward(input_ids, attention_mask, **kwargs)


class Unplaced(GPT2LMHeadModel):  # type: ignore[misc]
    """One that drops the positions."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):  # type: ignore[no-untyped-def]
        given = {cache_name(GPT2LMHeadModel): past_key_values}
        return super().forward(input_ids, attention_mask=attention_mask, **given, **kwargs)


def of_kind(kind: type, family: str = "llama") -> db.LanguageModel:
    lm = tiny(family)
    lm.model.__class__ = kind
    return lm


def test_the_cache_is_passed_under_the_name_that_the_forward_pass_lists() -> None:
    prompts = ["abc", "hello there", "hello you"]
    expected = [s.text for s in tiny().generate(prompts, max_new_tokens=8)]
    renamed = of_kind(Renamed)
    assert cache_name(Renamed) == "cache"
    assert [s.text for s in renamed.generate(prompts, max_new_tokens=8)] == expected
    prefix = Intervention(method="p", base=tiny().fingerprint, prefixes=(Prefix(torch.randn(3, 2, 2, 4, 8)),))
    found = []
    for lm in (tiny(), renamed):
        with lm.applied(prefix):
            found.append([s.text for s in lm.generate(prompts, max_new_tokens=8)])
    assert found[0] == found[1] != expected


def test_a_forward_pass_that_drops_what_it_is_given_is_refused() -> None:
    with pytest.raises(DetoxbenchError, match="the forward pass of Swallowing takes no cache"):
        of_kind(Swallowing).generate(["abc"])
    with pytest.raises(DetoxbenchError, match=r"Unplaced, float32.*off by .* in a row that is padded"):
        of_kind(Unplaced, "gpt2").generate(["abc"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cache_that_does_not_follow_its_rows_is_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny(dtype=dtype)
    select = Cache.select
    monkeypatch.setattr(Cache, "select", lambda cache, rows: select(cache, rows.sort().values))
    with pytest.raises(DetoxbenchError, match="off by"):
        serving.require_served(lm)
    monkeypatch.undo()
    serving.require_served(lm)


def test_what_is_in_force_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, tried = tiny(), []
    monkeypatch.setattr(serving, "require_served", lambda lm: tried.append(lm.name))
    handle = lm.model.model.layers[1].register_forward_hook(lambda *_: None)
    lm.generate(["abc"], max_new_tokens=2)
    assert tried == []
    handle.remove()
    lm.generate(["abc"], max_new_tokens=2)
    assert tried == ["tiny-llama"]


def test_a_prefix_on_a_recurrent_layer_is_refused() -> None:
    lm = other("lfm2")
    prefix = Intervention(method="p", base=lm.fingerprint, prefixes=(Prefix(torch.randn(3, 2, 4, 4, 8)),))
    with pytest.raises(DetoxbenchError, match="a prefix needs attention in every layer"), lm.applied(prefix):
        pass
    assert lm.bare


def test_a_text_model_out_of_a_multi_modal_one_is_trained_through_its_head() -> None:
    lm = other("llama4_text")
    assert plain_head(lm)
    batch = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    found, _ = token_nlls(lm.model, batch, torch.ones(1, 3, dtype=torch.bool))
    logprobs = lm.model(batch["input_ids"]).logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(found, -logprobs[torch.arange(3), batch["input_ids"][0, 1:]])
