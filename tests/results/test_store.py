"""What lies on disk: old runs keep loading."""

from __future__ import annotations

from pathlib import Path

import pytest

from detoxbench.cli import main
from detoxbench.config import IDENTITY_VERSION, SCHEMA_VERSION, digest
from detoxbench.results.leaderboard import leaderboard
from detoxbench.results.store import Run, readable
from detoxbench.runner.cell import checkpoint_folder, prepare
from detoxbench.runner.composition import compose_run
from detoxbench.sharing.verification import verify

GOLDEN = Path(__file__).parents[1] / "golden"
OLD, PACKED = GOLDEN / "runs_schema_1", GOLDEN / "runs_schema_2"
UNTAGGED = {
    "suite=utility method=none": "00f65b5b71bd5067",
    "suite=utility method=destein": "e2a405fd227d92fb",
    "suite=real_toxicity_prompts method=self_reminder": "85e0ca739321d500",
    "suite=toxic_instructions method=ext_sub method.fidelity=reference": "c0ca4d2d33e2b636",
    "suite=harmful_requests method=contrastive_perplexity": "da63ec82974fb4e4",
    "suite=halueval method=dinm method.fidelity=paper": "6416e5c8e8f9dd69",
}
"""Run ids from before samples had tags."""
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
    spec = compose_run([*OLD_SETTINGS, f"runs_dir={tmp_path}"])
    now = prepare(spec, checkpoint_folder(spec, download=False))
    assert now.identity["schema"] == IDENTITY_VERSION == 2
    old = {run.folder.name for run, _ in readable(OLD, [])}
    assert now.folder.name not in old
    assert digest(now.identity | {"schema": 1}) != now.folder.name


def test_runs_of_schema_2_load_show_and_say_why_they_are_not_computed_again(tmp_path: Path) -> None:
    """Their samples have what a suite wants to find again packed into `kind`, and no tags."""
    notes: list[str] = []
    found = list(readable(PACKED, notes, whole=True))
    assert notes == []
    assert {(record.suite, record.method, record.schema) for _, record in found} == {
        (suite, method, 2) for suite in ("safeedit", "bias") for method in ("none", "self_reminder")
    }
    board = leaderboard(PACKED)
    assert [row.cells["DS"].n for row in board.tables[1].rows] == [2, 2]
    assert main(["report", str(PACKED), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "groups/girls" in page
    for run, record in found:
        problems = [p for p in verify(run).problems if p.what != "base_run_id"]
        assert [str(p.recomputed) for p in problems] == ["version 1 aggregated it, version 2 is installed here"], (
            record.suite
        )


def test_new_runs_are_of_schema_3_and_other_runs_keep_their_ids(tmp_path: Path) -> None:
    """Ids of runs from before samples had tags, of suites whose requests have none."""
    assert SCHEMA_VERSION == 3
    for setting, run_id in UNTAGGED.items():
        spec = compose_run([*setting.split(), f"runs_dir={tmp_path}"])
        assert prepare(spec, checkpoint_folder(spec, download=False)).keys.run == run_id
