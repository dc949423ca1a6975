"""What scorers that run a transformer share: where its files lie, and forward passes that no other text can change."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detoxbench.config import Dtype
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.model import checkpoint

if TYPE_CHECKING:
    import torch

STEP = 16
"""Widths of a forward pass, in tokens, are multiples of this (or as many as the transformer takes)."""
PASS_TOKENS = {"cpu": 512}
PASS_TOKENS_ELSEWHERE = 8192
"""Tokens in one forward pass, on a CPU and on any other device."""
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet", "data2vec-text"}
"""Families whose position table begins with entries that no token uses."""
_REMEDY = "docs/scorers.md says how to convert one that is published as pickle (.bin) only"


class Read(NamedTuple):
    """The result for one text: a row of logits, and whether only its beginning was read."""

    logits: list[float]
    truncated: bool


class Classifier:
    """A transformer with a classification head; `limit` is how many tokens it reads."""

    def __init__(self, tokenizer: Any, model: Any, limit: int) -> None:
        import torch

        self.tokenizer, self.model, self.limit = tokenizer, model.eval(), limit
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == model.config.num_labels:
                module.forward = partial(_row_by_row, module)  # type: ignore[method-assign]

    def read(self, texts: Iterable[str]) -> dict[str, Read]:
        """The logits of every distinct text, from forward passes whose shape follows from the text's length alone.

        A pass of another shape, as when a cache knows half of the texts, gives other last bits; a pass of the same
        shape gives a row the same bits beside any neighbours (but for the head, see `_row_by_row`). So a pass that
        is not full is filled up with copies.
        """
        import torch

        tokens = {text: self.tokenizer(text, verbose=False)["input_ids"] for text in dict.fromkeys(texts)}
        # At least one pad in every row or none in any: a mask of ones is dropped, and another kernel taken without it.
        by_width: dict[tuple[int, bool], list[str]] = {}
        for text, ids in tokens.items():
            width = min((len(ids) // STEP + 1) * STEP, self.limit)
            by_width.setdefault((width, len(ids) >= self.limit), []).append(text)
        device = self.model.device
        reads: dict[str, Read] = {}
        for (width, _), several in sorted(by_width.items()):
            rows = max(1, PASS_TOKENS.get(device.type, PASS_TOKENS_ELSEWHERE) // width)
            for start in range(0, len(several), rows):
                batch = several[start : start + rows]
                inputs = self.tokenizer(
                    [*batch, *[batch[-1]] * (rows - len(batch))],
                    return_tensors="pt", padding="max_length", truncation=True, max_length=width,
                )  # fmt: skip
                with torch.inference_mode():
                    logits = self.model(**inputs.to(device)).logits[: len(batch)].float().tolist()
                for text, row in zip(batch, logits, strict=True):
                    reads[text] = Read(row, len(tokens[text]) > self.limit)
        return reads


def _row_by_row(linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """A linear map to a few labels as sums of products. Matrix multiplication on a CPU gives the same row other last
    bits in the odd rows than in the even ones, where there are so few columns (two labels; torch 2.13, MKL)."""
    sums = (x.unsqueeze(-2) * linear.weight).sum(-1)
    return sums if linear.bias is None else sums + linear.bias


def locate(name: str, path: str, revision: str | None) -> Path:
    """The folder of a scorer's model. Raises as `checkpoint.locate` does, naming the scorer and its key."""
    if not path:
        raise UsageError(f"scorer '{name}' needs a model: scorer.path=FOLDER_OR_HUB_ID")
    try:
        return checkpoint.locate(path, revision)
    except DetoxbenchError as error:
        reason = str(error).replace("model.path", "scorer.path")
        remedy = f"; {_REMEDY}" if "has no weights" in reason else ""
        raise DetoxbenchError(f"scorer '{name}': {reason}{remedy}") from error


def load_classifier(
    name: str, folder: Path, device: str, max_length: int | None = None, dtype: Dtype = "float32"
) -> Classifier:
    """A sequence classifier from safetensors. `max_length` lowers how many tokens it reads, and cannot raise it."""
    from detoxbench.model import pretrained

    thing = f"scorer '{name}': the classifier in '{folder}'"
    model, tokenizer = pretrained.load("AutoModelForSequenceClassification", folder, dtype, thing, device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    limits = [max_length, tokenizer.model_max_length, positions(model.config)]
    limit = min(n for n in limits if n is not None)
    return Classifier(tokenizer, model, limit if limit < 1e9 else 512)


def positions(config: Any) -> int | None:
    """How many tokens a transformer has positions for; None if there is no table."""
    table = getattr(config, "max_position_embeddings", None)
    if table is None or config.model_type not in _OFFSET_POSITIONS:
        return table
    return int(table) - (config.pad_token_id or 0) - 1
