"""The methods, a file each, found by name through their entry points, as methods of third parties are.

names()                        registered names, sorted
get("destein")                 the class
create("destein", alpha=0.3)   a configured method
working()                      every (name, class) that can be imported
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detoxbench.registry import METHODS, Registry

if TYPE_CHECKING:
    from detoxbench.methods.base import Method

registry: Registry[Method[Any]] = METHODS
names, get, working = registry.names, registry.get, registry.working


def create(name: str, *, seed: int = 0, **config: Any) -> Method[Any]:
    """The method `name`, configured by its own fields: `methods.create("destein", alpha=0.3, seed=1)`.

    Defaults are the published ones. Raises UsageError for an unknown name, field or value.
    """
    return registry.create(name, config, seed=seed)
