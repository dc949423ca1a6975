"""`detoxbench demo`: every method on the embedded model, and a leaderboard."""

from __future__ import annotations

from detoxbench.cli.common import OK, Parser


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    description = "Every method on the embedded model, and a leaderboard, in a few minutes."
    Parser(prog="detoxbench demo", description=description).parse_args(argv)

    from detoxbench.runner.demo import main as demo

    demo()
    return OK
