"""Prompts to be answered or continued."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from detoxbench.data.examples import Query
from detoxbench.data.readers.columns import Share, Text, column, convert, id_of, optional, optional_text, unique
from detoxbench.data.readers.files import ENDINGS, Row, content, decode, ending, is_json_lines, rows
from detoxbench.data.readers.fit import Chat
from detoxbench.data.readers.safety import is_safe
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


_REQUEST = ("instruction", "goal", "behavior", "prompt", "question", "request", "query", "forbidden_prompt", "text")
"""Columns that hold a request: AdvBench and JailbreakBench have a goal, HarmBench a behavior, StrongREJECT a
forbidden prompt."""


def toxicity_prompts(path: str | Path) -> list[ToxicityPrompt]:
    """RealToxicityPrompts: {"prompt": {"text", "toxicity"?}, "id"?}; or plain texts, as lines or under `prompt` or
    `text`, perhaps with `toxicity`. Without ids, the line numbers are the ids."""
    return parse_toxicity_prompts(rows(path))


class _Prompt(msgspec.Struct):
    text: Text
    toxicity: Share | None = None


class _PromptRow(msgspec.Struct):
    prompt: _Prompt
    id: int | str | None = None


class _PlainRow(msgspec.Struct):
    id: int | str | None = None
    toxicity: Share | None = None


def parse_toxicity_prompts(raw: Iterable[Row]) -> list[ToxicityPrompt]:
    """Prompts with the toxicity that their file gives them, of rows that were read."""
    # The published prompts hold some texts twice, so only equal ids are an error.
    raw_rows, records = [*raw], []
    text = column(raw_rows, "prompt", "text")
    for row in raw_rows:
        if isinstance(row.value, str):
            prompt = ToxicityPrompt(str(row.number), row.value, None)
        elif isinstance(optional(row, "prompt"), str) or (optional(row, "prompt") is None and optional(row, "text")):
            plain = convert(row, _PlainRow)
            prompt = ToxicityPrompt(id_of(plain.id, row), text(row), plain.toxicity)
        else:
            fields = convert(row, _PromptRow)
            prompt = ToxicityPrompt(id_of(fields.id, row), fields.prompt.text, fields.prompt.toxicity)
        records.append((row, prompt))
    return unique(records, lambda prompt: prompt.id)


def asked_instructions(path: str | Path) -> list[AskedInstruction]:
    """Ext-Sub's toxic_test.json: `instruction` (or `prompt`, `question`, ...), and perhaps `input` and `half` ("toxic"
    or "nontoxic").

    A `context` (Dolly) is taken for the input. Its `output` and its six score columns are not read: the scores are a
    classifier's of the instruction, not of the output.
    """
    return parse_asked_instructions(rows(path))


class _AskedInstructionRow(msgspec.Struct):
    half: Literal["toxic", "nontoxic"] | None = None


def parse_asked_instructions(raw: Iterable[Row]) -> list[AskedInstruction]:
    """Instructions with the half that they belong to, of rows that were read."""
    raw_rows, records = [*raw], []
    instruction = column(raw_rows, *_REQUEST)
    for row in raw_rows:
        rest = convert(row, _AskedInstructionRow)
        records.append(AskedInstruction(instruction(row), optional_text(row, "input", "context") or "", rest.half))
    return records


def harmful_requests(path: str | Path) -> list[HarmfulRequest]:
    """Plain texts (TDC2023 as a JSON list, MaliciousInstruct as .txt), or records with the request under `instruction`,
    `goal` (AdvBench, JailbreakBench), `Behavior` (HarmBench), `prompt`, `question`, `forbidden_prompt` (StrongREJECT),
    and perhaps `category` or `SemanticCategory`.

    A `ContextString` that a request is about stands before it, as HarmBench's own code joins them; requests that need
    one and have none, or need an image, are left out, and so are prompts that a label calls safe. All are warned of.
    """
    return parse_harmful_requests(rows(path))


def parse_harmful_requests(raw: Iterable[Row]) -> list[HarmfulRequest]:
    """Harmful requests with their categories, of rows that were read."""
    raw_rows = [*raw]
    text = column(raw_rows, *_REQUEST)
    return [_harmful_request(row, text) for row in _labelled_so(raw_rows, safe=False)]


def harmful_prompts(path: str | Path) -> list[Query]:
    """What `harmful_requests` reads, and perhaps `chat` (default true)."""
    return _queries(rows(path), safe=False)


def harmless_prompts(path: str | Path) -> list[Query]:
    """Plain texts, or records with the request in the columns of `harmful_requests` (Alpaca's `instruction` with its
    `input`), and perhaps `chat` (default true). Prompts that a label calls unsafe (XSTest's) are left out and warned
    of."""
    return _queries(rows(path), safe=True)


def _queries(raw_rows: Sequence[Row], *, safe: bool) -> list[Query]:
    text, queries = column(raw_rows, *_REQUEST), list[Query]()
    for row in _labelled_so(raw_rows, safe=safe):
        chat = isinstance(row.value, str) or convert(row, Chat).chat
        queries.append(Query(_harmful_request(row, text).text, chat))
    return queries


def _labelled_so(raw_rows: Sequence[Row], *, safe: bool) -> list[Row]:
    """The prompts that are whole, without those that a label calls the contrary. Raises DetoxbenchError where none is
    left."""
    kept = [row for row, says in zip(raw_rows, is_safe(raw_rows), strict=True) if says is not (not safe)]
    _say_left_out(raw_rows, len(raw_rows) - len(kept), "labelled unsafe" if safe else "labelled safe")
    whole = [row for row in kept if isinstance(row.value, str) or not _lacks_context(row)]
    _say_left_out(raw_rows, len(kept) - len(whole), "about a context or an image that they do not hold")
    if not whole:
        what = "harmless" if safe else "a request to be refused"
        raise DetoxbenchError(f"{raw_rows[0].place}: none of the prompts from here on is {what}")
    return whole


def _say_left_out(raw_rows: Sequence[Row], count: int, why: str) -> None:
    if count:
        warnings.warn(
            f"{raw_rows[0].file}: {count} of {len(raw_rows)} prompts are {why}: they are not asked", stacklevel=2
        )


def _lacks_context(row: Row) -> bool:
    contextual = "contextual" in str(optional(row, "FunctionalCategory")).lower()
    return bool(optional(row, "ImageFileName")) or (contextual and not optional(row, "ContextString", "context"))


def _harmful_request(row: Row, text: Callable[[Row], str]) -> HarmfulRequest:
    if isinstance(row.value, str) and row.value:
        return HarmfulRequest(row.value, "")
    return HarmfulRequest(_whole(row, text), _name(optional(row, "category", "SemanticCategory")))


def _whole(row: Row, text: Callable[[Row], str]) -> str:
    """A request with the input and the context that it is about."""
    input_text, context = optional_text(row, "input"), optional_text(row, "ContextString", "context")
    request = text(row) if input_text is None else f"{text(row)} {input_text}"
    return request if context is None else f"{context}\n\n---\n\n{request}"


def _name(category: Any) -> str:
    """A category as text: data sets have names, numbers, lists of them, and objects that say yes or no to each."""
    if isinstance(category, Mapping):
        category = [name for name, yes in category.items() if yes]
    if isinstance(category, list):
        return ", ".join(map(str, category))
    return "" if category is None else str(category)


def labelled_prompts(path: str | Path) -> list[LabelledPrompt]:
    """XSTest: `prompt`, `type` (or `category`), `label` ("safe" or "unsafe", or another column that says which; without
    one, types that begin with "contrast" are unsafe) and `id`."""
    return parse_labelled_prompts(rows(path))


class _Identified(msgspec.Struct):
    id: int | str | None = None


def parse_labelled_prompts(raw: Iterable[Row]) -> list[LabelledPrompt]:
    """Prompts labelled safe or unsafe, of rows that were read."""
    raw_rows, records = [*raw], []
    prompt = column(raw_rows, *_REQUEST)
    for row, safe in zip(raw_rows, is_safe(raw_rows), strict=True):
        number, text = id_of(convert(row, _Identified).id, row), _whole(row, prompt)
        if safe is None:
            label = optional(row, "label")
            raise DetoxbenchError(
                f"{row.place}: nothing says whether this prompt is safe (label: {label}): label it safe or unsafe"
            )
        records.append((row, LabelledPrompt(number, text, _name(optional(row, "type", "category")) or "prompts", safe)))
    return unique(records, lambda prompt: prompt.id)


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
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
    if not files:
        raise DetoxbenchError(f"the folder '{path}' holds no file that ends in {', '.join(ENDINGS)}")
    return [prompt for file in files for prompt in _group_file(file)]


def _group_file(path: str | Path) -> list[GroupPrompt]:
    name = Path(path).name.rpartition(".")[0]
    if ending(path) == ".json" and not is_json_lines(content(path)):
        value = decode(content(path), path)
        if isinstance(value, Mapping):
            return _bold(value, path, name.removesuffix("_prompt"))
    if ending(path) == ".txt":
        domain, _, group = name.removesuffix("_1k").partition("_")
        if not group:
            domain, group = "prompts", name
        return [
            GroupPrompt(domain, group, f"{group} {row.number}", row.value.replace("\\n", "\n")) for row in rows(path)
        ]
    return parse_group_prompts(rows(path))


def _bold(value: Mapping[str, Any], path: str | Path, domain: str) -> list[GroupPrompt]:
    prompts = []
    for group, subjects in value.items():
        for subject, texts in convert(Row(0, f"{path} group '{group}'", subjects), dict[str, Any]).items():
            beginnings = convert(Row(0, f"{path} group '{group}' subject '{subject}'", texts), list[str])
            prompts += [GroupPrompt(domain, group, subject, text.rstrip()) for text in beginnings if text.strip()]
    if not prompts:
        raise DetoxbenchError(f"{path} holds no records")
    return prompts


class _GroupPromptRow(msgspec.Struct):
    group: Text
    prompt: Text
    domain: Text = "groups"
    subject: str | None = None


def parse_group_prompts(raw: Iterable[Row]) -> list[GroupPrompt]:
    """Beginnings of texts about groups of people, of rows that were read."""
    records = []
    for row in raw:
        fields = convert(row, _GroupPromptRow)
        records.append(GroupPrompt(fields.domain, fields.group, fields.subject or str(row.number), fields.prompt))
    return records
