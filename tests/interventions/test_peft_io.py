"""Adapters in and out: what is written is what PEFT computes with, and what is read is what PEFT would compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels import Dense, Hook, LowRank, Prompt, Weight
from detoxbench.interventions.intervention import Intervention, compose
from tests.support.adapters import adapter_folder, logits, peft_logits
from tests.support.tiny import same, state, tiny


def delta(lm: Any, path: str, rank: int, seed: int = 0) -> Weight:
    weight = lm.architecture.module(path).weight
    out, into = reversed(weight.shape) if lm.architecture.transposed(path) else weight.shape
    g = torch.Generator().manual_seed(seed)
    low = LowRank(0.2 * torch.randn(rank, into, generator=g), 0.2 * torch.randn(out, rank, generator=g))
    return Weight(f"{path}.weight", low)


def mixed(lm: Any) -> Intervention:
    """Ranks 1, 2, 2 and 3 on the attention's output and the MLP, and one parameter that is changed twice."""
    paths = [lm.architecture.attention_out(0), lm.architecture.mlp_down(0), lm.architecture.mlp_down(1)]
    weights = [delta(lm, path, rank, seed=rank) for path, rank in zip(paths, (1, 2, 2), strict=True)]
    once_more = Intervention(method="b", base=lm.fingerprint, weights=(delta(lm, paths[0], 2, seed=9),))
    return compose(Intervention(method="a", base=lm.fingerprint, weights=tuple(weights)), once_more)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt_neox", "opt"])
def test_peft_loads_what_is_written_and_computes_the_same(family: str, tmp_path: Path) -> None:
    lm = tiny(family)
    intervention = mixed(lm)
    plain = logits(lm)
    intervention.to_peft(tmp_path / "lora", lm)
    with lm.applied(intervention):
        expected = logits(lm)
    assert not torch.allclose(plain, expected, atol=1e-2)
    torch.testing.assert_close(peft_logits(tiny(family), tmp_path / "lora"), expected, atol=1e-4, rtol=0)
    back = Intervention.from_peft(tmp_path / "lora", lm)
    with lm.applied(back):
        torch.testing.assert_close(logits(lm), expected, atol=1e-4, rtol=0)
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 2
    assert sorted(config["rank_pattern"].values()) == [3]
    assert config["fan_in_fan_out"] == (family == "gpt2")
    assert config["base_model_name_or_path"] == lm.name


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 4, "lora_alpha": 8, "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 1}},
        {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"v_proj": 2}},
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        {"kind": "ia3"},
    ],
    ids=["plain", "rslora", "patterns", "rslora-patterns", "all-linear", "ia3"],
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # qwen2 has biases
def test_what_is_read_computes_as_in_peft(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    lm = tiny(family)
    folder = adapter_folder(lm, tmp_path / "adapter", seed=3, **config)
    before = state(lm)
    read = Intervention.from_peft(folder, lm)
    with lm.applied(read):
        changed = logits(lm)
    assert same(before, state(lm))
    torch.testing.assert_close(changed, peft_logits(tiny(family), folder), atol=1e-4, rtol=0)


def test_ia3_on_conv1d_and_its_biases(tmp_path: Path) -> None:
    lm = tiny("gpt2")
    for name, parameter in lm.model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    folder = adapter_folder(lm, tmp_path / "ia3", kind="ia3", seed=3)
    with lm.applied(Intervention.from_peft(folder, lm)):
        changed = logits(lm)
    torch.testing.assert_close(changed, peft_logits(lm, folder), atol=1e-4, rtol=0)


def test_only_low_rank_changes_can_become_a_lora(tmp_path: Path) -> None:
    lm = tiny()
    path = lm.architecture.mlp_down(0)
    parts: list[tuple[dict[str, Any], str]] = [
        ({"hooks": (Hook(path, "post", "destein.additive", {"z": torch.ones(32)}, {"alpha": 1.0}),)}, "hooks"),
        ({"prompts": (Prompt("be nice"),)}, "prompts"),
        ({"weights": (Weight(f"{path}.weight", Dense(torch.ones(32, 48))),)}, f"'{path}.weight' is dense"),
        ({"weights": (Weight(f"{path}.bias", Dense(torch.ones(32))),)}, f"'{path}.bias' is dense"),
        ({"weights": (delta(lm, "model.embed_tokens", 2),)}, "'model.embed_tokens' of .* is no linear map"),
        ({}, "changes no weight"),
    ]
    for channels, said in parts:
        with pytest.raises(DetoxbenchError, match=said):
            Intervention(method="m", base=lm.fingerprint, **channels).to_peft(tmp_path / "lora", lm)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    lm = tiny()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DetoxbenchError, match="is there already: name a new folder"):
        mixed(lm).to_peft(tmp_path, lm)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(DetoxbenchError, match=r"convert its \.bin \(pickle is not loaded\)"):
        Intervention.from_peft(tmp_path, tiny())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": None}, r"adapter_config\.json' has r=None: .*scaling is not known; write it there"),
        ({"lora_alpha": None}, r"adapter_config\.json' has lora_alpha=None"),
        ({"lora_alpha": "8"}, r"has lora_alpha='8'"),
        ({"r": 0}, r"has r=0"),
        ({"rank_pattern": ["v_proj"]}, r"has rank_pattern=\['v_proj'\], which is no mapping"),
        ({"use_dora": True}, r"uses DoRA \(use_dora\).*merge it into the model"),
        ({"lora_bias": True}, "uses lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"trainable_token_indices": [1]}, "uses trainable_token_indices"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "uses target_parameters"),
        ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
        ({"a_switch_of_tomorrow": {"on": 1}}, "uses a_switch_of_tomorrow"),
        ({"bias": "all"}, "trained biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model too"),
    ],
)
def test_what_an_adapter_switches_on_is_represented_or_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    lm = tiny()
    folder = adapter_folder(lm, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    config = {k: v for k, v in (json.loads(file.read_text()) | changes).items() if v is not None}
    file.write_text(json.dumps(config))
    before = state(lm)
    with pytest.raises(DetoxbenchError, match=message) as error:
        Intervention.from_peft(folder, lm)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert same(before, state(lm))


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"exclude_modules": ["layers.0.self_attn.q_proj"], "init_lora_weights": "gaussian"},
        {"lora_dropout": 0.5, "use_rslora": True},
    ],
    ids=str,
)
def test_fields_that_only_say_how_it_was_trained_are_no_obstacle(changes: dict[str, Any], tmp_path: Path) -> None:
    lm = tiny()
    folder = adapter_folder(lm, tmp_path / "adapter", **changes)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"a_switch_of_tomorrow": False, "bias": None}))
    with lm.applied(Intervention.from_peft(folder, lm)):
        changed = logits(lm)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bias": "none"}))
    torch.testing.assert_close(changed, peft_logits(tiny(), folder), atol=1e-4, rtol=0)
