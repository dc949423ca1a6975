"""`detoxbench report`: the finished runs as one HTML page, and as figures for print."""

from __future__ import annotations

from detoxbench.cli.common import OK, Parser


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="detoxbench report",
        description="The finished runs as one HTML page that needs no network: tables, charts and every sample.",
    )
    parser.add_argument("runs_dir", nargs="?", default="runs", metavar="RUNS_DIR")
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE", help="the page (default report.html)")
    for key in ("model", "suite", "method", "scorer"):
        base = "; the base stays" if key == "method" else ""
        told = f"only runs with this {key}{base}; a name or a pattern, several with commas"
        parser.add_argument(f"--{key}", metavar="NAMES", default="", help=told)
    parser.add_argument("--plots", metavar="DIR", help="also write the charts there as PNG and SVG, for print")
    parser.add_argument("--paper", action="store_true", help="beside what papers report for the same model and suite")
    args = parser.parse_args(argv)

    from detoxbench.report import Only, report

    if args.plots is not None:
        from detoxbench.report.plots import require_matplotlib

        require_matplotlib()
    only = Only(
        *(
            [n.strip() for n in names.split(",") if n.strip()]
            for names in (args.model, args.suite, args.method, args.scorer)
        )
    )
    written = report(args.runs_dir, args.output, only, paper=args.paper)
    for path in (written.page, *written.side_files):
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if args.plots is not None:
        from detoxbench.report.plots import plots

        figures = plots(args.runs_dir, args.plots, only)
        print(f"{len(figures)} figures in {args.plots}, each as PNG and SVG")
    return OK
