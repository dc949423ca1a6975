"""`detoxbench plan`: what a run would do: which stages are cached, to do or missing, and what that takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from detoxbench.cli.common import OK, Parser, config_dir, console, duration, table

if TYPE_CHECKING:
    from detoxbench.runner.estimate import Estimate

DESCRIPTION = """\
What a run would do. Loads no weights, asks no network. With --estimate: in how much time, memory and disk, from what
the runs in the runs folder took (and those of --like), on the machine that the newest of them was made on.
"""
UNKNOWN = 5
"""Kinds of stages that no stored run tells of and that are named."""


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(prog="detoxbench plan", description=DESCRIPTION)
    parser.add_argument("-m", "--multirun", action="store_true", help="several values of a key are several cells")
    parser.add_argument("--config-dir", metavar="DIR", help="a further folder of configuration groups")
    parser.add_argument("--estimate", action="store_true", help="seconds, memory and disk of what is to do")
    parser.add_argument("--like", metavar="RUNS_DIR", action="append", default=[], help="more runs to estimate from")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for run")
    args = parser.parse_intermixed_args(argv)

    from detoxbench.runner import composition
    from detoxbench.runner.plan import plan

    cells = composition.cells(args.overrides + config_dir(args.config_dir), multirun=args.multirun)
    show = console().print
    for number, (overrides, spec) in enumerate(cells, 1):
        planned = plan(spec)
        names = {"model": spec.model.name, "method": spec.method_name, "suite": spec.suite_name}
        names |= {"scorer": spec.scorer_name, "seed": str(spec.seed)}
        other_overrides = [override for override in overrides if override.partition("=")[0] not in names]
        title = " ".join([*(f"{key}={value}" for key, value in names.items()), *other_overrides])
        show(f"[{number}/{len(cells)}] {title}  {planned.run_id or ''}".rstrip())
        show(table([(f"  {c.stage}", c.state, c.remark) for c in planned.cells]))
    if args.estimate:
        from detoxbench.runner.estimate import estimate

        specs = [spec for _, spec in cells]
        folders = dict.fromkeys([*(Path(spec.runs_dir) for spec in specs), *map(Path, args.like)])
        for line in _lines(estimate(specs, list(folders))):
            show(line)
    return OK


def _lines(found: Estimate) -> list[str]:
    """The estimate for people."""
    from detoxbench.results.costs import COSTS
    from detoxbench.runner.estimate import STAGES

    if not found.stages:
        return ["nothing is to do"]
    if not found.runs:
        return ["no stored run says what it took: run one cell of each method, or name a folder of runs with --like"]
    lines = [f"estimated from {found.runs} stored runs ({found.hardware}), one stage after the other, models loaded:"]
    for name in STAGES:
        of_kind = [stage for stage in found.stages if stage.stage == name]
        if not of_kind:
            continue
        bases = Counter(stage.basis for stage in of_kind).most_common()
        basis = "; ".join(f"{count} {words}" for words, count in bases)
        lines.append(f"  {name}: {len(of_kind)} to do, {duration(found.seconds(name))} ({basis})")
    memory = "memory not measured" if found.peak_mb is None else f"at most {found.peak_mb:,.0f} MB of memory"
    disk = COSTS["artifact_bytes"].shown(found.disk_bytes)
    lines.append(f"  in all: {duration(found.seconds())}, {memory}, {disk} of disk")
    unknown = Counter(stage.title for stage in found.unknown)
    if unknown:
        named = ", ".join(title for title, _ in unknown.most_common(UNKNOWN))
        more = f" and {len(unknown) - UNKNOWN} kinds more" if len(unknown) > UNKNOWN else ""
        lines.append(f"  not counted, since no stored run tells: {unknown.total()} stages: {named}{more}")
    return lines
