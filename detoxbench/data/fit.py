"""What methods learn from: each role read from the embedded world or from a file, and hashed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detoxbench.config import EMBEDDED_DATA, digest
from detoxbench.data import hub
from detoxbench.data.examples import FitData, Role
from detoxbench.data.roles import ROLES
from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean

EMBEDDED = "embedded"


def require_chosen(spec: Any, needs: frozenset[Role], model: str, method: str) -> None:
    """Raises UsageError where the embedded data would be used without being named: with any `model` (its path) but the
    embedded one, or together with data of the user."""
    roles = sorted(str(role) for role in needs)
    unsaid = [role for role in roles if getattr(spec, role) is None]
    if not unsaid or (model == "fable" and unsaid == roles):
        return
    needed = " and ".join(f"fit.{role}=FILE ({ROLES[Role(role)].meaning})" for role in unsaid)
    reason = f"with model '{model}'" if model != "fable" else "beside the data that are given"
    remedy = " ".join(f"fit.{role}={EMBEDDED}" for role in unsaid)
    raise UsageError(
        f"method '{method}' needs {needed} {reason}: the embedded data are fairy tales ({remedy} takes them anyway)"
    )


def place_name(place: str | None) -> str:
    """The name that data are shown under: never a folder of this machine, never a digest."""
    if place is None or place == EMBEDDED:
        return EMBEDDED_DATA
    return place if place.startswith(hub.PREFIX) else Path(place).name


def fit_names(spec: Any, data: FitData, per_record: bool) -> dict[str, str]:
    """Role -> what the examples are called, and how many there are; `per_record`: the edit records are the suite's."""
    names = {}
    for role in ROLES:
        examples = data.by_role.get(role)
        if examples is not None:
            from_suite = per_record and role == Role.EDIT_RECORDS
            name = "the suite's own" if from_suite else place_name(getattr(spec, role))
            names[str(role)] = f"{name}, {len(examples)} examples"
    return names


def fit_data(spec: Any, needs: frozenset[Role]) -> tuple[FitData, str]:
    """The data of the roles in `needs`, and the digest of what was read (not of where it lies).

    Raises DetoxbenchError for a place that is neither 'embedded' nor a file, and for a file that does not fit.
    """
    loaded: dict[str, tuple[Any, ...]] = {}
    for role in sorted(needs):
        place = getattr(spec, role)
        if place in (None, EMBEDDED):
            examples = ROLES[role].embedded()
        elif place.startswith(hub.PREFIX) or Path(place).expanduser().exists():
            examples = ROLES[role].read(place)
        else:
            raise DetoxbenchError(
                f"fit.{role}={place}: neither 'embedded' nor a file nor hub:OWNER/NAME{did_you_mean(place, [EMBEDDED])}"
            )
        loaded[str(role)] = tuple(examples[: spec.limit])
    return FitData(**loaded), digest(loaded)
