"""`detoxbench submit`: pack finished runs for a shared leaderboard."""

from __future__ import annotations

from pathlib import Path

from detoxbench.cli.common import OK, Parser, console, print_json, table

EPILOG = """\
A pack holds run.json, samples, scores and clusters of each run and of its base run, and no local path, command or
account. It holds the prompts that were asked and the texts that were answered: see that you may share them.
"""


DATA = "data of a suite whose metrics are computed from them (the answers of utility), by the name that the run has"


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(prog="detoxbench submit", description="Pack finished runs to be shared.", epilog=EPILOG)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, the beginning of its id, or a folder of runs"
    )
    parser.add_argument("--runs-dir", default="runs", metavar="RUNS_DIR", help="where ids are looked for")
    parser.add_argument("-o", "--out", required=True, metavar="PACK.zip", help="is replaced where it is there")
    parser.add_argument("--allow-dirty", action="store_true", help="also runs made with uncommitted changes")
    parser.add_argument("--data", metavar="FILE", action="append", default=[], help=DATA)
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_intermixed_args(argv)

    from detoxbench import suites
    from detoxbench.results.store import find_run
    from detoxbench.sharing.packing import pack
    from detoxbench.sharing.verification import provenance_line

    folders = [name if Path(name).is_dir() else find_run(name, args.runs_dir).folder for name in args.runs]
    records = pack(folders, args.out, allow_dirty=args.allow_dirty, data=[*map(Path, args.data)])
    if args.json:
        print_json({"pack": args.out, "runs": [record.run_id for record in records]})
        return OK
    show = console().print
    show(f"{args.out}: {len(records)} runs")
    show(table([(f"  {r.run_id}", r.model, r.method, r.suite, f"seed {r.seed}", provenance_line(r)) for r in records]))
    foreign = {r.suite for r in records if r.spec["suite"].get("data", "embedded") != "embedded"}
    for name in sorted(foreign):
        show(f"it holds the prompts of {name}; their licence: {suites.get(name).licence or 'not known'}")
    return OK
