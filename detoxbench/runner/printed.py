"""Text that is printed from the classes, so that nothing is written twice: conf/, and tables in docs/.

`make printed` (python -m detoxbench.runner.printed) prints them in a checkout; a test says when they differ.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from inspect import cleandoc
from pathlib import Path
from typing import Any

from detoxbench import methods, suites
from detoxbench.config import GenSpec
from detoxbench.data.roles import ROLES, fit_spec
from detoxbench.errors import UsageError
from detoxbench.methods.base import Scope
from detoxbench.registry import REGISTRIES
from detoxbench.runner.composition import conf_dir, options
from detoxbench.runner.method_pages import first_sentence, markdown, method_pages

NOT_TEXTS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""Words that YAML takes for something else."""


def printed(root: Path) -> Iterator[tuple[Path, str]]:
    """(file, what it should hold) for every file of the checkout at `root` of which a part is printed."""
    conf = root / "conf"
    for kind, registry in REGISTRIES.items():
        for name, cls in registry.working():
            file = conf / kind / f"{name}.yaml"
            if file.is_file():  # a third party's lies elsewhere, and some are settings of other components
                yield file, _with_settings(file.read_text(encoding="utf-8"), name, cls.Config)
    file = conf / "config.yaml"
    yield file, _with_roles(file.read_text(encoding="utf-8"))
    for page, name, table in (
        ("methods", "methods", methods_table), ("suites", "suites", suites_table), ("data", "roles", roles_table),
    ):  # fmt: skip
        file = root / "docs" / f"{page}.md"
        yield file, _with_table(file.read_text(encoding="utf-8"), name, table())
    yield from method_pages(root)


def _with_settings(text: str, name: str, config: Any) -> str:
    """The file of a component, with its settings printed from the class, each at its default. They replace the line
    of its name and the lines below it that have the same indentation."""
    block = re.search(rf"^( *)name: {re.escape(name)}\n(?:\1[^\s#].*\n)*", text, re.MULTILINE)
    if block is None:
        raise ValueError(f"no line 'name: {name}'")
    indent = block[1]
    settings = {"name": name} | {field.name: field.default for field in fields(config)}
    lines = [f"{indent}{_yaml(key, value)}\n" for key, value in settings.items()]
    return text[: block.start()] + "".join(lines) + text[block.end() :]


def _with_roles(text: str) -> str:
    """The root file with the settings of fit data, each with its meaning behind it."""
    lines = [(_yaml(field.name, field.default), field.metadata["help"]) for field in fields(fit_spec())]
    width = max(len(line) for line, _ in lines)
    block = "".join(f"  {line:{width}}   # {meaning}\n" for line, meaning in lines)
    return re.sub(r"(?<=^fit: )( *#[^\n]*\n)(?:  .*\n)*", lambda m: m[1] + block, text, flags=re.MULTILINE)


def _yaml(key: str, value: Any) -> str:
    """A setting as one line of YAML: JSON is YAML, but for a number like 1e-06, which would be a text."""
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value) and value.lower() not in NOT_TEXTS:
        text = value
    if isinstance(value, float):
        text = re.sub(r"^(-?\d+)e", r"\1.0e", text)
    return f"{key}: {text}"


# ----------------------------------------------------------------------------------------------------- tables in docs/


def _with_table(text: str, kind: str, table: str) -> str:
    """The page with this table where it says `<!-- printed: KIND -->`."""
    return re.sub(rf"(?<=<!-- printed: {kind} -->\n).*?(?=<!-- end -->)", lambda _: table, text, flags=re.DOTALL)


def methods_table() -> str:
    """Every method of this package as Markdown: what it does, is fitted on and is from, and how near it is to that."""
    rows = [("method", "what it does", "fitted", "fit data", "paper", "licence", "fidelity")]
    for name, cls in methods.working():
        if cls.__module__.startswith("detoxbench."):
            method = cls()
            fitted = "once" if method.scope is Scope.ONCE else "for each record"
            data = ", ".join(sorted(method.needs)) or "–"
            about = first_sentence(cleandoc(cls.__doc__ or ""))
            page = f"[{name}](methods/{name}.md)"
            rows.append((page, about, fitted, data, cls.paper or "–", cls.licence or "–", method.fidelity))
    return markdown(rows)


def suites_table() -> str:
    """Every suite of this package as Markdown: what it asks, how, of which data, what is measured, what a run costs."""
    rows = [("suite", "what it does", "protocol", "published data", "licence", "metrics", "a run")]
    for name, cls in suites.working():
        if cls.__module__.startswith("detoxbench."):
            about = first_sentence(cleandoc(cls.__doc__ or ""))
            rows.append((f"`{name}`", about, protocol(name), cls.data, cls.licence, cls.measured, cls.cost))
    return markdown(rows)


def roles_table() -> str:
    """Every role as Markdown: what its examples are, which files are read, and which methods take it by default."""
    takers = {name: cls().needs for name, cls in methods.working() if cls.__module__.startswith("detoxbench.")}
    rows = [("role", "what it holds", "an example", "published files", "embedded", "taken by")]
    for role, row in ROLES.items():
        examples: Any = row.embedded()
        example = f"`{type(examples[0]).__name__}({', '.join(examples[0]._fields)})`"
        taken = ", ".join(f"`{name}`" for name, needs in takers.items() if role in needs)
        rows.append((f"`{role}`", row.meaning, example, row.published, str(len(examples)), taken))
    return markdown(rows)


def protocol(suite: str) -> str:
    """How a suite's own file has texts generated, in words; "" without a file."""
    file = options("suite").get(suite)
    if file is None:
        return ""
    cls = suites.get(suite)
    if cls.protocol:
        return cls.protocol
    if cls.probe is not None:
        return "looks inside the model, nothing is generated; of gen nothing has a part in it"
    return _generation(_section(file, "gen"))


def _section(file: Path, key: str) -> Mapping[str, Any]:
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.to_container(OmegaConf.load(file))
    return (settings or {}).get(key, {})


def _generation(settings: Mapping[str, Any]) -> str:
    gen = GenSpec(**settings)  # a file may leave out what is at its default
    drawn = f"sampled (temperature {gen.temperature}, top-p {gen.top_p}, top-k {gen.top_k})"
    samples = "one answer" if gen.n == 1 else f"{gen.n} answers"
    return f"{samples} a prompt, {drawn if gen.do_sample else 'greedy'}, at most {gen.max_new_tokens} new tokens"


def unregistered(root: Path) -> list[Path]:
    """The settings, and pages, of no registered component, which nothing can be printed into."""
    files = [(kind, sorted((root / "conf" / kind).glob("*.yaml"))) for kind in REGISTRIES]
    files.append(("method", sorted((root / "docs" / "methods").glob("*.md"))))
    return [f.relative_to(root) for kind, of in files for f in of if f.stem not in REGISTRIES[kind].names()]


def main() -> int:
    """Print every file of this checkout that differs. Returns 1 where some settings belong to nothing registered."""
    root = conf_dir().parent
    if not (root / "docs" / "suites.md").is_file():
        raise UsageError(f"'{root}' is no checkout: conf/ and docs/ are printed in one")
    for file, text in printed(root):
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(f"printed {file.relative_to(root)}")
    left = unregistered(root)
    for file in left:
        print(f"{file} is of no registered component: add it to pyproject.toml, and pip install -e . again")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
