"""States after candidates: those of a fresh forward pass of prompt, text and candidate; the text goes on as before."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from detoxbench import Carried, DetoxbenchError, Intervention, LanguageModel, LogitOp, LogitState, Prefix, Request
from detoxbench.config import GenSpec
from detoxbench.engine import generation, lookahead
from detoxbench.engine.likelihood import loglikelihoods
from detoxbench.interventions.intervention import compose
from tests.engine.test_serving import other
from tests.interventions.test_logit_ops import asked, hook, low_rank, of_all, op
from tests.support.tiny import EVERY_FAMILY, tiny

__all__ = ["op"]  # a fixture
SAMPLED = GenSpec(max_new_tokens=8, do_sample=True, top_p=0.9, n=2)
Seen = list[tuple[list[list[int]], torch.Tensor, torch.Tensor]]


def candidates(state: LogitState) -> torch.Tensor:
    """Three candidates of a row that depend on its text alone; of every other text only two of them."""
    rows = [[3 + sum(ids) % 20, 2 + len(ids) % 5, -1 if len(ids) % 2 else 11] for ids in state.tokens()]
    return torch.tensor(rows)


def looking(seen: Seen) -> Callable[[torch.Tensor, LogitState], torch.Tensor]:
    def look(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        ids = candidates(state)
        seen.append((state.tokens(), ids, state.after(ids)))
        return logits

    return look


def afresh(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    """What the head is given at the end of `ids`, read alone and without a cache."""
    given: list[torch.Tensor] = []
    handle = lm.model.get_output_embeddings().register_forward_pre_hook(lambda _, x: given.append(x[0][0, -1]))
    try:
        with torch.no_grad():
            lm.model(torch.tensor([ids]), use_cache=False)
    finally:
        handle.remove()
    return given[0]


def require_equal(lm: LanguageModel, seen: Seen) -> None:
    for texts, ids, states in seen:
        for text, tokens, after in zip(texts, ids.tolist(), states, strict=True):
            for token, state in zip(tokens, after, strict=True):
                true = torch.zeros_like(state) if token < 0 else afresh(lm, [*text, token])
                assert torch.allclose(state, true, atol=1e-5, rtol=1e-5)


def under(lm: LanguageModel, *ops: LogitOp, **parts: Any) -> Intervention:
    return Intervention(method="m", base=lm.fingerprint, logits=ops, **parts)


@pytest.mark.parametrize("family", [*EVERY_FAMILY, "lfm2", "jamba", "llama4_text"])
def test_states_are_those_of_a_fresh_forward_pass_and_the_text_goes_on_as_before(
    family: str, op: Callable[..., LogitOp]
) -> None:
    lm, seen = other(family) if family in ("lfm2", "jamba", "llama4_text") else tiny(family), Seen()
    gen = dataclasses.replace(SAMPLED, tie_tolerance=0.0)
    plain = of_all(lm, asked(4), gen)
    with lm.applied(under(lm, op(looking(seen), asks=("after",)))):
        assert of_all(lm, asked(4), gen) == plain
    assert len({tuple(map(len, texts)) for texts, *_ in seen}) > 1, "texts of mixed lengths"
    require_equal(lm, [seen[0], seen[-1]])  # at the first step no row has finished, and at the last all that are left


def test_what_is_in_force_is_in_force_for_candidates_too(op: Callable[..., LogitOp], monkeypatch: Any) -> None:
    lm, seen = tiny(), Seen()
    monkeypatch.setattr(lookahead, "PASS_TOKENS", 90)  # several passes
    looks = op(looking(seen), asks=("after",), under={"x": Carried(low_rank(lm, 1))})
    kv = torch.randn(3, 2, 2, 4, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    everything = under(lm, looks, hooks=(hook(lm, "generated"),), prefixes=(Prefix(kv),))
    with lm.applied(everything):
        lm.generate(asked(4), max_new_tokens=3, tie_tolerance=0)
        (texts, ids, states), *_ = seen
        for text, tokens, after in zip(texts, ids.tolist(), states, strict=True):
            with lm.reading(["x"], len(text)):  # the candidate is generated, and the prompt is not
                assert torch.allclose(after[0], afresh(lm, [*text, tokens[0]]), atol=1e-5)
    assert not torch.allclose(after[0], afresh(lm, [*text, tokens[0]]), atol=1e-2)


def test_no_pass_has_room_for_candidates_that_a_row_does_not_have(op: Callable[..., LogitOp]) -> None:
    lm, rows = tiny(), list[int]()
    count = lm.model.register_forward_pre_hook(lambda _, __, x: rows.append(len(x["input_ids"])), with_kwargs=True)

    def twice(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        ids = torch.tensor([[5, 6, -1, -1], [7, -1, -1, -1]])
        states = state.after(ids)
        assert torch.equal(states[:, :2], state.after(ids[:, :2]))
        assert not states[:, 2:].any()
        return logits

    with lm.applied(under(lm, op(twice, asks=("after",)))):
        lm.generate(["hello", "you"], max_new_tokens=2, tie_tolerance=0)
    count.remove()
    assert rows == [2, 3, 2, 3], "a row for each pair of row and candidate, and none is read twice"


def test_rows_that_have_ended_are_not_read(op: Callable[..., LogitOp], monkeypatch: pytest.MonkeyPatch) -> None:
    lm, rows = tiny(), list[int]()
    monkeypatch.setattr(generation, "LEAVE", 1)  # they stay until all have ended
    count = lm.model.register_forward_pre_hook(lambda _, __, x: rows.append(len(x["input_ids"])), with_kwargs=True)

    def end_one(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        state.after(torch.full((len(logits), 2), 5))
        ended = torch.tensor([len(lm.encode("hello")) == len(ids) for ids in state.tokens()])
        return logits.index_put((ended, torch.tensor(2)), torch.tensor(1e3))

    with lm.applied(under(lm, op(end_one, asks=("after",)))):
        lm.generate(["hello", "you"], max_new_tokens=2, tie_tolerance=0)
    count.remove()
    assert rows == [2, 2, 2, 1]


@pytest.mark.parametrize("gen", [pytest.param(GenSpec(max_new_tokens=8), id="greedy", marks=pytest.mark.slow), SAMPLED])
def test_samples_do_not_depend_on_batch_order_or_neighbours(gen: GenSpec, op: Callable[..., LogitOp]) -> None:
    lm, requests = tiny(), asked(10)

    def steer(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        ids = logits.masked_fill(~state.top_p(logits, 0.6), -torch.inf).topk(4).indices
        return logits.scatter_add(1, ids, state.after(ids).tanh().sum(-1))

    shuffled = random.Random(1).sample(requests, len(requests))
    steered = under(lm, op(steer, asks=("after",), sensitivity=20.0))
    with lm.applied(steered):
        together = of_all(lm, requests, gen)
        for rows in (1, 7):
            small = dataclasses.replace(gen, batch_tokens=rows * 34 if rows > 1 else 1)
            assert of_all(lm, shuffled, small) == together
    edits = {
        r.record: compose(under(lm, weights=low_rank(lm, 10 + i, 0.2)), steered) for i, r in enumerate(requests[:3])
    }
    with lm.routed(edits):
        routed = of_all(lm, requests[:3], gen)
    for request in requests[:3]:
        with lm.applied(edits[request.record]):
            assert of_all(lm, [request], gen) == {k: s for k, s in routed.items() if k[0] == request.id}
    assert routed != {k: s for k, s in together.items() if k in routed}


def test_it_is_asked_for_and_no_given_text_is_read_with_it(op: Callable[..., LogitOp]) -> None:
    lm = tiny()
    with (
        lm.applied(under(lm, op(looking(Seen())))),
        pytest.raises(DetoxbenchError, match=r"looks behind candidates: say LogitOp\(asks=\.\.\.\)"),
    ):
        lm.generate(["hello"], max_new_tokens=1)
    given = Request(id="a", prompt="hello", record="a", kind="x", text="b")
    with lm.applied(under(lm, op(looking(Seen()), asks=("after",)))):
        assert not lm.in_force.reads_texts
        with pytest.raises(DetoxbenchError, match="under 'm', which acts only while texts are generated"):
            list(loglikelihoods(lm, [given], {"a"}))
    assert lm.in_force.reads_texts
