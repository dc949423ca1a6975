"""The global random generators of Python, numpy and torch, left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def unchanged_random_state(model: nn.Module | None = None) -> Iterator[None]:
    """Run a block that seeds or draws from the global generators, and put their states back: those of the CPU, and of
    the GPUs that the `model` is on. Asking for those of another GPU would open it."""
    import random

    import numpy as np
    import torch

    places = {p.device for p in model.parameters()} if model is not None else set()
    gpus = sorted(place.index for place in places if place.type == "cuda")
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
