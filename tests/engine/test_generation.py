"""The engine: what comes out must not depend on what it was batched with."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detoxbench.config import GenSpec
from detoxbench.engine import generation, sampling
from detoxbench.engine.beginnings import beginnings
from detoxbench.engine.forward import cache_name
from detoxbench.engine.kv_cache import Cache
from detoxbench.errors import DetoxbenchError
from detoxbench.lm import LanguageModel
from detoxbench.records import Request
from tests.support.tiny import CHARACTERS, FAMILIES, METHOD_FAMILIES, tiny

GENS = {
    "greedy": GenSpec(max_new_tokens=12),
    "nucleus": GenSpec(max_new_tokens=12, do_sample=True, top_p=0.9, n=3),
    "top_k": GenSpec(max_new_tokens=12, do_sample=True, top_k=5, top_p=0.8, temperature=0.7, n=2),
    "plain": GenSpec(max_new_tokens=12, do_sample=True, n=2),
}


def asked(count: int = 20, seed: int = 0) -> list[Request]:
    r = random.Random(seed)
    prompts = ["".join(r.choice(CHARACTERS) for _ in range(r.randrange(0, 40))) for _ in range(count)]
    return [Request(id=f"q{i}", prompt=p, record=f"q{i}", kind="x", chat=i % 2 == 0) for i, p in enumerate(prompts)]


@pytest.mark.parametrize("family", METHOD_FAMILIES)
def test_samples_do_not_depend_on_the_batch_in_any_family(family: str) -> None:
    assert_independent_of_the_batch(tiny(family), asked(6), GENS["nucleus"])


@pytest.mark.parametrize("gen", GENS)
def test_samples_do_not_depend_on_batch_size_order_or_neighbours(gen: str) -> None:
    assert_independent_of_the_batch(tiny(), asked(12), GENS[gen])


def assert_independent_of_the_batch(lm: LanguageModel, requests: list[Request], spec: GenSpec) -> None:
    together = lm.generate(requests, spec, seed=3)
    small = dataclasses.replace(spec, batch_tokens=90)
    shuffled = random.Random(1).sample(requests, len(requests))
    apart = {(s.id, s.sample): s for s in lm.generate(shuffled, small, seed=3)}
    alone = lm.generate(requests[:1], spec, seed=3)
    assert together == [apart[s.id, s.sample] for s in together]
    assert together[: spec.n] == alone


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "opt"])
def test_greedy_equals_transformers_generate_one_by_one(family: str) -> None:
    lm = tiny(family)
    for sample, request in zip(lm.generate(asked(8), max_new_tokens=12), asked(8), strict=True):
        ids = torch.tensor([lm.encode(request.prompt, request.chat)])
        out = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert sample.text == lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_near_tie_is_decided_on_the_row_alone_whatever_the_batch_says() -> None:
    """Noise of half the tolerance, different in every batch shape, stands for rounding: the texts must not move."""
    lm, requests = tiny(), asked(30)
    gen = GenSpec(max_new_tokens=15, do_sample=True, top_p=0.9, tie_tolerance=0.2)
    quiet = lm.generate(requests, gen)
    forward = lm.model.forward

    def noisy(**inputs: object):  # type: ignore[no-untyped-def]
        output = forward(**inputs)
        rows = output.logits.shape[0]
        if rows > 1:
            noise = torch.rand(output.logits.shape, generator=torch.Generator().manual_seed(rows))
            output.logits = output.logits + (noise - 0.5) * 0.18
        return output

    lm.model.forward = noisy
    try:
        assert [s.text for s in lm.generate(requests, gen)] == [s.text for s in quiet]
        loose = GenSpec(max_new_tokens=15, do_sample=True, top_p=0.9, tie_tolerance=0)
        assert [s.text for s in lm.generate(requests, loose)] != [s.text for s in quiet]  # the noise is felt
    finally:
        del lm.model.forward


def test_the_noise_is_keyed_by_seed_request_sample_and_step() -> None:
    lm = tiny()
    gen = GenSpec(max_new_tokens=20, do_sample=True, n=2)
    one, two = lm.generate(["abc", "abc"], gen)[::2]
    assert one.text != two.text  # same prompt, other request
    first = lm.generate(["abc"], gen, seed=0)
    assert first[0].text != first[1].text
    assert lm.generate(["abc"], gen, seed=1) != first
    assert lm.generate(["abc"], gen, seed=0) == first


def test_gumbel_noise_samples_the_softmax() -> None:
    """Chi-square of 20,000 draws over 12 tokens: below the 99.9 % quantile of chi-square with 11 degrees (31.3)."""
    n = 20_000
    logits = torch.linspace(-2, 2, 12).expand(n, -1)
    keys = torch.tensor([sampling.noise_key(0, f"r{i}", 0) for i in range(n)])
    gen = GenSpec(do_sample=True)
    tokens, _ = sampling.pick(logits, keys, gen, 3, 0.0)
    expected = logits[0].softmax(-1) * n
    counts = torch.bincount(tokens, minlength=12)
    assert float(((counts - expected) ** 2 / expected).sum()) < 31.3


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([0, 1, 3, 40, 700]), st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]),
    st.sampled_from([0.3, 1.0, 2.0]),
)  # fmt: skip
def test_candidates_are_those_of_transformers(seed: int, top_k: int, top_p: float, temperature: float) -> None:
    """Also where the nucleus is larger than the first look (700 of 1,000 tokens)."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    scaled = torch.randn(4, 1000, generator=torch.Generator().manual_seed(seed)) / temperature
    gen = GenSpec(do_sample=True, top_k=top_k, top_p=top_p)
    for size in (64, 512, 1000):
        found = sampling.candidates(scaled, gen, sampling.Near(0.0, 0.0), size)
        if found.whole.all():
            break
    assert found.whole.all()
    expected = scaled.clone()
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    for row in range(4):
        theirs = set(torch.nonzero(expected[row] > -torch.inf)[:, 0].tolist())
        ours = set(found.ids[row][found.inside[row]].tolist())
        # fp32 and fp64 sums may place the very last token of the nucleus differently.
        assert len(ours ^ theirs) <= (1 if top_p < 1 else 0)
    if top_p == 1:  # without equal logits nothing at the edge of top-k is uncertain
        assert torch.equal(found.inside, found.surely)


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, requests, gen = tiny(), asked(12), GenSpec(max_new_tokens=8)
    expected = lm.generate(requests, gen)
    run, sizes = generation._run, []

    def tight(lm, rows, gen, ends):  # type: ignore[no-untyped-def]
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run(lm, rows, gen, ends)

    monkeypatch.setattr(generation, "_run", tight)
    assert lm.generate(requests, gen) == expected
    assert sizes[:3] == [12, 6, 3]


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(generation, "_run", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        tiny().generate(["a", "b"])


def test_each_prompt_is_read_once_for_all_its_samples() -> None:
    lm = tiny()
    widths: list[tuple[int, int]] = []
    lm.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    lm.generate(["abcdef"], GenSpec(max_new_tokens=3, do_sample=True, n=5, tie_tolerance=0))
    assert widths[0] == (1, 7)
    assert all(width == 1 for _, width in widths[1:])
    assert widths[1][0] == 5


def test_stop_reasons_and_token_counts() -> None:
    stops = Counter((s.stop, s.tokens == 12) for s in tiny().generate(asked(40), GENS["plain"]))
    assert stops["eos", False] > 0
    assert stops["length", True] > 0
    assert ("length", False) not in stops


def test_a_long_prompt_loses_its_beginning_and_that_is_counted() -> None:
    lm = tiny(max_position_embeddings=32)
    requests = [Request(id="a", prompt="x" * 40 + "abc", record="a", kind="x")]
    (batch,) = generation.generate(lm, requests, GenSpec(max_new_tokens=10), 0)
    assert batch[0].truncated_prompt == 44 - 22
    assert list(json.loads(msgspec.json.encode(batch[0]))) == ["sample", "contested", "cut"]  # names in stored stages
    (kept,) = lm.generate([Request(id="a", prompt="x" * 19 + "abc", record="a", kind="x")], max_new_tokens=9)
    assert lm.encode("x" * 40 + "abc")[-22:] == lm.encode("x" * 19 + "abc")[1:]
    assert kept.stop in {"eos", "length"}


def test_no_room_for_a_prompt_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(DetoxbenchError, match=r"gen\.max_new_tokens=40 leaves no room"):
        tiny(max_position_embeddings=32).generate(["a"], max_new_tokens=40)


def test_bf16_counts_its_near_ties_instead_of_hiding_them() -> None:
    lm = tiny(dtype=torch.bfloat16)
    made = [g for batch in generation.generate(lm, asked(20), GENS["plain"], 0) for g in batch]
    assert sum(g.near_ties for g in made) > 0


def attacks(count: int = 12) -> list[Request]:
    """Two long attacks before questions of different lengths, and one prompt that is like no other."""
    r = random.Random(5)
    long = ["".join(r.choice(CHARACTERS) for _ in range(60)) for _ in range(2)]
    ends = ["".join(r.choice(CHARACTERS) for _ in range(1 + i % 7)) for i in range(count)]
    prompts = [*(long[i % 2] + end for i, end in enumerate(ends)), long[0]]
    return [Request(id=f"a{i}", prompt=p, record=f"a{i}", kind="x") for i, p in enumerate(prompts)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_beginning_is_read_once_and_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a sliding window (16 in mistral and gemma2) would count padding inside a prompt."""
    lm, gen, shapes = tiny(family), GenSpec(max_new_tokens=6, do_sample=True, top_p=0.9, n=2), list[tuple[int, ...]]()
    hook = lm.model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    together = lm.generate(attacks(), gen)
    hook.remove()
    assert shapes[:2] == [(2, 61), (13, 7)]  # <s> and the attacks, then what is left of every prompt
    monkeypatch.setattr("detoxbench.engine.beginnings.WORTH_SHARING", 0)
    assert lm.generate(attacks(), gen) == together


def test_beginnings_are_shared_where_it_pays_and_the_same_changes_are_in_force() -> None:
    same, other = (1,) * 20, (2,) * 20
    assert beginnings([(0, (*same, 3)), (0, (*same, 4, 5)), (0, (*same, 6))]) == ([0, 0, 0], [19, 20, 19])
    under_two = [(variant, (*same, token)) for variant in (0, 1) for token in (3, 4, 5, 6)]
    assert beginnings(under_two) == ([0, 0, 0, 0, 4, 4, 4, 4], [20] * 8)
    assert beginnings([(0, (*same, 3)), (0, (*other, 4))])[1] == [0, 0]
    assert beginnings([(0, (*same, *range(30))), (0, (*same, *range(3, 30)))])[1] == [0, 0]


@pytest.mark.parametrize("leave", [1, 10**9])
def test_when_finished_rows_leave_changes_nothing(leave: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny()
    expected = lm.generate(asked(30), GENS["plain"])
    assert len({s.tokens for s in expected}) > 3
    monkeypatch.setattr(generation, "LEAVE", leave)
    assert lm.generate(asked(30), GENS["plain"]) == expected


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("room", [1, 7, 100])
def test_the_cache_holds_what_that_of_transformers_holds(family: str, room: int) -> None:
    """With too little room, with enough, and after rows were chosen."""
    from transformers import DynamicCache

    model = tiny(family).model
    ours, theirs, name = Cache(model.config, room), DynamicCache(), cache_name(type(model))
    ids = torch.arange(3, 3 + 3 * 9).view(3, 9)
    with torch.inference_mode():
        for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:8]):
            made = [model(part, use_cache=True, **{name: past}).logits for past in (ours.past, theirs)]
            assert torch.equal(*made)
        order = torch.tensor([2, 0, 2, 1])
        ours.select(order)
        theirs.reorder_cache(order)
        made = [model(ids[order, 8:], use_cache=True, **{name: past}).logits for past in (ours.past, theirs)]
    assert torch.equal(*made)
    for one, two in zip(ours.past.layers, theirs.layers, strict=True):
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.values, two.values)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5000), st.integers(1, 600), st.sampled_from(["drawn", "equal ones", "the largest last"]))
def test_the_largest_in_two_steps_are_the_largest(length: int, k: int, how: str) -> None:
    k = min(k, length)
    x = torch.randn(3, length, generator=torch.Generator().manual_seed(length))
    x = {"drawn": x, "equal ones": (x * 4).round(), "the largest last": x.sort().values}[how]
    values, ids = sampling._top(x, k)
    assert torch.equal(values, x.topk(k, dim=-1).values)
    assert torch.equal(values, x.gather(1, ids))
    assert all(len(set(row)) == k for row in ids.tolist())


def test_looking_at_logits_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaked and flat rows together, so that all sizes of candidates are needed."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 6000, generator=g) * torch.linspace(0.5, 8, 40)[:, None]
    keys = torch.randint(-(2**62), 2**62, (40,), generator=g)
    for gen in GENS.values():
        whole = sampling.pick(logits, keys, gen, 2, 1e-3)
        monkeypatch.setattr(sampling, "PART", 6000 * 7)
        parts = sampling.pick(logits, keys, gen, 2, 1e-3)
        monkeypatch.undo()
        assert torch.equal(whole[0], parts[0])
        assert torch.equal(whole[1], parts[1])


def test_among_equal_logits_the_lowest_token_is_taken() -> None:
    logits = torch.zeros(2, 900)
    logits[0, [700, 30, 31]] = 5.0
    tokens, contested = sampling.pick(logits, torch.zeros(2, dtype=torch.long), GenSpec(), 0, 1e-3)
    assert tokens.tolist() == [30, 0]
    assert contested.all()
