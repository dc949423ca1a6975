"""Has a method been fitted on prompts of the suite? A good number then says little."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Contamination(NamedTuple):
    """Of the suite's prompts, how many a method has read: `shared` of `prompts`; `examples`: three of them at the most.

    `same_file`: fit data and suite are the same file, so all prompts count as read, even if a template changes them.
    """

    shared: int
    prompts: int
    examples: tuple[str, ...]
    same_file: bool

    @property
    def flagged(self) -> bool:
        """Whether the method has read any of the suite's prompts."""
        return self.same_file or self.shared > 0


def contamination(
    fit_texts: Iterable[str],
    prompts: Iterable[str],
    *,
    fit_files: Iterable[str | Path] = (),
    suite_files: Iterable[str | Path] = (),
    shortest: int = 20,
) -> Contamination:
    """Do the texts that a method was fitted on contain prompts of the suite?

    A prompt counts as read when, in lower case and with single blanks, it is one of the fit texts or stands inside one.
    Prompts of fewer than `shortest` characters have to be equal, since short ones stand inside anything. Files are
    compared by content.
    """
    read = {plain for text in fit_texts if (plain := _plain(text))}
    distinct = list(dict.fromkeys(prompts))
    inside = "\n".join(sorted(read))
    shared = [p for p in distinct if (q := _plain(p)) and (q in read or (len(q) >= shortest and q in inside))]
    if {_digest(file) for file in suite_files} & {_digest(file) for file in fit_files}:
        return Contamination(len(distinct), len(distinct), tuple(distinct[:3]), True)
    return Contamination(len(shared), len(distinct), tuple(shared[:3]), False)


def fit_texts(data: Iterable[Iterable[Any]]) -> list[str]:
    """Every text in fit data, however deep: `contamination(fit_texts(data.by_role.values()), prompts)`."""
    texts: list[str] = []

    def visit(value: Any) -> None:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, Iterable):
            for part in value:
                visit(part)

    visit(data)
    return texts


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
