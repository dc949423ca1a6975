"""`detoxbench run`: fit, generate, score and store one cell, or with -m many."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detoxbench.cli.common import FAILURE, OK, USAGE, Parser, complain, config_dir, console, table
from detoxbench.errors import UsageError
from detoxbench.text import first_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from detoxbench.config import RunSpec
    from detoxbench.results.store import MetricRecord, RunRecord
    from detoxbench.runner.multirun import Failure, Multirun
    from detoxbench.runner.stages import RunResult

HELP = """\
Overrides are Hydra's: group=choice (method=destein), key=value (method.alpha=0.3), experiment=NAME. With -m several
values are run one after the other (method=none,destein seed=0,1,2 method.alpha=range(0.1,0.5,0.1)). All cells are
checked before the first runs; what is finished already is not run again. A cell that fails is tried once more and told
at the end, the others go on; `detoxbench status` says how far they are. Hydra's own flags work too: --cfg job, --info,
--config-dir DIR, --hydra-help.

examples:
  detoxbench run model=fable method=destein suite=safeedit seed=0
  detoxbench run -m method=none,destein,ext_sub seed=0,1,2
  detoxbench run model=hf model.path=FOLDER suite=real_toxicity_prompts suite.data=FILE scorer=profanity_check
"""


def main(argv: list[str]) -> int:
    """`detoxbench run`: checks every cell that can be foreseen, then leaves the running to Hydra."""
    from hydra._internal.utils import get_args_parser

    parser = Parser(prog="detoxbench run", parents=[get_args_parser()], add_help=False)
    args = parser.parse_intermixed_args(argv)
    if args.help:
        print(f"usage: detoxbench run [-m] OVERRIDE...\n\n{HELP}", end="")
        return OK
    if args.experimental_rerun:
        raise UsageError("--experimental-rerun reads a pickle, which can run code: give the overrides instead")
    if args.config_name or args.config_path:
        raise UsageError("the configuration is detoxbench's own: add to it with --config-dir DIR and experiment=NAME")
    from detoxbench.files import sweeping
    from detoxbench.files.writing import make_runs_dir
    from detoxbench.runner import composition, multirun

    command = ["detoxbench", "run", *argv]
    try:
        cells = _foreseen(args)
    except composition.UnforeseeableSweep as sweep:  # such cells are checked when their turn comes
        return _run_by_hydra(argv, args, multirun.unforeseeable(command, sweep.runs_dir))
    if cells is None:
        return _run_by_hydra(argv, args, multirun.unforeseeable(command, "runs"))
    titles, specs = _titles([overrides for overrides, _ in cells]), [spec for _, spec in cells]
    plans = multirun.planned(specs)  # a mistake in any of them is raised before the first one begins
    if all(plan.finished for plan in plans):
        return _report_again(titles, specs)
    for runs_dir in dict.fromkeys(Path(spec.runs_dir) for spec in specs):
        make_runs_dir(runs_dir)
        sweeping.sweep(runs_dir)
    return _run_by_hydra(argv, args, multirun.begin(command, titles, specs, plans))


def _foreseen(args: argparse.Namespace) -> list[tuple[list[str], RunSpec]] | None:
    """The cells that Hydra would run, with their overrides; None where it would run none, or where only Hydra knows.

    Raises DetoxbenchError for what is wrong with the configuration, UnforeseeableSweep for a sweeper that chooses.
    """
    from detoxbench.runner import composition, processes

    overrides = args.overrides + config_dir(args.config_dir)
    if args.cfg or args.info:
        composition.load(overrides)
        return None
    if processes.several() and composition.launches_elsewhere(overrides):
        raise UsageError(
            "the processes that are there share each cell, and a launcher would start others: launcher=basic"
        )
    if args.hydra_help or args.shell_completion:
        return None
    return composition.cells(overrides, multirun=args.multirun)


def _report_again(titles: Sequence[str], specs: Sequence[RunSpec]) -> int:
    """All runs are there: say so, and hand to the tracker what it has not got yet. Nothing else is written."""
    from detoxbench.runner.stages import run

    for title, spec in zip(titles, specs, strict=True):
        _announce(title)
        result = run(spec)
        _report(result.record, result.folder, cached=True)
    return OK


def _run_by_hydra(argv: Sequence[str], args: argparse.Namespace, cells: Multirun) -> int:
    """Have Hydra run the cells, here or by its launcher elsewhere; the exit code is the worst of them."""
    import hydra

    from detoxbench.runner import composition

    flags = ["detoxbench run", *_flags(argv, args.overrides)]
    work = _Work(cells, [*flags, *composition.settable(args.overrides)], os.getpid())

    def job(cfg: DictConfig) -> None:
        work.do(cfg)

    composition.register_search_path()
    # Hydra reads the arguments from sys.argv, and unless told otherwise prints errors in its own way and exits.
    jobs = args.overrides
    if len(cells.specs) > 1:
        jobs = composition.of_jobs(args.overrides + config_dir(args.config_dir), len(cells.jobs))
    sys.argv = [*flags, *composition.settable(jobs)]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    code = OK
    try:
        hydra.main(str(composition.conf_dir()), "config", composition.VERSION_BASE)(job)()
    except Exception as error:
        if work.tried:  # cells ran here: it is no launcher's
            raise
        code = complain(f"the launcher stopped: {type(error).__name__}: {first_line(error)}", FAILURE)
    failures = cells.failures() | work.failed  # a full disk holds none
    code = max(code, _report_others(cells, work.tried | failures.keys()))
    cells.end()
    return max([code, *(_complain(failures[number]) for number in sorted(failures))])


@dataclass
class _Work:
    """What the jobs of a command do. It travels to the processes of a launcher: what it notes there stays there."""

    cells: Multirun
    command: list[str]
    """As the runs record it."""
    parent: int
    """The process where the command was given."""
    tried: set[int] = field(default_factory=set)
    failed: dict[int, Failure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reports = _InOrder()

    def do(self, cfg: DictConfig) -> None:
        """Run the cells of a job of Hydra's, configured by `cfg`."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra, cells = HydraConfig.get(), self.cells
        os.chdir(hydra.runtime.cwd)  # paths are relative to where the command was given
        sys.argv = self.command
        many = hydra.mode is RunMode.MULTIRUN
        number = hydra.job.num if many else 0
        for cell in cells.jobs[number] if cells.jobs else [number]:
            title = cells.titles[cell] if cells.titles else f"[{cell + 1}] {hydra.job.override_dirname}"
            known = cells.specs[cell] if cells.specs else None
            self._attempt(cell, title, partial(_spec, known, cfg), many)

    def _attempt(self, number: int, title: str, spec: Callable[[], RunSpec], many: bool) -> None:
        from detoxbench.runner.stages import run

        self.tried.add(number)
        if many:
            _announce(title)
        done: list[RunResult] = []
        failure = self.cells.attempt(number, title, lambda: done.append(run(spec())), many=many)
        if failure:
            self.failed[number] = failure
        if os.getpid() == self.parent:  # of other processes it is told at the end
            self._reports.add(number, None if failure else done[0])


def _spec(known: RunSpec | None, cfg: DictConfig) -> RunSpec:
    """The run of a cell, known beforehand or not."""
    from detoxbench.runner import composition

    return known or composition.run_spec(cfg)


class _InOrder:
    """Reports runs in the order of the command, each as soon as all before it are done."""

    def __init__(self) -> None:
        self._waiting: dict[int, RunResult | None] = {}
        self._next = 0

    def add(self, number: int, result: RunResult | None) -> None:
        """A cell is done; without a result where it failed."""
        self._waiting[number] = result
        while self._next in self._waiting:
            if result := self._waiting.pop(self._next):
                _report(result.record, result.folder, cached=result.cached)
            self._next += 1


def _report_others(cells: Multirun, told: Set[int]) -> int:
    """Report the cells that ran in other processes, from their folders."""
    from detoxbench.results.store import Run, is_run

    unfinished = 0
    for number, folder in enumerate(cells.folders):
        if number in told:
            continue
        if folder is None or not is_run(folder):
            unfinished += 1
            continue
        _announce(cells.titles[number])
        _report(Run(folder).record(), folder)
    if not unfinished:
        return OK
    return complain(
        f"not finished: {unfinished} of {len(cells.folders)} cells; `detoxbench status` says how far they are, and the "
        "same command goes on where this one stopped",
        FAILURE,
    )


def _complain(failure: Failure) -> int:
    title = f"{failure.title}: " if failure.title else ""
    return complain(title + failure.error, USAGE if failure.usage else FAILURE)


def _titles(cells: Sequence[Sequence[str]]) -> list[str]:
    """A title for each cell: its number, and the overrides that not all cells have; empty for a single cell."""
    if len(cells) < 2:
        return [""] * len(cells)
    shared = set(cells[0]).intersection(*cells)
    titles = [" ".join(override for override in cell if override not in shared) for cell in cells]
    return [f"[{number}/{len(cells)}] {title}" for number, title in enumerate(titles, 1)]


def _announce(title: str) -> None:
    if title:
        print(title, file=sys.stderr, flush=True)


def _flags(argv: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """`argv` less the overrides: Hydra's own parser wants flags before them, and people put -m anywhere."""
    left, flags = [*overrides], []
    for argument in argv:
        if left and argument == left[0]:
            left.pop(0)
        else:
            flags.append(argument)
    return flags


def _report(record: RunRecord, folder: Path, *, cached: bool = False) -> None:
    title = f"model={record.model} method={record.method} suite={record.suite} scorer={record.scorer}"
    show = console().print
    show(f"{title} seed={record.seed}  {folder}{'  (was there already)' if cached else ''}")
    show(table([(f"  {name}", _shown(metric)) for name, metric in record.metrics.items() if metric.headline]))
    counted = {key.replace("_", " "): n for key, n in record.counts.items() if key not in _SIZES}
    for heading, counts in (
        (f"of {record.counts.get('samples')} samples", [f"{name} {n}" for name, n in counted.items() if n]),
        ("none", [name for name, n in counted.items() if n == 0]),
        ("not measured", [name for name, n in counted.items() if n is None]),
    ):
        if counts:
            show(f"  {heading}: {', '.join(counts)}")


_SIZES = {"requests", "samples"}


def _shown(metric: MetricRecord) -> str:
    """A value with its 95 % interval; a missing one is said to be missing."""
    if metric.value is None:
        return "missing"
    scale, unit = (100, " %") if metric.unit == "share" else (1, "")
    text = f"{metric.value * scale:.3g}{unit}"
    if metric.low is not None and metric.high is not None:
        text += f"  [{metric.low * scale:.3g}, {metric.high * scale:.3g}]"
    return f"{text}  {metric.missing} missing" if metric.missing else text
