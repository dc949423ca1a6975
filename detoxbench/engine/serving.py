"""Can the engine serve this model? It is tested on a few tokens, because a list of families would soon be outdated.

A cache that is dropped or wrongly reordered, padding that is seen, positions that are not passed on: with each of these
faults the texts read well, but they are not this model's. So before a model is used, a few sequences are read as the
engine reads them (beginnings shared, padded, spread, rows leaving in between), and as a whole without a cache or a
neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from detoxbench.engine.forward import next_logits
from detoxbench.engine.generation import _Batch, _prefill, _Row
from detoxbench.errors import DetoxbenchError
from detoxbench.records import Request
from detoxbench.text import first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from detoxbench.model.model import Model

READ, STEPS = 40, 3
"""Tokens read before the cached steps, and how many steps."""
ROUNDING = 1e-3
"""By how much rounding may change a float32 logit, as a share of the logits' range."""
UNITS, UNITS_AT_MOST = 2, 16
"""The same in lower precision: units in the last place of the largest logit, for the root mean square over the
vocabulary (single logits differ by more). Where batches without a cache differ by more (routers of experts), twice that
difference is allowed, up to the second number."""
TEXT = "The quick brown fox jumps over the lazy dog, while five boxing wizards pack my box with a dozen liquor jugs. "

_served: set[tuple[object, ...]] = set()


class _Comparison(NamedTuple):
    """Next-token logits of one row after one step, [vocabulary], by cached steps and without a cache."""

    row: str
    cached: Tensor
    whole: Tensor


def require_served(lm: Model) -> None:
    """Raises DetoxbenchError for a model whose cached steps are not what it computes without a cache.

    Nothing may be in force on `lm`. It takes about a dozen forward passes of at most 43 tokens, once for each
    configuration, type and device: the code is tested, not the weights.
    """
    import transformers

    key = (type(lm.model), lm.model.config.to_json_string(), lm.dtype, lm.device.type)
    if key in _served:
        return
    try:
        # Where experts are routed, a near-tie may fall the other way by rounding; it does not in other tokens as well.
        fault = _fault(lm, 0) and _fault(lm, 1)
    except Exception as error:  # of every kind: a family may fail anywhere
        fault = f"reading {READ} tokens fails ({first_line(error)})"
    if fault is None:
        return  # NaN says nothing of the family; the generation names the request and the token
    if fault:
        raise DetoxbenchError(
            f"the model '{lm.name}' ({type(lm.model).__name__}, {str(lm.dtype)[6:]}) cannot be generated from with "
            f"transformers {transformers.__version__}: {fault}; name another model"
        )
    _served.add(key)


def _fault(lm: Model, begin: int) -> str | None:
    """What is wrong with the logits of sequences from the `begin`-th token on; empty if nothing is, None for a model
    that gives NaN without a cache as well."""
    import torch

    with torch.inference_mode():
        comparisons, noise = _compared(lm, begin)
    if any(whole.isnan().any() for _, _, whole in comparisons):
        return None
    for row, cached, whole in comparisons:
        finite = whole.isfinite()
        if not torch.equal(finite, cached.isfinite()):
            return f"next-token logits of cached steps are not finite in a row that is {row}"
        apart = _apart(cached[finite], whole[finite], lm.dtype)
        allowed = _allowed(whole[finite], lm.dtype, noise)
        if apart > allowed:
            return (
                f"next-token logits of cached steps are off by {apart:.2g} in a row that is {row} "
                f"(rounding is at most {allowed:.2g})"
            )
    return ""


def _compared(lm: Model, begin: int) -> tuple[list[_Comparison], float]:
    """All rows after all steps, and by how much the logits of a row differ in a batch without a cache or padding."""
    import torch

    read = min(READ, (lm.context or READ + STEPS) - STEPS)
    stream = _tokens(lm, begin, 3 * READ)
    shared, rest, steps = stream[: read - 4], iter(stream[read:]), stream[-STEPS:]
    one, other, shorter = ([*shared, *(next(rest) for _ in range(n))] for n in (4, 4, 2))
    padded = [next(rest) for _ in range(2 * read // 3)]
    whole = {tuple(ids): _whole(lm, [ids + steps])[0] for ids in (one, other, shorter, padded)}
    # Rows that share their beginning, one that is twice there, and one that is padded; two leave and one moves.
    batch, order = [one, padded, other, shorter, one], [4, 3, 1, 0]
    comparisons = [
        _Comparison("padded" if len(ids) < read else "not padded", logits, whole[tuple(ids)][step])
        for ids, step, logits in (*_cached(lm, batch, steps, order), *_cached(lm, [padded], steps, [0]))
    ]
    if lm.dtype == torch.float32:
        return comparisons, 0.0
    pairs = zip(_whole(lm, [one + steps, other + steps])[0], whole[tuple(one)], strict=True)
    return comparisons, max(_apart(together, alone, lm.dtype) for together, alone in pairs)


def _cached(
    lm: Model, prompts: list[list[int]], steps: list[int], order: list[int]
) -> Iterator[tuple[list[int], int, Tensor]]:
    """Read `prompts` as the engine does and go on with `steps`, after the first in this `order` of rows: for every row
    its prompt, the step and the logits [vocabulary]."""
    import torch

    requests = [Request(id=str(i), prompt="", record=str(i), kind="prompt") for i in range(len(prompts))]
    rows = [_Row(request, 0, {0: ids}, 0, 0) for request, ids in zip(requests, prompts, strict=True)]
    first, cache, mask = _prefill(lm, _Batch.of(lm, rows), len(steps))
    logits = first.logits.float()
    read = mask.shape[1] - len(steps)
    for step in range(len(steps) + 1):
        yield from ((ids, step, row) for ids, row in zip(prompts, logits, strict=True))
        if step == len(steps):
            return
        if step == 1:
            stay = torch.tensor(order, device=lm.device)  # [rows that stay]
            cache.select(stay)
            prompts, mask = [prompts[i] for i in order], mask[stay]
        ids = torch.full((len(prompts), 1), steps[step], device=lm.device)
        logits = next_logits(lm.model, ids, mask[:, : read + step + 1], cache)[:, -1].float()


def _whole(lm: Model, sequences: list[list[int]]) -> Tensor:
    """Logits after the prompt and after every step, without padding or cache: [sequences, steps + 1, vocabulary]."""
    import torch

    ids = torch.tensor(sequences, device=lm.device)
    return next_logits(lm.model, ids, torch.ones_like(ids), last=STEPS + 1).float()


def _apart(one: Tensor, other: Tensor, dtype: torch.dtype) -> float:
    """How far logits are apart: the largest difference in float32, the root mean square in lower precision."""
    import torch

    difference = (one - other).nan_to_num(0, 0, 0)  # tokens that are forbidden are at -inf in both
    return float(difference.abs().max() if dtype == torch.float32 else difference.square().mean().sqrt())


def _allowed(logits: Tensor, dtype: torch.dtype, noise: float) -> float:
    """By how much logits may be off."""
    import torch

    if dtype == torch.float32:
        return ROUNDING * float(logits.max() - logits.min())
    largest = float(logits.abs().max())
    unit = torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest else 0.0
    return min(max(UNITS * unit, 2 * noise), UNITS_AT_MOST * unit)


def _tokens(lm: Model, begin: int, count: int) -> list[int]:
    """`count` ordinary tokens of the model, from the `begin`-th of a text that comes again and again."""
    special = set(lm.tokenizer.all_special_ids)
    ids = [i for i in lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"] if i not in special]
    return [int(ids[(begin + i) % len(ids)]) for i in range(count)]
