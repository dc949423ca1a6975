"""The kinds of fit data: what each is, how it is read from a file, and its form in the embedded world."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import make_dataclass
from functools import cache
from typing import Any, NamedTuple

from detoxbench.config import runtime
from detoxbench.data import readers
from detoxbench.data.examples import Instruction, LabelledText, Pair, ParaphraseSet, Preference, Query, Role
from detoxbench.fable import world

SEED = 0
"""Seed of the embedded data. Fixed: the data is hashed into a run's identity and must not move with the run's seed."""


class RoleRow(NamedTuple):
    """All there is to a role: a new one is a row in `ROLES`."""

    meaning: str
    read: Callable[[str], Sequence[tuple[Any, ...]]]
    """The examples in a file, or in a data set of the hub."""
    embedded: Callable[[], Sequence[tuple[Any, ...]]]
    published: str = ""
    """Published files that are read as they are."""


ROLES: dict[Role, RoleRow] = {
    Role.PARALLEL_PAIRS: RoleRow(
        "rude and civil versions of one content",
        readers.pairs,
        lambda: [Pair(*pair) for pair in world.parallel_pairs(200, SEED)],
        "ParaDetox, DeStein",
    ),
    Role.CIVIL_INSTRUCTIONS: RoleRow(
        "prompts with civil responses",
        readers.civil_instructions,
        lambda: [Instruction(*row) for row in world.civil_instructions(600, SEED)],
        "Alpaca's form, ParaDetox (one side of its pairs, without prompts)",
    ),
    Role.TOXIC_INSTRUCTIONS: RoleRow(
        "prompts with toxic responses",
        readers.toxic_instructions,
        lambda: [Instruction(*row) for row in world.toxic_instructions(600, SEED)],
        "Alpaca's form, ParaDetox (one side of its pairs, without prompts)",
    ),
    Role.PARAPHRASE_SETS: RoleRow(
        "contents said in civil and in toxic ways",
        readers.paraphrase_sets,
        lambda: [ParaphraseSet(*row) for row in world.paraphrase_sets(240, SEED)],
        "contrastive perplexity, ParaDetox",
    ),
    Role.EDIT_RECORDS: RoleRow(
        "attacked prompts with safe and unsafe responses (SafeEdit's files)",
        readers.edit_records,
        lambda: readers.parse_edit_records(readers.embedded(world.edit_records(60, SEED), "edit record")),
        "SafeEdit",
    ),
    Role.LABELLED_TEXTS: RoleRow(
        "texts labelled toxic or civil",
        readers.labelled_texts,
        lambda: [LabelledText(text, bool(label)) for text, label in world.labelled(400, SEED, "seen")],
        "Jigsaw, Civil Comments, TweetEval, ParaDetox (both sides of its pairs)",
    ),
    Role.PREFERENCES: RoleRow(
        "prompts with a chosen and a rejected response",
        readers.preferences,
        lambda: [Preference(*row) for row in world.preferences(400, SEED)],
        "dpo_toxic (PPLM), HH-RLHF, UltraFeedback (binarized), circuit breakers, SafeEdit, ParaDetox (without prompts)",
    ),
    Role.HARMFUL_PROMPTS: RoleRow(
        "prompts that should be refused",
        readers.harmful_prompts,
        lambda: [Query(text) for text in world.harmful_prompts(128, SEED)],
        "AdvBench, HarmBench, MaliciousInstruct, TDC2023, JailbreakBench, XSTest (its unsafe half)",
    ),
    Role.HARMLESS_PROMPTS: RoleRow(
        "prompts that should be answered",
        readers.harmless_prompts,
        lambda: [Query(text) for text in world.harmless_prompts(128, SEED)],
        "Alpaca's form, XSTest (its safe half)",
    ),
    Role.REFUSALS: RoleRow(
        "prompts that should be refused, with refusals",
        readers.instructions,
        lambda: [Instruction(*row) for row in world.refusals(200, SEED)],
        "Alpaca's form",
    ),
    Role.RETAIN_TEXTS: RoleRow(
        "texts, or prompts with responses, whose behaviour is to be kept",
        readers.retain_texts,
        lambda: [Instruction(*row) for row in world.retain_texts(400, SEED)],
        "WikiText, Alpaca's form, ParaDetox (its civil side)",
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
    pickled = {"__reduce__": lambda spec: (_made_again, (dataclasses.asdict(spec),))}  # it travels between processes
    return make_dataclass("FitSpec", fields, frozen=True, kw_only=True, namespace=pickled)


def _made_again(values: dict[str, Any]) -> Any:
    return fit_spec()(**values)
