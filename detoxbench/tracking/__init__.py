"""Reporting runs to a tracker (Weights & Biases, trackio), beside the runs folder and never in its way.

A run is always written to disk first (RUNS/wandb, RUNS/trackio); online mode then sends what was written, so that a
dead server loses nothing. All of it happens in a process of its own, at the lowest priority, while the next cell is
worked on: it can fail, hang, print and change its environment, and the run notices no more than one warning. At its
end a process waits for its last reports, but not for long: what is not reported then is reported when the same command
is given again.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from pathlib import Path

import msgspec

from detoxbench.config import TrackerSpec
from detoxbench.errors import DetoxbenchError
from detoxbench.files.locking import locked
from detoxbench.files.writing import write_atomic
from detoxbench.results.store import Run, RunRecord
from detoxbench.tracking.sinks import sink

__all__ = ["report_run", "wait"]

WRITE_SECONDS, SEND_SECONDS, LAST_SECONDS, STOP_SECONDS = 60.0, 60.0, 60.0, 2.0
"""Limits for writing a report, for sending it, for all reports at the end of the process, and for being ended."""
COMPLAINT = "not reported: "
"""What the process says comes behind it; the tracker may say more, also afterwards."""
AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
"""Environment variables by which `wandb agent` tells a process which run of which sweep it is."""


@dataclass(frozen=True)
class _Job:
    run: Run
    record: RunRecord
    spec: TrackerSpec
    folder: Path
    agent: dict[str, str]

    @property
    def marker(self) -> Path:
        """Tells how the run was reported, when it was."""
        return self.folder / ".reported" / Path(self.agent.get("WANDB_RUN_ID") or self.record.run_id).name


_jobs: queue.Queue[_Job] = queue.Queue()
_worker: threading.Thread | None = None
_running: subprocess.Popen[bytes] | None = None
_ended = threading.Event()
"""Set when `wait` has given up, and warned."""
_unsent: set[str] = set()
"""Trackers whose server has failed in this process: they are not asked again, so that it fails once and not often."""


def report_run(run: Run, record: RunRecord, spec: TrackerSpec, runs_dir: Path, *, alone: bool = False) -> None:
    """Have a finished run reported to the tracker that `spec` names. Returns at once and raises nothing: trouble is one
    warning, later. A run that was reported in the same way before is not reported again.

    `alone` says that the command makes this run only, which is what an agent of a W&B sweep takes a command to do.
    """
    global _worker
    if spec.name == "none":
        return
    agent = {name: os.environ[name] for name in AGENT if name in os.environ} if os.environ.get(AGENT[0]) else {}
    if agent and not alone:
        agent = {}
        _warn("in a sweep every run is one cell: add with_base=false to its command, or the agent's run stays empty")
    if path := agent.get("WANDB_SWEEP_PARAM_PATH"):
        agent["WANDB_SWEEP_PARAM_PATH"] = os.path.abspath(path)  # the report is written elsewhere
    _ended.clear()
    _jobs.put(_Job(run, record, spec, runs_dir.resolve() / spec.name, agent))
    if _worker is None or not _worker.is_alive():
        _worker = threading.Thread(target=_work, name="detoxbench-tracking", daemon=True)
        _worker.start()
        Finalize(None, wait, exitpriority=10)  # unlike atexit's, it also runs at the end of a forked process


def wait(seconds: float | None = None) -> None:
    """Wait until all runs so far are reported, `LAST_SECONDS` at the most. One warning tells how many are not."""
    deadline = time.monotonic() + (LAST_SECONDS if seconds is None else seconds)
    with _jobs.all_tasks_done:
        while _jobs.unfinished_tasks and (left := deadline - time.monotonic()) > 0:
            _jobs.all_tasks_done.wait(left)
        missing = _jobs.unfinished_tasks
    if missing:
        with suppress(queue.Empty):
            while True:
                _jobs.get_nowait()
                _jobs.task_done()
        _ended.set()
        if _running and _running.poll() is None:
            _stop(_running)
        _warn(f"not reported in time: {missing} of the runs; the same command, given again, reports them")


def _work() -> None:
    while True:
        job = _jobs.get()
        try:
            _report(job)
        except Exception as error:
            if not _ended.is_set():
                _warn(f"tracker {job.spec.name}: run {job.record.run_id} was not reported: {error}")
        finally:
            _jobs.task_done()


def _report(job: _Job) -> None:
    """Write the run and, in online mode, send it. Raises DetoxbenchError for what went wrong."""
    done = msgspec.json.encode(job.spec)
    lock = job.folder.parent / ".stages" / f"{job.spec.name}-{job.marker.name}.lock"
    job.marker.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, timeout=WRITE_SECONDS + SEND_SECONDS):  # of several processes that share a base run
        if job.marker.is_file() and job.marker.read_bytes() == done:
            return
        job.marker.unlink(missing_ok=True)
        _call(job, "write", WRITE_SECONDS)
        write_atomic(job.marker, msgspec.json.encode(replace(job.spec, mode="offline")))
        if job.spec.mode == "online" and job.spec.name not in _unsent:
            try:
                _call(job, "send", SEND_SECONDS)
            except DetoxbenchError as error:
                _unsent.add(job.spec.name)
                later = f"{sink(job.spec.name).later}; this process goes on without sending"
                raise DetoxbenchError(f"{error}; {later}") from None
            write_atomic(job.marker, done)


def _call(job: _Job, action: str, seconds: float) -> None:
    """Run an action on the job in a process of this Python. Raises DetoxbenchError with its last complaint."""
    global _running
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if name not in AGENT}
    environment |= {"PYTHONPATH": path.rstrip(os.pathsep), **job.agent}
    arguments = [action, str(job.run.folder.resolve()), str(job.folder), msgspec.json.encode(job.spec).decode()]
    # A file, not a pipe: a service that outlives the process would hold a pipe open.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "detoxbench.tracking", *arguments],
            stdin=subprocess.DEVNULL,  # no prompt for a key
            stdout=said,
            stderr=said,
            cwd=job.folder.parent,  # its debug logs go to a folder wandb/ here
            env=environment,
            start_new_session=True,  # an interrupted run does not interrupt the report of the one before
        )
        _running = process
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            _stop(process)
            raise DetoxbenchError(f"no end within {seconds:.0f} s") from None
        if code:
            said.seek(0)
            lines = [line.strip() for line in said.read().decode(errors="replace").split("\n") if line.strip()]
            ours = [line.removeprefix(COMPLAINT) for line in lines if line.startswith(COMPLAINT)]
            raise DetoxbenchError((ours or lines or ["no reason given"])[-1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to remove what it has half-written, then end it."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    process.kill()
    process.wait()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
