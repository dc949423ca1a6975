"""Runs on disk: what their files hold, and how they are read back.

    RUNS/<run_id>/run.json        what was run, its metrics with intervals, its cost (schema: `RunRecord`)
    RUNS/<run_id>/clusters.json   per-cluster sums of every metric, from which intervals and differences are made
    RUNS/<run_id>/samples.jsonl   one `Sample` a line, in the order of the suite's requests
    RUNS/<run_id>/scores.jsonl    one `Scored` a line, in the same order
    RUNS/<run_id>/intervention/   the fitted change (absent for the base model, and where each record has its own)
    RUNS/<run_id>/fits.jsonl      where each record has its own: what each fit recorded
    RUNS/<run_id>/verified.json   of a run that came in a pack: which one, and who computed its numbers again
    RUNS/<run_id>/digests.json    size and SHA-256 of each of these files (`sealing`), checked whenever one is read
    RUNS/.stages/                 stages keyed by their content: shared between runs, and where a killed run goes on

A run folder appears whole (written beside, then renamed); its stages are linked into it, not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from detoxbench.config import SCHEMA_VERSION
from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean
from detoxbench.files.lines import decode_lines
from detoxbench.files.sealing import ASIDE, SEAL, Damaged, SealedFile, check_sizes, read_sealed, sealed_files
from detoxbench.records import Counts, Measure, Sample, Scored

VERIFIED = "verified.json"


class MetricRecord(msgspec.Struct, kw_only=True):
    """A metric of one run; `value` is None where there is not a single observation."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Clusters (prompts or records) it is computed from."""
    missing: int
    """Observations without a value."""
    better: Literal["higher", "lower", "neither"]
    unit: Literal["share", "number"]
    interval: str
    """Name of the interval's method."""
    headline: bool = True


class RunRecord(msgspec.Struct, kw_only=True):
    """run.json, schema version 2 (of version 1, what its identity stands for differs: see docs/results.md)."""

    schema: int
    run_id: str
    created: str
    """UTC, ISO 8601."""
    model: str
    method: str
    suite: str
    scorer: str
    """Names, for people; what they stand for is in `identity`."""
    seed: int
    identity: dict[str, Any]
    """Everything that can change a number: its digest is the run id. Top-level keys: schema, model, method, suite,
    scorer, gen, seed."""
    spec: dict[str, Any]
    """The whole configuration, runtime fields too."""
    metrics: dict[str, MetricRecord]
    counts: Counts
    """requests, samples, empty, degenerate, truncated (stopped by length), missing_scores (of the main scorer),
    cut_texts (too long for a scorer), contested_tokens, cut_prompts (too long for the context), prompts_in_fit_data
    (prompts of the run that the method was fitted on), equal_to_base (samples equal to the base's).
    None where nothing was counted."""
    cost: dict[str, float | None]
    """By the keys of `costs.COSTS`; None where it was not measured."""
    diagnostics: dict[str, Any]
    """What the method recorded while fitting."""
    base_run_id: str | None
    """The run of the base model under the same suite, scorer, generation and seed."""
    provenance: dict[str, Any]
    fit: str | None = None
    """Digest of the fitted intervention (`Intervention.digest`): runs with the same digest differ in sampling alone,
    whatever their seeds. None in runs that are older than this field."""
    data: dict[str, str] = {}
    """By setting (fit.ROLE, suite.data): the name of the data, and how many items were used."""
    fidelity: str | None = None
    """How near the method is to what was published (`Method.fidelity`), as it was said when the run was made; None
    where nobody said it, as in runs that are older than this field."""


class Clusters(msgspec.Struct, kw_only=True):
    """clusters.json: per metric, cluster -> (sum, count), as two maps, and whether every value is a yes or no."""

    total: dict[str, dict[str, float]]
    count: dict[str, dict[str, float]]
    binary: dict[str, bool]

    @classmethod
    def of(cls, measures: Sequence[Measure]) -> Clusters:
        """Of measures, by their names."""
        return cls(
            total={m.name: dict(m.total) for m in measures},
            count={m.name: dict(m.count) for m in measures},
            binary={m.name: m.binary for m in measures},
        )


class Verified(msgspec.Struct, kw_only=True):
    """verified.json: the pack that a run was unpacked from after its numbers had been computed again."""

    pack: str
    sha256: str
    detoxbench: str
    """The version that verified it."""


class Run:
    """The folder of a finished run, read when needed. A file that is not as it was written raises `Damaged`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self) -> RunRecord:
        """run.json. Raises Damaged where a file of the run is missing or has another size, DetoxbenchError where
        run.json is malformed."""
        if self._sealed is not None:
            check_sizes(self.folder, self._sealed)
        try:
            return _without_false_zeros(msgspec.json.decode(self._read("run.json"), type=RunRecord))
        except msgspec.DecodeError as error:
            raise DetoxbenchError(f"{self.folder / 'run.json'}: {error}") from None

    def clusters(self) -> Clusters:
        """clusters.json. Raises Damaged where it is not what was written."""
        return msgspec.json.decode(self._read("clusters.json"), type=Clusters)

    def verified(self) -> Verified | None:
        """The pack that it came from (`detoxbench verify --into`); None where it was made here."""
        was_verified = (self.folder / VERIFIED).is_file() if self._sealed is None else VERIFIED in self._sealed
        return msgspec.json.decode(self._read(VERIFIED), type=Verified) if was_verified else None

    def samples(self) -> list[Sample]:
        """samples.jsonl, in the order of the suite's requests. Raises Damaged where it is not what was written."""
        return decode_lines(self._read("samples.jsonl"), Sample, self.folder / "samples.jsonl")

    def scores(self) -> list[Scored]:
        """scores.jsonl, in the order of the samples. Raises Damaged where it is not what was written."""
        return decode_lines(self._read("scores.jsonl"), Scored, self.folder / "scores.jsonl")

    def check(self, *names: str) -> None:
        """Raise Damaged unless these files are as they were written, or all where none is named."""
        for name in names or self._sealed or ():
            if self._sealed is not None:
                read_sealed(self.folder, name, self._sealed)

    def _read(self, name: str) -> bytes:
        if self._sealed is None:
            return (self.folder / name).read_bytes()
        return read_sealed(self.folder, name, self._sealed)

    @cached_property
    def _sealed(self) -> Mapping[str, SealedFile] | None:
        """What the folder should hold. None for a run of schema 1, which has no digests, or of a newer schema."""
        if not (self.folder / "run.json").is_file():
            raise Damaged(self.folder, "run.json is missing")
        if (self.folder / SEAL).is_file() or SEALED_SINCE <= _schema(self.folder / "run.json") <= SCHEMA_VERSION:
            return sealed_files(self.folder)
        return None  # a newer version may store digests elsewhere; readers refuse it by its schema


SEALED_SINCE = 2
"""The first schema whose runs hold digests of their files."""


class _Schema(msgspec.Struct):
    schema: int


def _schema(path: Path) -> int:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Schema).schema
    except msgspec.DecodeError as error:
        raise DetoxbenchError(f"{path}: {error}") from None


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run, damaged or not: without run.json it is recognised by its other files."""
    if folder.name.startswith(".") or ASIDE in folder.name:
        return False
    return any((folder / name).is_file() for name in ("run.json", SEAL, "clusters.json", "scores.jsonl"))


def _without_false_zeros(record: RunRecord) -> RunRecord:
    """The record with None for a 0 that means "not counted": schema 1 wrote 0 there."""
    if record.schema == 1:
        counted_by_scorers = {"degenerate", "cut_texts"} - (
            {"degenerate"} if "degenerate_share" in record.metrics else set()
        )
        record.counts = {k: None if k in counted_by_scorers and n == 0 else n for k, n in record.counts.items()}
    return record


def runs(folder: Path) -> Iterator[Run]:
    """The finished runs under `folder`, by name, damaged ones too. Raises DetoxbenchError where it is no folder."""
    if not folder.is_dir():
        raise DetoxbenchError(
            f"no runs folder '{folder}': run something first (detoxbench run), or name another folder"
        )
    yield from (Run(path) for path in sorted(folder.iterdir()) if is_run(path))


def readable(folder: Path, notes: list[str], *, whole: bool = False) -> Iterator[tuple[Run, RunRecord]]:
    """The finished runs under `folder` with their records. A run that is damaged, unreadable or a copy of another is
    left out and named in `notes`. With `whole` the contents of samples and scores are checked, not only their sizes.

    Raises DetoxbenchError when there is no such folder.
    """
    seen: set[str] = set()
    for run in runs(folder):
        try:
            record = run.record()
            run.check(*(() if whole else ("clusters.json",)))
        except Damaged as error:
            notes.append(f"left out: {error}")
            continue
        except (DetoxbenchError, OSError) as error:
            notes.append(f"left out, unreadable: {error}")
            continue
        lacking = [k for k in ("model", "method", "suite", "scorer", "gen") if k not in record.identity]
        if record.schema > SCHEMA_VERSION:
            notes.append(
                f"left out, written by a newer detoxbench: {run.folder.name} has schema {record.schema}, "
                f"this version reads up to {SCHEMA_VERSION}"
            )
        elif lacking:
            notes.append(f"left out, incomplete identity: {run.folder.name} has no '{lacking[0]}'")
        elif record.run_id in seen:
            notes.append(f"left out, a copy: {run.folder.name} is run {record.run_id} again")
        else:
            seen.add(record.run_id)
            yield run, record


def find_run(name: str, folder: str | Path = "runs") -> Run:
    """The finished run that `name` means: its folder, or the beginning of its id under `folder`.

    Raises UsageError when there is none, or more than one.
    """
    if is_run(Path(name)):
        return Run(Path(name))
    all_runs = list(runs(Path(folder)))
    matches = [run for run in all_runs if run.folder.name.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        near = did_you_mean(name, [run.folder.name for run in all_runs])
        raise UsageError(f"no run '{name}' in '{folder}'{near}: give a run's folder, or the beginning of its id")
    some = ", ".join(run.folder.name for run in matches[:5])
    raise UsageError(
        f"'{name}' is the beginning of {len(matches)} runs in '{folder}': {some}{' ...' * (len(matches) > 5)}"
    )
