"""Finished runs as they lie on disk, written without running anything."""

from __future__ import annotations

import msgspec

from detoxbench.config import SCHEMA_VERSION, digest
from detoxbench.files.lines import encode_lines
from detoxbench.files.sealing import seal
from detoxbench.records import Measure, Sample, Scored
from detoxbench.results.stats import attach
from detoxbench.results.store import SEALED_SINCE, Clusters, RunRecord

CLUSTERS = [f"r{i}" for i in range(40)]
GEN = {"max_new_tokens": 20, "do_sample": True, "top_p": 0.9}


def yes(times, of=CLUSTERS):
    """A yes in the first `times` clusters."""
    return {c: float(i < times) for i, c in enumerate(of)}


def defense(total, **more):
    return Measure("DS", "higher", total, dict.fromkeys(total, 1.0), unit="share", binary=True, **more)


def toxicity(total, **more):
    return Measure("EMT", "lower", total, dict.fromkeys(total, 1.0), **more)


def write(
    runs,
    measures,
    method="none",
    seed=0,
    config=None,
    model="tiny",
    suite="safeedit",
    scorer="embedded",
    gen=None,
    fit_data=None,
    answers=None,
    **changes,
):
    """One run in the folder `runs`, of these measures; returns its folder.

    `answers` are (id, text, score) of samples; `changes` are put into the record as they are.
    """
    identity = {
        "schema": 1,
        "model": {"fingerprint": f"of {model}", "dtype": "float32"},
        "method": {"name": method, "version": 1, "config": config or {}, "fit_data": fit_data},
        "suite": {"name": suite, "version": 1},
        "scorer": {"name": scorer, "version": 1},
        "gen": {**GEN, **(gen or {})},
        "seed": seed,
    }
    record = RunRecord(
        schema=1,
        run_id=digest(identity),
        created="2026-01-01T00:00:00Z",
        model=model,
        method=method,
        suite=suite,
        scorer=scorer,
        seed=seed,
        identity=identity,
        spec={"model": {"path": model}, "method": config or {}, "method_name": method},
        metrics=attach(measures),
        counts={"requests": 40, "samples": 40, "empty": 1, "degenerate": 2, "truncated": 30, "missing_scores": 0},
        cost={"fit_seconds": 1.5, "relative_speed": 0.98, "added_prompt_tokens": 0.0, "artifact_bytes": 12345},
        diagnostics={},
        base_run_id=None,
        provenance={},
    )
    for name, value in changes.items():
        setattr(record, name, value)
    folder = runs / record.run_id
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(msgspec.json.encode(record))
    (folder / "clusters.json").write_bytes(msgspec.json.encode(Clusters.of(measures)))
    if answers is not None:
        told = [{"id": id, "sample": 0} for id, _, _ in answers]
        rest = {"kind": "onlyQ", "prompt": "please say it", "stop": "eos", "tokens": 3}
        samples = [Sample(**t, **rest, record=t["id"], text=a[1]) for t, a in zip(told, answers, strict=True)]
        scores = [Scored(**t, scores={"main": a[2]}) for t, a in zip(told, answers, strict=True)]
        (folder / "samples.jsonl").write_bytes(encode_lines(samples))
        (folder / "scores.jsonl").write_bytes(encode_lines(scores))
    if SEALED_SINCE <= record.schema <= SCHEMA_VERSION:
        seal(folder)
    return folder
