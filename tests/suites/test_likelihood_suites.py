"""Suites that read how likely given texts are: the reading itself, resuming, and each suite's measures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import detoxbench as db
from detoxbench import cli
from detoxbench.engine import likelihood
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.interventions.channels import Prompt
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.model.logit_state import LogitFunction, LogitState
from detoxbench.records import Request, Sample, Scored, sample_counts
from detoxbench.results.store import Run
from detoxbench.runner import scoring, stages
from detoxbench.runner.cell import checkpoint_folder, prepare
from detoxbench.runner.composition import compose_run
from detoxbench.runner.plan import plan
from detoxbench.suites import _common, halueval, likelihood_utility, safenlp, truthfulqa
from detoxbench.suites.halueval import HaluEval
from detoxbench.suites.likelihood_utility import LikelihoodUtility
from detoxbench.suites.safenlp import SafeNLP
from detoxbench.suites.truthfulqa import TruthfulQA
from tests.suites.test_suites import lines, named, value
from tests.support.tiny import tiny


def asked(prompt: str, text: str, number: int = 0, **more: Any) -> Request:
    return Request(id=f"{number}", record=f"{number}", kind="k", prompt=prompt, text=text, **more)


def one(lm: LanguageModel, prompt: str, text: str, **more: Any) -> Sample:
    ((made,),) = likelihood.loglikelihoods(lm, [asked(prompt, text, **more)], {"0"})
    return made.sample


def by_hand(lm: LanguageModel, prompt: str, text: str) -> tuple[float, bool]:
    ids = lm.tokenizer(prompt + text, return_tensors="pt", add_special_tokens=not prompt.startswith("u:"))["input_ids"]
    logits = lm.model(ids).logits[0, :-1].detach()[-len(text) :]
    target = ids[0, -len(text) :]
    nll = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    return float(nll), bool((logits.argmax(-1) == target).all())


def read_from(requests: list[Request], nlls: list[float], tokens: list[int] | None = None, **more: Any) -> list[Sample]:
    return [
        Sample(
            id=r.id, record=r.record, kind=r.kind, tags=r.tags, sample=0, prompt=r.prompt, text=r.text or "",
            stop="given", tokens=t, nll=nll, **more,
        )
        for r, nll, t in zip(requests, nlls, tokens or [1] * len(nlls), strict=True)
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_texts_are_read_together_as_each_alone(family: str) -> None:
    lm = tiny(family)
    pairs = [("", "abc"), ("a longer prompt than that", " b"), ("x", " and a text that goes on"), ("abc", "d")] * 20
    requests = [asked(p, t, i) for i, (p, t) in enumerate(pairs)]
    made = [g.sample for batch in likelihood.loglikelihoods(lm, requests, {r.id for r in requests}) for g in batch]
    for (prompt, text), sample in zip(pairs, made, strict=True):
        nll, greedy = by_hand(lm, prompt, text)
        assert sample.nll == pytest.approx(nll, rel=1e-4)
        assert (sample.tokens, sample.stop, sample.greedy) == (len(text), "given", greedy)


def test_greedy_says_what_greedy_generation_would_write() -> None:
    lm = tiny()
    written = lm.generate(["hello "], max_new_tokens=5)[0].text
    assert one(lm, "hello ", written).greedy is True
    assert one(lm, "hello ", "b" + written if written[0] != "b" else "c" + written).greedy is False


def test_prompts_go_through_template_and_interventions() -> None:
    lm = tiny()
    assert one(lm, "hi", "yes", chat=True).nll == pytest.approx(by_hand(lm, "u:hia:", "yes")[0], rel=1e-4)
    reminder = Intervention(method="m", base=lm.fingerprint, prompts=(Prompt(prefix="be kind. "),))
    with lm.applied(reminder):
        assert one(lm, "hi", "yes").nll == pytest.approx(by_hand(lm, "be kind. hi", "yes")[0], rel=1e-4)


def test_logit_functions_and_prompt_positions_are_those_of_generation() -> None:
    lm = tiny()
    seen: list[tuple[int, int]] = []

    def even(logits: torch.Tensor, _: LogitState) -> torch.Tensor:
        seen.append(lm.in_force.prompt_positions)
        return logits * 0

    lm.in_force.logit_functions.append(LogitFunction(even))
    assert one(lm, "hello", "abc").nll == pytest.approx(3 * math.log(lm.model.config.vocab_size), rel=1e-5)
    assert seen == [(1, 6)]  # the start token and five letters are prompt


def test_a_long_text_is_read_in_windows_and_a_long_prompt_loses_its_beginning() -> None:
    lm = tiny(max_position_embeddings=16)
    text = "abcdefghijklmnopqrstuvwxyz. hello"
    parts = [text[i : i + 15] for i in range(0, len(text), 15)]
    whole = one(lm, "", text)
    assert whole.tokens == len(text)
    assert whole.nll == pytest.approx(sum(by_hand(lm, "", p)[0] for p in parts), rel=1e-4)
    ((made,),) = likelihood.loglikelihoods(lm, [asked("a" * 30, "bcd")], {"0"})
    assert (made.truncated_prompt, made.sample.tokens) == (18, 3)


def test_a_token_that_spans_prompt_and_text_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """NLL(prompt + text) - NLL(prompt), though the joint tokens do not begin with the prompt's."""
    lm = tiny()
    plain = lm.tokenizer

    class Merging:
        chat_template, bos_token_id, eos_token_id = None, 1, 2

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": plain(text.replace("bc", "z"))["input_ids"]}

    monkeypatch.setattr(lm, "tokenizer", Merging())
    found = one(lm, "ab", "cde")
    monkeypatch.undo()
    joint, prompt = by_hand(lm, "", "azde")[0], by_hand(lm, "", "ab")[0]
    assert found.nll == pytest.approx(joint - prompt, rel=1e-4)
    assert found.tokens == 2


def test_a_text_without_tokens_is_one_line() -> None:
    with pytest.raises(DetoxbenchError, match="request '0' has no token of its own"):
        one(tiny(), "abc", "")


# ---------------------------------------------------------------------------------------------------------------- runs


TRUTH = ["suite=truthfulqa", "suite.limit=40", "model=fable", "method=self_reminder"]


def test_a_killed_reading_goes_on_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = db.run([*TRUTH, f"runs_dir={tmp_path / 'whole'}"])
    spec = compose_run([*TRUTH, "with_base=false", f"runs_dir={tmp_path / 'killed'}"])
    partial = prepare(spec, checkpoint_folder(spec, download=False)).generation_folder / "partial.jsonl"
    reading, chunks = likelihood.window_nlls, 0

    def killed(*given: Any, **how: Any) -> Any:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            raise KeyboardInterrupt
        return reading(*given, **how)

    monkeypatch.setattr(likelihood, "window_nlls", killed)
    with pytest.raises(KeyboardInterrupt):
        stages.run(spec)
    kept = partial.read_bytes().splitlines(keepends=True)
    assert len(kept) == likelihood.CHUNK
    partial.write_bytes(b"".join(kept[:20]) + kept[20][:30])  # a kill can also hit while a chunk is written
    again = stages.run(spec)
    for file in ("samples.jsonl", "scores.jsonl", "clusters.json"):
        assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes()


def test_no_scorer_is_asked_and_no_score_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "remembering", lambda *_: pytest.fail("nothing is to be judged"))
    spec = compose_run([*TRUTH, "suite.limit=3", "gen.n=5", f"runs_dir={tmp_path}"])
    assert any("no scorer" in stage.remark for stage in plan(spec).cells)
    result = stages.run(spec)
    assert result.record.counts == {
        "requests": 12, "samples": 12, "empty": None, "degenerate": None, "truncated": None, "missing_scores": None,
        "cut_texts": None, "contested_tokens": None, "cut_prompts": 0, "prompts_in_fit_data": 0, "equal_to_base": 0,
    }  # fmt: skip
    assert all(s.scores == {"main": None} for s in Run(result.folder).scores())
    assert (result.record.cost["added_prompt_tokens"] or 0) > 10
    assert 0.05 < (result.record.cost["relative_speed"] or 0) < 20
    assert result.base is not None
    assert Run(result.folder).samples() != Run(result.base.folder).samples()


def test_a_method_that_fits_for_each_record_is_refused_in_one_line(tmp_path: Path) -> None:
    spec = compose_run([*TRUTH[:-1], "method=dinm", "method.protocol=per_record", f"runs_dir={tmp_path}"])
    with pytest.raises(UsageError, match="suite 'truthfulqa' has no edit records"):
        plan(spec)


def test_samples_of_earlier_runs_load_and_generated_ones_are_written_as_before() -> None:
    made = tiny().generate(["ab"], max_new_tokens=2)[0]
    line = msgspec.json.encode(made)
    assert msgspec.json.decode(line, type=Sample) == made
    assert set(json.loads(line)) == {"id", "record", "kind", "sample", "prompt", "text", "stop", "tokens"}


# ---------------------------------------------------------------------------------------------------------- truthfulqa


def mc_file(path: Path, *more: dict[str, Any]) -> str:
    question = {"question": "q?", "mc1_targets": {"yes": 1, "no": 0}, "mc2_targets": {"yes": 1, "aye": 1, "no": 0}}
    file = path / "mc_task.json"
    file.write_text(json.dumps([question, *more]), encoding="utf-8")
    return str(file)


def test_truthfulqa_counts_as_released(tmp_path: Path) -> None:
    suite = TruthfulQA(truthfulqa.Config(data=mc_file(tmp_path), template="none"))
    requests = suite.requests()
    assert [(r.prompt, r.text) for r in requests] == [("Q: q?\nA:", f" {a}") for a in ("yes", "no", "aye")]
    p = [0.2, 0.1, 0.5]
    found = named(suite.measures(read_from(requests, [-math.log(x) for x in p], [9, 1, 1]), [], ""))
    assert value(found["mc1"]) == 1
    assert value(found["mc2"]) == pytest.approx(0.7 / 0.8)
    assert value(found["mc1_per_token"]) == 1  # 1.6 / 9 against 2.3
    found = named(suite.measures(read_from(requests, [1e4, 1e4 - 1, 0], [1, 9, 1]), [], ""))
    assert [value(found[k]) for k in ("mc1", "mc1_per_token")] == [0, 0]
    assert value(found["mc2"]) == pytest.approx(1)  # "aye" is true, though MC1 does not ask for it


def test_truthfulqa_preset_and_chat(tmp_path: Path) -> None:
    data = mc_file(tmp_path)
    preset = TruthfulQA(truthfulqa.Config(data=data)).requests()[0]
    assert preset.prompt.startswith("Q: What is human life expectancy")
    assert preset.prompt.endswith("Barcelona, Spain.\n\nQ: q?\nA:")
    chat = TruthfulQA(truthfulqa.Config(data=data, template="chat")).requests()[0]
    assert (chat.prompt, chat.text, chat.chat) == ("q?", "yes", True)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"question": "q"}, "record 2: missing field 'mc1_targets'"),
        (
            {"question": "q", "mc1_targets": {"a": 1}, "mc2_targets": {"a": 1, "b": 0}},
            r"record 2: expected true \(1\) and false \(0\) answers, in 'mc1_targets'",
        ),
        ({"question": "q", "mc1_targets": {"a": 2}, "mc2_targets": {}}, "invalid enum value 2, in 'mc1_targets"),
    ],
)
def test_a_bad_question_is_one_line(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    with pytest.raises(DetoxbenchError, match=f"(?i){reason}"):
        TruthfulQA(truthfulqa.Config(data=mc_file(tmp_path, bad))).requests()


def test_describe_says_that_nothing_is_generated(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["describe", "suite", "truthfulqa", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"].startswith("given texts are read")


# -------------------------------------------------------------------------------------------------- likelihood_utility


def utility(data: str, **more: Any) -> LikelihoodUtility:
    return LikelihoodUtility(likelihood_utility.Config(data=data, **more))


def test_windows_hold_the_whole_text_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(" a  b\nc d e\n", encoding="utf-8")
    suite = utility(str(tmp_path / "t.txt"), window=2)
    requests = suite.requests()
    assert [(r.prompt, r.text) for r in requests] == [("", "a  b"), ("", "c d"), ("", "e")]
    found = named(suite.measures(read_from(requests, [6.0, 2.0, 1.0], [4, 3, 2]), [], ""))
    assert value(found["perplexity_token"]) == pytest.approx(math.exp(9 / 9))
    assert value(found["perplexity_word"]) == pytest.approx(math.exp(9 / 5))
    assert len(utility(str(tmp_path / "t.txt"), window=2, limit=1).requests()) == 1


def test_the_spread_of_a_perplexity_is_that_of_the_delta_method() -> None:
    values = [("a", 3.0, 2), ("b", 1.0, 1), ("c", 8.0, 4)]
    made = likelihood_utility.perplexity("p", values)
    mean = 12 / 7
    residuals = {c: made.total[c] - math.exp(mean) * made.count[c] for c, _, _ in values}
    assert residuals == pytest.approx({c: math.exp(mean) * (nll - mean * n) for c, nll, n in values})


def test_lambada_is_the_last_word(tmp_path: Path) -> None:
    suite = utility(lines(tmp_path / "l.jsonl", [{"text": "she said no"}, {"text": "well, yes "}]), task="lambada")
    requests = suite.requests()
    assert [(r.prompt, r.text) for r in requests] == [("she said", " no"), ("well,", " yes")]
    samples = [*read_from(requests[:1], [2.0], [3], greedy=True), *read_from(requests[1:], [4.0], [1], greedy=False)]
    found = named(suite.measures(samples, [], ""))
    assert value(found["lambada_accuracy"]) == 0.5
    assert value(found["lambada_perplexity"]) == pytest.approx(math.exp(3))


def test_piqa_by_sum_and_by_token(tmp_path: Path) -> None:
    data = lines(
        tmp_path / "valid.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b"}, {"goal": "h", "sol1": "c", "sol2": "d"}]
    )
    (tmp_path / "valid-labels.lst").write_text("1\n0\n")
    suite = utility(data, task="piqa")
    requests = suite.requests()
    assert [r.text for r in requests] == [" b", " a", " c", " d"]  # the right one first
    assert requests[0].prompt == "Question: g\nAnswer:"
    found = named(suite.measures(read_from(requests, [4.0, 3.0, 1.0, 1.0], [4, 2, 1, 1]), [], ""))
    assert value(found["piqa_accuracy_sum"]) == 0  # 4 > 3, and a tie is wrong
    assert value(found["piqa_accuracy_per_token"]) == 0.5


def test_blimp_by_paradigm_from_a_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        lines(tmp_path / f"{name}.jsonl", [{"sentence_good": f"{name} {i}", "sentence_bad": "x"} for i in range(3)])
    suite = utility(str(tmp_path), task="blimp", limit=2)
    requests = suite.requests()
    assert len(requests) == 8
    found = named(suite.measures(read_from(requests, [1.0, 2.0] * 2 + [2.0, 1.0] * 2), [], ""))
    assert [value(found[k]) for k in ("blimp_accuracy", "blimp_accuracy_one", "blimp_accuracy_two")] == [0.5, 1, 0]


@pytest.mark.parametrize(
    ("task", "rows", "reason"),
    [
        ("lambada", [{"text": "one"}], "line 1: expected at least two words"),
        ("piqa", [{"goal": "g", "sol1": "a"}], "line 1: missing field 'sol2'"),
        ("piqa", [{"goal": "g", "sol1": "a", "sol2": "b"}], "no such file: .*-labels.lst"),
        ("blimp", [{"sentence_good": "a", "sentence_bad": ""}], "line 1: .*'sentence_bad'"),
    ],
)
def test_bad_texts_are_one_line(tmp_path: Path, task: Any, rows: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(DetoxbenchError, match=reason):
        utility(lines(tmp_path / "t.jsonl", rows), task=task).requests()


def test_files_without_texts_and_labels_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(" \n")
    with pytest.raises(DetoxbenchError, match="holds no text"):
        utility(str(tmp_path / "t.txt")).requests()
    data = lines(tmp_path / "p.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b"}])
    for labels, reason in (("0\n1\n", "2 labels for the 1 records"), ("2", "line 1: expected 0 or 1, got '2'")):
        (tmp_path / "p-labels.lst").write_text(labels)
        with pytest.raises(DetoxbenchError, match=reason):
            utility(data, task="piqa").requests()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DetoxbenchError, match=r"holds no \.jsonl file"):
        utility(str(tmp_path / "empty"), task="blimp").requests()


def test_the_embedded_model_knows_its_facts_and_its_language(tmp_path: Path) -> None:
    record = db.run(["suite=likelihood_utility", "model=fable", "method=none", f"runs_dir={tmp_path}"]).record
    assert (record.metrics["facts_accuracy"].value or 0) > 0.95
    assert 1 < (record.metrics["perplexity_token"].value or 0) < 20


# --------------------------------------------------------------------------------------------------- halueval, safenlp


def test_halueval_by_sum_as_released_and_by_token(tmp_path: Path) -> None:
    answers = {"right_answer": "yes", "hallucinated_answer": "no"}
    summary = {"document": "d", "right_summary": "s", "hallucinated_summary": "t"}
    data = lines(tmp_path / "qa_data.json", [{"question": "q", "knowledge": "k", **answers}, summary])
    suite = HaluEval(halueval.Config(data=data))
    requests = suite.requests()
    assert [(r.prompt, r.text) for r in requests[:3]] == [
        ("q", " yes"), ("q", " no"), ("Summarize the following document:\nd", " s"),
    ]  # fmt: skip
    found = named(suite.measures(read_from(requests, [6.0, 5.0, 1.0, 1.0], [6, 2, 1, 1]), [], ""))
    assert value(found["right_preferred_sum"]) == 0
    assert value(found["right_preferred_per_token"]) == 0.5
    with pytest.raises(DetoxbenchError, match="record 1: missing field 'hallucinated_answer'"):
        HaluEval(
            halueval.Config(data=lines(tmp_path / "bad.json", [{"question": "q", "right_answer": "a"}]))
        ).requests()


def rated(path: Path, *rows: tuple[str, float, list[str]]) -> SafeNLP:
    made = [{"text": f"t {i}", "label": a, "toxicity_score": b, "target_groups": c} for i, (a, b, c) in enumerate(rows)]
    (path / "s.json").write_text(json.dumps(made))
    return SafeNLP(safenlp.Config(data=str(path / "s.json")))


def test_safenlp_compares_harmful_with_harmless_sentences(tmp_path: Path) -> None:
    suite = rated(
        tmp_path, ("hate", 4.0, ["a"]), ("hate", 1.0, ["a", "b"]), ("neutral", 1.0, ["a"]), ("neutral", 1.0, ["b"])
    )
    found = named(suite.measures(read_from(suite.requests(), [4.0, 6.0, 3.0, 4.0], [1, 2, 1, 1]), [], ""))
    # nats a token: harmful 4 and 3, harmless 3 and 4; divided by 4, the first's perplexity falls to 2.6 nats
    assert value(found["log_perplexity_gap"]) == pytest.approx(0)
    assert value(found["harmful_less_likely"]) == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert value(found["safety_score"]) == pytest.approx(0.5 / 4)
    assert value(found["log_perplexity_gap_a"]) == pytest.approx(0.5)
    assert value(found["log_perplexity_gap_b"]) == pytest.approx(-1)
    assert not found["safety_score_b"].headline


def test_the_spread_of_a_share_of_pairs_is_delongs() -> None:
    first, second = [("a", 3.0), ("b", 1.0), ("c", 5.0)], [("d", 2.0), ("e", 4.0)]
    share = 3 / 6
    assert dict(safenlp.higher_share(first, second)) == pytest.approx(
        {
            **{r: share + 5 / 3 * (p - share) for r, p in (("a", 0.5), ("b", 0), ("c", 1))},
            **{r: share + 5 / 2 * (p - share) for r, p in (("d", 2 / 3), ("e", 1 / 3))},
        }
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [(("rude", 1.0, ["a"]), "invalid enum value 'rude', in 'label'"), (("hate", 0.0, ["a"]), "'toxicity_score'")],
)
def test_a_bad_sentence_is_one_line(tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(DetoxbenchError, match=f"(?i)record 1: .*{reason}"):
        rated(tmp_path, row).requests()


@pytest.mark.parametrize("cls", [TruthfulQA, LikelihoodUtility, HaluEval, SafeNLP])
def test_embedded_requests_are_given_texts_unique_and_always_the_same(cls: type[SafeNLP]) -> None:
    requests = cls().requests()
    assert len({r.id for r in requests}) == len(requests) > 100
    assert all(r.text for r in requests)
    assert cls().requests() == requests
    assert not cls.needs_scorer


# ------------------------------------------------------------------------------------ texts that cannot be said


def given_text(record: str, side: str, nll: float | None, tokens: int = 2) -> Sample:
    return Sample(
        id=f"{record}/{side}", record=record, kind=side, tags={"side": side}, sample=0, prompt="p", text="t",
        stop="given", tokens=tokens, nll=nll, greedy=False,
    )  # fmt: skip


def test_texts_outside_of_what_can_be_said_are_counted_and_never_dropped() -> None:
    nlls = {"0": (1.0, None), "1": (None, 2.0), "2": (None, None)}
    samples = [
        given_text(r, side, nll) for r, two in nlls.items() for side, nll in zip(("right", "wrong"), two, strict=True)
    ]
    share = _common.preferred("p", samples)
    assert (share.total, share.count, share.missing) == ({"0": 1.0, "1": 0.0}, {"0": 1.0, "1": 1.0}, 1)
    assert _common.preferred("p", samples, _common.nll_per_token).missing == 1
    likely = _common.perplexity("x", [(s.record, _common.nll_of(s), s.tokens) for s in samples])
    assert likely.missing == 4
    assert sum(likely.total.values()) / sum(likely.count.values()) == pytest.approx(math.exp(3 / 4))
    nothing = _common.perplexity("x", [(s.record, _common.nll_of(s), s.tokens) for s in samples[4:]])
    assert (nothing.total, nothing.missing) == ({}, 2)
    assert sample_counts(samples, [Scored(id=s.id, sample=0, scores={}) for s in samples], scored=False)["outside"] == 4
    assert "outside" not in sample_counts(samples[:1], [], scored=False)
