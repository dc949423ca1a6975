"""The leaderboard of ten thousand runs: 50 tables of 40 configurations by 5 seeds, 5 metrics on 20 prompts each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.harness import Row, measured
from detoxbench.config import SCHEMA_VERSION, digest
from detoxbench.files.sealing import SEAL, digests
from detoxbench.records import Measure
from detoxbench.results.leaderboard import leaderboard
from detoxbench.results.stats import attach
from detoxbench.results.store import Clusters, RunRecord

TABLES, CONFIGURATIONS, SEEDS, METRICS, PROMPTS = 50, 40, 5, 5, 20
KINDS = 50
"""Different results; runs draw from them, since writing is not what is timed."""
REPEATS = 3


def measures(rng: np.random.Generator, shift: float) -> list[Measure]:
    names = [f"prompt-{i}" for i in range(PROMPTS)]
    ones = dict.fromkeys(names, 1.0)
    toxic = {name: float(rng.random() < 0.5 - shift) for name in names}
    numbers = rng.normal(loc=shift, size=(METRICS - 1, PROMPTS)).tolist()
    others = [
        Measure(f"metric_{k}", "higher", dict(zip(names, row, strict=True)), ones) for k, row in enumerate(numbers)
    ]
    return [Measure("toxic_share", "lower", toxic, ones, unit="share", binary=True), *others]


def write(folder: Path) -> None:
    rng = np.random.default_rng(0)
    found = [measures(rng, shift) for shift in np.linspace(0, 0.4, KINDS)]
    kinds = [(attach(kind), msgspec.json.encode(Clusters.of(kind))) for kind in found]
    for table, configuration, seed in np.ndindex(TABLES, CONFIGURATIONS, SEEDS):
        metrics, clusters = kinds[(configuration + int(rng.integers(10))) % KINDS]
        method = "destein" if configuration else "none"
        identity = {
            "schema": SCHEMA_VERSION,
            "model": {"fingerprint": "a68de277ff8cd3d6", "dtype": "float32", "chat_template": "auto"},
            "method": {"name": method, "version": 1, "config": {"alpha": configuration / 100} if configuration else {}},
            "suite": {"name": f"suite{table}", "version": 1, "config": {}, "requests": "087821e3183872df"},
            "scorer": {"name": "embedded", "version": 1, "config": {}, "fingerprint": "c5ae422e4982b460"},
            "gen": {"max_new_tokens": 32, "do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0, "n": 4},
            "seed": seed,
        }
        record = RunRecord(
            schema=SCHEMA_VERSION, run_id=digest(identity), created="2026-01-01T00:00:00Z", model="tiny", method=method,
            suite=f"suite{table}", scorer="embedded", seed=seed, identity=identity, spec=identity, metrics=metrics,
            counts={"requests": 20, "samples": 80, "empty": 0, "degenerate": 1, "truncated": 3},
            cost={"fit_seconds": 1.5, "fit_peak_mb": 480.0, "artifact_bytes": 2048.0, "relative_speed": 0.98},
            diagnostics={"direction_norm": [4.25, 11.06, 14.48, 13.61]}, base_run_id=None, provenance={},
        )  # fmt: skip
        run = folder / record.run_id
        run.mkdir(parents=True)
        contents = {"run.json": msgspec.json.encode(record), "clusters.json": clusters}
        for name, data in {**contents, SEAL: digests(contents)}.items():
            (run / name).write_bytes(data)


def rows(device: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            board = leaderboard(folder)
            seconds.append(time.perf_counter() - start)
    runs = sum(len(row.run_ids) for table in board.tables for row in table.rows)
    if runs != TABLES * CONFIGURATIONS * SEEDS:
        raise AssertionError(f"{runs} runs were tabulated")
    yield measured(f"a leaderboard of {runs:,} runs", seconds, "s", target=3, note="read, averaged, tested, corrected")
