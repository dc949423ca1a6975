"""Names to classes, through entry points: built-in and third-party components are found in the same way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from detoxbench.config import build
from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Components of one kind, found in the entry-point group `detoxbench.<kind>s` and imported when first asked for.

    `base` is "module:Class"; what an entry point delivers must be a subclass of it.
    """

    def __init__(self, kind: str, base: str) -> None:
        self.kind = kind
        self._base = base
        self._loaded: dict[str, type[T]] = {}

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        entries: dict[str, EntryPoint] = {}
        # Two copies of one distribution on sys.path announce the same entry twice; only different claims clash.
        for entry in entry_points(group=f"detoxbench.{self.kind}s"):
            other = entries.setdefault(entry.name, entry)
            if other.value != entry.value:
                raise DetoxbenchError(
                    f"two packages claim the {self.kind} '{entry.name}': {_owner(other)} ({other.value}) and "
                    f"{_owner(entry)} ({entry.value}); uninstall one of them"
                )
        return entries

    def names(self) -> list[str]:
        """Registered names, sorted; imports nothing."""
        return sorted(self._entries)

    def get(self, name: str) -> type[T]:
        """The class called `name`. Raises UsageError for an unknown name, DetoxbenchError for a broken plugin."""
        if name in self._loaded:
            return self._loaded[name]
        if name not in self._entries:
            raise UsageError(
                f"unknown {self.kind} '{name}'{did_you_mean(name, self._entries)}; known: {', '.join(self.names())}"
            )
        entry = self._entries[name]
        try:
            cls = entry.load()
        except Exception as error:
            raise DetoxbenchError(
                f"the {self.kind} '{name}' of {_owner(entry)} cannot be imported ({entry.value}): "
                f"{type(error).__name__}: {error}"
            ) from error
        module, attribute = self._base.split(":")
        base = getattr(__import__(module, fromlist=[attribute]), attribute)
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise DetoxbenchError(f"the {self.kind} '{name}' of {_owner(entry)} is not a subclass of {self._base}")
        self._loaded[name] = cls
        return cls

    def create(self, name: str, config: Mapping[str, Any], **more: Any) -> T:
        """The component `name`, configured by its own fields; the others of its constructor are `more`.

        Raises UsageError for an unknown name, field or value.
        """
        cls: Any = self.get(name)
        return cls(build(cls.Config, config, "", owner=f"{self.kind} '{name}'"), name=name, **more)

    def working(self) -> Iterator[tuple[str, type[T]]]:
        """Every (name, class) that can be imported; a broken plugin is warned about by name and left out."""
        for name in self.names():
            try:
                yield name, self.get(name)
            except DetoxbenchError as error:
                warnings.warn(str(error), stacklevel=2)


def _owner(entry: EntryPoint) -> str:
    return f"package '{entry.dist.name}'" if entry.dist else "an unknown package"


METHODS: Registry[Any] = Registry("method", "detoxbench.methods.base:Method")
SUITES: Registry[Any] = Registry("suite", "detoxbench.suites.base:Suite")
SCORERS: Registry[Any] = Registry("scorer", "detoxbench.scorers.base:Scorer")
REGISTRIES = {registry.kind: registry for registry in (METHODS, SUITES, SCORERS)}
"""By kind; the packages methods, suites and scorers offer the same with their types."""
