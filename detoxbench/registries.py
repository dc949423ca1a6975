"""The registries: methods, suites and scorers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detoxbench.config import build
from detoxbench.registry import Registry

if TYPE_CHECKING:
    from detoxbench.methods.base import Method
    from detoxbench.scorers.base import Scorer
    from detoxbench.suites.base import Suite


class MethodRegistry(Registry["Method[Any]"]):
    """The registry of methods, which also makes them."""

    def create(self, name: str, *, seed: int = 0, **config: Any) -> Method[Any]:
        """The method `name`, configured by its own fields: `methods.create("destein", alpha=0.3, seed=1)`.

        Defaults are the published ones. Raises UsageError for an unknown name, field or value.
        """
        cls = self.get(name)
        return cls(build(cls.Config, config, "", owner=f"method '{name}'"), name=name, seed=seed)


methods = MethodRegistry("method", "detoxbench.methods.base:Method")
suites: Registry[Suite[Any]] = Registry("suite", "detoxbench.suites.base:Suite")
scorers: Registry[Scorer[Any]] = Registry("scorer", "detoxbench.scorers.base:Scorer")
