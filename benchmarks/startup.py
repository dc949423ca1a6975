"""What a user waits for before anything is computed: help, list, plan, and a run that is there already."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.harness import Row, measured

REPEATS = 5
VERBS = (["--help"], ["list"], ["plan", "method=destein", "suite=safeedit"])
CELL = ["method=self_reminder", "suite=utility", "suite.limit=8"]
AGAIN = """
import sys, time
from detoxbench import run
start = time.perf_counter()
result = run(sys.argv[1:])
print(time.perf_counter() - start, result.cached, "torch" in sys.modules)
"""


def rows(device: str) -> Iterator[Row]:
    for verb in VERBS:
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "detoxbench.cli", *verb], stdout=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - start)
        yield measured(f"detoxbench {verb[0]}", seconds, "s", target=0.3, note=f"whole process, {REPEATS} times")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", AGAIN, *CELL, f"runs_dir={folder}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        seconds = []
        for _ in range(REPEATS):
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            if said[1:] != ["True", "False"]:
                raise AssertionError(f"the second run was not cached, or loaded torch: {said}")
            seconds.append(float(said[0]))
    yield measured("a second identical run", seconds, "s", target=2, note="after import; torch is not even imported")
