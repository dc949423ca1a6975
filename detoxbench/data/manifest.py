"""What is known of each published data set, how to get it, and whether a file is one of its files.

The facts are in manifests.json; no data set is part of this project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from detoxbench.data import readers
from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean
from detoxbench.model.checkpoint import hub_unreachable


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One published file; `rows` are the records that its reader finds. Both are None where we have never seen it."""

    name: str
    sha256: str | None = None
    rows: int | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One data set."""

    name: str
    title: str
    files: list[File]
    hub: str | None = None
    """Data set of the Hugging Face hub that holds these very files."""
    revision: str | None = None
    source: str
    """Where the files are from: repository@commit, or an address."""
    licence: str
    gated: bool = False
    """A person has to accept its terms first."""
    split: str
    """Which part of the published data this is."""
    reader: str
    """Function of `detoxbench.data.readers` that reads it."""
    schema: str
    citation: str
    serves: list[str]
    """Suites, fit data (fit.ROLE) and `scorer check`."""


class Verdict(NamedTuple):
    """Is a file one of the manifest's, byte for byte, and can it be read? `ok`: nothing speaks against it."""

    known: bool
    readable: bool
    ok: bool
    message: str


@cache
def manifests() -> dict[str, Manifest]:
    """By name, in the order of the file."""
    content = Path(__file__).with_name("manifests.json").read_bytes()
    return {m.name: m for m in msgspec.json.decode(content, type=list[Manifest])}


def manifest(name: str) -> Manifest:
    """Raises UsageError for an unknown name."""
    known = manifests()
    if name not in known:
        raise UsageError(f"unknown data set '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}")
    return known[name]


def verify(name: str, path: str | Path) -> Verdict:
    """Compare the file's SHA-256 with the manifest's and read it with its reader. Raises for an unknown name only."""
    wanted = manifest(name)
    file = Path(path).expanduser()
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        return Verdict(False, False, False, f"'{path}' cannot be read: {error.strerror}")
    same = next((f for f in wanted.files if f.sha256 == digest), None)
    try:
        count = len(_reader(wanted.reader)(file))
    except DetoxbenchError as error:
        return Verdict(same is not None, False, False, f"it cannot be read as {name}: {error}")
    if same is not None:
        return Verdict(True, True, True, f"it is {same.name} of {name}, byte for byte; {count} records")
    if any(f.sha256 is None for f in wanted.files):
        return Verdict(
            False, True, True, f"it reads as {name} ({count} records); the published SHA-256 is not known here"
        )
    message = f"it reads as {name} ({count} records), but is none of its known files (SHA-256 {digest})"
    return Verdict(False, True, False, message)


def fetch(name: str) -> list[Path]:
    """Download the files from the hub into its local cache. Raises DetoxbenchError without a delay, saying where they
    can be found, when the hub does not have them or cannot be reached."""
    wanted = manifest(name)
    hub = wanted.hub
    if hub is None:
        raise DetoxbenchError(f"{name} is not fetched from the hub: get it from {wanted.source} ({wanted.licence})")
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _hub_files(wanted, hub, local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    if unreachable := hub_unreachable():
        raise DetoxbenchError(
            f"{name} is not in the local cache, and {unreachable}: download it where there is network (hf download "
            f"--repo-type dataset {hub})"
        )
    return _download(wanted, hub)


def _hub_files(wanted: Manifest, hub: str, *, local_files_only: bool = False) -> list[Path]:
    """The files of the hub's data set `hub`, from its local cache, or else (unless `local_files_only`) downloaded."""
    from huggingface_hub import hf_hub_download

    return [
        Path(
            hf_hub_download(
                hub, file.name, repo_type="dataset", revision=wanted.revision, local_files_only=local_files_only
            )
        )
        for file in wanted.files
    ]


def _download(wanted: Manifest, hub: str) -> list[Path]:
    """`_hub_files`, downloaded. Raises DetoxbenchError."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    name = wanted.name
    try:
        return _hub_files(wanted, hub)
    except GatedRepoError:
        raise DetoxbenchError(
            f"{name} is gated: accept its terms at https://huggingface.co/datasets/{hub}, then log in (hf auth login)"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DetoxbenchError(f"{name} could not be downloaded from the hub ({hub}): {reason}") from error


def _reader(name: str) -> Callable[[Path], Sequence[Any]]:
    reader: Callable[[Path], Sequence[Any]] = getattr(readers, name)
    return reader
