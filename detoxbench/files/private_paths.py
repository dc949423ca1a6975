"""Paths of this machine in texts that others may read: they name people, and mean nothing elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_INSIDE = re.compile(r"(?<![\w.:/\\])(?:file:/*|~|[A-Za-z]:(?=[\\/]))?(?:[\\/][^\s\\/'\",;()\[\]{}<>]+){2,}")
"""A path inside a longer text, of two parts at least."""


def is_local(text: str) -> bool:
    """Whether all of `text` is a path of this machine: absolute, in somebody's home, upwards, or of a file here."""
    if not text or "\n" in text or len(text) > 4096:
        return False
    parts = PureWindowsPath(text).parts  # knows both separators
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).drive or text.startswith(("~", "file:", "\\")):
        return " /" not in text  # "/ or not" is prose
    return ".." in parts or (len(parts) > 1 and os.path.exists(text))


def named(path: str) -> str:
    """A path by its last part alone."""
    return PureWindowsPath(path).name


def impersonal(path: str) -> str:
    """A path as it means the same to others in this place: below the working directory from there on, below the home
    folder with ~, any other by its last part alone."""
    path = re.sub(r"^file:/*", "/", path)
    if not os.path.isabs(path) and ".." not in Path(path).parts:
        return path
    path = os.path.abspath(path)
    for start, shown in ((Path.cwd(), ""), (Path.home(), "~")):
        if start != Path(start.anchor) and Path(path).is_relative_to(start):
            return str(Path(shown) / Path(path).relative_to(start))
    return named(path)


def without_paths(value: Any, shown: Callable[[str], str] = named) -> Any:
    """The value with every path of this machine in its texts as `shown` has it; maps and lists part by part."""
    if isinstance(value, Mapping):
        return {key: without_paths(inner, shown) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner, shown) for inner in value]
    if not isinstance(value, str):
        return value
    return shown(value) if is_local(value) else _INSIDE.sub(lambda match: shown(match[0]), value)
