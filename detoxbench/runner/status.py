"""How far a runs folder is: what is done, running, failed and left, from its files alone."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import msgspec

from detoxbench.errors import DetoxbenchError
from detoxbench.results.store import runs
from detoxbench.runner.multirun import (
    Begun,
    Cell,
    Failure,
    Working,
    begun_in,
    failure_file,
    failures_in,
    run_title,
    worked_on,
)


class Running(msgspec.Struct, kw_only=True):
    """A run that a process works on."""

    run: str
    title: str
    host: str
    pid: int
    seconds: float
    """For so long."""


class Failed(msgspec.Struct, kw_only=True):
    """A cell that failed when it was last tried."""

    run: str | None
    title: str
    error: str
    tries: int
    host: str | None
    log: str | None
    """The file with the traceback; None where the error explains itself."""


class Left(msgspec.Struct, kw_only=True):
    """A cell that was not tried yet, or was interrupted."""

    run: str | None
    """None while its model is not there to be identified."""
    title: str


class Status(msgspec.Struct, kw_only=True):
    """How far a runs folder is."""

    done: int
    """Finished runs."""
    running: list[Running]
    failed: list[Failed]
    left: list[Left]
    seconds_left: float | None
    """At the pace of the multirun that runs; None where nothing runs, or none of its cells is finished yet."""
    stopped: list[str]
    """Commands that have cells left, and of which nothing runs: the same command goes on."""
    damaged: list[str]
    """Finished runs that are not as they were written."""


def status(runs_dir: Path) -> Status:
    """How far the folder is. Raises DetoxbenchError where there is none."""
    done, unscored, damaged = _finished(runs_dir)
    working = {run: who for run, who in worked_on(runs_dir).items() if run not in done}
    found = Status(done=len(done), running=[], failed=[], left=[], seconds_left=None, stopped=[], damaged=damaged)
    titles, seen = dict[str, str](), done | unscored.keys()
    for home, begun in begun_in(runs_dir):  # the newest first: what it says of a run counts
        cells = [cell for cell in begun.cells if cell.run not in seen]
        titles |= {cell.run: cell.title for cell in cells if cell.run}
        seen |= {cell.run for cell in cells if cell.run}
        waiting = [cell for cell in cells if cell.run not in working]
        failures = {failure.number: failure for failure in failures_in(home)}
        failed = [_failed(cell, failures[cell.number], home) for cell in waiting if cell.number in failures]
        found.failed += failed
        found.left += [Left(run=cell.run, title=cell.title) for cell in waiting if cell.number not in failures]
        if len(waiting) < len(cells):  # some are worked on
            needed = _seconds(runs_dir, begun, len(cells) - len(failed))
            found.seconds_left = max((s for s in (found.seconds_left, needed) if s is not None), default=None)
        elif waiting:
            found.stopped.append(shlex.join(begun.command))
    found.failed += [failed for run, failed in unscored.items() if run not in working]
    found.running = [_running(run, who, titles.get(run, who.title)) for run, who in working.items()]
    return found


def _finished(runs_dir: Path) -> tuple[set[str], dict[str, Failed], list[str]]:
    """(ids of the finished runs, those that lack scores because a scorer failed, what is damaged)."""
    done, unscored, damaged = set[str](), dict[str, Failed](), list[str]()
    for run in runs(runs_dir):
        try:
            record = run.record()
        except (DetoxbenchError, OSError) as error:
            damaged.append(str(error))
            continue
        if lacking := record.counts.get("failed_scores"):
            title = run_title(record.model, record.method, record.suite, record.seed)
            error_text = f"{lacking} scores are missing because a scorer failed: the same command asks it again"
            unscored[record.run_id] = Failed(
                run=record.run_id, title=title, error=error_text, tries=1, host=None, log=None
            )
        else:
            done.add(record.run_id)
    return done, unscored, damaged


def _failed(cell: Cell, failure: Failure, home: Path) -> Failed:
    log = str(home / failure_file(failure.number)) if failure.traceback else None
    return Failed(run=cell.run, title=cell.title, error=failure.error, tries=failure.tries, host=failure.host, log=log)


def _running(run: str, who: Working, title: str) -> Running:
    return Running(
        run=run, title=title, host=who.host, pid=who.pid, seconds=round(max(0.0, time.time() - who.since), 1)
    )


def _seconds(runs_dir: Path, begun: Begun, cells: int) -> float | None:
    """What so many cells still take at the pace of those that were finished since the multirun began."""
    files = [runs_dir / cell.run / "run.json" for cell in begun.cells if cell.run]
    finished = sorted(at for file in files if file.is_file() and (at := file.stat().st_mtime) >= begun.began)
    if not finished:
        return None
    pace = (finished[-1] - begun.began) / len(finished)
    return round(max(0.0, pace * cells - (time.time() - finished[-1])), 1)
