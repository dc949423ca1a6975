"""What acts on a model now in addition to its weights and hooks: one value, which interventions fill and empty
again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from detoxbench.model.logit_state import AFTER, LogitFunction

if TYPE_CHECKING:
    from torch import Tensor


class Rewriting(Protocol):
    """A rewriting of prompts (`interventions.channels.Prompt`)."""

    def rewrite(self, prompt: str, chat: bool) -> str:
        """The prompt as the model is to get it."""

    def before(self, chat: bool) -> Sequence[tuple[str, str]]:
        """The turns before the prompt, each (role, text)."""


class Factors(Protocol):
    """A low-rank change `b @ a` of a linear map, [out, rank] times [rank, in] (`interventions.channels.LowRank`)."""

    @property
    def a(self) -> Tensor:
        """[rank, in]."""

    @property
    def b(self) -> Tensor:
        """[out, rank]."""


class Route(Protocol):
    """Which intervention is in force for the rows of a record (`interventions.routing.Route`)."""

    def variant(self, record: str | None) -> int:
        """A number that is equal for two records exactly if the same change is in force for both."""

    def method(self, record: str) -> str:
        """The method of the record's intervention."""

    def prompts(self, record: str | None) -> Sequence[Rewriting]:
        """The record's rewritings of prompts, innermost first."""

    def set_rows(self, records: Sequence[str]) -> None:
        """Say what the rows of the forward passes from here on are."""


@dataclass(frozen=True)
class Companion:
    """An intervention that a hook or an operation on the logits carries: rows under it run beside those that it looks
    at, on top of all else that is in force for them."""

    prompts: Sequence[Rewriting]
    """Its rewritings of prompts, which come after those in force, innermost first."""
    set_rows: Callable[[Sequence[bool]], None] | None
    """Say which rows of the forward passes from here on are under it; None where it changes prompts alone."""


class Outcome(NamedTuple):
    """What becomes of several candidates for one text."""

    chosen: int
    """Which of them it is, by index."""
    text: str | None = None
    """What stands in its place; None where it stays."""


@dataclass(frozen=True)
class OutputFunction:
    """A choice among texts that were written whole, or their replacement (`interventions.channels.Output`)."""

    candidates: int
    """Texts that each choice is among."""
    decide: Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[Outcome]]
    """decide(prompts, candidates of each prompt)."""


@dataclass
class InForce:
    """What is in force on one model."""

    methods: list[str] = field(default_factory=list)
    """Methods of the interventions that are on, the first one first."""
    prompts: list[Rewriting] = field(default_factory=list)
    """Rewritings of prompts, innermost first."""
    logit_functions: list[LogitFunction] = field(default_factory=list)
    """Functions on the next-token logits, the first one first."""
    companions: list[Companion] = field(default_factory=list)
    """What those functions and hooks carry; the first one has number 1, and 0 stands for a row itself."""
    compared: list[int] = field(default_factory=list)
    """Which of them hooks carry, which compare rows with them."""
    outputs: list[OutputFunction] = field(default_factory=list)
    """Choices among whole texts, the first one first."""
    side_paths: dict[str, list[Factors]] = field(default_factory=dict)
    """Low-rank changes that act beside the linear map at a path, innermost first."""
    reserved: int = 0
    """Positions that a prefix takes."""
    route: Route | None = None
    """Which intervention is in force for which rows."""
    prompt_positions: tuple[int, int] = (1, 0)
    """Rows of the forward pass under way, and how many leading positions of each are prompt (`Model.reading`)."""
    beside: Mapping[int, Tensor] = field(default_factory=dict)
    """Of the forward pass under way the rows that are a sample's own (0), [samples], and for each of `compared` the row
    beside each of those, [samples], by index. Empty where none was announced."""

    @property
    def reads_texts(self) -> bool:
        """Whether all of it is in force where texts are given and read, and not only where they are generated."""
        return not self.outputs and all(AFTER not in function.asks for function in self.logit_functions)

    def of_rows(self, records: Sequence[str]) -> list[str]:
        """The methods that the rows of these records are under, the first one first."""
        routed = [self.route.method(record) for record in records] if self.route is not None else []
        return list(dict.fromkeys([*self.methods, *routed]))
