"""Labelled texts as tensors: their labels, and their beginnings as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from detoxbench.data.examples import LabelledText
from detoxbench.errors import DetoxbenchError

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.lm import LanguageModel


def toxic_labels(texts: Sequence[LabelledText], method: str) -> Tensor:
    """Which texts are toxic, bool [texts]. Raises DetoxbenchError where all of them are, or none."""
    import torch

    labels = torch.tensor([text.toxic for text in texts], dtype=torch.bool)
    if labels.all() or not labels.any():
        missing = "civil" if labels.any() else "toxic"
        raise DetoxbenchError(
            f"method '{method}' compares toxic with civil texts, and fit.labelled_texts has no {missing} one"
        )
    return labels


def beginnings(lm: LanguageModel, texts: Iterable[str], max_tokens: int) -> list[list[int]]:
    """Token ids of each text, of the first `max_tokens` (or as many as the context holds)."""
    limit = min(max_tokens, lm.context or max_tokens)
    return [lm.tokens(text)[:limit] for text in texts]
