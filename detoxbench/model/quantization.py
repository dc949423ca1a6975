"""Weights in few bits (bitsandbytes): what is needed for it, how it is asked for, and which parameters are held so."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from detoxbench.config import Quantization
from detoxbench.errors import DetoxbenchError

if TYPE_CHECKING:
    from torch import Tensor, nn


def require_bitsandbytes(key: str, quantization: Quantization) -> None:
    """Raises DetoxbenchError where a quantization is asked for by `key` and bitsandbytes is not installed."""
    if quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise DetoxbenchError(
            f"{key}={quantization} needs bitsandbytes: pip install 'detoxbench[bitsandbytes]', or set it to none"
        )


def loading_arguments(quantization: Quantization, dtype: Any) -> dict[str, Any]:
    """Arguments of transformers' `from_pretrained`; products are made in `dtype`. The head is left as it is."""
    from transformers import BitsAndBytesConfig

    if quantization == "none":
        return {}
    if quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": settings}


def packed(parameter: Tensor) -> str:
    """How a parameter is quantised or packed, in words; "" where its numbers are the weights."""
    import torch

    kind = str(parameter.dtype).removeprefix("torch.")
    if type(parameter) not in (torch.Tensor, torch.nn.Parameter):
        return f"{type(parameter).__name__}, {kind}"
    return "" if parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1 else kind


def holds_packed(model: nn.Module) -> bool:
    """Whether a parameter of the model is quantised or packed."""
    return any(packed(parameter) for parameter in model.parameters())
