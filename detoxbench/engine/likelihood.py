"""Reading: how likely the model finds texts that it is given (`Request.text`), under the interventions in force.

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
    from detoxbench.model.model import Model

CHUNK = 64
"""Requests read, and written, at a time."""
PASS_TOKENS = 8192
"""Padded tokens in one forward pass."""
PASS_LOGITS_CPU = 2**23
"""Logits of one forward pass on a CPU: of more, fetching the memory takes longer than a larger pass saves."""


class Row(NamedTuple):
    """One sequence: `ids`, of which the first `lead` (at least one) are given and the others are read."""

    ids: list[int]
    lead: int
    record: str = ""


class Plan(NamedTuple):
    """What is read for one request: the sum over `rows` less that over `off`, of `tokens` tokens in all."""

    rows: list[Row]
    off: list[Row]
    tokens: int
    cut: int

    @property
    def all(self) -> list[Row]:
        return [*self.rows, *self.off]


NOTHING = Plan([], [], 0, 0)


def read(lm: Model, requests: Sequence[Request], left: Container[str]) -> Iterator[list[Generated]]:
    """Chunk by chunk, the samples of those `requests` (all have a text) whose id is `left`.

    `nll` is -log p(text | prompt) in nats, over all of the text's tokens: prompt and text are tokenised together, and
    where a token spans both, NLL(prompt + text) - NLL(prompt) is taken. A text without a prompt follows the start
    token; one longer than the context is read in windows of it, each begun anew. Else inputs that are too long lose
    their beginning, which is counted (`Generated.cut`). `greedy` says that every token was the most probable one.
    """
    for start in range(0, len(requests), CHUNK):
        chunk = requests[start : start + CHUNK]
        if not any(r.id in left for r in chunk):
            continue
        plans = [planned(lm, request) for request in chunk]
        for request, plan in zip(chunk, plans, strict=True):
            if plan.tokens < 1:
                raise DetoxbenchError(f"the text of request '{request.id}' has no token of its own after its prompt")
        found = iter(read_rows(lm, [row for plan in plans for row in plan.all]))
        made = []
        for request, plan in zip(chunk, plans, strict=True):
            rows, off = [next(found) for _ in plan.rows], [next(found) for _ in plan.off]
            sample = Sample(
                id=request.id,
                record=request.record,
                kind=request.kind,
                sample=0,
                prompt=request.prompt,
                text=request.text or "",
                stop="given",
                tokens=plan.tokens,
                nll=sum(nll for nll, _ in rows) - sum(nll for nll, _ in off),
                greedy=all(greedy for _, greedy in rows),
            )
            made.append(Generated(sample, 0, plan.cut))
        yield [g for g in made if g.sample.id in left]


def planned(lm: Model, request: Request) -> Plan:
    """What is read for a request: nothing, of no tokens, where its text has none of its own after the prompt."""
    rendered, special = lm.rendered(request.prompt, request.chat, request.record)
    prompt, whole = lm.joined(rendered, request.text or "", special=special)
    common = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    tokens = len(whole) - len(prompt)
    if tokens < 1:
        return NOTHING
    if common == 0:  # the first token spans prompt and text: both follow the start token
        prompt, whole, common = [lm.start_id, *prompt], [lm.start_id, *whole], 1
    limit = lm.context
    if limit is None or len(whole) <= limit:
        off = [Row(prompt, common, request.record)] if common < len(prompt) else []
        return Plan([Row(whole, common, request.record)], off, tokens, 0)
    if not rendered:
        first, rest = whole[:common], whole[common:]
        step = limit - common
        windows = [Row([*first, *rest[i : i + step]], common, request.record) for i in range(0, len(rest), step)]
        return Plan(windows, [], tokens, 0)
    cut = len(whole) - limit
    lead = max(len(prompt) - cut, 1)
    return Plan([Row(whole[cut:], lead, request.record)], [], limit - lead, cut)


def read_rows(lm: Model, rows: Sequence[Row]) -> list[tuple[float, bool]]:
    """For each row the NLL of what follows its lead, and whether each of those tokens was the most probable one.

    Raises NonFiniteError, naming method, text and token, for logits or a likelihood that are NaN or infinite.
    """
    import torch

    vocabulary = lm.architecture.vocabulary if lm.device.type == "cpu" else 0
    results: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), -rows[i].lead, i))
    while order:
        size, lead, rest = 0, 0, 0
        for i in order:
            wider, longer = max(lead, rows[i].lead), max(rest, len(rows[i].ids) - rows[i].lead)
            if size and (size + 1) * (wider + longer) > PASS_TOKENS:
                break
            if size and (size + 1) * (longer + 1) * vocabulary > PASS_LOGITS_CPU:
                break
            if size and lm.in_force.reserved and rows[i].lead != lead:
                break  # as in generation: a sliding window would count padding between a prefix and the prompt
            size, lead, rest = size + 1, wider, longer
        batch, order = order[:size], order[size:]
        ids = torch.zeros(size, lead + rest, dtype=torch.long)
        mask = torch.zeros(size, lead + rest, dtype=torch.long)
        for k, i in enumerate(batch):
            begin = lead - rows[i].lead
            ids[k, begin : begin + len(rows[i].ids)] = torch.tensor(rows[i].ids)
            mask[k, begin : begin + len(rows[i].ids)] = 1
        ids, mask = ids.to(lm.device), mask.to(lm.device)
        with torch.inference_mode(), lm.reading([rows[i].record for i in batch], lead):
            # The last position predicts nothing that is given; to cut it off would copy all the others.
            logits = processed(lm, next_logits(lm.model, ids, mask, last=rest + 1).flatten(0, 1))
            targets = torch.nn.functional.pad(ids[:, lead:], (0, 1)).flatten()
            nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none").view(size, rest + 1)
            largest, likeliest = logits.max(-1)
            best = (likeliest == targets).view(size, rest + 1)  # of equal ones the first, as in generation
        read = [rows[i] for i in batch]
        where = partial(_place, lm, read, rest + 1)
        require_finite_logits(lm, largest, [row.record for row in read for _ in range(rest + 1)], where)
        for k, i in enumerate(batch):
            n = len(rows[i].ids) - rows[i].lead
            results[i] = float(nll[k, :n].double().sum()), bool(best[k, :n].all())
            if not math.isfinite(results[i][0]):
                first = int(nll[k, :n].isfinite().logical_not().nonzero()[0])
                raise NonFiniteError(
                    f"'{lm.name}' under method '{'+'.join(lm.in_force.methods) or 'none'}' gives no probability to "
                    f"{where(k * (rest + 1) + first)}: it has no likelihood"
                )
    return results


def _place(lm: Model, rows: Sequence[Row], width: int, index: int) -> str | None:
    """What the logits at `index` of [rows, width] tell, in words; None for positions that are filled up."""
    row, position = rows[index // width], index % width
    if position >= len(row.ids) - row.lead:
        return None
    return f"token {position + 1} of the text {lm.tokenizer.decode(row.ids[row.lead :])[:40]!r}"
