"""`detoxbench ablate`: what one knob does, or two, from finished runs that differ in nothing else."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detoxbench.cli.common import OK, Parser, print_json

EPILOG = """\
examples:
  detoxbench run experiment=ablation/destein_alpha
  detoxbench ablate runs --over method.alpha --where method=destein
  detoxbench ablate runs --over method.alpha,method.tau --where method=contrastive_perplexity --draw grid.svg
  detoxbench ablate runs --over with.ext_sub,with.destein     do they add up? (method=compose parts=[ext_sub,destein])
"""


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    args = _parser().parse_intermixed_args(argv)

    import shutil

    import msgspec

    from detoxbench.report.ablation_figure import draw
    from detoxbench.results.ablation import ablation
    from detoxbench.results.ablation_text import text

    result = ablation(
        Path(args.runs_dir),
        args.over.split(","),
        where=args.where,
        along=args.along,
        against=args.against,
        metrics=args.metric,
        all_metrics=args.all_metrics,
    )
    if args.draw:
        draw(result, args.draw)
    if args.json:
        print_json(msgspec.to_builtins(result))
    else:
        print(text(result, shutil.get_terminal_size((120, 24)).columns), end="")
    if args.draw:
        print(f"drawn: {args.draw}", file=sys.stderr)
    return OK


def _parser() -> Parser:
    parser = Parser(
        prog="detoxbench ablate",
        description="The curve of each metric over a knob, or the table over two, with tests. Seeds are averaged.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs_dir", nargs="?", default="runs", metavar="RUNS_DIR")
    parser.add_argument(
        "--over", required=True, metavar="KEY[,KEY]", help="method.alpha, gen.temperature, fit.limit, with.PART, ..."
    )
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only such runs; repeatable")
    parser.add_argument("--along", action="append", default=[], metavar="KEY", help="may vary along; repeatable")
    parser.add_argument("--against", metavar="VALUE", help="what differences are to: base, or a value of the knob")
    parser.add_argument("--metric", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--all-metrics", action="store_true", help="not the headline metrics only")
    parser.add_argument("--draw", metavar="FILE", help="also as a picture: .png, .svg or .pdf (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser
