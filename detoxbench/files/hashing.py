"""SHA-256 of files. The hashes of large files are remembered, so that 14 GB of weights are read only once.

The hashes lie in `cache_root()`/hashes, one entry for each file. An entry holds only as long as the file's path, size,
inode, mtime and ctime (to the nanosecond) are those of the moment when it was read. A file that was changed in the last
two seconds is not remembered, because a second change within the clock's resolution would not show.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from detoxbench.config import digest
from detoxbench.errors import DetoxbenchError
from detoxbench.files.writing import write_atomic
from detoxbench.progress import Advance, bar

REMEMBERED_FROM = 4 * 2**20
"""Bytes; smaller files are read every time."""
SHOWN_FROM = 2**28
"""Bytes that are hashed with a bar and a message."""
SETTLED_NS = 2 * 10**9
_BLOCK = 2**22
_AT_ONCE = 4

log = logging.getLogger("detoxbench")


class _State(NamedTuple):
    """What stays the same as long as a file is not changed."""

    path: str
    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int


class _Entry(msgspec.Struct):
    """A remembered hash; `check` is the digest of the rest, so that a damaged entry is passed over."""

    state: _State
    sha256: str
    check: str


def cache_root() -> Path:
    """The folder of files that can be made again: $DETOXBENCH_CACHE, or ~/.cache/detoxbench."""
    return Path(os.environ.get("DETOXBENCH_CACHE") or Path.home() / ".cache" / "detoxbench")


def sha256_of_files(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 (64 hexadecimal digits) of each file, several read at a time.

    Raises DetoxbenchError for a file that cannot be read.
    """
    try:
        hashes = {path: _remembered(path) for path in paths}
        unknown = [path for path, sha256 in hashes.items() if sha256 is None]
        size = sum(path.stat().st_size for path in unknown)
        with _shown(unknown, size) as advance, ThreadPoolExecutor(_AT_ONCE) as pool:
            hashes |= zip(unknown, pool.map(partial(_read, advance=advance), unknown), strict=True)
    except OSError as error:
        raise DetoxbenchError(f"'{error.filename}' cannot be read: {error.strerror or error}") from None
    return [str(hashes[path]) for path in paths]


def sha256_of_file(path: Path) -> str:
    """`sha256_of_files` of one."""
    return sha256_of_files([path])[0]


@contextlib.contextmanager
def _shown(paths: Sequence[Path], size: int) -> Iterator[Advance]:
    """A bar and a message where the reading takes a while."""
    if size < SHOWN_FROM:
        yield lambda n: None
        return
    where = paths[0].parent.name if len(paths) > 1 else paths[0].name
    log.info("hashing %.1f GB of %s, which is remembered", size / 1e9, where)
    with bar(f"hashing {where}", size) as advance:
        yield advance


def _read(path: Path, advance: Advance) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        before = _state(path, os.fstat(file.fileno()))
        while block := file.read(_BLOCK):
            sha.update(block)
            advance(len(block))
        after = _state(path, os.fstat(file.fileno()))
    if before == after and before.size >= REMEMBERED_FROM:
        _remember(before, sha.hexdigest())
    return sha.hexdigest()


def _state(path: Path, stat: os.stat_result) -> _State:
    return _State(os.path.realpath(path), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)


def _entry_file(state: _State) -> Path:
    return cache_root() / "hashes" / f"{hashlib.sha256(os.fsencode(state.path)).hexdigest()[:32]}.json"


def _check(state: _State, sha256: str) -> str:
    return digest([*state[1:], hashlib.sha256(os.fsencode(state.path)).hexdigest(), sha256])


def _remembered(path: Path) -> str | None:
    state = _state(path, path.stat())
    if state.size < REMEMBERED_FROM:
        return None
    try:
        entry = msgspec.json.decode(_entry_file(state).read_bytes(), type=_Entry)
    except (OSError, msgspec.DecodeError):
        return None
    sound = entry.state == state and entry.check == _check(state, entry.sha256)
    return entry.sha256 if sound else None


def _remember(state: _State, sha256: str) -> None:
    """A cache folder that cannot be written makes no run fail: the file is only read again the next time."""
    if time.time_ns() - max(state.mtime_ns, state.ctime_ns) < SETTLED_NS:
        return
    try:
        write_atomic(_entry_file(state), msgspec.json.encode(_Entry(state, sha256, _check(state, sha256))))
    except (OSError, UnicodeError) as error:
        log.info("the hash of '%s' is not remembered: %s", state.path, error)
