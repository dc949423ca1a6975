"""What methods learn from: the classes of examples, and all that one fit is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from detoxbench.errors import DetoxbenchError, did_you_mean


class Role(str):
    """The name of a kind of fit data: the field of `FitData`, and the key under `fit.` in the configuration.

    What there is to a role (what it means, its reader, its embedded form) is a row of `data.roles.ROLES`.
    """

    known: ClassVar[dict[str, Role]] = {}
    """Every role that there is, by name."""
    PARALLEL_PAIRS: ClassVar[Role]
    CIVIL_INSTRUCTIONS: ClassVar[Role]
    TOXIC_INSTRUCTIONS: ClassVar[Role]
    PARAPHRASE_SETS: ClassVar[Role]
    EDIT_RECORDS: ClassVar[Role]
    LABELLED_TEXTS: ClassVar[Role]
    PREFERENCES: ClassVar[Role]
    HARMFUL_PROMPTS: ClassVar[Role]
    HARMLESS_PROMPTS: ClassVar[Role]
    REFUSALS: ClassVar[Role]
    RETAIN_TEXTS: ClassVar[Role]

    def __new__(cls, name: str) -> Role:
        return cls.known.setdefault(name, super().__new__(cls, name))

    @property
    def value(self) -> str:
        """The name as a plain string."""
        return str(self)


Role.PARALLEL_PAIRS = Role("parallel_pairs")
Role.CIVIL_INSTRUCTIONS = Role("civil_instructions")
Role.TOXIC_INSTRUCTIONS = Role("toxic_instructions")
Role.PARAPHRASE_SETS = Role("paraphrase_sets")
Role.EDIT_RECORDS = Role("edit_records")
Role.LABELLED_TEXTS = Role("labelled_texts")
Role.PREFERENCES = Role("preferences")
Role.HARMFUL_PROMPTS = Role("harmful_prompts")
Role.HARMLESS_PROMPTS = Role("harmless_prompts")
Role.REFUSALS = Role("refusals")
Role.RETAIN_TEXTS = Role("retain_texts")


class Pair(NamedTuple):
    """The same content said rudely and politely."""

    toxic: str
    civil: str


class Instruction(NamedTuple):
    """A prompt with its response; `chat` is False where the response just continues the prompt as running text. A plain
    text is the response to an empty prompt."""

    prompt: str
    response: str
    chat: bool = True


class Query(NamedTuple):
    """A prompt alone; `chat` is False where it is the beginning of a running text."""

    prompt: str
    chat: bool = True


class LabelledText(NamedTuple):
    """A text, and whether people call it toxic."""

    text: str
    toxic: bool


class Preference(NamedTuple):
    """Two responses to one prompt, the `chosen` one the better; the prompt is empty where two whole texts are compared,
    and `chat` is False where a response just continues it as running text."""

    prompt: str
    chosen: str
    rejected: str
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


class FitData:
    """What a method may learn from, by role: `data.parallel_pairs` is a tuple of examples, or None where the role was
    not supplied. `FitData(parallel_pairs=(...), ...)` makes one."""

    if TYPE_CHECKING:  # so that type checkers know what the built-in roles hold
        parallel_pairs: tuple[Pair, ...] | None
        civil_instructions: tuple[Instruction, ...] | None
        toxic_instructions: tuple[Instruction, ...] | None
        paraphrase_sets: tuple[ParaphraseSet, ...] | None
        edit_records: tuple[EditRecord, ...] | None
        labelled_texts: tuple[LabelledText, ...] | None
        preferences: tuple[Preference, ...] | None
        harmful_prompts: tuple[Query, ...] | None
        harmless_prompts: tuple[Query, ...] | None
        refusals: tuple[Instruction, ...] | None
        retain_texts: tuple[Instruction, ...] | None

    def __init__(self, **by_role: Sequence[Any] | None) -> None:
        """Raises TypeError for a role that is not known."""
        if unknown := by_role.keys() - Role.known.keys():
            raise TypeError(f"no role '{min(unknown)}'{did_you_mean(min(unknown), Role.known)}")
        self.by_role: Mapping[str, tuple[Any, ...]] = {
            role: tuple(examples) for role, examples in by_role.items() if examples is not None
        }
        """The examples of every role that was supplied."""

    def __getattr__(self, role: str) -> tuple[Any, ...] | None:
        if role not in Role.known:
            raise AttributeError(f"no role '{role}'{did_you_mean(role, Role.known)}")
        return self.by_role.get(role)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FitData) and self.by_role == other.by_role

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.by_role.items())))

    def __repr__(self) -> str:
        return f"FitData({', '.join(f'{role}={examples!r}' for role, examples in self.by_role.items())})"

    def replace(self, **by_role: Sequence[Any] | None) -> FitData:
        """The same with the examples of these roles instead."""
        return FitData(**{**self.by_role, **by_role})

    def require(self, needs: frozenset[Role], method: str) -> None:
        """Raises DetoxbenchError when a needed role is missing or empty."""
        for role in sorted(needs):
            if not self.by_role.get(role):
                raise DetoxbenchError(f"method '{method}' needs fit data in the role '{role}': give fit.{role}=FILE")

    def examples(self) -> int:
        """How many examples there are over all roles (a cost)."""
        return sum(map(len, self.by_role.values()))
