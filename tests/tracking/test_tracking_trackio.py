"""trackio: what its database holds is what run.json says, on this machine and on a server of its own."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from detoxbench import tracking
from detoxbench.config import TrackerSpec
from detoxbench.errors import DetoxbenchError
from detoxbench.tracking.report import report_of
from detoxbench.tracking.trackio_sink import TrackioSink
from tests.tracking.test_tracking import CURVE, make_run, record_of, sample_rows, track

pytest.importorskip("trackio", reason="needs the extra: pip install detoxbench[trackio]")
LOCAL = TrackerSpec(name="trackio", samples=150)


@pytest.fixture(autouse=True)
def no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_unsent", set())
    for name in ("TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID", "TRACKIO_WRITE_TOKEN", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)


class Stored:
    """One run as the database of a project has it."""

    def __init__(self, folder: Path, project: str = "detoxbench") -> None:
        with sqlite3.connect(folder / f"{project}.db") as db:
            (config,) = db.execute("SELECT config FROM configs").fetchall()
            steps = db.execute("SELECT metrics FROM metrics ORDER BY step").fetchall()
            joined = "artifacts a JOIN artifact_versions v ON v.artifact_id = a.id"
            self.artifacts = db.execute(f"SELECT name, type, metadata, manifest FROM {joined}").fetchall()
        self.config: dict[str, Any] = msgspec.json.decode(config[0])
        *self.curves, self.summary = [msgspec.json.decode(step[0]) for step in steps]
        self.blobs = {path.name: path.read_bytes() for path in folder.glob("artifacts/*/blobs/sha256/*/*")}

    def curve(self, name: str) -> list[float]:
        return [row[name] for row in self.curves if name in row]


def same(stored: Stored, run: Any, base: Any) -> None:
    """Holds everything that run.json says, the samples, and the intervention."""
    curves = {name: stored.curve(name) for name in ("fit/losses", "fit/layers/step")}
    assert record_of(stored.config, stored.summary, curves) == run.record()
    assert curves["fit/losses"] == CURVE
    told = report_of(run, LOCAL)
    assert {key: stored.summary[key] for key in told.summary} == told.summary
    assert [list(row.values()) for row in stored.summary["samples"]["_value"]] == sample_rows(run, base)
    assert [list(row.values()) for row in stored.summary["records"]["_value"]] == told.tables["records"].rows
    assert (stored.config["_Group"], stored.config["job_type"]) == (told.group, "destein")
    ((name, kind, metadata, manifest),) = stored.artifacts
    assert (name, kind) == (f"intervention-{run.folder.name}", "intervention")
    assert msgspec.json.decode(metadata) == told.artifact.metadata
    (tensors,) = [f for f in msgspec.json.decode(manifest) if f["path"] == "tensors.safetensors"]
    digest = tensors["digest"].removeprefix("sha256:")
    assert stored.blobs[digest] == (run.folder / "intervention" / "tensors.safetensors").read_bytes()


@pytest.mark.slow
def test_the_local_database_equals_run_json_also_when_the_run_is_reported_again(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, run = make_run(tmp_path, "none"), make_run(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        track(run, LOCAL)
        track(run, replace(LOCAL, entity="changed, so that it is reported again"))
        hub.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has asked who we are
            hub.accept()
    same(Stored(tmp_path / "trackio"), run, base)
    assert not recwarn.list


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """trackio's own server on this machine: its address with the token, and its folder."""
    folder = tmp_path / "server"
    code = (
        "import sys, trackio\n"
        "url = trackio.show(open_browser=False, block_thread=False)[3]\n"
        "print('at', url, flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield next(line.split()[1] for line in process.stdout if line.startswith("at ")), folder
        process.stdin.close()
        process.terminate()


@pytest.mark.slow
def test_online_mode_sends_it_to_a_server(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    monkeypatch.setenv("TRACKIO_SERVER_URL", url)
    base, run = make_run(tmp_path / "runs", "none"), make_run(tmp_path / "runs")
    track(run, replace(LOCAL, mode="online"))
    same(Stored(folder), run, base)
    same(Stored(tmp_path / "runs" / "trackio"), run, base)


@pytest.mark.parametrize(
    ("url", "said"),
    [("", "set TRACKIO_SPACE_ID or TRACKIO_SERVER_URL"), ("http://127.0.0.1:9?write_token=x", "no answer from .*:9 ")],
)
def test_a_server_that_is_not_there_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", url)
    with pytest.raises(DetoxbenchError, match=said) as refused:
        TrackioSink().send(report_of(make_run(tmp_path, n=5), LOCAL), tmp_path, LOCAL)
    assert "write_token" not in str(refused.value)


def test_what_trackio_changes_with_no_more_than_a_warning_of_its_own_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, "none", n=5)
    record = run.record()
    record.metrics["step"] = record.metrics.pop("DS")  # a name that trackio keeps for itself
    (run.folder / "run.json").write_bytes(msgspec.json.encode(record))
    with pytest.warns(UserWarning, match="tracker trackio: run .* was not reported: trackio: .*step"):
        track(run, LOCAL)
    assert not list(tmp_path.glob("trackio/.reported/*"))
