"""Tiny random models, as `detoxbench check` tries methods on, and whether they are as they were."""

from pathlib import Path

import pytest
import torch

from detoxbench.authoring.tiny_models import CHARACTERS as CHARACTERS
from detoxbench.authoring.tiny_models import FAMILIES as FAMILIES
from detoxbench.authoring.tiny_models import tiny as tiny
from detoxbench.authoring.tiny_models import tokenizer as tokenizer
from detoxbench.lm import LanguageModel

UNLIKE = ("llama", "gpt2", "opt", "gpt_neox", "gemma2")
"""Families that differ in what our code reads: rotary, learned and shifted positions, transposed and fused weights,
parallel blocks, soft caps, a sliding window. `make test` tries these, `make test-slow` the rest."""


def _families(fast: tuple[str, ...]) -> list[object]:
    """Every family as a parameter; those that are not `fast` in `make test-slow` alone."""
    return [pytest.param(f, id=f, marks=[] if f in fast else pytest.mark.slow) for f in FAMILIES]


EVERY_FAMILY = _families(UNLIKE)
METHOD_FAMILIES = _families(("llama", "gpt2"))
"""For what a method computes with the engine's help, which is tried on more families itself."""


def write(lm: LanguageModel, folder: Path) -> Path:
    """The model and its tokenizer as a checkpoint in a folder, which is given back."""
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def state(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """A copy of everything that an intervention must leave bit for bit as it was."""
    return {k: v.clone() for k, v in lm.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def logits_of(lm: LanguageModel, text: str) -> torch.Tensor:
    """Logits of every position of a text under what is in force, [1, tokens, vocabulary]."""
    with torch.inference_mode():
        return lm.model(torch.tensor([lm.tokens(text)])).logits
