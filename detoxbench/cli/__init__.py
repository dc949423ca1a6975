"""The command line: a module a verb, each with `main(argv) -> exit code`; heavy packages are imported when needed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from detoxbench import __version__
from detoxbench.cli.common import FAILURE, INTERRUPTED, OK, TERMINATED, USAGE, complain
from detoxbench.engine.share import launched
from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean, told
from detoxbench.terminal import guarded

VERBS = {
    "demo": "every method on the embedded model, and a leaderboard, in a few minutes",
    "run": "fit, generate, score and store one cell, or with -m many",
    "plan": "what a run would do: which stages are cached, to do or missing",
    "status": "what is done, running (where), failed and left in a runs folder",
    "list": "models, methods, suites and scorers by name",
    "describe": "every setting of a component: type, default, range, meaning, source",
    "leaderboard": "tables of the finished runs, with intervals and tests",
    "report": "the finished runs as one HTML page: tables, charts, every sample; and figures for print",
    "compare": "what distinguishes one run from another: tests, settings, cost, samples",
    "tune": "search for the best setting of a metric while others stay within bounds",
    "ablate": "what one knob does, or two: the curve of each metric, with tests",
    "submit": "pack finished runs to be shared",
    "verify": "compute the numbers of shared runs again, and reject what does not match",
    "scorer": "check a scorer on labelled texts, and correct what it found in runs",
    "new": "write a package with a method, a suite or a scorer, to begin with",
    "check": "what every method must keep, tried on one of any package",
    "data": "published data sets: list, fetch, verify; paraphrase sets from a model",
    "fable": "the embedded model: build it anew",
    "completion": "print a completion script for a shell",
}
"""Verb -> what it does. Its module is detoxbench/cli/VERB.py."""
SHARED = {"demo", "run", "tune", "ablate"}
"""Verbs that run cells. Where several processes are launched, they share the work of each."""

EXAMPLES = """\
examples:
  detoxbench demo
  detoxbench run -m method=none,destein,ext_sub seed=0,1,2
  detoxbench run model=hf model.path=FOLDER suite=real_toxicity_prompts suite.data=FILE scorer=profanity_check
  detoxbench plan -m method=destein method.alpha=0.1,0.2,0.4
  detoxbench describe method destein
  detoxbench leaderboard runs --format md
  detoxbench scorer check profanity_check labelled.csv
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated."""
    argv = [*(sys.argv[1:] if argv is None else argv)]  # `list` is a verb's module here
    warnings.showwarning = _show_warning
    with guarded():
        return _exit_code(argv)


def _exit_code(argv: list[str]) -> int:
    try:
        with _stopped_by_sigterm():
            code = _dispatch(argv)
        sys.stdout.flush()
    except UsageError as error:
        code = complain(error, USAGE)
    except DetoxbenchError as error:
        code = complain(error, FAILURE)
    except KeyboardInterrupt as stop:
        code = TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED
        complain("interrupted; the same command goes on where this one stopped", code)
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which would complain about the pipe again. rich does the same.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILURE
    except OSError as error:
        code = complain(told(error), FAILURE)
    return code


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems and `kill` send it."""


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does, also where Ctrl-C is ignored (`nohup`, `&` in a script)."""

    def stop(*_: Any) -> None:
        raise _Terminated

    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(argv: list[str]) -> int:
    verb = argv[0] if argv else None
    if verb in VERBS:
        return _run_verb(verb, argv[1:])
    if verb in ("-h", "--help"):
        print(_help(), end="")
    elif verb == "--version":
        print(f"detoxbench {__version__}")
    elif verb is None:
        raise UsageError("a verb is missing (see `detoxbench --help`)")
    else:
        raise UsageError(f"unknown verb '{verb}'{did_you_mean(verb, VERBS)} (see `detoxbench --help`)")
    return OK


def _run_verb(verb: str, argv: list[str]) -> int:
    """Run a verb; in one of several processes that `torchrun` or another launcher has started, the share that it has in
    what the first one runs."""
    main: Callable[[list[str]], int] = import_module(f"detoxbench.cli.{verb}").main
    share = launched()
    if share is None or (share.rank == 0 and verb not in SHARED):
        return main(argv)
    if verb not in SHARED:
        return OK  # one process is enough to print
    from detoxbench.runner import processes

    with processes.joined(share):
        if share.rank == 0:
            return main(argv)
        try:
            processes.serve()
            return OK
        except KeyboardInterrupt as stop:
            return TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED  # process 0 tells it
        except processes.Lost as error:
            lost = error
    return complain(lost, FAILURE) if share.rank == 1 else FAILURE  # process 0 can tell it no more


def _help() -> str:
    verbs = "".join(f"  {verb:12} {summary}\n" for verb, summary in VERBS.items())
    return (
        "usage: detoxbench [-h] [--version] VERB ...\n\n"
        "Compare ways of detoxifying language models: one interface, one set of metrics, at a stated cost.\n\n"
        f"verbs (detoxbench VERB --help says more):\n{verbs}\n{EXAMPLES}"
    )


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    complain(f"warning: {message}", OK)
