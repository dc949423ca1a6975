"""Interventions that are there already: in the folder of a run, or in one of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from detoxbench.config import digest
from detoxbench.errors import DetoxbenchError
from detoxbench.files.hashing import sha256_of_files
from detoxbench.interventions.apply import require_base
from detoxbench.interventions.intervention import Intervention
from detoxbench.model.logit_state import AFTER

if TYPE_CHECKING:
    from detoxbench.model.model import Model

FILES = ("intervention.json", "tensors.safetensors")


def locate(path: str) -> Path:
    """The folder of the intervention that `path` means: the folder of a run (runs/ID), or of a saved intervention.

    Raises DetoxbenchError, saying what is there instead.
    """
    folder = Path(path).expanduser()
    for place in (folder, folder / "intervention"):
        if all((place / name).is_file() for name in FILES):
            return place
    if not folder.is_dir():
        raise DetoxbenchError(f"no folder '{path}': name the folder of a run (runs/ID) or of a saved intervention")
    run = (folder / "run.json").is_file()
    reason = "none is kept for the base model, and where each record has its own" if run else f"it has no {FILES[0]}"
    raise DetoxbenchError(f"'{path}' holds no intervention ({reason}): name another run, or a saved intervention")


def fingerprint(path: str) -> str:
    """16 hexadecimal digits of the content of its files. Raises as `locate`."""
    folder = locate(path)
    return digest(dict(zip(FILES, sha256_of_files([folder / name for name in FILES]), strict=True)))


class Told(NamedTuple):
    """What a saved intervention says of itself before it is loaded."""

    guides: list[str]
    """The scorers that its choices among texts are guided by."""
    reads_texts: bool
    """Whether it is in force where texts are given and read (`InForce.reads_texts`)."""


def told(path: str) -> Told:
    """Raises as `locate`, and DetoxbenchError for a file that is none."""
    file = locate(path) / FILES[0]
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        guides = [str(part["guide"]) for part in document.get("outputs", [])]
        asked = {what for part in document.get("logits", []) for what in part.get("asks", [])}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DetoxbenchError(f"'{file}' cannot be read: {type(error).__name__}: {error}") from None
    return Told(guides, not guides and AFTER not in asked)


def load(path: str, lm: Model) -> Intervention:
    """The intervention, which must have been fitted on `lm`'s model. Raises as `locate`, `Intervention.load` and
    `require_base`."""
    intervention = Intervention.load(locate(path))
    require_base(lm, intervention)
    return intervention
