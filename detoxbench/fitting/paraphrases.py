"""Paraphrase sets as token ids, and the texts that a training step draws from them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from detoxbench.data.examples import ParaphraseSet
from detoxbench.errors import DetoxbenchError

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.lm import LanguageModel

POSITIVE, NEGATIVE, RANDOM = 0, 1, 2
"""Roles of a row; a random negative is a negative of a content of another group."""


class Drawn(NamedTuple):
    """The token ids of one anchor's texts in one step, by role."""

    positives: list[list[int]]
    negatives: list[list[int]]
    randoms: list[list[int]]


class Pools:
    """The anchors that have enough texts; `dropped` counts the others."""

    def __init__(
        self,
        lm: LanguageModel,
        sets: Sequence[ParaphraseSet],
        numbers: tuple[int, int, int],
        *,
        max_length: int,
        seed: int,
    ) -> None:
        """`numbers` are the texts drawn for an anchor, by role. Texts get an end token and are cut at `max_length` or
        the model's context; `cut` counts those that are.

        Raises DetoxbenchError when no anchor has so many.
        """
        self.numbers = positives, negatives, randoms = numbers
        self.seed = seed
        self.cut = 0
        self.end = lm.end_of()
        self.pad = lm.tokenizer.pad_token_id or 0
        limit = min(max_length, lm.context or max_length)

        def encoded(texts: Sequence[str]) -> list[list[int]]:
            token_ids = [[*lm.tokens(text), *self.end] for text in texts]
            self.cut += sum(len(ids) > limit for ids in token_ids)
            return [ids[:limit] for ids in token_ids if len(ids) > 1]  # the first token is never predicted

        anchors = [(s.anchor.rpartition("-")[0] or s.anchor, encoded(s.positives), encoded(s.negatives)) for s in sets]
        self._negatives = [(group, ids) for group, _, toxic in anchors for ids in toxic]
        of_group = Counter(group for group, _ in self._negatives)
        self._anchors = [
            (group, civil, toxic)
            for group, civil, toxic in anchors
            if len(civil) >= positives and len(toxic) >= negatives and len(self._negatives) - of_group[group] >= randoms
        ]
        self.dropped = len(anchors) - len(self._anchors)
        if not self._anchors:
            most = max(len(civil) for _, civil, _ in anchors), max(len(toxic) for _, _, toxic in anchors)
            raise DetoxbenchError(
                f"no anchor has {positives} positives, {negatives} negatives and {randoms} negatives of other "
                f"groups (the most are {most[0]} and {most[1]}): lower method.positives, negatives or random_negatives"
            )

    def __len__(self) -> int:
        return len(self._anchors)

    def epoch(self, epoch: int) -> list[Drawn]:
        """The rows of one epoch: anchors with the texts that are drawn for them."""
        return [self.draw(epoch, anchor) for anchor in range(len(self))]

    def draw(self, epoch: int, anchor: int) -> Drawn:
        """Without replacement; a function of (seed, epoch, anchor) alone."""
        rng = random.Random(f"paraphrases/{self.seed}/{epoch}/{anchor}")
        positives, negatives, randoms = self.numbers
        group, civil, toxic = self._anchors[anchor]
        drawn: dict[int, list[int]] = {}
        while len(drawn) < randoms:
            i = rng.randrange(len(self._negatives))
            if self._negatives[i][0] != group:
                drawn[i] = self._negatives[i][1]
        return Drawn(rng.sample(civil, positives), rng.sample(toxic, negatives), list(drawn.values()))

    def collate(self, batch: Sequence[Drawn], *, as_released: bool = False) -> dict[str, Tensor]:
        """[rows, tokens] input_ids and attention_mask, [rows] group (place in the batch) and role; anchor by anchor.

        Pads stand on the right; `as_released` they are end tokens on the left, up to a multiple of 8.
        """
        import torch

        rows = [(g, role, ids) for g, drawn in enumerate(batch) for role, texts in enumerate(drawn) for ids in texts]
        width = max(len(ids) for _, _, ids in rows)
        width = -(-width // 8) * 8 if as_released else width
        ids = torch.full((len(rows), width), self.end[0] if as_released and self.end else self.pad)
        mask = torch.zeros_like(ids)
        for row, (_, _, text) in enumerate(rows):
            place = slice(width - len(text), None) if as_released else slice(len(text))
            ids[row, place], mask[row, place] = torch.tensor(text), 1
        group, role = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "group": group, "role": role}


def compared(before: Tensor, after: Tensor, tokens: Tensor, positives: int) -> dict[str, float]:
    """The same texts before and after training, [anchors, positives then negatives], in shares and nats a token.

    `toxic_mass` is the probability of the toxic among all texts of an anchor.
    """
    civil, toxic = before[:, :positives], before[:, positives:]
    gap = toxic.mean(1) - civil.mean(1)

    def toxic_mass(s: Tensor) -> float:
        return float((-s * tokens).softmax(1)[:, positives:].sum(1).mean())

    return {
        "anchors_with_likelier_negatives": float((gap < 0).double().mean()),
        "negatives_below_centroid_before": float((toxic < civil.mean(1, keepdim=True)).double().mean()),
        "negatives_made_likelier": float((after[:, positives:] < toxic).double().mean()),
        "toxic_mass_before": toxic_mass(before),
        "toxic_mass_after": toxic_mass(after),
        "nll_gap_before": float(gap.mean()),
        "nll_positives_before": float(civil.mean()),
        "nll_positives_after": float(after[:, :positives].mean()),
        "nll_negatives_before": float(toxic.mean()),
        "nll_negatives_after": float(after[:, positives:].mean()),
    }
