"""The one interface of a detoxification method: data in, an `Intervention` out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from detoxbench.config import identity
from detoxbench.data.examples import FitData, Role

if TYPE_CHECKING:
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

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

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on in addition to seed and fit data, as it stands in run.json. Raises as
        `fingerprints`."""
        config: Any = self.config
        return {"name": self.name, "version": self.version, "config": identity(config), **self.fingerprints()}

    @abstractmethod
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        """Learn the change from `data`. Must leave `lm` exactly as found (weights, hooks, flags, random state)."""

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
