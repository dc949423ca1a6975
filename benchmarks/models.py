"""Models of real shapes with random weights, and prompts for them: nothing has to be downloaded to measure speed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detoxbench.lm import LanguageModel

SHAPES = {
    "0.1M": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "15M": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "110M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "1B": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 22, "num_attention_heads": 16},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""Llama decoders; the head comes on top and is not tied, since a random tied one only repeats the last token."""


def random_lm(
    shape: str = "15M", vocabulary: int = 32_000, *, device: str = "cpu", dtype: str = "float32", spread: float = 4.6
) -> LanguageModel:
    """A Llama with random weights; one token a word.

    Logits have `spread` as their standard deviation: at 4.6 a nucleus of 0.9 holds about 85 of 50,257 tokens.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from detoxbench.fitting.random_state import unchanged_random_state
    from detoxbench.lm import LanguageModel

    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, max_position_embeddings=2048, tie_word_embeddings=False, **SHAPES[shape], **ids
    )
    with unchanged_random_state(), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        torch.nn.init.normal_(model.lm_head.weight, std=spread / config.hidden_size**0.5)
    words = {"<s>": 0, "</s>": 1, "<pad>": 2, **{f"w{i}": i for i in range(3, vocabulary)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
    # Hashing all of it takes a minute at 7B.
    fingerprint = f"random {shape} {vocabulary} {dtype} {spread}"
    return LanguageModel(model, tokenizer, name=f"random {shape}", fingerprint=fingerprint)


def texts(lm: LanguageModel, lengths: Sequence[int], seed: int = 0) -> list[str]:
    """Random texts of so many tokens."""
    r = random.Random(seed)
    return [" ".join(f"w{r.randrange(3, len(lm.tokenizer))}" for _ in range(n)) for n in lengths]
