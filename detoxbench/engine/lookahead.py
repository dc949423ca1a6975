"""The hidden states after candidates for the next token, each read as one more token of its row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from detoxbench.engine.forward import head_inputs, next_logits
from detoxbench.engine.kv_cache import Cache
from detoxbench.engine.streams import Streams

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model

PASS_TOKENS = 8192
"""Tokens in the copies of the cache that one forward pass reads candidates behind. It depends on nothing that a user
sets, so that a row computed alone is always read in the same passes."""


class Lookahead:
    """Reads candidates at one step of a generation, which it leaves as it is.

    A forward pass has a row for each pair of row and candidate, with that row's cache: no pass has room for candidates
    that other rows have and this one does not. What was read once is kept, as rounding may have an operation asked
    twice.
    """

    def __init__(self, lm: Model, streams: Streams, cache: Cache, mask: Tensor, finished: Set[int]) -> None:
        """`mask` is [streams, what the cache holds and one column more]; rows that are `finished` are not read."""
        self._lm, self._streams, self._cache, self._finished = lm, streams, cache, finished
        self._mask = mask.to(lm.device)
        self._read: dict[tuple[int, int], int] = {}
        """(row, candidate) -> where its state stands in `_states`."""
        self._states: list[Tensor] = []

    def __call__(self, rows: Sequence[int], ids: Tensor) -> Tensor:
        """The states of these `rows`, by index, after the candidates `ids` [rows, candidates]: [rows, candidates,
        width], float32; zeros where the candidate is -1, and of finished rows."""
        import torch

        # 1. The pairs of row and candidate, and those that were not read before.
        pairs = [(row, token) for row, tokens in zip(rows, ids.tolist(), strict=True) for token in tokens]
        missing = {pair for pair in pairs if pair[1] >= 0 and pair[0] not in self._finished} - self._read.keys()
        new = sorted(missing)
        size = max(1, PASS_TOKENS // (self._mask.shape[1] * (1 + len(self._lm.in_force.compared))))
        for start in range(0, len(new), size):
            self._states.append(self._pass(new[start : start + size]))
        self._read.update(zip(new, itertools.count(len(self._read)), strict=False))
        # 2. Their states, [pairs, width], behind them one of zeros for pairs that are not read.
        width = self._lm.model.get_output_embeddings().weight.shape[1]
        states = torch.cat([*self._states, torch.zeros(1, width, device=self._lm.device)])
        where = [self._read.get(pair, len(self._read)) for pair in pairs]
        return states[torch.tensor(where, device=states.device)].view(*ids.shape, -1)

    def _pass(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """The states after these candidates, [pairs, width], float32."""
        import torch

        lm, streams = self._lm, self._streams
        # 1. Streams [those that hooks compare, pairs], the rows' own first; a row's own stream has its index.
        rows = [row for row, _ in pairs]
        beside = streams.beside(lm.in_force.compared) or {0: list(range(len(streams.records)))}
        chosen = [of_rows[row] for of_rows in beside.values() for row in rows]
        ids = torch.tensor([token for _, token in pairs] * len(beside), device=lm.device)
        places = {n: range(i * len(rows), (i + 1) * len(rows)) for i, n in enumerate(beside)}
        # 2. The states of the rows' own.
        read, where = streams.some(chosen), torch.tensor(chosen, device=lm.device)
        with lm.reading(read.of_record, 0, read.companion, places), head_inputs(lm, True) as heads:
            next_logits(lm.model, ids[:, None], self._mask[where], self._cache.branched(where))
        return heads[0][: len(rows), -1].float()
