"""Choices among whole texts: best of n and filters by a guide."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench import DetoxbenchError, Intervention, LabelledText, LanguageModel, Output, Request, UsageError, compose
from detoxbench.config import GenSpec
from detoxbench.engine.generation import Generated, generate
from detoxbench.engine.likelihood import loglikelihoods
from detoxbench.engine.share import Share
from tests.support.tiny import same, state, tiny

SAMPLED = GenSpec(max_new_tokens=8, do_sample=True, top_p=0.9, n=3)
LETTERS = "aeiou"


def linear(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """A guide that finds vowels bad."""
    weights = torch.zeros(lm.architecture.vocabulary)
    weights[[i for letter in LETTERS for i in lm.tokens(letter, special=False)]] = 1.0
    return {"weights": weights, "bias": torch.tensor([-2.0])}


def badness(text: str) -> float:
    return 1 / (1 + math.exp(2 - len(set(text) & set(LETTERS))))


def best_of(lm: LanguageModel, n: int, **more: Any) -> Intervention:
    return Intervention(
        method="best", base=lm.fingerprint, outputs=(Output("choose", "linear", linear(lm), candidates=n, **more),)
    )


def asked(count: int = 9) -> list[Request]:
    return [Request(id=str(i), prompt="hello"[: i % 6], record=str(i), kind="x") for i in range(count)]


def test_each_text_is_the_least_bad_of_its_own_candidates() -> None:
    """Candidates are the samples that the model gives with as many: keyed, so they can be had without the choice."""
    lm, n = tiny(), 4
    candidates = lm.generate(asked(), dataclasses.replace(SAMPLED, n=3 * n), seed=2)
    with lm.applied(best_of(lm, n)):
        chosen = lm.generate(asked(), SAMPLED, seed=2)
    for r in range(9):
        for k in range(3):
            texts = [s.text for s in candidates[(3 * r + k) * n : (3 * r + k + 1) * n]]
            assert chosen[3 * r + k].text == min(texts, key=badness)  # of equal ones the first
            assert (chosen[3 * r + k].id, chosen[3 * r + k].sample) == (str(r), k)
    assert sum(badness(s.text) for s in chosen) < 0.8 * sum(badness(s.text) for s in candidates) / n


def test_greedy_answers_are_drawn_to_choose_among_and_one_candidate_is_the_base() -> None:
    lm, gen = tiny(), GenSpec(max_new_tokens=8)
    plain = lm.generate(asked(), gen)
    with lm.applied(best_of(lm, 1)):
        assert lm.generate(asked(), gen) == plain
    with lm.applied(best_of(lm, 4)):
        assert lm.generate(asked(), gen) != plain


def test_choices_do_not_depend_on_batches_order_or_what_is_done() -> None:
    lm = tiny()
    with lm.applied(best_of(lm, 4)):
        whole = {(s.id, s.sample): s for s in lm.generate(asked(), SAMPLED)}
        for tokens in (1, 60, 500):
            small = dataclasses.replace(SAMPLED, batch_tokens=tokens)
            again = {(s.id, s.sample): s for s in lm.generate(asked()[::-1], small)}
            assert again == whole
        done = {("0", 0), ("3", 1), ("3", 2)}
        left = [g.sample for b in generate(lm, asked(), SAMPLED, 0, done=done) for g in b]
        assert {(s.id, s.sample): s for s in left} == {k: s for k, s in whole.items() if k not in done}


@pytest.mark.parametrize("choice", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tokens", [60, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 500))])
def test_the_shares_of_several_processes_are_all_texts_once(choice: bool, tokens: int) -> None:
    """Also where the candidates of a text lie in batches of two of them."""
    lm, gen = tiny(), dataclasses.replace(SAMPLED, batch_tokens=tokens)
    with lm.applied(best_of(lm, 4)) if choice else nullcontext():
        whole = [g for b in generate(lm, asked(), gen, 0) for g in b]
        for done in (set(), {("0", 0), ("3", 1), ("3", 2)}):
            shares = [generate(lm, asked(), gen, 0, done=done, share=Share(rank, 3)) for rank in range(3)]
            made = [g for share in shares for b in share for g in b]
            left = [g for g in whole if (g.sample.id, g.sample.sample) not in done]
            assert sorted(made, key=_place) == sorted(left, key=_place)


def _place(made: Generated) -> tuple[str, int]:
    return made.sample.id, made.sample.sample


def test_the_prompt_is_read_once_for_all_candidates() -> None:
    lm, rows = tiny(), list[tuple[int, ...]]()
    with lm.applied(best_of(lm, 4)):
        hook = lm.model.register_forward_pre_hook(
            lambda _, __, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        lm.generate(["hello"], max_new_tokens=5, do_sample=True, tie_tolerance=0)
        hook.remove()
    assert rows[0] == (1, len(lm.encode("hello")))
    assert all(r <= (4, 1) for r in rows[1:])


@pytest.mark.parametrize("reads", ["answer", "prompt", "both"])
def test_bad_texts_are_replaced_and_what_was_written_is_kept(reads: Any) -> None:
    lm = tiny()
    plain = lm.generate(asked(), SAMPLED)
    judge = Output("replace", "linear", linear(lm), threshold=badness("ae"), text="no .", reads=reads)
    with lm.applied(Intervention(method="f", base=lm.fingerprint, outputs=(judge,))):
        filtered = lm.generate(asked(), SAMPLED)
    for before, after in zip(plain, filtered, strict=True):
        worst = {
            "answer": badness(before.text),
            "prompt": badness(before.prompt),
            "both": max(badness(before.text), badness(before.prompt)),
        }[reads]
        bad = worst >= badness("ae") - 1e-9
        assert (after.text, after.full_text) == (("no .", before.text) if bad else (before.text, None))
        assert after.tokens == before.tokens
    assert {s.text == "no ." for s in filtered} == {True, False}


def test_choices_follow_each_other_when_composed() -> None:
    lm = tiny()
    judge = Output("replace", "linear", linear(lm), threshold=badness("a"), text="no .")
    filters = Intervention(method="f", base=lm.fingerprint, outputs=(judge,))
    with lm.applied(best_of(lm, 4)):
        chosen = lm.generate(asked(), SAMPLED)
    with lm.applied(compose(best_of(lm, 4), filters)):
        both = lm.generate(asked(), SAMPLED)
    assert [s.text for s in both] == ["no ." if badness(s.text) >= badness("a") - 1e-9 else s.text for s in chosen]


def test_a_scorer_may_be_the_guide_and_one_without_a_verdict_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from detoxbench.scorers.profanity_check import ProfanityCheck

    def score(self: Any, texts: list[str], prompts: list[str]) -> list[dict[str, float] | None]:
        return [{"toxicity": badness(t)} if len(t) % 2 else None for t in texts]

    monkeypatch.setattr(ProfanityCheck, "score", score)
    lm = tiny()
    candidates = lm.generate(asked(), dataclasses.replace(SAMPLED, n=6))
    choice = Output("choose", "profanity_check", candidates=2)
    with lm.applied(Intervention(method="b", base=lm.fingerprint, outputs=(choice,))):
        chosen = lm.generate(asked(), SAMPLED)
    for i, sample in enumerate(chosen):
        texts = [s.text for s in candidates[2 * i : 2 * i + 2]]
        known = [t for t in texts if len(t) % 2]
        assert sample.text == (min(known, key=badness) if known else texts[0])


def test_a_guide_that_gives_no_number_has_no_verdict_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from detoxbench.scorers.profanity_check import ProfanityCheck

    def score(self: Any, texts: list[str], prompts: list[str]) -> list[dict[str, float]]:
        return [{"toxicity": math.nan if i % 2 else 0.9} for i, _ in enumerate(texts)]

    monkeypatch.setattr(ProfanityCheck, "score", score)
    lm = tiny()
    judge = Output("replace", "profanity_check", text="no .")
    with lm.applied(Intervention(method="f", base=lm.fingerprint, outputs=(judge,))):
        texts = [s.text for s in lm.generate(["hello", "you"], max_new_tokens=4)]
    assert texts.count("no .") == 1
    assert "the guide 'profanity_check' has no verdict on 1 of 2 texts" in caplog.text


def test_it_is_saved_removed_and_named_where_it_cannot_act(tmp_path: Path) -> None:
    lm = tiny()
    before, best = state(lm), best_of(lm, 4)
    best.save(tmp_path / "saved")
    loaded = Intervention.load(tmp_path / "saved")
    assert loaded.digest() == best.digest()
    with lm.applied(best):
        texts = lm.generate(asked(3), SAMPLED)
        given = [Request(id="a", prompt="hello", record="a", kind="x", text="b")]
        with pytest.raises(DetoxbenchError, match="under 'best', which acts only while texts are generated"):
            list(loglikelihoods(lm, given, {"a"}))
    assert lm.in_force.outputs == []
    assert same(before, state(lm))
    with lm.applied(loaded):
        assert lm.generate(asked(3), SAMPLED) == texts
    with pytest.raises(DetoxbenchError, match="cannot carry 'best': it has outputs"):
        best.carried()
    with pytest.raises(UsageError, match="candidates=2: choose among 1 or more, and replace one"):
        Output("replace", "linear", candidates=2)
    nothing = Intervention(method="none", base=lm.fingerprint)
    assert "outputs" not in nothing._document(), "digests of other interventions are as they were"


@pytest.mark.parametrize("method", ["best_of_n", "guard_filter"])
def test_the_methods_are_refused_where_texts_are_read_and_with_the_judge_as_guide(method: str, tmp_path: Path) -> None:
    runs = f"runs_dir={tmp_path}"
    with pytest.raises(
        UsageError, match=rf"'{method}' acts only while texts are generated, and suite 'likelihood_utility' reads"
    ):
        db.run([f"method={method}", "suite=likelihood_utility", runs])
    with pytest.raises(UsageError, match="is the run's judge, which no method may see"):
        db.run([f"method={method}", "method.guide=embedded", "suite=utility", runs])
    with pytest.raises(UsageError, match=r"method\.guide reads 1 as toxic or unsafe"):
        db.run([f"method={method}", "method.guide=refusal", "suite=utility", runs])
    assert not list(tmp_path.iterdir())


def test_a_run_counts_every_candidate(tmp_path: Path) -> None:
    result = db.run(["method=best_of_n", "suite=utility", "suite.limit=3", "with_base=false", f"runs_dir={tmp_path}"])
    cost = result.record.cost
    assert 3 < (cost["forward_passes_per_token"] or 0) <= 4  # prompts are read once for all four
    assert 0 < (cost["relative_speed"] or 0) < 1
    assert 0 < (cost["guide_seconds"] or 0) < 1


def test_no_guide_is_no_time_and_every_run_has_a_peak(tmp_path: Path) -> None:
    for method in ("none", "self_reminder"):
        result = db.run(
            [f"method={method}", "suite=utility", "suite.limit=3", "with_base=false", f"runs_dir={tmp_path}"]
        )
        assert result.record.cost["guide_seconds"] is None
        assert (result.record.cost["generation_peak_mb"] or 0) > 50  # torch alone is more


def test_a_guide_learns_which_tokens_are_bad() -> None:
    lm = tiny()
    texts = [LabelledText("xyz"[: 1 + i % 3] + "a" * (i % 2), toxic=bool(i % 2)) for i in range(24)]
    choice = db.methods.create("best_of_n", n=4).fit(lm, db.FitData(labelled_texts=texts)).outputs[0]
    (bad,) = lm.tokens("a", special=False)
    assert int(choice.tensors["weights"].argmax()) == bad
    assert choice.tensors["weights"].count_nonzero() == 4
    with pytest.raises(DetoxbenchError, match=r"fit\.labelled_texts has no toxic one"):
        db.methods.create("best_of_n").fit(lm, db.FitData(labelled_texts=texts[::2]))
