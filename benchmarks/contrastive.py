"""A training step of contrastive perplexity: the head sees real positions only, in parts, beside full fp32 logits."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.harness import Row, compare, memory_row
from detoxbench.fitting.paraphrases import NEGATIVE, POSITIVE
from detoxbench.fitting.token_losses import sequence_nll
from detoxbench.methods.contrastive_perplexity import Config, cp_loss

DEVICES = ("cpu", "cuda")
SHAPES = {
    "cpu": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4},
    "cuda": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""On the CPU a small Llama, on a GPU Llama-2-7B's shape in bfloat16; random weights, vocabulary 32,000."""
ROWS, SHORTEST, LONGEST = 24, 14, 64
"""Two anchors of twelve texts; lengths as paraphrases of one sentence have them, in tokens."""
EXACT, HALF = 1e-5, 2e-2
"""How far gradients may differ: in float32 absolutely, in bfloat16 of the largest (a unit in the last place: 0.4 %)."""


def model(device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=32_000, tie_word_embeddings=False, **SHAPES[device])
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(made, lora).train()


def batch(device: str) -> dict[str, Tensor]:
    lengths = [random.Random(i).randint(SHORTEST, LONGEST) for i in range(ROWS)]
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    ids = torch.randint(3, 32_000, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    group = torch.arange(ROWS) // (ROWS // 2)
    role = torch.tensor([POSITIVE, NEGATIVE]).repeat_interleave(ROWS // 4).repeat(2)
    given = {"input_ids": ids, "attention_mask": mask, "group": group, "role": role}
    return {name: tensor.to(device) for name, tensor in given.items()}


def plain_nll(lora: torch.nn.Module, given: dict[str, Tensor]) -> Tensor:
    """Mean NLL of a row's tokens as training scripts have it: float32 logits of every position, pads too, shifted."""
    logits = lora(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits.float()
    shifted, labels = logits[:, :-1].contiguous(), given["input_ids"][:, 1:].contiguous()
    real = given["attention_mask"][:, 1:]
    nll = cross_entropy(shifted.view(-1, shifted.shape[-1]), labels.view(-1), reduction="none").view_as(labels)
    return (nll * real).sum(1) / real.sum(1)


def rows(device: str) -> Iterator[Row]:
    lora, given, config = model(device), batch(device), Config()
    trained = [p for p in lora.parameters() if p.requires_grad]

    def step(nll: Tensor) -> list[Tensor]:
        lora.zero_grad(set_to_none=True)
        cp_loss(nll, given["group"], given["role"], config).backward()
        return [p.grad for p in trained if p.grad is not None]

    def check(ours: list[Tensor], theirs: list[Tensor]) -> None:
        if len(ours) != len(trained):
            raise AssertionError("a parameter has no gradient")
        limit = EXACT if device == "cpu" else HALF * max(float(g.abs().max()) for g in theirs)
        off = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
        if off > limit:
            raise AssertionError(f"gradients differ by {off:.1e}, more than {limit:.1e}")

    real = float(given["attention_mask"].float().mean())
    row = compare(
        f"contrastive-perplexity step, {ROWS} rows",
        lambda: step(sequence_nll(lora, given)),
        lambda: step(plain_nll(lora, given)),
        target=0.55,
        against="full fp32 logits of padded rows",
        repeats=5,
        check=check,
        unit="x the time",
        device=device,
        note=f"vocabulary 32,000; {real:.0%} of the positions are real; gradients equal",
    )
    yield row
    yield memory_row(row, target=0.5)
