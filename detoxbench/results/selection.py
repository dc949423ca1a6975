"""Selection of finished runs by names or patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from detoxbench.config import BASE
from detoxbench.errors import UsageError, did_you_mean
from detoxbench.results.settings import shared_identity
from detoxbench.results.store import Run, RunRecord, readable


class Entry(NamedTuple):
    """A finished run with its record."""

    run: Run
    record: RunRecord

    @property
    def shared(self) -> dict[str, Any]:
        """The part of its identity that comparable runs have in common."""
        return shared_identity(self.record)


@dataclass(frozen=True)
class Selection:
    """Names or patterns ("gpt*"): a run is taken that matches one of each; nothing means all.

    The base (method none) always stays, since differences are to it.
    """

    model: Sequence[str] = ()
    suite: Sequence[str] = ()
    method: Sequence[str] = ()
    scorer: Sequence[str] = ()

    def of(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries that match. Raises UsageError for a pattern that matches no run."""
        left = list(entries)
        for field in fields(self):
            left = _matching(left, field.name, getattr(self, field.name))
        return left


EVERYTHING = Selection()


def _matching(entries: list[Entry], key: str, patterns: Sequence[str]) -> list[Entry]:
    if not patterns:
        return entries
    names = sorted({getattr(entry.record, key) for entry in entries})
    for pattern in patterns:
        if entries and not fnmatch.filter(names, pattern):
            near = did_you_mean(pattern, names)
            raise UsageError(f"no run with {key} '{pattern}'{near}; there are: {', '.join(names)}")
    chosen = {name for name in names for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
    chosen |= {BASE} if key == "method" else set()
    return [entry for entry in entries if getattr(entry.record, key) in chosen]


def finished(
    folder: str | Path, selection: Selection = EVERYTHING, *, notes: list[str], whole: bool = False
) -> list[Entry]:
    """The selected runs under `folder`; what cannot be read is named in `notes` (`store.readable`).

    Raises DetoxbenchError when there is no such folder, UsageError as `Selection.of`.
    """
    return selection.of([Entry(run, record) for run, record in readable(Path(folder), notes, whole=whole)])
