"""bf16 and fp16: what top-k and top-p leave is what is drawn, near-ties are counted, and batches must not change."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from detoxbench.config import GenSpec
from detoxbench.engine import generation, next_token, sampling
from detoxbench.lm import LanguageModel
from detoxbench.model import precision
from detoxbench.model.logit_state import LogitFunction, LogitState
from detoxbench.records import Request
from detoxbench.runner.provenance import arithmetic
from tests.engine.test_generation import asked
from tests.support.tiny import tiny

LOW = [torch.bfloat16, torch.float16]
NUCLEUS = GenSpec(max_new_tokens=12, do_sample=True, top_p=0.6)
MANY = dataclasses.replace(NUCLEUS, max_new_tokens=8, n=3, batch_tokens=400)


def rounded(rows: int, vocabulary: int, dtype: torch.dtype, spread: float = 3.0, seed: int = 0) -> torch.Tensor:
    """Logits as a model of that type gives them, in float32: full of equal ones."""
    drawn = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread + 6
    return drawn.to(dtype).float()


def keys(rows: int) -> torch.Tensor:
    return torch.tensor([sampling.noise_key(0, f"r{i}", 0) for i in range(rows)])


def pick(logits: torch.Tensor, gen: GenSpec, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return sampling.pick(logits, keys(len(logits)), gen, 0, 0.0, torch.finfo(dtype).eps)


def left(logits: list[float], gen: GenSpec) -> list[int]:
    """What top-k, then top-p leave of one row, told plainly: in the order of (value, id), in float64."""
    order = sorted((i for i, x in enumerate(logits) if x > -torch.inf), key=lambda i: (-logits[i], i))
    order = order[: gen.top_k or None]
    p = (torch.tensor([logits[i] for i in order], dtype=torch.float64) / gen.temperature).softmax(-1).tolist()
    return [i for k, i in enumerate(order) if k == 0 or sum(p[:k]) < gen.top_p]


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_the_one_most_probable_token_is_the_greedy_one(dtype: torch.dtype) -> None:
    logits = rounded(200, 900, dtype)
    best, _ = pick(logits, GenSpec(), dtype)
    assert torch.equal(best, logits.argmax(-1))
    assert torch.equal(pick(logits, GenSpec(do_sample=True, top_k=1, temperature=2.0), dtype)[0], best)
    assert torch.equal(pick(logits, GenSpec(do_sample=True, top_p=1e-6), dtype)[0], best)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize(
    "gen",
    [
        GenSpec(do_sample=True, top_p=0.5), GenSpec(do_sample=True, top_p=0.9, temperature=0.7),
        GenSpec(do_sample=True, top_k=7), GenSpec(do_sample=True, top_k=40, top_p=0.8),
    ],
    ids=lambda gen: f"{gen.top_p} {gen.top_k}",
)  # fmt: skip
def test_no_token_comes_from_outside_of_what_is_left_of_its_own_logits(dtype: torch.dtype, gen: GenSpec) -> None:
    logits = rounded(300, 500, dtype, spread=1.0)
    tokens, _ = pick(logits, gen, dtype)
    assert all(int(t) in left(row, gen) for t, row in zip(tokens, logits.tolist(), strict=True))
    assert not torch.equal(tokens, pick(logits, GenSpec(do_sample=True), dtype)[0])


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("gen", [GenSpec(do_sample=True, top_p=0.6), GenSpec(do_sample=True, top_k=7)], ids=["p", "k"])
def test_the_draws_have_the_distribution_of_what_is_left(dtype: torch.dtype, gen: GenSpec) -> None:
    """Chi-square over 20,000 draws, below its 99.9 % quantile; equal logits lie at the edge."""
    from scipy.stats import chi2

    n, row = 20_000, torch.tensor([1.0] * 8 + [2.0] * 3 + [0.0] * 13 + [1.5] * 6 + [0.5] * 10).to(dtype).float()
    inside = left(row.tolist(), gen)
    assert float(row[inside[-1]]) in {float(x) for i, x in enumerate(row) if i not in inside}
    tokens, _ = pick(row.expand(n, -1), gen, dtype)
    expected = row[inside].double().softmax(-1) * n
    counts = torch.bincount(tokens, minlength=40)[inside]
    assert int(counts.sum()) == n
    assert float(((counts - expected) ** 2 / expected).sum()) < chi2.ppf(0.999, len(inside) - 1)


@pytest.mark.parametrize("relative", [0.0, 2.0**-7])
@pytest.mark.parametrize("gen", [GenSpec(), GenSpec(do_sample=True, top_p=0.7), GenSpec(do_sample=True, top_k=40)])
def test_masked_and_huge_logits_change_no_other_row_and_are_never_drawn(gen: GenSpec, relative: float) -> None:
    logits = rounded(9, 600, torch.bfloat16, spread=1.0)
    plain = sampling.pick(logits, keys(9), gen, 0, 1e-3, relative)
    logits[1, 5:] = -torch.inf
    logits[4] = torch.finfo(torch.float32).min
    logits[4, 17] = 3.0
    logits[7] *= 1e6
    tokens, contested = sampling.pick(logits, keys(9), gen, 0, 1e-3, relative)
    assert int(tokens[1]) in range(5)
    assert int(tokens[4]) == 17
    assert not contested[4]
    for same, other in ((tokens, plain[0]), (contested, plain[1])):
        assert torch.equal(same[[0, 2, 3, 5, 6, 8]], other[[0, 2, 3, 5, 6, 8]])


@pytest.mark.parametrize(
    "gen",
    [
        GenSpec(), GenSpec(do_sample=True), GenSpec(do_sample=True, top_k=30), GenSpec(do_sample=True, top_p=0.6),
        GenSpec(do_sample=True, top_p=0.97, top_k=100),
    ],
    ids=lambda gen: f"{gen.do_sample} {gen.top_p} {gen.top_k}",
)  # fmt: skip
def test_ties_go_by_token_id_however_many_candidates_are_looked_at(
    gen: GenSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = rounded(60, 700, torch.bfloat16, spread=0.5).round()  # hardly ten different values
    logits[:20] *= -0.0  # all equal, of both signs
    found = []
    for sizes in ((), (4, 16), (31,), (256,)):
        monkeypatch.setattr(sampling, "CANDIDATES", sizes)
        found.append(pick(logits, gen, torch.bfloat16))
    for tokens, contested in found[1:]:
        assert torch.equal(tokens, found[0][0])
        assert torch.equal(contested, found[0][1])
    assert all(int(t) in left(row, gen) for t, row in zip(found[0][0], logits.tolist(), strict=True))


def test_the_tolerance_counts_and_never_chooses() -> None:
    logits = rounded(200, 500, torch.float32, spread=1.0)
    for gen in (GenSpec(), GenSpec(do_sample=True, top_p=0.8), GenSpec(do_sample=True, top_k=5)):
        found = [
            sampling.pick(logits, keys(200), gen, 0, absolute, rel) for absolute, rel in ((0, 0), (0.5, 0), (0, 1))
        ]
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][0], found[2][0])
        assert 0 <= int(found[0][1].sum()) < int(found[1][1].sum()) < int(found[2][1].sum())


def test_what_could_change_places_at_the_edge_is_contested() -> None:
    """In fp32: the last token inside and the first outside are nearly equal, though far from top_p in their mass."""
    logits = torch.tensor([0.5, 0.25, 0.25 * (1 - 1e-6)]).log().expand(400, -1)
    for gen in (GenSpec(do_sample=True, top_p=0.6), GenSpec(do_sample=True, top_k=2)):
        tokens, contested = sampling.pick(logits, keys(400), gen, 0, 1e-3)
        assert set(tokens.tolist()) == {0, 1}
        assert bool(contested[tokens == 1].all())
        assert not bool(contested[tokens == 0].all())
    one = sampling.pick(logits[:, 1:], keys(400), GenSpec(do_sample=True, top_p=0.3), 0, 1e-3)
    assert bool(one[1].all())


def test_in_low_precision_logits_closer_than_a_unit_in_the_last_place_are_contested() -> None:
    unit = 2.0**-5  # of bf16 between 4 and 8
    logits = torch.tensor([[5.0, 5.0, 1.0], [5.0, 5.0 + unit / 2, 1.0], [5.0, 5.0 + unit, 1.0], [-1.0, -9, -9]])
    assert pick(logits, GenSpec(), torch.bfloat16)[1].tolist() == [True, True, False, False]
    assert pick(torch.zeros(1, 3), GenSpec(), torch.bfloat16)[1].tolist() == [True]


@pytest.mark.parametrize("gen", [GenSpec(), GenSpec(do_sample=True, top_p=0.9)], ids=["greedy", "nucleus"])
def test_the_count_of_contested_tokens_is_of_each_row_alone(gen: GenSpec) -> None:
    logits = rounded(130, 300, torch.bfloat16)
    logits[::5] *= 100
    tokens, contested = pick(logits, gen, torch.bfloat16)
    assert 0 < int(contested.sum()) < 130 / 5
    for rows in (1, 7, 64):
        parts = [
            sampling.pick(logits[i : i + rows], keys(130)[i : i + rows], gen, 0, 0.0, 2.0**-7)
            for i in range(0, 130, rows)
        ]
        assert torch.equal(torch.cat([part[0] for part in parts]), tokens)
        assert torch.equal(torch.cat([part[1] for part in parts]), contested)


def test_the_mass_of_a_large_vocabulary_is_summed_as_exactly_as_is_said() -> None:
    logits = torch.randn(20, 256_000, generator=torch.Generator().manual_seed(0)) * 4.6
    exact = (logits.double() - logits.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)
    for fast in (False, True):
        assert (
            float((sampling.mass(logits, logits.argmax(-1, keepdim=True), fast) / exact - 1).abs().max())
            < sampling.SUM_ERROR
        )


# --- models ----------------------------------------------------------------------------------------------------------


def made(lm: LanguageModel, requests: list[Request], gen: GenSpec, **more: Any) -> list[generation.Generated]:
    return [g for batch in generation.generate(lm, requests, gen, 0, **more) for g in batch]


def texts(found: list[generation.Generated]) -> dict[tuple[str, int], str]:
    return {(g.sample.id, g.sample.sample): g.sample.text for g in found}


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_models_draws_stay_inside_their_nucleus_and_top_k_of_one_is_greedy(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, requests = tiny(dtype=dtype), asked(30)
    greedy = texts(made(lm, requests, GenSpec(max_new_tokens=12)))
    assert texts(made(lm, requests, GenSpec(max_new_tokens=12, do_sample=True, top_k=1))) == greedy
    seen, choose = [], next_token.pick

    def watched(logits: torch.Tensor, *given: Any) -> Any:
        found = choose(logits, *given)
        seen.append((logits, found[0]))
        return found

    monkeypatch.setattr(next_token, "pick", watched)
    drawn = texts(made(lm, requests, NUCLEUS))
    assert drawn != greedy
    assert seen
    assert all(int(t) in left(row, NUCLEUS) for x, ts in seen for t, row in zip(ts, x.tolist(), strict=True))


def test_a_logit_function_that_masks_widens_nothing() -> None:
    lm, requests = tiny(dtype=torch.bfloat16), asked(20)

    def mask(logits: torch.Tensor, _: LogitState) -> torch.Tensor:
        return logits.masked_fill(torch.arange(logits.shape[1]) % 2 == 0, -torch.inf)

    lm.in_force.logit_functions.append(LogitFunction(mask))
    one = made(lm, requests, GenSpec(max_new_tokens=12, do_sample=True, top_k=1))
    assert texts(one) == texts(made(lm, requests, GenSpec(max_new_tokens=12)))
    drawn = made(lm, requests, NUCLEUS)
    assert texts(drawn) != texts(made(lm, requests, dataclasses.replace(NUCLEUS, top_p=1.0)))
    ids = [i for g in drawn for i in lm.tokenizer(g.sample.text, add_special_tokens=False)["input_ids"]]
    assert ids
    assert all(i % 2 for i in ids)


@pytest.mark.slow
@pytest.mark.parametrize("gen", [GenSpec(), GenSpec(do_sample=True, top_p=0.9)], ids=["greedy", "nucleus"])
def test_the_share_of_contested_tokens_does_not_hang_on_the_batch(gen: GenSpec) -> None:
    """Of some 25,000 tokens, so that 0.2 points are three standard errors of a share of 1 % and not chance."""
    lm, requests = tiny(dtype=torch.bfloat16), asked(1500)
    rates = []
    for rows in (1, 7, 64):
        tokens = rows * 60 if rows > 1 else 1
        found = made(lm, requests, dataclasses.replace(gen, max_new_tokens=20, batch_tokens=tokens))
        rates.append(100 * sum(g.near_ties for g in found) / sum(g.sample.tokens for g in found))
    assert min(rates) > 0.5
    assert max(rates) - min(rates) < 0.2


@pytest.fixture
def rounding() -> Iterator[LanguageModel]:
    """A bf16 model whose logits lose their last bits otherwise in every batch."""
    lm = tiny(dtype=torch.bfloat16)
    forward = lm.model.forward

    def noisy(**inputs: Any) -> Any:
        output = forward(**inputs)
        g = torch.Generator().manual_seed(len(inputs["input_ids"]) * 1000 + int(inputs["input_ids"].sum()))
        units = torch.randint(-3, 4, output.logits.shape, generator=g) * 2.0**-8
        output.logits = (output.logits.float() * (1 + units)).bfloat16()
        return output

    lm.model.forward = noisy
    yield lm
    del lm.model.forward


def test_what_is_made_already_changes_no_batch(rounding: LanguageModel) -> None:
    """After a kill at any sample, also in the middle of a batch, the rest has the same texts."""
    lm, requests, gen = rounding, asked(20), MANY
    whole = made(lm, requests, gen)
    order = list(texts(whole))
    for cut in (1, 7, 30, 31, 59):
        rest = made(lm, requests, gen, done=set(order[:cut]))
        assert texts(whole[:cut]) | texts(rest) == texts(whole)
        assert len(rest) == 60 - cut
    by_what_is_left = made(lm, [r for r in requests if (r.id, 0) not in set(order[:30])], gen)
    assert not texts(by_what_is_left).items() <= texts(whole).items()  # so that this could fail


def test_halves_for_want_of_memory_are_the_same_after_a_kill(
    rounding: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm, gen = rounding, MANY
    run, sizes = generation._run, list[int]()

    def tight(lm: Any, rows: Any, *given: Any) -> None:
        sizes.append(len(rows))
        if len(rows) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run(lm, rows, *given)

    monkeypatch.setattr(generation, "_run", tight)
    generation._tell_of_halving.cache_clear()
    whole = made(lm, asked(20), gen)
    assert max(sizes) > 5
    assert [r.getMessage() for r in caplog.records if "gen.batch_tokens" in r.getMessage()] == [
        "out of memory: batches are run in halves; a smaller gen.batch_tokens (now 400) saves the tries"
    ]
    for cut in (2, 33):
        assert texts(whole[:cut]) | texts(made(lm, asked(20), gen, done=set(list(texts(whole))[:cut]))) == texts(whole)


# --- float32 that is not ---------------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were computed alone."""
    calls, compute = list[int](), generation._alone
    monkeypatch.setattr(generation, "_alone", lambda lm, row: calls.append(1) or compute(lm, row))
    return calls


CLOSE = GenSpec(max_new_tokens=12, do_sample=True, tie_tolerance=0.1)


def test_in_float32_near_ties_are_decided_alone(alone: list[int]) -> None:
    assert precision.spacing(tiny().model) == precision.FLOAT32
    assert sum(g.near_ties for g in made(tiny(), asked(20), CLOSE)) == len(alone) > 0


def test_products_in_less_than_float32_are_found_and_only_counted(alone: list[int]) -> None:
    """autocast stands for TF32 too, which a CPU has not."""
    lm = tiny()
    assert arithmetic(lm.model)["products"] == "float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert precision.spacing(lm.model) == 2.0**-7
        assert arithmetic(lm.model)["products"] == "bfloat16"
        assert made(lm, asked(20), CLOSE)
    assert not alone


def test_one_parameter_in_less_than_float32_is_enough(alone: list[int]) -> None:
    lm = tiny(seed=4)
    lm.model.model.layers[0].mlp.to(torch.float16)
    assert lm.dtype == torch.float32
    assert precision.spacing(lm.model) == 2.0**-10
    read, rows = generation._Read(torch.tensor([[1.0, 1.0]]), None), generation._rows(lm, asked(1), GenSpec(), 0)
    generation._choose(lm, generation._Batch.of(lm, rows), read, None, GenSpec(), 0, 2.0**-10)
    assert rows[0].near_ties == 1
    assert not alone


def test_where_a_run_was_made_says_how_it_computed() -> None:
    told = arithmetic(tiny().model)
    assert told["attention"] == "sdpa"
    assert set(told["float32_matmul_precision"]) == {"cuda", "mkldnn"}
    assert logging.getLogger("detoxbench")
