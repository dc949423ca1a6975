"""Training in less memory: what layers keep for a gradient is computed again when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from detoxbench.config import runtime
from detoxbench.interventions.channels.weights import replace_forward
from detoxbench.lm import LanguageModel

if TYPE_CHECKING:
    from torch import nn


def recomputation() -> Any:
    """The setting of a method's Config, `gradient_checkpointing`."""
    return runtime(
        False,
        "keep the inputs of each layer alone for the gradient and compute the rest again: less memory, about a third "
        "more time, the same numbers",
    )


@contextmanager
def recomputed(lm: LanguageModel, wanted: bool, *, but: Collection[str] = ()) -> Iterator[None]:
    """While open, and if `wanted`, a layer of the decoder keeps for the gradient nothing but its inputs, and is
    computed again, with the same random numbers, when its gradient is taken (gradient checkpointing). Layers that hold
    a parameter in `but` are left alone: those that change between the two passes, or are partly replaced.

    Not the checkpointing of transformers: that one acts in training mode alone, and drops caches.
    """
    with ExitStack() as undo:
        for path in lm.architecture.layers if wanted else ():
            if not any(name.startswith(f"{path}.") for name in but):
                _recompute(lm.architecture.module(path), undo)
        yield


def _recompute(layer: nn.Module, undo: ExitStack) -> None:
    import torch
    from torch.utils.checkpoint import checkpoint

    forward: Callable[..., Any] = layer.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    replace_forward(layer, call, undo)
