"""Tiny random models of every family, with a character tokenizer, to try a method on."""

from __future__ import annotations

import string
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import dtype as Dtype
    from transformers import PreTrainedTokenizerFast

    from detoxbench.lm import LanguageModel

CHARACTERS = string.ascii_lowercase + " .,!?:'"
CHAT = "{% for m in messages %}u:{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"

COMMON = {"vocab_size": len(CHARACTERS) + 3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": 16},
    "qwen2": {k: v for k, v in _LLAMA_LIKE.items() if k != "head_dim"},
    "qwen3": _LLAMA_LIKE,
    "gemma": _LLAMA_LIKE,
    "gemma2": {**_LLAMA_LIKE, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "phi": {k: v for k, v in _LLAMA_LIKE.items() if k != "head_dim"},
    "phi3": {k: v for k, v in _LLAMA_LIKE.items() if k != "head_dim"},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
    },
}
"""Family (`model_type` of transformers) -> what its configuration has beside `COMMON`: three layers, four heads."""


@cache
def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a character, `<s>` in front; with a chat template unless `chat` is False."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{c: i + 3 for i, c in enumerate(CHARACTERS)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
    if chat:
        fast.chat_template = CHAT
    return fast


def tiny(family: str = "llama", *, seed: int = 0, dtype: Dtype | None = None, **changes: Any) -> LanguageModel:
    """A random model of a family, with weights spread wide, so that its texts differ.

    Equal seeds make equal models. `changes` replace fields of the family's configuration; `dtype` is float32 unless
    given. The global random generators stay as they are.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from detoxbench.lm import LanguageModel

    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype or torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3 if "embed" in name or "wte" in name else 0.15)
    return LanguageModel(model, tokenizer(), name=f"tiny-{family}")
