"""Log-likelihoods of given continuations: how likely the model finds a `Request.text` after its prompt, under the
interventions in force.

A text is read as it would be generated: its prompt goes through the same rewriting and chat template, ends at one
column in every row (so that hooks on generated positions leave it alone), and logit functions apply. The last bits
depend on the chunk that a request is read in, so chunks are cut once for a suite, and a run that was killed reads them
again as they were.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from detoxbench.engine.forward import next_logits
from detoxbench.engine.generation import Generated
from detoxbench.engine.logits import processed, require_finite_logits
from detoxbench.errors import DetoxbenchError, NonFiniteError
from detoxbench.records import Request, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model

CHUNK = 64
"""Requests read, and written, at a time."""
PASS_TOKENS = 8192
"""Padded tokens in one forward pass."""
PASS_LOGITS_CPU = 2**23
"""Logits of one forward pass on a CPU: of more, fetching the memory takes longer than a larger pass saves."""


class Window(NamedTuple):
    """One sequence that is read: `ids`, of which the first `context_length` (at least one) are the context, and the
    others the continuation whose likelihood is computed."""

    ids: list[int]
    context_length: int
    record: str = ""

    @property
    def continuation(self) -> list[int]:
        """The ids behind the context."""
        return self.ids[self.context_length :]


class Continuation(NamedTuple):
    """What is read for one request, whose NLL is the sum over `windows` less that over `prompt_correction`."""

    windows: list[Window]
    prompt_correction: list[Window]
    """Where a token spans prompt and text: the part of the prompt that is read with the text; its NLL is subtracted."""
    tokens: int
    """Tokens of the text that are read."""
    truncated_prompt: int
    """Tokens that the prompt lost to fit the model's context."""

    @property
    def all(self) -> list[Window]:
        """The windows, then the prompt correction."""
        return [*self.windows, *self.prompt_correction]


NOTHING = Continuation([], [], 0, 0)


def loglikelihoods(lm: Model, requests: Sequence[Request], wanted: Container[str]) -> Iterator[list[Generated]]:
    """Chunk by chunk, the samples of those `requests` (all have a text) whose id is `wanted`.

    `nll` is -log p(text | prompt) in nats, over all of the text's tokens: prompt and text are tokenised together, and
    where a token spans both, NLL(prompt + text) - NLL(prompt) is taken. A text without a prompt follows the start
    token; one longer than the context is read in windows, each behind a new start token. Other inputs that are
    too long lose their beginning, which is counted (`Generated.truncated_prompt`). `greedy` says that every token was
    the most probable one. Raises DetoxbenchError for a text that has no token of its own, and NonFiniteError like
    `window_nlls`.
    """
    for start in range(0, len(requests), CHUNK):
        chunk = requests[start : start + CHUNK]
        if not any(r.id in wanted for r in chunk):
            continue
        parts = [continuation(lm, request) for request in chunk]
        for request, part in zip(chunk, parts, strict=True):
            if part.tokens < 1:
                raise DetoxbenchError(f"the text of request '{request.id}' has no token of its own after its prompt")
        read = iter(window_nlls(lm, [window for part in parts for window in part.all]))
        results = []
        for request, part in zip(chunk, parts, strict=True):
            windows, correction = [next(read) for _ in part.windows], [next(read) for _ in part.prompt_correction]
            nll = sum(nll for nll, _ in windows) - sum(nll for nll, _ in correction)
            sample = _sample(request, part.tokens, nll, all(greedy for _, greedy in windows))
            results.append(Generated(sample, 0, part.truncated_prompt))
        yield [g for g in results if g.sample.id in wanted]


def _sample(request: Request, tokens: int, nll: float, greedy: bool) -> Sample:
    return Sample(
        id=request.id,
        record=request.record,
        kind=request.kind,
        tags=request.tags,
        sample=0,
        prompt=request.prompt,
        text=request.text or "",
        stop="given",
        tokens=tokens,
        nll=nll,
        greedy=greedy,
    )


def continuation(lm: Model, request: Request) -> Continuation:
    """What is read for a request: nothing, of no tokens, where its text has none of its own after the prompt."""
    # 1. The prompt's ids, those of prompt and text together, and how many are the same at their beginning.
    rendered, special = lm.rendered(request.prompt, request.chat, request.record)
    prompt, whole = lm.joined(rendered, request.text or "", special=special)
    common = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    tokens = len(whole) - len(prompt)
    if tokens < 1:
        return NOTHING
    if common == 0:  # the first token spans prompt and text: both follow the start token
        prompt, whole, common = [lm.start_id, *prompt], [lm.start_id, *whole], 1
    # 2. What fits is read at once; the NLL of the prompt behind the common ids is subtracted.
    limit = lm.context
    if limit is None or len(whole) <= limit:
        correction = [Window(prompt, common, request.record)] if common < len(prompt) else []
        return Continuation([Window(whole, common, request.record)], correction, tokens, 0)
    # 3. A long text without a prompt is read in windows, each behind the same start.
    if not rendered:
        begin, text, step = whole[:common], whole[common:], limit - common
        parts = [[*begin, *text[i : i + step]] for i in range(0, len(text), step)]
        return Continuation([Window(ids, common, request.record) for ids in parts], [], tokens, 0)
    # 4. A long prompt loses its beginning.
    truncated = len(whole) - limit
    context_length = max(len(prompt) - truncated, 1)
    window = Window(whole[truncated:], context_length, request.record)
    return Continuation([window], [], limit - context_length, truncated)


def window_nlls(lm: Model, windows: Sequence[Window]) -> list[tuple[float, bool]]:
    """For each window the NLL of its continuation in nats, and whether each of those tokens was the most probable one.

    Raises NonFiniteError, naming method, text and token, for logits or a likelihood that are NaN or infinite.
    """
    results: list[tuple[float, bool]] = [(0.0, True)] * len(windows)
    for indices in _passes(lm, windows):
        for i, result in zip(indices, _one_pass(lm, [windows[i] for i in indices]), strict=True):
            results[i] = result
    return results


def _passes(lm: Model, windows: Sequence[Window]) -> Iterator[list[int]]:
    """Which windows, by index, are read in one forward pass, the longest first."""
    vocabulary = lm.architecture.vocabulary if lm.device.type == "cpu" else 0
    batch: list[int] = []
    context = rest = 0  # the longest context of the batch, and the longest continuation
    for i in sorted(range(len(windows)), key=lambda i: (-len(windows[i].ids), -windows[i].context_length, i)):
        own_context, own_rest = windows[i].context_length, len(windows[i].ids) - windows[i].context_length
        context, rest, other_context = max(context, own_context), max(rest, own_rest), context != own_context
        full = (
            (len(batch) + 1) * (context + rest) > PASS_TOKENS
            or (len(batch) + 1) * (rest + 1) * vocabulary > PASS_LOGITS_CPU
            # As in generation: a sliding window would count padding between a prefix and the prompt.
            or (lm.in_force.reserved and other_context)
        )
        if batch and full:
            yield batch
            batch, context, rest = [], own_context, own_rest
        batch.append(i)
    if batch:
        yield batch


def _one_pass(lm: Model, windows: Sequence[Window]) -> list[tuple[float, bool]]:
    """`window_nlls` of windows that are read together."""
    import torch

    # 1. Ids and mask [windows, columns]; the last column of the context predicts the first token of the continuation.
    ids, mask, context = _aligned(windows)
    ids, mask = ids.to(lm.device), mask.to(lm.device)
    width = ids.shape[1] - context + 1
    with torch.inference_mode(), lm.reading([w.record for w in windows], context):
        # 2. Logits [windows * width, vocabulary]. The last column predicts a token that is not given. Cutting it off
        #    would copy all the others, so it gets a target too, whose result is not used.
        logits = processed(lm, next_logits(lm.model, ids, mask, last=width).flatten(0, 1))
        targets = torch.nn.functional.pad(ids[:, context:], (0, 1)).flatten()
        # 3. Of each token its NLL, and whether it is the most probable one, [windows, width].
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none").view(-1, width)
        largest, likeliest = logits.max(-1)
        greedy = (likeliest == targets).view(-1, width)  # of equal ones the first, as in generation
    where = partial(_place, lm, windows, width)
    require_finite_logits(lm, largest, [w.record for w in windows for _ in range(width)], where)
    # 4. For each window the sum over its continuation.
    lengths = [len(w.ids) - w.context_length for w in windows]
    results = [(float(nll[k, :n].double().sum()), bool(greedy[k, :n].all())) for k, n in enumerate(lengths)]
    for k, (total, _) in enumerate(results):
        if not math.isfinite(total):
            first = int(nll[k, : lengths[k]].isfinite().logical_not().nonzero()[0])
            raise NonFiniteError(
                f"'{lm.name}' under method '{'+'.join(lm.in_force.methods) or 'none'}' gives no probability to "
                f"{where(k * width + first)}: it has no likelihood"
            )
    return results


def _aligned(windows: Sequence[Window]) -> tuple[Tensor, Tensor, int]:
    """Token ids and mask, [windows, columns], and at which column all continuations begin."""
    import torch

    context = max(w.context_length for w in windows)
    rest = max(len(w.ids) - w.context_length for w in windows)
    ids = torch.zeros(len(windows), context + rest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for k, window in enumerate(windows):
        begin = context - window.context_length
        ids[k, begin : begin + len(window.ids)] = torch.tensor(window.ids)
        mask[k, begin : begin + len(window.ids)] = 1
    return ids, mask, context


def _place(lm: Model, windows: Sequence[Window], width: int, index: int) -> str | None:
    """Which token the logits at `index` of [windows, width] predict, in words; None for padding."""
    window, position = windows[index // width], index % width
    if position >= len(window.continuation):
        return None
    return f"token {position + 1} of the text {lm.tokenizer.decode(window.continuation)[:40]!r}"
