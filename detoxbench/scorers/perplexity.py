"""Perplexity of a text given its prompt under a causal language model, e.g. a larger one than the models compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from detoxbench.config import knob, runtime
from detoxbench.errors import UsageError
from detoxbench.model import checkpoint
from detoxbench.scorers.base import Scorer

if TYPE_CHECKING:
    from detoxbench.lm import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which model judges. Its weights enter the identity by their fingerprint."""

    path: str = runtime("", "local folder or Hugging Face hub id of a causal language model")
    revision: str | None = runtime(None, "hub revision (branch, tag or commit)")
    dtype: Literal["float32", "float16", "bfloat16"] = knob("float32", "type of the weights and the arithmetic")
    device: str = runtime("auto", "auto (cuda, then mps, then cpu) or a torch device")


class Perplexity(Scorer[Config]):
    """`nll`: nats of the text after its prompt, `tokens`: how many, `truncated`: 1 where both are longer than the
    model's context, so that their beginning was not read; None for a text without tokens.

    Prompt and text are tokenised together and the NLL of the prompt is subtracted (DeStein,
    evaluate_generations.py:77)."""

    Config = Config
    version = 2
    primary = "nll"
    meaning = "unlikely"
    needs_prompt = True
    reads_on = True

    def fingerprint(self) -> str:
        from detoxbench.model.model import find

        if not self.config.path:
            raise UsageError("scorer 'perplexity' needs a model: path=FOLDER_OR_HUB_ID")
        return checkpoint.fingerprint(find(self.config.path, revision=self.config.revision))

    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
        nlls = self._lm.continuation_nll(prompts, texts)
        return [
            None if pair is None else {"nll": pair[0], "tokens": pair[1], "truncated": self._is_cut(prompt + text)}
            for pair, prompt, text in zip(nlls, prompts, texts, strict=True)
        ]

    def _is_cut(self, text: str) -> float:
        limit = self._lm.context
        # a token is a character at least, but for the special ones
        return float(limit is not None and len(text) + 8 > limit and len(self._lm.tokens(text)) > limit)

    @cached_property
    def _lm(self) -> LanguageModel:
        from detoxbench.lm import LanguageModel

        config = self.config
        return LanguageModel.load(
            config.path, revision=config.revision, dtype=config.dtype, device=config.device, name="perplexity"
        )
