"""Log-likelihoods of given continuations: how likely the model finds a `Request.text` after its prompt, under the
interventions in force.

A text is read as it would be generated: its prompt goes through the same rewriting and chat template, ends at one
column in every row (so that hooks on generated positions leave it alone), and logit functions apply. The last bits
depend on the chunk that a request is read in, and on the passes that the chunk is cut into. Both are cut once for a
suite, and a run that was killed reads them again as they were. A pass that finds too little memory is made in halves;
the next one is tried whole again, so that what a pass is never depends on what was read before it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from detoxbench.engine.forward import head_inputs, next_logits
from detoxbench.engine.generation import Generated
from detoxbench.engine.logits import Place, asked, processed, require_finite_logits
from detoxbench.engine.streams import Streams
from detoxbench.errors import DetoxbenchError, NonFiniteError
from detoxbench.model.devices import double, fits_in_memory, running_sum, sent
from detoxbench.model.logit_state import HIDDEN, LOGLIKELIHOOD
from detoxbench.records import Request, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model

log = logging.getLogger("detoxbench")

CHUNK = 64
"""Requests read, and written, at a time."""
PASS_TOKENS = 8192
"""Padded tokens in one forward pass."""
PASS_LOGITS = {"cpu": 2**25}
PASS_LOGITS_ELSEWHERE = 2**30
"""Bytes of the logits of one forward pass, in float32, on a CPU and on any other device. On a CPU, fetching the memory
of more takes longer than a larger pass saves; elsewhere a pass holds them about three times over for a while."""
FLOAT32_BYTES = 4


class Window(NamedTuple):
    """One sequence that is read: `ids`, of which the first `context_length` (at least one) are the context, and the
    others the continuation whose likelihood is computed."""

    ids: list[int]
    context_length: int
    record: str = ""
    contexts: Mapping[int, Sequence[int]] = MappingProxyType({})
    """The context as each companion of the record gets it, by its number (`InForce.companions`)."""

    @property
    def longest_context(self) -> int:
        """The most tokens that any of its streams has before the continuation."""
        return max([self.context_length, *map(len, self.contexts.values())])

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
    the most probable one. A text with a token that a function in force leaves out of its candidates has no `nll`.
    Raises DetoxbenchError for a text that has no token of its own, and NonFiniteError like `window_nlls`.
    """
    if requests and not lm.in_force.reads_texts:
        raise DetoxbenchError(
            f"'{lm.name}' is under '{'+'.join(lm.in_force.methods)}', which acts only while texts are generated: a "
            "text that is given has no likelihood under it"
        )
    for start in range(0, len(requests), CHUNK):
        chunk = requests[start : start + CHUNK]
        if not any(r.id in wanted for r in chunk):
            continue
        parts = [continuation(lm, request) for request in chunk]
        for request, part in zip(chunk, parts, strict=True):
            if part.tokens < 1:
                raise DetoxbenchError(f"the text of request '{request.id}' has no token of its own after its prompt")
        read = iter(window_nlls(lm, [window for part in parts for window in part.all], outside=True))
        results = []
        for request, part in zip(chunk, parts, strict=True):
            windows, correction = [next(read) for _ in part.windows], [next(read) for _ in part.prompt_correction]
            nll = sum(nll for nll, _ in windows) - sum(nll for nll, _ in correction)
            known = nll if math.isfinite(nll) else None  # of a text outside, or of one whose prompt's end is
            sample = _sample(request, part.tokens, known, all(greedy for _, greedy in windows))
            results.append(Generated(sample, 0, part.truncated_prompt))
        yield [g for g in results if g.sample.id in wanted]


def _sample(request: Request, tokens: int, nll: float | None, greedy: bool) -> Sample:
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
    window = partial(_window, lm, request.record, _contexts(lm, request, whole[common:], prompt[common:]))
    # 2. What fits is read at once; the NLL of the prompt behind the common ids is subtracted.
    limit = lm.context
    if limit is None or len(whole) <= limit:
        correction = [window(prompt, common)] if common < len(prompt) else []
        return Continuation([window(whole, common)], correction, tokens, 0)
    # 3. A long text without a prompt is read in windows, each behind the same start.
    if not rendered:
        begin, text, step = whole[:common], whole[common:], limit - common
        parts = [[*begin, *text[i : i + step]] for i in range(0, len(text), step)]
        return Continuation([window(ids, common) for ids in parts], [], tokens, 0)
    # 4. A long prompt loses its beginning.
    truncated = len(whole) - limit
    context_length = max(len(prompt) - truncated, 1)
    return Continuation([window(whole[truncated:], context_length)], [], limit - context_length, truncated)


def _contexts(lm: Model, request: Request, text: Sequence[int], spanned: Sequence[int]) -> dict[int, Sequence[int]]:
    """What stands before the tokens of `text` in the stream of each companion. `spanned` are the tokens that the prompt
    alone has in the place of one that spans prompt and text."""
    contexts: dict[int, Sequence[int]] = {}
    for companion in lm.companions(request.record):
        rendered, special = lm.rendered(request.prompt, request.chat, request.record, companion)
        prompt, whole = lm.joined(rendered, request.text or "", special=special)
        before = len(whole) - len(text)
        if whole[before:] == text:
            context = whole[:before]
        else:  # behind this prompt it would be tokenised in another way: all streams read the row's own tokens
            context = prompt[: len(prompt) - len(spanned)]
        contexts[companion] = context or [lm.start_id]
    return contexts


def _window(
    lm: Model, record: str, contexts: Mapping[int, Sequence[int]], ids: list[int], context_length: int
) -> Window:
    """A window in which the context of every companion leaves room for the continuation, by losing its beginning."""
    room = None if lm.context is None else max(lm.context - (len(ids) - context_length), 1)
    fitting = {n: context if room is None else context[-room:] for n, context in contexts.items()}
    return Window(ids, context_length, record, fitting)


def window_nlls(lm: Model, windows: Sequence[Window], *, outside: bool = False) -> list[tuple[float, bool]]:
    """For each window the NLL of its continuation in nats, and whether each of those tokens was the most probable one.

    With `outside` the NLL is infinite where a function in force leaves a token out of its candidates. Raises
    NonFiniteError, naming method, text and token, for logits or other likelihoods that are NaN or infinite.
    """
    if lm.backend is not None:
        return lm.backend.nlls(windows, outside)
    results: list[tuple[float, bool]] = [(0.0, True)] * len(windows)
    for indices in _passes(lm, windows):
        for i, result in _read(lm, windows, indices, outside):
            results[i] = result
    return results


def _read(
    lm: Model, windows: Sequence[Window], indices: Sequence[int], outside: bool
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """`window_nlls` of the windows at `indices`, in one pass, or in halves where memory is too small for that."""
    found: list[tuple[float, bool]] = []
    if fits_in_memory(lambda: found.extend(_one_pass(lm, [windows[i] for i in indices], outside))):
        yield from zip(indices, found, strict=True)
        return
    if len(indices) == 1:
        raise DetoxbenchError(
            f"memory is too small for one text of {len(windows[indices[0]].ids)} tokens under '{lm.name}': end what "
            "else is on the device, choose model.dtype=bfloat16, or leave out long texts"
        )
    _tell_of_halving()
    middle = len(indices) // 2
    for half in (indices[:middle], indices[middle:]):
        yield from _read(lm, windows, half, outside)


@cache
def _tell_of_halving() -> None:
    log.warning("out of memory: given texts are read in halves")


def _passes(lm: Model, windows: Sequence[Window]) -> Iterator[list[int]]:
    """Which windows, by index, are read in one forward pass, the longest first."""
    logit_bytes = FLOAT32_BYTES * lm.architecture.vocabulary  # of one position of one stream
    most = PASS_LOGITS.get(lm.device.type, PASS_LOGITS_ELSEWHERE)
    batch: list[int] = []
    context = rest = 0  # the longest context of the batch, and the longest continuation
    for i in sorted(range(len(windows)), key=lambda i: (-len(windows[i].ids), -windows[i].context_length, i)):
        own_context, own_rest = windows[i].longest_context, len(windows[i].continuation)
        context, rest, other_context = max(context, own_context), max(rest, own_rest), context != own_context
        streams = (len(batch) + 1) * (1 + len(windows[i].contexts))
        full = (
            streams * (context + rest) > PASS_TOKENS
            or streams * (rest + 1) * logit_bytes > most
            # As in generation: a sliding window would count padding between a prefix and the prompt.
            or (lm.in_force.reserved and other_context)
        )
        if batch and full:
            yield batch
            batch, context, rest = [], own_context, own_rest
        batch.append(i)
    if batch:
        yield batch


def _one_pass(lm: Model, windows: Sequence[Window], outside: bool) -> list[tuple[float, bool]]:
    """`window_nlls` of windows that are read together."""
    import torch

    # 1. Ids and mask [streams, columns], the windows' own streams first; the last column of the context predicts the
    #    first token of the continuation.
    streams = Streams.of(lm, [w.record for w in windows])
    sequences = [
        (windows[row].contexts[n] if n else windows[row].ids[: windows[row].context_length], windows[row].continuation)
        for row, n in zip(streams.row, streams.companion, strict=True)
    ]
    ids, mask, context = _aligned(sequences)
    ids, mask = sent(ids, lm.device), sent(mask, lm.device)
    width = ids.shape[1] - context + 1
    with (
        torch.inference_mode(),
        lm.reading(streams.of_record, context, streams.companion, streams.beside(lm.in_force.compared)),
        head_inputs(lm, asked(lm, HIDDEN)) as heads,
    ):
        # 2. Logits [streams * width, vocabulary]. The last column predicts a token that is not given. Cutting it off
        #    would copy all the others, so it gets a target too, whose result is not used.
        every = next_logits(lm.model, ids, mask, last=width).flatten(0, 1)
        targets = torch.nn.functional.pad(ids[:, context:], (0, 1)).flatten()  # [streams * width]
        hidden = heads[0][:, -width:].flatten(0, 1) if heads else None
        places = _places(windows, width, hidden, _before(lm, every, targets, width))
        logits = processed(lm, every, streams.repeated(width), places)
        targets = targets[: len(logits)]  # [windows * width]
        # 3. Of each token its NLL, and whether it is the most probable one, [windows, width].
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none").view(-1, width)
        largest, likeliest = logits.max(-1)
        greedy = (likeliest == targets).view(-1, width)  # of equal ones the first, as in generation
    where = partial(_place, lm, windows, width)
    require_finite_logits(lm, largest, [w.record for w in windows for _ in range(width)], where)
    # 4. For each window the sum over its continuation, on the CPU: there each is read without waiting.
    nll, greedy = nll.cpu(), greedy.cpu()
    lengths = [len(w.continuation) for w in windows]
    results = [(float(nll[k, :n].double().sum()), bool(greedy[k, :n].all())) for k, n in enumerate(lengths)]
    may_be_outside = outside and bool(lm.in_force.logit_functions)
    for k, (total, _) in enumerate(results):
        if not math.isfinite(total) and not (total == math.inf and may_be_outside):
            first = int(nll[k, : lengths[k]].isfinite().logical_not().nonzero()[0])
            raise NonFiniteError(
                f"'{lm.name}' under method '{'+'.join(lm.in_force.methods) or 'none'}' gives no probability to "
                f"{where(k * width + first)}: it has no likelihood"
            )
    return results


def _before(lm: Model, logits: Tensor, targets: Tensor, width: int) -> Tensor | None:
    """log p of the text before each place in each stream, [streams * width], of logits [streams * width, vocabulary];
    None where nothing in force asks for it."""
    if not asked(lm, LOGLIKELIHOOD):
        return None
    logp = logits.float().log_softmax(-1).gather(1, targets[:, None]).view(-1, width)
    logp = double(logp)
    return (running_sum(logp) - logp).flatten()


def _places(windows: Sequence[Window], width: int, hidden: Tensor | None, likelihoods: Tensor | None) -> Place:
    """Of every window so many places in its text, `width`, are looked at."""

    def tokens(chosen: Sequence[int]) -> list[list[int]]:
        return [windows[i // width].ids[: windows[i // width].context_length + i % width] for i in chosen]

    return Place(list(range(width)) * len(windows), tokens, None, hidden, likelihoods)


def _aligned(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor, int]:
    """Token ids and mask, [sequences, columns], of (context, continuation) each, and at which column all continuations
    begin."""
    import torch

    context = max(len(before) for before, _ in sequences)
    rest = max(len(after) for _, after in sequences)
    ids = torch.zeros(len(sequences), context + rest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for k, (before, after) in enumerate(sequences):
        columns = slice(context - len(before), context + len(after))
        ids[k, columns] = torch.tensor([*before, *after])
        mask[k, columns] = 1
    return ids, mask, context


def _place(lm: Model, windows: Sequence[Window], width: int, index: int) -> str | None:
    """Which token the logits at `index` of [windows, width] predict, in words; None for padding."""
    window, position = windows[index // width], index % width
    if position >= len(window.continuation):
        return None
    return f"token {position + 1} of the text {lm.tokenizer.decode(window.continuation)[:40]!r}"
