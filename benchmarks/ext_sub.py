"""The Ext-Sub operation on LoRA pairs: the closed form in low rank, beside full matrices with a loop over the rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.harness import Row, compare, measured
from detoxbench.interventions.channels import LowRank
from detoxbench.methods.ext_sub import Config, combine

WIDTH, RANK, MODULES = 4096, 16, 64
"""LLaMA-7B with a LoRA of rank 16 on q_proj and v_proj of its 32 layers."""
TRIED = 4
"""Modules that the clock runs over: one costs what another does, and the plain side needs 128 MiB for each."""
EXACT = 1e-6


def adapter(seed: int) -> dict[str, LowRank]:
    noise = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=noise) / WIDTH**0.5

    return {f"module {i}": LowRank(factor(RANK, WIDTH), factor(WIDTH, RANK)) for i in range(TRIED)}


def plain(expert: dict[str, LowRank], anti: dict[str, LowRank], alpha: float) -> dict[str, LowRank]:
    """As the released code does it: whole products, the shared direction of every row, one row after another; the
    result as an adapter whose `a` is the unit matrix."""
    combined = {}
    for name in expert:
        one, two = (side[name].b @ side[name].a for side in (expert, anti))
        shared = one / one.norm(dim=1, keepdim=True) + two / two.norm(dim=1, keepdim=True)
        shared = shared / shared.norm(dim=1, keepdim=True)
        result = torch.empty_like(one)
        for i in range(len(one)):
            kept = torch.dot(two[i], shared[i]) * shared[i]
            result[i] = one[i] - alpha * (two[i] - kept)
        combined[name] = LowRank(torch.eye(one.shape[1]), result)
    return combined


def size(combined: dict[str, LowRank]) -> int:
    return sum(t.numel() * t.element_size() for w in combined.values() for t in (w.a, w.b))


def rows(device: str) -> Iterator[Row]:
    expert, anti, config = adapter(0), adapter(1), Config(alpha=1.0)
    smaller: list[float] = []

    def check(ours: dict[str, LowRank], theirs: dict[str, LowRank]) -> None:
        for name, w in ours.items():
            off = float((w.b @ w.a - theirs[name].b).abs().max())
            if off > EXACT:
                raise AssertionError(f"'{name}' differs by {off:.1e}")
        smaller.append(size(theirs) / size(ours))

    yield compare(
        f"Ext-Sub operation, d={WIDTH}, r={RANK}",
        lambda: combine(expert, anti, config)[0],
        lambda: plain(expert, anti, config.alpha),
        target=1000,
        against="full matrices with a row loop",
        check=check,
        note=f"{TRIED} of {MODULES} modules, results equal to {EXACT:g}",
    )
    yield measured(
        "Ext-Sub adapter, bytes",
        smaller,
        "x smaller",
        target=100,
        better="higher",
        against="full matrices, as released",
    )
