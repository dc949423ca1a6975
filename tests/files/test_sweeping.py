"""What a killed process leaves is gone at the next start; what a living one is writing is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

from detoxbench import cli
from detoxbench.files.sweeping import UNTOUCHED, sweep

LONG_AGO = time.time() - 2 * UNTOUCHED
KILLED = """
import os, sys
from pathlib import Path
from detoxbench.files.writing import write_folder
write_folder(Path(sys.argv[1]), lambda folder: ((folder / "half").write_text("x"), os.kill(os.getpid(), 9)))
"""


def left(path: Path, *, at: float = LONG_AGO) -> Path:
    """A half-written folder, last touched at this time."""
    path.mkdir(parents=True)
    (path / "half").write_text("x")
    os.utime(path, (at, at))
    return path


def test_what_a_kill_leaves_is_swept(tmp_path: Path) -> None:
    run = tmp_path / "0123456789abcdef"
    assert subprocess.run([sys.executable, "-c", KILLED, str(run)], check=False).returncode == -9
    (half,) = tmp_path.iterdir()
    assert half.name.startswith(f".{run.name}.")
    assert sweep(tmp_path) == [], "it may still be written"
    os.utime(half, (LONG_AGO, LONG_AGO))
    assert sweep(tmp_path) == [half]
    assert not list(tmp_path.iterdir())


def test_everywhere_but_what_is_held_or_no_leftover(tmp_path: Path) -> None:
    stages = tmp_path / ".stages"
    gone = [left(tmp_path / ".0123456789abcdef.aaaabbbb"), left(stages / ".fit-1.aaaabbbb")]
    file = left(stages / "generate-1").joinpath(".samples.jsonl.0a1b2c3d")
    file.write_text("half")
    os.utime(file, (LONG_AGO, LONG_AGO))
    kept = [left(stages / ".fit-2.aaaabbbb"), left(stages / ".fit-3.aaaabbbb", at=time.time()),
            left(tmp_path / ".mine"), left(tmp_path / "0123456789abcdef"),
            left(tmp_path / ".notes.12345678x")]  # fmt: skip
    with FileLock(stages / "fit-2.lock"):
        assert sorted(sweep(tmp_path)) == sorted([*gone, file])
    assert all(path.exists() for path in kept)
    assert sweep(tmp_path) == kept[:1], "whose writer has let go"


def test_a_run_sweeps_first(tmp_path: Path) -> None:
    half = left(tmp_path / ".0123456789abcdef.aaaabbbb")
    assert cli.main(["run", "suite=utility", "suite.limit=2", f"runs_dir={tmp_path}"]) == 0
    assert not half.exists()
