"""`detoxbench scorer`: how good is a scorer, and what does that make of its rates?"""

from __future__ import annotations

import sys
from pathlib import Path

from detoxbench.cli.common import OK, Parser, console, foreign, print_json, scorer_of, table
from detoxbench.errors import DetoxbenchError, UsageError

ACTIONS = ("check", "correct")


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    if argv[:1] and argv[0] in ACTIONS:
        return {"check": _check, "correct": _correct}[argv[0]](argv[1:])
    parser = Parser(prog="detoxbench scorer", description="check NAME FILE, or correct CHECK.json [RUNS_DIR]")
    parser.add_argument("action", choices=ACTIONS)
    parser.parse_args(argv[:1])
    return OK


def _check(argv: list[str]) -> int:
    args = _check_parser().parse_intermixed_args(argv)

    import msgspec

    from detoxbench.data import readers
    from detoxbench.results import scorer_check

    if wrong := foreign(args.overrides, "scorer"):
        raise UsageError(f"'{wrong[0]}' is no setting of the scorer: write scorer.KEY=VALUE")
    scorer = scorer_of(args.name, args.overrides)
    names = ("text", "label", "prompt", "toxic", "labels", "limit")
    texts = readers.labelled(args.file, **{name: getattr(args, name) for name in names})
    check = scorer_check.check(scorer, texts, file=args.file, threshold=args.threshold)
    if args.json:
        print_json(msgspec.to_builtins(check))
        return OK
    show = console().print
    show(f"scorer {check.scorer['name']} on {check.file}: {check.n} texts in {check.seconds:.1f} s")
    show(table([(f"  {name}", value) for name, value in scorer_check.summary(check)]))
    show("calibration")
    show(table([tuple(f"  {cell}" for cell in row) for row in scorer_check.calibration_rows(check)]))
    return OK


def _check_parser() -> Parser:
    parser = Parser(
        prog="detoxbench scorer check",
        description="AUC, sensitivity, specificity, confusion and calibration of a scorer on labelled texts.",
    )
    parser.add_argument("name", metavar="NAME", help="a scorer (detoxbench list scorers)")
    parser.add_argument("file", metavar="FILE", help=".csv, .tsv, .json or .jsonl, or .txt with labels beside it")
    parser.add_argument("overrides", nargs="*", metavar="scorer.KEY=VALUE", help="settings of the scorer")
    parser.add_argument("--text", metavar="COLUMN", help="default: text, comment_text, comment, ...")
    parser.add_argument("--label", metavar="COLUMN", help="default: is_toxic, label, toxic, ...")
    parser.add_argument("--prompt", metavar="COLUMN", default="prompt", help="for scorers that read it")
    parser.add_argument("--toxic", metavar="LABEL", help="the label of toxic texts, where it does not say so itself")
    parser.add_argument("--labels", metavar="FILE", help="of a .txt: a label a line (default: its name with 'labels')")
    parser.add_argument("--threshold", type=float, default=0.5, help="toxic is above it, strictly (default 0.5)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N texts")
    parser.add_argument("--json", action="store_true", help="for programs, and for `scorer correct`")
    return parser


def _correct(argv: list[str]) -> int:
    parser = Parser(
        prog="detoxbench scorer correct",
        description="The toxic share of runs beside the share corrected for the scorer's errors (Rogan-Gladen).",
    )
    parser.add_argument("check", metavar="CHECK.json", help="what `detoxbench scorer check --json` printed")
    parser.add_argument("runs_dir", nargs="?", default="runs", metavar="RUNS_DIR")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)

    from detoxbench.results import scorer_check
    from detoxbench.results.store import readable

    check = scorer_check.read_check(args.check)
    notes: list[str] = []
    every = [scorer_check.corrected(check, run) for run, _ in readable(Path(args.runs_dir), notes, whole=True)]
    for note in notes:
        print(note, file=sys.stderr)
    corrected = [row for row in every if row is not None]
    if not corrected:
        raise DetoxbenchError(
            f"no run in '{args.runs_dir}' was judged by the scorer of this check ({check.scorer['name']}, of the same "
            f"version, settings and weights); {len(every)} runs by others"
        )
    if args.json:
        print_json([row._asdict() | {k: getattr(row, k)._asdict() for k in ("raw", "corrected")} for row in corrected])
        return OK
    console().print(table(scorer_check.corrected_rows(check, corrected)))
    return OK
