"""Weights & Biases: a run is written as an offline run (RUNS/wandb/offline-run-*), which `wandb sync` sends."""

from __future__ import annotations

import os
import runpy
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from detoxbench.config import TrackerSpec
from detoxbench.errors import DetoxbenchError
from detoxbench.tracking.report import Artifact, Report
from detoxbench.tracking.sinks import ask

TAG_LENGTH = 64
"""W&B refuses longer tags."""


class WandbSink:
    """Runs as wandb keeps them: a folder on this machine, sent when that is asked for."""

    later = "`wandb sync RUNS/wandb/offline-run-*` sends it later"

    def write(self, report: Report, folder: Path, spec: TrackerSpec) -> None:
        """Keep a report on this machine. See `sinks.Sink`."""
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # before the import, which would send its errors to W&B
        import wandb

        for before in _written(folder, _id(report)):
            shutil.rmtree(before)
        try:
            self._write(wandb, report, folder, spec)
        except BaseException:
            for half in _written(folder, _id(report)):
                shutil.rmtree(half)
            raise

    def _write(self, wandb: Any, report: Report, folder: Path, spec: TrackerSpec) -> None:
        with _started(wandb, report, folder, spec) as run:
            # The tables' copies that `wandb sync` sends lie with the run, not in the home folder.
            os.environ["WANDB_DATA_DIR"] = str(Path(run.settings.sync_dir) / "staged")
            _log(wandb, run, report)
            if report.artifact:
                run.log_artifact(_artifact(wandb, report.artifact))
        wandb.teardown()  # its service may still be writing
        if not any(whole(file) for path in _written(folder, _id(report)) for file in path.glob("*.wandb")):
            raise DetoxbenchError(f"wandb did not write the whole run to {folder}: is the disk full?")

    def send(self, report: Report, folder: Path, spec: TrackerSpec) -> None:
        """Send what is kept. See `sinks.Sink`."""
        import wandb

        ask(wandb.setup().settings.base_url)
        written = _written(folder, _id(report))
        sys.argv = ["wandb", "sync", *map(str, written)]
        with suppress(SystemExit):
            runpy.run_module("wandb", run_name="__main__")
        if not all(list(path.glob("*.synced")) for path in written):
            sys.exit(1)  # it has said why, but calls that a success


def _started(wandb: Any, report: Report, folder: Path, spec: TrackerSpec) -> Any:
    """A new offline run; a context manager, which finishes it."""
    return wandb.init(
        mode="offline",
        dir=str(folder.parent),
        project=spec.project,
        entity=spec.entity,
        group=report.group,
        id=report.id,
        name=report.name,
        job_type=report.job_type,
        tags=[tag[:TAG_LENGTH] for tag in report.tags],
        config=report.config,
        settings=wandb.Settings(  # where the run was made stands in its config, under provenance
            console="off", x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False
        ),
    )


def _log(wandb: Any, run: Any, report: Report) -> None:
    """Put the curves, the summary and the tables into wandb's `run`."""
    run.define_metric("fit/*", step_metric="fit_step")
    for step in range(max(map(len, report.curves.values()), default=0)):
        run.log({"fit_step": step} | {k: v[step] for k, v in report.curves.items() if step < len(v)})
    run.summary.update(report.summary)
    tables = {
        name: wandb.Table(columns=table.columns, data=table.rows, allow_mixed_types=True)
        for name, table in report.tables.items()
    }
    run.log({**tables, **report.metrics})  # metrics once more, as sweeps optimise what was logged


def _artifact(wandb: Any, artifact: Artifact) -> Any:
    wandb_artifact = wandb.Artifact(artifact.name, "intervention", metadata=artifact.metadata)
    for file in artifact.files:
        wandb_artifact.add_file(str(file), policy="immutable", skip_cache=True)  # from the run folder, no copy
    return wandb_artifact


def _id(report: Report) -> str:
    """The run's id; in a sweep the one that the agent has given it."""
    return os.environ["WANDB_RUN_ID"] if os.environ.get("WANDB_SWEEP_ID") else report.id


def _written(folder: Path, run_id: str) -> list[Path]:
    return sorted(folder.glob(f"offline-run-*-{run_id}"))


def whole(path: Path) -> bool:
    """Whether an offline run's file is complete: wandb does not always say when it cannot write."""
    return any(record.WhichOneof("record_type") == "exit" for record in records(path))


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of an offline run's file: 7 bytes of header, then LevelDB's log of 32 KiB blocks.

    A record that was cut off at the end is left out.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    if data[:4] != b":W&B":
        raise DetoxbenchError(f"'{path}' is no offline run of wandb")
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # too little for a header: the block ends in zeros
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part = data[at + 7 : at + 7 + length]
        if len(part) < length:
            return
        parts += part
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(parts)
            parts = b""
