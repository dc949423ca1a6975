"""The interface of trackers, and the trackers that there are."""

from __future__ import annotations

import urllib.error
import urllib.request
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from detoxbench.config import TrackerSpec
from detoxbench.errors import DetoxbenchError
from detoxbench.tracking.report import Report


class Sink(Protocol):
    """A tracker. It is used in a process of its own, which may print, hang and be ended at any moment."""

    later: str
    """How a person sends what was written, when sending did not work."""

    def write(self, report: Report, folder: Path, spec: TrackerSpec) -> None:
        """Write the whole report to `folder`, in place of an earlier one, without any network.

        Raises where that fails, and then leaves nothing half-written.
        """

    def send(self, report: Report, folder: Path, spec: TrackerSpec) -> None:
        """Send what `write` wrote to the server. Raises, or exits with a code, where the server did not take it."""


ANSWER_SECONDS = 5.0
SINKS = {
    "wandb": "detoxbench.tracking.wandb_sink:WandbSink",
    "trackio": "detoxbench.tracking.trackio_sink:TrackioSink",
}


def ask(url: str) -> None:
    """Check that a server answers at all, whatever it says. Raises DetoxbenchError where it does not: the trackers' own
    clients wait minutes for a dead server, or for ever."""
    try:
        urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        raise DetoxbenchError(f"no answer from {url} ({error})") from None


def sink(name: str) -> Sink:
    """The sink of a tracker, by its name."""
    module, _, cls = SINKS[name].partition(":")
    return cast(Sink, getattr(import_module(module), cls)())
