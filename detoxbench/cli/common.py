"""What the verbs share: how arguments are parsed, and how results are shown to people and to programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from detoxbench import terminal
from detoxbench.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from detoxbench.scorers.base import Scorer

OK, FAILURE, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes; the last two are 128 and the signal's number."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are a UsageError in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


FILTERS = ("model", "suite", "method", "scorer")


def add_filters(parser: Parser) -> None:
    """Options that choose among finished runs, one for each of `FILTERS`; `names` reads them."""
    for key in FILTERS:
        base = "; the base stays" if key == "method" else ""
        help_text = f"only runs with this {key}{base}"
        parser.add_argument(f"--{key}", metavar="PATTERN", action="append", default=[], help=help_text)


def names(values: Sequence[str]) -> list[str]:
    """The names in an option's values: separated by commas, or in several options."""
    return [name.strip() for text in values for name in text.split(",") if name.strip()]


def complain(error: object, code: int) -> int:
    """Say on stderr, in one line, what went wrong."""
    print(f"detoxbench: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def console() -> Console:
    """For people; in a pipe or a file without colours and without breaking lines."""
    width = None if sys.stdout.isatty() else 10_000
    return terminal.console(markup=False, highlight=False, emoji=False, width=width)


def duration(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def table(rows: Sequence[Sequence[str]]) -> Any:
    """Rows of texts in columns, as rich shows them."""
    from rich.table import Table

    shown = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        shown.add_row(*row)
    return shown


def print_json(value: Any) -> None:
    """Print a value for programs; what is no text for a terminal stays what it is, as JSON escapes it."""
    import json

    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    print("".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text))


def config_dir(folder: str | None) -> list[str]:
    """What --config-dir means, as an override of run and plan."""
    if folder is None:
        return []
    if not Path(folder).is_dir():
        raise UsageError(f"--config-dir: no folder '{folder}'")
    quoted = str(Path(folder).absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.searchpath=['file://{quoted}']"]


def foreign(overrides: Sequence[str], section: str) -> list[str]:
    """The overrides that are no settings of this section."""
    return [override for override in overrides if not override.startswith(f"{section}.")]


def scorer_of(name: str, overrides: Sequence[str]) -> Scorer[Any]:
    """The scorer as `detoxbench run scorer=NAME scorer.KEY=VALUE` would make it."""
    from detoxbench import scorers
    from detoxbench.runner import composition

    spec = composition.compose_run([f"scorer={name}", *overrides])
    return scorers.get(spec.scorer_name)(spec.scorer, name=spec.scorer_name)
