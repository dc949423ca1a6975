"""`detoxbench new`: a package with a method, a suite or a scorer, to begin with."""

from __future__ import annotations

from pathlib import Path

from detoxbench.cli.common import OK, Parser

KINDS = ("method", "suite", "scorer")

DESCRIPTION = """\
Write a package that adds a method, a suite or a scorer: code that works, its settings, tests, a README and a
pyproject.toml. Install it with `pip install -e NAME`, and change it into yours.
"""


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(prog="detoxbench new", description=DESCRIPTION)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("name", metavar="NAME", help="small letters, digits and _, as in word_bias")
    parser.add_argument("--into", metavar="DIR", default=".", help="folder that NAME/ is written into (default: here)")
    args = parser.parse_args(argv)

    from detoxbench.authoring.packages import write_package

    folder = write_package(args.kind, args.name, Path(args.into))
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(file)
    print(f"\nnext:\n  pip install -e {folder}")
    if args.kind == "method":
        print(f"  detoxbench check method {args.name}")
    print(f"  detoxbench run {args.kind}={args.name}")
    return OK
