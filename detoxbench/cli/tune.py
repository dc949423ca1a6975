"""`detoxbench tune`: search for the best setting of a metric while others stay within bounds."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from detoxbench.cli.common import FAILURE, OK, Parser, config_dir, console, print_json
from detoxbench.errors import UsageError

if TYPE_CHECKING:
    from detoxbench.runner.search import Trial

EPILOG = """\
Keys to search over name several values, as Hydra writes them: interval(0.05,0.5), tag(log,interval(1e-5,1e-3)),
range(5,45,5), choice(post_proj,mlp) or a list by commas. The best of many trials on some prompts looks better than it
is: run it again on others. Shares are between 0 and 1.

example:
  detoxbench tune method=destein suite=real_toxicity_prompts 'method.alpha=interval(0.05,0.5)' \\
      --objective toxic_share --at-most perplexity=5 --trials 20
"""


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    args = _parser().parse_intermixed_args(argv)
    if args.trials < 1:
        raise UsageError(f"--trials must be >= 1 (given: {args.trials})")

    from dataclasses import asdict

    from detoxbench.runner.search import Bounds, best, search

    bounds = Bounds(args.objective, _numbers("--at-most", args.at_most), _numbers("--at-least", args.at_least))
    overrides = args.overrides + config_dir(args.config_dir)
    show = console().print
    tried = []
    for trial in search(overrides, bounds, trials=args.trials, seed=args.search_seed):
        tried.append(trial)
        if not args.json:
            show(f"[{trial.number}/{args.trials}] {_line(trial)}")
    best_trial = best(tried)
    if args.json:
        print_json({"trials": [asdict(trial) for trial in tried], "best": best_trial and asdict(best_trial)})
    elif best_trial:
        show(f"best of {len(tried)}, on these prompts: detoxbench run {shlex.join(best_trial.overrides)}")
    else:
        show("no trial keeps the bounds")
    return OK if best_trial else FAILURE


def _parser() -> Parser:
    parser = Parser(
        prog="detoxbench tune",
        description="Search for the setting that is best in one metric while others stay within bounds (by Optuna).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for run; some with several values")
    parser.add_argument("--objective", required=True, metavar="METRIC", help="made as good as can be")
    parser.add_argument("--at-most", action="append", default=[], metavar="METRIC=X", help="a bound; repeatable")
    parser.add_argument("--at-least", action="append", default=[], metavar="METRIC=X", help="a bound; repeatable")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="runs (default 20)")
    parser.add_argument("--search-seed", type=int, default=0, metavar="N", help="of the search (default 0)")
    parser.add_argument("--config-dir", metavar="DIR", help="a further folder of configuration groups")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def _line(trial: Trial) -> str:
    """A trial for people: its setting, its values, and its error or broken bounds."""
    setting = "  ".join(f"{key}={value}" for key, value in trial.setting.items())
    values = "  ".join(f"{name} {value:.4g}" for name, value in trial.values.items())
    return f"{setting}  {values}{trial.error or ('' if trial.kept else '  out of bounds')}"


def _numbers(flag: str, texts: list[str]) -> dict[str, float]:
    numbers = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            numbers[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise UsageError(f"{flag} {text}: write METRIC=NUMBER, a share as 0.3")
    return numbers
