"""`detoxbench status`: what is done, running (where), failed and left in a runs folder, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detoxbench.cli.common import OK, Parser, console, duration, print_json, table
from detoxbench.text import clean, one_line

if TYPE_CHECKING:
    from detoxbench.runner.status import Status

DESCRIPTION = """\
What is done, running (where), failed and left in a runs folder, from its files alone: from any machine that sees the
folder, while others work in it. What is left is what the last `detoxbench run` of each kind had to do there; the time
is at the pace so far.
"""
SHOWN = 10
"""Cells that are left and shown by title."""


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(prog="detoxbench status", description=DESCRIPTION)
    parser.add_argument("runs_dir", nargs="?", default="runs", metavar="RUNS_DIR")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)

    import msgspec

    from detoxbench.runner.status import status

    found = status(Path(args.runs_dir))
    if args.json:
        print_json(msgspec.to_builtins(found))
        return OK
    show = console().print
    show(_summary(found))
    if rows := _rows(found):
        show(table(rows))
    for command in found.stopped:
        show(f"nothing works on what is left of this; it goes on with: {clean(command)}")
    for damaged in found.damaged:
        show(clean(damaged))
    return OK


def _summary(found: Status) -> str:
    counts = (("running", found.running), ("failed", found.failed), ("left", found.left))
    parts = [f"{found.done} done", *(f"{len(rows)} {state}" for state, rows in counts)]
    if found.seconds_left is not None:
        parts.append(f"about {duration(found.seconds_left)} to go")
    return ", ".join(parts)


def _rows(found: Status) -> list[tuple[str, str, str]]:
    rows = [
        ("running", clean(run.title), f"on {clean(run.host)}, process {run.pid}, for {duration(run.seconds)}")
        for run in found.running
    ]
    for failed in found.failed:
        tries = f" ({failed.tries} tries)" if failed.tries > 1 else ""
        log = f"; more in {failed.log}" if failed.log else ""
        rows.append(("failed", clean(failed.title), one_line(failed.error, 300) + tries + log))
    rows += [("left", clean(left.title), "") for left in found.left[:SHOWN]]
    if len(found.left) > SHOWN:
        rows.append(("left", f"and {len(found.left) - SHOWN} more", ""))
    return rows
