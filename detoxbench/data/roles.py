"""The kinds of fit data: what each is, how it is read from a file, and its form in the embedded world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import make_dataclass
from functools import cache
from typing import Any, NamedTuple

from detoxbench.config import runtime
from detoxbench.data import readers
from detoxbench.data.examples import Instruction, Pair, ParaphraseSet, Role
from detoxbench.fable import world

SEED = 0
"""Seed of the embedded data. Fixed: the data is hashed into a run's identity and must not move with the run's seed."""


class RoleRow(NamedTuple):
    """All there is to a role: a new one is a row in `ROLES`."""

    meaning: str
    read: Callable[[str], Sequence[tuple[Any, ...]]]
    """The examples in a file, or in a data set of the hub."""
    embedded: Callable[[], Sequence[tuple[Any, ...]]]


ROLES: dict[Role, RoleRow] = {
    Role.PARALLEL_PAIRS: RoleRow(
        "rude and civil versions of one content",
        readers.pairs,
        lambda: [Pair(*pair) for pair in world.parallel_pairs(200, SEED)],
    ),
    Role.CIVIL_INSTRUCTIONS: RoleRow(
        "prompts with civil responses",
        readers.instructions,
        lambda: [Instruction(*row) for row in world.civil_instructions(600, SEED)],
    ),
    Role.TOXIC_INSTRUCTIONS: RoleRow(
        "prompts with toxic responses",
        readers.instructions,
        lambda: [Instruction(*row) for row in world.toxic_instructions(600, SEED)],
    ),
    Role.PARAPHRASE_SETS: RoleRow(
        "contents said in civil and in toxic ways",
        readers.paraphrase_sets,
        lambda: [ParaphraseSet(*row) for row in world.paraphrase_sets(240, SEED)],
    ),
    Role.EDIT_RECORDS: RoleRow(
        "attacked prompts with safe and unsafe responses (SafeEdit's files)",
        readers.edit_records,
        lambda: readers.parse_edit_records(readers.embedded(world.edit_records(60, SEED), "edit record")),
    ),
}


def fit_spec() -> type[Any]:
    """The class of the settings under `fit.`: where each role's examples are, and how many are taken of each.

    A place is a file, hub:OWNER/NAME, or 'embedded'; what is read is hashed into the identity. null is the embedded
    data, and only with the embedded model.
    """
    return _fit_spec(tuple((role, row.meaning) for role, row in ROLES.items()))


@cache
def _fit_spec(roles: tuple[tuple[str, str], ...]) -> type[Any]:
    fields: list[tuple[str, Any, Any]] = [(str(role), str | None, runtime(None, meaning)) for role, meaning in roles]
    fields.append(("limit", int | None, runtime(None, "use the first so many examples of each role", ge=1)))
    return make_dataclass("FitSpec", fields, frozen=True, kw_only=True)
