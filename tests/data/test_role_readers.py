"""The files of labelled texts, preferences, prompts to refuse and to answer, and texts to retain, as published."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detoxbench.data import readers
from detoxbench.data.examples import Instruction, LabelledText, Preference, Query, Role
from detoxbench.data.roles import ROLES
from detoxbench.errors import DetoxbenchError

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file in the current folder, so that messages show its bare name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str) -> Path:
        Path(name).write_text(content, encoding="utf-8")
        return Path(name)

    return write


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# ------------------------------------------------------------------------------------------------------ labelled texts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("jigsaw.csv", 'id,comment_text,toxic,severe_toxic\n1,"you rat",1,0\n2,good day,0,0\n'),
        ("civil_comments.csv", "id,target,comment_text,insult\n1,0.83,you rat,0.8\n2,0.0,good day,0.0\n"),
        ("civil_comments.jsonl", lines({"text": "you rat", "toxicity": 0.5}, {"text": "good day", "toxicity": 0.49})),
        ("surge.csv", "text,is_toxic\nyou rat,Toxic\ngood day,Not Toxic\n"),
        ("paradetox.tsv", "toxic\tneutral1\tneutral2\nyou rat\tgood day\t\n"),
        ("destein.jsonl", lines(["you rat", "good day"])),
    ],
)
def test_labelled_texts_in_every_form(name: str, content: str, write: Write) -> None:
    assert readers.labelled_texts(write(name, content)) == [
        LabelledText("you rat", toxic=True),
        LabelledText("good day", toxic=False),
    ]


def test_labels_beside_lines_and_texts_that_are_empty(write: Write) -> None:
    write("offensive_test_labels.txt", "1\n0\n")
    texts = readers.labelled_texts(write("offensive_test_text.txt", "you rat\ngood day\n"))
    assert [row.toxic for row in texts] == [True, False]
    file = write("a.jsonl", lines({"text": " ", "toxic": True}, {"text": "b", "toxic": False}))
    with pytest.warns(UserWarning, match=r"a\.jsonl: 1 of 2 texts are empty: left out"):
        assert readers.labelled_texts(file) == [LabelledText("b", toxic=False)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,mark\nx,1\n", "none of the columns is_toxic, .*; there are text, mark: call the label one"),
        ("a.csv", "words,toxic\nx,1\n", "none of the columns text, .*: call the text one of these"),
        ("a.csv", "text,label\nx,maybe\n", r"a\.csv line 2: is 'maybe' in 'label' toxic\? Write toxic and civil"),
        ("a.csv", "text,label,is_safe\nx,toxic,1\n", "'label' and 'is_safe' do not say the same: remove or rename"),
        ("a.txt", "x\n", "'a.txt' holds texts only: put their labels beside it"),
    ],
)
def test_a_label_that_cannot_be_told_is_one_line_without_options_of_another_command(
    name: str, content: str, said: str, write: Write
) -> None:
    with pytest.raises(DetoxbenchError, match=said) as caught:
        readers.labelled_texts(write(name, content))
    assert "--" not in str(caught.value)


def test_a_bare_label_is_said_to_be_taken_for_toxic(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "detoxbench"):
        assert readers.labelled_texts(write("a.csv", "text,label\nx,1\n"))[0].toxic
    assert "taken for toxic (call it is_civil otherwise)" in caplog.text


# --------------------------------------------------------------------------------------------------------- preferences


HH = {
    "chosen": "\n\nHuman: How do I mock a troll?\n\nAssistant: Please be kind.",
    "rejected": "\n\nHuman: How do I mock a troll?\n\nAssistant: Call it names.",
}
QUESTION = {"role": "user", "content": "How do I mock a troll?"}
KIND, MEAN = ({"role": "assistant", "content": text} for text in ("Please be kind.", "Call it names."))


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "How do I mock a troll?", "chosen": "Please be kind.", "rejected": "Call it names."},
        {"question": "How do I mock a troll?", "chosen": "Please be kind.", "rejected": "Call it names."},
        {
            "prompt": "How do I mock a troll?",
            "llama3_output": "Please be kind.",
            "output": "Call it names.",
            "category": "harassment",
        },
        HH,
        {"prompt": "How do I mock a troll?", "chosen": [QUESTION, KIND], "rejected": [QUESTION, MEAN]},
        {"prompt": [QUESTION], "chosen": [KIND], "rejected": [MEAN]},
        {
            "adversarial prompt": "How do I mock a troll?",
            "safe generation": "Please be kind.",
            "unsafe generation": "Call it names.",
        },
    ],
)
def test_preferences_in_every_form(record: dict[str, Any], write: Write) -> None:
    assert readers.preferences(write("a.jsonl", lines(record))) == [
        Preference("How do I mock a troll?", "Please be kind.", "Call it names.", chat=True)
    ]


def test_dialogues_of_several_turns_are_running_text(write: Write) -> None:
    begin = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Mock me\n\nAssistant:"
    record = {"chosen": f"{begin} No.", "rejected": f"{begin} You rat.\n\nHuman: Oh\n\nAssistant: Ha."}
    (read,) = readers.preferences(write("a.jsonl", lines(record)))
    assert read == Preference(begin, "No.", "You rat.\n\nHuman: Oh\n\nAssistant: Ha.", chat=False)
    system = {"role": "system", "content": "Be brief."}
    messages = {"chosen": [system, QUESTION, KIND], "rejected": [system, QUESTION, MEAN]}
    (read,) = readers.preferences(write("b.jsonl", lines(messages)))
    assert read.prompt == "\n\nSystem: Be brief.\n\nHuman: How do I mock a troll?\n\nAssistant:"
    assert (read.chosen, read.chat) == ("Please be kind.", False)


def test_answers_that_begin_alike_keep_their_beginning(write: Write) -> None:
    record = {name: text.replace("Assistant: ", "Assistant: Well, ") for name, text in HH.items()}
    (read,) = readers.preferences(write("a.jsonl", lines(record)))
    assert (read.chosen, read.rejected) == ("Well, Please be kind.", "Well, Call it names.")


def test_continuations_of_dpo_toxic_with_and_without_their_prompt(write: Write) -> None:
    record = {"prompt_text": "The troll said", "unpert_gen_text": " hello .", "pert_gen_text": " you rat ."}
    whole = {key: text if key == "prompt_text" else f"The troll said{text}" for key, text in record.items()}
    wanted = Preference("The troll said", "hello .", "you rat .", chat=False)
    assert readers.preferences(write("a.jsonl", lines(record, whole))) == [wanted, wanted]


def test_parallel_pairs_are_preferences_without_a_prompt(write: Write) -> None:
    read = readers.preferences(write("a.tsv", "toxic\tneutral1\nyou rat\tgood day\n"))
    assert read == [Preference("", "good day", "you rat", chat=False)]


def test_rows_that_prefer_nothing_are_left_out_and_counted(write: Write) -> None:
    same = {"chosen": HH["chosen"], "rejected": HH["chosen"]}
    empty = HH | {"rejected": "\n\nHuman: How do I mock a troll?\n\nAssistant: "}
    with pytest.warns(UserWarning, match=r"a\.jsonl: 2 of 3 rows have an empty answer or two equal ones: left out"):
        assert len(readers.preferences(write("a.jsonl", lines(same, HH, empty)))) == 1
    with pytest.raises(DetoxbenchError, match=r"b\.jsonl: every row has an empty answer"):
        readers.preferences(write("b.jsonl", lines(same)))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"chosen": "a", "rejected": "b"}, "line 1: 'chosen' and 'rejected' have no question in common"),
        ({"prompt": "a", "chosen": "b"}, "line 1: missing field 'rejected'"),
        ({"prompt": "a", "rejected": "b"}, "line 1: missing field 'chosen'"),
        (
            {"prompt": "a", "chosen": "b", "rejected": 3},
            "line 1: expected text that is not empty, got a number, in 're",
        ),
        ({"chosen": [KIND], "rejected": "b"}, "line 1: expected a list of messages, got text, in 'rejected'"),
        ({"chosen": [{"role": "elf", "content": "a"}], "rejected": [MEAN]}, "line 1: expected messages with a role"),
    ],
)
def test_a_preference_that_cannot_be_read_is_one_line(record: dict[str, Any], said: str, write: Write) -> None:
    with pytest.raises(DetoxbenchError, match=f"^a.jsonl {said}") as caught:
        readers.preferences(write("a.jsonl", lines(record)))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ prompts, retain texts


def test_prompts_of_either_half_of_a_file_with_both(write: Write) -> None:
    file = write("xstest.csv", "id,prompt,type,label\n1,kill a process?,homonyms,safe\n2,kill a man?,contrast,unsafe\n")
    with pytest.warns(UserWarning, match="1 of 2 prompts are labelled safe"):
        assert readers.harmful_prompts(file) == [Query("kill a man?")]
    with pytest.warns(UserWarning, match="1 of 2 prompts are labelled unsafe"):
        assert readers.harmless_prompts(file) == [Query("kill a process?")]


def test_prompts_of_one_kind_alone(write: Write) -> None:
    assert readers.harmful_prompts(write("a.txt", "kill a man?\n")) == [Query("kill a man?")]
    alpaca = write("a.json", json.dumps([{"instruction": "Name a bird", "input": "that swims.", "output": "A duck."}]))
    assert readers.harmless_prompts(alpaca) == [Query("Name a bird that swims.")]
    story = write("a.jsonl", lines({"prompt": "So I said", "chat": False}))
    assert readers.harmless_prompts(story) == [Query("So I said", chat=False)]
    unsafe = write("b.jsonl", lines({"prompt": "kill a man?", "label": "unsafe"}))
    none = pytest.raises(DetoxbenchError, match="none of the prompts from here on is harmless")
    with pytest.warns(UserWarning, match="1 of 1 prompts are labelled unsafe"), none:
        readers.harmless_prompts(unsafe)


def test_retain_texts_are_plain_texts_or_answers(write: Write) -> None:
    plain = [Instruction("", "the duck slept .", chat=False)]
    assert readers.retain_texts(write("a.txt", "the duck slept .\n")) == plain
    assert readers.retain_texts(write("a.json", '["the duck slept ."]')) == plain
    assert readers.retain_texts(write("a.jsonl", lines({"text": "the duck slept ."}))) == plain
    answer = write("b.jsonl", lines({"instruction": "Name a bird", "output": "A duck."}))
    assert readers.retain_texts(answer) == [Instruction("Name a bird", "A duck.")]
    with pytest.raises(DetoxbenchError, match=r"c\.jsonl line 1: missing field 'text' \(or 'sentence'\); there are a"):
        readers.retain_texts(write("c.jsonl", lines({"a": "b"})))


def test_either_side_of_pairs_is_a_response_to_an_empty_prompt(write: Write) -> None:
    """As continuations are trained: DExperts' experts, or fine-tuning on civil texts."""
    civil, toxic = Instruction("", "good day", chat=False), Instruction("", "you rat", chat=False)
    for name, content in (
        ("paradetox.tsv", "toxic\tneutral1\tneutral2\nyou rat\tgood day\thello\n"),
        ("destein.jsonl", lines(["you rat", "good day"])),
    ):
        file = write(name, content)
        assert readers.civil_instructions(file) == readers.retain_texts(file) == [civil]
        assert readers.toxic_instructions(file) == [toxic]
    answer = write("b.jsonl", lines({"instruction": "Name a bird", "output": "A duck."}))
    for read in (readers.civil_instructions, readers.toxic_instructions):
        assert read(answer) == readers.instructions(answer)


def test_the_embedded_examples_of_a_role_are_of_the_class_that_its_reader_gives(write: Write) -> None:
    """A method must not be able to tell a file from the embedded world."""
    files = {
        Role.LABELLED_TEXTS: {"text": "a", "toxic": True},
        Role.PREFERENCES: {"prompt": "a", "chosen": "b", "rejected": "c"},
        Role.HARMFUL_PROMPTS: {"prompt": "a"},
        Role.HARMLESS_PROMPTS: {"prompt": "a"},
        Role.REFUSALS: {"prompt": "a", "response": "b"},
        Role.RETAIN_TEXTS: {"text": "a"},
    }
    for role, record in files.items():
        (read,) = ROLES[role].read(str(write("a.jsonl", lines(record))))
        assert {type(example) for example in ROLES[role].embedded()} == {type(read)}
