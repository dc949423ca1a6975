"""Keys and values of the tokens read so far, in buffers that have room for those to come.

The cache of transformers is copied whole for every new token: with 50 rows of 250 tokens under a model of 24 million
parameters that was four fifths of a step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Cache:
    """`past` is what the model takes. `room` is how many positions will be needed; more still work.

    Layers with a sliding window keep everything: attention masks what lies outside. Layers of other kinds (recurrent
    ones) are those of transformers, and `movable` is false.
    """

    def __init__(self, config: Any, room: int) -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        self.past = DynamicCache(config=config)
        attention = [type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.past.layers]
        self.past.layers = [
            _layer()(room) if plain else layer for plain, layer in zip(attention, self.past.layers, strict=True)
        ]
        self.movable = all(attention)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may come several times."""
        for layer in self.past.layers:  # recurrent layers know this method alone
            layer.reorder_cache(rows)

    def branched(self, rows: Tensor) -> Cache:
        """A cache that begins with these rows of this one, in this order; a row may come several times. What is read
        into it does not come here."""
        branch = copy.copy(self)
        branch.past = copy.copy(self.past)
        # Keys and values are replaced whole; recurrent layers may be written into, so each gets a state of its own.
        branch.past.layers = [
            layer.shallow() if isinstance(layer, _layer()) else copy.deepcopy(layer) for layer in self.past.layers
        ]
        branch.select(rows)
        return branch

    def move(self, rows: Tensor, positions: Tensor) -> None:
        """Row i becomes the `positions[i]` of the row `rows[i]`: `rows` [new rows], `positions` [new rows, positions].

        All layers must be `movable`.
        """
        for layer in self.past.layers:
            # Indices on both sides of the heads come first: [new rows, positions, heads, width].
            row, column = rows[:, None].to(layer.keys.device), positions.to(layer.keys.device)
            layer.hold(*(x[row, :, column].transpose(1, 2) for x in (layer.keys, layer.values)))


def _buffers(new: Sequence[Tensor], held: Sequence[Tensor], room: int) -> list[Tensor]:
    """Buffers for keys and values like `new`, [rows, heads, room, width], that begin with what is `held`."""
    buffers = [x.new_empty(*x.shape[:2], room, x.shape[3]) for x in new]
    for buffer, x in zip(buffers, held, strict=False):  # at first nothing is held
        buffer[:, :, : x.shape[2]] = x
    return buffers


@cache
def _layer() -> Any:
    from transformers.cache_utils import DynamicLayer

    class Layer(DynamicLayer):  # type: ignore[misc]
        """`keys` and `values`, [rows, heads, positions, width], show the filled part of the buffers."""

        def __init__(self, room: int) -> None:
            super().__init__()
            self.room = room
            self.buffers: list[Tensor] = []

        def hold(self, keys: Tensor, values: Tensor) -> None:
            """Replace everything held by these; new buffers are made when more tokens come."""
            self.keys, self.values, self.buffers = keys, values, []

        def shallow(self) -> Layer:
            """One that shows the same, with room for no more than what comes next."""
            layer = copy.copy(self)
            layer.room, layer.buffers = 0, []
            return layer

        def reorder_cache(self, beam_idx: Tensor) -> None:
            if self.is_initialized:  # else it shares the keys and values of another layer
                rows = beam_idx.to(self.keys.device)  # layers may lie on several devices
                self.hold(self.keys[rows], self.values[rows])

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            """Add what is new, [rows, heads, new positions, width], and give all keys and values."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            new = key_states, value_states
            start = self.get_seq_length()
            end = start + key_states.shape[2]
            # 1. Buffers [rows, heads, room, width] for what is held and for later positions.
            if not self.buffers or end > self.buffers[0].shape[2]:
                held = (self.keys, self.values) if start else ()
                self.buffers = _buffers(new, held, max(self.room, end))
            # 2. The new positions behind those held.
            for buffer, x in zip(self.buffers, new, strict=True):
                buffer[:, :, start:end] = x
            # 3. The filled part, [rows, heads, end, width].
            self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
            return self.keys, self.values

    return Layer
