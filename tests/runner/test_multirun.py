"""What a multirun leaves for `status`: its cells, its failures, who works on what; and that nothing stays behind."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import msgspec
import pytest
from filelock import FileLock

import detoxbench as db
from detoxbench import cli
from detoxbench.errors import DetoxbenchError, NonFiniteError, UsageError
from detoxbench.runner import multirun, stages
from detoxbench.runner.cell import checkpoint_folder, prepare
from detoxbench.runner.composition import cells
from detoxbench.runner.multirun import Multirun
from detoxbench.runner.status import status

QUICK = ["suite=utility", "suite.limit=2"]
METHODS = "method=none,self_reminder"
GOLDEN = Path(__file__).parents[1] / "golden"


def begun(runs_dir: Path, *overrides: str) -> tuple[Multirun, list[str]]:
    """A multirun on record of which nothing has run, and the ids of its runs."""
    found = cells([*QUICK, f"runs_dir={runs_dir}", *overrides], multirun=True)
    specs = [spec for _, spec in found]
    titles = [f"[{number}/{len(found)}]" for number in range(1, len(found) + 1)]
    plans = multirun.planned(specs)
    return multirun.begin(["detoxbench", "run", "-m"], titles, specs, plans), [str(plan.run_id) for plan in plans]


def hold(runs_dir: Path, run: str) -> FileLock:
    """The lock of a run, held as by a process that works on it."""
    lock = FileLock(runs_dir / ".stages" / f"{run}.lock")
    lock.acquire()
    return lock


def fail(error: Exception) -> None:
    raise error


def test_what_is_left_is_told_with_the_runs_to_compare_with(tmp_path: Path) -> None:
    _, (first, second) = begun(tmp_path, "method=self_reminder", "seed=0,1")
    found = status(tmp_path)
    assert [(left.title, left.run) for left in found.left if left.run in (first, second)] == [
        ("[1/2]", first), ("[2/2]", second),
    ]  # fmt: skip
    assert [left.title for left in found.left[2:]] == ["base of [1/2]", "base of [2/2]"]
    assert (found.done, found.running, found.failed, found.seconds_left) == (0, [], [], None)
    assert found.stopped == ["detoxbench run -m"]


@pytest.mark.parametrize(
    ("size", "jobs"),
    [(1, [[0], [2], [4], [1], [3], [5]]), (2, [[0, 2], [4], [1, 3], [5]]), (9, [[0, 2, 4], [1, 3, 5]])],
)
def test_jobs_are_cells_of_one_model(size: int, jobs: list[list[int]], tmp_path: Path) -> None:
    found, _ = begun(tmp_path, "seed=0,1,2", "model.dtype=float32,bfloat16", f"cells_per_job={size}")
    assert found.jobs == jobs
    assert [found.specs[0].model.dtype, found.specs[1].model.dtype] == ["float32", "bfloat16"]


def test_a_base_that_is_a_cell_itself_stands_once(tmp_path: Path) -> None:
    begun(tmp_path, METHODS)
    assert [left.title for left in status(tmp_path).left] == ["[1/2]", "[2/2]"]


def test_running_is_who_holds_the_lock_and_not_who_was_killed(tmp_path: Path) -> None:
    _, (first, _) = begun(tmp_path, METHODS)
    spec = cells([*QUICK, f"runs_dir={tmp_path}"])[0][1]
    lock = hold(tmp_path, first)
    with multirun.working(prepare(spec, checkpoint_folder(spec, download=False))):
        (running,) = status(tmp_path).running
        assert (running.run, running.title, running.host, running.pid) == (
            first, "[1/2]", socket.gethostname(), os.getpid(),
        )  # fmt: skip
        assert [left.title for left in status(tmp_path).left] == ["[2/2]"]
        assert status(tmp_path).stopped == []
        lock.release()  # as a killed process does: its file is still there
        assert status(tmp_path).running == []
        assert len(status(tmp_path).left) == 2
    assert not list(tmp_path.glob(".stages/*.working.json"))


def test_a_failure_is_told_until_the_cell_is_finished_by_whomever(tmp_path: Path) -> None:
    many, (run,) = begun(tmp_path)
    assert many.attempt(0, "[1/1]", lambda: None) is None
    many.attempt(0, "[1/1]", lambda: fail(UsageError("no such thing")))
    (failed,) = status(tmp_path).failed
    assert (failed.run, failed.title, failed.error, failed.log) == (run, "[1/1]", "no such thing", None)
    assert {number: failure.usage for number, failure in many.failures().items()} == {0: True}
    many.end()
    assert list(tmp_path.glob(".stages/multirun-*")), "it is not finished"
    db.run([*QUICK, f"runs_dir={tmp_path}"])
    assert (status(tmp_path).done, status(tmp_path).failed, status(tmp_path).left) == (1, [], [])
    many.end()
    assert not list(tmp_path.glob(".stages/multirun-*"))


def test_an_error_that_does_not_explain_itself_keeps_its_traceback(tmp_path: Path) -> None:
    many, _ = begun(tmp_path, METHODS)
    many.attempt(0, "[1/2]", lambda: fail(ValueError("odd")))
    (failed,) = status(tmp_path).failed
    assert failed.error == "ValueError: odd"
    assert failed.log is not None
    assert "in fail" in Path(failed.log).read_text()
    with pytest.raises(ValueError, match="odd"):
        many.attempt(0, "", lambda: fail(ValueError("odd")), many=False)


@pytest.mark.parametrize(
    ("error", "many", "tries"),
    [
        (DetoxbenchError("no power"), True, 2),
        (MemoryError(), True, 2),
        (UsageError("no such thing"), True, 1),
        (NonFiniteError("NaN"), True, 1),
        (DetoxbenchError("no power"), False, 1),
    ],
    ids=str,
)
def test_a_cell_of_many_is_tried_twice_where_that_may_help(
    error: Exception, many: bool, tries: int, tmp_path: Path
) -> None:
    tried: list[None] = []
    failure = Multirun([], [tmp_path / "home"]).attempt(
        0, "[1/2]", lambda: (tried.append(None), fail(error)), many=many
    )
    assert failure is not None
    assert (failure.tries, len(tried)) == (tries, tries)


def test_what_passes_at_the_second_try_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tries = iter([DetoxbenchError("no power"), None])
    many = Multirun(["[1/1]"], [tmp_path / "home"])
    assert many.attempt(0, "[1/1]", lambda: (error := next(tries)) and fail(error)) is None
    assert many.failures() == {}
    assert "[1/1]: tried once more after: no power" in caplog.text


def test_the_same_command_begins_anew_and_another_keeps_the_first(tmp_path: Path) -> None:
    many, _ = begun(tmp_path, METHODS)
    many.attempt(0, "[1/2]", lambda: fail(DetoxbenchError("once")))
    again, _ = begun(tmp_path, METHODS)
    assert again.failures() == {}
    begun(tmp_path, METHODS, "seed=1,2")
    assert len(list(tmp_path.glob(".stages/multirun-*"))) == 2
    assert len(status(tmp_path).left) == 6


def test_a_model_that_is_not_there_leaves_a_cell_without_a_run(tmp_path: Path) -> None:
    many, _ = begun(tmp_path, "model=hf", "model.path=absent,fable")
    assert [left.run is None for left in status(tmp_path).left] == [True, False]
    many.attempt(0, "[1/2]", lambda: fail(DetoxbenchError("absent")))
    assert [failed.error for failed in status(tmp_path).failed] == ["absent"]


def test_the_time_left_is_at_the_pace_since_the_multirun_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (first, second, *_) = begun(tmp_path, "seed=0,1,2,3")
    (home,) = tmp_path.glob(".stages/multirun-*")
    began = msgspec.json.decode((home / "cells.json").read_bytes(), type=multirun.Begun).began
    db.run([*QUICK, f"runs_dir={tmp_path}"])
    os.utime(tmp_path / first / "run.json", (began + 60, began + 60))
    monkeypatch.setattr("time.time", lambda: began + 80.0)
    assert status(tmp_path).seconds_left is None, "nothing runs"
    (tmp_path / ".stages" / f"{second}.working.json").write_bytes(
        msgspec.json.encode(multirun.Working(title="x", host="h", pid=1, since=began + 60))
    )
    lock = hold(tmp_path, second)
    found = status(tmp_path)
    lock.release()
    assert (found.seconds_left, found.running[0].seconds) == (160.0, 20.0)  # 3 cells of 60 s, less the last 20 s


def test_a_run_whose_scorer_failed_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = stages.score
    monkeypatch.setattr(stages, "score", lambda *given: (score(*given)[0], 3))
    db.run([*QUICK, f"runs_dir={tmp_path}"])
    found = status(tmp_path)
    assert (found.done, [failed.error.partition(" are")[0] for failed in found.failed]) == (0, ["3 scores"])


def test_older_and_damaged_runs_are_counted(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "runs_schema_1", tmp_path / "runs")
    found = status(tmp_path / "runs")
    assert found.done == len([path for path in (tmp_path / "runs").iterdir() if path.is_dir()])
    assert (found.left, found.failed, found.damaged) == ([], [], [])
    result = db.run([*QUICK, f"runs_dir={tmp_path}"])
    (result.folder / "samples.jsonl").write_bytes(b"")
    assert status(tmp_path).done == 0
    assert "samples.jsonl" in status(tmp_path).damaged[0]
    with pytest.raises(DetoxbenchError, match="no runs folder"):
        status(tmp_path / "absent")


def test_it_is_printed_for_people_and_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    many, _ = begun(tmp_path, METHODS, "seed=0,1")
    many.attempt(3, "", lambda: fail(UsageError("no\x1b[31m power")))
    monkeypatch.setattr("detoxbench.cli.status.SHOWN", 2)
    assert cli.main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("0 done, 0 running, 1 failed, 3 left\n")
    assert "and 1 more" in out
    assert "\x1b" not in out
    assert "it goes on with: detoxbench run -m" in out
    assert cli.main(["status", str(tmp_path), "--json"]) == 0
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert len(shown["left"]) == 3
