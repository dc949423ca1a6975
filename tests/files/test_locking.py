"""Locks and leases: never two holders at once, nothing stays held for ever, and who has lost a lease notices."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from detoxbench.errors import DetoxbenchError
from detoxbench.files import locking
from detoxbench.files.locking import Claim, LeaseLost, by_lease, is_held, locked

FORKS = multiprocessing.get_context("fork")  # nothing heavy is imported here
LEASE = 1.2
"""Seconds; the holder renews every quarter, also on a machine that is busy."""


def outdate(lock: Path, seconds: float = 3600) -> None:
    """As if the holder had not renewed its claim for so long."""
    for claim in lock.with_suffix(".claims").glob("[0-9]*"):
        then = claim.stat().st_mtime - seconds
        os.utime(claim, (then, then))


@pytest.fixture(params=["file", "lease"])
def lock(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "lease":
        by_lease(tmp_path)
    return tmp_path / "a.lock"


def test_one_at_a_time_and_who_waits_is_told(lock: Path) -> None:
    told: list[str] = []
    with locked(lock, waiting=lambda: told.append("first")):
        assert is_held(lock)
        with pytest.raises(Timeout), locked(lock, timeout=0.01, waiting=lambda: told.append("second")):
            pass
    assert told == ["second"]
    assert not is_held(lock)
    with locked(lock, timeout=0) as held:
        held()
    before = set(lock.parent.iterdir())
    assert not is_held(lock.with_name("other.lock"))
    assert set(lock.parent.iterdir()) == before


def test_a_claim_is_taken_over_when_its_lease_is_over_and_its_holder_notices(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    first, second, third = Claim(lock), Claim(lock), Claim(lock)
    assert first.take()
    assert not second.take()
    outdate(lock, locking.LEASE - 5)
    assert not second.take(), "it is old, and not too old"
    outdate(lock)
    assert second.take()
    with pytest.raises(LeaseLost, match="taken over 'a'"):
        first.require()
    second.require()
    first.release()  # of one that is lost: it is the other's
    assert not third.take()
    second.release()
    assert third.take()
    assert os.listdir(tmp_path / "a.claims") == ["3"]


def test_a_renewed_claim_stays(tmp_path: Path) -> None:
    first, second = (Claim(tmp_path / "a.lock") for _ in range(2))
    assert first.take()
    outdate(tmp_path / "a.lock")
    first.require()
    assert not second.take()


def test_who_finds_a_claim_stale_and_comes_too_late_does_not_get_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and its link, others have had and left the very number that it links to."""
    lock = tmp_path / "a.lock"
    first, late, holder = (Claim(lock) for _ in range(3))
    assert first.take()
    outdate(lock)
    link = locking._link

    def others_first(source: Path, target: Path) -> None:
        monkeypatch.setattr(locking, "_link", link)
        for other in (Claim(lock), holder):
            assert other.take()
            if other is not holder:
                other.release()
        link(source, target)

    monkeypatch.setattr(locking, "_link", others_first)
    assert not late.take()
    holder.require()
    assert os.listdir(tmp_path / "a.claims") == ["3"]


def test_a_link_that_was_made_and_reported_as_failed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS does it, where the answer to the first of two calls was lost."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    claim = Claim(tmp_path / "a.lock")
    assert claim.take()
    claim.require()


def test_where_files_cannot_be_linked_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no)
    by_lease(tmp_path)
    with (
        pytest.raises(DetoxbenchError, match=r"does not take \(Operation not permitted\)"),
        locked(tmp_path / "a.lock"),
    ):
        pass


def _adds(lock: Path, count: int, begin: Any) -> None:
    """Add one to a number in a file so many times, each time reading and writing it apart."""
    begin.wait()
    number = lock.with_name("number")
    for _ in range(count):
        with Claim(lock).taken() as held:
            read = int(number.read_text())
            held()
            number.write_text(str(read + 1))


def test_several_processes_never_hold_it_at_once(tmp_path: Path) -> None:
    lock, count = tmp_path / "a.lock", 15
    (tmp_path / "number").write_text("0")
    begin = FORKS.Barrier(4)
    adders = [FORKS.Process(target=_adds, args=(lock, count, begin)) for _ in range(4)]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join(60)
    assert [adder.exitcode for adder in adders] == [0] * 4
    assert (tmp_path / "number").read_text() == str(4 * count)


def _holds(lock: Path, said: Any, go_on: Any) -> None:
    """Hold it, wait, and say whether it may write then."""
    with Claim(lock, LEASE).taken() as held:
        said.put("held")
        go_on.wait()
        try:
            held()
        except LeaseLost:
            said.put("lost")
        else:
            said.put("writes")


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """A process that holds the lock (its process, what it says, what lets it go on)."""
    said, go_on = FORKS.Queue(), FORKS.Event()
    process = FORKS.Process(target=_holds, args=(tmp_path / "a.lock", said, go_on))
    process.start()
    assert said.get(timeout=30) == "held"
    yield process, said, go_on
    process.kill()
    process.join()


def test_a_killed_holder_is_followed_by_another_after_its_lease(tmp_path: Path, holder: Any) -> None:
    process, _, _ = holder
    process.kill()
    process.join()
    start = time.monotonic()
    with Claim(tmp_path / "a.lock", LEASE).taken(timeout=20) as held:
        held()
    assert time.monotonic() - start > LEASE / 2  # not before: it renews every quarter


@pytest.mark.slow
def test_a_living_holder_keeps_it_beyond_its_lease(tmp_path: Path, holder: Any) -> None:
    _, said, go_on = holder
    with pytest.raises(Timeout), Claim(tmp_path / "a.lock", LEASE).taken(timeout=2.5 * LEASE):
        pass
    go_on.set()
    assert said.get(timeout=30) == "writes"
    with Claim(tmp_path / "a.lock", LEASE).taken(timeout=20):
        pass


def test_a_holder_that_stood_still_for_too_long_notices_before_it_writes(tmp_path: Path, holder: Any) -> None:
    process, said, go_on = holder
    os.kill(process.pid, signal.SIGSTOP)
    with Claim(tmp_path / "a.lock", LEASE).taken(timeout=20) as held:
        os.kill(process.pid, signal.SIGCONT)
        go_on.set()
        assert said.get(timeout=30) == "lost"
        held()


def test_the_thread_that_renews_ends_with_the_claim(tmp_path: Path) -> None:
    before = threading.active_count()
    with Claim(tmp_path / "a.lock", 0.02).taken():
        assert threading.active_count() == before + 1
    for thread in threading.enumerate()[before:]:
        thread.join(5)
    assert threading.active_count() == before
