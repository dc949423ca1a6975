"""`detoxbench run`: fit, generate, score and store one cell, or with -m many."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detoxbench.cli.common import FAILURE, OK, USAGE, Parser, complain, config_dir, console, table
from detoxbench.errors import DetoxbenchError, UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from detoxbench.config import RunSpec
    from detoxbench.results.store import MetricRecord
    from detoxbench.runner.stages import RunResult

HELP = """\
Overrides are Hydra's: group=choice (method=destein), key=value (method.alpha=0.3), experiment=NAME. With -m several
values are run one after the other (method=none,destein seed=0,1,2 method.alpha=range(0.1,0.5,0.1)). All cells are
checked before the first runs; what is finished already is not run again. Hydra's own flags work too: --cfg job,
--info, --config-dir DIR, --hydra-help.

examples:
  detoxbench run model=fable method=destein suite=safeedit seed=0
  detoxbench run -m method=none,destein,ext_sub seed=0,1,2
  detoxbench run model=hf model.path=FOLDER suite=real_toxicity_prompts suite.data=FILE scorer=profanity_check
"""


def main(argv: list[str]) -> int:
    """`detoxbench run`: checks every cell that can be foreseen, then leaves the running to Hydra."""
    from hydra._internal.utils import get_args_parser

    from detoxbench.runner.stages import run

    parser = Parser(prog="detoxbench run", parents=[get_args_parser()], add_help=False)
    args = parser.parse_intermixed_args(argv)
    if args.help:
        print(f"usage: detoxbench run [-m] OVERRIDE...\n\n{HELP}", end="")
        return OK
    if args.experimental_rerun:
        raise UsageError("--experimental-rerun reads a pickle, which can run code: give the overrides instead")
    cells = _foreseen(args)
    if cells is None:
        return _run_by_hydra(argv, args.overrides, [])
    titles = _titles([overrides for overrides, _ in cells])
    if not _all_finished([spec for _, spec in cells]):
        return _run_by_hydra(argv, args.overrides, titles)
    for title, (_, spec) in zip(titles, cells, strict=True):
        _announce(title)
        _report(run(spec))
    return OK


def _foreseen(args: argparse.Namespace) -> list[tuple[list[str], RunSpec]] | None:
    """The cells that Hydra would run, with their overrides; None where it would run none, or where only Hydra knows.

    Raises DetoxbenchError for what is wrong with the configuration.
    """
    from detoxbench.runner import composition

    overrides = args.overrides + config_dir(args.config_dir)
    if args.cfg or args.info:
        composition.load(overrides)
        return None
    if args.hydra_help or args.shell_completion or args.config_name or args.config_path:
        return None
    try:
        return composition.cells(overrides, multirun=args.multirun)
    except composition.UnforeseeableSweep:  # such cells are checked when their turn comes
        return None


def _run_by_hydra(argv: Sequence[str], overrides: Sequence[str], titles: Sequence[str]) -> int:
    """Have Hydra run the cells; the exit code is the worst of them."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from detoxbench.runner import composition
    from detoxbench.runner.stages import run

    parent, failures = os.getpid(), []

    def job(cfg: DictConfig) -> None:
        os.chdir(HydraConfig.get().runtime.cwd)  # paths are relative to where the command was given
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            number = HydraConfig.get().job.num
            _announce(titles[number] if titles else f"[{number + 1}] {HydraConfig.get().job.override_dirname}")
        try:
            _report(run(composition.run_spec(cfg)))
        except DetoxbenchError as error:
            if os.getpid() != parent:  # a launcher's worker: the error has to travel
                raise
            failures.append(complain(error, USAGE if isinstance(error, UsageError) else FAILURE))

    composition.register_search_path()
    # Hydra reads the arguments from sys.argv, and unless told otherwise prints errors in its own way and exits.
    sys.argv = ["detoxbench run", *_flags(argv, overrides), *composition.settable(overrides)]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    hydra.main(str(composition.conf_dir()), "config", composition.VERSION_BASE)(job)()
    return max(failures, default=OK)


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


def _all_finished(specs: Sequence[RunSpec]) -> bool:
    """Whether all runs are finished. A mistake in any of them is raised before the first one begins."""
    from detoxbench.files.writing import make_runs_dir
    from detoxbench.runner.plan import plan

    finished = [plan(spec).finished for spec in specs]
    if all(finished):
        return True
    for spec in specs:
        make_runs_dir(Path(spec.runs_dir))
    return False


def _flags(argv: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """`argv` less the overrides: Hydra's own parser wants flags before them, and people put -m anywhere."""
    left, flags = [*overrides], []
    for argument in argv:
        if left and argument == left[0]:
            left.pop(0)
        else:
            flags.append(argument)
    return flags


def _report(result: RunResult) -> None:
    record = result.record
    title = f"model={record.model} method={record.method} suite={record.suite} scorer={record.scorer}"
    show = console().print
    show(f"{title} seed={record.seed}  {result.folder}{'  (was there already)' if result.cached else ''}")
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
