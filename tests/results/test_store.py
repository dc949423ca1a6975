"""What lies on disk: old runs keep loading."""

from __future__ import annotations

from pathlib import Path

import pytest

from detoxbench.cli import main
from detoxbench.config import SCHEMA_VERSION, digest
from detoxbench.results.leaderboard import leaderboard
from detoxbench.results.store import Run, readable
from detoxbench.runner.cell import checkpoint_folder, prepare
from detoxbench.runner.composition import compose
from detoxbench.sharing.verification import verify

OLD = Path(__file__).parents[1] / "golden" / "runs_schema_1"
OLD_SETTINGS = ["method=self_reminder", "suite=safeedit", "suite.records=3", "gen.max_new_tokens=12"]


def test_runs_of_schema_1_load_and_show() -> None:
    notes: list[str] = []
    found = {record.method: (run, record) for run, record in readable(OLD, notes)}
    assert notes == []
    assert {name: record.schema for name, (_, record) in found.items()} == {"none": 1, "self_reminder": 1}
    assert [len(run.samples()) for run, _ in found.values()] == [15, 15]
    board = leaderboard(OLD)
    assert [row.label for row in board.tables[0].rows] == ["none", "self_reminder"]


def test_runs_of_schema_1_are_compared_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "330c", "7d91", "--runs-dir", str(OLD)]) == 0
    assert main(["report", str(OLD), "--out", str(tmp_path / "page.html")]) == 0
    assert "self_reminder" in (tmp_path / "page.html").read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_the_identity_of_runs_of_schema_1_verifies() -> None:
    for run in (Run(folder) for folder in OLD.iterdir()):
        identity = {"schema", "run_id", "folder", "seed", "base_run_id", "files"}
        assert [p for p in verify(run).problems if p.what in identity] == []


def test_a_run_of_schema_1_is_not_served(tmp_path: Path) -> None:
    spec = compose([*OLD_SETTINGS, f"runs_dir={tmp_path}"])
    now = prepare(spec, checkpoint_folder(spec, download=False))
    assert now.identity["schema"] == SCHEMA_VERSION == 2
    old = {run.folder.name for run, _ in readable(OLD, [])}
    assert now.folder.name not in old
    assert digest(now.identity | {"schema": 1}) != now.folder.name
