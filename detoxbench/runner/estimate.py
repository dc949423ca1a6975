"""What is left of some runs in seconds, memory and disk, from what stored runs took.

A stage costs what the stored runs that are nearest to it cost: the same method first (of a scoring the same scorers),
then the same model, suite, settings and generation, as many of these as there are runs for. Where their work differs
(examples, tokens, texts; `Work`), their costs are scaled by it, and where the model differs, by the size of its files.
Only runs made on the hardware of the newest one are used.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from detoxbench.config import BASE, RunSpec, applied_fields
from detoxbench.errors import DetoxbenchError
from detoxbench.files.sealing import sealed_files
from detoxbench.records import Request
from detoxbench.results.store import RunRecord, runs
from detoxbench.runner.cell import RunCell, checkpoint_folder, comparison_runs, prepare, state_of

StageName = Literal["fit", "generate", "score"]
STAGES: tuple[StageName, ...] = ("fit", "generate", "score")
CHARACTERS_A_TOKEN = 4
"""Of texts whose tokens are not counted: enough to compare prompts of different lengths."""
_HARDWARE = ("device", "cpus", "threads", "platform")


class Work(NamedTuple):
    """How much each stage of a run has to do."""

    examples: int
    """That the method learns from."""
    tokens: float
    """To read and to generate: prompts and given texts, and all new tokens that are allowed."""
    texts: int
    """To score."""
    model_bytes: int
    """Of the model's files."""

    def of(self, stage: StageName) -> float:
        """The part that a stage's time grows with."""
        return {"fit": self.examples, "generate": self.tokens, "score": self.texts}[stage]


def work(cell: RunCell, model_folder: Path) -> Work:
    """How much a run has to do, from its requests and data."""
    n = cell.spec.gen.n
    return Work(
        examples=cell.method.examples(cell.data),
        tokens=sum(_tokens(request, n, cell.spec.gen.max_new_tokens) for request in cell.requests),
        texts=sum(1 if request.text is not None else n for request in cell.requests),
        model_bytes=sum(file.stat().st_size for file in model_folder.glob("*.safetensors")),
    )


def _tokens(request: Request, n: int, new: int) -> float:
    read = (len(request.prompt) + len(request.text or "")) / CHARACTERS_A_TOKEN
    return read if request.text is not None else read + n * new


# -------------------------------------------------------------------------------------------------------- stored runs


@dataclass(frozen=True)
class _Stored:
    """What a stored run took; no seconds of a stage that went on with what a stopped one had left."""

    record: RunRecord
    seconds: Mapping[StageName, float | None]
    peak_mb: Mapping[StageName, float | None]
    disk_bytes: Mapping[StageName, float]
    work: Work


def stored(folders: Iterable[Path]) -> list[_Stored]:
    """The runs in these folders that say what they took, made on the hardware of the newest of them."""
    found = [known for folder in folders if folder.is_dir() for run in runs(folder) if (known := _of(run))]
    newest = max(found, key=lambda known: known.record.created, default=None)
    return [known for known in found if newest and hardware(known) == hardware(newest)]


def hardware(known: _Stored) -> tuple[Any, ...]:
    """What a run was made on: its times are those of no other machine."""
    return tuple(known.record.provenance.get(key) for key in _HARDWARE)


def _of(run: Any) -> _Stored | None:
    try:
        record, sizes = run.record(), {name: file.size for name, file in sealed_files(run.folder).items()}
    except (DetoxbenchError, OSError):
        return None
    made = record.provenance
    if "work" not in made:  # made before it was written down
        return None
    took, cost = made["seconds"], record.cost
    changed = sum(size for name, size in sizes.items() if name.startswith("intervention"))
    results = sum(sizes.values()) - changed - sizes.get("samples.jsonl", 0)
    return _Stored(
        record=record,
        seconds={"fit": cost.get("fit_seconds"), "generate": took.get("generate"), "score": took.get("score")},
        peak_mb={"fit": cost.get("fit_peak_mb"), "generate": cost.get("generation_peak_mb"), "score": None},
        disk_bytes={"fit": changed, "generate": sizes.get("samples.jsonl", 0), "score": results},
        work=Work(**made["work"]),
    )


# ----------------------------------------------------------------------------------------------------------- estimates


class Stage(NamedTuple):
    """A stage that is to be done, and what it will take; None where no stored run tells."""

    stage: StageName
    title: str
    seconds: float | None
    peak_mb: float | None
    disk_bytes: float | None
    basis: str
    """Which runs it is taken from, in words."""


@dataclass
class Estimate:
    """What is left of some runs."""

    runs: int
    """Stored runs that it is made from."""
    hardware: str
    stages: list[Stage] = field(default_factory=list)

    @property
    def unknown(self) -> list[Stage]:
        """The stages whose time no stored run tells."""
        return [stage for stage in self.stages if stage.seconds is None]

    def seconds(self, stage: StageName | None = None) -> float:
        """Of all stages of a kind, or of all, that are known, one after the other."""
        return sum(s.seconds or 0 for s in self.stages if stage in (None, s.stage))

    @property
    def disk_bytes(self) -> float:
        """Of all stages that are known."""
        return sum(stage.disk_bytes or 0 for stage in self.stages)

    @property
    def peak_mb(self) -> float | None:
        """The most that any stage holds."""
        return max((stage.peak_mb for stage in self.stages if stage.peak_mb is not None), default=None)


def estimate(specs: Sequence[RunSpec], folders: Sequence[Path]) -> Estimate:
    """What is left of these runs and of those that they are compared with, each stage once; from the stored runs in
    `folders`. Fits that learn alike (`Method.learned_once`) take the time of one. Raises as `plan`, and
    DetoxbenchError where a model's files are not there."""
    known = stored(folders)
    device, cpus, threads, _ = hardware(known[0]) if known else (None, None, None, None)
    found = Estimate(len(known), f"{device}, {cpus} CPUs, {threads} threads" if known else "")
    seen, learned = set[str](), set[str]()
    for cell, folder in _cells(specs):
        todo = work(cell, folder)
        for stage, place in _left(cell):
            if place.name in seen:
                continue
            seen.add(place.name)
            again = stage == "fit" and _learns(cell) in learned
            found.stages.append(_estimated(cell, stage, todo, known, again=again))
            learned |= {_learns(cell)} if stage == "fit" else set()
    return found


def _cells(specs: Sequence[RunSpec]) -> Iterable[tuple[RunCell, Path]]:
    """Every run once, those to compare with first."""
    seen = set[str]()
    for spec in specs:
        folder = checkpoint_folder(spec, download=False)
        for each in (*comparison_runs(spec), spec):
            cell = prepare(each, folder)
            if cell.keys.run not in seen:
                seen.add(cell.keys.run)
                yield cell, folder


def _left(cell: RunCell) -> list[tuple[StageName, Path]]:
    """The stages of a run that are not done."""
    if cell.finished:
        return []
    places: list[tuple[StageName, Path]] = [("generate", cell.generation_folder), ("score", cell.score_folder)]
    if not cell.per_record and cell.method.name != BASE:
        places.insert(0, ("fit", cell.fit_folder))
    return [(stage, place) for stage, place in places if not state_of(place)[0]]


def _learns(cell: RunCell) -> str:
    """What a fit learns: all that its key is made of, but for the knobs that only act on what was learned."""
    identity, applied = cell.identity["method"], applied_fields(cell.method.config)
    if not applied:
        return cell.keys.fit
    config = {name: value for name, value in identity["config"].items() if name not in applied}
    return repr([cell.identity["model"], {**identity, "config": config}, cell.spec.seed])


def _estimated(cell: RunCell, stage: StageName, todo: Work, known: Sequence[_Stored], *, again: bool) -> Stage:
    """What a stage will take, from the stored runs that are nearest to it; no time where it learns `again` what a
    stage before it has learned."""
    title = f"{stage} of method={cell.method.name} suite={cell.suite.name}"
    measured = [run for run in known if run.seconds[stage] is not None and _of_kind(cell, stage, run)]
    if not measured:
        return Stage(stage, title, None, None, None, "no such run is stored")
    best = max(_nearness(cell, stage, run) for run in measured)
    nearest = [run for run in measured if _nearness(cell, stage, run) == best]

    def scaled(costs: Mapping[StageName, float | None], run: _Stored, *, by_work: bool) -> float | None:
        cost, model = costs[stage], 1.0
        if cost is not None and stage != "score" and run.work.model_bytes:
            model = todo.model_bytes / run.work.model_bytes
        ratio = todo.of(stage) / run.work.of(stage) if by_work and run.work.of(stage) else 1.0
        return None if cost is None else cost * ratio * model

    def median(values: Iterable[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return statistics.median(numbers) if numbers else None

    seconds = median(scaled(run.seconds, run, by_work=True) for run in nearest)
    return Stage(
        stage,
        title,
        0.0 if again else seconds,
        median(scaled(run.peak_mb, run, by_work=False) for run in nearest),
        median(_disk(stage, todo, run) for run in nearest),
        "learned with another" if again else _basis(stage, best, len(nearest)),
    )


def _disk(stage: StageName, todo: Work, run: _Stored) -> float:
    """Bytes: of a change they grow with the model, of all else with the number of texts."""
    if stage == "fit":
        return run.disk_bytes[stage] * (todo.model_bytes / run.work.model_bytes if run.work.model_bytes else 1)
    return run.disk_bytes[stage] * (todo.texts / run.work.texts if run.work.texts else 1)


def _of_kind(cell: RunCell, stage: StageName, run: _Stored) -> bool:
    """Whether a run's stage does what the cell's does: of a scoring by the same scorers, else of the same method."""
    if stage == "score":
        return _judges(cell.identity) == _judges(run.record.identity)
    return run.record.method == cell.method.name


def _judges(identity: Mapping[str, Any]) -> Any:
    return identity["scorer"], identity["suite"].get("scorers")


_NEAR: dict[StageName, tuple[str, ...]] = {
    "fit": ("model", "settings"),
    "generate": ("model", "suite", "generation", "settings"),
    "score": ("suite", "generation"),
}
"""In what a stored run can be like a cell, the weightiest first."""


def _nearness(cell: RunCell, stage: StageName, run: _Stored) -> tuple[bool, ...]:
    """In which of `_NEAR` the run is like the cell."""
    one, other = cell.identity, run.record.identity
    alike = {
        "model": one["model"] == other["model"],
        "settings": one["method"]["config"] == other["method"]["config"],
        "suite": one["suite"]["requests"] == other["suite"]["requests"],
        "generation": (one["gen"], one.get("engine")) == (other["gen"], other.get("engine")),
    }
    return tuple(alike[name] for name in _NEAR[stage])


def _basis(stage: StageName, alike: tuple[bool, ...], count: int) -> str:
    other = [name for name, same in zip(_NEAR[stage], alike, strict=True) if not same]
    runs_of = f"{count} run{'s' if count > 1 else ''}"
    return f"from {runs_of}" + (f" of other {' and '.join(other)}" if other else "")
