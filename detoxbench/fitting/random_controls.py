"""Changes of a given size in a random direction: with them it shows what the direction of a method's change does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from detoxbench.interventions.channels import Dense, Hook, LowRank, Weight

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A Gaussian tensor of the same shape, type and norm; one of whole numbers as it is."""
    if not tensor.dtype.is_floating_point:
        return tensor
    return _of_norm(_gaussian(tensor, generator), float(tensor.double().norm())).to(tensor.dtype)


def random_hook(hook: Hook, generator: torch.Generator) -> Hook:
    """The same function at the same place with the same settings, each of its tensors in a random direction."""
    import dataclasses

    tensors: Mapping[str, Tensor] = {name: random_like(t, generator) for name, t in sorted(hook.tensors.items())}
    return dataclasses.replace(hook, tensors=tensors)


def random_weight(weight: Weight, generator: torch.Generator) -> Weight:
    """A change of the same parameter with the same Frobenius norm, and of a low-rank one with the same rank."""
    import dataclasses

    delta = weight.delta
    if isinstance(delta, Dense):
        return dataclasses.replace(weight, delta=Dense(random_like(delta.delta, generator)))
    a, b = _gaussian(delta.a, generator), _gaussian(delta.b, generator)  # [rank, in], [out, rank]
    wanted, drawn = (
        float(low.double().row_dots(low.double()).sum().clamp(min=0).sqrt()) for low in (delta, LowRank(a, b))
    )
    b = b * (wanted / drawn) if drawn else b
    return dataclasses.replace(weight, delta=LowRank(a.to(delta.a.dtype), b.to(delta.b.dtype)))


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    import torch

    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def _of_norm(drawn: Tensor, norm: float) -> Tensor:
    length = float(drawn.norm())
    return drawn * (norm / length) if length else drawn
