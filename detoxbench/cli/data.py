"""`detoxbench data`: published data sets, and paraphrase sets from a model."""

from __future__ import annotations

from detoxbench.cli import data_paraphrase
from detoxbench.cli.common import FAILURE, OK, Parser, console, print_json, table
from detoxbench.errors import UsageError

ACTIONS = ("list", "fetch", "verify", "paraphrase")
ARGUMENTS = {"list": 0, "fetch": 1, "verify": 2}
"""How many arguments an action takes."""


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    if argv[:1] == ["paraphrase"]:
        return data_paraphrase.main(argv[1:])
    args = _parser().parse_args(argv)
    if sum(value is not None for value in (args.name, args.file)) != ARGUMENTS.get(args.action):
        raise UsageError(
            "write: detoxbench data list, data fetch NAME, data verify NAME FILE, or data paraphrase SENTENCES ..."
        )
    if args.action == "list":
        return _list(as_json=args.json)
    if args.action == "fetch":
        return _fetch(args.name)
    return _verify(args.name, args.file, as_json=args.json)


def _parser() -> Parser:
    parser = Parser(
        prog="detoxbench data", description="Published data sets: list, fetch, verify; paraphrase sets from a model."
    )
    parser.add_argument(
        "action", choices=ACTIONS, help="list; fetch NAME from the hub; verify NAME FILE; paraphrase SENTENCES"
    )
    parser.add_argument("name", nargs="?")
    parser.add_argument("file", nargs="?")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def _list(*, as_json: bool) -> int:
    import msgspec

    from detoxbench.data import manifest

    known = list(manifest.manifests().values())
    if as_json:
        print_json(msgspec.to_builtins(known))
    else:
        console().print(table([(m.name, m.title, ", ".join(m.serves), m.licence, m.source) for m in known]))
    return OK


def _fetch(name: str) -> int:
    from detoxbench.data import manifest

    print("\n".join(map(str, manifest.fetch(name))))
    return OK


def _verify(name: str, file: str, *, as_json: bool) -> int:
    from detoxbench.data import manifest

    verdict = manifest.verify(name, file)
    if as_json:
        print_json(verdict._asdict())
    else:
        print(verdict.message)
    return OK if verdict.ok else FAILURE
