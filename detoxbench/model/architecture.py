"""Which module of a decoder has which role, found from the structure of the model and not from its name."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.model.devices import of_inputs

if TYPE_CHECKING:
    from torch import nn

# Module paths as the families of transformers name them (Llama, Mistral, Qwen, Gemma, Phi-3, Falcon, MPT, GPT-2, GPT-J,
# GPT-Neo, GPT-NeoX, OPT, Phi). The first that exists is taken; a family that is not here fits if it uses these names.
_LAYERS = (
    "model.layers",
    "transformer.h",
    "gpt_neox.layers",
    "model.decoder.layers",
    "transformer.blocks",
    "model.language_model.layers",
)
_ATTENTION_OUT = (
    "self_attn.o_proj",
    "attn.c_proj",
    "attention.dense",
    "self_attn.out_proj",
    "self_attn.dense",
    "self_attention.dense",
    "attn.attention.out_proj",
    "attn.out_proj",
)
_MLP_DOWN = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "fc2", "mlp.fc2", "mlp.fc_out", "ffn.down_proj")
_MLP_UP = (
    "mlp.up_proj",
    "mlp.c_fc",
    "mlp.dense_h_to_4h",
    "fc1",
    "mlp.fc1",
    "mlp.fc_in",
    "ffn.up_proj",
    "mlp.gate_up_proj",
)
_MLP_GATE = "mlp.gate_proj"
_FINAL_NORM = (
    "model.norm",
    "transformer.ln_f",
    "gpt_neox.final_layer_norm",
    "model.decoder.final_layer_norm",
    "model.final_layernorm",
    "transformer.norm_f",
    "model.language_model.norm",
)
PASS_TOKENS = 16
"""Tokens of the pass that finds which modules are called."""


def without_numbers(path: str) -> str:
    """`path` with # for the numbers of layers and experts."""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1#", path)


class Architecture:
    """Names of the parts of `model`. Every part is looked up when a method asks for it, so that a model with an unknown
    part still serves every method that does not need that part. All look-ups raise DetoxbenchError."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @property
    def layers(self) -> list[str]:
        """Paths of the decoder layers, first to last."""
        path = self._first(_LAYERS, "", "decoder layers")
        return [f"{path}.{i}" for i in range(len(self.module(path)))]  # type: ignore[arg-type]

    @property
    def decoder(self) -> nn.Module:
        """What holds the layers: token ids in, the normed states of the last layer out (`last_hidden_state`)."""
        return self.module(self._first(_LAYERS, "", "decoder layers").rpartition(".")[0])

    def attention_out(self, layer: int) -> str:
        """Path of the attention's output projection; its output [batch, tokens, hidden] enters the residual stream."""
        return self._first(_ATTENTION_OUT, self.layer(layer), "attention output projection")

    def mlp_down(self, layer: int) -> str:
        """Path of the MLP's down-projection (intermediate -> hidden)."""
        return self._first(_MLP_DOWN, self.layer(layer), "MLP down-projection")

    def mlp_in(self, layer: int) -> list[str]:
        """Paths of the MLP's maps from the hidden state (hidden -> intermediate): up-projection and, in a gated MLP,
        the gate (of Phi-3, both are one map)."""
        parent = self.layer(layer)
        up = self._first(_MLP_UP, parent, "MLP up-projection")
        gate = f"{parent}.{_MLP_GATE}"
        return [up, gate] if gate in dict(self._model.named_modules()) else [up]

    @property
    def final_norm(self) -> str:
        """Path of the norm between the last layer and the language-model head."""
        return self._first(_FINAL_NORM, "", "final norm")

    @property
    def head(self) -> str:
        """Path of the language-model head; its input [batch, tokens, hidden] is the last hidden state."""
        head = self._model.get_output_embeddings()  # type: ignore[operator]
        return next(name for name, module in self._model.named_modules() if module is head)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self._text_config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: token ids go from 0 to one less."""
        return int(self._model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return int(self._text_config.num_attention_heads)

    @property
    def context(self) -> int | None:
        """Tokens that positions exist for, or None where the configuration sets no limit."""
        limit = getattr(self._text_config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def module(self, path: str) -> nn.Module:
        """The module at a dotted path."""
        try:
            return self._model.get_submodule(path)
        except AttributeError:
            raise DetoxbenchError(f"{type(self._model).__name__} has no module '{path}'") from None

    def transposed(self, path: str) -> bool:
        """Whether the weight at `path` is stored [in, out] (GPT-2's Conv1D) and not [out, in]."""
        return type(self.module(path)).__name__ == "Conv1D"

    def matrices_outside_linear_maps(self) -> dict[str, int]:
        """Parameters of two dimensions or more that belong to no linear map or embedding, with how many numbers they
        hold: experts in one tensor, routers, convolutions. Those that differ in numbers alone (layers) count as one."""
        from torch import nn

        linear, sizes = {*self.linear_maps()}, dict[str, int]()
        for path, module in self._model.named_modules():
            if path in linear or isinstance(module, nn.Embedding):
                continue
            for name, parameter in module.named_parameters(prefix=path, recurse=False):
                if parameter.dim() > 1:
                    key = without_numbers(name)
                    sizes[key] = sizes.get(key, 0) + parameter.numel()
        return sizes

    def linear_maps(self) -> list[str]:
        """Paths of all linear maps (Linear, Conv1D), the head among them."""
        from torch import nn

        return [n for n, m in self._model.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]

    def called_for_text(self, path: str) -> bool:
        """Whether the linear map at `path` is called as a module when the model reads text: it is no part of an image
        or audio tower, and no other code takes its weight and multiplies by itself.

        Found by one forward pass, when it is first needed. Modules whose paths differ in numbers alone (layers,
        experts) count as one, since few tokens do not reach every expert.
        """
        return without_numbers(path) in self._called

    @cached_property
    def _called(self) -> frozenset[str]:
        import torch

        called: set[str] = set()
        model: Any = self._model
        handles = [
            self.module(path).register_forward_pre_hook(lambda *_, path=path: called.add(without_numbers(path)))
            for path in self.linear_maps()
        ]
        ids = torch.arange(PASS_TOKENS, device=of_inputs(model))[None] % int(self._text_config.vocab_size)
        try:
            with torch.no_grad():
                model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return frozenset(called)

    @property
    def _text_config(self):  # type: ignore[no-untyped-def]
        return self._model.config.get_text_config()  # type: ignore[operator, union-attr]

    def layer(self, layer: int) -> str:
        """Path of a decoder layer; its output [batch, tokens, hidden] is the residual stream behind it."""
        layers = self.layers
        if not -len(layers) <= layer < len(layers):
            raise DetoxbenchError(f"no layer {layer}: {type(self._model).__name__} has layers 0 to {len(layers) - 1}")
        return layers[layer]

    def _first(self, candidates: tuple[str, ...], parent: str, part: str) -> str:
        for candidate in candidates:
            path = f"{parent}.{candidate}" if parent else candidate
            try:
                self._model.get_submodule(path)
            except AttributeError:
                continue
            return path
        raise DetoxbenchError(
            f"cannot find the {part} of {type(self._model).__name__}"
            f"{f' in {parent}' if parent else ''}: none of {', '.join(candidates)} is there"
        )
