"""One report, in a process of its own: python -m detoxbench.tracking write|send RUN FOLDER SPEC."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec

from detoxbench.config import TrackerSpec
from detoxbench.results.store import Run
from detoxbench.tracking import COMPLAINT
from detoxbench.tracking.report import report_of
from detoxbench.tracking.sinks import sink


def main(action: str, run: str, folder: str, spec_json: str) -> None:
    if hasattr(os, "nice"):
        os.nice(19)  # the next cell is being worked on meanwhile
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that half-written files are removed
    spec = msgspec.json.decode(spec_json, type=TrackerSpec)
    tracker, report = sink(spec.name), report_of(Run(Path(run)), spec)
    {"write": tracker.write, "send": tracker.send}[action](report, Path(folder), spec)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        sys.exit(COMPLAINT + text.removeprefix("DetoxbenchError: "))
