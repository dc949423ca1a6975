"""The interface of a suite: records to requests, scored samples to measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from detoxbench.config import identity
from detoxbench.errors import UsageError
from detoxbench.records import Measure, Request, Sample, Scored
from detoxbench.scorers.base import HARM, Meaning, Scorer, require_meaning

if TYPE_CHECKING:
    from detoxbench.data.examples import EditRecord
    from detoxbench.lm import LanguageModel

C = TypeVar("C")

READS = "given texts are read, nothing is generated; of gen nothing has a part in it"
"""The `protocol` of a suite all of whose requests have a text."""


class Observation(NamedTuple):
    """What a `Probe` saw at one request: `state` in a form of its own, and how much of the request was read."""

    state: Any
    tokens: int
    """Tokens of the request's text that were read."""
    cut: int
    """Tokens that its prompt lost to fit the model's context."""


class Probe(ABC):
    """Measures inside a model. It is made on the unmodified model, where it learns the values to compare with. Then it
    measures every request in the unmodified model and under the intervention, which the runner applies and removes."""

    @abstractmethod
    def __init__(self, lm: LanguageModel, config: Any, requests: Sequence[Request]) -> None:
        """`config` is the suite's, `requests` are all of its requests, whichever are left to look at."""

    @abstractmethod
    def measure(self, request: Request) -> Observation:
        """Measure the model as it is now. The result may not depend on other requests."""

    @abstractmethod
    def values(self, request: Request, before: Any, after: Any) -> dict[str, list[float]]:
        """`Sample.values`, from the states seen without and with the intervention (under method none, equal ones)."""


class Suite(ABC, Generic[C]):
    """Subclass it in one file and name it in the entry-point group `detoxbench.suites`. Imports no torch."""

    Config: ClassVar[type]
    version: ClassVar[int] = 1
    """Part of the run's identity; raise it when the same answers start to give other numbers."""
    paper: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    """Licence of the published data."""
    data: ClassVar[str] = ""
    """Where the published data is, and how much of it there is."""
    measured: ClassVar[str] = ""
    """The headline metrics by name, then the others."""
    cost: ClassVar[str] = ""
    """What one run costs: answers, and models beside the one that answers."""
    protocol: ClassVar[str] = ""
    """How it asks, in words, where the `gen` of its file does not say everything."""
    main_means: ClassVar[frozenset[Meaning]] = HARM
    """What a high number of the run's scorer may mean here (`Scorer.means`); not read where `needs_scorer` is False."""
    auxiliary_means: ClassVar[Mapping[str, Meaning]] = {
        "refusal": "refuses",
        "fluency": "unlikely",
        "similarity": "similar",
    }
    """The same for the scorers that it brings, by slot."""
    needs_scorer: ClassVar[bool] = True
    """False: no scorer is asked, as its metrics need none, and all scores are None without being missing."""
    probe: ClassVar[type[Probe] | None] = None
    """The class that measures inside the model; such a suite generates nothing."""

    def __init__(self, config: C | None = None, *, name: str | None = None) -> None:
        self.config: C = self.Config() if config is None else config
        self.name = name or type(self).__name__

    @abstractmethod
    def requests(self) -> list[Request]:
        """Read and validate the data, and ask. Raises DetoxbenchError naming file, line and field."""

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on in addition to its requests and scorers, as it stands in run.json."""
        config: Any = self.config
        return {"name": self.name, "version": self.version, "config": identity(config)}

    def edit_records(self) -> dict[str, EditRecord]:
        """`Request.record` -> the record that a method which fits once a record is given. Raises UsageError here."""
        raise UsageError(
            f"suite '{self.name}' has no edit records, so nothing can be fitted for each of its records: "
            "set method.protocol=once, or choose suite=safeedit"
        )

    def toxic(self, score: float) -> bool:
        """Whether a score of the run's scorer is above this suite's threshold; an answer at or below it is fine."""
        return score > 0.5

    def auxiliary(self) -> dict[str, dict[str, Any]]:
        """Scorers that the suite adds to the run's own: slot -> {"name": ..., other configuration}."""
        return {}

    def check_scorers(self, scorers: Mapping[str, Scorer[Any]]) -> None:
        """Raises UsageError where a scorer, by slot, does not mean what the suite reads it as."""
        for slot, scorer in scorers.items():
            if slot in self.auxiliary_means:
                require_meaning(scorer, frozenset({self.auxiliary_means[slot]}), f"suite '{self.name}' ({slot})")
            elif slot == "main" and self.needs_scorer:
                require_meaning(scorer, self.main_means, f"suite '{self.name}'")

    @abstractmethod
    def measures(self, samples: Sequence[Sample], scores: Sequence[Scored], primary: str) -> list[Measure]:
        """Read the metrics off. `scores[i]` belongs to `samples[i]`; `primary` is the column of the main scorer."""
