"""A model whose down-projections stand for those of quantisation libraries, which have no numbers that are weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear

from detoxbench.lm import LanguageModel
from tests.support.tiny import tiny


class Packed(torch.Tensor):
    """Stands for the tensor classes of quantisation libraries."""


class Int8Linear(nn.Linear):
    """Holds int8 numbers and computes in float."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight.view(self.out_features, self.in_features).to(x.dtype) / 64)


def quantised(kind: str = "int8") -> LanguageModel:
    """Its weights are of a type of torch, of a class of their own ("packed"), or int8 in one column, as nf4 is held
    ("column")."""
    lm = tiny(dtype=torch.bfloat16)
    for layer in lm.model.model.layers:
        old = layer.mlp.down_proj
        layer.mlp.down_proj = new = Int8Linear(old.in_features, old.out_features, bias=False)
        values = old.weight.detach()
        if kind == "packed":
            packed = values.as_subclass(Packed)
        else:
            packed = (values * 64).round().clamp(-100, 100).to(torch.int8 if kind == "column" else getattr(torch, kind))
            packed = packed.view(-1, 1) if kind == "column" else packed
        new.weight = nn.Parameter(packed, requires_grad=False)
    return lm
