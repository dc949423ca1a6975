"""Scorers: one file each, found as methods are.

A scorer turns a text into numbers, or into None where it has no score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detoxbench.registry import SCORERS, Registry

if TYPE_CHECKING:
    from detoxbench.scorers.base import Scorer

registry: Registry[Scorer[Any]] = SCORERS
names, get, working = registry.names, registry.get, registry.working


def create(name: str, **config: Any) -> Scorer[Any]:
    """The scorer `name`, configured by its own fields: `scorers.create("word_list", data="words.txt")`.

    Defaults are the published ones. Raises UsageError for an unknown name, field or value.
    """
    return registry.create(name, config)
