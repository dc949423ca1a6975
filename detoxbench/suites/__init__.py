"""Suites: the prompts for a model, and the metrics of its answers. One file each, found as methods are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detoxbench.registry import SUITES, Registry

if TYPE_CHECKING:
    from detoxbench.suites.base import Suite

registry: Registry[Suite[Any]] = SUITES
names, get, working = registry.names, registry.get, registry.working


def create(name: str, **config: Any) -> Suite[Any]:
    """The suite `name`, configured by its own fields: `suites.create("safeedit", limit=10)`.

    Defaults are the published ones. Raises UsageError for an unknown name, field or value.
    """
    return registry.create(name, config)
