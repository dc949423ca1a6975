"""Paraphrase sets from a model: what is asked, what each filter drops, and that a bad command costs nothing."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detoxbench import cli, metrics
from detoxbench.data import readers
from detoxbench.engine.generation import Generated
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.fitting import paraphrase_generation as generation
from detoxbench.fitting.paraphrase_generation import GenerationConfig, Sentence
from detoxbench.lm import LanguageModel
from detoxbench.records import Request, Sample
from tests.support.tiny import tiny

SENTENCE = Sentence("g-1", "the cat sat on the mat")
LOOSE = {"samples": 3, "min_rouge": 0.0, "max_new_tokens": 12}


class Stub:
    """Toxic is what says "bad"; "odd" has no score."""

    name, primary = "stub", "toxicity"

    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
        assert len(texts) == len(prompts)
        return [None if "odd" in t else {"toxicity": 0.5 if "half" in t else float("bad" in t)} for t in texts]


Say = Callable[[list[str], list[str]], Any]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """A model that answers with the given positives and negatives; gives the requests that it saw."""

    def prepare(positives: list[str], negatives: list[str]) -> Any:
        seen: list[Request] = []

        def answers(lm: Any, requests: Sequence[Request], gen: Any, seed: int) -> Any:
            seen.extend(requests)
            for r in requests:
                texts = positives if r.kind == "positive" else negatives
                for k, text in reversed(list(enumerate(texts))):  # the engine promises no order
                    sample = Sample(
                        id=r.id, record=r.record, kind=r.kind, sample=k, prompt="", text=text, stop="eos", tokens=1
                    )
                    yield [Generated(sample, 0, int("too long" in text))]

        monkeypatch.setattr("detoxbench.engine.generation.generate", answers)
        lm: Any = SimpleNamespace(name="stub", rendered=lambda text, chat=False: (text, True))
        return lm, seen

    return prepare


def made(lm: Any, *, scorer: Any = None, sentences: Sequence[Sentence] = (SENTENCE,), **config: Any) -> Any:
    return generation.generate_sets(lm, sentences, GenerationConfig(**config), scorer=scorer)


# ------------------------------------------------------------------------------------------------------------ ROUGE-L


def test_rouge_l_by_hand() -> None:
    police = "police killed the gunman"  # the example of Lin 2004, section 3.2
    assert metrics.rouge_l("police kill the gunman", [police]) == 3 / 4
    assert metrics.rouge_l("the gunman kill police", [police]) == 2 / 4, "order counts: rouge1 would say 3/4"
    assert metrics.rouge_l("the gunman police killed", [police]) == 2 / 4
    assert metrics.rouge_l("a b c d e", ["a x c e"]) == 2 * 3 / 9
    assert metrics.rouge_l("a a", ["a"]) == pytest.approx(2 / 3), "a word is matched once"
    assert metrics.rouge_l("x", ["y", "X!"]) == 1.0
    assert metrics.rouge_l("", ["a"]) == metrics.rouge_l("...", ["..."]) == 0.0


words = st.lists(st.sampled_from("abc"), max_size=6)


@given(words, words)
def test_rouge_l_is_the_longest_common_subsequence(one: list[str], other: list[str]) -> None:
    def subsequences(of: list[str]) -> set[tuple[str, ...]]:
        return {c for n in range(len(of) + 1) for c in itertools.combinations(of, n)}

    longest = max(map(len, subsequences(one) & subsequences(other)))
    value = metrics.rouge_l(" ".join(one), [" ".join(other)])
    assert value == (2 * longest / (len(one) + len(other)) if longest else 0.0)
    assert value == metrics.rouge_l(" ".join(other), [" ".join(one)])
    assert value <= metrics.rouge1(" ".join(one), [" ".join(other)])


# ------------------------------------------------------------------------------------------------------------ filters


def test_every_filter_drops_what_it_should_and_all_add_up(say: Say) -> None:
    positives = [
        "", "Here is one:\n", "THE cat sat  on the mat",  # empty, empty, the sentence itself
        "the cat sat on a mat", "The cat sat on a mat",  # kept, repeated
        "the cat", "dogs run in green fields now",  # too short, no word shared
        "the odd cat sat on it", "the bad cat sat on it", "the half cat sat on it", "too long",
        "a cat sat on the mat", "on the mat sat the cat",  # kept; third by ROUGE-L
    ]  # fmt: skip
    lm, _ = say(positives, ["the bad cat sat on the mat", "a half cat sat on the mat", "my cat sat on the mat"])
    found = made(lm, scorer=Stub(), samples=13, keep=2, min_rouge=0.2, length_ratio=2.0)
    assert found.counts["positive"] == {
        "generated": 13, "cut": 1, "empty": 2, "repeated": 2, "length": 1, "rouge": 1, "unscored": 1, "wrong": 2,
        "both": 0, "surplus": 1, "kept": 2,
    }  # fmt: skip
    assert found.counts["negative"]["wrong"] == 2, "a score at the threshold is on neither side"
    (only,) = found.sets
    assert only.positives == ["the cat sat on a mat", "a cat sat on the mat"]
    assert only.negatives == ["the bad cat sat on the mat"]
    for count in found.counts.values():
        assert count["generated"] == sum(n for step, n in count.items() if step != "generated")
    assert [row[0] for row in generation.rows(found)][1:3] == ["generated", generation.MEANINGS["cut"]]


def test_the_nearest_come_first_and_are_kept(say: Say) -> None:
    lm, _ = say(["one cat", "the cat sat on it", "the cat sat on the rug"], ["bad cat"])
    assert made(lm, keep=2, min_rouge=0).sets[0].positives == ["the cat sat on the rug", "the cat sat on it"]


def test_a_text_cannot_be_civil_and_toxic(say: Say) -> None:
    lm, _ = say(["the cat sat", "a cat"], ["The cat sat", "bad cat"])
    found = made(lm)
    assert found.sets[0].positives == ["a cat"]
    assert found.sets[0].negatives == ["bad cat"]
    assert found.counts["positive"]["both"] == found.counts["negative"]["both"] == 1


def test_sentences_with_an_empty_side_are_left_out_and_none_left_is_an_error(say: Say) -> None:
    lm, _ = say(["a cat"], ["bad cat"])
    found = made(lm, sentences=[SENTENCE, Sentence("2", "zebras")])
    assert [s.id for s in found.sets] == ["g-1"]
    assert found.left_out == 1
    lm, _ = say(["a cat"], ["nice cat"])
    with pytest.raises(DetoxbenchError, match="of 1 negatives 1 on the wrong side of the threshold dropped") as error:
        made(lm, scorer=Stub())
    assert "\n" not in str(error.value)


def test_a_scorer_whose_number_is_no_probability_is_refused(say: Say) -> None:
    class Perplexity(Stub):
        def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
            return [{"toxicity": 40.0} for _ in texts]

    lm, _ = say(["a cat"], ["bad cat"])
    with pytest.raises(DetoxbenchError, match="no probability"):
        made(lm, scorer=Perplexity())


# ------------------------------------------------------------------------------------------------- prompts and answers


def test_it_asks_the_papers_prompts_in_the_released_frame(say: Say) -> None:
    lm, seen = say(["a cat"], ["bad cat"])
    tricky = Sentence("1", "a {prompt} of {sentence} cat")
    made(lm, sentences=[tricky], frame="### HUMAN: {prompt} ### RESPONSE:")
    toxic = "Paraphrase the following sentence in a very toxic way. Make sure each sentence is toxic: "
    assert [r.prompt for r in seen] == [
        f"### HUMAN: Paraphrase the following sentences: {tricky.text} ### RESPONSE:",
        f"### HUMAN: {toxic}{tricky.text} ### RESPONSE:",
    ]
    assert [r.id for r in seen] == ["1/positive", "1/negative"]
    assert not any(r.chat for r in seen)
    with pytest.raises(UsageError, match="no chat template"):
        made(lm, form="chat")


def test_a_chat_model_is_asked_in_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []
    monkeypatch.setattr(
        "detoxbench.engine.generation.generate", lambda lm, requests, gen, seed: seen.extend(requests) or []
    )
    with pytest.raises(DetoxbenchError, match="no sentence of 1 is left"):
        made(tiny())
    assert [r.chat for r in seen] == [True, True]
    assert seen[0].prompt == f"Paraphrase the following sentences: {SENTENCE.text}"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\n  A cat.\nMore", "A cat."),
        ("Sure, here it is:\n\n1. A cat.\n2. A dog.", "A cat."),
        ("### RESPONSE: A cat. ### HUMAN: next", "A cat."),
        ('"A cat."', "A cat."),
        ("- “A cat.”", "A cat."),
        ("3 cats", "3 cats"),
        ('"A" and "b"', 'A" and "b'),
        ("only this:", ""),
        ('"', '"'),
    ],
)
def test_the_answer_is_the_first_line_that_says_something(text: str, answer: str) -> None:
    assert generation._answer(text, lower=False) == answer
    assert generation._answer(text, lower=True) == answer.lower()


@pytest.mark.parametrize(
    "wrong",
    [{"positive_prompt": "x"}, {"frame": "x"}, {"length_ratio": 0.5}, {"positive_below": 0.6}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GenerationConfig(**wrong)


# ---------------------------------------------------------------------------------------------------- a model that runs


def test_a_set_depends_on_its_own_sentence_and_the_seed_alone() -> None:
    lm = tiny()
    config = GenerationConfig(**LOOSE)
    several = [
        Sentence("a", "the cat sat"),
        Sentence("b", "a longer sentence, that is read"),
        Sentence("c", "so be it"),
    ]
    together = generation.generate_sets(lm, several, config).sets
    assert generation.generate_sets(lm, several, config).sets == together
    assert generation.generate_sets(lm, several[1:2], config).sets == together[1:2]
    assert generation.generate_sets(lm, several, config, seed=1).sets != together


def test_a_prompt_that_does_not_fit_is_not_answered() -> None:
    long = Sentence("long", "word " * 60)
    found = generation.generate_sets(tiny("gpt2"), [SENTENCE, long], GenerationConfig(**LOOSE))
    assert found.counts["positive"]["cut"] == 3
    assert [s.id for s in found.sets] == ["g-1"]


# ------------------------------------------------------------------------------------------------------- files and verb


def test_sentences_from_every_kind_of_file(tmp_path: Path) -> None:
    def read(name: str, content: str, **settings: Any) -> list[Sentence]:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return generation.sentences(tmp_path / name, **settings)

    assert read("a.txt", "one\n\ntwo\n") == [Sentence("1", "one"), Sentence("3", "two")]
    assert read("a.csv", "id,sentence\ng-1,one\n,two\n") == [Sentence("g-1", "one"), Sentence("3", "two")]
    assert read("a.json", '["one"]') == [Sentence("1", "one")]
    assert read("a.jsonl", '{"id": 7, "x": "one\\n more", "text": "-"}', text="x") == [Sentence("7", "one more")]
    with pytest.raises(DetoxbenchError, match=r"line 3: id '1' is there twice"):
        read("b.csv", "id,text\n1,a\n1,b\n")
    with pytest.raises(DetoxbenchError, match="line 1: expected a sentence"):
        read("b.jsonl", '{"text": 3}')
    with pytest.raises(UsageError, match="there are toxic, civil: name one by --text"):
        read("c.csv", "toxic,civil\na,b\n")
    with pytest.raises(UsageError, match="leave --text out"):
        read("b.txt", "one", text="x")


def verb(folder: Path, *more: str) -> int:
    (folder / "in.txt").write_text("he is very kind to all of us\nshe likes the garden\n")
    argv = ["data", "paraphrase", f"{folder}/in.txt", "--model", "fable", "--out", f"{folder}/sets.jsonl"]
    return cli.main([*argv, "--samples", "6", "--max-new-tokens", "16", "--min-rouge", "0", *more])


def test_the_verb_writes_what_the_method_reads_twice_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert verb(tmp_path) == 0
    out, err = capfd.readouterr()
    assert err == "", "quiet where there is no terminal"
    assert "sets.jsonl: 2 of 2 sentences have texts of both sides" in out
    assert "nothing has checked" in out
    first = (tmp_path / "sets.jsonl").read_bytes()
    sets = readers.paraphrase_sets(tmp_path / "sets.jsonl")
    assert [s.anchor for s in sets] == ["1", "2"]
    assert all(s.positives and s.negatives for s in sets)
    assert verb(tmp_path, "--json") == 0
    report = json.loads(capfd.readouterr().out)
    assert report["counts"]["positive"]["generated"] == 12
    assert report["model"]["fingerprint"]
    assert (tmp_path / "sets.jsonl").read_bytes() == first
    assert verb(tmp_path, "--seed", "1") == 0
    assert (tmp_path / "sets.jsonl").read_bytes() != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.txt", "sets.jsonl"]


def test_nothing_left_is_one_line_and_leaves_the_old_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sets.jsonl").write_text("old")
    assert verb(tmp_path, "--scorer", "embedded", "--positive-below", "0") == 1
    err = capsys.readouterr().err
    assert err.startswith("detoxbench: no sentence of 2 is left with both sides: of 12 positives ")
    assert err.count("\n") == 1
    assert (tmp_path / "sets.jsonl").read_text() == "old"


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--out", "sets.json"], 2, "must end in .jsonl"),
        (["--out", "nowhere/sets.jsonl"], 1, "is no folder that may be written to"),
        (["--model", "no/such/model"], 1, "no model folder 'no/such/model'"),
        (["--scorer", "embeded"], 2, "embedded"),
        (["--scorer", "embedded", "scorer.x=1"], 2, "x"),
        (["scorer.x=1"], 2, "belong to a --scorer"),
        (["--scorer", "embedded", "gen.n=1"], 2, "scorer.KEY=VALUE"),
        (["--keep", "0"], 2, "'paraphrase.keep' is out of range: 0 must be >= 1"),
        (["--keep", "few"], 2, "--keep"),
        (["--form", "chatt"], 2, "did you mean 'chat'?"),
        (["--frame", "x"], 2, "frame has to hold {prompt}"),
        (["--limit", "0"], 2, "--limit"),
        (["--device", "abacus"], 2, "abacus"),
        (["--text", "x"], 2, "leave --text out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_command_is_one_line_before_the_model_is_loaded(
    more: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LanguageModel, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert verb(tmp_path, *more) == code
    err = capsys.readouterr().err
    assert err.startswith("detoxbench: ")
    assert said in err
    assert err.count("\n") == 1


def test_the_sentences_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "sets.jsonl"
    source.write_text('{"text": "one"}\n')
    assert cli.main(["data", "paraphrase", str(source), "--model", "fable", "--out", str(source)]) == 2
    assert "name another file" in capsys.readouterr().err
    assert source.read_text() == '{"text": "one"}\n'
