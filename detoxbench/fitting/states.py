"""Losses on hidden states: texts to change and texts to keep, read side by side."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detoxbench.data.examples import Instruction
from detoxbench.fitting.activations import recorded
from detoxbench.fitting.responses import Response, collate, encode
from detoxbench.fitting.token_losses import Batch
from detoxbench.lm import LanguageModel

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[Response, Response]
"""A text to change, and one to keep."""


def encoded_texts(lm: LanguageModel, examples: Sequence[Instruction], max_length: int) -> list[Response]:
    """Prompts with their responses as token ids, without an end token."""
    return [encode(lm, example, max_length, end=False) for example in examples]


def paired(change: Sequence[Response], keep: Sequence[Response], count: int, seed: int) -> list[Pair]:
    """So many pairs: both kinds shuffled, and taken in turn again where there are fewer. [] where one kind is empty."""
    if not change or not keep:
        return []
    generator = random.Random(seed)
    orders = [generator.sample(range(len(texts)), len(texts)) for texts in (change, keep)]
    return [tuple(texts[o[i % len(o)]] for texts, o in zip((change, keep), orders, strict=True)) for i in range(count)]  # type: ignore[misc]


def collate_pairs(pairs: Sequence[Pair], pad: int) -> Batch:
    """input_ids and attention_mask of the texts to change, then of those to keep, [2 pairs, longest]."""
    return collate([response for side in zip(*pairs, strict=True) for response in side], pad)


def halves(batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(texts to change, texts to keep) of such a batch: input_ids and attention_mask, each [pairs, longest]."""
    middle = len(batch["input_ids"]) // 2
    names = ("input_ids", "attention_mask")
    return {name: batch[name][:middle] for name in names}, {name: batch[name][middle:] for name in names}


def states(lm: LanguageModel, texts: Batch) -> Tensor:
    """The hidden states of real tokens, [layers, tokens, width], in float32: those behind each layer, the last one
    behind the final norm (`hidden_states` of transformers without the embedding's)."""
    import torch

    sites = [*lm.architecture.layers[:-1], lm.architecture.final_norm]
    decoder: Any = lm.architecture.decoder
    with recorded(lm, sites) as seen:  # output_hidden_states=True would leave hooks of the library on the model
        decoder(**texts, use_cache=False)
    real = texts["attention_mask"].bool()
    return torch.stack([seen[site][real].float() for site in sites])
