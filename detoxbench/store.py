"""Runs on disk: what is written, that it is written whole, and how it is read back.

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

import hashlib
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from detoxbench.config import SCHEMA_VERSION
from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean
from detoxbench.records import Counts, Measure, Sample, Scored
from detoxbench.sealing import ASIDE, SEAL, Damaged, SealedFile, check_sizes, read_sealed, sealed_files

S = TypeVar("S")
VERIFIED = "verified.json"

log = logging.getLogger("detoxbench")


class MetricRecord(msgspec.Struct, kw_only=True):
    """A metric of one run; `value` is None where there is not a single observation."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Clusters (prompts or records) it is computed from."""
    missing: int
    """Observations that could not be had."""
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
    (what the method has read of what it is asked), equal_to_base (samples that are the base's own).
    None where nobody counted."""
    cost: dict[str, float | None]
    """fit_seconds, fit_peak_mb, changed_parameters, added_parameters, artifact_bytes, examples, added_prompt_tokens,
    forward_passes_per_token, tokens_per_second, relative_speed (to the base model, measured in the same process)."""
    diagnostics: dict[str, Any]
    """What the method recorded while fitting."""
    base_run_id: str | None
    """The run of the base model under the same suite, scorer, generation and seed."""
    provenance: dict[str, Any]
    fit: str | None = None
    """Digest of the fitted intervention (`Intervention.digest`): runs with the same differ by sampling alone, whatever
    their seeds. None in runs from before it was kept."""
    data: dict[str, str] = {}
    """By setting (fit.ROLE, suite.data): what the data are called, and how many were taken."""


class Clusters(msgspec.Struct, kw_only=True):
    """clusters.json: per metric, cluster -> (sum, count), as two maps, and whether every value is a yes or no."""

    total: dict[str, dict[str, float]]
    count: dict[str, dict[str, float]]
    binary: dict[str, bool]

    @classmethod
    def of(cls, measures: Sequence[Measure]) -> Clusters:
        return cls(
            total={m.name: dict(m.total) for m in measures},
            count={m.name: dict(m.count) for m in measures},
            binary={m.name: m.binary for m in measures},
        )


def make_runs_dir(folder: Path) -> None:
    """Have the folder of the results there. Raises DetoxbenchError when it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "no permission to write there"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise DetoxbenchError(f"cannot keep results in '{folder}': {reason}; choose another runs_dir")


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, a full disk or a kill never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a new folder beside `folder`, then put it there at once, replacing what was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        fill(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def encode(value: msgspec.Struct) -> bytes:
    """`value` as JSON that reads back as what it was.

    Raises DetoxbenchError for what would not: a number that is not finite (JSON has none), half a character, a wrong
    type. What is stored can be read, or it is not stored.
    """
    try:
        data = msgspec.json.encode(value)
        back = msgspec.json.decode(data, type=type(value))
    except UnicodeEncodeError as error:
        raise DetoxbenchError(f"{_name(value)} cannot be stored: half a character in a text ({error})") from None
    except (msgspec.ValidationError, TypeError) as error:
        odd = _not_finite(msgspec.to_builtins(value, str_keys=True)) or str(error)
        raise DetoxbenchError(f"{_name(value)} cannot be stored: {odd}") from None
    if odd := _not_finite(msgspec.to_builtins(value, str_keys=True)):
        raise DetoxbenchError(f"{_name(value)} cannot be stored: {odd}")
    if msgspec.json.decode(msgspec.json.encode(back)) != msgspec.json.decode(data):
        raise DetoxbenchError(f"{_name(value)} cannot be stored: it reads back otherwise")
    return data


def _name(value: msgspec.Struct) -> str:
    of = getattr(value, "id", None) or getattr(value, "record", None) or getattr(value, "run_id", None)
    return type(value).__name__.lstrip("_") + (f" of '{of}'" if isinstance(of, str) else "")


def _not_finite(value: Any, where: str = "") -> str:
    """The first number in `value` that is not finite, with its place; an empty string where there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where.lstrip('.')} is {value}"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next((odd for key, inner in items if (odd := _not_finite(inner, f"{where}.{key}"))), "")


def encode_lines(rows: Sequence[msgspec.Struct]) -> bytes:
    """JSON Lines. Raises as `encode`."""
    return b"".join(encode(row) + b"\n" for row in rows)


def read_lines(path: Path, cls: type[S]) -> list[S]:
    """The rows of a JSON Lines file. Raises DetoxbenchError naming the line that does not fit."""
    return decode_lines(path.read_bytes(), cls, path)


def decode_lines(data: bytes, cls: type[S], path: Path) -> list[S]:
    """`read_lines` of bytes that were read from `path`."""
    decoder = msgspec.json.Decoder(cls)
    rows: list[S] = []
    lines = data.split(b"\n")
    if lines.pop():  # what follows the last newline: nothing, or half a line
        raise DetoxbenchError(f"{path} line {len(lines) + 1} is cut off: delete the run folder and run again")
    for number, line in enumerate(lines, 1):
        try:
            rows.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise DetoxbenchError(f"{path} line {number}: {error}") from None
    return rows


_CHECK = b',"check":"%s"}'


class _Chain:
    """Makes the lines of an unfinished stage: each row gets a `check` that covers it, all rows before it, and the name
    of the stage, so that a row that is damaged, missing, or another stage's shows."""

    def __init__(self, path: Path) -> None:
        self._check = path.parent.name.encode()

    def line(self, row: bytes) -> bytes:
        self._check = hashlib.sha256(self._check + row).hexdigest()[:16].encode()
        return row.removesuffix(b"}") + _CHECK % self._check + b"\n"


def chained_lines(path: Path, rows: Sequence[msgspec.Struct]) -> bytes:
    """What `appending` leaves in `path` after these rows."""
    chain = _Chain(path)
    return b"".join([chain.line(encode(row)) for row in rows])


def _read_chain(path: Path, cls: type[S]) -> list[S]:
    """The rows up to the first line that is not what was written; a last line that a kill cut off is no damage."""
    decoder, chain = msgspec.json.Decoder(cls), _Chain(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    end = len(_CHECK % (b"0" * 16))
    rows: list[S] = []
    for line in lines:
        row = line[:-end] + b"}"
        if chain.line(row) != line + b"\n":
            break
        rows.append(decoder.decode(row))
    if lost := len(lines) - len(rows):
        log.warning("'%s' is damaged at line %d: from there on it is done again (%d lines)", path, len(rows) + 1, lost)
    return rows


@contextmanager
def appending(
    path: Path, cls: type[S], whole: int = 1
) -> Iterator[tuple[list[S], Callable[[Sequence[msgspec.Struct]], None]]]:
    """(rows that an earlier try left, a function that appends rows and has them on disk when it returns).

    Rows from the first damaged line on are dropped, and so are those beyond a multiple of `whole`.
    """
    rows = _read_chain(path, cls)
    rows = rows[: len(rows) - len(rows) % whole]
    chain = _Chain(path)
    write_atomic(path, b"".join([chain.line(encode(row)) for row in rows]))  # type: ignore[arg-type]
    with open(path, "ab") as file:

        def append(new: Sequence[msgspec.Struct]) -> None:
            file.write(b"".join([chain.line(data) for data in [encode(row) for row in new]]))
            file.flush()
            os.fsync(file.fileno())

        yield rows, append


def link(source: Path, target: Path) -> None:
    """One file under two names, or a copy where the file system cannot."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class Verified(msgspec.Struct, kw_only=True):
    """verified.json: the pack that a run was unpacked from after its numbers had been computed again."""

    pack: str
    sha256: str
    detoxbench: str
    """The version that verified it."""


class Run:
    """A finished run's folder, read on demand. What is read is what was written, or `Damaged` is raised."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self) -> RunRecord:
        """run.json, where no file is missing or of another size. Raises DetoxbenchError when it is malformed."""
        if self._sealed is not None:
            check_sizes(self.folder, self._sealed)
        try:
            return _without_false_zeros(msgspec.json.decode(self._read("run.json"), type=RunRecord))
        except msgspec.DecodeError as error:
            raise DetoxbenchError(f"{self.folder / 'run.json'}: {error}") from None

    def clusters(self) -> Clusters:
        return msgspec.json.decode(self._read("clusters.json"), type=Clusters)

    def verified(self) -> Verified | None:
        """What verified it, if it came from a pack (`detoxbench verify --into`)."""
        there = (self.folder / VERIFIED).is_file() if self._sealed is None else VERIFIED in self._sealed
        return msgspec.json.decode(self._read(VERIFIED), type=Verified) if there else None

    def samples(self) -> list[Sample]:
        return decode_lines(self._read("samples.jsonl"), Sample, self.folder / "samples.jsonl")

    def scores(self) -> list[Scored]:
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
        """What the folder should hold; None of a run of schema 1, which says nothing of it, or of a newer one."""
        if not (self.folder / "run.json").is_file():
            raise Damaged(self.folder, "run.json is missing")
        if (self.folder / SEAL).is_file() or SEALED_SINCE <= _schema(self.folder / "run.json") <= SCHEMA_VERSION:
            return sealed_files(self.folder)
        return None  # a newer version may keep its digests elsewhere, and is refused by its schema


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
    """Whether `folder` holds a run, if a damaged one: a folder whose run.json is gone is still told by the rest."""
    if folder.name.startswith(".") or ASIDE in folder.name:
        return False
    return any((folder / name).is_file() for name in ("run.json", SEAL, "clusters.json", "scores.jsonl"))


def _without_false_zeros(record: RunRecord) -> RunRecord:
    """Schema 1 wrote 0 also where nobody counted: such a 0 is not measured."""
    if record.schema == 1:
        told_by_scorers = {"degenerate", "cut_texts"} - (
            {"degenerate"} if "degenerate_share" in record.metrics else set()
        )
        record.counts = {k: None if k in told_by_scorers and n == 0 else n for k, n in record.counts.items()}
    return record


def runs(folder: Path) -> Iterator[Run]:
    """The finished runs under `folder`, by name, damaged ones too. Raises DetoxbenchError for a folder that is none."""
    if not folder.is_dir():
        raise DetoxbenchError(
            f"no runs folder '{folder}': run something first (detoxbench run), or name another folder"
        )
    yield from (Run(path) for path in sorted(folder.iterdir()) if is_run(path))


def readable(folder: Path, notes: list[str], *, whole: bool = False) -> Iterator[tuple[Run, RunRecord]]:
    """The finished runs under `folder` with their records; what is damaged, cannot be read, or is there twice, is told
    in `notes`. With `whole` samples and scores are checked too, not only for their sizes.

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
    there = list(runs(Path(folder)))
    found = [run for run in there if run.folder.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        near = did_you_mean(name, [run.folder.name for run in there])
        raise UsageError(f"no run '{name}' in '{folder}'{near}: give a run's folder, or the beginning of its id")
    some = ", ".join(run.folder.name for run in found[:5])
    raise UsageError(f"'{name}' is the beginning of {len(found)} runs in '{folder}': {some}{' ...' * (len(found) > 5)}")
