"""Errors that a user can act on: one line that names the thing, the place and the remedy."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class DetoxbenchError(Exception):
    """Something went wrong that the message explains in one line (exit code 1)."""


class UsageError(DetoxbenchError):
    """The request itself is wrong: unknown name, key or value (exit code 2)."""


class NonFiniteError(DetoxbenchError, ValueError):
    """A number that is none (NaN, infinity) where everything that follows would be computed from it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


_AGAIN = "the same command goes on where this one stopped"
_REMEDIES = {
    errno.ENOSPC: f"free some space there; {_AGAIN}",
    errno.EDQUOT: f"free some of your space there; {_AGAIN}",
    errno.EIO: f"the disk or the connection to it is not well: look after it; {_AGAIN}",
    errno.EROFS: "it can only be read: name another folder, such as runs_dir=FOLDER",
    errno.EACCES: "get the permission, or name another folder, such as runs_dir=FOLDER",
    errno.EPERM: "get the permission, or name another folder, such as runs_dir=FOLDER",
    errno.ENOENT: f"it is gone, or was moved meanwhile: put it back if it is yours; {_AGAIN}",
    errno.ENOTDIR: "a file is where a folder should be: move it away",
    errno.EISDIR: "a folder is where a file should be: move it away",
    errno.EEXIST: "it is there already: move it away",
    errno.ENOTEMPTY: f"another process writes there: let it finish; {_AGAIN}",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name or folder",
}
"""What to do about an error of the operating system, by its number."""


def told(error: OSError) -> str:
    """An error of the operating system in one line: what it says, of which file, and the remedy."""
    said = " ".join((error.strerror or str(error) or type(error).__name__).split())
    file = f" ('{error.filename2 or error.filename}')" if error.filename2 or error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{said}{file}" + (f": {remedy}" if remedy else "")
