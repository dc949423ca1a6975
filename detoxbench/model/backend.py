"""What computes a model's forward passes where this process does not hold it as a torch module of transformers.

Everything around the passes is the same code: prompts and their templates, truncation, batches, choices among whole
texts, stops, and what becomes of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, Protocol

from detoxbench.config import GenSpec
from detoxbench.records import Request


class Row(Protocol):
    """One sample while it is generated (`engine.generation`)."""

    request: Request
    sample: int
    key: int
    """Its noise key."""
    new: list[int]
    """The tokens of its text so far, which the backend fills."""
    near_ties: int
    done: bool

    @property
    def prompt(self) -> list[int]:
        """The token ids of its prompt."""


class Read(Protocol):
    """One sequence that is read (`engine.likelihood.Window`)."""

    @property
    def ids(self) -> list[int]:
        """All token ids."""

    @property
    def context_length(self) -> int:
        """How many of them come before the continuation."""

    @property
    def record(self) -> str:
        """The record that it belongs to."""


class Backend(Protocol):
    """The forward passes of a model, under what is in force on it."""

    loading_seconds: float
    """What loading has taken so far: it happens when something is asked for, and is no part of what that takes."""

    def write(self, rows: Sequence[Row], gen: GenSpec, ends: Set[int]) -> None:
        """Generate for all rows until one of the tokens `ends` or `gen.max_new_tokens`: fills their `new`, `near_ties`
        and `done`. Raises NonFiniteError like `engine.generation.generate`."""

    def nlls(self, windows: Sequence[Read], outside: bool) -> list[tuple[float, bool]]:
        """`engine.likelihood.window_nlls`."""

    def described(self) -> dict[str, Any]:
        """How it computes, for the record of a run (`provenance.arithmetic`)."""
