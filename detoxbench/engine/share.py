"""Which part of a list of batches one of several processes does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Share(NamedTuple):
    """Process `rank` of `ranks`, counted from 0."""

    rank: int = 0
    ranks: int = 1

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """This process's stretch of the items: those of all processes are the items, and differ in length by one at
        the most."""
        first, end = (len(items) * rank // self.ranks for rank in (self.rank, self.rank + 1))
        return items[first:end]


ALONE = Share()
