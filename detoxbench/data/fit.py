"""What methods learn from: each role read from the embedded world or from a file, and hashed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from detoxbench.config import EMBEDDED_DATA, FitSpec, digest
from detoxbench.data import hub, readers
from detoxbench.data.examples import FitData, Instruction, Pair, ParaphraseSet, Role
from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean
from detoxbench.fable import world

SEED = 0
"""Seed of the embedded data. Fixed: the data is hashed into a run's identity and must not move with the run's seed."""
_EMBEDDED: dict[Role, Callable[[], Sequence[tuple[Any, ...]]]] = {
    Role.PARALLEL_PAIRS: lambda: [Pair(*pair) for pair in world.parallel_pairs(200, SEED)],
    Role.CIVIL_INSTRUCTIONS: lambda: [Instruction(*row) for row in world.civil_instructions(600, SEED)],
    Role.TOXIC_INSTRUCTIONS: lambda: [Instruction(*row) for row in world.toxic_instructions(600, SEED)],
    Role.PARAPHRASE_SETS: lambda: [ParaphraseSet(*row) for row in world.paraphrase_sets(240, SEED)],
    Role.EDIT_RECORDS: lambda: readers.parse_edit_records(
        readers.embedded(world.edit_records(60, SEED), "edit record")
    ),
}
_FILE: dict[Role, Callable[[str], Sequence[tuple[Any, ...]]]] = {
    Role.PARALLEL_PAIRS: readers.pairs,
    Role.CIVIL_INSTRUCTIONS: readers.instructions,
    Role.TOXIC_INSTRUCTIONS: readers.instructions,
    Role.PARAPHRASE_SETS: readers.paraphrase_sets,
    Role.EDIT_RECORDS: readers.edit_records,
}


EMBEDDED = "embedded"


def require_chosen(spec: FitSpec, needs: frozenset[Role], model: str, method: str) -> None:
    """Raises UsageError where the embedded data would be taken without having been asked for: by any `model` (its path)
    but the embedded one, or beside data of one's own."""
    roles = sorted(role.value for role in needs)
    unsaid = [role for role in roles if getattr(spec, role) is None]
    if not unsaid or (model == "fable" and unsaid == roles):
        return
    meaning = {field.name: field.metadata["help"] for field in fields(FitSpec)}
    needed = " and ".join(f"fit.{role}=FILE ({meaning[role]})" for role in unsaid)
    reason = f"with model '{model}'" if model != "fable" else "beside the data that are given"
    remedy = " ".join(f"fit.{role}={EMBEDDED}" for role in unsaid)
    raise UsageError(
        f"method '{method}' needs {needed} {reason}: the embedded data are fairy tales ({remedy} takes them anyway)"
    )


def place_name(place: str | None) -> str:
    """What data are called: never a folder of this machine, never a digest."""
    if place is None or place == EMBEDDED:
        return EMBEDDED_DATA
    return place if place.startswith(hub.PREFIX) else Path(place).name


def fit_names(spec: FitSpec, data: FitData, per_record: bool) -> dict[str, str]:
    """Role -> what the examples are called, and how many there are; `per_record`: the edit records are the suite's."""
    names = {}
    for field in fields(FitData):
        examples = getattr(data, field.name)
        if examples is not None:
            own = per_record and field.name == Role.EDIT_RECORDS.value
            name = "the suite's own" if own else place_name(getattr(spec, field.name))
            names[field.name] = f"{name}, {len(examples)} examples"
    return names


def fit_data(spec: FitSpec, needs: frozenset[Role]) -> tuple[FitData, str]:
    """The data of the roles in `needs`, and the digest of what was read (not of where it lies).

    Raises DetoxbenchError for a place that is neither 'embedded' nor a file, and for a file that does not fit.
    """
    loaded: dict[str, tuple[Any, ...]] = {}
    for role in sorted(needs, key=lambda role: role.value):
        place = getattr(spec, role.value)
        if place in (None, EMBEDDED):
            examples = _EMBEDDED[role]()
        elif place.startswith(hub.PREFIX) or Path(place).expanduser().exists():
            examples = _FILE[role](place)
        else:
            raise DetoxbenchError(
                f"fit.{role.value}={place}: neither 'embedded' nor a file nor hub:OWNER/NAME"
                f"{did_you_mean(place, [EMBEDDED])}"
            )
        loaded[role.value] = tuple(examples[: spec.limit])
    return FitData(**loaded), digest(loaded)
