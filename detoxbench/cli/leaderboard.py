"""`detoxbench leaderboard`: tables of the finished runs, with intervals and tests."""

from __future__ import annotations

import sys

from detoxbench.cli.common import OK, Parser, console


def main(argv: list[str]) -> int:
    parser = Parser(prog="detoxbench leaderboard", description="Tables of the finished runs, with intervals and tests.")
    parser.add_argument("runs_dir", nargs="?", default="runs", metavar="RUNS_DIR")
    parser.add_argument("--format", choices=["table", "md", "csv", "json"], default="table")
    parser.add_argument("--all-metrics", action="store_true", help="not the headline metrics only")
    parser.add_argument("--paper", action="store_true", help="beside what papers report for the same model and suite")
    args = parser.parse_args(argv)

    from detoxbench.leaderboard import leaderboard

    board = leaderboard(args.runs_dir, all_metrics=args.all_metrics, paper=args.paper)
    if args.format == "table" and sys.stdout.isatty():
        console().print(board)
    else:
        print(board.render(args.format))
    return OK
