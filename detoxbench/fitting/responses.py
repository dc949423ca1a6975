"""Responses to prompts as token ids, and how likely a model finds them: what losses on responses are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from detoxbench.data.examples import Instruction
from detoxbench.fitting.token_losses import Batch, token_nlls
from detoxbench.lm import LanguageModel

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of positions that carry no loss."""


class Response(NamedTuple):
    """Token ids of prompt, response and end token, the same with the prompt `IGNORED`, and whether the end was cut."""

    ids: list[int]
    labels: list[int]
    cut: bool

    @property
    def empty(self) -> bool:
        """Whether no token of the response is left: its prompt may fill all the room."""
        return all(label == IGNORED for label in self.labels)


def encode(lm: LanguageModel, example: Instruction, max_length: int, *, end: bool = True) -> Response:
    """A response as it is trained on, cut at `max_length` and at the model's context; `end`: with the end token."""
    prompt, whole = lm.answered(example.prompt, example.response, example.chat)
    common = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    ids = [*whole, *(lm.end_of(example.chat) if end else ())]
    limit = min(max_length, lm.context or max_length)
    labels = [IGNORED] * common + ids[common:]
    return Response(ids[:limit], labels[:limit], len(ids) > limit)


def collate(responses: Sequence[Response], pad: int) -> Batch:
    """input_ids, attention_mask and labels of these rows, each [rows, longest], padded on the right."""
    import torch

    width = max(len(response.ids) for response in responses)

    def padded(values: list[int], value: int) -> list[int]:
        return values + [value] * (width - len(values))

    return {
        "input_ids": torch.tensor([padded(r.ids, pad) for r in responses]),
        "attention_mask": torch.tensor([padded([1] * len(r.ids), 0) for r in responses]),
        "labels": torch.tensor([padded(r.labels, IGNORED) for r in responses]),
    }


class Likelihoods(NamedTuple):
    """How likely the response of each row is."""

    nlls: Tensor
    """Of every token of a response, in nats: [tokens]."""
    rows: Tensor
    """The row of each: [tokens]."""
    counts: Tensor
    """Tokens of each row's response: [rows]."""

    @property
    def sums(self) -> Tensor:
        """log p(response given prompt), [rows]."""
        return -self.nlls.new_zeros(len(self.counts)).index_add(0, self.rows, self.nlls)

    @property
    def means(self) -> Tensor:
        """The same divided by the response's tokens, [rows]."""
        return self.sums / self.counts

    def part(self, begin: int, end: int) -> Likelihoods:
        """That of some rows."""
        chosen = (self.rows >= begin) & (self.rows < end)
        return Likelihoods(self.nlls[chosen], self.rows[chosen] - begin, self.counts[begin:end])


def likelihoods(model: Any, batch: Batch, *, through_head: bool = True) -> Likelihoods:
    """Of the labelled tokens of a batch as `collate` makes it, with a gradient, in fp32 (see `token_nlls`)."""
    targets = batch["labels"][:, 1:] != IGNORED
    return Likelihoods(*token_nlls(model, batch, targets, through_head=through_head), targets.sum(1))


@contextmanager
def untrained(model: Any) -> Iterator[None]:
    """Within, a model in training is the one it was before: its adapter is off, nothing is dropped out, and nothing has
    a gradient."""
    import torch

    training = model.training
    model.eval()
    try:
        with model.disable_adapter(), torch.no_grad():
            yield
    finally:
        model.train(training)
