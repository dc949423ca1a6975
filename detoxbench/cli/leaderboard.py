"""`detoxbench leaderboard`: tables of the finished runs, with intervals and tests."""

from __future__ import annotations

import sys
from typing import Any

from detoxbench.cli.common import FILTERS, OK, Parser, add_filters, console, names

FORMATS = ("table", "md", "latex", "csv", "json")
EPILOG = """\
PATTERN is a name or has wildcards ("gpt*"); lists are separated by commas, and an option may be given again. Columns
are metrics, cost.KEY (cost.fit_seconds) and counts.KEY (counts.truncated).
"""


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    args = _parser().parse_args(argv)

    from detoxbench.results.leaderboard import leaderboard

    board = leaderboard(
        args.runs_dir,
        **{key: names(getattr(args, key)) for key in FILTERS},
        columns=names(args.columns) or None,
        all_metrics=args.all_metrics,
        against=args.against,
        pairwise=names(args.pairwise),
        ranks=args.ranks,
        pareto=names(args.pareto) or None,
        by=args.by,
        paper=args.paper,
        samples=False,
    )
    if args.format == "table" and sys.stdout.isatty():
        console().print(board)
    else:
        print(board.render(args.format))
    return OK


def _parser() -> Parser:
    parser = Parser(
        prog="detoxbench leaderboard",
        description="Tables of the finished runs, with intervals and tests. Only comparable runs share a table.",
        epilog=EPILOG,
    )
    parser.add_argument("runs_dir", nargs="?", default="runs", metavar="RUNS_DIR")
    parser.add_argument("--format", choices=FORMATS, default="table")
    add_filters(parser)
    many: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--columns", metavar="NAMES", **many, help="what to show, in this order")
    parser.add_argument("--all-metrics", action="store_true", help="not the headline metrics only")
    parser.add_argument("--against", metavar="ROW", help="differences to this row (its label, or its method's name)")
    parser.add_argument("--pairwise", metavar="METRICS", **many, help="the differences between all pairs of rows")
    parser.add_argument("--ranks", action="store_true", help="Borda ranks, how firm they are, and the Pareto front")
    parser.add_argument("--pareto", metavar="NAMES", **many, help="its axes, e.g. EMT@4,perplexity,cost.examples")
    parser.add_argument("--by", choices=["model", "suite"], help="a table for each, suites or models as its columns")
    parser.add_argument("--paper", action="store_true", help="beside what papers report for the same model and suite")
    return parser
