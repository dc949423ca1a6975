"""The next token from logits: the most probable one, or a draw by Gumbel-max from what top-k and top-p leave.

Noise is a hash of (seed, request id, sample index, step, token id), so there is no generator whose state a batch could
shift, and noise is computed only for tokens that may be chosen.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Literal, NamedTuple

from detoxbench.config import GenSpec
from detoxbench.model.devices import running_sum, sent, with_float64

if TYPE_CHECKING:
    from torch import Tensor

CANDIDATES = (256, 1024, 4096)
"""What top-p leaves is looked for among so many most probable tokens first, then among all."""
PART = 2**21
"""Logits that are processed at a time on the CPU, so that what is computed from them stays in its caches."""
NOISE_PART = 2**15
"""Noise values computed at a time on the CPU."""
NO_TOKEN = -1
"""Stands for the token of a row whose largest logit is NaN or infinite."""
SUM_ERROR = 1e-4
"""Largest error of a sum of float32 probabilities. Measured: 5e-5 by the fused softmax of 256,000, 3e-7 by `mass`."""


class Near(NamedTuple):
    """Logits that are equal, or closer than this, could change their order by rounding."""

    absolute: float
    relative: float
    """Units in the last place, as the spacing of numbers between 1 and 2."""
    temperature: float = 1.0

    def of(self, scaled: Tensor) -> Tensor:
        """The distance at these logits, which are divided by the temperature (float32)."""
        import torch

        # Sign and mantissa masked: the power of two below a number, by which its type's spacing grows.
        logits = scaled if self.temperature == 1 else scaled * self.temperature
        magnitude = (logits.view(torch.int32) & 0x7F800000).view(torch.float32)
        distance = self.absolute + self.relative * magnitude
        return distance if self.temperature == 1 else distance / self.temperature


class Candidates(NamedTuple):
    """Tokens that may be sampled, [rows, candidates], the most probable first, of equal ones the lower id."""

    values: Tensor
    """Logits by temperature."""
    ids: Tensor
    inside: Tensor
    """What top-k and top-p leave: drawn from these."""
    may: Tensor
    """Would be inside if near logits changed places ..."""
    surely: Tensor
    """... and are in any case."""
    whole: Tensor
    """Whether they hold all that may be inside, [rows]."""
    mass: Tensor | None = None
    """The sum of the exponentials of all logits less the largest, [rows, 1], where top-p cuts and top-k does not."""


def pick(
    logits: Tensor, keys: Tensor, gen: GenSpec, step: int, tolerance: float, relative: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(tokens [rows], near_ties [rows]), both on the CPU, of logits [rows, vocabulary] and the rows' noise keys.

    A row's token depends on its own logits and key alone. Ties go to the lower token id: at the edge of top-k and
    top-p, among the most probable, among equal noisy scores. `near_ties` marks rows whose token could be another one
    if near logits changed places: the best two are near, or the best one is near to the edge of what top-k and top-p
    leave. Near is equal, or closer than `tolerance` and a unit in the last place of numbers whose spacing at 1 is
    `relative`. Tokens that are no near-tie do not depend on the tolerance. A row without a token gets `NO_TOKEN`.
    """
    import torch

    logits, near = with_float64(logits.float()), Near(tolerance, relative)  # for the noise and the nucleus
    part = max(1, PART // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    parts = []
    for i in range(0, len(logits), part):
        some = logits[i : i + part]
        if gen.do_sample:
            parts.append(_drawn(some, keys[i : i + part], gen, step, near))
        else:
            parts.append(_most_probable(some, near))
    tokens, near_ties = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    largest = logits.amax(-1) / gen.temperature if gen.do_sample else logits.amax(-1)
    tokens = tokens.where(largest.abs() < math.inf, NO_TOKEN)  # false for NaN, too
    tokens, near_ties = torch.stack([tokens, near_ties.long()]).cpu().unbind()  # at once: a device is waited for once
    return tokens, near_ties.bool()


def _most_probable(logits: Tensor, near: Near) -> tuple[Tensor, Tensor]:
    if logits.device.type != "cpu":  # two kernels; what is faster on a CPU takes twenty, and waits for the device
        values, tokens = logits.topk(2, dim=-1).values, logits.argmax(-1)
        return tokens, _close(values, values, near)
    values, ids = _top(logits, 2)
    tokens = ids[:, 0].clone()
    tied = values[:, 0] == values[:, 1]
    if bool(tied.any()):  # there may be more of them than two
        tokens[tied] = logits[tied].argmax(-1)
    return tokens, _close(values, values, near)


def _drawn(logits: Tensor, keys: Tensor, gen: GenSpec, step: int, near: Near) -> tuple[Tensor, Tensor]:
    import torch

    if gen.temperature != 1:
        logits, near = logits / gen.temperature, near._replace(temperature=gen.temperature)
    keys, vocabulary = sent(keys, logits.device), logits.shape[1]
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    near_ties = torch.empty(len(logits), dtype=torch.bool, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    whole_mass: Tensor | None = None
    for size in (*(size for size in CANDIDATES if size < vocabulary), vocabulary):
        ranked = candidates(logits, gen, near, size, whole_mass)
        done, left = _by_whole(ranked.whole)
        if len(done) == len(tokens):  # as a rule, at the first size
            return _noisiest(ranked, keys, step, near)
        if len(done):
            of_done = Candidates(*(part[done] for part in ranked[:6]))
            tokens[rows[done]], near_ties[rows[done]] = _noisiest(of_done, keys[rows[done]], step, near)
        if not len(left):
            break
        logits, rows = logits[left], rows[left]
        whole_mass = None if ranked.mass is None else ranked.mass[left]
    return tokens, near_ties


def _by_whole(whole: Tensor) -> tuple[Tensor, Tensor]:
    """The rows, by index and in their order, that are `whole`, and the others. A device is waited for once."""
    order = whole.logical_not().long().argsort(stable=True)
    count = int(whole.sum())
    return order[:count], order[count:]


def nucleus(logits: Tensor, top_p: float, near: Near, which: Literal["inside", "may", "surely"]) -> Tensor:
    """Which tokens top-p leaves of logits [rows, vocabulary], [rows, vocabulary] of bool: those inside; or those that
    may be inside, or surely are, if near logits changed places."""
    import torch

    gen, vocabulary, device = GenSpec(do_sample=True, top_p=top_p), logits.shape[1], logits.device
    logits = with_float64(logits)
    kept = torch.zeros_like(logits, dtype=torch.bool)
    rows = torch.arange(len(logits), device=logits.device)
    for size in (*(size for size in CANDIDATES if size < vocabulary), vocabulary):
        ranked = candidates(logits[rows], gen, near, size)
        done, left = _by_whole(ranked.whole)
        kept[rows[done]] = kept[rows[done]].scatter(1, ranked.ids[done], getattr(ranked, which)[done])
        rows = rows[left]
        if not len(rows):
            break
    return kept.to(device)


def _noisiest(ranked: Candidates, keys: Tensor, step: int, near: Near) -> tuple[Tensor, Tensor]:
    """The tokens drawn, and whether they are near-ties."""
    import torch

    last = ranked.may.shape[1]
    if ranked.may.device.type == "cpu" or last > CANDIDATES[-1]:  # noise costs most, but on a device less than waiting
        last = max(2, int(ranked.may.sum(-1).max()))
    values, ids, inside, may, surely = (part[:, :last] for part in ranked[:5])
    noisy = values.double() + gumbel(keys, step, ids)
    if ranked.inside is ranked.may:  # nothing is cut off: columns are ids
        tokens = noisy.argmax(-1)  # of equal ones the first
    else:
        drawn = noisy.masked_fill(~inside, -torch.inf)
        tokens = torch.where(drawn == drawn.amax(-1, keepdim=True), ids, torch.iinfo(ids.dtype).max).amin(-1)
        noisy.masked_fill_(~may, -torch.inf)
    best = noisy.topk(2, dim=-1)
    close = _close(best.values, values.gather(1, best.indices), near)
    return tokens, close | ~surely.gather(1, best.indices[:, :1])[:, 0]


def _close(scores: Tensor, logits: Tensor, near: Near) -> Tensor:
    """Whether the first of two scores leads by less than rounding of their logits (both [rows, 2]) could move."""
    first, second = scores.unbind(-1)
    return (second > -math.inf) & ((first == second) | (first - second < near.of(logits).amax(-1)))


def mass(logits: Tensor, first: Tensor, fast: bool) -> Tensor:
    """The sum of the exponentials of logits less the largest one, which stands at `first`, [rows, 1] in float64.

    A fused softmax takes three quarters of the time on a CPU and is less exact (`SUM_ERROR`).
    """
    if fast:
        return logits.softmax(-1).gather(1, first).reciprocal_().double()
    return (logits - logits.gather(1, first)).exp_().sum(-1, keepdim=True).double()


def candidates(logits: Tensor, gen: GenSpec, near: Near, size: int, whole_mass: Tensor | None = None) -> Candidates:
    """The `size` most probable tokens, and which of them may be sampled; logits are divided by the temperature.

    A token is in the nucleus when the tokens before it hold less than top_p (the smallest set that reaches top_p) of
    the distribution that top-k left, as in transformers. `whole_mass` is `Candidates.mass`, where it is known. A logit
    of -inf is no candidate.
    """
    import torch

    vocabulary = logits.shape[1]
    top_k = min(gen.top_k, vocabulary) if gen.top_k else vocabulary
    if top_k == vocabulary and gen.top_p >= 1:  # nothing is cut off, so nothing needs an order
        everything = torch.ones_like(logits, dtype=torch.bool)
        ids = torch.arange(vocabulary, device=logits.device).expand(len(logits), -1)
        return Candidates(logits, ids, everything, everything, everything, everything[:, 0])
    values, ids = _top(logits, min(max(size, top_k + 1) if top_k < vocabulary else size, vocabulary))
    column = torch.arange(values.shape[1], device=logits.device)
    possible = values > -torch.inf
    left = inner = inside = outer = possible & (column < top_k)
    if gen.top_p < 1:
        weights = (values - values[:, :1]).exp().double()
        if top_k == vocabulary and whole_mass is None:
            # With a tolerance, tokens that depend on its last digits are near-ties and drawn again without one.
            whole_mass = mass(logits, ids[:, :1], fast=near.absolute > 0)
        held = weights[:, :top_k].sum(-1, keepdim=True) if whole_mass is None else whole_mass
        before = (running_sum(weights) - weights) / held
        # If two groups of logits move apart by d, the odds of their masses change by the factor exp(d).
        margin = near.of(values[:, :1]) * gen.top_p * (1 - gen.top_p) + SUM_ERROR
        first = column == 0
        inner, inside, outer = (left & (before < gen.top_p + m) | first for m in (-margin, 0.0, margin))
    last_inside = values.gather(1, outer.sum(-1, keepdim=True).clamp(min=1) - 1)
    first_outside = torch.nn.functional.pad(values, (0, 1), value=-torch.inf).gather(1, inner.sum(-1, keepdim=True))
    may = possible & ((values > last_inside - near.of(last_inside)) | (values == last_inside))
    surely = (values > first_outside) & (values - near.of(values) >= first_outside)
    # Of the tokens that equal the last candidate some may be missing, so that it has to be outside itself.
    whole = ~may[:, -1] if values.shape[1] < vocabulary else torch.ones_like(may[:, -1])
    return Candidates(values, ids, inside, may, surely, whole, whole_mass)


def _top(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row of float32, and where they stand: the largest first, of equal ones the first.

    Among values that equal the k-th, any may be given. The k largest lie in those k groups
    whose own largest are largest (and in the few values that are in no group): looking only there is 2 to 4 times
    faster on a CPU where k is far below the length of a row.
    """
    import torch

    length = x.shape[1]
    ids = torch.arange(length, device=x.device).expand(len(x), -1)
    members = math.isqrt(length // k)
    if members >= 4:
        groups = length // members
        whole = members * groups  # the member m of group g stands at m * groups + g
        largest = x[:, :whole].view(len(x), members, groups).amax(1)
        first = largest.topk(k, dim=-1, sorted=False).indices
        best_ids = (first[:, None] + torch.arange(0, whole, groups, device=x.device)[:, None]).flatten(1)
        ids = torch.cat([best_ids, ids[:, whole:]], dim=1)
        x = x.gather(1, ids)
    # Integers without equals, in the order of (value, -id): a float's bits are in its order, but for the sign's.
    bits = (x + 0.0).view(torch.int32)  # makes 0.0 of -0.0
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long().mul_(2**32).sub_(ids)
    order = keys.argsort(-1, descending=True) if k == x.shape[1] else keys.topk(k, dim=-1).indices
    return x.gather(1, order), ids.gather(1, order)


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
