"""`detoxbench report`: the finished runs as one HTML page, and as figures for print."""

from __future__ import annotations

from detoxbench.cli.common import FILTERS, OK, Parser, add_filters, names

EPILOG = 'PATTERN is a name or has wildcards ("gpt*"); lists are separated by commas, and an option may be given again.'


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(
        prog="detoxbench report",
        description="The finished runs as one HTML page that needs no network: tables, charts and every sample.",
        epilog=EPILOG,
    )
    parser.add_argument("runs_dir", nargs="?", default="runs", metavar="RUNS_DIR")
    parser.add_argument("-o", "--out", default="report.html", metavar="FILE", help="the page (default report.html)")
    add_filters(parser)
    parser.add_argument("--plots", metavar="DIR", help="also write the charts there as PNG and SVG, for print")
    parser.add_argument("--paper", action="store_true", help="beside what papers report for the same model and suite")
    args = parser.parse_args(argv)

    from detoxbench.report import Selection, report

    if args.plots is not None:
        from detoxbench.report.drawing import require_matplotlib

        require_matplotlib()
    only = Selection(**{key: names(getattr(args, key)) for key in FILTERS})
    written = report(args.runs_dir, args.out, only, paper=args.paper)
    for path in (written.page, *written.side_files):
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if args.plots is not None:
        from detoxbench.report.plots import plots

        figures = plots(args.runs_dir, args.plots, only)
        print(f"{len(figures)} figures in {args.plots}, each as PNG and SVG")
    return OK
