"""Training on rows of several responses that are set against each other: chosen and rejected, to forget and to retain.

A row is a tuple of responses, the same number in every row; a side is their k-th responses. The loss is made of how
likely each side is as trained, and as it was before: a `Contrast`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from detoxbench.data.examples import Instruction, Preference
from detoxbench.fitting.responses import Likelihoods, Response, collate, encode, likelihoods, untrained
from detoxbench.fitting.token_losses import Batch, plain_head
from detoxbench.fitting.training import Adapter, TrainingConfig, optimise
from detoxbench.lm import LanguageModel

if TYPE_CHECKING:
    from torch import Tensor

Row = tuple[Response, ...]


class Contrast(NamedTuple):
    """The sides of a micro-batch."""

    now: tuple[Likelihoods, ...]
    """Of each side, with a gradient."""
    before: tuple[Likelihoods, ...]
    """The same of the untrained model; empty where the loss asks for no reference."""

    def gains(self, side: int) -> Tensor:
        """log p / p_before of each response of a side, [rows]."""
        return self.now[side].sums - self.before[side].sums


Objective = Callable[[Contrast], "tuple[Tensor, Mapping[str, float]]"]
"""objective(contrast) -> (its mean over the micro-batch, named measurements to record)."""


def encoded(
    lm: LanguageModel, rows: Sequence[tuple[Instruction, ...]], config: TrainingConfig
) -> tuple[list[Row], int]:
    """(the rows of which every response has a token left, how many responses were cut)."""
    whole = [tuple(encode(lm, e, config.max_length, end=config.end_token) for e in row) for row in rows]
    return [row for row in whole if not any(r.empty for r in row)], sum(r.cut for row in whole for r in row)


def train_on_sides(
    lm: LanguageModel,
    rows: Callable[[int], Sequence[Row]],
    config: TrainingConfig,
    objective: Objective,
    *,
    sides: int,
    reference: bool,
    seed: int,
    description: str,
) -> Adapter[Any]:
    """Train what `config.parameters` says to lower `objective`. `rows(epoch)`, each of so many `sides`, are what an
    epoch shuffles; `batch_size` counts rows. With a `reference` every micro-batch is read by the untrained model, too.
    """
    through_head, pad = plain_head(lm), lm.tokenizer.pad_token_id or 0

    def by_side(batch: Sequence[Row]) -> Batch:  # [sides * rows, longest]
        return collate([response for side in zip(*batch, strict=True) for response in side], pad)

    def loss(model: Any, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        before: tuple[Likelihoods, ...] = ()
        if reference:
            with untrained(model):
                before = _sides(likelihoods(model, batch, through_head=through_head), sides)
        return objective(Contrast(_sides(likelihoods(model, batch, through_head=through_head), sides), before))

    return optimise(lm, rows, config, collate=by_side, loss=loss, seed=seed, description=description)


def train_on_preferences(
    lm: LanguageModel,
    preferences: Sequence[Preference],
    config: TrainingConfig,
    objective: Objective,
    *,
    reference: bool,
    seed: int,
    description: str,
) -> Adapter[Any]:
    """As `train_on_sides`, of two sides: the chosen responses and the rejected ones."""
    pairs = [tuple(Instruction(p.prompt, text, p.chat) for text in (p.chosen, p.rejected)) for p in preferences]
    rows, cut = encoded(lm, pairs, config)
    adapter = train_on_sides(
        lm, lambda epoch: rows, config, objective, sides=2, reference=reference, seed=seed, description=description
    )
    return replace(adapter, cut_texts=cut)


def _sides(all_rows: Likelihoods, sides: int) -> tuple[Likelihoods, ...]:
    each = len(all_rows.counts) // sides
    return tuple(all_rows.part(k * each, (k + 1) * each) for k in range(sides))


def beside(ones: Sequence[Response], others: Sequence[Response], seed: int) -> Callable[[int], list[Row]]:
    """rows(epoch): each of `ones` with one of `others`, which are shuffled for every epoch and taken in turn."""

    def rows(epoch: int) -> list[Row]:
        order = random.Random(f"{seed}/{epoch}").sample(range(len(others)), len(others))
        return [(one, others[order[i % len(order)]]) for i, one in enumerate(ones)]

    return rows
