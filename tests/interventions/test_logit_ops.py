"""Operations on the next-token logits: what they see, what they carry, and that no row depends on its neighbours."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detoxbench import (
    Carried,
    DetoxbenchError,
    Hook,
    Intervention,
    LanguageModel,
    LogitOp,
    LogitState,
    LowRank,
    Prefix,
    Prompt,
    Request,
    Sample,
    UsageError,
    Weight,
    compose,
)
from detoxbench.config import GenSpec
from detoxbench.engine.likelihood import loglikelihoods
from detoxbench.methods.dexperts import DExperts
from detoxbench.model.logit_state import LogitFunction
from tests.support.tiny import CHARACTERS, EVERY_FAMILY, METHOD_FAMILIES, same, state, tiny

SAMPLED = GenSpec(max_new_tokens=10, do_sample=True, top_p=0.9, n=2)
Op = Callable[[torch.Tensor, LogitState], torch.Tensor]


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Callable[..., LogitOp]:
    """Makes an operation of a function, as of a registered method."""

    def make(function: Op, **given: Any) -> LogitOp:
        monkeypatch.setitem(DExperts.ops, function.__name__, function)
        return LogitOp(f"dexperts.{function.__name__}", **given)

    return make


def low_rank(lm: LanguageModel, seed: int, size: float = 0.5) -> tuple[Weight, ...]:
    """A LoRA on two maps of every layer."""
    g, weights = torch.Generator().manual_seed(seed), []
    for layer in range(len(lm.architecture.layers)):
        for path in (lm.architecture.attention_out(layer), lm.architecture.mlp_down(layer)):
            rows, columns = lm.weight(path).shape
            if lm.architecture.transposed(path):
                rows, columns = columns, rows
            a, b = torch.randn(2, columns, generator=g), torch.randn(rows, 2, generator=g)
            weights.append(Weight(f"{path}.weight", LowRank(a * size, b * size)))
    return tuple(weights)


def hook(lm: LanguageModel, positions: Any = "all") -> Hook:
    z = torch.linspace(-1, 1, lm.architecture.hidden_size)
    return Hook(lm.architecture.mlp_down(1), "post", "destein.additive", {"z": z}, {"alpha": 2.0}, positions)


def experts(lm: LanguageModel, alpha: float = 1.5, filter_p: float = 0.9) -> Intervention:
    under = {"expert": Carried(low_rank(lm, 1)), "anti_expert": Carried(low_rank(lm, 2))}
    params = {"alpha": alpha, "filter_p": filter_p}
    made = LogitOp("dexperts.ensemble", params=params, under=under, sensitivity=1 + 2 * alpha)
    return Intervention(method="dexperts", base=lm.fingerprint, logits=(made,))


def asked(count: int = 20, seed: int = 0, texts: bool = False) -> list[Request]:
    r = random.Random(seed)

    def text(least: int) -> str:
        return "".join(r.choice(CHARACTERS) for _ in range(r.randrange(least, 25)))

    return [
        Request(id=f"q{i}", prompt=text(0), record=f"q{i}", kind="x", chat=i % 2 == 0, text=text(1) if texts else None)
        for i in range(count)
    ]


def by_hand(lm: LanguageModel, ids: list[int], intervention: Intervention | None = None) -> torch.Tensor:
    """The next-token logits behind `ids` alone, [vocabulary]."""
    with torch.no_grad():
        if intervention is None:
            return lm.model(torch.tensor([ids])).logits[0, -1]
        with lm.applied(intervention):
            return lm.model(torch.tensor([ids])).logits[0, -1]


# ------------------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_ensemble_is_that_of_three_separate_models(family: str) -> None:
    """Token by token, each side computed alone by its own model: the published formula in plain torch."""
    lm = tiny(family)
    sides = [Intervention(method="m", base=lm.fingerprint, weights=low_rank(lm, seed)) for seed in (1, 2)]
    gen = GenSpec(max_new_tokens=6)
    with lm.applied(experts(lm)):
        samples = lm.generate(asked(6), gen)
    for request, sample in zip(asked(6), samples, strict=True):
        ids = lm.encode(request.prompt, request.chat)
        prompt = len(ids)
        for _ in range(gen.max_new_tokens):
            base, expert, anti = by_hand(lm, ids), *(by_hand(lm, ids, side) for side in sides)
            order = base.argsort(descending=True)
            before = base[order].softmax(0).cumsum(0) - base[order].softmax(0)
            moved = (base + 1.5 * (expert - anti)).index_fill(0, order[before >= 0.9], -torch.inf)
            ids.append(int(moved.argmax()))
            if ids[-1] in lm.eos_ids:
                break
        assert sample.text == lm.tokenizer.decode(ids[prompt:], skip_special_tokens=True)


def test_one_forward_pass_of_three_rows_a_step_and_no_second_model() -> None:
    lm = tiny()
    before, rows = state(lm), list[int]()
    with lm.applied(experts(lm)):
        assert same(before, state(lm)), "its LoRAs lie beside the weights, in float32 too"
        count = lm.model.register_forward_pre_hook(
            lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True
        )
        lm.generate([Request(id="a", prompt="hello", record="a", kind="x")], max_new_tokens=9, tie_tolerance=0)
        count.remove()
    assert rows == [3] * 9
    assert same(before, state(lm))
    assert lm.in_force.companions == []


def test_its_memory_is_that_of_three_rows_and_no_second_model() -> None:
    """Three rows hold three times the caches and activations of one, a little more where rows are sorted by LoRA: less
    than one more product of a LoRA's factors would take, and a small part of a second model."""
    lm = tiny(hidden_size=256, intermediate_size=512, head_dim=64)
    ensemble = experts(lm)
    request = Request(id="a", prompt="hello" * 8, record="a", kind="x")
    alone = most_allocated(lambda: lm.generate([request], max_new_tokens=9, tie_tolerance=0))
    with lm.applied(ensemble):
        three = most_allocated(lambda: lm.generate([request], max_new_tokens=9, tie_tolerance=0))
    loras = sum(t.nbytes for part in ensemble.logits[0].under.values() for t in part.named_tensors().values())
    assert three <= 4 * alone + loras
    assert 4 * alone + loras < sum(p.nbytes for p in lm.model.parameters()) / 2


def most_allocated(run: Callable[[], object]) -> int:
    """The most bytes of tensors that `run` held at a time."""
    run()  # what is computed once and kept
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    held = most = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_carried_hooks_and_prompts_act_on_their_own_rows(op: Callable[..., LogitOp], positions: str) -> None:
    lm = tiny()

    def other(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        return state.under("other")

    carried = Intervention(
        method="m", base=lm.fingerprint, hooks=(hook(lm, positions),), prompts=(Prompt(prefix="no. "),)
    )
    taken = Intervention(method="n", base=lm.fingerprint, logits=(op(other, under={"other": carried.carried()}),))
    with lm.applied(taken):
        beside = lm.generate(asked(), SAMPLED)
    with lm.applied(carried):
        alone = lm.generate(asked(), SAMPLED)
    assert [s.text for s in beside] == [s.text for s in alone]


def test_what_an_operation_sees(op: Callable[..., LogitOp]) -> None:
    lm, seen = tiny(), list[tuple[Any, ...]]()

    def look(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        head = lm.model.get_output_embeddings()(state.hidden)
        assert torch.allclose(head, logits, atol=1e-5)
        assert state.loglikelihood_of_row is not None
        seen.append(
            (
                state.tokens()[0],
                int(state.length[0]),
                float(state.loglikelihood_of_row[0]),
                float(state.loglikelihood("x")[0]),
            )
        )
        assert state.keys is not None
        assert len(state.keys) == len(logits)
        return logits

    made = op(look, under={"x": Carried(low_rank(lm, 1))}, asks=("hidden", "loglikelihood"))
    with lm.applied(Intervention(method="m", base=lm.fingerprint, logits=(made,))):
        lm.generate(["hello"], max_new_tokens=5, tie_tolerance=0)
    ids = seen[-1][0]
    prompt = len(lm.encode("hello"))
    assert [(len(tokens) - prompt, length) for tokens, length, *_ in seen] == [(i, i) for i in range(5)]
    side = Intervention(method="m", base=lm.fingerprint, weights=low_rank(lm, 1))
    for under, place in ((None, 2), (side, 3)):
        true = sum(float(by_hand(lm, ids[:i], under).log_softmax(0)[ids[i]]) for i in range(prompt, len(ids)))
        assert seen[-1][place] == pytest.approx(true, abs=1e-4)


# ------------------------------------------------------------------------------------------- on nothing but the row


def of_all(lm: LanguageModel, requests: list[Request], gen: GenSpec) -> dict[tuple[str, int], Sample]:
    return {(s.id, s.sample): s for s in lm.generate(requests, gen, seed=3)}


@pytest.mark.parametrize("gen", [GenSpec(max_new_tokens=10), SAMPLED], ids=["greedy", "nucleus"])
def test_samples_do_not_depend_on_batch_order_or_neighbours(gen: GenSpec) -> None:
    lm, requests = tiny(), asked(14)
    shuffled = random.Random(1).sample(requests, len(requests))
    with lm.applied(experts(lm)):
        together = of_all(lm, requests, gen)
        for rows in (1, 7, 64):
            small = dataclasses.replace(gen, batch_tokens=3 * rows * 36 if rows > 1 else 1)
            assert of_all(lm, shuffled, small) == together
        assert of_all(lm, requests[:1], gen) == {k: s for k, s in together.items() if k[0] == requests[0].id}
    assert len({s.tokens for s in together.values()}) > 1, "some texts end early"
    plain = of_all(lm, requests, gen)
    assert sum(plain[k].text != s.text for k, s in together.items()) > len(plain) / 2


def test_what_differs_by_record_may_carry_too() -> None:
    lm, requests = tiny(), asked(6)
    edits = {
        r.record: compose(
            Intervention(method="edit", base=lm.fingerprint, weights=low_rank(lm, 10 + i, 0.3)), experts(lm, 0.5 + i)
        )
        for i, r in enumerate(requests[:4])
    } | {r.record: Intervention(method="none", base=lm.fingerprint) for r in requests[4:]}
    with lm.routed(edits):
        together = of_all(lm, requests, SAMPLED)
    for request in requests:
        with lm.applied(edits[request.record]):
            alone = of_all(lm, [request], SAMPLED)
        assert alone == {k: s for k, s in together.items() if k[0] == request.id}
    with lm.applied(experts(lm)), pytest.raises(DetoxbenchError, match="compose both into each record's intervention"):
        lm.routed(edits).__enter__()


def test_a_choice_that_hangs_on_rounding_is_made_on_the_row_alone(op: Callable[..., LogitOp]) -> None:
    """Noise of half the tolerance, another in every batch shape, stands for rounding."""
    lm, requests = tiny(), asked(20)
    gen = dataclasses.replace(SAMPLED, tie_tolerance=0.05)

    def cut(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        return (2 * logits).masked_fill(~state.top_p(logits, 0.5), -torch.inf)

    intervention = Intervention(method="m", base=lm.fingerprint, logits=(op(cut, sensitivity=2.0),))
    with lm.applied(intervention):
        quiet = of_all(lm, requests, gen)
        forward = lm.model.forward

        def noisy(**inputs: Any) -> Any:
            output = forward(**inputs)
            rows = len(output.logits)
            if rows > 1:
                noise = torch.rand(output.logits.shape, generator=torch.Generator().manual_seed(rows))
                output.logits = output.logits + (noise - 0.5) * 0.04
            return output

        lm.model.forward = noisy  # type: ignore[method-assign]
        try:
            assert of_all(lm, requests, gen) == quiet
        finally:
            del lm.model.forward


def test_a_row_that_an_operation_contests_is_computed_alone(op: Callable[..., LogitOp]) -> None:
    lm, sizes = tiny(), list[int]()

    def contest(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        sizes.append(len(logits))
        state.contest(state.length == 1)
        return logits

    with lm.applied(Intervention(method="m", base=lm.fingerprint, logits=(op(contest),))):
        lm.generate(["hello", "you"], max_new_tokens=3, tie_tolerance=1e-9)
    assert sizes == [2, 2, 1, 1, 2]


# ------------------------------------------------------------------------------------------- texts that are given


@pytest.mark.parametrize("family", METHOD_FAMILIES)
def test_given_texts_are_read_under_the_ensemble(family: str) -> None:
    lm, requests = tiny(family), asked(8, texts=True)
    sides = [Intervention(method="m", base=lm.fingerprint, weights=low_rank(lm, seed)) for seed in (1, 2)]
    with lm.applied(experts(lm, filter_p=1)):
        read = {
            g.sample.id: g.sample for batch in loglikelihoods(lm, requests, {r.id for r in requests}) for g in batch
        }
    for request in requests:
        rendered, special = lm.rendered(request.prompt, request.chat)
        prompt, whole = lm.joined(rendered, request.text or "", special=special)
        nll = 0.0
        for i in range(len(prompt), len(whole)):
            base, expert, anti = by_hand(lm, whole[:i]), *(by_hand(lm, whole[:i], side) for side in sides)
            nll -= float((base + 1.5 * (expert - anti)).log_softmax(0)[whole[i]])
        assert read[request.id].nll == pytest.approx(nll, rel=1e-4)


def test_a_text_outside_of_the_candidates_has_no_likelihood() -> None:
    lm, requests = tiny(), asked(8, texts=True)
    with lm.applied(experts(lm, filter_p=0.05)):
        read = [g.sample for batch in loglikelihoods(lm, requests, {r.id for r in requests}) for g in batch]
    assert [s.nll for s in read] == [None] * len(read)
    assert not any(s.greedy for s in read)


def test_likelihoods_so_far_are_those_of_every_place_read(op: Callable[..., LogitOp]) -> None:
    lm, seen = tiny(), list[torch.Tensor]()

    def look(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        assert state.keys is None
        assert [len(t) for t in state.tokens()] == [len(lm.encode("hello")) + i for i in range(5)]
        seen.append(state.loglikelihood("x"))
        return logits

    made = op(look, under={"x": Carried(prompts=(Prompt(prefix="so "),))}, asks=("loglikelihood",))
    request = Request(id="a", prompt="hello", record="a", kind="x", text="abcd")
    with lm.applied(Intervention(method="m", base=lm.fingerprint, logits=(made,))):
        list(loglikelihoods(lm, [request], {"a"}))
    ids, start = lm.encode("so helloabcd"), len(lm.encode("so hello"))
    true = [float(by_hand(lm, ids[:i]).log_softmax(0)[ids[i]]) for i in range(start, len(ids))]
    assert seen[0].tolist() == pytest.approx([sum(true[:i]) for i in range(5)], abs=1e-4)


# ------------------------------------------------------------------------------------------- saved, refused, removed


def test_what_is_carried_is_saved_counted_and_checked(tmp_path: Path) -> None:
    lm = tiny()
    carried = Intervention(method="m", base=lm.fingerprint, weights=low_rank(lm, 1), hooks=(hook(lm),),
                           prompts=(Prompt(prefix="no. "),)).carried()  # fmt: skip
    made = LogitOp(
        "dexperts.ensemble", {"t": torch.ones(2)}, {"alpha": 1.0}, {"anti_expert": carried}, ("hidden",), 3.0
    )
    intervention = Intervention(method="m", base=lm.fingerprint, logits=(made,))
    intervention.save(tmp_path / "saved")
    loaded = Intervention.load(tmp_path / "saved")
    assert loaded.digest() == intervention.digest()
    (back,) = loaded.logits
    assert (back.asks, back.sensitivity, back.params) == (("hidden",), 3.0, {"alpha": 1.0})
    assert back.under["anti_expert"].prompts == carried.prompts
    numbers = sum(t.numel() for t in carried.named_tensors().values())
    assert loaded.added_parameters() == 2 + numbers


def test_a_plain_operation_is_saved_as_before() -> None:
    assert LogitOp("dexperts.ensemble", params={"a": 1}).as_json() == {"op": "dexperts.ensemble", "params": {"a": 1}}


def test_what_cannot_be_carried_or_asked_for_is_named(op: Callable[..., LogitOp]) -> None:
    lm = tiny()
    prefix = Intervention(method="p", base=lm.fingerprint, prefixes=(Prefix(torch.zeros(3, 2, 2, 4, 8)),))
    with pytest.raises(DetoxbenchError, match="cannot carry 'p': it has prefixes"):
        prefix.carried()
    with pytest.raises(UsageError, match=r"asks for 'hiden' \(did you mean 'hidden'\?\)"):
        LogitOp("dexperts.ensemble", asks=("hiden",))

    def wrong(logits: torch.Tensor, state: LogitState) -> torch.Tensor:
        return state.under("expret")

    made = op(wrong, under={"expert": Carried(low_rank(lm, 1))})
    with (
        lm.applied(Intervention(method="m", base=lm.fingerprint, logits=(made,))),
        pytest.raises(DetoxbenchError, match=r"asks for 'expret' \(did you mean 'expert'\?\); it carries: expert"),
    ):
        lm.generate(["hello"], max_new_tokens=1)


@pytest.fixture
def untouched() -> Iterator[LanguageModel]:
    lm = tiny()
    before = state(lm)
    yield lm
    assert same(before, state(lm))
    assert (lm.in_force.companions, lm.in_force.logit_functions) == ([], [])
    assert not any("forward" in vars(m) or m._forward_pre_hooks or m._forward_hooks for m in lm.model.modules())


def test_it_comes_off_whole_also_when_putting_on_fails(untouched: LanguageModel) -> None:
    lm = untouched
    (made,) = experts(lm).logits
    bad = dataclasses.replace(
        made, under={**made.under, "third": Carried((Weight("no.such.weight", low_rank(lm, 1)[0].delta),))}
    )
    with (
        pytest.raises(DetoxbenchError, match="no module"),
        lm.applied(Intervention(method="m", base=lm.fingerprint, logits=(bad,))),
    ):
        pass
    with lm.applied(experts(lm)):
        assert isinstance(lm.in_force.logit_functions[0], LogitFunction)
        lm.model(torch.tensor([[1, 2, 3]]))  # a forward pass that nobody announced is the model's own
