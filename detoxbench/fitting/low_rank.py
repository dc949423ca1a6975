"""A matrix as a product of two thin ones, where it is one to the last digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detoxbench.interventions.channels import LowRank
from detoxbench.model.devices import double

if TYPE_CHECKING:
    from torch import Tensor

RANKS = (8, 32, 128, 512)
"""Ranks that are tried, one after the other."""
OVERSAMPLED = 8


def low_rank(delta: Tensor, tolerance: float) -> LowRank | None:
    """`delta` [out, in] as b [out, rank] times a [rank, in], both float32 on the CPU, of the smallest rank at which no
    number is off by more than `tolerance`; None where two factors would hold more than half of its numbers.

    A random projection finds the span of the rows (Halko, Martinsson and Tropp 2011, algorithm 4.1), so that nothing is
    done to the whole matrix but products with thin ones.
    """
    import torch

    delta = double(delta)  # float32 would lose the last digits
    out, into = delta.shape
    most = out * into // (2 * (out + into))  # the rank at which the factors hold half of its numbers
    generator = torch.Generator().manual_seed(0)
    for rank in (r for r in RANKS if r // 4 < most):
        columns = min(rank + OVERSAMPLED, out, into)
        # 1. An orthonormal basis of the span: [out, columns].
        drawn = torch.randn(into, columns, generator=generator, dtype=torch.float64).to(delta.device)
        basis = torch.linalg.qr(delta @ drawn).Q
        # 2. The matrix in this basis, [columns, in], and its singular vectors: [columns, columns], [columns], ...
        u, s, v = torch.linalg.svd(basis.T @ delta, full_matrices=False)
        b, a = ((basis @ u) * s).float(), v.float()
        # 3. As few of them as restore it.
        if not _restores(delta, b, a, columns, tolerance):
            continue
        fewest, enough = 0, columns
        while fewest < enough:
            middle = (fewest + enough) // 2
            fewest, enough = (fewest, middle) if _restores(delta, b, a, middle, tolerance) else (middle + 1, enough)
        return LowRank(a[:enough].cpu().contiguous(), b[:, :enough].cpu().contiguous()) if enough <= most else None
    return None


def _restores(delta: Tensor, b: Tensor, a: Tensor, rank: int, tolerance: float) -> bool:
    return float((delta - b[:, :rank].double() @ a[:rank].double()).abs().max()) <= tolerance
