"""What methods learn from: examples of five kinds, and all that one fit is given."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from detoxbench.errors import DetoxbenchError

if TYPE_CHECKING:
    pass


class Role(str, Enum):
    """Kinds of fit data; the value is the field of `FitData` and the key under `fit.` in the configuration."""

    PARALLEL_PAIRS = "parallel_pairs"
    CIVIL_INSTRUCTIONS = "civil_instructions"
    TOXIC_INSTRUCTIONS = "toxic_instructions"
    PARAPHRASE_SETS = "paraphrase_sets"
    EDIT_RECORDS = "edit_records"


class Pair(NamedTuple):
    """The same content said rudely and politely."""

    toxic: str
    civil: str


class Instruction(NamedTuple):
    """A prompt with its response; `chat` is False where the response just continues the prompt as running text."""

    prompt: str
    response: str
    chat: bool = True


class ParaphraseSet(NamedTuple):
    """One content said in several civil ways (`positives`) and in several toxic ways (`negatives`).

    `anchor` names the content; what stands before its last hyphen, if it has one, is its group (a topic).
    """

    anchor: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


class EditRecord(NamedTuple):
    """One attacked prompt with a safe and an unsafe response, and a harmless question whose answer an edit must keep
    (both empty where there is none)."""

    prompt: str
    safe: str
    unsafe: str
    constraint_prompt: str = ""
    constraint_answer: str = ""


@dataclass(frozen=True, kw_only=True)
class FitData:
    """What a method may learn from, one field a role; None means that the role was not supplied."""

    parallel_pairs: tuple[Pair, ...] | None = None
    civil_instructions: tuple[Instruction, ...] | None = None
    toxic_instructions: tuple[Instruction, ...] | None = None
    paraphrase_sets: tuple[ParaphraseSet, ...] | None = None
    edit_records: tuple[EditRecord, ...] | None = None

    def require(self, needs: frozenset[Role], method: str) -> None:
        """Raises DetoxbenchError when a needed role is missing or empty."""
        for role in sorted(needs, key=lambda r: r.value):
            if not getattr(self, role.value):
                raise DetoxbenchError(
                    f"method '{method}' needs fit data in the role '{role.value}': give fit.{role.value}=FILE"
                )

    def examples(self) -> int:
        """How many examples there are over all roles (a cost)."""
        return sum(len(getattr(self, f.name) or ()) for f in fields(self))
