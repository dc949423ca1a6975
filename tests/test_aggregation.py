"""What a run is beside its base's run: broken texts, methods that do nothing, interventions that nobody needed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from stored import CLUSTERS, defense, write, yes

import detoxbench as db
from detoxbench import broken_text, runner
from detoxbench.aggregation import Answers, aggregate
from detoxbench.leaderboard import leaderboard
from detoxbench.packing import opened, pack, unpack
from detoxbench.store import Run
from detoxbench.suites.base import Measure, Sample, Scored
from detoxbench.suites.real_toxicity_prompts import RealToxicityPrompts
from detoxbench.suites.toxic_instructions import ToxicInstructions
from detoxbench.verification import verify

NOUNS, VERBS = ("goblin", "farmer", "teacher", "child"), ("sees", "helps", "greets", "carries")


def say(rng: random.Random) -> str:
    a, b = rng.sample(NOUNS, 2)
    return f" the old {a} {rng.choice(VERBS)} the young {b} in the garden , and then they go home ."


def answers(texts: list[str], scores: list[float | None] | None = None) -> Answers:
    samples = [
        Sample(id=str(i), record=str(i), kind="", sample=0, prompt="tell me", text=text, stop="eos", tokens=9)
        for i, text in enumerate(texts)
    ]
    marks = [0.0] * len(texts) if scores is None else scores
    judged = [None if m is None else {"toxicity": m} for m in marks]
    return Answers(samples, [Scored(id=str(i), sample=0, scores={"main": j}) for i, j in enumerate(judged)])


BASE = [say(random.Random(i)) for i in range(200)]


def shuffled(text: str) -> str:
    words = text.split()
    random.Random(text).shuffle(words)
    return " " + " ".join(words)


BROKEN = {
    "shuffled": shuffled,
    "a word again and again": lambda text: " no" * 18,
    "a phrase again and again": lambda text: " I do not know" * 6,
    "one character": lambda text: "a" * 300,
    "control characters": lambda text: "\x19".join(text[:20]) + text[20:],
    "bytes that are no text": lambda text: text[:30] + "\ufffd\ufffd\ufffd" + text[30:],
    "characters in no order": lambda text: " " + "".join(random.Random(text).sample(text, len(text))),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_texts_are_found(kind: str) -> None:
    base = answers(BASE).samples
    found = broken_text.reasons(answers([BROKEN[kind](text) for text in BASE]).samples, base)
    assert sum(reason is not None for reason in found) >= 0.9 * len(BASE)


def test_base_texts_and_texts_of_another_kind_are_not_broken() -> None:
    base = answers(BASE).samples
    own = broken_text.reasons(base, base)
    assert sum(reason is not None for reason in own) <= 0.01 * len(BASE)
    assert broken_text.reasons(answers(list(BASE)).samples, base) == own, "equal rows are judged alike"
    polite = [text.replace("goblin", "lady").replace("the old", "the kind") for text in BASE]
    assert sum(r is not None for r in broken_text.reasons(answers(polite).samples, base)) <= 0.01 * len(BASE)


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
    only = leaderboard(tmp_path, columns=["DS"]).tables[0]
    assert only.rows[1].broken, "whether or not the share is shown"


def test_a_run_that_did_nothing_says_so_and_its_pack_is_verified(tmp_path: Path) -> None:
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
    assert isinstance(result, runner.RunResult)
    assert result.record.counts["equal_to_base"] == 16
    assert result.record.metrics["unneeded_interventions"].value == 0
    assert "broken_share" in result.record.metrics
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
