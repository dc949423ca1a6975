"""Loading, identifying and scoring with a model."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import detoxbench as db
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.model import checkpoint
from detoxbench.model.devices import pick_device
from tests.support.tiny import CHARACTERS, FAMILIES, tiny, write


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made = tiny()
    return write(made, tmp_path / "model")


def test_a_folder_is_loaded_as_it_was_saved(saved: Path) -> None:
    loaded = db.LanguageModel.load(str(saved), device="cpu")
    assert loaded.fingerprint == checkpoint.fingerprint(saved)
    assert [s.text for s in loaded.generate(["abc"])] == [s.text for s in tiny().generate(["abc"])]
    assert db.LanguageModel.load(str(saved), dtype="bfloat16").dtype == torch.bfloat16


def test_sampling_settings_of_a_checkpoint_are_not_obeyed(saved: Path) -> None:
    plain = [s.text for s in db.LanguageModel.load(str(saved)).generate(["abc", "hello"])]
    path = saved / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_sample": True, "temperature": 9.0, "top_k": 3}))
    assert [s.text for s in db.LanguageModel.load(str(saved)).generate(["abc", "hello"])] == plain


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), r"has no weights \(\*\.safetensors\)"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"pickle is not loaded"),
        (lambda f: (f / "config.json").unlink(), r"it has no config\.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), r"cannot be loaded"),
    ],
)
def test_a_broken_folder_is_named_with_the_remedy(saved: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    spoil(saved)
    with pytest.raises(DetoxbenchError, match=message) as error:
        db.LanguageModel.load(str(saved))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such/folder", r"no model folder 'no/such/folder', and it is no hub id"),
        ("./nothing", r"no model folder"),
        ("someone/some-model", r"HF_HUB_OFFLINE is set.*hf download someone/some-model"),
    ],
)
def test_a_model_that_is_not_there_is_one_line_at_once(path: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(DetoxbenchError, match=message):
        db.LanguageModel.load(path)
    assert time.process_time() - start < 20  # no retries: they take longer than any import


def test_an_unreachable_hub_is_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    attempts = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        attempts.append((address, timeout))
        raise ConnectionRefusedError

    monkeypatch.setattr(checkpoint.socket, "create_connection", refuse)
    monkeypatch.setattr(checkpoint, "cached_snapshot", lambda *_: None)
    with pytest.raises(DetoxbenchError, match=r"the hub \(huggingface\.co\) cannot be reached"):
        checkpoint.locate("someone/some-model")
    assert attempts == [(("huggingface.co", 443), 3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_every_family_are_found(family: str) -> None:
    made = tiny(family)
    parts = made.architecture
    assert len(parts.layers) == 3
    for layer in range(3):
        out, down = parts.module(parts.attention_out(layer)), parts.module(parts.mlp_down(layer))
        for module, into in ((out, 32), (down, None)):
            shape = tuple(module.weight.shape)
            shape = shape[::-1] if parts.transposed(parts.mlp_down(layer)) else shape
            assert shape[0] == 32
            assert into is None or shape[1] == into
        assert parts.attention_out(layer).startswith(parts.layers[layer])
    assert parts.module(parts.final_norm).weight.shape == (32,)
    assert (parts.heads, parts.hidden_size, parts.context) == (4, 32, 256)


def test_an_unknown_part_is_an_error_only_when_it_is_asked_for() -> None:
    made = tiny()
    layer = made.model.model.layers[0]
    layer.attention = layer.self_attn
    del layer.self_attn
    assert made.architecture.mlp_down(0)
    with pytest.raises(DetoxbenchError, match="cannot find the attention output projection of LlamaForCausalLM"):
        made.architecture.attention_out(0)
    with pytest.raises(DetoxbenchError, match=r"no layer 7.*layers 0 to 2"):
        made.architecture.mlp_down(7)


def test_chat_templates() -> None:
    made = tiny()
    assert made.tokenizer.decode(made.encode("hi", chat=True)) == "u:hia:"
    assert made.encode("hi", chat=False) == made.tokenizer("hi")["input_ids"]
    raw = db.LanguageModel(made.model, made.tokenizer, chat_template="none")
    assert raw.encode("hi", chat=True) == raw.encode("hi")
    with pytest.raises(UsageError, match="no chat template 'vicuna': use auto or none"):
        db.LanguageModel(made.model, made.tokenizer, chat_template="vicuna")


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"model\.device=nonsense is not available on this machine"):
        pick_device("nonsense")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_continuation_nll_is_the_sum_over_the_continuation(family: str) -> None:
    made, r = tiny(family), random.Random(0)
    texts = ["".join(r.choice(CHARACTERS) for _ in range(r.randrange(1, 30))) for _ in range(24)]
    prompts = ["", *texts[1:12], *texts[:12]]
    results = made.continuation_nll(prompts, texts)
    for prompt, text, result in zip(prompts, texts, results, strict=True):
        ids = torch.tensor([made.tokenizer(prompt + text)["input_ids"]])
        logprobs = made.model(ids).logits[0, :-1].detach().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert result is not None
        assert result[1] == len(text)
        assert result[0] == pytest.approx(-float(logprobs[len(prompt) :].sum()), rel=1e-4)
    assert made.continuation_nll(["abc"], [""]) == [None]


def test_continuation_nll_beyond_the_context_keeps_the_end() -> None:
    made = tiny(max_position_embeddings=16)
    (result,) = made.continuation_nll(["a" * 30], ["bcd"])
    (short,) = made.continuation_nll(["a" * 13], ["bcd"])
    assert result is not None
    assert short is not None
    assert result[1] == short[1] == 3
    ids = torch.tensor([made.tokenizer("a" * 30 + "bcd")["input_ids"][-16:]])
    logprobs = made.model(ids).logits[0, :-1].detach().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert result[0] == pytest.approx(-float(logprobs[-3:].sum()), rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(CHARACTERS, min_size=1, max_size=20), min_size=1, max_size=6))
def test_continuation_nll_does_not_depend_on_the_others(texts: list[str]) -> None:
    made = tiny()
    together = made.continuation_nll(["ab"] * len(texts), texts)
    for text, result in zip(texts, together, strict=True):
        (alone,) = made.continuation_nll(["ab"], [text])
        assert alone is not None
        assert result is not None
        assert result[0] == pytest.approx(alone[0], rel=1e-5)
