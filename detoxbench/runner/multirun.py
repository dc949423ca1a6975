"""What a multirun is to do, what of it failed, and who works on which run: small files among a runs folder's stages.

    RUNS/.stages/multirun-ID/cells.json      its cells, written before the first one begins
    RUNS/.stages/multirun-ID/failed-N.json   why cell N failed, in whatever process
    RUNS/.stages/RUN.working.json            who works on a run; true only while the lock of the run is held

No result depends on them. A run of one cell is a multirun, too. The same command begins its files anew, and they go
when every cell is finished, whoever finished it.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from detoxbench.config import RunSpec, digest
from detoxbench.errors import DetoxbenchError, NonFiniteError, UsageError, told
from detoxbench.files.locking import is_held
from detoxbench.files.writing import write_atomic
from detoxbench.results.store import Run, RunRecord, is_run
from detoxbench.runner.cell import RunCell, checkpoint_folder
from detoxbench.runner.loaded import loaded_as
from detoxbench.runner.plan import Plan, plan
from detoxbench.text import first_line

R = TypeVar("R")

log = logging.getLogger("detoxbench")

TRIES = 2
"""Of a cell of a multirun."""
CELLS = "cells.json"
_WORKING = ".working.json"


class Cell(msgspec.Struct, kw_only=True):
    """A cell of a multirun, or a run that it is compared with."""

    title: str
    run: str | None
    """None while its model is not there to be identified."""
    number: int | None
    """Counted from 0 in the order of the command; None for a run to compare with."""


class Begun(msgspec.Struct, kw_only=True):
    """cells.json."""

    command: Sequence[str]
    host: str
    began: float
    """Seconds since 1970."""
    cells: list[Cell]


class Failure(msgspec.Struct, kw_only=True):
    """failed-N.json: the last error of a cell."""

    number: int
    title: str
    error: str
    """In one line."""
    usage: bool
    """Whether the request itself was wrong."""
    tries: int
    host: str
    at: float
    """Seconds since 1970."""
    traceback: list[str]
    """Empty where the error explains itself."""


class Working(msgspec.Struct, kw_only=True):
    """RUN.working.json."""

    title: str
    host: str
    pid: int
    since: float
    """Seconds since 1970."""


# ------------------------------------------------------------------------------------------------- who works on what


@contextmanager
def working(cell: RunCell) -> Iterator[None]:
    """Say who works on the cell's run. The lock of the run is held around it."""
    spec = cell.spec
    file = _stages(spec.runs_dir) / f"{cell.keys.run}{_WORKING}"
    who = Working(title=title_of(spec), host=socket.gethostname(), pid=os.getpid(), since=time.time())
    write_atomic(file, msgspec.json.encode(who))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def worked_on(runs_dir: Path) -> dict[str, Working]:
    """Who works on which run. What a killed process has left is passed over: its lock went with it."""
    found = {}
    for file in sorted(_stages(runs_dir).glob(f"*{_WORKING}")):
        run = file.name.removesuffix(_WORKING)
        if (who := _read(file, Working)) and is_held(file.with_name(f"{run}.lock")):
            found[run] = who
    return found


def title_of(spec: RunSpec) -> str:
    """A run for people."""
    model = spec.model.name or spec.model.path
    return run_title(model, spec.method_name, spec.suite_name, spec.seed)


def run_title(model: str, method: str, suite: str, seed: int) -> str:
    """The same from its parts."""
    return f"model={model} method={method} suite={suite} seed={seed}"


# ------------------------------------------------------------------------------------------------------- a multirun


@dataclass(frozen=True)
class Multirun:
    """The cells of one command, as they are recorded. It travels to the processes that run them."""

    titles: Sequence[str]
    """By number, what each is announced with; empty where only Hydra's sweeper knows them."""
    homes: Sequence[Path]
    """By number, the folder of each cell's record; one for all where only Hydra's sweeper knows them."""
    folders: Sequence[Path | None] = ()
    """By number, the folder of each cell's run; None while its model is not there to be identified."""
    specs: Sequence[RunSpec] = ()
    """By number, what each cell is."""
    jobs: Sequence[Sequence[int]] = ()
    """The numbers of the cells, in the order in which jobs run them."""

    def attempt(self, number: int, title: str, work: Callable[[], object], *, many: bool = True) -> Failure | None:
        """Do the work of a cell; of one of many once more where that may help. Its failure is returned, and recorded
        for other processes. A single run that meets an error of ours (a bug, say) raises it, and shows where."""
        for tries in range(1, TRIES + 1):
            try:
                work()
                return None
            except Exception as error:
                if not many and not isinstance(error, DetoxbenchError | OSError):
                    raise
                failure = _failure(number, title, error, tries)
                again = many and tries < TRIES and _may_pass(error)
            if not again:
                break
            log.warning("%s: tried once more after: %s", title, failure.error)
            gc.collect()  # what the failed try held: memory may have been what was missing
        home = self.homes[min(number, len(self.homes) - 1)]
        with suppress(OSError):  # a full disk: the process that sees the failure can still tell it
            write_atomic(home / failure_file(number), msgspec.json.format(msgspec.json.encode(failure), indent=1))
        return failure

    def failures(self) -> dict[int, Failure]:
        """By number, the cells that failed, in whatever process."""
        return {failure.number: failure for home in dict.fromkeys(self.homes) for failure in failures_in(home)}

    def end(self) -> None:
        """Forget what is finished."""
        for home in dict.fromkeys(self.homes):
            forget_finished(home.parent.parent)


def planned(specs: Sequence[RunSpec]) -> list[Plan]:
    """The plan of each cell. A model that is not here is fetched first, once for all the processes that will want it.

    Raises as `plan`, for what is wrong with any cell. A model that cannot be had is its own cells' failure.
    """
    plans = [plan(spec) for spec in specs]
    tried: dict[tuple[str, str | None], bool] = {}
    for number, spec in enumerate(specs):
        if plans[number].run_id is None:
            key = (spec.model.path, spec.model.revision)
            if key not in tried:
                tried[key] = _fetched(spec)
            if tried[key]:
                plans[number] = plan(spec)
    return plans


def _fetched(spec: RunSpec) -> bool:
    try:
        checkpoint_folder(spec, download=True)
    except DetoxbenchError:
        return False
    return True


def begin(command: Sequence[str], titles: Sequence[str], specs: Sequence[RunSpec], plans: Sequence[Plan]) -> Multirun:
    """Record the cells of a command, in the runs folder of each, and forget older multiruns that are finished."""
    by_folder: dict[Path, list[Cell]] = {}
    for number, (spec, its_plan) in enumerate(zip(specs, plans, strict=True)):
        title = titles[number] or title_of(spec)
        beside = [stage for stage in its_plan.cells if stage.stage in ("base", "control")]
        cells = [Cell(title=title, run=its_plan.run_id, number=number)]
        cells += [Cell(title=f"{other.stage} of {title}", run=other.key, number=None) for other in beside]
        by_folder.setdefault(Path(spec.runs_dir).absolute(), []).extend(cells)
    homes = {runs_dir: _begin_in(runs_dir, command, cells) for runs_dir, cells in by_folder.items()}
    folders = [Path(s.runs_dir) / p.run_id if p.run_id else None for s, p in zip(specs, plans, strict=True)]
    return Multirun(titles, [homes[Path(spec.runs_dir).absolute()] for spec in specs], folders, specs, _jobs(specs))


def _jobs(specs: Sequence[RunSpec]) -> list[list[int]]:
    """The numbers of the cells by job. Those of one model and engine follow each other: a process loads them once."""
    by_model: dict[Any, list[int]] = {}
    for number, spec in enumerate(specs):
        by_model.setdefault((spec.engine, *loaded_as(spec.model)), []).append(number)
    size = specs[0].cells_per_job
    return [cells[first : first + size] for cells in by_model.values() for first in range(0, len(cells), size)]


def unforeseeable(command: Sequence[str], runs_dir: str) -> Multirun:
    """As `begin`, where only Hydra knows the cells: nothing is recorded but failures."""
    home = _stages(Path(runs_dir).absolute()) / f"multirun-{digest(list(command))}"
    shutil.rmtree(home, ignore_errors=True)
    return Multirun([], [home])


def _begin_in(runs_dir: Path, command: Sequence[str], cells: Sequence[Cell]) -> Path:
    forget_finished(runs_dir)
    once: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.number is None):  # a run that was asked for goes by its own title
        once.setdefault(cell.run or cell.title, cell)
    begun = Begun(command=command, host=socket.gethostname(), began=time.time(), cells=list(once.values()))
    home = _stages(runs_dir) / f"multirun-{digest([*once])}"
    shutil.rmtree(home, ignore_errors=True)
    write_atomic(home / CELLS, msgspec.json.encode(begun))
    return home


def begun_in(runs_dir: Path) -> Iterator[tuple[Path, Begun]]:
    """The multiruns on record, each with the folder of its record, the newest first."""
    found = [(file.parent, _read(file, Begun)) for file in _stages(runs_dir).glob(f"multirun-*/{CELLS}")]
    return iter(sorted(((home, begun) for home, begun in found if begun), key=lambda pair: -pair[1].began))


def failure_file(number: int | str) -> str:
    """The name of the file that says why cell `number` failed."""
    return f"failed-{number}.json"


def failures_in(home: Path) -> list[Failure]:
    """What failed of a multirun."""
    found = [_read(file, Failure) for file in home.glob(failure_file("*"))]
    return [failure for failure in found if failure]


def forget_finished(runs_dir: Path) -> None:
    """Remove the records of multiruns of which every cell is finished."""
    for home, begun in begun_in(runs_dir):
        if all(cell.run and finished_run(runs_dir / cell.run) for cell in begun.cells):
            shutil.rmtree(home, ignore_errors=True)


def finished_run(folder: Path) -> RunRecord | None:
    """The record of a finished run; None where there is none, where its files have other sizes, or where scores are
    missing because a scorer failed, so that it is asked again."""
    if not is_run(folder):
        return None
    try:
        record = Run(folder).record()
    except (DetoxbenchError, OSError):
        return None
    return None if record.counts.get("failed_scores") else record


def _may_pass(error: Exception) -> bool:
    """Whether an error may be gone at the next try, as a full memory, a lost connection or a busy disk may be: neither
    a wrong request nor numbers that come out the same."""
    return not isinstance(error, UsageError | NonFiniteError)


def _failure(number: int, title: str, error: Exception, tries: int) -> Failure:
    explained = isinstance(error, DetoxbenchError | OSError)
    if isinstance(error, OSError):
        said = told(error)
    else:
        said = str(error) if explained else f"{type(error).__name__}: {first_line(error)}"
    return Failure(
        number=number,
        title=title,
        error=said,
        usage=isinstance(error, UsageError),
        tries=tries,
        host=socket.gethostname(),
        at=time.time(),
        traceback=[] if explained else "".join(traceback.format_exception(error)).splitlines(),
    )


def _stages(runs_dir: str | Path) -> Path:
    return Path(runs_dir) / ".stages"


def _read(file: Path, cls: type[R]) -> R | None:
    """None for a file that is gone by now or was not written by us: nothing depends on it."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=cls)
    except (OSError, msgspec.DecodeError):
        return None
