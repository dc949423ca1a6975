"""The report of a run, for any tracker: made from its folder, and from its base's folder where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detoxbench.config import BASE, TrackerSpec, digest
from detoxbench.errors import DetoxbenchError
from detoxbench.results.panels import between
from detoxbench.results.settings import changed_settings, shared_identity
from detoxbench.results.store import Clusters, Run, RunRecord, runs
from detoxbench.results.tables import Column

GROUP_LENGTH = 100
"""W&B takes groups of up to 128 characters."""


@dataclass(frozen=True)
class TrackedTable:
    """Columns and rows of a table at the tracker."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Artifact:
    """Files that belong to the run; `metadata` says what they are, and of which base model."""

    name: str
    files: list[Path]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """One run: its record split up into what trackers can show, and tables of its samples.

    Nothing of run.json is lost: numbers are in `summary`, lists of numbers (a value a step or a layer) in `curves`, the
    rest in `config`.
    """

    id: str
    name: str
    group: str
    job_type: str
    tags: list[str]
    config: dict[str, Any]
    metrics: dict[str, float]
    """The metrics that have a value, for tools that take one as their objective."""
    summary: dict[str, float | None]
    curves: dict[str, list[float]]
    tables: dict[str, TrackedTable]
    artifact: Artifact | None


def report_of(run: Run, spec: TrackerSpec) -> Report:
    """The report of a finished run, as `spec` asks for it. Raises DetoxbenchError or OSError for a damaged run.

    The base is the run of method=none under the same suite, scorer, generation and seed, looked for beside this one.
    """
    record = run.record()
    base = _base(run, record)
    scalars, curves, rest = _diagnostics(record.diagnostics)
    artifact, remark = _artifact(run, record, spec)
    differences = _differences(run, record, base) if base else {}
    return Report(
        id=record.run_id,
        name=_name(record),
        group=spec.group or group(record),
        job_type=record.method,
        tags=list(dict.fromkeys((record.model, record.suite, record.scorer))),
        config=_config(record, base, remark, rest),
        metrics={name: m.value for name, m in record.metrics.items() if m.value is not None},
        summary={**_numbers(record), **differences, **scalars},
        curves=curves,
        tables={
            "intervals": _intervals(record, differences),
            "records": _records(run, base),
            "samples": _samples(run, base, spec.samples),
        },
        artifact=artifact,
    )


def _config(record: RunRecord, base: Run | None, remark: str, diagnostics: dict[str, Any]) -> dict[str, Any]:
    """Everything that is no number: the settings, where the run was made, how its metrics are to be read."""
    names = ("run_id", "created", "model", "method", "suite", "scorer", "seed", "base_run_id")
    return {
        **{name: getattr(record, name) for name in names},
        "compared_with": base.folder.name if base else None,
        "intervention": remark,
        "identity": record.identity,
        "spec": record.spec,
        "metrics": {
            name: {"better": m.better, "unit": m.unit, "interval": m.interval, "headline": m.headline}
            for name, m in record.metrics.items()
        },
        "diagnostics": diagnostics,
        "provenance": record.provenance,
        "schema": record.schema,
    }


def _name(record: RunRecord) -> str:
    """The method with its settings that are not its defaults, the suite and the seed."""
    settings = [f"{key}={value}" for key, value in changed_settings(record.identity["method"]).items()]
    return f"{' '.join([record.method, *settings])[:GROUP_LENGTH]}/{record.suite}/{record.seed}"


def group(record: RunRecord) -> str:
    """One group for each leaderboard table: names for people, and a digest of all that its runs share."""
    names = f"{record.model}/{record.suite}/{record.scorer}"
    return f"{names[:GROUP_LENGTH]}/{digest(shared_identity(record))[:8]}"


def _base(run: Run, record: RunRecord) -> Run | None:
    if record.method == BASE:
        return None
    beside = run.folder.parent
    for other in [Run(beside / record.base_run_id)] if record.base_run_id else runs(beside):
        with suppress(DetoxbenchError, OSError):  # another run's damage is not this run's
            other_record = other.record()
            if (
                other_record.method == BASE
                and other_record.seed == record.seed
                and shared_identity(other_record) == shared_identity(record)
            ):
                return other
    return None


def _numbers(record: RunRecord) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {}
    for name, metric in record.metrics.items():
        numbers |= {name: metric.value, f"{name}/low": metric.low, f"{name}/high": metric.high}
        numbers |= {f"{name}/n": metric.n, f"{name}/missing": metric.missing}
    numbers |= {f"counts/{name}": value for name, value in record.counts.items()}
    return numbers | {f"cost/{name}": value for name, value in record.cost.items()}


def _differences(run: Run, record: RunRecord, base: Run) -> dict[str, float | None]:
    """This run minus its base, paired; the p-values are of single tests: Holm's correction needs the whole table."""
    clusters, base_clusters = run.clusters(), base.clusters()
    differences: dict[str, float | None] = {}
    for name, metric in record.metrics.items():
        d = between(clusters, base_clusters, Column(name, metric.better, metric.unit))
        if d.value is not None:
            values = {"": d.value, "/low": d.low, "/high": d.high, "/p": d.p, "/n": d.n}
            differences |= {f"{name}/difference{key}": value for key, value in values.items()}
    return differences


def _diagnostics(
    recorded: Mapping[str, Any],
) -> tuple[dict[str, float | None], dict[str, list[float]], dict[str, Any]]:
    """What a method recorded while fitting: its numbers, its lists of numbers, and the rest, by path (fit/NAME)."""
    scalars: dict[str, float | None] = {}
    curves: dict[str, list[float]] = {}
    rest: dict[str, Any] = {}

    def sort(name: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                sort(f"{name}/{key}", inner)
        elif isinstance(value, int | float):
            scalars[name] = value
        elif isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
            curves[name] = value
        else:
            rest[name] = value

    for name, value in recorded.items():
        sort(f"fit/{name}", value)
    return scalars, curves, rest


def _intervals(record: RunRecord, differences: Mapping[str, float | None]) -> TrackedTable:
    """One row for each metric, with what a chart of several runs needs to tell them apart."""
    columns = ["metric", "method", "seed", "value", "low", "high", "n", "missing", "better", "difference", "p"]
    return TrackedTable(
        columns,
        [
            [name, record.method, record.seed, m.value, m.low, m.high, m.n, m.missing, m.better]
            + [differences.get(f"{name}/difference{key}") for key in ("", "/p")]
            for name, m in record.metrics.items()
        ],
    )


def _samples(run: Run, base: Run | None, limit: int) -> TrackedTable:
    """Samples evenly spread over the run, a column for each score, and what the base said to the same prompt."""
    rows = list(zip(run.samples(), run.scores(), strict=True))
    columns = sorted({(slot, name) for _, scored in rows for slot, s in scored.scores.items() for name in s or ()})
    said = {(s.id, s.sample): s.text for s in base.samples()} if base else {}
    step = max(1, -(-len(rows) // limit)) if limit else len(rows) + 1
    shown = rows[::step] if limit else []
    head = ["id", "sample", "record", "kind", "prompt", "text", "stop"]
    return TrackedTable(
        [*head, *(f"{slot}/{name}" for slot, name in columns), *(["base text"] if base else [])],
        [
            [
                *(sample.label if key == "kind" else getattr(sample, key) for key in head),
                *((scored.scores.get(slot) or {}).get(name) for slot, name in columns),
                *([said.get((sample.id, sample.sample))] if base else []),
            ]
            for sample, scored in shown
        ],
    )


def _records(run: Run, base: Run | None) -> TrackedTable:
    """Every metric on every prompt or record (what intervals resample), beside the base's."""
    clusters, base_clusters = run.clusters(), base.clusters() if base else None
    keys = list(dict.fromkeys(key for counts in clusters.count.values() for key in counts))
    columns, values = ["record"], [[*keys]]
    for name in clusters.total:
        for suffix, side in (("", clusters), (" (base)", base_clusters)):
            if side is not None and name in side.total:
                columns.append(name + suffix)
                values.append([_ratio(side, name, key) for key in keys])
    return TrackedTable(columns, [list(row) for row in zip(*values, strict=True)])


def _ratio(clusters: Clusters, name: str, key: str) -> Any:
    count = clusters.count[name].get(key, 0)
    return clusters.total[name][key] / count if count else None


def _artifact(run: Run, record: RunRecord, spec: TrackerSpec) -> tuple[Artifact | None, str]:
    """The fitted intervention, and a remark that says why there is none where there is none."""
    if record.method == BASE:
        return None, "none: the base model"
    files = sorted((run.folder / "intervention").glob("*"))
    if not files:
        return None, "none kept: every record has a fit of its own"
    size = sum(file.stat().st_size for file in files)
    if size > spec.artifact_mb * 1e6:
        return None, f"not sent: {size / 1e6:.1f} MB is above tracker.artifact_mb={spec.artifact_mb:g}"
    model = record.spec.get("model", {})
    base = {
        **record.identity["model"],
        "name": record.model,
        "path": model.get("path"),
        "revision": model.get("revision"),
    }
    metadata = {"run_id": record.run_id, "base_model": base, "method": record.identity["method"], "bytes": size}
    return Artifact(f"intervention-{record.run_id}", files, metadata), "the run's artifact"
