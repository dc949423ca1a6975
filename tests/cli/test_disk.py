"""A full, broken, read-only or vanished disk is one line that says what to do; the same command then ends as if nothing
had happened."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from safetensors import SafetensorError

import detoxbench as db
from detoxbench import cli
from detoxbench.errors import told
from detoxbench.files import writing
from detoxbench.results.store import Run

RUN = ["suite=utility", "suite.limit=2", "method=self_reminder"]


def failing(number: int, on: int) -> Callable[[int], None]:
    """os.fsync, whose call `on` (from 1) fails with this error."""
    fsync, calls = os.fsync, [0]

    def sync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == on:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    return sync


def contents(runs_dir: Path) -> dict[str, bytes]:
    """The texts and scores of all runs."""
    files = [f for run in runs_dir.iterdir() if not run.name.startswith(".") for f in run.rglob("*.jsonl")]
    return {str(file.relative_to(runs_dir)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("runs")
    assert cli.main(["run", *RUN, f"runs_dir={folder}"]) == 0
    return contents(folder)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space there"), (errno.EIO, "look after it"), (errno.EROFS, "runs_dir=FOLDER")],
)
@pytest.mark.slow
@pytest.mark.parametrize("on", [1, 4, 9, 16])
def test_a_disk_that_fails_is_one_line_and_the_same_command_finishes(
    number: int, remedy: str, on: int, tmp_path: Path, undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "fsync", failing(number, on))
        assert cli.main(["run", *RUN, f"runs_dir={tmp_path}"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("detoxbench: ")]
    assert len(said) == 1
    assert os.strerror(number) in said[0]
    assert remedy in said[0]
    assert cli.main(["run", *RUN, f"runs_dir={tmp_path}"]) == 0
    assert contents(tmp_path) == undisturbed
    assert not [p for p in tmp_path.rglob(".*") if p.name not in (".stages", ".hydra") and p.is_file()], "nothing half"


def test_an_intervention_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has an error of its own for it."""

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: Os { code: 28, kind: StorageFull } No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        db.Intervention(method="m", base="b").save(tmp_path / "new")
    assert told(error.value).startswith(f"No space left on device ('{tmp_path / 'new'}'): free some space there")
    assert not list(tmp_path.iterdir())


def test_stages_that_are_a_file_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".stages").write_text("")
    assert cli.main(["run", *RUN, f"runs_dir={tmp_path}"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("detoxbench: ")
    assert f"{tmp_path}/.stages" in said
    assert "move it away" in said


@pytest.mark.slow
def test_a_folder_deleted_meanwhile_is_named(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = Run.samples

    def delete(self: Run) -> object:
        shutil.rmtree(tmp_path)
        return records(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "samples", delete)  # where the base's answers are read to compare with
        assert cli.main(["run", *RUN, f"runs_dir={tmp_path}"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("detoxbench: ")
    assert str(tmp_path) in said
    assert cli.main(["run", *RUN, f"runs_dir={tmp_path}"]) == 0
    assert contents(tmp_path) == undisturbed


def test_what_the_system_says_is_told_with_file_and_remedy() -> None:
    assert told(OSError(errno.ENOSPC, "No space left on device", "a/b")).startswith(
        "No space left on device ('a/b'): free some space there; the same command goes on"
    )
    assert told(OSError("a\nmessage\n of  another library")) == "a message of another library"
    assert told(TimeoutError()) == "TimeoutError"
