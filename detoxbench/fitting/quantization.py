"""Linear layers in four or eight bits while a LoRA on them is trained (bitsandbytes)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from detoxbench.config import Quantization
from detoxbench.lm import LanguageModel
from detoxbench.model.quantization import require_bitsandbytes

if TYPE_CHECKING:
    from torch import nn


def require_quantization(quantization: Quantization) -> None:
    """Raises DetoxbenchError when it needs bitsandbytes and that is not installed."""
    require_bitsandbytes("method.quantization", quantization)


@contextmanager
def quantized(lm: LanguageModel, quantization: Quantization) -> Iterator[None]:
    """Hold every linear layer but the head in 4 or 8 bits, and the originals in main memory."""
    require_quantization(quantization)
    if quantization == "none":
        yield
        return
    from torch import nn

    head = lm.model.get_output_embeddings()
    linear = {n: m for n, m in lm.model.named_modules() if type(m) is nn.Linear and m is not head}
    devices = {name: layer.weight.device for name, layer in linear.items()}
    mark = "is_loaded_in_4bit" if quantization == "nf4" else "is_loaded_in_8bit"  # where PEFT looks
    try:
        for name, layer in linear.items():
            lm.model.set_submodule(name, _packed(lm, layer, quantization))
            layer.cpu()
        setattr(lm.model, mark, True)
        yield
    finally:
        for name, layer in linear.items():
            lm.model.set_submodule(name, layer.to(devices[name]))


def _packed(lm: LanguageModel, layer: nn.Linear, quantization: Quantization) -> nn.Module:
    """A linear layer like `layer`, in 4 bits (nf4) or 8 (int8), where the model is."""
    import bitsandbytes as bnb
    from torch import nn

    shape, options = (layer.in_features, layer.out_features), {"bias": layer.bias is not None, "device": "cpu"}
    quantized: Any
    if quantization == "nf4":
        quantized = bnb.nn.Linear4bit(*shape, compute_dtype=lm.dtype, quant_type="nf4", **options)
        quantized.weight = bnb.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
    else:
        quantized = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, **options)
        quantized.weight = bnb.nn.Int8Params(layer.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    if layer.bias is not None:
        quantized.bias = nn.Parameter(layer.bias.data.clone(), requires_grad=False)
    packed: nn.Module = quantized.to(layer.weight.device)  # which packs the weight
    return packed
