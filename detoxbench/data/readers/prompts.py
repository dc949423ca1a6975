"""Prompts to be answered or continued."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from detoxbench.data.readers.files import Row, Share, Text, content, convert, decode, field, id_of, rows, unique
from detoxbench.errors import DetoxbenchError


class ToxicityPrompt(NamedTuple):
    """A text to be continued; `toxicity` is the published Perspective score of the prompt (0 to 1)."""

    id: str
    text: str
    toxicity: float | None


class AskedInstruction(NamedTuple):
    """An instruction, the input that it is about (or ""), and the half of its set, where the file names it."""

    instruction: str
    input: str
    half: str | None


class HarmfulRequest(NamedTuple):
    """A request that should be refused, and its category (or "")."""

    text: str
    category: str


class LabelledPrompt(NamedTuple):
    """A prompt that should be answered (`safe`) or not, of a type such as "homonyms"."""

    id: str
    text: str
    type: str
    safe: bool


class GroupPrompt(NamedTuple):
    """The beginning of a text about `subject` (a person, say), who belongs to `group`, which is of a `domain` of groups
    that are compared with each other ("gender")."""

    domain: str
    group: str
    subject: str
    text: str


def toxicity_prompts(path: str | Path) -> list[ToxicityPrompt]:
    """RealToxicityPrompts: {"prompt": {"text", "toxicity"?}, "id"?}. Without ids, the line numbers are the ids."""
    return parse_toxicity_prompts(rows(path))


class _Prompt(msgspec.Struct):
    text: Text
    toxicity: Share | None = None


class _PromptRow(msgspec.Struct):
    prompt: _Prompt
    id: int | str | None = None


def parse_toxicity_prompts(found: Iterable[Row]) -> list[ToxicityPrompt]:
    # The published prompts hold some texts twice, so only equal ids are an error.
    made = []
    for row in found:
        given = convert(row, _PromptRow)
        made.append((row, ToxicityPrompt(id_of(given.id, row), given.prompt.text, given.prompt.toxicity)))
    return unique(made, lambda prompt: prompt.id)


def asked_instructions(path: str | Path) -> list[AskedInstruction]:
    """Ext-Sub's toxic_test.json: `instruction` (or `prompt`), and perhaps `input` and `half` ("toxic" or "nontoxic").

    Its `output` and its six score columns are not read: the scores are a classifier's of the instruction, not of the
    output.
    """
    return parse_asked_instructions(rows(path))


class _AskedInstructionRow(msgspec.Struct):
    input: str = ""
    half: Literal["toxic", "nontoxic"] | None = None


def parse_asked_instructions(found: Iterable[Row]) -> list[AskedInstruction]:
    made = []
    for row in found:
        rest = convert(row, _AskedInstructionRow)
        made.append(AskedInstruction(field(row, "instruction", "prompt"), rest.input, rest.half))
    return made


def harmful_requests(path: str | Path) -> list[HarmfulRequest]:
    """Plain texts (TDC2023 as a JSON list, MaliciousInstruct as .txt), or records with the request under `instruction`,
    `goal` (AdvBench), `Behavior` (HarmBench), `prompt` or `question`, and perhaps `category` or `SemanticCategory`."""
    return parse_harmful_requests(rows(path))


def parse_harmful_requests(found: Iterable[Row]) -> list[HarmfulRequest]:
    return [_harmful_request(row) for row in found]


def _harmful_request(row: Row) -> HarmfulRequest:
    if isinstance(row.value, str) and row.value:
        return HarmfulRequest(row.value, "")
    text = field(row, "instruction", "goal", "Behavior", "prompt", "question")
    name = "category" if "category" in row.value else "SemanticCategory"
    return HarmfulRequest(text, field(row, name) if row.value.get(name) else "")


def labelled_prompts(path: str | Path) -> list[LabelledPrompt]:
    """XSTest: `prompt`, `type`, `label` ("safe" or "unsafe"; without the column, types that begin with "contrast" are
    unsafe) and `id`."""
    return parse_labelled_prompts(rows(path))


class _LabelledPromptRow(msgspec.Struct):
    prompt: Text
    type: Text
    label: Literal["safe", "unsafe"] | None = None
    id: int | str | None = None


def parse_labelled_prompts(found: Iterable[Row]) -> list[LabelledPrompt]:
    made = []
    for row in found:
        given = convert(row, _LabelledPromptRow)
        safe = given.label == "safe" if given.label else not given.type.startswith("contrast")
        made.append((row, LabelledPrompt(id_of(given.id, row), given.prompt, given.type, safe)))
    return unique(made, lambda prompt: prompt.id)


def group_prompts(path: str | Path) -> list[GroupPrompt]:
    """Beginnings of texts about groups, from one file or from all files of a folder.

    .json with an object is a file of BOLD: group -> subject -> beginnings; the domain is the file's name without
    "_prompt", and empty beginnings are left out (the published files hold five). .txt is a file of ToxiGen
    (hate_women_1k.txt): one prompt a line, its line breaks written as \\n; the domain is "hate" or "neutral".
    Everything else has rows with `group`, `prompt` and perhaps `domain` and `subject`.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return _group_file(path)
    files = sorted(
        file for file in folder.iterdir() if file.suffix.lower() in {".json", ".jsonl", ".csv", ".tsv", ".txt"}
    )
    if not files:
        raise DetoxbenchError(f"the folder '{path}' holds no .json, .jsonl, .csv, .tsv or .txt file")
    return [prompt for file in files for prompt in _group_file(file)]


def _group_file(path: str | Path) -> list[GroupPrompt]:
    name = Path(path).name.rpartition(".")[0]
    if str(path).lower().endswith(".json"):
        value = decode(content(path), path)
        if isinstance(value, Mapping):
            return _bold(value, path, name.removesuffix("_prompt"))
    if str(path).lower().endswith(".txt"):
        domain, _, group = name.removesuffix("_1k").partition("_")
        if not group:
            domain, group = "prompts", name
        return [
            GroupPrompt(domain, group, f"{group} {row.number}", row.value.replace("\\n", "\n")) for row in rows(path)
        ]
    return parse_group_prompts(rows(path))


def _bold(value: Mapping[str, Any], path: str | Path, domain: str) -> list[GroupPrompt]:
    made = []
    for group, given in value.items():
        for subject, texts in convert(Row(0, f"{path} group '{group}'", given), dict[str, Any]).items():
            beginnings = convert(Row(0, f"{path} group '{group}' subject '{subject}'", texts), list[str])
            made += [GroupPrompt(domain, group, subject, text.rstrip()) for text in beginnings if text.strip()]
    if not made:
        raise DetoxbenchError(f"{path} holds no records")
    return made


class _GroupPromptRow(msgspec.Struct):
    group: Text
    prompt: Text
    domain: Text = "groups"
    subject: str | None = None


def parse_group_prompts(found: Iterable[Row]) -> list[GroupPrompt]:
    made = []
    for row in found:
        given = convert(row, _GroupPromptRow)
        made.append(GroupPrompt(given.domain, given.group, given.subject or str(row.number), given.prompt))
    return made
