"""Texts as tokens and back, so that a text joined to its prompt is the text that the model saw.

Every text that enters a model is encoded here, and every text that comes out is decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoded(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int]:
    """Token ids of a text that another text follows.

    With `special`, the tokens that the tokenizer puts in front stand there once, also where the text itself begins with
    them. Those that it puts behind, such as an end token, are left out, because a model continues from here.
    """
    ids = [int(i) for i in tokenizer(text, add_special_tokens=special)["input_ids"]]
    if not special:
        return ids
    front, behind = _added(tokenizer)
    ids = ids[: len(ids) - len(behind)] if behind and ids[-len(behind) :] == behind else ids
    doubled = front and ids[: 2 * len(front)] == [*front, *front]
    return ids[len(front) :] if doubled else ids


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts in front of a text and behind it."""
    whole, plain = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (True, False))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def written(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[str]:
    """The text that each (prompt, new tokens) adds to its prompt: decode(prompt + new) less decode(prompt).

    SentencePiece decoders would drop the first blank of new tokens that are decoded alone. Where new tokens change the
    end of the prompt's text (they complete a character), what they add begins there.
    """
    return [_less(tokenizer, before, [*prompt, *new]) for (prompt, new), before in _befores(tokenizer, pairs)]


def _befores(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[tuple[Sequence[int], Sequence[int]], str]]:
    """Each pair with its prompt's text; equal prompts are decoded once."""
    distinct = {tuple(prompt): "" for prompt, _ in pairs}
    decoded = {prompt: _text(tokenizer, prompt) for prompt in distinct}
    return [(pair, decoded[tuple(pair[0])]) for pair in pairs]


def _less(tokenizer: PreTrainedTokenizerBase, before: str, ids: Sequence[int], *, skip_special: bool = True) -> str:
    whole = _text(tokenizer, ids, skip_special=skip_special)
    if whole.startswith(before):
        return whole[len(before) :]
    return whole[next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole)) :]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, skip_special: bool = True) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False))


# ------------------------------------------------------------------------------------------------------------ thinking


class Marks(NamedTuple):
    """What a model writes before and after its thinking."""

    open: str
    close: str


_TAG = re.compile(r"<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\]")


def thinking_marks(setting: str, tokenizer: PreTrainedTokenizerBase, template: str | None) -> Marks | None:
    """The marks that model.thinking means: none, "OPEN CLOSE", or (auto) a pair of tags about thinking in the
    chat template or among the tokenizer's added tokens, such as <think> and </think>."""
    if setting == "none":
        return None
    if setting != "auto":
        return Marks(*setting.split())
    tags = [*_TAG.findall(template or ""), *tokenizer.get_added_vocab()]
    names = [tag for tag in dict.fromkeys(tags) if re.search("think|thought|reason", tag, re.IGNORECASE)]
    pairs = (Marks(tag, close) for tag in names for close in _closings(tag) if close in names)
    return next(pairs, None)


def _closings(tag: str) -> list[str]:
    """What may close `tag`: </x> for <x>, <|/x|> for <|x|>, end for begin and for start."""
    swaps = [("begin", "end"), ("BEGIN", "END"), ("start", "end"), ("START", "END")]
    ends = [tag.replace(old, new, 1) for old, new in swaps if old in tag]
    slashed = [f"{tag[:k]}/{tag[k:]}" for k in (1, 2) if "/" not in tag]
    return ends + slashed


class Answer(NamedTuple):
    """What was written without its thinking, and (where there was any) with it and its marks."""

    text: str
    full: str | None


def answers(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], marks: Marks | None
) -> list[Answer]:
    """`written`, without what stands between the `marks`; see `without_thinking`."""
    texts = written(tokenizer, pairs)
    if marks is None:
        return [Answer(text, None) for text in texts]
    return [_answer(tokenizer, prompt, new, text, marks) for (prompt, new), text in zip(pairs, texts, strict=True)]


def _answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], new: Sequence[int], text: str, marks: Marks
) -> Answer:
    before = _text(tokenizer, prompt, skip_special=False)
    full = _less(tokenizer, before, [*prompt, *new], skip_special=False)
    left = without_thinking(full, marks, opened=before.rstrip().endswith(marks.open))
    if left is None:
        return Answer(text, None)
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    of_marks = [token for token in special if token in marks.open or token in marks.close]
    return Answer(_without(left, special), _without(full, [t for t in special if t not in of_marks]))


def without_thinking(text: str, marks: Marks, *, opened: bool) -> str | None:
    """The text outside the marks, and None where there are none. `opened`: the prompt has ended in the first mark.

    Thinking without a closing mark goes to the end of the text. Thinking without an opening mark begins with the text.
    """
    if not opened and marks.open not in text and marks.close not in text:
        return None
    head, closed, rest = text.partition(marks.close)
    if opened or (closed and marks.open not in head):
        text = rest
    block = f"{re.escape(marks.open)}.*?{re.escape(marks.close)}"
    return re.sub(block, "", text, flags=re.DOTALL).partition(marks.open)[0].lstrip()


def _without(text: str, parts: Sequence[str]) -> str:
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, "")
    return text
