"""The one interface of a detoxification method: data in, an `Intervention` out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from detoxbench.config import applied_fields, identity, required_fields
from detoxbench.data.examples import FitData, Role
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.fitting.shelf import Learned, once

if TYPE_CHECKING:
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel
    from detoxbench.records import Request

C = TypeVar("C")


FIDELITY = (
    "equal to the released code",
    "equal to the released formula",
    "close to the paper",
    "ours",
    "cannot be checked here",
)
"""How near a method is to what was published; each is followed by its evidence in brackets (`Method.fidelity`)."""


class Scope(str, Enum):
    """ONCE: one intervention serves the whole suite. PER_RECORD: one is fitted for each benchmark record."""

    ONCE = "once"
    PER_RECORD = "per_record"


class Method(ABC, Generic[C]):
    """A way of detoxifying a model. Subclass it in one file, name it in the entry-point group `detoxbench.methods`."""

    Config: ClassVar[type]
    """Frozen dataclass of `knob` fields: the schema of conf/method/NAME.yaml and part of the run's identity."""
    version: ClassVar[int] = 1
    """Part of the run's identity; raise it when the same configuration starts to give other numbers."""
    paper: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    """Licence of the released code that the method was checked against."""
    ops: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    """Functions that hooks and logit processors of this method name as "METHOD.OP", so that a saved intervention
    holds tensors and names and never code."""

    @property
    def fidelity(self) -> str:
        """How near this is to what was published, in one line: one of `FIDELITY`, and in brackets the evidence. It
        stands beside every row, and may depend on the configuration; most methods just set `fidelity = "..."`.

            equal to the released code (the golden fixture that a test compares it with)
            equal to the released formula (our independent computation; file and line of the formula)
            close to the paper (by how much, measured where)
            ours (why)
            cannot be checked here (what is missing)
        """
        return ""

    def __init__(self, config: C | None = None, *, name: str | None = None, seed: int = 0) -> None:
        self.config: C = self.Config() if config is None else config
        self.name = name or type(self).__name__
        self.seed = seed

    @property
    def scope(self) -> Scope:
        """Whether one intervention serves the suite or each record gets its own; it may depend on the configuration.

        PER_RECORD needs no `fit.edit_records`: each record of the suite is the edit record of its own intervention.
        """
        return Scope.ONCE

    @property
    def needs(self) -> frozenset[Role]:
        """Fit data that the runner supplies and hashes. A method whose needs never vary just sets `needs = ...`."""
        return frozenset()

    def fingerprints(self) -> Mapping[str, str]:
        """What its numbers depend on in addition to configuration, seed and fit data, such as files that the
        configuration names: name -> digest. Part of the identity; asked before anything is loaded.

        Raises DetoxbenchError where something is missing or cannot work, naming the remedy.
        """
        return {}

    @property
    def guides(self) -> Sequence[str]:
        """The scorers that it is guided by, while it is fitted or when it acts: the run's judge may be none of them."""
        guide = getattr(self.config, "guide", None)
        return [guide] if guide else []

    def places(self) -> Mapping[str, str]:
        """Where that lies of which `fingerprints` has the digest, as far as a setting of that name says it: for people,
        who do not read digests."""
        settings = {key: getattr(self.config, key, None) for key in self.fingerprints()}
        return {key: place for key, place in settings.items() if isinstance(place, str)}

    def given(self, setting: str) -> Any:
        """The value of a setting that must be given. Raises UsageError where it was not."""
        value, config = getattr(self.config, setting), type(self.config)
        if not value:
            (field,) = (field for field in fields(cast(Any, config)) if field.name == setting)
            raise UsageError(f"'method.{setting}' must be given to method '{self.name}': {field.metadata['help']}")
        return value

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on in addition to seed and fit data, as it stands in run.json. Raises as
        `fingerprints`, and UsageError for a setting that must be given and was not."""
        config: Any = self.config
        for setting in required_fields(config):
            self.given(setting)
        return {"name": self.name, "version": self.version, "config": identity(config), **self.fingerprints()}

    @property
    def reads_texts(self) -> bool:
        """Whether its change is in force where texts are given and read, for their likelihood. One that chooses among
        whole texts is not, nor one whose operation asks for the state after candidates; suites that read texts are then
        refused by name. Most methods need not set it."""
        return True

    delivers_texts: ClassVar[bool] = False
    """It has texts that were written elsewhere (`texts`) instead of a change: the model then writes nothing, and what
    `fit` returns is never applied."""

    def texts(self, requests: Sequence[Request], n: int) -> Mapping[str, Sequence[str]]:
        """Where it `delivers_texts`: request id -> its `n` texts. Those that are not in it have none, and are counted.

        Asked before anything is loaded. Raises DetoxbenchError where too much is missing.
        """
        raise DetoxbenchError(f"method '{self.name}' says that it delivers texts and has none: give it a texts()")

    @abstractmethod
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        """Learn the change from `data`. Must leave `lm` exactly as found (weights, hooks, flags, random state)."""

    def learned_once(self, lm: LanguageModel, data: FitData, learn: Callable[[], Learned]) -> Learned:
        """What `learn` gives. Within a run it is kept: fits that differ in knobs marked as `applied` alone, which
        `learn` must not read, learn once, so that a sweep over a strength costs one fit."""

        def reads() -> Any:
            known, applied = self.identity(), applied_fields(self.config)  # type: ignore[arg-type]
            config = {name: value for name, value in known["config"].items() if name not in applied}
            examples = {role: data.by_role.get(role) for role in sorted(self.needs)}
            return [{**known, "config": config}, self.seed, examples]

        return once(lm, reads, learn)

    def fit_many(self, lm: LanguageModel, records: Sequence[FitData], wanted: Sequence[int]) -> Iterator[Intervention]:
        """PER_RECORD: one intervention for each of the `wanted` among all `records`, in that order.

        Each is fitted when the iterator reaches it, and the model is as found whenever one is yielded. The result for a
        record must not depend on which other records are wanted: a resumed run wants only the remaining ones.
        """
        for i in wanted:
            yield self.fit(lm, records[i])

    def controls(self) -> Sequence[C]:
        """Configurations without which this method's row misleads; like the base model, they are run beside it."""
        return ()

    def examples(self, data: FitData) -> int:
        """How many of the examples a fit learns from (a cost)."""
        return data.examples()
