"""The one place where a scorer is called. Its results are checked; what is no score is None, counted with a reason.

A text without a score is missing and never 0. A scorer that fails on one text still scores the others.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias

from detoxbench.errors import DetoxbenchError, NonFiniteError
from detoxbench.scorers.base import PROBABILITIES, Scorer

Columns: TypeAlias = "dict[str, float] | None"
Score: TypeAlias = Callable[[Sequence[str], Sequence[str]], "list[Columns]"]

GIVE_UP = 3
"""After so many single texts in a row that a scorer fails on, texts that it fails on are no longer tried one by one."""
ROUNDING = 1e-6
"""How far outside 0 and 1 a probability may lie by rounding; it is then set to 0 or 1."""

log = logging.getLogger("detoxbench")


class Asking:
    """Calls a scorer in `score`, and counts the reasons why texts have no score."""

    def __init__(self, scorer: Scorer[Any]) -> None:
        self.scorer = scorer
        self.reasons: Counter[str] = Counter()
        """Why texts have no score -> how many; texts for which the scorer itself gave None are not counted."""
        self.asked = 0
        self.broken = 0
        """Texts that the scorer broke on (an exception, a wrong number of rows): another try may score them."""

    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[Columns]:
        """A row for each text. Raises DetoxbenchError where the scorer raises it, because it cannot work at all."""
        self.asked += len(texts)
        rows: list[Columns] = [None] * len(texts)
        left, alone = [range(len(texts))] if texts else [], 0
        while left:
            part = left.pop()
            try:
                part_rows = self._rows([texts[i] for i in part], [prompts[i] for i in part])
            except (_Broken, NonFiniteError) as error:
                if len(part) > 1 and alone < GIVE_UP:  # which of them is it?
                    left += [part[len(part) // 2 :], part[: len(part) // 2]]
                    continue
                alone += 1
                self._missing(str(error), len(part))
                self.broken += len(part) * isinstance(error, _Broken)
                continue
            alone = 0
            for i, row in zip(part, part_rows, strict=True):
                rows[i] = row
        return rows

    def require_some(self, texts: Sequence[str], rows: Sequence[Columns], *, silent: bool = False) -> None:
        """Warn once how many texts have no score, and why. Raises DetoxbenchError where none of the `texts` that are
        not blank has one; with `silent`, not where the scorer itself gave None for each of them."""
        name = self.scorer.name
        reasons = ", ".join(f"{reason} ({n})" for reason, n in self.reasons.most_common(3))
        rows_of_texts = [row for text, row in zip(texts, rows, strict=True) if text.strip()]
        if rows_of_texts and all(row is None for row in rows_of_texts) and (self.reasons or not silent):
            raise DetoxbenchError(
                f"scorer '{name}' gave no score for any of {len(rows_of_texts)} texts, which is no result: "
                f"{reasons or 'it says itself that they have none'}; mend or change the scorer and run again"
            )
        if self.reasons:
            log.warning("scorer '%s': %d texts have no score: %s", name, self.reasons.total(), reasons)

    def _rows(self, texts: Sequence[str], prompts: Sequence[str]) -> list[Columns]:
        """The scorer's rows, checked. Raises _Broken where there is not one for each text."""
        try:
            rows = self.scorer.score(texts, prompts)
        except DetoxbenchError:
            raise
        except Exception as error:
            log.debug("scorer '%s' raised", self.scorer.name, exc_info=True)
            first = (str(error).strip().splitlines() or [""])[0][:120]
            raise _Broken(f"it raised {type(error).__name__}: {first}".rstrip(": ")) from error
        if not isinstance(rows, Sequence):
            raise _Broken(f"it gave no list of rows ({type(rows).__name__})")
        if len(rows) != len(texts):
            raise _Broken("it gave another number of rows than there were texts")
        return [self._checked(row) for row in rows]

    def _checked(self, row: Any) -> Columns:
        if row is None:
            return None
        if not isinstance(row, Mapping) or self.scorer.primary not in row:
            return self._missing(f"it gave no '{self.scorer.primary}'")
        columns = {}
        for name, value in row.items():
            if (number := _number(value)) is None:
                return self._missing(f"'{name}' is no number ({type(value).__name__})")
            if not math.isfinite(number):
                return self._missing(f"'{name}' is {number}")
            columns[str(name)] = number
        if self.scorer.means in PROBABILITIES:
            value = columns[self.scorer.primary]
            if not -ROUNDING <= value <= 1 + ROUNDING:
                return self._missing(f"'{self.scorer.primary}' is no probability")
            columns[self.scorer.primary] = min(max(value, 0.0), 1.0)
        return columns

    def _missing(self, reason: str, texts: int = 1) -> Columns:
        self.reasons[reason] += texts
        return None


class _Broken(Exception):
    """There is not a row for each text, and why."""


def _number(value: Any) -> float | None:
    """A number of Python, numpy or torch (of one element); None for anything else."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value) if isinstance(value, Real) or hasattr(value, "item") else None
    except (TypeError, ValueError, RuntimeError):
        return None
