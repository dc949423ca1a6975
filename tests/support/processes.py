"""The command line in real processes that start at once: forks of a server that has imported the heavy packages.

To import torch, transformers and scikit-learn takes seconds, longer than most of what a test asks of a process. What
the start itself is about (what is imported, the environment, a pipe) is tested with `python -m detoxbench.cli`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "torch",
        "transformers.models.llama.modeling_llama",
        "sklearn.feature_extraction.text",
        "sklearn.linear_model",
        "hydra.main",
        "detoxbench.runner.stages",
    ]
)


class Process:
    """A running `detoxbench ARGV...` in `folder`, with stdout and stderr of its own."""

    def __init__(
        self, folder: Path, argv: Sequence[str], environment: Mapping[str, str] | None = None, ctrl_c_is: Any = None
    ) -> None:
        self._said = TemporaryDirectory()
        given = (str(folder), list(argv), dict(os.environ) | dict(environment or {}), self._said.name)
        on_ctrl_c = signal.default_int_handler if ctrl_c_is in (None, signal.SIG_DFL) else ctrl_c_is
        self._process = FORKS.Process(target=_run, args=(*given, on_ctrl_c), daemon=True)
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send(self, sent: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, sent)

    def end(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait for it. Raises subprocess.TimeoutExpired, and kills it, when it takes longer."""
        self._process.join(timeout)
        if self.poll() is None:
            self._process.kill()
            raise subprocess.TimeoutExpired("detoxbench", timeout)
        out, err = ((Path(self._said.name) / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess("detoxbench", self._process.exitcode or 0, out, err)


def detoxbench(folder: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `detoxbench ARGV...` in `folder` said, and its exit code."""
    return Process(folder, argv, environment).end()


def _run(folder: str, argv: list[str], environment: dict[str, str], said: str, on_ctrl_c: Any) -> None:
    """In the fork: be as a process that a shell started there."""
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(said) / name, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    signal.signal(signal.SIGINT, on_ctrl_c)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["detoxbench", *argv]
    os.chdir(folder)
    from detoxbench.cli import main

    sys.exit(main())
