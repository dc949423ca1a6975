"""One suite over several processes: the same bytes as by one, also after a process is killed or fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import detoxbench as db
from detoxbench import cli
from detoxbench.engine.share import Share, launched
from detoxbench.errors import DetoxbenchError
from detoxbench.runner import processes
from tests.support.processes import Process

SAMPLED = [
    "suite=real_toxicity_prompts", "suite.prompts=8", "gen.n=2", "gen.max_new_tokens=6", "gen.batch_tokens=60",
    "with_base=false",
]  # fmt: skip
CELLS = {
    "generated": [*SAMPLED, "method=none"],
    "chosen among candidates": [*SAMPLED, "method=best_of_n", "method.n=3"],
    "read": ["suite=likelihood_utility", "method=self_reminder", "with_base=false"],
    "probed": ["suite=mechanism", "method=destein", "with_base=false"],
    "fitted by record, in bf16": [
        "suite=safeedit", "suite.records=6", "method=dinm", "method.protocol=per_record", "method.num_steps=2",
        "method.edit_batch=2", "gen.batch_tokens=160", "gen.max_new_tokens=12", "model.dtype=bfloat16",
        "with_base=false",
    ],
}  # fmt: skip
BYTES = ("samples.jsonl", "scores.jsonl", "clusters.json")


def start(count: int, *argv: str, folder: Path | None = None, elsewhere: Path | None = None) -> list[Process]:
    """So many processes of one run, as torchrun starts them; the last one `elsewhere`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    places = [folder or Path.cwd()] * (count - 1) + [elsewhere or folder or Path.cwd()]
    environments = [
        {"RANK": str(k), "LOCAL_RANK": str(k), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        | {"MASTER_PORT": str(port)}
        for k in range(count)
    ]
    return [Process(place, argv, given) for place, given in zip(places, environments, strict=True)]


def ended(started: list[Process]) -> list[subprocess.CompletedProcess[str]]:
    return [process.end() for process in started]


def bytes_of(runs: Path) -> dict[str, bytes]:
    found = {f"{file.parent.name}/{file.name}": file.read_bytes() for name in BYTES for file in runs.glob(f"*/{name}")}
    assert found
    return found


def test_the_shares_are_everything_once() -> None:
    for count in range(12):
        for ranks in range(1, 6):
            shares = [Share(rank, ranks).of(range(count)) for rank in range(ranks)]
            assert [i for share in shares for i in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("what", CELLS)
def test_two_processes_leave_the_bytes_of_one(what: str, tmp_path: Path) -> None:
    first, second = ended(start(2, "run", *CELLS[what], f"runs_dir={tmp_path / 'two'}"))
    assert (first.returncode, first.stderr) == (0, "")
    assert "method=" in first.stdout
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    db.run([*CELLS[what], f"runs_dir={tmp_path / 'one'}"])
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")
    ran = [json.loads(next((tmp_path / name).glob("*/run.json")).read_bytes()) for name in ("two", "one")]
    assert ran[0]["metrics"] == ran[1]["metrics"]
    assert not list((tmp_path / "two").glob(".stages/generate-*/*.partial*"))
    assert not list((tmp_path / "two").glob(".stages/generate-*/partial*"))


@pytest.mark.slow
def test_what_a_killed_process_has_made_is_kept_and_any_number_goes_on(tmp_path: Path) -> None:
    argv = ["run", *SAMPLED, "suite.prompts=16", "gen.batch_tokens=30", "method=none", f"runs_dir={tmp_path / 'cut'}"]
    started = start(2, *argv)
    while started[1].poll() is None:
        (made,) = [*tmp_path.glob("cut/.stages/generate-*/partial.1.jsonl")] or [None]
        if made and made.read_bytes().count(b"\n") >= 4:
            started[1].send(signal.SIGKILL)
            break
        time.sleep(0.005)
    first, second = ended(started)
    assert second.returncode == -signal.SIGKILL
    assert first.returncode == cli.common.FAILURE
    assert first.stdout == ""
    assert first.stderr.startswith("detoxbench: process 1 of this run has ended; the same command")
    assert first.stderr.count("\n") == 1
    assert not list(tmp_path.glob("cut/*/run.json"))
    (folder,) = {file.parent for file in tmp_path.glob("cut/.stages/generate-*/partial*.jsonl")}
    before = {line for file in folder.glob("partial*.jsonl") for line in file.read_bytes().splitlines()}
    assert len(before) >= 8
    assert [process.returncode for process in ended(start(3, *argv))] == [0, 0, 0]
    db.run([*argv[1:-1], f"runs_dir={tmp_path / 'whole'}"])
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


@pytest.mark.slow
def test_when_the_first_is_killed_the_others_end_and_one_of_them_says_so(tmp_path: Path) -> None:
    started = start(3, "run", *SAMPLED, "gen.batch_tokens=30", f"runs_dir={tmp_path}")
    while not list(tmp_path.glob(".stages/generate-*/partial.jsonl")):
        time.sleep(0.005)
    started[0].send(signal.SIGKILL)
    _, *others = ended(started)
    assert [other.returncode for other in others] == [cli.common.FAILURE] * 2
    assert [other.stderr.partition(";")[0] for other in others] == ["detoxbench: process 0 of this run has ended", ""]


def test_what_fails_in_another_process_is_told_by_the_first_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = ended(start(2, "run", *SAMPLED, "method=none", folder=tmp_path / "a", elsewhere=tmp_path / "b"))
    assert (first.returncode, second.returncode) == (cli.common.FAILURE, 0)
    (told,) = first.stderr.splitlines()
    assert "runs_dir must be one folder for all processes (process 1 on" in told
    assert second.stderr == ""


def test_a_launcher_of_processes_is_refused_where_there_are_some(tmp_path: Path) -> None:
    first, second = ended(start(2, "run", *SAMPLED, "launcher=slurm", f"runs_dir={tmp_path}"))
    assert second.returncode == 0
    assert first.returncode == cli.common.USAGE
    assert "launcher" in first.stderr
    assert not list(tmp_path.iterdir())


def test_one_process_prints_what_has_no_work_to_share(tmp_path: Path) -> None:
    first, second = ended(start(2, "list", "methods"))
    assert (first.returncode, second.returncode) == (0, 0)
    assert "destein" in first.stdout
    assert second.stdout == ""


def test_a_single_process_of_a_launcher_is_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched() == Share(0, 2)


@pytest.mark.parametrize(
    ("seen", "local", "taken"),
    [(None, 1, "1"), ("4,6", 0, "4"), ("4,6", 1, "6"), (None, 3, "1"), ("GPU-a,GPU-b", 1, "GPU-b")],
)
def test_each_process_sees_a_gpu_of_its_own(
    seen: str | None, local: int, taken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if there were two."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.setattr(
        "torch.cuda.device_count", lambda: len((os.environ["CUDA_VISIBLE_DEVICES"] or "0,1").split(","))
    )
    processes._take_gpu(local)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == taken
    assert ("shares a GPU" in caplog.text) == (local == 3)


def test_where_no_gpu_can_be_chosen_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(DetoxbenchError, match="set CUDA_VISIBLE_DEVICES"):
        processes._take_gpu(0)


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv = [
        *command,
        "-m",
        "detoxbench",
        "run",
        "-m",
        "method=none,self_reminder",
        *SAMPLED,
        f"runs_dir={tmp_path / 'two'}",
    ]
    done = subprocess.run(argv, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("model=")] == [
        "method=none", "method=self_reminder",
    ]  # fmt: skip
    for method in ("none", "self_reminder"):
        db.run([f"method={method}", *SAMPLED, f"runs_dir={tmp_path / 'one'}"])
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")
