"""Folders that show when one of their files is no longer what was written.

A finished stage or run holds `digests.json`: size and SHA-256 of each of its files, and a digest of that list. It is
written last, so a folder without one is unfinished, or damaged. A folder that does not match is not used: it is
moved to NAME.corrupt with a message, and done again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from detoxbench.config import digest
from detoxbench.errors import DetoxbenchError
from detoxbench.files.writing import write_atomic

SEAL = "digests.json"
PARTIAL = "partial.jsonl"
"""What an unfinished stage has done so far."""
ASIDE = ".corrupt"

log = logging.getLogger("detoxbench")


class Damaged(DetoxbenchError):
    """A stage or run whose files are not those that were written."""

    def __init__(self, folder: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"'{folder}' is damaged: {reason}; the same detoxbench run moves it aside and does it again")


class SealedFile(msgspec.Struct, array_like=True):
    """A line of digests.json."""

    size: int
    sha256: str


class _Seal(msgspec.Struct):
    """digests.json; `check` is the digest of the list itself."""

    files: dict[str, SealedFile]
    check: str


def seal(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write the digests of `folder`'s files: of `names` (POSIX paths inside it), or of all that are there."""
    if names is None:
        paths = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        names = [name for name in paths if name != SEAL and not name.startswith(".")]
    write_atomic(folder / SEAL, digests({name: (folder / name).read_bytes() for name in names}))


def digests(contents: Mapping[str, bytes]) -> bytes:
    """What digests.json holds for files of these contents, by name."""
    files = {name: _file(contents[name]) for name in sorted(contents)}
    return msgspec.json.encode(_Seal(files, _check(files)))


def sealed_files(folder: Path) -> dict[str, SealedFile]:
    """The files that `folder` should hold. Raises Damaged where their list is missing or damaged."""
    try:
        sealed = msgspec.json.decode((folder / SEAL).read_bytes(), type=_Seal)
    except FileNotFoundError:
        raise Damaged(folder, f"{SEAL} is missing") from None
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(folder, f"{SEAL} cannot be read ({error})") from None
    if sealed.check != _check(sealed.files):
        raise Damaged(folder, f"{SEAL} is not what was written")
    return sealed.files


def read_sealed(folder: Path, name: str, files: Mapping[str, SealedFile]) -> bytes:
    """The bytes of a file of `folder`, as its `sealed_files` has them. Raises Damaged."""
    if name not in files:
        raise Damaged(folder, f"{name} is not listed in {SEAL}")
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise Damaged(folder, f"{name} is missing") from None
    except OSError as error:
        raise Damaged(folder, f"{name} cannot be read ({error.strerror or error})") from None
    if _file(data) != files[name]:
        raise Damaged(folder, f"{name} is not what was written")
    return data


def check_sizes(folder: Path, files: Mapping[str, SealedFile]) -> None:
    """Raise Damaged where a file is missing or longer or shorter than it was; reads none."""
    for name, file in files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            raise Damaged(folder, f"{name} is missing") from None
        if size != file.size:
            raise Damaged(folder, f"{name} has {size} bytes and had {file.size}")


def whole(folder: Path) -> bool:
    """Whether a finished stage or run is there, every file as it was written; False where there is none, or an
    unfinished one. Raises Damaged."""
    if not folder.is_dir() or ((folder / PARTIAL).is_file() and not (folder / SEAL).is_file()):
        return False
    files = sealed_files(folder)
    for name in files:
        read_sealed(folder, name, files)
    return True


def whole_or_aside(folder: Path) -> bool:
    """As `whole`, but a damaged folder is moved to NAME.corrupt with a warning, and counts as not there."""
    try:
        return whole(folder)
    except Damaged as error:
        number, aside = 1, folder.with_name(folder.name + ASIDE)
        while aside.exists():
            number += 1
            aside = folder.with_name(f"{folder.name}{ASIDE}-{number}")
        log.warning("%s; it is kept as %s", error, aside.name)
        try:
            folder.rename(aside)
        except OSError as reason:
            raise DetoxbenchError(f"'{folder}' is damaged and cannot be moved aside: {reason}") from None
        return False


def _file(data: bytes) -> SealedFile:
    return SealedFile(len(data), hashlib.sha256(data).hexdigest())


def _check(files: Mapping[str, SealedFile]) -> str:
    return digest({name: [file.size, file.sha256] for name, file in files.items()})
