"""Hooks that look at rows beside their own: where they act, on what, and that no other row depends on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from detoxbench import (
    Carried,
    DetoxbenchError,
    Hook,
    HookState,
    Intervention,
    LanguageModel,
    LogitOp,
    LogitState,
    LowRank,
    Prompt,
    Request,
    UsageError,
    Weight,
    compose,
)
from detoxbench.config import GenSpec
from detoxbench.engine.likelihood import loglikelihoods
from detoxbench.methods.caa import CAA
from tests.support.tiny import EVERY_FAMILY, tiny

SAMPLED = GenSpec(max_new_tokens=8, do_sample=True, top_p=0.9, n=2)
Make = Callable[..., Hook]


@pytest.fixture
def comparing(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a hook of a function, as of a registered method."""

    def make(lm: LanguageModel, function: Callable[..., Any], under: dict[str, Carried], **given: Any) -> Hook:
        monkeypatch.setitem(CAA.ops, function.__name__, function)
        where = given.pop("module", lm.architecture.final_norm)
        return Hook(where, "post", f"caa.{function.__name__}", **{"positions": "predicting", **given}, under=under)

    return make


def of(lm: LanguageModel, *hooks: Hook, **parts: Any) -> Intervention:
    return Intervention(method="m", base=lm.fingerprint, hooks=hooks, **parts)


def taken(x: torch.Tensor, state: HookState) -> torch.Tensor:
    """The other row in the place of its own."""
    return state.beside("other")


def away(x: torch.Tensor, state: HookState) -> torch.Tensor:
    return 2 * x - state.beside("other")


def other(lm: LanguageModel, prefix: str = "no. ") -> Intervention:
    """A change of weights, a hook and a prompt."""
    path, g = lm.architecture.mlp_down(1), torch.Generator().manual_seed(0)
    rows, columns = lm.weight(path).shape
    if lm.architecture.transposed(path):
        rows, columns = columns, rows
    low = LowRank(torch.randn(2, columns, generator=g) / 2, torch.randn(rows, 2, generator=g) / 2)
    vector = {"vector": torch.linspace(-1, 1, lm.architecture.hidden_size)}
    return of(
        lm,
        Hook(lm.architecture.layer(0), "post", "caa.add", vector, {"strength": 1.0}, "predicting"),
        weights=(Weight(f"{path}.weight", low),),
        prompts=(Prompt(prefix=prefix),),
    )


def asked() -> list[Request]:
    """Prompts of all lengths, some that agree, and some that share their beginning."""
    prompts = ["", "hi", "hi", "who are you?", *("a" * 30 + end for end in "bcdefghijklm")]
    return [
        Request(id=f"q{i}", prompt=p, record=f"q{i}", kind="x", chat=i % 3 == 1, text="yes. no")
        for i, p in enumerate(prompts)
    ]


def texts(lm: LanguageModel) -> list[str]:
    return [s.text for s in lm.generate(asked(), SAMPLED)]


def likelihoods(lm: LanguageModel) -> list[float | None]:
    wanted = {r.id for r in asked()}
    return [g.sample.nll for batch in loglikelihoods(lm, asked(), wanted) for g in batch]


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_what_stands_beside_is_the_same_module_under_what_is_carried(family: str, comparing: Make) -> None:
    """So a row that takes it over says what the model says under that intervention alone."""
    lm = tiny(family)
    hook = comparing(lm, taken, {"other": other(lm).carried()})
    with lm.applied(other(lm)):
        expected, read = texts(lm), likelihoods(lm)
    plain = texts(lm)
    with lm.applied(of(lm, hook)):
        assert texts(lm) == expected != plain
        assert likelihoods(lm) == pytest.approx(read, rel=1e-4)


def test_several_look_at_several_and_equal_ones_are_one_row(comparing: Make) -> None:
    lm, rows = tiny(), list[int]()
    one, two = other(lm).carried(), Carried(prompts=(Prompt(prefix="so. "),))
    again = Carried.of(one.as_json(), one.named_tensors())
    hooks = (
        comparing(lm, away, {"other": one}, module=lm.architecture.layer(0)),
        comparing(lm, away, {"other": two}, module=lm.architecture.layer(1)),
        comparing(lm, taken, {"other": again, "unused": two}),
    )
    with lm.applied(other(lm)):
        expected = texts(lm)
    with lm.applied(of(lm, *hooks)):
        assert texts(lm) == expected
        count = lm.model.register_forward_pre_hook(
            lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True
        )
        lm.generate(["hello"], max_new_tokens=3, tie_tolerance=0)
        count.remove()
    assert rows == [3, 3, 3]


def test_rows_with_one_prompt_beside_different_ones_are_not_taken_for_each_other(comparing: Make) -> None:
    lm = tiny()
    lm.chat_template = "none"
    carried = Carried(prompts=(Prompt(prefix="no. ", only="chat"),))
    requests = [Request(id=str(chat), prompt="hi", record="a", kind="x", chat=chat) for chat in (True, False)]
    with lm.applied(of(lm, comparing(lm, away, {"other": carried}, module=lm.architecture.layer(1)))):
        together = [s.text for s in lm.generate(requests, GenSpec(max_new_tokens=8))]
        alone = [lm.generate([r], GenSpec(max_new_tokens=8, batch_tokens=1))[0].text for r in requests]
    assert together == alone
    assert together[0] != together[1]


def test_it_does_not_hang_on_the_batch_and_works_beside_operations_on_the_logits(comparing: Make) -> None:
    from detoxbench.data.examples import FitData
    from detoxbench.methods import create

    lm = tiny()
    damped = create("self_debias", prefixes=("bad. ",)).fit(lm, FitData())
    both = compose(of(lm, comparing(lm, away, {"other": other(lm).carried()}, module=lm.architecture.layer(1))), damped)
    with lm.applied(both):
        together = {(s.id, s.sample): s for s in lm.generate(asked(), SAMPLED)}
        small = dataclasses.replace(SAMPLED, batch_tokens=1)
        assert {(s.id, s.sample): s for s in lm.generate(asked()[::-1], small)} == together


def test_candidates_are_read_with_their_rows_beside_them(comparing: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, pairs, before = tiny(), list[tuple[torch.Tensor, torch.Tensor]](), list[torch.Tensor]()

    def look(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        assert state.hidden is not None
        if before and len(before[-1]) == len(logits):
            pairs.append((state.hidden, before[-1]))
        before.append(state.after(logits.argmax(-1)[:, None])[:, 0])
        return logits

    monkeypatch.setitem(CAA.ops, "look", look)
    hook = comparing(lm, away, {"other": other(lm).carried()}, module=lm.architecture.layer(1))
    with lm.applied(of(lm, hook, logits=(LogitOp("caa.look", asks=("hidden", "after")),))):
        lm.generate(["hi", "who are you?"], max_new_tokens=4, tie_tolerance=0)
    assert len(pairs) == 3
    for hidden, seen_before in pairs:
        torch.testing.assert_close(hidden, seen_before, atol=1e-5, rtol=1e-5)


def test_a_beginning_that_prompts_share_is_left_as_it_is(comparing: Make) -> None:
    """It is read before, for all of them, and none of them ends there."""
    lm, widths = tiny(), list[int]()
    prompts = ["a" * 30 + end for end in "bcdefghijklm"]
    with lm.applied(of(lm, comparing(lm, away, {"other": other(lm).carried()}, module=lm.architecture.layer(1)))):
        count = lm.model.register_forward_pre_hook(
            lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        together = [s.text for s in lm.generate(prompts, max_new_tokens=3)]
        count.remove()
        assert [lm.generate([p], max_new_tokens=3)[0].text for p in prompts] == together
    assert widths[:2] == [len(lm.tokens("no. ")) + 30, 1]


def test_it_acts_on_the_positions_that_predict_and_on_no_other() -> None:
    lm = tiny()
    vector = torch.linspace(-1, 1, 32)
    hook = Hook(lm.architecture.layer(1), "post", "caa.add", {"vector": vector}, {"strength": 3.0}, "predicting")
    ids, seen = torch.tensor([lm.tokens("hello you")]), list[torch.Tensor]()
    handle = lm.architecture.module(lm.architecture.layer(2)).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        lm.model(ids)
        with lm.applied(of(lm, hook)):
            for prompt in (0, 4, ids.shape[1], ids.shape[1] + 1):  # the last one: the prompt goes on behind them
                with lm.reading(["0"], prompt):
                    lm.model(ids)
    handle.remove()
    plain, *steered = seen
    changed = [(x != plain).any(-1)[0].tolist() for x in steered]
    n = ids.shape[1]
    assert changed == [[True] * n, [False] * 3 + [True] * (n - 3), [False] * (n - 1) + [True], [False] * n]


def test_what_cannot_be_compared_is_named(comparing: Make) -> None:
    lm = tiny()
    carried = {"other": other(lm).carried()}
    with pytest.raises(UsageError, match="whose positions do not correspond: choose positions=predicting"):
        comparing(lm, taken, carried, positions="all")
    hook = comparing(lm, taken, carried)
    with pytest.raises(UsageError, match="carries interventions, and cannot be carried itself"):
        of(lm, hook).carried()

    def wrong(x: torch.Tensor, state: HookState) -> torch.Tensor:
        return state.beside("otter")

    with (
        lm.applied(of(lm, comparing(lm, wrong, carried))),
        pytest.raises(DetoxbenchError, match=r"asks for 'otter' \(did you mean 'other'\?\); it carries: other"),
    ):
        lm.generate(["hello"], max_new_tokens=1)
    with lm.applied(of(lm, hook)), pytest.raises(DetoxbenchError, match="in a composition put its method last"):
        lm.model(torch.tensor([[1, 2, 3]]))
    plain = Hook("x", "post", "caa.add")
    assert "under" not in plain.as_json(), "a plain hook is saved as before"
