"""Chat templates: a question as the text that a model was taught to answer.

A template is foreign code: it is rendered in jinja2's sandbox, with nothing from outside that could change a number.
The clock is a stated date, months and days are English whatever the locale. Imports no torch, so that `plan` renders
as a run does.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from jinja2.ext import Extension
    from jinja2.utils import Namespace

PROBE, ANSWER = "detoxbench-question", "detoxbench-answer"
"""Words that no template writes by itself."""
_GIVEN = frozenset({"messages", "add_generation_prompt"})
"""Variables that are the harness's to set."""
_OF_TOKENIZER = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]  # fmt: skip
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A model's template with all that enters it. `model` is named in errors."""

    source: str
    model: str
    special_tokens: Mapping[str, str]
    date: str
    """Today's date for a template that asks for it, YYYY-MM-DD."""
    args: Mapping[str, Any]
    """Variables of the template, such as enable_thinking."""

    def __post_init__(self) -> None:
        from jinja2 import TemplateSyntaxError, meta

        try:
            used = meta.find_undeclared_variables(_environment().parse(self.source)) - {"raise_exception", "namespace"}
        except TemplateSyntaxError as error:
            self._refuse(f"cannot be read: line {error.lineno}: {error}")
        for name in self.args:
            if name in _GIVEN:
                raise UsageError(f"model.template_args: '{name}' is set by the harness")
            if name not in used:
                known = sorted(used - _GIVEN - {"strftime_now"})
                raise UsageError(
                    f"model.template_args: the chat template of '{self.model}' has no variable '{name}'"
                    f"{did_you_mean(name, known)}; it has {', '.join(known) or 'none'}"
                )

    def prompt(self, question: str, before: Sequence[tuple[str, str]] = ()) -> str:
        """The text that asks `question`, behind the turns (role, text) that came `before`. Several system texts are one
        message, which stands in front of the first question where the template knows no system role.

        Raises DetoxbenchError where the template refuses a turn or leaves it out.
        """
        if not before:
            return self._rendered_whole(question)
        system = "\n\n".join(text for role, text in before if role == "system")
        turns = [(role, text) for role, text in [*before, ("user", question)] if role != "system"]
        if system and self.knows_system:
            turns = [("system", system), *turns]
        elif system:
            first = next(i for i, (role, _) in enumerate(turns) if role == "user")
            turns[first] = ("user", f"{system}\n\n{turns[first][1]}")
        return self._rendered(turns)

    @cached_property
    def knows_system(self) -> bool:
        """Whether the template has a place for a system message, which is not that of another role."""

        def first(role: str) -> str:
            try:
                return self.render(self._in_roles([(role, ANSWER), ("user", PROBE)]), ask=True)
            except DetoxbenchError:  # many refuse an unknown role, or two turns of one role
                return ""

        return ANSWER in first("system") and first("system") not in (first("user"), first("assistant"))

    def conversation(self, question: str, answer: str) -> str:
        """Both turns, up to where the next turn begins: what a judge of conversations reads. Raises like `prompt`."""
        return self._rendered_whole(question, answer)

    def _rendered_whole(self, *turns: str) -> str:
        return self._rendered(list(zip(("user", "assistant"), turns, strict=False)))

    def _rendered(self, turns: Sequence[tuple[str, str]]) -> str:
        text = self.render(self._in_roles(turns), ask=True)
        for _, turn in turns:
            if _without_blanks(turn) not in _without_blanks(text):
                self._refuse(f"leaves out a message or changes it: {turn[:40]!r} becomes {text[-60:]!r}")
        return text

    def _messages(self, *texts: str) -> list[dict[str, Any]]:
        return self._in_roles(list(zip(("user", "assistant"), texts, strict=False)))

    def _in_roles(self, turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        return [{"role": role, "content": self._content(text)} for role, text in turns]

    def render(self, messages: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
        """The conversation; with `ask`, up to where the model answers. Raises DetoxbenchError where it cannot."""
        values = {
            **self.special_tokens, "tools": None, "documents": None, "strftime_now": self._strftime,
            "date_string": self._strftime("%d %b %Y"), **self.args,
            "messages": messages, "add_generation_prompt": ask,
        }  # fmt: skip
        try:
            return _compiled(self.source).render(values)
        except Exception as error:  # of every kind: the template is a program of its author
            self._refuse(f"refuses the conversation: {' '.join(str(error).split()) or type(error).__name__}")

    @cached_property
    def turn(self) -> tuple[str, str]:
        """(text between a prompt and its answer, text behind the answer), as the template writes them.

        A template that shows neither: a blank, unless the prompt ends in one, and nothing.
        """
        prompt = self.prompt(PROBE)
        try:
            whole = self.render(self._messages(PROBE, ANSWER), ask=False)
        except DetoxbenchError:  # the template is for questions alone
            whole = ""
        between, answer, after = whole.removeprefix(prompt).partition(ANSWER)
        if not (answer and whole.startswith(prompt)):
            between = "" if prompt[-1:].isspace() else " "
        return between, after

    @cached_property
    def _in_parts(self) -> bool:
        """Whether a message's content is a list of parts and no text: found with one test question, used for all."""
        first: DetoxbenchError | None = None
        for content, in_parts in ((PROBE, False), ([{"type": "text", "text": PROBE}], True)):
            try:
                if PROBE in self.render([{"role": "user", "content": content}], ask=True):
                    return in_parts
            except DetoxbenchError as error:
                first = first or error
        if first:
            raise first
        self._refuse("leaves the question out, given as text and as a list of parts")

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self._in_parts else text

    def _strftime(self, form: str) -> str:
        return strftime(datetime.date.fromisoformat(self.date), form)

    def _refuse(self, what: str) -> NoReturn:
        raise DetoxbenchError(
            f"the chat template of '{self.model}' {what}: set model.chat_template=none, or to the name of another one"
        )


def in_use(
    templates: str | Mapping[str, str] | None,
    wanted: str,
    *,
    model: str,
    special_tokens: Mapping[str, str],
    date: str,
    args: Mapping[str, Any] | None,
) -> ChatTemplate | None:
    """The template that model.chat_template names, None for none. Raises UsageError where there is no such template,
    and where `args` are given and no template is in use."""
    source = chosen(templates, wanted)
    if source is not None:
        return ChatTemplate(source, model, special_tokens, date, args or {})
    if wanted not in {"auto", "none"}:
        raise UsageError(f"the tokenizer of '{model}' has no chat template '{wanted}': use auto or none")
    if args:
        raise UsageError(f"model.template_args is for a chat template, and '{model}' has none in use")
    return None


def chosen(templates: str | Mapping[str, str] | None, wanted: str) -> str | None:
    """The template among a tokenizer's that model.chat_template names, None for none."""
    if wanted == "none" or not templates:
        return None
    if isinstance(templates, str):
        return templates if wanted == "auto" else None
    return templates.get("default" if wanted == "auto" else wanted)


def in_folder(folder: Path) -> tuple[str | dict[str, str] | None, dict[str, str]]:
    """A checkpoint's templates and special tokens, from its files as transformers reads them."""
    config = _json(folder / "tokenizer_config.json")
    tokens = dict.fromkeys(_OF_TOKENIZER, "")
    for entries in (_json(folder / "special_tokens_map.json"), config):
        for name in _OF_TOKENIZER:
            value = entries.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            tokens[name] = value if isinstance(value, str) else tokens[name]
    templates = config.get("chat_template")
    if isinstance(templates, list):
        templates = {each["name"]: each["template"] for each in templates}
    files = dict(_template_files(folder))
    if files:
        templates = files["default"] if files.keys() == {"default"} else files
    return templates, tokens


def _template_files(folder: Path) -> Iterator[tuple[str, str]]:
    if (default := folder / "chat_template.jinja").is_file():
        yield "default", default.read_text("utf-8")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        yield file.stem, file.read_text("utf-8")


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise DetoxbenchError(f"'{file}' cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def strftime(date: datetime.date, form: str) -> str:
    """`date` at midnight in `form`, names in English whatever the locale of the process."""
    names = {
        "a": _DAYS[date.weekday()][:3], "A": _DAYS[date.weekday()], "b": _MONTHS[date.month - 1][:3], "p": "AM",
        "B": _MONTHS[date.month - 1], "x": "%m/%d/%y", "X": "%H:%M:%S", "c": "%Y-%m-%d %H:%M:%S",
    }  # fmt: skip
    names["h"] = names["b"]
    form = re.sub(r"%(.)", lambda match: names.get(match[1], match[0]), form)
    return datetime.datetime.combine(date, datetime.time()).strftime(form)


def _without_blanks(text: str) -> str:
    return "".join(text.split())


@cache
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


@cache
def _environment() -> Environment:
    """As transformers sets it up (utils/chat_template_utils.py), without its clock."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    extensions = [_generation_tag(), loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "namespace": _plain_namespace()}
    return environment


def _generation_tag() -> type[Extension]:
    from jinja2.ext import Extension

    class Generation(Extension):
        """{% generation %} marks the answer's part; it is text like any other here."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _plain_namespace() -> type[Namespace]:
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    class PlainNamespace(Namespace):
        """A namespace whose attributes cannot be the interpreter's."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a chat template sets the attribute {name!r}")
            super().__setitem__(name, value)

    return PlainNamespace


def _raise_exception(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without jinja2's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
