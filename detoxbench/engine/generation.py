"""The generation engine: requests in, texts out, each result independent of the batch it was made in.

Why a sample does not depend on its neighbours:
- Sampling is Gumbel-max: the next token is argmax(logit / temperature + Gumbel noise) over the tokens that top-k and
  top-p leave, which draws from their softmax. The noise is a hash of (seed, request id, sample index, step, token id),
  so there is no generator whose state a batch could shift, and the same request gets the same noise under every
  intervention (paired comparisons).
- What is left is rounding: in another batch shape the same row's logits differ in the last bits. A token whose lead
  over the runner-up (or whose place inside the nucleus) is smaller than `tie_tolerance` is therefore decided again on
  its row computed alone, which depends on nothing but the row. So results are exact where all arithmetic is float32.
- In lower precision near-ties are frequent, so they are only counted (`Generated.near_ties`). There the batches must
  not change: they are planned over all requests, also over those whose samples are done already.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Container, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from detoxbench.config import GenSpec
from detoxbench.engine.beginnings import Prompt, beginnings, distinct
from detoxbench.engine.forward import head_inputs, next_logits
from detoxbench.engine.kv_cache import Cache
from detoxbench.engine.logits import Place, asked, processed
from detoxbench.engine.lookahead import Lookahead
from detoxbench.engine.next_token import next_tokens, require_tokens
from detoxbench.engine.sampling import noise_key, pick
from detoxbench.engine.share import ALONE, Share
from detoxbench.engine.streams import Streams
from detoxbench.errors import DetoxbenchError
from detoxbench.model import precision
from detoxbench.model.devices import double, fits_in_memory, sent
from detoxbench.model.in_force import Outcome, OutputFunction
from detoxbench.model.logit_state import AFTER, HIDDEN, LOGLIKELIHOOD
from detoxbench.model.tokens import answers
from detoxbench.records import Request, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model

log = logging.getLogger("detoxbench")

LEAVE = 8
"""Finished rows are removed from a batch once they are one in so many, since this copies the cache of all others."""


class Generated(msgspec.Struct, frozen=True, rename={"near_ties": "contested", "truncated_prompt": "cut"}):
    """A sample and how it came about. In files, the last two fields have the names that they are renamed to."""

    sample: Sample
    near_ties: int
    """How many of its tokens were near-ties."""
    truncated_prompt: int
    """How many tokens its prompt lost to fit the model's context."""


@dataclass
class _Row:
    """One sample while it is generated. `prompts` holds the token ids of its prompt as each of its streams gets it, by
    the number of the companion (0: its own), `key` the 64-bit noise key."""

    request: Request
    sample: int
    prompts: dict[int, list[int]]
    truncated_prompt: int
    key: int
    new: list[int] = field(default_factory=list)
    near_ties: int = 0
    done: bool = False

    @property
    def prompt(self) -> list[int]:
        """The token ids of its own prompt."""
        return self.prompts[0]


def generate(
    lm: Model,
    requests: Sequence[Request],
    gen: GenSpec,
    seed: int,
    *,
    ends: Set[int] | None = None,
    done: Container[tuple[str, int]] = (),
    share: Share = ALONE,
) -> Iterator[list[Generated]]:
    """Yield finished samples, batch by batch, longest prompts first.

    `ends` are the tokens that end a text, by default the model's. Samples that are `done` already, by (request id,
    sample), are not yielded. A batch of such samples alone is skipped; a batch that holds others too is run whole, so
    that a sample always has the same neighbours. Of the batches that are left, `share` are run here.

    A batch holds at most `gen.batch_tokens` tokens (prompt and new, over all streams of its rows) and at least one row;
    one that finds too little memory is run in halves. Prompts that leave no room for `gen.max_new_tokens` in the
    model's context lose their beginning. Raises DetoxbenchError where `max_new_tokens` alone does not fit.
    """
    ends = lm.eos_ids if ends is None else ends
    if lm.in_force.outputs:
        yield from _chosen(lm, requests, gen, seed, ends, done, share)
        return
    for batch in share.of(_left(lm, _rows(lm, requests, gen, seed), gen, done)):
        yield from _finished(lm, batch, gen, ends, done)


def _chosen(
    lm: Model,
    requests: Sequence[Request],
    gen: GenSpec,
    seed: int,
    ends: Set[int],
    done: Container[tuple[str, int]],
    share: Share,
) -> Iterator[list[Generated]]:
    """`generate` where choices among whole texts are in force: sample k is made of the candidates k c to k c + c - 1,
    each a sample with noise of its own. Several candidates are drawn, also where one text would be the likeliest."""
    outputs = lm.in_force.outputs
    count = math.prod(function.candidates for function in outputs)
    more = dataclasses.replace(gen, n=gen.n * count, do_sample=gen.do_sample or count > 1)
    waiting: dict[tuple[str, int], dict[int, Generated]] = {}  # the candidates of each sample that there are
    # A sample whose candidates lie in several batches is made where the first of them is.
    left = _left(lm, _rows(lm, requests, more, seed), more, _DoneCandidates(done, count))
    firsts = [row for batch in share.of(left) for row in batch if row.sample % count == 0]
    own = {key for row in firsts if (key := (row.request.id, row.sample // count)) not in done}
    for batch in left:
        for part in _finished(lm, batch, more, ends, _OtherCandidates(own, count)):
            for made in part:
                key = made.sample.id, made.sample.sample // count
                waiting.setdefault(key, {})[made.sample.sample % count] = made
            whole = {key: [of[i] for i in range(count)] for key, of in waiting.items() if len(of) == count}
            waiting = {key: of for key, of in waiting.items() if key not in whole}
            if whole:
                yield _decided(outputs, whole)


@dataclass(frozen=True)
class _DoneCandidates(Container[tuple[str, int]]):
    """The candidates of the samples that are done, `count` each."""

    samples: Container[tuple[str, int]]
    count: int

    def __contains__(self, candidate: Any) -> bool:
        request, number = candidate
        return (request, number // self.count) in self.samples


class _OtherCandidates(_DoneCandidates):
    """The candidates of all samples but these."""

    def __contains__(self, candidate: Any) -> bool:
        return not super().__contains__(candidate)


def _decided(
    outputs: Sequence[OutputFunction], candidates: Mapping[tuple[str, int], list[Generated]]
) -> list[Generated]:
    """What becomes of the candidates of each sample, through one choice after the other."""
    left = dict(candidates)
    for function in outputs:
        n = function.candidates
        groups = [(key, of[i : i + n]) for key, of in left.items() for i in range(0, len(of), n)]
        outcomes = function.decide(
            [group[0].sample.prompt for _, group in groups], [[g.sample.text for g in group] for _, group in groups]
        )
        left = {key: [] for key in left}
        for (key, group), outcome in zip(groups, outcomes, strict=True):
            left[key].append(_outcome(group, outcome))
    return [
        msgspec.structs.replace(g, sample=msgspec.structs.replace(g.sample, sample=k)) for (_, k), (g,) in left.items()
    ]


def _outcome(group: Sequence[Generated], outcome: Outcome) -> Generated:
    """The chosen one. A near-tie in any of them could have made it another one."""
    chosen = group[outcome.chosen]
    sample = chosen.sample
    if outcome.text is not None:
        full = sample.text if sample.full_text is None else sample.full_text
        sample = msgspec.structs.replace(sample, text=outcome.text, full_text=full)
    return Generated(sample, sum(g.near_ties for g in group), chosen.truncated_prompt)


def _left(lm: Model, rows: list[_Row], gen: GenSpec, done: Container[tuple[str, int]]) -> list[list[_Row]]:
    """The batches that hold a sample which is not `done`."""
    return [b for b in _batches(lm, rows, gen) if any((row.request.id, row.sample) not in done for row in b)]


def _batches(lm: Model, rows: list[_Row], gen: GenSpec) -> Iterator[list[_Row]]:
    streams = max((len(row.prompts) for row in rows), default=1)
    longer = max((len(prompt) - len(row.prompt) for row in rows for prompt in row.prompts.values()), default=0)
    while rows:
        width = len(rows[0].prompt) + longer + gen.max_new_tokens  # the first is the longest
        size = min(len(rows), max(1, gen.batch_tokens // (streams * width)))
        if lm.in_force.reserved:  # a sliding window would count padding between a prefix and the prompt
            size = next((i for i in range(size) if len(rows[i].prompt) < len(rows[0].prompt)), size)
        yield rows[:size]
        rows = rows[size:]


def _finished(
    lm: Model, batch: list[_Row], gen: GenSpec, end_ids: Set[int], done: Container[tuple[str, int]]
) -> Iterator[list[Generated]]:
    new = [row for row in batch if (row.request.id, row.sample) not in done]
    if not new:
        return
    write = partial(_run, lm) if lm.backend is None else lm.backend.write
    if fits_in_memory(lambda: write(batch, gen, end_ids)):
        texts = answers(lm.tokenizer, [(row.prompt, row.new) for row in new], lm.thinking)
        yield [
            Generated(_sample(lm, row, *text), row.near_ties, row.truncated_prompt)
            for row, text in zip(new, texts, strict=True)
        ]
        return
    if len(batch) == 1:
        raise DetoxbenchError(
            f"memory is too small for request '{batch[0].request.id}' alone ({len(batch[0].prompt)} tokens and "
            f"{gen.max_new_tokens} new ones): end what else is on the device, choose model.dtype=bfloat16, or lower "
            "gen.max_new_tokens"
        )
    _forget(batch)
    _tell_of_halving(gen.batch_tokens)
    # The next batches are tried whole again: what a batch is must not depend on what was run before a kill.
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        yield from _finished(lm, half, gen, end_ids, done)


@cache
def _tell_of_halving(batch_tokens: int) -> None:
    log.warning(
        "out of memory: batches are run in halves; a smaller gen.batch_tokens (now %d) saves the tries", batch_tokens
    )


def _rows(lm: Model, requests: Sequence[Request], gen: GenSpec, seed: int) -> list[_Row]:
    context = lm.context
    room = None if context is None else context - gen.max_new_tokens
    if room is not None and room < 1:
        raise DetoxbenchError(
            f"gen.max_new_tokens={gen.max_new_tokens} leaves no room for a prompt in the context of '{lm.name}' "
            f"({context} tokens): lower it"
        )
    rows = []
    for request in requests:
        prompts, truncated = {}, 0
        for companion in (0, *lm.companions(request.record)):
            ids = lm.encode(request.prompt, request.chat, request.record, companion)
            lost = 0 if room is None else max(0, len(ids) - room)
            prompts[companion], truncated = ids[lost:], max(truncated, lost)
        rows += [_Row(request, k, prompts, truncated, noise_key(seed, request.id, k)) for k in range(gen.n)]
    # Samples of one prompt stay together, so that it is prefilled once.
    rows.sort(key=lambda row: (-len(row.prompt), row.prompt, row.request.id, row.sample))
    return rows


@dataclass
class _Batch:
    """The rows that are generated together, and what is known of them on the way."""

    rows: list[_Row]
    streams: Streams
    keys: Tensor
    """The noise keys, [rows], on the CPU."""
    likelihoods: Tensor | None
    """log p of the text so far in every stream, [streams], float64 on the CPU; None where nothing in force asks."""

    @classmethod
    def of(cls, lm: Model, rows: list[_Row]) -> _Batch:
        """The batch of these rows, at its beginning."""
        import torch

        streams = Streams.of(lm, [row.request.record for row in rows])
        likelihoods = torch.zeros(len(streams.row), dtype=torch.float64) if asked(lm, LOGLIKELIHOOD) else None
        return cls(rows, streams, torch.tensor([row.key for row in rows]), likelihoods)

    def place(self, hidden: Tensor | None, after: Lookahead | None) -> Place:
        """Where in their texts the rows are; `hidden` is what the head was given, [streams, width]."""
        return Place(
            [len(row.new) for row in self.rows],
            lambda chosen: [self.rows[i].prompt + self.rows[i].new for i in chosen],
            self.keys.tolist(),
            hidden,
            self.likelihoods,
            after,
        )

    def ahead(self, lm: Model, cache: Cache, mask: Tensor) -> Lookahead | None:
        """What reads candidates behind what the cache holds, mask [streams, held and one]; None where nothing in force
        asks for it."""
        if not asked(lm, AFTER):
            return None
        return Lookahead(lm, self.streams, cache, mask, {i for i, row in enumerate(self.rows) if row.done})

    def keep(self, rows: list[int]) -> Tensor:
        """Only these rows stay, by index: which streams those are, [streams that stay]."""
        import torch

        self.streams, staying = self.streams.kept(rows)
        self.rows, self.keys = [self.rows[i] for i in rows], self.keys[rows]
        stay = torch.tensor(staying)
        self.likelihoods = None if self.likelihoods is None else self.likelihoods[stay]
        return stay


def _run(lm: Model, rows: list[_Row], gen: GenSpec, end_ids: Set[int]) -> None:
    """Generate for all `rows` together; fills their `new`."""
    import torch

    with torch.inference_mode():
        batch, spacing = _Batch.of(lm, rows), precision.spacing(lm.model)
        # 1. The prompts: logits [streams, vocabulary], mask [streams, prompt columns and new ones].
        read, cache, mask = _prefill(lm, batch, gen.max_new_tokens)
        prompt_columns = mask.shape[1] - gen.max_new_tokens
        for step in range(gen.max_new_tokens):
            # 2. The next token of every row, [rows], on the CPU.
            with_next = mask[:, : prompt_columns + step + 1]  # [streams, held and one]
            tokens = _choose(lm, batch, read, batch.ahead(lm, cache, with_next), gen, step, spacing)
            for row, token in zip(batch.rows, tokens.tolist(), strict=True):
                if not row.done:
                    row.new.append(token)
                    row.done = token in end_ids
            going = [i for i, row in enumerate(batch.rows) if not row.done]
            if step + 1 == gen.max_new_tokens or not going:
                return
            new = tokens[batch.streams.row][:, None]  # [streams, 1]
            if batch.likelihoods is not None:
                batch.likelihoods += _loglikelihoods(read.logits[:, None], new)
            # 3. Finished rows leave, several at a time.
            if (len(batch.rows) - len(going)) * LEAVE >= len(batch.rows):
                stay = batch.keep(going)
                on_device = sent(stay, lm.device)
                cache.select(on_device)
                mask, new = mask[on_device], new[stay]
            # 4. The logits behind the new tokens, [streams, vocabulary].
            read = _forward(lm, batch.streams, new, mask[:, : prompt_columns + step + 1], cache, 0)


class _Read(NamedTuple):
    """What the last position of every stream gave."""

    logits: Tensor
    """[streams, vocabulary], as the model gave them."""
    hidden: Tensor | None
    """What the head was given, [streams, width]; None where nothing in force asks for it."""

    def at(self, streams: Tensor) -> _Read:
        """That of these streams, by index; one may come several times."""
        return _Read(self.logits[streams], None if self.hidden is None else self.hidden[streams])


def _forward(
    lm: Model,
    streams: Streams,
    ids: Tensor,
    mask: Tensor,
    cache: Cache | None,
    prompt_positions: int,
    *,
    last: int = 1,
    beside: Mapping[int, Sequence[int]] | None = None,
) -> _Read:
    """Read more of every stream, ids [streams, new] behind what the cache holds, mask [streams, held and new]: what the
    last position gave. For `last` > 1 the logits are those of so many positions, [streams, last, vocabulary].

    `beside` says which streams hooks compare (`InForce.beside`), where that is not as `streams` has it.
    """
    beside = streams.beside(lm.in_force.compared) if beside is None else beside
    with (
        lm.reading(streams.of_record, prompt_positions, streams.companion, beside),
        head_inputs(lm, asked(lm, HIDDEN)) as heads,
    ):
        logits = next_logits(lm.model, sent(ids, lm.device), sent(mask, lm.device), cache, last)
    return _Read(logits if last > 1 else logits[:, -1], heads[0][:, -1] if heads else None)


def _loglikelihoods(logits: Tensor, tokens: Tensor) -> Tensor:
    """The sum of log p of tokens [streams, positions] by logits [streams, positions, vocabulary]: [streams], float64 on
    the CPU."""
    logp = logits.float().log_softmax(-1).gather(-1, tokens.to(logits.device)[..., None])[..., 0]
    return double(logp).sum(1).cpu()


def _prefill(lm: Model, batch: _Batch, more: int) -> tuple[_Read, Cache, Tensor]:
    """Read every distinct prompt (under every distinct change) once and spread the cache over the streams: logits
    [streams, vocabulary], the cache, and the mask [streams, columns of prompts and `more` to come].

    A beginning that several prompts share is read before, once for all of them. What is left of every prompt is equally
    long, so that no padding comes to stand inside a prompt, where a sliding window would count it.
    """
    import torch

    # 1. The distinct prompts; of_stream [streams] says which one is whose, and beside which ones hooks compare.
    streams = batch.streams
    every = [
        (lm.changes(record, companion), tuple(batch.rows[row].prompts[companion]))
        for row, companion, record in zip(streams.row, streams.companion, streams.of_record, strict=True)
    ]
    beside = streams.beside(lm.in_force.compared)
    of_stream = distinct(every, beside)
    firsts = [of_stream.index(i) for i in range(max(of_stream) + 1)]  # a stream of each prompt
    prompts = [every[k] for k in firsts]
    own = [streams.row[k] for k in firsts if not streams.companion[k]]
    beside = {n: [of_stream[of_rows[row]] for row in own] for n, of_rows in beside.items()}
    cache = Cache(lm.model.config.get_text_config(), lm.in_force.reserved + max(len(ids) for _, ids in prompts) + more)
    # 2. The beginnings that are shared: begun [prompts] says how many tokens, mask is [prompts, most of them].
    begun, mask = _read_beginnings(lm, prompts, streams, firsts, cache)
    # 3. What is left: ids [prompts, left], mask [prompts, prompt columns], logits [prompts, vocabulary].
    ids, left_mask = _padded([prompt[n:] for (_, prompt), n in zip(prompts, begun, strict=True)])
    mask = torch.cat([mask, left_mask.to(lm.device)], dim=1)
    read = _forward(lm, streams.some(firsts), ids, mask, cache, ids.shape[1], beside=beside)
    # 4. Columns for the tokens to come, [prompts, prompt columns and more].
    mask = torch.cat([mask, mask.new_ones(len(mask), more)], dim=1)
    # 5. From prompts to streams.
    if len(prompts) < len(of_stream):
        spread = torch.tensor(of_stream, device=lm.device)  # [streams]
        cache.select(spread)
        read, mask = read.at(spread), mask[spread]
    return read, cache, mask


def _read_beginnings(
    lm: Model, prompts: Sequence[Prompt], streams: Streams, firsts: Sequence[int], cache: Cache
) -> tuple[list[int], Tensor]:
    """Read into the `cache` the beginnings that prompts share, one row a prompt (`firsts`: a stream of each), each
    ending at the last column: how many tokens of each prompt that is [prompts], and the mask [prompts, most of them],
    which has no column where no beginning is shared."""
    import torch

    nothing = [0] * len(prompts), torch.zeros(len(prompts), 0, dtype=torch.long, device=lm.device)
    if not cache.movable or lm.in_force.reserved:  # behind a prefix in force nothing may be moved
        return nothing
    first, begun = beginnings(prompts)
    width = max(begun)
    if not width:
        return nothing
    # 1. Of the prompts that share a beginning, the longest one that any of them takes: ids [groups, width].
    longest = {i: max(n for f, n in zip(first, begun, strict=True) if f == i) for i in dict.fromkeys(first)}
    ids, group_mask = _padded([prompts[i][1][:length] for i, length in longest.items()])
    #    The prompts go on behind it, by one token or more.
    some = streams.some([firsts[i] for i in longest])
    _forward(lm, some, ids, group_mask, cache, ids.shape[1] + 1, beside={})
    # 2. Every prompt takes the row of its group, moved to the right by as much as its own beginning is shorter: its
    #    column c is column c - shorter of the group. Columns before the row's first token are masked below.
    columns = torch.arange(width)  # [width]
    shorter = torch.tensor([longest[f] - n for f, n in zip(first, begun, strict=True)])[:, None]  # [prompts, 1]
    group = torch.tensor([list(longest).index(f) for f in first])  # [prompts]
    cache.move(group.to(lm.device), (columns - shorter).clamp(min=0).to(lm.device))
    # 3. Its beginning ends at the last column.
    mask = columns >= width - torch.tensor(begun)[:, None]  # [prompts, width]
    return begun, mask.long().to(lm.device)


def _padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [sequences, longest], padded on the left."""
    import torch

    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for i, sequence in enumerate(sequences):
        ids[i, width - len(sequence) :] = torch.tensor(sequence)
        mask[i, width - len(sequence) :] = 1
    return ids, mask


def _choose(
    lm: Model, batch: _Batch, read: _Read, after: Lookahead | None, gen: GenSpec, step: int, spacing: float
) -> Tensor:
    """The next token of every row (on the CPU). Near-ties are counted and, where the `spacing` of numbers is float32's,
    decided on the row computed alone."""
    import torch

    place = batch.place(read.hidden, after)
    tokens, near_ties = next_tokens(lm, read.logits, batch.streams, place, batch.keys, gen, step, spacing, batch.rows)
    for i in torch.nonzero(near_ties)[:, 0].tolist():
        row = batch.rows[i]
        if row.done:
            continue
        row.near_ties += 1
        if spacing <= precision.FLOAT32:
            alone = _alone(lm, row)
            token, _ = pick(alone, batch.keys[i : i + 1], gen, step, 0.0)
            require_tokens(lm, alone, token, [row], gen, step)
            tokens[i] = token[0]
    return tokens


def _alone(lm: Model, row: _Row) -> Tensor:
    """Next-token logits [1, vocabulary] of one row, from nothing but its own streams, without neighbours, and read from
    the beginning. There is a cache only where candidates are read behind it."""
    import torch

    batch = _Batch.of(lm, [row])
    prompts = [row.prompts[companion] for companion in batch.streams.companion]
    ids, mask = _padded([prompt + row.new for prompt in prompts])  # [streams, longest prompt and text]
    last = 1 if batch.likelihoods is None else len(row.new) + 1
    room = lm.in_force.reserved + ids.shape[1]
    cache = Cache(lm.model.config.get_text_config(), room) if asked(lm, AFTER) else None
    read = _forward(lm, batch.streams, ids, mask, cache, max(map(len, prompts)), last=last)
    after = batch.ahead(lm, cache, torch.nn.functional.pad(mask, (0, 1), value=1)) if cache is not None else None
    if last > 1:
        batch.likelihoods = _loglikelihoods(read.logits[:, :-1], torch.tensor([row.new] * len(prompts)))
        read = read._replace(logits=read.logits[:, -1])
    return processed(lm, read.logits, batch.streams, batch.place(read.hidden, after))


def _sample(lm: Model, row: _Row, text: str, full: str | None) -> Sample:
    ended = bool(row.new) and row.new[-1] in lm.eos_ids
    return Sample(
        id=row.request.id,
        record=row.request.record,
        kind=row.request.kind,
        tags=row.request.tags,
        sample=row.sample,
        prompt=row.request.prompt,
        text=text,
        stop="eos" if ended else "length",
        tokens=len(row.new),
        full_text=full,
    )


def _forget(batch: list[_Row]) -> None:
    for row in batch:
        row.new, row.near_ties, row.done = [], 0, False
