"""`detoxbench verify`: compute every aggregate of shared runs again, and reject what does not match."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detoxbench.cli.common import FAILURE, OK, Parser, console, print_json
from detoxbench.cli.submit import DATA
from detoxbench.errors import DetoxbenchError

if TYPE_CHECKING:
    from detoxbench.sharing.verification import Verification

DESCRIPTION = """\
Compute the metrics, intervals, counts and clusters of runs again from their samples and scores, and compare them, the
run id and the requests with what is claimed. No model and no scorer is needed: that the texts are the model's and the
scores the scorer's is not shown by it.
"""


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(prog="detoxbench verify", description=DESCRIPTION)
    parser.add_argument("places", nargs="+", metavar="PACK|FOLDER", help="packs, folders of packs, or folders of runs")
    parser.add_argument("--into", metavar="RUNS_DIR", help="put verified runs of packs there, for the leaderboard")
    parser.add_argument("--data", metavar="FILE", action="append", default=[], help=DATA)
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_intermixed_args(argv)

    # What a run names is not asked of the hub either; before anything is imported that would.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    data = [*map(Path, args.data)]
    rows = [row for place in args.places for row in _checked(Path(place), args.into, data)]
    if not rows:
        raise DetoxbenchError(f"nothing to verify in {', '.join(map(repr, args.places))}: no pack and no finished run")
    if args.json:
        print_json(rows)
    else:
        show = console().print
        for row in rows:
            show(f"{'verified' if row['verified'] else 'REJECTED'}  {row['place']}  {row['run'] or ''}  {row['about']}")
            for problem in row["problems"]:
                show(f"    {problem}")
    return OK if all(row["verified"] for row in rows) else FAILURE


def _checked(place: Path, into: str | None, data: Sequence[Path]) -> Iterator[dict[str, Any]]:
    from detoxbench.results.store import Run, is_run, runs
    from detoxbench.sharing.packing import SUFFIX, opened, unpack
    from detoxbench.sharing.verification import verify

    if not place.exists():
        raise DetoxbenchError(f"no pack or folder '{place}'")
    packs = sorted(place.glob(f"*{SUFFIX}")) if place.is_dir() else [place]
    for path in packs:
        try:
            with opened(path) as pack_runs:
                verdicts = [verify(run, data) for run in pack_runs]
                done = unpack(verdicts, pack_runs, path, into) if into else {}
        except DetoxbenchError as error:
            yield {"place": str(path), "run": None, "verified": False, "about": "", "problems": [str(error)]}
            continue
        for verdict in verdicts:
            yield _row(str(path), verdict, done.get(verdict.run, ""))
    if place.is_dir():
        folders = [Run(place)] if is_run(place) else runs(place)
        for run in folders:
            yield _row(str(place), verify(run, data), "")


def _row(place: str, verdict: Verification, done: str) -> dict[str, Any]:
    from detoxbench.sharing.verification import provenance_line
    from detoxbench.text import one_line

    r = verdict.record
    about = one_line(f"{r.model} {r.method} {r.suite} seed {r.seed}; {provenance_line(r)}", 300) if r else ""
    return {
        "place": place,
        "run": verdict.run,
        "verified": verdict.verified,
        "about": f"{about}; {done}" if done else about,
        "problems": [str(problem) for problem in verdict.problems],
    }
