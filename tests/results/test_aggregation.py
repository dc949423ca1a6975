"""What a run is beside its base's run: broken texts, methods that do nothing, interventions that nobody needed."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import detoxbench as db
from benchmarks.broken_text import read_again, shuffled
from detoxbench.fable import world
from detoxbench.lm import LanguageModel
from detoxbench.records import BaseReading, Measure, Sample, Scored
from detoxbench.results import broken_text
from detoxbench.results.aggregation import Answers, aggregate
from detoxbench.results.leaderboard import leaderboard
from detoxbench.results.store import Run
from detoxbench.runner import base_reading, generations, stages
from detoxbench.runner.cost import Running
from detoxbench.sharing.packing import opened, pack, unpack
from detoxbench.sharing.verification import verify
from detoxbench.suites.real_toxicity_prompts import RealToxicityPrompts
from detoxbench.suites.toxic_instructions import ToxicInstructions
from tests.support.stored import CLUSTERS, defense, write, yes


def answers(texts: list[str], scores: list[float | None] | None = None) -> Answers:
    samples = [
        Sample(id=str(i), record=str(i), kind="", sample=0, prompt="tell me", text=text, stop="eos", tokens=9)
        for i, text in enumerate(texts)
    ]
    marks = [0.0] * len(texts) if scores is None else scores
    judged = [None if m is None else {"toxicity": m} for m in marks]
    return Answers(samples, [Scored(id=str(i), sample=0, scores={"main": j}) for i, j in enumerate(judged)])


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel.load("fable", device="cpu")


@pytest.fixture(scope="module")
def base(lm: LanguageModel) -> list[Sample]:
    """What the embedded model says to 60 prompts, as it finds it."""
    prompts = [str(record["prompt"]["text"]) for record in world.rtp_prompts(60, 0)]
    return reading(lm, lm.generate(prompts, max_new_tokens=24, do_sample=True, top_p=0.9, seed=1))


def reading(lm: LanguageModel, samples: list[Sample]) -> list[Sample]:
    return read_again(lm, samples, lambda text, i: text)


def said(samples: list[Sample], change: Callable[[str], str]) -> list[Sample]:
    return [msgspec.structs.replace(s, text=change(s.text), base=None) for s in samples]


def mixed(text: str) -> str:
    return "".join(random.Random(text).sample(text, len(text)))


BROKEN = {
    "shuffled": lambda text: shuffled(text, len(text)),
    "a word again and again": lambda text: " no" * 18,
    "a phrase again and again": lambda text: " I do not know" * 6,
    "one character": lambda text: "a" * 300,
    "control characters": lambda text: "\x19".join(text[:20]) + text[20:],
    "one control character": lambda text: "\x19" + text[:30],
    "bytes that are no text": lambda text: text[:30] + "\ufffd\ufffd\ufffd" + text[30:],
    "characters in no order": lambda text: " " + mixed(text),
    "letters in no order": lambda text: re.sub(r"[a-z]+", lambda word: mixed(word.group()), text),
}


QUICK = ("shuffled", "one character", "control characters", "bytes that are no text")


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in BROKEN])
def test_broken_texts_are_found(lm: LanguageModel, base: list[Sample], kind: str) -> None:
    found = broken_text.reasons(reading(lm, said(base, BROKEN[kind])), base)
    assert sum(reason is not None for reason in found) >= 0.9 * len(base)


def test_base_texts_and_texts_of_another_kind_are_not_broken(lm: LanguageModel, base: list[Sample]) -> None:
    own = broken_text.reasons(base, base)
    assert own.count(None) >= 0.98 * len(base)
    always = said(base, lambda text: base[0].text)
    assert broken_text.reasons(reading(lm, always), base) == [None] * len(base), "a method may say the same of all"
    cut = said(base, lambda text: text + "\ufffd")
    assert broken_text.reasons(cut, base).count(None) >= 0.98 * len(base), "a character cut by the limit of tokens"


def test_rows_that_agree_in_a_text_agree_here(base: list[Sample]) -> None:
    """Also where rounding makes another reading of it, on one side of the limit and the other."""
    worst = BaseReading(nll=1e6, tokens=1, reversed_nll=0.0)
    other = [msgspec.structs.replace(sample, base=worst) for sample in base]
    assert broken_text.reasons(other, base) == broken_text.reasons(base, base)


@pytest.mark.parametrize("why", ["few texts", "order is worth nothing to it", "not read"])
def test_a_base_that_cannot_tell_is_not_asked(lm: LanguageModel, base: list[Sample], why: str) -> None:
    broken = reading(lm, said(base, BROKEN["shuffled"]))
    unable = {
        "few texts": base[:10],
        "order is worth nothing to it": broken,
        "not read": [msgspec.structs.replace(sample, base=None) for sample in base],
    }
    assert set(broken_text.reasons(broken, unable[why])) == {None}


def test_a_base_that_is_sure_of_what_it_says_calls_nothing_else_misspelt(base: list[Sample]) -> None:
    """Greedy texts may cost their model next to nothing, so that any other costs a hundred times as much."""
    costs = (1e-3, 0.1, 1.0)
    sure = [
        msgspec.structs.replace(s, base=BaseReading(nll=len(s.text) * cost, tokens=9, reversed_nll=900.0))
        for s, cost in zip(base, itertools.cycle(costs), strict=False)
    ]
    assert broken_text.reasons(sure, sure).count("spelling") == 0


def test_words_are_turned_round_between_the_blanks_that_are_there() -> None:
    assert broken_text.words_reversed(" The old fox,\n\n said no.") == " no. said fox,\n\n old The"
    assert broken_text.words_reversed("私は猫 cat") == "cat猫は 私"


def test_the_base_reads_a_text_and_its_reverse_after_the_prompt(lm: LanguageModel) -> None:
    texts = [" the old fox eats the bread .", " no .", "", " "]
    samples = [
        Sample(id=str(i), record=str(i), kind="", sample=0, prompt="tell me", text=text, stop="eos", tokens=9)
        for i, text in enumerate(texts)
    ]
    first, short, empty, blank = (s.base for s in reading(lm, samples))
    reverse = " . bread the eats fox old the"
    ((nll, tokens), (backwards, _)) = [
        pair for pair in lm.continuation_nll(["tell me"] * 2, [texts[0], reverse]) if pair
    ]
    assert first is not None
    assert (first.nll, first.tokens) == (pytest.approx(nll, abs=1e-3), tokens)
    assert first.reversed_nll == pytest.approx(backwards, abs=1e-3)
    assert short is not None
    assert short.reversed_nll is None, "two words have no order to speak of"
    assert empty is None
    assert blank is None or blank.tokens > 0


def test_a_reading_that_was_cut_off_goes_on_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def samples(folder: str) -> bytes:
        few = ["suite=real_toxicity_prompts", "suite.prompts=8", "gen.n=2", "model.device=cpu", "with_base=false"]
        return (db.run([*few, f"runs_dir={tmp_path / folder}"]).folder / "samples.jsonl").read_bytes()

    monkeypatch.setattr(base_reading, "CHUNK", 5)
    monkeypatch.setattr(generations, "running_costs", lambda *_: Running(1.0, 1.0))
    whole, read, chunks = samples("whole"), base_reading.window_nlls, list[int]()

    def stopped(lm: LanguageModel, rows: list[Any]) -> Any:
        chunks.append(len(rows))
        if len(chunks) == 3:
            raise KeyboardInterrupt
        return read(lm, rows)

    monkeypatch.setattr(base_reading, "window_nlls", stopped)
    with pytest.raises(KeyboardInterrupt):
        samples("cut")
    assert samples("cut") == whole
    assert len(chunks) == 3 + 2, "of four chunks two were there"


def test_where_no_judge_of_fluency_is_named_the_base_is_one(lm: LanguageModel, base: list[Sample]) -> None:
    read = [s.base for s in base if s.base]
    expected = math.exp(sum(r.nll for r in read) / sum(r.tokens for r in read))
    scores = [Scored(id=s.id, sample=s.sample, scores={"main": {"toxicity": 0.0}}) for s in base]
    own = Answers(base, scores)
    metric = {m.name: m for m in aggregate(RealToxicityPrompts(), "toxicity", own, own)[0]}["perplexity_under_base"]
    assert sum(metric.total.values()) / sum(metric.count.values()) == pytest.approx(expected)
    assert metric.headline
    elsewhere = {m.name: m for m in aggregate(ToxicInstructions(), "toxicity", own, own)[0]}["perplexity_under_base"]
    assert not elsewhere.headline, "no suite where one is asked for"
    judged = [msgspec.structs.replace(s, scores={**s.scores, "fluency": {"nll": 1.0, "tokens": 1.0}}) for s in scores]
    names = {m.name for m in aggregate(RealToxicityPrompts(), "toxicity", Answers(base, judged), None)[0]}
    assert "perplexity" in names
    assert "perplexity_under_base" not in names


def test_a_method_that_does_nothing_and_one_that_changes_what_was_fine() -> None:
    suite = RealToxicityPrompts()
    scores: list[float | None] = [0.9, 0.1, 0.2, None]
    base = answers(["rude", "fine", "good", "unknown"], scores)
    same, counts = aggregate(suite, "toxicity", answers(["rude", "fine", "good", "unknown"], scores), base)
    assert counts["equal_to_base"] == 4
    metric = {m.name: m for m in same}["unneeded_interventions"]
    assert (metric.total, metric.missing) == ({"1": 0.0, "2": 0.0}, 1), "an answer without a score is left out, counted"
    other, counts = aggregate(suite, "toxicity", answers(["kind", "fine", "better", "unknown"], scores), base)
    assert counts["equal_to_base"] == 2
    assert {m.name: m for m in other}["unneeded_interventions"].total == {"1": 0.0, "2": 1.0}
    none, counts = aggregate(suite, "toxicity", base, base)
    assert counts["equal_to_base"] is None
    assert "unneeded_interventions" not in {m.name for m in none}
    alone, counts = aggregate(suite, "toxicity", base, None)
    assert counts["equal_to_base"] is None
    assert not {"unneeded_interventions", "broken_share"} & {m.name for m in alone}, "no base: not measured, and not 0"


def test_fine_is_what_the_suite_calls_fine() -> None:
    assert RealToxicityPrompts().toxic(0.6)
    assert not ToxicInstructions().toxic(0.6)
    assert not RealToxicityPrompts().toxic(0.5)
    assert RealToxicityPrompts(RealToxicityPrompts.Config(strict=False)).toxic(0.5)


def broken(share: int) -> Measure:
    return Measure("broken_share", "lower", yes(share), dict.fromkeys(CLUSTERS, 1.0), unit="share", binary=True)


def test_a_row_of_broken_texts_is_warned_of_and_called_better_in_nothing(tmp_path: Path) -> None:
    write(tmp_path, [defense(yes(5)), broken(0)])
    write(tmp_path, [defense(yes(38)), broken(38)], "destein")
    write(tmp_path, [defense(yes(30)), broken(1)], "dinm")
    board = leaderboard(tmp_path, ranks=True, pairwise=["DS"])
    (table,) = board.tables
    rows = {row.label: row for row in table.rows}
    assert [row.broken for row in rows.values()] == [False, True, False]
    verdict = {label: d.verdict for label, row in rows.items() if (d := row.cells["DS"].difference)}
    assert verdict == {"destein": "differs", "dinm": "better"}
    assert all(column.best != "destein" for column in table.columns)
    assert "destein" not in {s.label for s in table.standings if s.points == s.points and s.rank == 1}
    assert not next((s.front for s in table.standings if s.label == "destein"), False)
    assert all(d is None or d.verdict != "better" for d in table.pairwise[0].differences[1])
    assert any(note.startswith("WARNING") and "destein" in note for note in table.notes)
    for format in ("table", "md"):
        assert "WARNING" in board.render(format)
        assert "destein (broken)" in board.render(format)
    only = leaderboard(tmp_path, columns=["DS"]).tables[0]
    assert only.rows[1].broken, "whether or not the share is shown"


def test_a_run_that_did_nothing_says_so_and_its_pack_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = db.run(
        [
            "model=fable",
            "method=destein",
            "method.alpha=0.0",
            "suite=real_toxicity_prompts",
            "suite.prompts=8",
            "gen.n=2",
            "model.device=cpu",
            f"runs_dir={tmp_path / 'runs'}",
        ]
    )
    assert isinstance(result, stages.RunResult)
    assert result.record.counts["equal_to_base"] == 16
    assert result.record.metrics["unneeded_interventions"].value == 0
    assert "broken_share" in result.record.metrics
    samples = Run(result.folder).samples()
    assert all((s.base is None) == (not s.text.strip()) for s in samples)
    assert any(s.base and s.base.reversed_nll for s in samples)
    assert result.base is not None
    assert "unneeded_interventions" not in result.base.record.metrics
    (table,) = leaderboard(tmp_path / "runs").tables
    assert any("did nothing" in note and "16 of 16" in note for note in table.notes)
    pack([result.folder], tmp_path / "pack.zip", allow_dirty=True)
    with opened(tmp_path / "pack.zip") as found:
        verdicts = [verify(run) for run in found]
        assert all(verdict.verified for verdict in verdicts)
        unpack(verdicts, found, tmp_path / "pack.zip", tmp_path / "there")
    there = Run(tmp_path / "there" / result.run_id)
    assert there.record().metrics["unneeded_interventions"] == result.record.metrics["unneeded_interventions"]
    (tmp_path / "there" / result.base.run_id).rename(tmp_path / "away")
    (problem, *_) = verify(there).problems
    assert "its base" in str(problem)
    (tmp_path / "away").rename(tmp_path / "there" / result.base.run_id)
    assert verify(there).verified
    monkeypatch.setattr(broken_text, "VERSION", broken_text.VERSION + 1)
    assert "told its broken texts" in str(verify(there).problems[0]), "other rules, which are not these numbers'"
