"""The forward pass of a causal language model of any family: the one place that knows its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.engine.kv_cache import Cache
    from detoxbench.model.model import Model

_CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""What transformers calls the cache: since 5.24 `cache`, before `past_key_values`, of state-space models
`cache_params`."""


def next_logits(model: Any, ids: Tensor, mask: Tensor, cache: Cache | None = None, last: int = 1) -> Tensor:
    """Logits of the `last` positions, [rows, last, vocabulary], as the model gives them.

    `ids` [rows, new] stand behind what `cache` holds, and are added to it; `mask` is [rows, held and new]. Positions
    count what the mask lets through, so padding on the left moves nothing. Raises DetoxbenchError for a model that
    takes no cache where one is given.
    """
    arguments = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
        "use_cache": cache is not None,
        "logits_to_keep": last,
    }
    names, and_others = _parameters(model.__class__)
    arguments = {name: value for name, value in arguments.items() if and_others or name in names}
    if cache is not None:
        arguments[cache_name(model.__class__)] = cache.past
    logits: Tensor = model(**arguments).logits
    return logits[:, -last:]


@cache
def cache_name(kind: type) -> str:
    """Under which name the forward pass of this class takes the cache: a name that it lists, because one that
    falls into its **kwargs may be dropped without a warning. Raises DetoxbenchError where it lists none."""
    names, _ = _parameters(kind)
    for name in _CACHE_NAMES:
        if name in names:
            return name
    raise DetoxbenchError(f"the forward pass of {kind.__name__} takes no cache ({', '.join(_CACHE_NAMES)})")


@cache
def _parameters(kind: type) -> tuple[frozenset[str], bool]:
    """The names that the forward pass of this class lists, and whether it takes others as well."""
    parameters = inspect.signature(kind.forward).parameters.values()  # type: ignore[attr-defined]
    return frozenset(p.name for p in parameters), any(p.kind is p.VAR_KEYWORD for p in parameters)


@contextmanager
def head_inputs(lm: Model, wanted: bool) -> Iterator[list[Tensor]]:
    """While open, a list that gets what the head is given in each forward pass, [rows, positions, width]; nothing where
    it is not `wanted`."""
    seen: list[Tensor] = []
    if not wanted:
        yield seen
        return
    head, device = lm.model.get_output_embeddings(), lm.device  # the head of a spread model may be on another one
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].to(device)))
    try:
        yield seen
    finally:
        handle.remove()
