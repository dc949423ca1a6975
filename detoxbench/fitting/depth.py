"""Layers that were published for a model of another depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detoxbench.lm import LanguageModel


def at_depth(lm: LanguageModel, layer: int, of: int) -> int:
    """The layer of `lm` that lies as deep as `layer` lies in a model `of` so many layers: the same one at equal depth.

    The product is rounded down, so it is always a layer that is there (layer 21 of 32 is layer 2 of 4).
    """
    return layer * len(lm.architecture.layers) // of
