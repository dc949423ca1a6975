"""The next token from logits: the most probable one, or a draw by Gumbel-max from what top-k and top-p leave.

Noise is a hash of (seed, request id, sample index, step, token id), so there is no generator whose state a batch could
shift, and a token that is not looked at costs nothing.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, NamedTuple

from detoxbench.config import GenSpec

if TYPE_CHECKING:
    from torch import Tensor

CANDIDATES = (256, 1024, 4096)
"""What top-p leaves is looked for among so many most probable tokens first, then among all."""
PART = 2**21
"""Logits looked at at a time on the CPU: what is made of them stays in caches, and in memory that is at hand."""
NOISE_PART = 2**15
"""Noise values computed at a time on the CPU."""


class Candidates(NamedTuple):
    """Tokens that may be sampled, [rows, candidates], the most probable first."""

    values: Tensor
    """Logits by temperature."""
    ids: Tensor
    may: Tensor
    """May be sampled, were every logit moved by the slack ..."""
    surely: Tensor
    """... and may be in any case."""
    whole: Tensor
    """Whether they hold all that may be sampled, [rows]."""


def pick(logits: Tensor, keys: Tensor, gen: GenSpec, step: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """(tokens [rows], contested [rows]), both on the CPU, of logits [rows, vocabulary] and the rows' noise keys.

    `contested` marks rows whose token could change if every logit moved by `tolerance`: the best two lie closer than
    that, or the best one stands at the edge of what top-k and top-p leave.
    """
    import torch

    part = max(1, PART // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    found = []
    for i in range(0, len(logits), part):
        some = logits[i : i + part]
        if gen.do_sample:
            found.append(_drawn(some, keys[i : i + part], gen, step, tolerance))
        else:
            found.append(_most_probable(some, tolerance))
    tokens, contested = zip(*found, strict=True)
    return torch.cat(tokens).cpu(), torch.cat(contested).cpu()


def _most_probable(logits: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    values, ids = _top(logits, 2)
    lead, tokens = values[:, 0] - values[:, 1], ids[:, 0].clone()
    tied = lead == 0
    if bool(tied.any()):  # among equal logits the lowest token id is the rule
        tokens[tied] = logits[tied].argmax(-1)
    return tokens, lead < tolerance


def _drawn(logits: Tensor, keys: Tensor, gen: GenSpec, step: int, tolerance: float) -> tuple[Tensor, Tensor]:
    import torch

    scaled, slack = logits / gen.temperature if gen.temperature != 1 else logits, tolerance / gen.temperature
    keys = keys.to(logits.device)
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    contested = torch.empty(len(logits), dtype=torch.bool, device=logits.device)
    rows, vocabulary = torch.arange(len(logits), device=logits.device), logits.shape[1]
    probabilities = _softmax(scaled, slack) if gen.top_p < 1 and not 0 < gen.top_k < vocabulary else None
    for size in (*(size for size in CANDIDATES if size < vocabulary), vocabulary):
        found = candidates(scaled, probabilities, gen, slack, size)
        done = found.whole
        if bool(done.any()):
            every = bool(done.all())
            values, ids, may, surely, _ = found if every else (part[done] for part in found)
            last = max(2, int(may.any(0).nonzero()[-1]) + 1)  # noise is the dearest, so only for these
            values, ids, may = values[:, :last], ids[:, :last], may[:, :last]
            noisy = torch.where(may, values.double() + gumbel(keys[rows[done]], step, ids), -torch.inf)
            best = noisy.topk(min(2, noisy.shape[1]), dim=-1)
            winner = best.indices[:, :1]
            tokens[rows[done]] = ids.gather(1, winner)[:, 0]
            close = best.values[:, 0] - best.values[:, -1] < slack
            contested[rows[done]] = close | ~surely.gather(1, winner)[:, 0]
            if every:
                break
        scaled, rows = scaled[~done], rows[~done]
        probabilities = None if probabilities is None else probabilities[~done]
    return tokens, contested


def _softmax(scaled: Tensor, slack: float) -> Tensor:
    # The fused one takes half the time, and is off by up to 4e-6 at a vocabulary of 32,000 (torch 2.13, CPU).
    return scaled.softmax(-1) if slack > 1e-5 else (scaled - scaled.logsumexp(-1, keepdim=True)).exp()


def candidates(scaled: Tensor, probabilities: Tensor | None, gen: GenSpec, slack: float, size: int) -> Candidates:
    """The `size` most probable tokens, and which of them may be sampled.

    A token is in the nucleus when the tokens before it hold less than top_p (the smallest set that reaches top_p) of
    the distribution that top-k left, as in transformers. `probabilities` are those of `scaled`, needed where top-p cuts
    and top-k does not. "May" and "surely" differ by `slack` on both criteria.
    """
    import torch

    vocabulary = scaled.shape[1]
    top_k = min(gen.top_k, vocabulary) if gen.top_k else vocabulary
    if top_k == vocabulary and gen.top_p >= 1:  # nothing is cut off, so nothing needs an order
        everything = torch.ones_like(scaled, dtype=torch.bool)
        ids = torch.arange(vocabulary, device=scaled.device).expand(len(scaled), -1)
        return Candidates(scaled, ids, everything, everything, everything[:, 0])
    size = min(max(size, top_k + 1), vocabulary) if top_k < vocabulary else min(size, vocabulary)
    values, ids = _top(scaled, size)
    may = sure = torch.ones_like(values, dtype=torch.bool)
    whole = torch.full((len(scaled),), size == vocabulary, device=scaled.device)
    if top_k < vocabulary:
        last_inside, first_outside = values[:, top_k - 1 : top_k], values[:, top_k : top_k + 1]
        may, sure = values >= last_inside - slack, values > first_outside + slack
        may[:, top_k:] &= slack > 0  # without slack, equal values do not widen the set
        whole |= ~may[:, -1]
    if gen.top_p < 1:
        if probabilities is None:
            probability = (values - values[:, :top_k].logsumexp(-1, keepdim=True)).exp().double()
        else:
            probability = probabilities.gather(1, ids).double()
        before = probability.cumsum(-1) - probability
        may, sure = may & (before < gen.top_p + slack), sure & (before < gen.top_p - slack)
        whole |= before[:, -1] >= gen.top_p + slack
        may[:, 0] = sure[:, 0] = True
    return Candidates(values, ids, may, sure, whole)


def _top(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row, the largest first, and where they stand.

    In two steps, 2 to 4 times faster on a CPU where k is far below the length of a row: the k largest lie in those k
    groups whose own largest are largest (and in the few values that are in no group).
    """
    import torch

    length = x.shape[1]
    members = math.isqrt(length // k)
    if members < 4:
        if k == length:
            return x.sort(dim=-1, descending=True)[:2]
        return x.topk(k, dim=-1)[:2]
    groups = length // members
    whole = members * groups  # the member m of group g stands at m * groups + g
    largest = x[:, :whole].view(len(x), members, groups).amax(1)
    first = largest.topk(k, dim=-1, sorted=False).indices
    ids = (first[:, None] + torch.arange(0, whole, groups, device=x.device)[:, None]).flatten(1)
    ids = torch.cat([ids, torch.arange(whole, length, device=x.device).expand(len(x), -1)], dim=1)
    best = x.gather(1, ids).topk(k, dim=-1)
    return best.values, ids.gather(1, best.indices)


def noise_key(seed: int, request: str, sample: int) -> int:
    """A signed 64-bit key for one sample's noise."""
    text = f"{seed}\x00{sample}\x00{request}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def gumbel(keys: Tensor, step: int, ids: Tensor) -> Tensor:
    """Gumbel noise in float64, [rows, candidates], a pure function of (key, step, token id)."""
    import torch

    salt = ((step + 1) * 4417276706812531889 + 2**63) % 2**64 - 2**63  # wrapped, as tensors do by themselves
    noise = torch.empty(ids.shape, dtype=torch.float64, device=ids.device)
    # In place, and on the CPU in parts that stay in its cache: 7 times faster at a vocabulary of 50,257.
    part = max(1, NOISE_PART // ids.shape[1]) if ids.device.type == "cpu" else len(ids)
    for i in range(0, len(ids), part):
        key = keys[i : i + part, None]
        x = (ids[i : i + part] + 1).mul_(-7046029254386353131).add_(salt).add_(key)
        _mix(_mix(x).add_(key))
        # 52 of the 64 bits, put in the middle of their interval: uniform on (0, 1), never at its ends.
        uniform = noise[i : i + part].copy_(x.bitwise_right_shift_(12).bitwise_and_(2**52 - 1)).add_(0.5).mul_(2.0**-52)
        uniform.log_().neg_().log_().neg_()
    return noise


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014) in wrapping 64-bit arithmetic with logical shifts, in place."""
    x.bitwise_xor_((x >> 30).bitwise_and_(2**34 - 1)).mul_(-4658895280553007687)
    x.bitwise_xor_((x >> 27).bitwise_and_(2**37 - 1)).mul_(-7723592293110705685)
    return x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))
