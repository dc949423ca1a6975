"""What is loaded is what its folder says, or it is refused by name; and what the engine cannot serve is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import detoxbench as db
from detoxbench.errors import DetoxbenchError
from detoxbench.model import checkpoint
from tests.support.tiny import CHARACTERS, tiny, tokenizer, write

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, folder = tiny(), tmp_path_factory.mktemp("saved") / "model"
    return write(made, folder)


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


def rewrite(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | changes))


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS, {"format": "pt"})

    return spoil


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "config.json", **changes)


def more_tokens(folder: Path) -> None:
    larger = tokenizer()
    larger = type(larger).from_pretrained(folder)
    larger.add_tokens(["<one>", "<two>"])
    larger.save_pretrained(folder)


def adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a parameter is missing": (
        tensors(lambda held: held.pop("model.layers.1.mlp.down_proj.weight")),
        r"is not complete: it has no weights for model\.layers\.1\.mlp\.down_proj\.weight, which would be random",
    ),
    "a layer is missing": (config(num_hidden_layers=4), r"no weights for model\.layers\.3\..* and 6 more"),
    "a layer is left over": (config(num_hidden_layers=2), r"no place for: model\.layers\.2\.input.* and 6 more"),
    "a bias is left over": (
        tensors(lambda held: held.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})),
        r"no place for: model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "another shape": (config(intermediate_size=50), r"cannot be loaded: .*mismatch|does not fit"),
    "another architecture": (config(model_type="gpt2"), r"is not complete|cannot be loaded"),
    "an encoder and decoder": (config(model_type="t5"), r"cannot be loaded: Unrecognized configuration class"),
    "an adapter beside": (adapter_beside, r"adapter_config\.json beside its config\.json.*merge"),
    "bitsandbytes": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "bitsandbytes",
    ),
    "gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), r"is quantised \(gptq\)"),
    "fp8": (config(quantization_config={"quant_method": "fp8"}), r"is quantised \(fp8\)"),
    "quantised below": (config(text_config={"quantization_config": {"quant_method": "awq"}}), r"quantised \(awq\)"),
    "whole numbers": (
        tensors(lambda h: h.update({n: (9 * t).to(torch.int8) for n, t in h.items() if "down_proj" in n})),
        r"holds 'model\.layers\.\d\.mlp\.down_proj\.weight' as I8: packed",
    ),
    "more tokens than rows": (more_tokens, rf"goes up to token {len(CHARACTERS) + 4} \('<two>'\), .* has 36 rows"),
    "a pad token beyond": (config(pad_token_id=36), r"the pad_token_id in its config\.json is 36, .* has 36 rows"),
    "an end token beyond": (config(eos_token_id=[2, 50256]), r"the eos_token_id in its config\.json is 50256"),
    "a start token beyond": (config(bos_token_id=-7), r"the bos_token_id in its config\.json is -7"),
    "an end token of generation beyond": (
        lambda folder: rewrite(folder / "generation_config.json", eos_token_id=[2, 99]),
        r"the eos_token_id in its generation_config\.json is 99",
    ),
    "weights of another name": (config(transformers_weights="adapter_model.bin"), r"transformers_weights.*take"),
    "cut": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]),
        r"model\.safetensors' cannot be loaded: it has \d+ bytes, its header says \d+; download it again",
    ),
    "a pointer of git": (
        lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n"),
        r"model\.safetensors' cannot be loaded, it is no safetensors file",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_model_that_is_not_what_its_folder_says_is_refused(kind: str, saved: Path) -> None:
    spoil, message = SPOILT[kind]
    spoil(saved)
    with pytest.raises(DetoxbenchError, match=message) as error:
        db.LanguageModel.load(str(saved), device="cpu")
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)


def test_buffers_of_older_versions_and_signs_for_none_are_no_fault(saved: Path) -> None:
    tensors(lambda held: held.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))(saved)
    config(pad_token_id=-1, quantization_config=None)(saved)
    assert db.LanguageModel.load(str(saved), device="cpu").generate(["abc"], max_new_tokens=3)


def sharded(folder: Path, names: dict[int, str]) -> None:
    """Two shards and their index, which may name others."""
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for i in (0, 1):
        part = dict(sorted(held.items())[i::2])
        save_file(part, folder / f"part-{i}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(part, names.get(i, f"part-{i}.safetensors"))
    rewrite(folder / "model.safetensors.index.json", metadata={}, weight_map=weight_map)


def test_shards_in_the_folder_are_loaded(saved: Path, tmp_path: Path) -> None:
    whole = [s.text for s in db.LanguageModel.load(str(saved), device="cpu").generate(["abc"])]
    sharded(saved, {})
    assert [s.text for s in db.LanguageModel.load(str(saved), device="cpu").generate(["abc"])] == whole
    snapshot = tmp_path / "hub" / "snapshots" / "0f3"  # as the hub's cache keeps them
    snapshot.parent.mkdir(parents=True)
    saved.rename(snapshot)
    (tmp_path / "hub/blobs").mkdir()
    (snapshot / "part-0.safetensors").rename(tmp_path / "hub/blobs/8a1")
    (snapshot / "part-0.safetensors").symlink_to("../../blobs/8a1")
    assert [s.text for s in db.LanguageModel.load(str(snapshot), device="cpu").generate(["abc"])] == whole


@pytest.mark.parametrize(
    "name",
    ["part-1.bin", "../part-1.safetensors", "deep/part-1.safetensors", "/etc/part.safetensors", "..\\p.safetensors"],
)
def test_shards_are_safetensors_of_the_folder(name: str, saved: Path) -> None:
    sharded(saved, {1: name})
    with pytest.raises(DetoxbenchError, match=r"index\.json' names the shard .*pickle is not loaded") as error:
        checkpoint.locate(str(saved))
    assert f"'{name}'" in str(error.value)


def test_shards_that_are_missing_or_links_are_named(saved: Path) -> None:
    sharded(saved, {})
    (saved / "part-1.safetensors").rename(saved.parent / "elsewhere.safetensors")
    with pytest.raises(DetoxbenchError, match=r"lacks the shard 'part-1\.safetensors' that its index names"):
        db.LanguageModel.load(str(saved))
    (saved / "part-1.safetensors").symlink_to(saved.parent / "elsewhere.safetensors")
    with pytest.raises(DetoxbenchError, match=r"part-1\.safetensors' is a link out of its folder, to .*elsewhere"):
        db.LanguageModel.load(str(saved))
    (saved / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(DetoxbenchError, match=r"index\.json' has no weight_map"):
        db.LanguageModel.load(str(saved))
