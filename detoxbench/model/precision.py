"""How exactly a model computes, measured on its products: the type of its weights does not say it.

TF32 (an environment variable or a setting of torch), the bf16 products of a CPU and autocast all round the factors of
float32 products, without a warning. They are found by multiplying, since settings differ between versions of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detoxbench.model.devices import of_inputs
from detoxbench.model.quantization import holds_packed

if TYPE_CHECKING:
    import torch
    from torch import nn

FLOAT32 = 2.0**-23
"""`spacing` of a model that computes in float32."""
NAMES = {FLOAT32: "float32", 2.0**-10: "tf32 or float16", 2.0**-7: "bfloat16"}
"""What `products` finds."""
SIDE = 128
"""Rows of the matrices that are multiplied: enough that libraries take the same routines as for a model."""


def spacing(model: nn.Module) -> float:
    """The relative distance of neighbouring numbers in the coarsest type that a model computes in. Weights in few bits
    count as bfloat16: int8 products round what they are given, and by what stands in other rows."""
    import torch

    if holds_packed(model):
        return 2.0**-7

    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max([products(of_inputs(model)), *(torch.finfo(dtype).eps for dtype in types)])


def products(device: torch.device) -> float:
    """The `spacing` that factors of float32 products keep on a device: a key of NAMES."""
    import torch

    one = torch.eye(SIDE, device=device)
    for coarse in (2.0**-7, 2.0**-10):
        x = torch.full_like(one, 1 + coarse / 4)  # a coarse type rounds it to 1
        if not torch.equal((x @ one).float(), x):
            return coarse
    return FLOAT32
