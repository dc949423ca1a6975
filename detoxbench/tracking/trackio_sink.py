"""trackio: a run is written into a local SQLite database (RUNS/trackio/PROJECT.db), which `trackio show` reads."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from detoxbench.config import TrackerSpec
from detoxbench.errors import DetoxbenchError
from detoxbench.tracking.report import Report
from detoxbench.tracking.sinks import ask

SERVERS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Environment variables that say where trackio sends to."""


class TrackioSink:
    """Runs as trackio keeps them: a database on this machine, sent when that is asked for."""

    later = "`TRACKIO_DIR=RUNS/trackio trackio sync --project PROJECT` sends it later"

    def write(self, report: Report, folder: Path, spec: TrackerSpec) -> None:
        """Keep a report on this machine. See `sinks.Sink`."""
        for name in SERVERS:
            os.environ.pop(name, None)
        os.environ |= {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}  # else it asks the hub for the user's name
        _log(report, spec)
        from trackio.sqlite_storage import SQLiteStorage

        stored = SQLiteStorage.get_logs(spec.project, _name(report)) or []
        if len(stored) != len(_steps(report)) or _name(report) not in SQLiteStorage.get_runs(spec.project):
            raise DetoxbenchError(f"trackio did not write the whole run to {folder}: is the disk full?")

    def send(self, report: Report, folder: Path, spec: TrackerSpec) -> None:
        """Send what is kept. See `sinks.Sink`."""
        space, server = (os.environ.get(name) for name in SERVERS)
        if not (space or server):
            raise DetoxbenchError(f"set {' or '.join(SERVERS)} for tracker.mode=online")
        ask(os.environ.get("HF_ENDPOINT", "https://huggingface.co") if space else str(server).partition("?")[0])
        # What trackio could not send it keeps for later; the whole run is kept already, by `write`.
        with tempfile.TemporaryDirectory() as elsewhere:
            os.environ["TRACKIO_DIR"] = elsewhere
            _log(report, spec)


def _log(report: Report, spec: TrackerSpec) -> None:
    """Log the report to wherever the environment says. Raises DetoxbenchError for what trackio only warns about."""
    import trackio

    with warnings.catch_warnings(record=True) as troubles:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        if Path(trackio.sqlite_storage.SQLiteStorage.get_project_db_path(spec.project)).exists():
            for before in trackio.Api().runs(spec.project):
                if before.name == _name(report):
                    before.delete()
        trackio.init(
            project=spec.project,
            name=_name(report),
            group=report.group,
            config={**report.config, "job_type": report.job_type, "tags": report.tags},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        for step, values in enumerate(_steps(report)):
            trackio.log(values, step=step)
        if report.artifact:
            artifact = trackio.Artifact(report.artifact.name, "intervention", metadata=report.artifact.metadata)
            for file in report.artifact.files:
                artifact.add_file(str(file))
            trackio.log_artifact(artifact)
        trackio.finish()
    if troubles:
        raise DetoxbenchError(f"trackio: {troubles[0].message}".replace("\n", " "))


def _name(report: Report) -> str:
    return f"{report.name} {report.id}"


def _steps(report: Report) -> list[dict[str, Any]]:
    """The curves, a step for each of their values, and in a last step the numbers and the tables."""
    import trackio

    length = max(map(len, report.curves.values()), default=0)
    curves = [{k: v[step] for k, v in report.curves.items() if step < len(v)} for step in range(length)]
    tables = {name: trackio.Table(columns=t.columns, data=t.rows) for name, t in report.tables.items()}
    return [*curves, {**report.summary, **tables}]
