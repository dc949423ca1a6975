"""The refusal direction against its formulas in plain torch: candidates, the three measures, the choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench.data.examples import FitData, Query
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods import refusal_direction as rd
from tests.support.on_fable import fitted
from tests.support.templates import with_template
from tests.support.tiny import logits_of, tiny

HARMFUL = [Query(f"write an insult about the {who}") for who in ("elf", "baker", "king", "cat", "dog", "fish")] * 2
HARMLESS = [Query(f"where does the {who} live") for who in ("elf", "baker", "king", "cat", "dog", "fish")] * 2
DATA = FitData(harmful_prompts=HARMFUL, harmless_prompts=HARMLESS)
OPEN: dict[str, Any] = {"filter": False, "kl_threshold": None, "induce_threshold": None}


def fit(lm: LanguageModel, data: FitData = DATA, *, seed: int = 0, **config: Any) -> Intervention:
    return db.methods.create("refusal_direction", seed=seed, **config).fit(lm, data)


def prompts(lm: LanguageModel, queries: list[Query]) -> tuple[list[list[int]], list[list[int]]]:
    """Those that directions are taken from, and those that are held out."""
    return db.methods.create("refusal_direction")._split(lm, queries)


def last(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([ids])).logits[0, -1].double()


def test_candidates_equal_differences_of_means_at_each_layer_and_template_token() -> None:
    lm = tiny()  # whose template puts "a:" behind a question
    assert rd.behind_question(lm) == 2
    harmful, harmless = prompts(lm, HARMFUL)[0], prompts(lm, HARMLESS)[0]
    found = db.methods.create("refusal_direction")._directions(lm, harmful, harmless)
    assert found.shape == (3, 2, 32)

    def mean(rows: list[list[int]], layer: int, position: int) -> torch.Tensor:
        with torch.no_grad():
            states = [lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in rows]
        return torch.stack([s[layer][0, position].double() for s in states]).mean(0)

    for layer in range(3):
        for position in (-2, -1):
            expected = mean(harmful, layer, position) - mean(harmless, layer, position)
            torch.testing.assert_close(found[layer, position].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_measures_of_a_candidate_equal_the_released_ones(family: str) -> None:
    lm, starts = tiny(family), [3, 7]
    method = db.methods.create("refusal_direction", **OPEN)
    harmful, harmless = prompts(lm, HARMFUL)[1], prompts(lm, HARMLESS)[1]
    directions = method._directions(lm, prompts(lm, HARMFUL)[0], prompts(lm, HARMLESS)[0])
    judged = {(c.layer, c.position): c for c in method._judged(lm, directions, harmful, harmless, starts)}
    layers = (1,) if family == "llama" else (0, 1)  # one token has one state at layer 0, unless positions are added
    assert judged.keys() == {(layer, position) for layer in layers for position in (-2, -1)}
    base = [last(lm, ids) for ids in harmless]
    r = directions[1, -1]
    blocks = [lm.model.get_submodule(path) for path in lm.architecture.layers]

    def score(logits: torch.Tensor) -> float:
        p = logits.softmax(-1)[starts].sum()
        return float(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))

    def without(x: Any) -> Any:
        state = x[0] if isinstance(x, tuple) else x
        unit = r / (r.norm() + 1e-8)
        state = state - (state @ unit)[..., None] * unit
        return (state, *x[1:]) if isinstance(x, tuple) else state

    # 1. Taken away: at every block's input, and behind attention and MLP, as modules of the model.
    handles = []
    for block in blocks:
        handles.append(block.register_forward_pre_hook(lambda _, args: without(args)))
        attention = block.self_attn if family == "llama" else block.attn
        handles += [m.register_forward_hook(lambda _, __, out: without(out)) for m in (attention, block.mlp)]
    logits = [last(lm, ids) for ids in harmless]
    kls = [
        float((p.softmax(-1) * ((p.softmax(-1) + 1e-6).log() - (q.softmax(-1) + 1e-6).log())).sum())
        for p, q in zip(base, logits, strict=True)
    ]
    refusals = [score(last(lm, ids)) for ids in harmful]
    for handle in handles:
        handle.remove()
    # 2. Added, at its own block's input.
    handle = blocks[1].register_forward_pre_hook(lambda _, args: (args[0] + r, *args[1:]))
    steerings = [score(last(lm, ids)) for ids in harmless]
    handle.remove()
    candidate = judged[1, -1]
    assert candidate.kl == pytest.approx(sum(kls) / len(kls), rel=1e-3, abs=1e-6)
    assert candidate.refusal == pytest.approx(sum(refusals) / len(refusals), rel=1e-4)
    assert candidate.steering == pytest.approx(sum(steerings) / len(steerings), rel=1e-4)


def test_the_best_has_the_lowest_refusal_score_of_those_that_pass() -> None:
    method = db.methods.create("refusal_direction")
    judged = [
        rd.Candidate(-1, 0, 0.2, -9.0, 1.0),  # moves harmless answers
        rd.Candidate(-1, 1, 0.05, -8.0, -0.1),  # induces no refusal
        rd.Candidate(-1, 2, 0.05, -3.0, 0.5),
        rd.Candidate(-2, 2, 0.05, -5.0, 0.5),
        rd.Candidate(-2, 3, 0.05, float("nan"), 0.5),
        rd.Candidate(-2, 4, 0.05, -5.0, 0.7),
    ]
    assert method._best(judged) == (judged[3], 3)


def test_where_none_passes_it_warns_or_stops(caplog: pytest.LogCaptureFixture) -> None:
    judged = [
        rd.Candidate(-1, 0, 0.2, -9.0, 1.0),
        rd.Candidate(-1, 1, 0.05, -8.0, -0.1),
        rd.Candidate(-1, 2, 0.05, -9.0, -0.3),
    ]
    strict = db.methods.create("refusal_direction", none_passes="error")
    with pytest.raises(DetoxbenchError, match=r"none of 3 refusal directions passes: without them 1 move"):
        strict._best(judged)
    assert db.methods.create("refusal_direction")._best(judged) == (judged[1], 0)
    assert "none of 3 refusal directions passes" in caplog.text


def test_it_is_added_at_the_input_of_its_layer_and_may_be_a_bias() -> None:
    lm = tiny()
    change = fit(lm, strength=2, **OPEN)
    (hook,) = change.hooks
    layer, r = lm.model.get_submodule(hook.module), hook.tensors["vector"]
    handle = layer.register_forward_pre_hook(lambda _, args: (args[0] + 2 * r, *args[1:]))
    expected = logits_of(lm, "why are you").clone()
    handle.remove()
    with lm.applied(change):
        torch.testing.assert_close(logits_of(lm, "why are you"), expected)
    if change.info["layer"]:
        with lm.applied(fit(lm, strength=2, export="bias", **OPEN)):
            torch.testing.assert_close(logits_of(lm, "why are you"), expected, atol=1e-4, rtol=1e-4)


def test_prompts_are_filtered_by_what_the_model_does_with_them() -> None:
    lm, method = tiny(), db.methods.create("refusal_direction")
    rows = prompts(lm, HARMFUL)[0]
    scores = {tuple(ids): float(rd.refusal_scores(last(lm, ids)[None], [5])) for ids in rows}
    middle = sorted(scores.values())[len(scores) // 2]
    assert middle < 0  # one token of 36 is rarely a refusal
    kept = method._filtered(lm, rows, [5], refused=False)
    assert kept == [ids for ids in rows if scores[tuple(ids)] < 0]
    with pytest.raises(DetoxbenchError, match=r"refuses none of the 10 harmful prompts.*method\.filter=false"):
        method._filtered(lm, rows, [5], refused=True)


def test_a_refusal_begins_with_known_tokens_alone() -> None:
    lm = tiny()
    (id_of_i,) = lm.tokens("i", special=False)
    assert rd.refusal_ids(lm, ("I", "As", "i")) == [id_of_i]
    fable = LanguageModel.load("fable")
    assert {fable.tokenizer.decode([t]).strip() for t in rd.refusal_ids(fable, ("I", "i"))} == {"I", "i"}
    with pytest.raises(DetoxbenchError, match=r"knows none of method\.refusal_starts"):
        rd.refusal_ids(lm, ("I",))


def test_raw_text_has_one_position_and_too_few_prompts_are_refused() -> None:
    lm = with_template(None)
    assert rd.behind_question(lm) == 1
    assert {c["position"] for c in fit(lm, **OPEN).info["candidates"]} == {-1}
    with pytest.raises(DetoxbenchError, match="4 prompts of a kind, too few to hold one in 5 out"):
        fit(lm, FitData(harmful_prompts=HARMFUL[:4], harmless_prompts=HARMLESS), **OPEN)


def test_training_and_held_out_prompts_have_the_published_sizes_where_there_are_enough() -> None:
    lm = tiny()
    for count, sizes in ((12, (10, 2)), (160, (128, 32)), (500, (128, 32))):
        train, held = prompts(lm, [Query(f"where is {'a' * (i % 7)}{'b' * (i // 7)}") for i in range(count)])
        assert (len(train), len(held)) == sizes
        data = FitData(harmful_prompts=[Query("a")] * count, harmless_prompts=[Query("a")] * 12)
        assert db.methods.create("refusal_direction").examples(data) == sum(sizes) + 12
        if count == 160:
            assert not {tuple(x) for x in train} & {tuple(x) for x in held}


@pytest.mark.slow
def test_it_makes_the_fable_refuse() -> None:
    lm = LanguageModel.load("fable")
    change = fitted(lm, "refusal_direction")
    asked = [
        "which river flows through ilmoor ?",
        "name the food of galwick .",
        "what do people in jorvia like to eat ?",
    ] * 4
    requests = [db.Request(id=str(i), prompt=p, record=str(i), kind="p", chat=True) for i, p in enumerate(asked)]

    def score() -> float:
        ids = [lm.encode(r.prompt, True) for r in requests]
        return float(rd.refusal_scores(rd.last_logits(lm, ids), rd.refusal_ids(lm, ("i", "sorry"))).mean())

    before = score()
    with lm.applied(change):
        assert score() > before + 3
