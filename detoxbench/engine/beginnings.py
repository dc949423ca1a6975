"""Which prompts of a batch are the same, and which begin alike, so that what they share is read once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

WORTH_SHARING = 0.5
"""Beginnings that prompts share are read only once where at most this share of all tokens is then read."""
Prompt = tuple[tuple[int, int], tuple[int, ...]]
"""(which changes are in force, token ids) of a stream's prompt: streams that agree in both may share a cache."""


def distinct(prompts: Sequence[Prompt], beside: Mapping[int, Sequence[int]]) -> list[int]:
    """The number of each stream's prompt among the distinct ones, [streams]. Rows that hooks compare (`beside`, as
    `Streams.beside`) have one in common only where all that stands beside them is equal, too."""
    keys: list[tuple[Prompt, ...]] = [(prompt,) for prompt in prompts]
    for own, *others in zip(*beside.values(), strict=True):
        keys[own] = (prompts[own], *(prompts[k] for k in others))
    numbers: dict[tuple[Prompt, ...], int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def beginnings(prompts: Sequence[Prompt]) -> tuple[list[int], list[int]]:
    """For each prompt the first one, by index, of those that it shares its beginning with, and how many tokens of that
    beginning are read once for all of them, both [prompts]. All are 0 where too little would be saved."""
    first, shared = _sharing(prompts)
    lengths = [len(prompt) for _, prompt in prompts]
    # 1. What is left is equally long for all, and at least one token, which the logits come from.
    left = max(n - min(shared[f], n - 1) for n, f in zip(lengths, first, strict=True))
    begun = [max(0, n - left) for n in lengths]
    # 2. The tokens that are then read, padding too, against those of the prompts read whole.
    tokens = len(set(first)) * max(begun) + len(prompts) * left
    saves = tokens <= WORTH_SHARING * len(prompts) * max(lengths)
    return first, begun if saves else [0] * len(prompts)


def _sharing(prompts: Sequence[Prompt]) -> tuple[list[int], list[int]]:
    """Groups of prompts that begin alike, each for at least half of the longer one of two neighbours in sorted order:
    for each prompt the first of its group, by index, and at this index how many tokens all of the group share."""
    first, shared = list(range(len(prompts))), [len(prompt) for _, prompt in prompts]
    order = sorted(first, key=lambda i: prompts[i])
    for before, i in itertools.pairwise(order):
        (variant, one), (other_variant, other) = prompts[before], prompts[i]
        pairs = zip(one, other, strict=False)
        equal = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
        if variant == other_variant and 2 * equal >= max(len(one), len(other)):
            first[i] = first[before]
            shared[first[i]] = min(shared[first[i]], equal)
    return first, shared
