"""What killed processes leave behind in a runs folder: half-written files and folders under names of their own."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from detoxbench.files.locking import is_held

UNTOUCHED = 3600.0
"""Seconds after which what nobody has written to, and nobody holds the lock of, is taken for left behind."""
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}")
"""What `writing` calls something until it is whole."""


def sweep(runs_dir: Path) -> list[Path]:
    """Remove what was left behind in a runs folder and its stages; which files and folders that was. Lock files stay:
    another process may be about to take one."""
    removed = []
    for path, lock in _temporary(runs_dir):
        try:
            if time.time() - path.stat().st_mtime < UNTOUCHED or is_held(lock):
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError:
            continue  # another process was quicker, or it is not ours to remove
        removed.append(path)
    return removed


def _temporary(runs_dir: Path) -> Iterator[tuple[Path, Path]]:
    """What has such a name, with the lock that whoever writes it holds."""
    stages = runs_dir / ".stages"
    for folder in (runs_dir, stages, *(path for path in stages.glob("*") if path.is_dir())):
        for path in folder.glob(".*"):
            if match := _TEMPORARY.fullmatch(path.name):
                owner = match[1] if folder in (runs_dir, stages) else folder.name
                yield path, stages / f"{owner}.lock"
