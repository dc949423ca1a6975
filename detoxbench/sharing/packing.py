"""Packs: finished runs in one archive, to be shared, and opened by people who do not trust who made it.

    manifest.json                       what is in it: `Manifest`
    runs/<run_id>/run.json              without local paths, the command and the tracker's account
    runs/<run_id>/samples.jsonl         as they are: without texts nothing could be computed again
    runs/<run_id>/scores.jsonl
    runs/<run_id>/clusters.json

A pack is a zip with fixed order and dates: the same runs give the same bytes. Nothing but these names is ever read.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import msgspec

from detoxbench import __version__
from detoxbench.config import SCHEMA_VERSION
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.files.private_paths import is_local, without_paths
from detoxbench.files.sealing import seal
from detoxbench.files.writing import make_runs_dir, write_atomic, write_folder
from detoxbench.results.store import VERIFIED, Run, RunRecord, Verified, is_run, runs
from detoxbench.sharing.verification import Verification, verify

FORMAT = 1
SUFFIX = ".zip"
FILES = ("run.json", "samples.jsonl", "scores.jsonl", "clusters.json")
MANIFEST = "manifest.json"
LARGEST = 2 << 30
"""Bytes of a pack when unpacked: 10,000 prompts x 25 continuations under ten methods are 1.4 GB."""
SHARED_PROVENANCE = (
    "packages", "python", "platform", "device", "cuda", "driver", "cpus", "threads", "git",
    "attention", "products", "float32_matmul_precision",
)  # fmt: skip
_MEMBER = re.compile(r"runs/([0-9a-f]{16})/([a-z]+\.jsonl?)")
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
_CHUNK = 1 << 20


class Manifest(msgspec.Struct, kw_only=True):
    """manifest.json."""

    format: int
    schema: int
    detoxbench: str
    runs: list[str]
    """Run ids."""
    files: dict[str, str]
    """Member -> SHA-256, of every member but this one."""


# ------------------------------------------------------------------------------------------------------------- pack


def pack(
    folders: Sequence[str | Path], out: str | Path, *, allow_dirty: bool = False, data: Sequence[Path] = ()
) -> list[RunRecord]:
    """Write the finished runs `folders` to the pack `out`, with the base runs beside them; returns what was packed.

    A folder of runs stands for all of them; `data` as in `verify`. Raises DetoxbenchError for a run that is not
    finished, was made with uncommitted changes (unless `allow_dirty`), does not verify, or has a local path in its
    identity.
    """
    out = Path(out)
    if out.suffix != SUFFIX:
        raise UsageError(f"a pack is a {SUFFIX} file (given: '{out}')")
    chosen = {run.folder.name: run for run in _chosen([Path(f) for f in folders])}
    members: dict[str, bytes] = {}
    records = []
    for run_id, run in sorted(chosen.items()):
        record = _packable(run, data, allow_dirty=allow_dirty)
        records.append(record)
        members |= {f"runs/{run_id}/{name}": (run.folder / name).read_bytes() for name in FILES}
        members[f"runs/{run_id}/run.json"] = _json(record)
    manifest = Manifest(
        format=FORMAT,
        schema=SCHEMA_VERSION,
        detoxbench=__version__,
        runs=sorted(chosen),
        files={name: hashlib.sha256(data).hexdigest() for name, data in sorted(members.items())},
    )
    write_atomic(out, _zipped({MANIFEST: _json(manifest), **members}))
    return records


def _packable(run: Run, data: Sequence[Path], *, allow_dirty: bool) -> RunRecord:
    """The part of the run's record that is shared. Raises DetoxbenchError where it must not be packed, see `pack`."""
    verdict = verify(run, data)
    if verdict.record is None or not verdict.verified:
        raise DetoxbenchError(f"run '{run.folder}' does not verify, so it is not packed: {verdict.problems[0]}")
    record = shared(verdict.record, str(run.folder))
    git = record.provenance.get("git") or {}
    if git.get("dirty") and not allow_dirty:
        raise DetoxbenchError(
            f"run '{run.folder}' was made with uncommitted changes (provenance.git.dirty), so nobody can make it "
            "again: commit and run again, or pack it as it is with --allow-dirty"
        )
    return record


def _zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip of the members in their order, the same bytes every time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, data, compresslevel=9)
    return buffer.getvalue()


def _chosen(folders: Sequence[Path]) -> Iterator[Run]:
    for folder in folders:
        if is_run(folder):
            run = Run(folder)
            yield run
            base = run.record().base_run_id
            if base and is_run(folder.parent / base):  # a run is read beside its base
                yield Run(folder.parent / base)
        elif folder.is_dir() and (runs_inside := list(runs(folder))):
            yield from runs_inside
        else:
            raise DetoxbenchError(f"no finished run in '{folder}': finish it first (the same detoxbench run goes on)")


def shared(record: RunRecord, where: str) -> RunRecord:
    """`record` without private details: local paths become file names; the command and the tracker are left out.

    Raises DetoxbenchError where the identity holds a local path, since without it the run id would be another.
    """
    if leak := next(((key, value) for key, value in _strings(record.identity) if is_local(value)), None):
        raise DetoxbenchError(
            f"run '{where}' has a local path in its identity, which cannot be taken out: {leak[0]}={leak[1]!r}; run it "
            "again from a place that may be shown"
        )
    spec = {key: without_paths(value) for key, value in record.spec.items() if key != "tracker"}
    return msgspec.structs.replace(
        record,
        model=without_paths(record.model),
        spec=spec | {"runs_dir": "runs"},
        diagnostics=without_paths(record.diagnostics),
        provenance={k: without_paths(v) for k, v in record.provenance.items() if k in SHARED_PROVENANCE},
    )


def _strings(value: Any, path: str = "identity") -> Iterator[tuple[str, str]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(inner, str):
            yield f"{path}.{key}", inner
        else:
            yield from _strings(inner, f"{path}.{key}")


# ------------------------------------------------------------------------------------------------------------- open


@contextmanager
def opened(path: str | Path) -> Iterator[list[Run]]:
    """The runs of a pack, in a temporary folder.

    Raises DetoxbenchError for a file that is no archive or too large, and for an archive with a name that no pack has
    or a member that is not what the manifest says. Names are checked before members are written, so none can lead out
    of the folder.
    """
    with TemporaryDirectory(prefix="detoxbench-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                extracted = _extract(archive, Path(folder))
        except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error) as error:
            raise DetoxbenchError(f"pack '{path}' cannot be read: {error}") from None
        except _Refused as error:
            raise DetoxbenchError(f"pack '{path}' is refused: {error}") from None
        yield extracted


class _Refused(Exception):
    """Why a pack is not opened."""


def _extract(archive: zipfile.ZipFile, folder: Path) -> list[Run]:
    """Write the pack's members into `folder`. Raises _Refused for what no pack has."""
    names = _checked_names(archive)
    manifest = _manifest(archive, names)
    limit = LARGEST
    for name in sorted(names - {MANIFEST}):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            digest, written = _copy(archive, name, file, limit)
        limit -= written
        if digest != manifest.files[name]:
            raise _Refused(f"{name} is not what {MANIFEST} says (SHA-256 {digest[:12]}…)")
    runs = [Run(folder / "runs" / run_id) for run_id in sorted(manifest.runs)]
    for run in runs:
        seal(run.folder)  # a pack's own digests were checked above
    return runs


def _checked_names(archive: zipfile.ZipFile) -> set[str]:
    """The members' names: those that a pack has, each once, and not too large by what their headers say."""
    members = archive.infolist()
    names = [member.filename for member in members]
    for name in names:
        match = _MEMBER.fullmatch(name)
        if name != MANIFEST and not (match and match[2] in FILES):
            raise _Refused(f"it holds {name[:80]!r}, which no pack does")
    if len(set(names)) < len(names):
        raise _Refused("it holds a name twice")
    size = sum(member.file_size for member in members)
    if size > LARGEST:
        raise _Refused(f"unpacked it is {size >> 20} MB, more than {LARGEST >> 20}")
    if MANIFEST not in names:
        raise _Refused(f"it has no {MANIFEST}")
    return set(names)


def _manifest(archive: zipfile.ZipFile, names: set[str]) -> Manifest:
    """The manifest, which is of this format and lists exactly the members of these names."""
    buffer = io.BytesIO()
    _copy(archive, MANIFEST, buffer, 64 << 20)
    try:
        manifest = msgspec.json.decode(buffer.getvalue(), type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _Refused(f"{MANIFEST}: {error}") from None
    if manifest.format != FORMAT:
        raise _Refused(f"its format is {manifest.format}, and this version reads {FORMAT}")
    listed = {f"runs/{run_id}/{name}" for run_id in manifest.runs for name in FILES}
    if odd := sorted(listed ^ (names - {MANIFEST})) or sorted(listed ^ set(manifest.files)):
        raise _Refused(f"its {MANIFEST} and its members differ in {odd[0]!r}")
    return manifest


def _copy(archive: zipfile.ZipFile, name: str, out: IO[bytes], limit: int) -> tuple[str, int]:
    """The SHA-256 and the size of a member, written to `out`. The limit holds for the bytes themselves: a header may
    lie about the size."""
    digest, written = hashlib.sha256(), 0
    with archive.open(name) as member:
        while chunk := member.read(_CHUNK):
            written += len(chunk)
            if written > limit:
                raise _Refused(f"{name} is larger than {limit >> 20} MB")
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest(), written


def unpack(
    verdicts: Sequence[Verification], pack_runs: Sequence[Run], path: str | Path, into: str | Path
) -> dict[str, str]:
    """Put the verified runs of the pack `path` into the runs folder `into`, with the recomputed metrics. Returns what
    became of each, by its id. A run that is there already is left as it is, even where its samples are others."""
    make_runs_dir(Path(into))
    verified_json = msgspec.json.encode(Verified(pack=Path(path).name, sha256=_sha256(path), detoxbench=__version__))
    results = {}
    for run, verdict in zip(pack_runs, verdicts, strict=True):
        if not verdict.verified or verdict.record is None:
            continue
        target = Path(into) / run.folder.name
        if target.exists():
            same = _same_evidence(target, run.folder)
            results[verdict.run] = "there already" if same else "left out: there with other samples or scores"
            continue
        files = _verified_files(run, verdict, verdict.record) | {VERIFIED: verified_json}
        write_folder(target, partial(_fill, files=files))
        results[verdict.run] = "added"
    return results


def _same_evidence(a: Path, b: Path) -> bool:
    names = ("samples.jsonl", "scores.jsonl")
    return all((a / name).is_file() and _sha256(a / name) == _sha256(b / name) for name in names)


def _verified_files(run: Run, verdict: Verification, record: RunRecord) -> dict[str, bytes]:
    """The run's files, with what was recomputed in place of what was claimed."""
    files = {name: (run.folder / name).read_bytes() for name in FILES}
    files["clusters.json"] = msgspec.json.encode(verdict.clusters)
    counts = record.counts | verdict.counts
    files["run.json"] = _json(msgspec.structs.replace(record, metrics=verdict.metrics, counts=counts))
    return files


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        write_atomic(folder / name, data)
    seal(folder)


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def _sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
