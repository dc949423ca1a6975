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
