"""Errors that a user can act on: one line that names the thing, the place and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DetoxbenchError(Exception):
    """Something went wrong that the message explains in one line (exit code 1)."""


class UsageError(DetoxbenchError):
    """The request itself is wrong: unknown name, key or value (exit code 2)."""


class NonFiniteError(DetoxbenchError, ValueError):
    """A number that is none (NaN, infinity) where everything that follows would be computed from it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""
