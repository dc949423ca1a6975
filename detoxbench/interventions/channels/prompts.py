"""Rewritings of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from detoxbench.interventions.channels.base import Channel

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model


@dataclass(frozen=True)
class Prompt(Channel):
    """A rewriting of prompts. `suffix` is for chat prompts only: a continuation has to go on from the prompt itself."""

    compilable: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    prefix: str = ""
    suffix: str = ""

    @property
    def place(self) -> str:
        return f"{self.prefix!r} before and {self.suffix!r} behind"

    def rewrite(self, prompt: str, chat: bool) -> str:
        """The prompt as the model is to get it."""
        return self.prefix + prompt + (self.suffix if chat else "")

    def named_tensors(self) -> Mapping[str, Tensor]:
        return {}

    def as_json(self) -> dict[str, Any]:
        return {"prefix": self.prefix, "suffix": self.suffix}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Prompt:
        return cls(**document)

    @classmethod
    def put_on(cls, lm: Model, parts: Sequence[Prompt], undo: ExitStack) -> None:
        for prompt in parts:
            lm.in_force.prompts.append(prompt)
            undo.callback(lm.in_force.prompts.pop)
