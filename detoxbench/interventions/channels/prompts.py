"""Rewritings of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from detoxbench.errors import UsageError
from detoxbench.interventions.channels.base import Channel

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model


@dataclass(frozen=True)
class Prompt(Channel):
    """A rewriting of prompts: all of them, or `only` those of one kind.

    `suffix` and `turns` are for chat prompts only: a continuation has to go on from the prompt itself. `turns` are
    (role, text), with the roles system, user and assistant: what was said before the prompt. A chat template writes
    them (`ChatTemplate.prompt`); without one each is a line before the prompt.
    """

    compilable: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    prefix: str = ""
    suffix: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    only: Literal["", "chat", "continuation"] = ""

    def __post_init__(self) -> None:
        if self.only not in ("", "chat", "continuation"):
            raise UsageError(f"a prompt has only={self.only!r}: choose chat or continuation, or nothing for both")
        if unknown := {role for role, _ in self.turns} - {"system", "user", "assistant"}:
            raise UsageError(f"a prompt has a turn of '{min(unknown)}': choose system, user or assistant")

    @property
    def place(self) -> str:
        turns = f"{len(self.turns)} turns and " if self.turns else ""
        return f"{turns}{self.prefix!r} before and {self.suffix!r} behind"

    def rewrite(self, prompt: str, chat: bool) -> str:
        """The prompt as the model is to get it."""
        if self.only and (self.only == "chat") != chat:
            return prompt
        return self.prefix + prompt + (self.suffix if chat else "")

    def before(self, chat: bool) -> tuple[tuple[str, str], ...]:
        """The turns before the prompt."""
        return self.turns if chat and self.only != "continuation" else ()

    def named_tensors(self) -> Mapping[str, Tensor]:
        return {}

    def as_json(self) -> dict[str, Any]:
        more: dict[str, Any] = {"turns": [list(turn) for turn in self.turns], "only": self.only}
        return {"prefix": self.prefix, "suffix": self.suffix} | {name: value for name, value in more.items() if value}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Prompt:
        turns = tuple((str(role), str(text)) for role, text in document.get("turns", ()))
        return cls(**{**document, "turns": turns})

    @classmethod
    def put_on(cls, lm: Model, parts: Sequence[Prompt], undo: ExitStack) -> None:
        for prompt in parts:
            lm.in_force.prompts.append(prompt)
            undo.callback(lm.in_force.prompts.pop)
