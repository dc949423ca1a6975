"""The same bytes and leaderboard out of one process and out of several: by each launcher that is there, by torchrun.

`make test-scale` installs them all. Every process imports torch: this takes minutes on two cores.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from detoxbench.cli.common import FAILURE

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "joblib": ["launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["launcher=slurm", "hydra/launcher=submitit_local", "hydra.launcher.gpus_per_node=0"],
    "ray": ["launcher=ray", "hydra.launcher.ray.init.num_cpus=2"],
}
"""By extra, what chooses it on a machine of two cores."""
MULTIRUN = ["run", "-m", "method=self_reminder,destein", "suite=safeedit", "suite.records=6", "gen.max_new_tokens=8"]
OF_THE_TIME = {"run.json", "log.txt", "digests.json"}
"""Files of a run that hold when and where it was made; of run.json the rest is compared."""
MEASURED = {"fit_seconds", "guide_seconds", "fit_peak_mb", "generation_peak_mb", "tokens_per_second", "relative_speed"}
"""Costs that are measured anew each time; the others are counted."""


def detoxbench(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "detoxbench.cli", *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # last bits depend on the number of threads
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


def chosen(extra: str) -> list[str]:
    """The overrides that choose a launcher. Skips the test where it is not installed."""
    try:
        installed = find_spec(f"hydra_plugins.hydra_{extra}_launcher")
    except ModuleNotFoundError:  # not one plugin of Hydra is there
        installed = None
    if not installed:
        pytest.skip(f"not installed: pip install 'detoxbench[{extra}]' (make test-scale does)")
    return LAUNCHERS[extra]


def contents(runs: Path) -> dict[str, bytes]:
    """By place below `runs`, the bytes of what was generated, scored, aggregated and fitted."""
    files = (file for file in runs.glob("*/**/*") if file.is_file() and file.relative_to(runs).parts[0][0] != ".")
    return {str(file.relative_to(runs)): file.read_bytes() for file in files if file.name not in OF_THE_TIME}


def records(runs: Path) -> dict[str, Any]:
    """By run id, run.json without what it holds of the time."""
    found = {file.parent.name: json.loads(file.read_bytes()) for file in runs.glob("*/run.json")}
    for record in found.values():
        del record["created"], record["provenance"]
        record["cost"] = {key: value for key, value in record["cost"].items() if key not in MEASURED}
    return found


def leaderboard(folder: Path) -> list[dict[str, str]]:
    """The lines of the leaderboard, without what is measured anew each time."""
    done = detoxbench(folder, "leaderboard", "--format", "csv")
    assert done.returncode == 0, done.stderr
    rows = csv.DictReader(io.StringIO(done.stdout))
    return [row for row in rows if row["metric"].removeprefix("cost.") not in MEASURED]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("basic")
    done = detoxbench(folder, *MULTIRUN, "launcher=basic")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("extra", LAUNCHERS)
def test_several_processes_leave_the_same_bytes_and_leaderboard(extra: str, one_process: Path, tmp_path: Path) -> None:
    done = detoxbench(tmp_path, *MULTIRUN, *chosen(extra))
    assert done.returncode == 0, done.stderr
    told = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("model=")]
    assert told == ["method=self_reminder", "method=destein"], "in the order of the command"
    assert contents(tmp_path / "runs") == contents(one_process / "runs")
    assert len(records(tmp_path / "runs")) == 3
    assert records(tmp_path / "runs") == records(one_process / "runs")
    assert leaderboard(tmp_path) == leaderboard(one_process)
    assert detoxbench(tmp_path, "status").stdout == "3 done, 0 running, 0 failed, 0 left\n"


def test_two_processes_that_share_each_suite_leave_the_same_bytes_and_leaderboard(
    one_process: Path, tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [*torchrun, "-m", "detoxbench", *MULTIRUN]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "runs") == contents(one_process / "runs")
    assert records(tmp_path / "runs") == records(one_process / "runs")
    assert leaderboard(tmp_path) == leaderboard(one_process)


@pytest.mark.parametrize("extra", LAUNCHERS)
def test_a_job_of_several_cells_leaves_the_same_and_tells_them_in_order(extra: str, tmp_path: Path) -> None:
    """Two models, each with two cells, that the command names in turn."""
    cells = ["run", "-m", "method=none,self_reminder", "model.dtype=float32,bfloat16", "suite=utility", "suite.limit=2"]
    (tmp_path / "apart").mkdir()
    by_one = detoxbench(tmp_path / "apart", *cells)
    done = detoxbench(tmp_path, *cells, "cells_per_job=2", *chosen(extra))
    assert done.returncode == 0, done.stderr
    assert done.stdout == by_one.stdout
    assert contents(tmp_path / "runs") == contents(tmp_path / "apart" / "runs")


@pytest.mark.parametrize("extra", LAUNCHERS)
def test_what_fails_in_another_process_is_told_here_and_the_others_go_on(extra: str, tmp_path: Path) -> None:
    cells = ["run", "-m", "model=hf", "model.path=absent,fable", "suite=utility", "suite.limit=2"]
    done = detoxbench(tmp_path, *cells, *chosen(extra))
    assert done.returncode == FAILURE
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("detoxbench: ")]
    assert told.startswith("detoxbench: [1/2] model.path=absent: model 'absent' is neither")
    assert "model=fable" in done.stdout
    assert "1 done, 0 running, 1 failed, 0 left\n" in detoxbench(tmp_path, "status").stdout


def test_a_launcher_that_cannot_begin_is_told_without_a_traceback(tmp_path: Path) -> None:
    chosen("submitit")
    if shutil.which("srun"):
        pytest.skip("this is a SLURM cluster")
    done = detoxbench(tmp_path, "run", "launcher=slurm", "suite=utility", "suite.limit=2")
    assert done.returncode == FAILURE
    first, second = done.stderr.splitlines()
    assert first.startswith("detoxbench: the launcher stopped: RuntimeError: Could not detect")
    assert "not finished: 1 of 1 cells" in second
