"""Prefixes: keys and values of virtual tokens (prefix tuning)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from detoxbench.engine.forward import cache_name
from detoxbench.engine.kv_cache import Cache
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels.base import Channel
from detoxbench.model.devices import computes_on

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model


@dataclass(frozen=True)
class Prefix(Channel):
    """Keys and values of virtual tokens that stand before everything: kv [layers, 2, heads, tokens, head dimension]."""

    described: ClassVar[bool] = False

    kv: Tensor

    @property
    def place(self) -> str:
        return "prefix"

    def named_tensors(self) -> Mapping[str, Tensor]:
        return {"kv": self.kv}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Prefix:
        return cls(**tensors)

    @classmethod
    def put_on(cls, lm: Model, parts: Sequence[Prefix], undo: ExitStack) -> None:
        for prefix in parts:
            if lm.in_force.reserved:
                raise DetoxbenchError("a prefix is in force already: two cannot stand before everything")
            undo.callback(lm.model.register_forward_pre_hook(_prefixed(lm, prefix), with_kwargs=True).remove)
            undo.callback(setattr, lm.in_force, "reserved", 0)
            lm.in_force.reserved = prefix.kv.shape[3]


def _prefixed(lm: Model, prefix: Prefix) -> Callable[..., Any]:
    """A pre-hook of the whole model: an empty cache begins with the prefix, which every position may look at."""
    modules = map(lm.architecture.module, lm.architecture.layers)
    kv = [of.to(computes_on(m, lm.device), lm.dtype) for of, m in zip(prefix.kv, modules, strict=True)]
    tokens = prefix.kv.shape[3]
    config, name = lm.model.config.get_text_config(), cache_name(lm.model.__class__)
    if not Cache(config, tokens).movable:
        raise DetoxbenchError(
            f"a prefix needs attention in every layer; some of {type(lm.model).__name__} are recurrent"
        )

    def begin(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        from transformers import DynamicCache

        ids = args[0] if args else kwargs["input_ids"]
        cache, mask = kwargs.get(name), kwargs.get("attention_mask")
        if cache is None:
            cache = DynamicCache(config=config)
        if cache.get_seq_length() == 0:
            for layer, (keys, values) in enumerate(kv):
                cache.update(keys.expand(len(ids), -1, -1, -1), values.expand(len(ids), -1, -1, -1), layer)
        kwargs = {**kwargs, name: cache}
        if mask is not None:
            import torch

            kwargs["attention_mask"] = torch.cat([mask.new_ones(len(ids), tokens), mask], dim=1)
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"] + tokens
        return args, kwargs

    return begin
