"""One process at a time: by a lock of the file system, or by a lease where locks do not hold between machines.

A lock goes with its process, however that ends. A lease is a claim that its holder renews; who does not renew it in
time, because it was killed or its machine is gone, loses it to whoever asks next.

    NAME.claims/7    the claim of the holder: the highest number counts

A claim is taken by linking a file of one's own to the next number, which one process alone can do. No claim is renamed
or removed to take it over: between finding it stale and doing so another one may have, and the claim that goes would be
a live one. Lower numbers are removed by who holds a higher one. A claim's age is its file's, and now is the time of
a file that was just written there, so that the clocks of the machines may differ.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from detoxbench.errors import DetoxbenchError

Held = Callable[[], None]
"""Raises LeaseLost where another process may work by now. With locks it never does."""

LEASE = 60.0
"""Seconds after which a claim that was not renewed is another's to take."""
RENEWALS = 4
"""Times that a claim is renewed in that time."""
SOON, SLOWEST = 0.05, 16
"""Who waits for a claim looks again after so many seconds, then less often, but so many times in a lease."""
_LEASES = "leases"
"""The file beside the locks of a folder that says that they are leases."""


class LeaseLost(DetoxbenchError):
    """What this process worked on is another's by now."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"another process has taken over '{path.stem}', because this one did not renew its claim in {LEASE:g} s; "
            "nothing was overwritten, and the same command goes on"
        )


def by_lease(folder: Path) -> None:
    """From now on all processes keep off each other by leases in this folder."""
    if not (folder / _LEASES).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _LEASES).touch()


@contextmanager
def locked(path: Path, *, timeout: float = -1, waiting: Callable[[], None] | None = None) -> Iterator[Held]:
    """Be alone under the lock `path`, a name ending in .lock. `waiting` is called where another holds it.

    Raises filelock.Timeout when it is not had in `timeout` seconds; negative is no limit.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if (path.parent / _LEASES).is_file():
        with Claim(path).taken(timeout, waiting) as held:
            yield held
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            waiting()
        lock.acquire(timeout=timeout)
    try:
        yield lambda: None
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock. Where it cannot be tried, in a folder of others, it is taken for held."""
    if (path.parent / _LEASES).is_file():
        return Claim(path).is_live()
    if not path.exists():  # nor is it made by asking
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return path.is_file()
    lock.release()
    return False


class Claim:
    """A claim on the lock `path`."""

    def __init__(self, path: Path, lease: float | None = None) -> None:
        self._path = path
        self._folder = path.with_suffix(".claims")
        self._lease = LEASE if lease is None else lease
        self._number = 0
        """The claim that is held; 0: none."""

    @contextmanager
    def taken(self, timeout: float = -1, waiting: Callable[[], None] | None = None) -> Iterator[Held]:
        """As `locked`: take the claim, renew it by a thread, let it go."""
        waited, step, ended = 0.0, SOON, threading.Event()
        while not self.take():
            if waited == 0 and waiting is not None:
                waiting()
            if 0 <= timeout <= waited:
                raise Timeout(str(self._path))
            ended.wait(step)
            waited, step = waited + step, min(1.5 * step, self._lease / SLOWEST)
        threading.Thread(target=self._renewed, args=(ended,), daemon=True).start()
        try:
            yield self.require
        finally:
            ended.set()
            self.release()

    def take(self) -> bool:
        """Whether the claim is held now; False where another process has it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._own_file() as own:
            number, now = self._highest(), own.stat().st_mtime
            if number and now - self._time(number) <= self._lease:
                return False
            mine = self._claim(number + 1)
            # Over a network the answer may be lost and the call made twice: how many links there are is what counts.
            with suppress(FileExistsError):
                _link(own, mine)
            if own.stat().st_nlink < 2:
                return False
            if self._highest() > number + 1:  # that number was had, and removed, since it was looked at
                mine.unlink(missing_ok=True)
                return False
        self._number = number + 1
        for lower in self._numbers():
            if lower < self._number:
                self._claim(lower).unlink(missing_ok=True)
        return True

    def renew(self) -> bool:
        """Make the claim new; False where it is lost."""
        try:
            os.utime(self._claim(self._number))
        except OSError:  # removed by who holds a higher one
            return False
        return self._highest() == self._number

    def require(self) -> None:
        """Raises LeaseLost where the claim is lost. One that is held is made new."""
        if not self.renew():
            raise LeaseLost(self._path)

    def release(self) -> None:
        """Let another one take the claim at once: its lease is over."""
        with suppress(OSError):
            os.utime(self._claim(self._number), (0, 0))
        self._number = 0

    def is_live(self) -> bool:
        """Whether a process holds the claim. Where that cannot be seen, in a folder of others, it is taken for held."""
        if not self._folder.is_dir():
            return False
        try:
            with self._own_file() as own:
                return own.stat().st_mtime - self._time(self._highest()) <= self._lease
        except OSError:
            return self._highest() > 0

    def _renewed(self, ended: threading.Event) -> None:
        while not ended.wait(self._lease / RENEWALS):
            self.renew()

    @contextmanager
    def _own_file(self) -> Iterator[Path]:
        """A file that is written now, of a name that nobody else has."""
        own = self._folder / f"own-{uuid.uuid4().hex}"
        own.write_text(f"{socket.gethostname()} {os.getpid()}\n")
        try:
            yield own
        finally:
            own.unlink(missing_ok=True)

    def _claim(self, number: int) -> Path:
        return self._folder / str(number)

    def _numbers(self) -> list[int]:
        return [int(name) for name in os.listdir(self._folder) if name.isdecimal()]

    def _highest(self) -> int:
        return max(self._numbers(), default=0)

    def _time(self, number: int) -> float:
        """When a claim was last renewed, in seconds since 1970. One that is gone was left for a higher one, which is
        live. The file is opened, since over a network only then its server is asked."""
        try:
            with open(self._claim(number), "rb") as file:
                return os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return float("inf")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        raise DetoxbenchError(
            f"runs_lock=lease gives files a second name, which '{target.parent}' does not take ({error.strerror}): "
            "choose another runs_dir, or runs_lock=file"
        ) from None
