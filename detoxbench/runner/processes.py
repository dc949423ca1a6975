"""One suite over several processes, as `torchrun` or `accelerate launch` starts them.

Process 0 does what a process alone does, and asks the others for their share where a stage can be shared (`together`).
The others do nothing but what they are asked for. They speak over a socket each, which ends with its process: whoever
waits for a process that dies is told so at once, and a signal is heard while waiting. No tensors travel. What the
others make they write into the runs folder, which all of them see.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from functools import lru_cache
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge, wait
from typing import Any, NamedTuple, TypeVar

import msgspec

from detoxbench.engine.share import ALONE, Share
from detoxbench.errors import DetoxbenchError, NonFiniteError, UsageError
from detoxbench.runner.cell import RunCell, checkpoint_folder, prepare
from detoxbench.text import first_line

R = TypeVar("R")

JOINING = timedelta(minutes=10)
"""How long the processes wait for each other at the beginning."""
_ADDRESS = "detoxbench"
"""The key under which process 0 tells the others where it listens."""
_LAUNCHERS = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_")
"""How the variables begin that say how a process was launched."""

log = logging.getLogger("detoxbench")


class Lost(DetoxbenchError):
    """Another process has ended before its time."""

    def __init__(self, rank: int) -> None:
        super().__init__(
            f"process {rank} of this run has ended; the same command, with as many processes as you like, goes on "
            "where this one stopped"
        )


class _Asked(NamedTuple):
    """What process 0 asks the others for."""

    work: Callable[..., object]
    cell: bytes
    """The settings of the cell, and its keys."""
    arguments: tuple[Any, ...]


class _Answer(msgspec.Struct):
    """What another process says when it has done what it was asked for: which error came of it (`_KINDS`) and its text;
    no kind where all went well."""

    kind: str | None
    text: str


_KINDS: dict[str, type[Exception]] = {
    "usage": UsageError, "not finite": NonFiniteError, "explained": DetoxbenchError, "other": RuntimeError,
}  # fmt: skip
"""Errors by the name that they travel under, the narrower first."""


class _Group(NamedTuple):
    """The processes that have joined, as one of them sees them."""

    share: Share
    connections: dict[int, Connection]
    """By rank: process 0 has one to each other, they have one to it."""


_group: _Group | None = None


@contextmanager
def joined(share: Share) -> Iterator[None]:
    """Be one of several processes, each on a GPU of its own where there are any; process 0 lets the others go at the
    end. What the others would print is not shown."""
    global _group
    local = int(os.environ.get("LOCAL_RANK", "0"))
    connections = dict(_connected(share))
    _hide_the_launcher()
    _take_gpu(local)
    _group = _Group(share, connections)
    try:
        with _silent() if share.rank else ExitStack():
            yield
    finally:
        _group = None
        for connection in connections.values():
            with suppress(OSError):
                if share.rank == 0:
                    connection.send_bytes(b"")
                connection.close()


def several() -> bool:
    """Whether this is one of several processes that have joined."""
    return _group is not None


def together(work: Callable[..., R], cell: RunCell, *args: Any) -> R:
    """Do `work(cell, share, *args)`, a function of a module, in every process with the share that is its own. Returns
    what it gave here, in process 0, when all have done theirs.

    The cell of another process is made there from the same settings. Raises what went wrong here, else what went wrong
    elsewhere, and Lost for a process that is gone.
    """
    if _group is None:
        return work(cell, ALONE, *args)
    asked = pickle.dumps(_Asked(work, pickle.dumps((cell.spec, cell.keys)), args))
    for rank, connection in _group.connections.items():
        try:
            connection.send_bytes(asked)
        except OSError:
            raise Lost(rank) from None
    try:
        result = work(cell, _group.share, *args)
    except Exception:
        _errors(_group.connections)  # they end what they are at, and are there for the next try
        raise
    for error in _errors(_group.connections):
        raise error
    return result


def _errors(connections: dict[int, Connection]) -> list[Exception]:
    """What went wrong in the other processes, when all have answered. Raises Lost."""
    errors = dict[int, Exception]()
    waiting: dict[Any, int] = {connection: rank for rank, connection in connections.items()}
    while waiting:
        for connection in wait(list(waiting)):
            rank = waiting.pop(connection)
            try:
                answer = msgspec.json.decode(connections[rank].recv_bytes(), type=_Answer)
            except (EOFError, OSError):
                raise Lost(rank) from None
            if answer.kind is not None:
                errors[rank] = _KINDS[answer.kind](answer.text)
    return [errors[rank] for rank in sorted(errors)]


def serve() -> None:
    """In another process than 0: do what is asked for until there is no more. Raises Lost."""
    assert _group is not None
    (connection,) = _group.connections.values()
    while True:
        try:
            asked = connection.recv_bytes()
            if not asked:
                return
            connection.send_bytes(msgspec.json.encode(_outcome(asked)))
        except (EOFError, OSError):
            raise Lost(0) from None


def _outcome(asked: bytes) -> _Answer:
    """Do what is asked for."""
    assert _group is not None
    here = f"(process {_group.share.rank} on {socket.gethostname()})"
    try:
        work, cell, arguments = pickle.loads(asked)
        work(_prepared(cell), _group.share, *arguments)
    except DetoxbenchError as error:
        kind = next(name for name, kind in _KINDS.items() if isinstance(error, kind))
        return _Answer(kind, f"{error} {here}")
    except Exception as error:
        return _Answer("other", f"{type(error).__name__}: {first_line(error)} {here}\n{traceback.format_exc()}")
    return _Answer(None, "")


@lru_cache(maxsize=1)  # it is asked for several times
def _prepared(asked: bytes) -> RunCell:
    """The cell of these settings. Raises DetoxbenchError where it is another run here."""
    spec, keys = pickle.loads(asked)
    cell = prepare(spec, checkpoint_folder(spec, download=True))
    if cell.keys != keys:
        raise DetoxbenchError(
            "the same settings are another run here: model, data and packages must be the same everywhere"
        )
    if not cell.generation_folder.is_dir():  # process 0 has made it
        raise DetoxbenchError(f"'{cell.generation_folder}' is not there: runs_dir must be one folder for all processes")
    return cell


# -------------------------------------------------------------------------------------------------------- how they meet


def _connected(share: Share) -> Iterator[tuple[int, Connection]]:
    """A connection to every other process in process 0, to process 0 in the others, by rank.

    The launcher's store holds the port and a key, which both sides have to prove. What the others hear from process 0
    is unpickled, so who may read that store may run code in them; process 0 unpickles nothing.
    """
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", share.rank, share.ranks, timeout=JOINING))
    if share.rank:
        port, key = store.get(_ADDRESS).decode().split()
        peer = socket.create_connection((os.environ["MASTER_ADDR"], int(port)), timeout=JOINING.total_seconds())
        connection = _alive(peer)
        answer_challenge(connection, bytes.fromhex(key))
        deliver_challenge(connection, bytes.fromhex(key))
        connection.send_bytes(str(share.rank).encode())
        yield 0, connection
        return
    secret = secrets.token_bytes(32)
    with socket.create_server(("", 0)) as server:
        server.settimeout(JOINING.total_seconds())
        store.set(_ADDRESS, f"{server.getsockname()[1]} {secret.hex()}")
        for _ in range(share.ranks - 1):
            connection = _alive(server.accept()[0])
            deliver_challenge(connection, secret)
            answer_challenge(connection, secret)
            yield int(connection.recv_bytes()), connection


def _alive(peer: socket.socket) -> Connection:
    """A connection that also ends when the other machine is gone."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return Connection(peer.detach())


def _hide_the_launcher() -> None:
    """So that no library takes what runs here for training over several processes: a fit is done by one."""
    for name in [name for name in os.environ if name.startswith(_LAUNCHERS)]:
        del os.environ[name]


def _take_gpu(local: int) -> None:
    """Leave only one GPU to be seen, for whatever runs here: the one of this number, `local` being the process's among
    those of its machine."""
    import torch

    if not (count := torch.cuda.device_count()):
        return
    if local >= count:
        log.warning("process %d of this machine shares a GPU with another one: there are %d", local, count)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[local % count]
    if torch.cuda.device_count() > 1:
        raise DetoxbenchError(
            "CUDA counts its devices before one can be chosen: set CUDA_VISIBLE_DEVICES for each process"
        )


@contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
