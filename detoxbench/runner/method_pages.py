"""A page of documentation for every method, printed from its module and class: docs/methods/NAME.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from inspect import cleandoc
from itertools import takewhile
from pathlib import Path
from typing import Any

from detoxbench import methods
from detoxbench.methods.base import Method, Scope

SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def method_pages(root: Path) -> Iterator[tuple[Path, str]]:
    """(file, what it should hold) for each method of this package, in the checkout at `root`."""
    for name, cls in methods.working():
        if cls.__module__.startswith("detoxbench."):
            yield root / "docs" / "methods" / f"{name}.md", _page(name, cls, root / "conf")


def _page(name: str, cls: type[Method[Any]], conf: Path) -> str:
    """What it does with its formula, where it is from, what can be set, and the settings that come with detoxbench."""
    parts = [
        f"# `{name}`",
        cleandoc(sys.modules[cls.__module__].__doc__ or ""),
        _with_fenced_examples(cleandoc(cls.__doc__ or "")),
        "\n".join(_facts(cls)),
        "## Settings",
        _settings(cls.Config),
    ]
    if presets := [*_presets(name, conf)]:
        parts += ["## Presets", "\n".join(presets)]
    parts.append("<!-- printed from the class by `make printed` -->")
    return "\n\n".join(parts) + "\n"


def _facts(cls: type[Method[Any]]) -> Iterator[str]:
    method = cls()
    yield f"- Paper: {cls.paper or 'none'}"
    yield f"- Licence of the released code: {cls.licence or 'none'}"
    yield f"- Fidelity: {method.fidelity}"
    yield f"- Fitted {'once for a suite' if method.scope is Scope.ONCE else 'for each record'}"
    yield f"- Fit data: {', '.join(f'`fit.{role}`' for role in sorted(method.needs)) or 'none'}"


def _settings(config: Any) -> str:
    """A table of the fields of a configuration."""
    if not fields(config):
        return "There is nothing to set."
    rows = [("`method.`", "default", "what it is", "default from")]
    for field in fields(config):
        bounds = ", ".join(f"{SIGNS[sign]} {bound}" for sign, bound in field.metadata["bounds"].items())
        switch = ", ".join(f"{value!r} at fidelity={at}" for at, value in field.metadata.get("switch", {}).items())
        more = [bounds, switch and f"null is {switch}"]
        about = "; ".join([field.metadata["help"], *filter(None, more)])
        rows.append((f"`{field.name}`", f"`{field.default!r}`", about, field.metadata["source"] or "–"))
    return markdown(rows).rstrip()


def _presets(name: str, conf: Path) -> Iterator[str]:
    """The experiments that choose the method, and its settings for single models: what the file says first."""
    for file in sorted((conf / "experiment").rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        if f"override /method: {name}\n" in text or f"override /method: {name} " in text:
            experiment = file.relative_to(conf / "experiment").with_suffix("").as_posix()
            yield f"- `experiment={experiment}`: {_first_comment(text)}"
    for file in sorted((conf / "tuned" / "method").glob(f"*_{name}.yaml")):
        yield f"- taken by itself {_first_comment(file.read_text(encoding='utf-8'))}"


def _first_comment(text: str) -> str:
    """The first sentence of the comment that a file begins with, without its command."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    said = [line.lstrip("# ") for line in lines if "@package" not in line]
    return first_sentence(" ".join(takewhile(lambda line: not line.startswith("detoxbench"), said)))


def first_sentence(text: str) -> str:
    """Up to the first full stop that a blank follows."""
    return " ".join(re.split(r"(?<=\.)\s", text.partition("\n\n")[0], maxsplit=1)[0].split())


def _with_fenced_examples(text: str) -> str:
    """The docstring with its session as a block of code."""
    before, mark, session = text.partition(">>> ")
    return f"{before}```python\n{mark}{session.rstrip()}\n```" if mark else text


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, headings first."""
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"
