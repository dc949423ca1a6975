"""Which part of a list of batches one of several processes does."""

from __future__ import annotations

import os
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


def launched() -> Share | None:
    """Which of several processes a launcher (`torchrun`) has made this one; None where it is alone."""
    try:
        share = Share(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    except (KeyError, ValueError):
        return None
    told_where = {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return share if share.ranks > 1 and told_where else None
