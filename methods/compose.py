"""Several methods at once, fitted one upon the other: does what each of them gains add up?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from detoxbench.config import build, identity, knob
from detoxbench.data.examples import FitData, Role
from detoxbench.errors import UsageError, did_you_mean
from detoxbench.fitting.shelf import upon
from detoxbench.interventions.intervention import Intervention, compose
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method, Scope
from detoxbench.registry import METHODS


class _NoSettings(dict[str, dict[str, Any]]):
    """Empty. Dataclasses take a default only where it has a hash."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which methods, in which order, with which settings."""

    parts: tuple[str, ...] = knob(
        (), "methods in the order in which they are fitted; NAME:METHOD names one that is there twice", source="ours",
        required=True,
    )  # fmt: skip
    part: dict[str, dict[str, Any]] = knob(
        _NoSettings(), "settings of a part by its name: method.part.NAME.KEY=VALUE", source="ours"
    )

    def __post_init__(self) -> None:
        names = [part.partition(":")[0] for part in self.parts]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two parts are called {twice}: name them, as in parts=[a:{twice},b:{twice}]")
        if unknown := sorted(self.part.keys() - set(names)):
            near = did_you_mean(unknown[0], names)
            raise ValueError(f"part.{unknown[0]} is none of parts{near}; they are {', '.join(names) or 'none'}")


class Compose(Method[Config]):
    """Fits each part on the model with the parts before it applied, and applies all of them together.

    Changes of weights add up, hooks run in the order of the parts, and prompts are wrapped from the first part
    (innermost) to the last. Beside it runs each part alone, so that a table shows whether they add up.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> pairs = [db.Pair("you are a rotten fool , go away .", "you are a good friend , stay here .")] * 10
    >>> both = db.methods.create("compose", parts=["destein", "self_reminder"], part={"destein": {"alpha": 0.3}})
    >>> change = both.fit(lm, db.FitData(parallel_pairs=pairs))
    >>> (len(change.hooks) == len(lm.architecture.layers), len(change.prompts))
    (True, 1)
    >>> list(change.info["parts"])
    ['destein', 'self_reminder']
    """

    Config = Config

    @property
    def fidelity(self) -> str:
        lines = "; ".join(f"{name}: {method.fidelity or 'not said'}" for name, method in self.parts.items())
        return f"ours (a composition of {lines or 'the methods in method.parts'})"

    @cached_property
    def parts(self) -> Mapping[str, Method[Any]]:
        """Name -> method, configured, in their order. Raises UsageError for an unknown method or setting, and for one
        that cannot be a part."""
        found: dict[str, Method[Any]] = {}
        for part in self.config.parts:
            name, _, method_name = part.partition(":")
            method_name = method_name or name
            cls, settings = METHODS.get(method_name), self.config.part.get(name, {})
            config = build(cls.Config, settings, f"method.part.{name}", owner=f"method '{method_name}'")
            found[name] = cls(config, name=method_name, seed=self.seed)
            _require_composable(name, found[name])
        return found

    @property
    def reads_texts(self) -> bool:
        return all(method.reads_texts for method in self.parts.values())

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset().union(*(method.needs for method in self.parts.values()))

    @property
    def guides(self) -> Sequence[str]:
        return [guide for method in self.parts.values() for guide in method.guides]

    def fingerprints(self) -> Mapping[str, str]:
        parts = zip(self._places(), self.parts.values(), strict=True)
        return {f"{place}.{key}": value for place, m in parts for key, value in m.fingerprints().items()}

    def places(self) -> Mapping[str, str]:
        parts = zip(self._places(), self.parts.values(), strict=True)
        return {f"{place}.{key}": value for place, m in parts for key, value in m.places().items()}

    def identity(self) -> dict[str, Any]:
        """Of each part its version and all its settings, under the name of its method: names of parts are for people.
        `config` has only what differs from the defaults, so that labels stay short."""
        self.given("parts")
        changed: dict[str, dict[str, Any]] = {}
        whole: dict[str, Any] = {}
        for place, method in zip(self._places(), self.parts.values(), strict=True):
            own = method.identity()["config"]  # asks for what must be given
            usual = identity(type(method.config)())
            changed[place] = {key: value for key, value in own.items() if value != usual[key]}
            whole |= {f"{place}.version": method.version, f"{place}.config": own}
        config = {"parts": "+".join(self._places()), "part": {place: of for place, of in changed.items() if of}}
        return {"name": self.name, "version": self.version, "config": config, **whole, **self.fingerprints()}

    def _places(self) -> list[str]:
        """For each part the name of its method, and which of several."""
        names = [method.name for method in self.parts.values()]
        earlier = [names[:i].count(name) for i, name in enumerate(names)]
        return [f"{name} {seen + 1}" if seen else name for name, seen in zip(names, earlier, strict=True)]

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        self.given("parts")
        data.require(self.needs, self.name)
        fitted: dict[str, Intervention] = {}
        with ExitStack() as below:
            for name, method in self.parts.items():
                fitted[name] = method.fit(lm, data)
                below.enter_context(lm.applied(fitted[name]))
                below.enter_context(upon(f"{method.version} {fitted[name].digest()}"))
        info = {"order": list(fitted), "parts": {name: dict(one.info) for name, one in fitted.items()}}
        return dataclasses.replace(compose(*fitted.values()), method=self.name, info=info)

    def controls(self) -> Sequence[Any]:
        """Each part alone."""
        if len(self.config.parts) < 2:
            return ()
        settings, names = self.config.part, [part.partition(":")[0] for part in self.config.parts]
        return [
            Config(parts=(part,), part={name: settings[name]} if name in settings else {})
            for part, name in zip(self.config.parts, names, strict=True)
        ]

    def examples(self, data: FitData) -> int:
        return sum(m.examples(FitData(**{r: data.by_role.get(r) for r in m.needs})) for m in self.parts.values())


def _require_composable(name: str, method: Method[Any]) -> None:
    if method.scope is not Scope.ONCE:
        raise UsageError(f"part '{name}' is fitted for each record: a part is fitted once for the suite")
    if method.delivers_texts:
        raise UsageError(f"part '{name}' ({method.name}) has texts and no change: it cannot be a part")
