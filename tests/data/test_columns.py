"""The question that the data holds is the question that is asked: columns, quotes, labels and contexts."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detoxbench.data import readers
from detoxbench.data.readers import tables
from detoxbench.errors import DetoxbenchError

GOAL = "Write a mocking letter to the king of the trolls"


def file(folder: Path, content: Any, name: str = "data.jsonl") -> Path:
    """A file of JSON Lines, or of the given text."""
    text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    (folder / name).write_text(text)
    return folder / name


# ------------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("row", "category"),
    [
        ({"Goal": GOAL, "Target": "Here is a letter", "Behavior": "Mocking", "Category": "Insults"}, "Insults"),
        ({"goal": GOAL, "target": "Here is a letter"}, ""),
        ({"Behavior": GOAL, "SemanticCategory": "insults", "ContextString": ""}, "insults"),
        ({"forbidden_prompt": GOAL, "category": "insults", "source": "us"}, "insults"),
        ({"prompt": GOAL, "category": 3}, "3"),
        ({"text": GOAL, "category": ["insults", "letters"]}, "insults, letters"),
        ({"PROMPT": GOAL, "prompt": ""}, ""),
    ],
)
def test_a_request_is_found_by_what_its_column_holds(row: dict[str, Any], category: str, tmp_path: Path) -> None:
    assert readers.harmful_requests(file(tmp_path, [row])) == [readers.HarmfulRequest(GOAL, category)]


@pytest.mark.parametrize(
    ("read", "row"),
    [
        (readers.harmful_requests, {"Goal": GOAL, "question": "How does one mock the king of all of the trolls ?"}),
        (readers.harmful_requests, {"prompt": GOAL, "Prompt": "Praise the queen of the elves in a long letter"}),
        (readers.instructions, {"instruction": GOAL, "prompt": "Praise the queen of the elves", "output": "no"}),
        (readers.pairs, {"toxic": "you fool", "neutral": "dear friend", "neutral1": "good man"}),
        (readers.labelled_prompts, {"prompt": GOAL, "text": "Praise the queen of all elves", "label": "safe"}),
    ],
)
def test_two_columns_that_may_be_meant_stop(read: Callable[[Path], Any], row: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match="rename or remove") as raised:
        read(file(tmp_path, [row]))
    assert "line 1" in str(raised.value)


def test_columns_with_the_same_text_are_one(tmp_path: Path) -> None:
    assert readers.harmful_requests(file(tmp_path, [{"goal": GOAL, "prompt": GOAL}]))[0].text == GOAL


def test_rows_may_have_their_text_in_different_columns(tmp_path: Path) -> None:
    found = readers.harmful_requests(file(tmp_path, [{"goal": GOAL}, {"prompt": "Sing a rude song to the goblins"}]))
    assert [request.text for request in found] == [GOAL, "Sing a rude song to the goblins"]


@pytest.mark.parametrize("spelling", [str, str.upper, str.title, lambda name: name.replace("_", " ")])
def test_names_of_columns_fit_in_any_case(spelling: Callable[[str], str], tmp_path: Path) -> None:
    def spelt(**row: Any) -> Path:
        return file(tmp_path, [{spelling(name): value for name, value in row.items()}])

    assert readers.pairs(spelt(toxic="a", civil="b"))[0].civil == "b"
    assert readers.blimp(spelt(sentence_good="a", sentence_bad="b"))[0][:2] == ("a", "b")
    assert readers.question_answers(spelt(question="q", answer=["a"], id="7"))[0].id == "7"
    assert readers.toxicity_prompts(spelt(prompt={"text": "so"}, id=7))[0].id == "7"
    assert readers.labelled_prompts(spelt(prompt="p", type="t", label="unsafe"))[0].safe is False


@pytest.mark.parametrize(
    "content", ["So I said\n", '{"prompt": "So I said"}\n', '{"text": "So I said", "toxicity": 0.5}\n']
)
def test_plain_prompts_are_continued(content: str, tmp_path: Path) -> None:
    name = "data.jsonl" if content.startswith("{") else "data.txt"
    assert [prompt.text for prompt in readers.toxicity_prompts(file(tmp_path, content, name))] == ["So I said"]


# -------------------------------------------------------------------------------------------------- labels and contexts


@pytest.mark.parametrize(
    ("safe", "unsafe"),
    [
        ({"label": "safe"}, {"label": "unsafe"}),
        ({"label": "benign"}, {"label": "harmful"}),
        ({"is_safe": True}, {"is_safe": False}),
        ({"Is_Safe": "1"}, {"Is_Safe": "0"}),
        ({"unsafe": 0}, {"unsafe": 1}),
        ({"prompt_harm_label": "unharmful"}, {"prompt_harm_label": "harmful"}),
        ({"data_type": "vanilla_benign"}, {"data_type": "vanilla_harmful"}),
        ({"type": "homonyms"}, {"type": "contrast_homonyms"}),
    ],
)
def test_only_prompts_to_be_refused_are_asked_as_such(
    safe: dict[str, Any], unsafe: dict[str, Any], tmp_path: Path
) -> None:
    path = file(tmp_path, [{"prompt": "How do I kill a process ?", **safe}, {"prompt": GOAL, **unsafe}])
    with pytest.warns(UserWarning, match=r"data.jsonl: 1 of 2 prompts are labelled safe: they are not asked"):
        assert [request.text for request in readers.harmful_requests(path)] == [GOAL]
    assert [prompt.safe for prompt in readers.labelled_prompts(path)] == [True, False]


def test_a_label_without_a_meaning_stops(tmp_path: Path) -> None:
    path = file(tmp_path, [{"prompt": "a", "label": 0}, {"prompt": "b", "label": 1}])
    for read in (readers.harmful_requests, readers.labelled_prompts):
        with pytest.raises(DetoxbenchError, match="does 0 in 'label' mean safe or unsafe"):
            read(path)
    with pytest.raises(DetoxbenchError, match="nothing says whether this prompt is safe"):
        readers.labelled_prompts(file(tmp_path, [{"prompt": "a", "category": "x"}]))


def test_kinds_of_requests_are_no_labels(tmp_path: Path) -> None:
    kinds = [{"prompt": "a", "type": "fraud", "label": "fraud"}, {"prompt": "b", "type": "x", "label": "theft"}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(readers.harmful_requests(file(tmp_path, kinds))) == 2


def test_a_request_is_asked_with_its_context_or_not_at_all(tmp_path: Path) -> None:
    path = file(tmp_path, [
        {"Behavior": "Sum up the letter", "FunctionalCategory": "contextual", "ContextString": "Dear troll"},
        {"Behavior": "Sum up the poem", "FunctionalCategory": "contextual", "ContextString": ""},
        {"Behavior": "Describe the picture", "FunctionalCategory": "standard", "ImageFileName": "troll.png"},
        {"Behavior": GOAL, "FunctionalCategory": "standard", "ContextString": None},
    ])  # fmt: skip
    with pytest.warns(UserWarning, match="2 of 4 prompts are about a context or an image that they do not hold"):
        found = readers.harmful_requests(path)
    assert [request.text for request in found] == ["Dear troll\n\n---\n\nSum up the letter", GOAL]
    question = {"question": "Who sang ?", "answer": "the elf", "context": "An elf sang."}
    assert readers.question_answers(file(tmp_path, [question]))[0].prompt == "An elf sang.\n\nWho sang ?"


# ----------------------------------------------------------------------------------------------------- files and quotes


NINE = ['"So I said', *(f"line {i} of nine" for i in range(2, 9)), 'and she answered "no"']


@pytest.mark.parametrize(
    ("name", "delimiter"), [("data.tsv", "\t"), ("data.csv", ","), ("data.csv", ";"), ("data.csv", "\t")]
)
def test_quotes_of_a_text_do_not_merge_rows(name: str, delimiter: str, tmp_path: Path) -> None:
    columns = ["toxic", *NINE], ["civil", *(f"civil {i}" for i in range(9))]
    lines = [f"{toxic}{delimiter}{civil}\n" for toxic, civil in zip(*columns, strict=True)]
    assert [pair.toxic for pair in readers.pairs(file(tmp_path, "".join(lines), name))] == NINE


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1)


@given(rows=st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=5), delimiter=st.sampled_from(",;\t"))
def test_what_is_quoted_properly_is_read_as_it_was(rows: list[tuple[str, str, str]], delimiter: str) -> None:
    written = io.StringIO()
    writer = csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("a", "b", "c"), ('say "hi"', f"one{delimiter}two", "x"), *rows])
    found = [tuple(cells.values()) for _, cells in tables.read(written.getvalue(), "f", delimiter)]
    assert found[1:] == rows


def test_two_lines_that_may_be_one_cell_stop() -> None:
    with pytest.raises(DetoxbenchError, match="f line 2: is this one quoted cell of 2 lines, or 2 records"):
        tables.read('id,text\n1,"Hello there\nmy friend, bye"\n', "f", ",")


def test_long_cells_are_read(tmp_path: Path) -> None:
    long = "word " * 40_000
    limit = csv.field_size_limit()
    assert readers.pairs(file(tmp_path, f"toxic,civil\n{long},b\n", "data.csv"))[0].toxic == long
    assert csv.field_size_limit() == limit, "other users of csv are left alone"


@pytest.mark.parametrize("pack", [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_packed_files_are_read(pack: tuple[str, Callable[[bytes], bytes]], tmp_path: Path) -> None:
    path = tmp_path / f"data.jsonl{pack[0]}"
    path.write_bytes(pack[1](b'["a", "b"]\n'))
    assert readers.pairs(path)[0].civil == "b"
    path.write_bytes(b"not packed")
    with pytest.raises(DetoxbenchError, match="cannot be read"):
        readers.pairs(path)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.ndjson"])
def test_json_lines_are_known_by_what_they_are(name: str, tmp_path: Path) -> None:
    assert len(readers.pairs(file(tmp_path, [{"toxic": "a", "civil": "b"}] * 3, name))) == 3


def test_a_list_inside_an_object_is_read(tmp_path: Path) -> None:
    assert len(readers.pairs(file(tmp_path, '{"data": [["a", "b"], ["c", "d"]]}', "data.json"))) == 2


def test_parquet_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"toxic": ["a"], "civil": ["b"]}), tmp_path / "data.parquet")
    assert readers.pairs(tmp_path / "data.parquet")[0].civil == "b"
    (tmp_path / "data.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DetoxbenchError, match="cannot be read"):
        readers.pairs(tmp_path / "data.parquet")


@pytest.mark.parametrize(
    ("name", "remedy"), [("a.jsonl.zst", "zstd -d"), ("a.zip", "unzip"), ("a.pkl", "can run code")]
)
def test_what_cannot_be_read_says_how_it_could(name: str, remedy: str) -> None:
    with pytest.raises(DetoxbenchError, match=remedy):
        readers.pairs(name)


# ------------------------------------------------------------------------------------------------- forms of known data

SONG = "Sing a rude song about the goblins of the hill"


def test_a_name_of_a_request_never_pushes_a_text_aside_in_silence(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'Behavior' only names what 'Goal' says"):
        readers.harmful_requests(file(tmp_path, [{"Goal": GOAL, "Behavior": "Mocking"}]))
    answer = {"prompt": "So I", "text": " said to the queen that all is well in the land"}
    with pytest.raises(DetoxbenchError, match="'prompt' and 'text' may both be what is asked"):
        readers.toxicity_prompts(file(tmp_path, [answer]))


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (readers.toxicity_prompts, "prompt,id\n\"{'text': 'So I said', 'toxicity': 0.3}\",1\n"),
        (readers.question_answers, "question,answer\nWho sang?,\"['the elf', 'an elf']\"\n"),
        (readers.question_answers, "question,answer\nWho sang?,\"['the elf' 'an elf']\"\n"),
    ],
)
def test_lists_that_a_table_holds_as_text_are_no_texts(
    read: Callable[[Path], Any], content: str, tmp_path: Path
) -> None:
    with pytest.raises(DetoxbenchError, match="holds lists or objects written as text"):
        read(file(tmp_path, content, "data.csv"))


def test_brackets_of_a_text_are_no_list(tmp_path: Path) -> None:
    texts = ["[INST] Write a letter [/INST]", "{name} is a troll", "['tis the season"]
    path = file(tmp_path, [{"goal": text} for text in texts])
    assert [request.text for request in readers.harmful_requests(path)] == texts


def test_numbers_and_empty_cells_of_tables_are_read(tmp_path: Path) -> None:
    prompts = file(tmp_path, "id,prompt,toxicity\n007,So I,0.25\n,And so,\n", "data.csv")
    assert readers.toxicity_prompts(prompts) == [("007", "So I", 0.25), ("3", "And so", None)]
    asked = file(tmp_path, "instruction,half\nName a bird,\n", "data.csv")
    assert readers.asked_instructions(asked)[0].half is None
    chats = file(tmp_path, "instruction,output,chat\nName a bird,A duck,false\n", "data.csv")
    assert readers.instructions(chats)[0].chat is False


def test_texts_of_blanks_are_empty(tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match="got nothing, in 'goal'"):
        readers.harmful_requests(file(tmp_path, [{"goal": "  "}]))
    two = file(tmp_path, f"goal,prompt\n{GOAL},\n,{SONG}\n", "data.csv")
    assert [request.text for request in readers.harmful_requests(two)] == [GOAL, SONG]


def test_a_label_beside_answers_may_speak_of_them(tmp_path: Path) -> None:
    rows = [{"prompt": GOAL, "response": "No.", "is_safe": True}, {"prompt": SONG, "response": "La", "is_safe": False}]
    for read in (readers.harmful_requests, readers.labelled_prompts):
        with pytest.raises(DetoxbenchError, match="does 'is_safe' speak of the prompt or of the answer in 'response'"):
            read(file(tmp_path, rows))
    of_prompts = [row | {"prompt_label": label} for row, label in zip(rows, ["unsafe", "safe"], strict=True)]
    assert [prompt.safe for prompt in readers.labelled_prompts(file(tmp_path, of_prompts))] == [False, True]


@pytest.mark.parametrize("name", ["safety", "prompt_label", "label"])
def test_yes_and_no_of_what_is_asked_everywhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match=f"does 0 in '{name}' mean safe or unsafe"):
        readers.harmful_requests(file(tmp_path, [{"prompt": GOAL, name: 0}, {"prompt": SONG, name: 1}]))


def test_kinds_of_prompts_may_name_the_safe_ones(tmp_path: Path) -> None:
    path = file(tmp_path, [{"prompt": GOAL, "type": "benign"}, {"prompt": SONG, "type": "harmful"}])
    with pytest.warns(UserWarning, match="1 of 2 prompts are labelled safe"):
        assert [request.text for request in readers.harmful_requests(path)] == [SONG]
    path = file(tmp_path, [{"prompt": GOAL, "type": "benign"}, {"prompt": SONG, "type": "jailbreak"}])
    with pytest.raises(DetoxbenchError, match="does 'jailbreak' in 'type' mean safe or unsafe"):
        readers.harmful_requests(path)
    crimes = [{"prompt": GOAL, "label": "Non-Violent Crimes"}, {"prompt": SONG, "label": "Violent Crimes"}]
    assert len(readers.harmful_requests(file(tmp_path, crimes))) == 2


@pytest.mark.parametrize("label", ["toxic-free", "hate_free", "low toxicity", "counter hate", "without insults"])
def test_words_that_turn_a_label_are_not_certain(label: str, tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match=r"toxic\? Say which label is"):
        readers.labelled(file(tmp_path, [{"text": "a", "label": label}, {"text": "b", "label": "toxic"}]))


def test_columns_of_texts_and_labels_that_differ_stop(tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match="'text' and 'comment_text' do not say the same: name one by --text"):
        readers.labelled(file(tmp_path, [{"text": "A title", "comment_text": "bah", "toxic": 1}]))
    labels = file(tmp_path, [{"text": "a", "label": 1, "is_safe": 1}, {"text": "b", "label": 0, "is_safe": 0}])
    with pytest.raises(DetoxbenchError, match="'label' and 'is_safe' do not say the same: name one by --label"):
        readers.labelled(labels)
    assert [row.toxic for row in readers.labelled(labels, label="is_safe")] == [False, True]


def test_contexts_and_inputs_are_asked_wherever_they_stand(tmp_path: Path) -> None:
    dolly = {"instruction": "Sum up:", "context": "An elf sang.", "response": "Song", "category": "x"}
    assert readers.instructions(file(tmp_path, [dolly]))[0].prompt == "Sum up: An elf sang."
    assert readers.asked_instructions(file(tmp_path, [dolly]))[0].input == "An elf sang."
    labelled = {"prompt": "Sum up:", "input": "An elf sang.", "label": "safe"}
    assert readers.labelled_prompts(file(tmp_path, [labelled]))[0].text == "Sum up: An elf sang."
    for read, row in (
        (readers.question_answers, {"question": "Who?", "answer": "a", "context": {"title": ["x"]}}),
        (readers.harmful_requests, {"prompt": "Sum up", "context": ["An elf sang."]}),
    ):
        with pytest.raises(DetoxbenchError, match=r"line 1: expected text, got .*'context'"):
            read(file(tmp_path, [row]))  # type: ignore[operator]
    some = [{"question": "Who?", "answer": "a", "context": "An elf."}, {"question": "Why?", "answer": "b"}]
    with pytest.warns(UserWarning, match="line 2: 1 of 2 questions have no context"):
        readers.question_answers(file(tmp_path, some))


def test_questions_of_several_choices_are_not_asked_without_them(tmp_path: Path) -> None:
    rows = "question,choices,answer\nHow many?,\"['1', '2']\",1\n"
    with pytest.raises(DetoxbenchError, match="several choices, which are not asked"):
        readers.question_answers(file(tmp_path, rows, "data.csv"))


def test_forms_of_the_hub_are_read(tmp_path: Path) -> None:
    squad = {"question": "Who?", "context": "An elf.", "answers": {"text": ["elf", "elf"], "answer_start": [3, 3]}}
    assert readers.question_answers(file(tmp_path, [squad]))[0].answers == ("elf",)
    targets = {"choices": ["a", "b"], "labels": [1, 0]}
    truthful = {"question": "Why?", "mc1_targets": targets, "mc2_targets": targets}
    assert readers.truthfulqa(file(tmp_path, [truthful]))[0].answers == {"a": ("right",) * 2, "b": ("wrong",) * 2}
    with pytest.raises(DetoxbenchError, match="give mc_task"):
        readers.truthfulqa(file(tmp_path, "Type,Question,Best Answer\nx,Why?,So\n", "data.csv"))
    assert readers.pairs(file(tmp_path, [{"toxic_sentence": "a", "neutral_sentence": "b"}]))[0] == ("a", "b")
    beaver = {"prompt": GOAL, "category": {"theft": False, "insult": True}}
    assert readers.harmful_requests(file(tmp_path, [beaver]))[0].category == "insult"


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (json.dumps({"goal": GOAL}) + "\n" + json.dumps({"goal": SONG}) + "\n", ".jsonl"),
        (json.dumps([GOAL, SONG], indent=1), ".json"),
        (f"goal,target\n{GOAL},Sure\n", ".csv"),
        (f"id\tprompt\n1\t{GOAL}\n", ".tsv"),
        (f"prompt\n{GOAL}\n", ".csv"),
    ],
)
def test_a_text_file_that_is_none_says_what_it_is(content: str, ending: str, tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match=f"it looks like {ending}: rename"):
        readers.harmful_requests(file(tmp_path, content, "data.txt"))


def test_texts_with_commas_and_brackets_stay_a_text_a_line(tmp_path: Path) -> None:
    lines = ["Question, please: who sang?", "[a] song", '{"so": she said', "text me, friend"]
    found = readers.harmful_requests(file(tmp_path, "\n".join(lines), "data.txt"))
    assert [request.text for request in found] == lines


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.tsv", f"goal,target\n{GOAL},Sure\n"),
        ("data.csv", f"goal|target\n{GOAL}|Sure\n"),
        ("data.csv", f"goal,target\r{GOAL},Sure\r"),
        ("data.csv", f'id, goal\n1, "{GOAL}"\n'),
        ("data.txt", f"{GOAL}\r"),
    ],
)
def test_delimiters_and_line_ends_of_other_programs(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert [request.text for request in readers.harmful_requests(tmp_path / name)] == [GOAL]


def test_a_text_that_is_cut_by_its_own_line_break_is_said(tmp_path: Path) -> None:
    path = file(tmp_path, f"goal,target\nWrite a\nmocking letter,Sure\n{SONG},Sure\n", "data.csv")
    with pytest.warns(UserWarning, match="1 of 3 rows have fewer cells than the header, the first on line 2"):
        readers.harmful_requests(path)
    with pytest.raises(DetoxbenchError, match="line 2: a quote inside a quoted cell is doubled"):
        readers.harmful_requests(file(tmp_path, 'goal,target\n"He said \\"hi\\" to me",Sure\n', "data.csv"))
    (tmp_path / "data.csv").write_bytes(f"goal,target\n{GOAL},Sure\n".encode("utf-16-le"))
    with pytest.raises(DetoxbenchError, match="iconv -f UTF-16"):
        readers.harmful_requests(tmp_path / "data.csv")
