"""`detoxbench list`: models, methods, suites and scorers by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detoxbench.cli.common import OK, Parser, console, print_json, table

KINDS = ("models", "methods", "suites", "scorers")


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(prog="detoxbench list", description="Models, methods, suites and scorers by name.")
    parser.add_argument("kind", nargs="?", choices=KINDS, help="one kind only")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)

    by_kind = {kind: names(kind) for kind in ([args.kind] if args.kind else KINDS)}
    if args.json:
        print_json(by_kind)
        return OK
    show = console().print
    for kind, rows in by_kind.items():
        if not args.kind:
            show(f"{kind}:")
        show(table([(f"  {row['name']}", "\n".join(list(row.values())[1:])) for row in rows]))
    return OK


def names(kind: str) -> list[dict[str, str]]:
    """Name and one-line summary of everything of a kind that works, and how near a method is to what was published."""
    from detoxbench.registry import REGISTRIES
    from detoxbench.runner import composition

    if kind == "models":
        return [{"name": n, "summary": first_comment(f)} for n, f in sorted(composition.options("model").items())]
    rows = [(n, c, doc(c).partition("\n")[0]) for n, c in REGISTRIES[kind.removesuffix("s")].working()]
    if kind == "methods":
        return [{"name": n, "summary": summary, "fidelity": fidelity(c)} for n, c, summary in rows]
    return [{"name": n, "summary": summary} for n, _, summary in rows]


def fidelity(method: Any) -> str:
    """How near a method is to what was published, at its defaults."""
    from detoxbench.results.tables import NOT_SAID

    return method().fidelity or NOT_SAID


def doc(cls: type) -> str:
    """A class's docstring, its margin taken off."""
    from inspect import cleandoc

    return cleandoc(cls.__doc__ or "")


def first_comment(file: Path) -> str:
    """What the first comment of a YAML file says."""
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
