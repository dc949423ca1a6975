"""Changes of one matrix or vector: dense, or as the product of two factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """A delta of the parameter's own shape. Where a linear map has no bias, a delta of its bias creates one."""

    delta: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By the name that each is saved under."""
        return {"delta": self.delta}

    def cpu(self) -> Dense:
        """The same on the CPU."""
        return Dense(self.delta.cpu())


@dataclass(frozen=True)
class LowRank:
    """A delta `b @ a` ([out, rank] times [rank, in]) with any scaling folded in, whichever way the weight is stored."""

    a: Tensor
    b: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By the name that each is saved under."""
        return {"a": self.a, "b": self.b}

    def __add__(self, other: LowRank) -> LowRank:
        """The sum of both changes, of the sum of their ranks."""
        import torch

        return LowRank(torch.cat([self.a, other.a]), torch.cat([self.b, other.b], dim=1))

    def scaled(self, rows: Tensor | float) -> LowRank:
        """Every row of the product times its own factor, [out], or all times one."""
        factors = rows if isinstance(rows, float) else rows.float()[:, None]
        return LowRank(self.a, (self.b * factors).to(self.b.dtype))

    def cpu(self) -> LowRank:
        """The same on the CPU."""
        return LowRank(self.a.cpu(), self.b.cpu())

    def double(self) -> LowRank:
        """The same in float64."""
        return LowRank(self.a.double(), self.b.double())

    def transposed(self) -> LowRank:
        """The change of the transposed matrix."""
        return LowRank(self.b.T, self.a.T)

    def row_dots(self, other: LowRank) -> Tensor:
        """Dot products of the rows of both products, [out]: b1 (a1 a2^T) b2^T row by row, no product formed."""
        # With a transposed view instead of its copy this small product takes ten times as long on two cores (MKL).
        return ((self.b @ (self.a @ other.a.T.contiguous())) * other.b).sum(1)


Delta = Dense | LowRank
