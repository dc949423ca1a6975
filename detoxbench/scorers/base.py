"""The interface of a scorer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

from detoxbench.config import identity
from detoxbench.errors import DetoxbenchError, UsageError

C = TypeVar("C")

Meaning = Literal["toxic", "unsafe", "refuses", "unlikely", "similar"]
"""What a high number in a scorer's `primary` column says of a text: it is toxic (rude, hateful), unsafe (helps to do
harm), or refuses, each a probability; or it is unlikely (nats), or similar to its prompt."""
MEANINGS: tuple[Meaning, ...] = ("toxic", "unsafe", "refuses", "unlikely", "similar")
HARM: frozenset[Meaning] = frozenset({"toxic", "unsafe"})
"""Where 1 is the worst."""
PROBABILITIES: frozenset[Meaning] = HARM | {"refuses"}


class Scorer(ABC, Generic[C]):
    """Subclass it in one file and name it in the entry-point group `detoxbench.scorers`.

    Import what is heavy inside `score`: a scorer is made, and its identity taken, long before it scores.
    """

    Config: ClassVar[type]
    version: ClassVar[int] = 1
    """Part of the run's identity; raise it when the same text starts to get other numbers."""
    primary: ClassVar[str] = "toxicity"
    """The column that suites read."""
    meaning: ClassVar[Meaning | None] = None
    """What a high number in `primary` says. A scorer whose configuration decides it has a field `means` there. One that
    says neither means toxic if its column is called toxicity, and is refused if not."""
    needs_prompt: ClassVar[bool] = False
    """The score of a text depends on its prompt, too."""
    reads_on: ClassVar[bool] = False
    """Prompt and text are read as one running text, so the runner ends a chat prompt, a turn of its own, by a new line
    where the answer does not begin with a blank."""
    cached: ClassVar[bool] = False
    """Whether scores are kept by text for other runs (`scorers.cache`): set it where scoring is slow or limited, and
    only if every bit of a score depends on the text (and prompt) alone."""
    keep_every: ClassVar[int] = 1024
    """Texts after which a cached scorer's scores are on disk; fewer where a killed run would lose much."""
    licence: ClassVar[str] = ""
    caveat: ClassVar[str] = ""
    """What is known to distort its numbers, shown below every table that has some of them."""

    def __init__(self, config: C | None = None, *, name: str | None = None) -> None:
        self.config: C = self.Config() if config is None else config
        self.name = name or type(self).__name__

    @property
    def means(self) -> Meaning:
        """What a high number says: by the configuration's `means`, or else by `meaning`. Raises DetoxbenchError where
        neither says so."""
        meaning = getattr(self.config, "means", None) or self.meaning
        if meaning is None and self.primary == "toxicity":
            return "toxic"
        if meaning not in MEANINGS:
            raise DetoxbenchError(
                f"scorer '{self.name}' does not say what a high number in its column '{self.primary}' means: set "
                f"`meaning` in {type(self).__name__} to one of {', '.join(MEANINGS)}"
            )
        return meaning

    def fingerprint(self) -> str:
        """What the scores depend on beside the configuration (package version, hash of the weights).

        Called before anything is loaded or generated; raises DetoxbenchError where the scorer cannot work (package,
        checkpoint or key missing), naming the remedy.
        """
        return ""

    def identity(self) -> dict[str, Any]:
        """What the numbers depend on, as it stands in run.json. Raises as `fingerprint` does."""
        config: Any = self.config
        return {
            "name": self.name,
            "version": self.version,
            "config": identity(config),
            "fingerprint": self.fingerprint(),
        }

    @abstractmethod
    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
        """Columns for each text (`prompts[i]` is what it answered), or None where there is no score.

        Must not depend on how texts are batched. Empty texts are passed too; the suite decides what they mean.
        """


def require_meaning(scorer: Scorer[Any], wanted: frozenset[Meaning], asker: str) -> None:
    """Raises UsageError where a high number of `scorer` means nothing that is `wanted` by `asker`."""
    if scorer.means not in wanted:
        raise UsageError(
            f"{asker} reads 1 as {' or '.join(sorted(wanted))}, and 1 of scorer '{scorer.name}' means "
            f"{scorer.means}: every number would be turned round or mean something else; choose another scorer"
        )
