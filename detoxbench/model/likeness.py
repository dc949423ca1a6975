"""Whether another checkpoint is of the same kind as a model: one architecture, one vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError

if TYPE_CHECKING:
    from detoxbench.model.model import Model

_NO_PART = (
    r"_.*|architectures|(torch_)?dtype|transformers_version|use_cache|.*token_id|.*(dropout|pdrop|_drop)|"
    r"initializer_\w+|output_\w+|return_dict|id2label|label2id|problem_type|task_specific_params|summary_\w+"
)
"""Fields of a configuration that say nothing about what a trained model computes of a text."""


def require_like(lm: Model, config: Any, tokenizer: Any, thing: str) -> None:
    """Raises DetoxbenchError unless a checkpoint with this configuration and tokenizer has the architecture, the shapes
    and the vocabulary of `lm`, naming the first difference; it begins with `thing`."""
    mine, other = _fields(lm.model.config), _fields(config)
    if mine.get("model_type") != other.get("model_type"):
        raise DetoxbenchError(
            f"{thing} is a {other.get('model_type')}, '{lm.name}' a {mine.get('model_type')}: name a checkpoint of the "
            "same architecture, or run it as a model of its own (model=hf model.path=...)"
        )
    for key in sorted(mine.keys() | other.keys()):
        if mine.get(key) != other.get(key):
            raise DetoxbenchError(
                f"{thing} has {key}={other.get(key)!r}, '{lm.name}' {mine.get(key)!r}: name a checkpoint of the same "
                "shape, or run it as a model of its own (model=hf model.path=...)"
            )
    mine, other = lm.tokenizer.get_vocab(), tokenizer.get_vocab()
    if odd := min(mine.items() ^ other.items(), key=lambda item: (item[1], item[0]), default=None):
        here, there = (f"token {v[odd[0]]}" if odd[0] in v else "no token" for v in (mine, other))
        raise DetoxbenchError(
            f"{thing} has another vocabulary: {odd[0]!r} is {there} of it and {here} of '{lm.name}'; name a checkpoint "
            "with the same tokenizer"
        )


def _fields(config: Any) -> dict[str, Any]:
    """What a configuration says about what is computed, those of parts included."""
    return _of_computing(config.to_dict())


def _of_computing(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _of_computing(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not re.fullmatch(_NO_PART, key)
    }
