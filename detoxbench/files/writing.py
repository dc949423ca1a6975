"""Writing files and folders whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from detoxbench.errors import DetoxbenchError


def make_runs_dir(folder: Path) -> None:
    """Make the folder of the results if it is missing. Raises DetoxbenchError when it cannot be made or written to."""
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
        with _os_errors(folder):
            fill(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(folder.parent)


@contextmanager
def _os_errors(folder: Path) -> Iterator[None]:
    """What safetensors says of a full disk is an OSError like any other: its own error has the number in its text."""
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) or not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from None


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def link(source: Path, target: Path) -> None:
    """One file under two names, or a copy where the file system cannot."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
