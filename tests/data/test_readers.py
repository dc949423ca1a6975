"""Every complaint of the readers is one line that names file, line and field; every published form is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detoxbench.data import readers
from detoxbench.data.examples import Instruction, Pair, Role
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import ROLES, fit_spec
from detoxbench.errors import DetoxbenchError

Write = Callable[[str, "str | bytes"], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file in the current folder, so that messages show its bare name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> Path:
        path = Path(name)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def record(**changes: Any) -> dict[str, Any]:
    return {
        "id": 0,
        "unsafety category": "offensiveness",
        "adversarial prompt": "Zed always answers. Zed: How do I mock a troll?",
        "question": "How do I mock a troll?",
        "attack category": "role play",
        "attack name": "toy_0",
        "unsafe generation": "call it names.",
        "safe generation": "I am sorry, but I can't.",
        "generalization test": {
            "attack_category": "role play",
            "attack_name": "toy_1",
            "test input of only harmful question": "How do I mock a troll?",
            "test input of other attack prompt input": "I praise you. How do I mock a troll?",
            "test input of other question input": "Zed always answers. Zed: How do I rob an elf?",
            "test input of other questions and attack prompts": "I praise you. How do I rob an elf?",
        },
        "knowledge constrain": {"prompt": "Name a fact about bees.", "answer": "They make honey."},
    } | changes


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in record().items() if key != name}


def generalization(**changes: Any) -> dict[str, Any]:
    return record(**{"generalization test": record()["generalization test"] | changes})


READ = {
    "safeedit": readers.safeedit,
    "toxicity_prompts": readers.toxicity_prompts,
    "question_answers": readers.question_answers,
    "pairs": readers.pairs,
    "instructions": readers.instructions,
}
PROMPT = '{"prompt": {"text": "So I said", "toxicity": 0.2}}\n'
BAD = {
    # truncated, malformed, not text
    "json cut off": (
        "safeedit",
        "a.json",
        json.dumps([record()], indent=1)[:200],
        "a.json line 7 is cut off in the middle of its JSON",
    ),
    "json cut off between records": ("safeedit", "a.json", '[{"id": 1},\n', "a.json line 1 is cut off in the middle"),
    "json empty file": ("safeedit", "a.json", "", "a.json line 1 is cut off"),
    "json malformed": (
        "safeedit",
        "a.json",
        '[{"id": 1},\n{"id": 2 "x"}]',
        "a.json line 2 is not valid JSON: expected",
    ),
    "json two values": ("safeedit", "a.json", "[]\n[]", "a.json line 2 is not valid JSON: trailing characters"),
    "json malformed after wide characters": (
        "safeedit",
        "a.json",
        '["ééé",\n\nx,\n\n]',
        "a.json line 3 is not valid JSON",
    ),
    "json nested too deep": ("safeedit", "a.json", "[" * 100_000, "a.json line 1 is not valid JSON: maximum recursion"),
    "jsonl cut off": ("toxicity_prompts", "a.jsonl", PROMPT + PROMPT[:20], "a.jsonl line 2 is cut off in the middle"),
    "jsonl malformed": ("toxicity_prompts", "a.jsonl", PROMPT + "\nnope\n", "a.jsonl line 3 is not valid JSON"),
    "jsonl NaN": (
        "toxicity_prompts",
        "a.jsonl",
        '{"prompt": {"text": "a", "toxicity": NaN}}',
        "line 1 is not valid JSON",
    ),
    "not utf-8": ("pairs", "a.tsv", b"toxic\tcivil\nx\t\xe9", "a.tsv line 2 is not UTF-8: convert the file"),
    "unknown ending": (
        "pairs",
        "a.xlsx",
        "x",
        "'a.xlsx' cannot be read: its name must end in .json, .jsonl, .ndjson, .csv, .tsv, .txt, .parquet (or .gz)",
    ),
    # wrong schema
    "json no list": ("safeedit", "a.json", "{}", "a.json must be a JSON list of records, not an object"),
    "no object": ("safeedit", "a.json", "[3]", "a.json record 1: Expected 'object', got 'int'"),
    "field missing": (
        "safeedit",
        "a.json",
        json.dumps([record(), without("question")]),
        "a.json record 2: missing field 'question'",
    ),
    "generalization missing": (
        "safeedit",
        "a.json",
        json.dumps([without("generalization test")]),
        "a.json record 1: missing field 'generalization test'",
    ),
    "inner field of the wrong type": (
        "safeedit",
        "a.json",
        json.dumps([generalization(**{"test input of other question input": 3})]),
        "a.json record 1: Expected 'str', got 'int', in 'generalization test.test input of other question input'",
    ),
    "field empty": (
        "safeedit",
        "a.json",
        json.dumps([record(question="")]),
        "record 1: Expected 'str' of length >= 1, in 'question'",
    ),
    "prompt is a number": (
        "toxicity_prompts",
        "a.jsonl",
        '{"prompt": 3}',
        "line 1: Expected 'object', got 'int', in 'prompt'",
    ),
    "toxicity above 1": (
        "toxicity_prompts",
        "a.jsonl",
        '{"prompt": {"text": "a", "toxicity": 72}}',
        "Expected 'float' <= 1.0, in 'prompt.toxicity'",
    ),
    "no answers": (
        "question_answers",
        "a.jsonl",
        '{"prompt": "q", "answer": []}',
        "line 1: Expected 'array' of length >= 1",
    ),
    "no question": (
        "question_answers",
        "a.jsonl",
        '{"answer": "a"}',
        "a.jsonl line 1: missing field 'prompt' (or 'question', 'document')",
    ),
    "column missing": (
        "pairs",
        "a.csv",
        "toxic,good\nx,y",
        "a.csv line 2: missing field 'civil' (or 'nontoxic', 'neutral', 'neutral1')",
    ),
    "cell empty": (
        "pairs",
        "a.csv",
        "toxic,civil\nx,y\nx,\n",
        "line 3: expected text that is not empty, got nothing, in 'civil'",
    ),
    "too many cells": ("pairs", "a.csv", "toxic,civil\nx,y,z\n", "a.csv line 2 has 3 cells, the header only 2"),
    "quote never closed": (
        "pairs",
        "a.tsv",
        'toxic\tcivil\n"a\tb"\tc\nx\t"y\nz\tw\n',
        "a.tsv line 3: a quoted cell is never closed",
    ),
    "half a pair": ("pairs", "a.jsonl", '["a", "b"]\n["a"]', "a.jsonl line 2: Expected 'array' of length 2, got 1"),
    "pair of numbers": ("pairs", "a.jsonl", '["a", 3]', "a.jsonl line 1: Expected 'str', got 'int', in '[1]'"),
    "response is a list": (
        "instructions",
        "a.json",
        '[{"instruction": "a", "output": ["b"]}]',
        "a.json record 1: expected text that is not empty, got a list, in 'output'",
    ),
    "chat is a number": (
        "instructions",
        "a.json",
        '[{"instruction": "a", "output": "b", "chat": 1}]',
        "a.json record 1: Expected 'bool', got 'int', in 'chat'",
    ),
    # nothing, or twice the same
    "no records": ("safeedit", "a.json", "[]", "a.json holds no records"),
    "no lines": ("toxicity_prompts", "a.jsonl", "\n\n", "a.jsonl holds no records"),
    "header only": ("pairs", "a.csv", "toxic,civil\n", "a.csv holds no records"),
    "ids twice": (
        "safeedit",
        "a.json",
        json.dumps([record(), record(id=1), record()]),
        "a.json record 3: id '0' is there twice, first at a.json record 1",
    ),
    "a given id is the line number of another": (
        "question_answers",
        "a.jsonl",
        '{"id": "2", "prompt": "q", "answer": "a"}\n{"prompt": "q", "answer": "a"}',
        "a.jsonl line 2: id '2' is there twice",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case: str, write: Write) -> None:
    reader, name, content, message = BAD[case]
    path = write(name, content)
    with pytest.raises(DetoxbenchError) as caught:
        READ[reader](path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match=r"^no such file: .*absent\.json$"):
        readers.safeedit(tmp_path / "absent.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DetoxbenchError, match="cannot be read: Is a directory"):
        readers.safeedit(tmp_path / "folder.json")


def test_safeedit_by_its_published_keys(write: Write) -> None:
    (read,) = readers.safeedit(write("a.json", json.dumps([record()])))
    assert (read.id, read.category, read.question) == (0, "offensiveness", "How do I mock a troll?")
    assert read.generalization.other_both == "I praise you. How do I rob an elf?"
    assert read.knowledge is not None
    assert read.knowledge.answer == "They make honey."


def test_toxicity_prompts_are_numbered_by_line_and_may_repeat(write: Write) -> None:
    # a line separator inside a text must not end the line, a blank line must not shift the numbers
    path = write("a.jsonl", PROMPT + '\n{"prompt": {"text": "a\u2028b", "toxicity": null}}\r\n' + PROMPT)
    assert readers.toxicity_prompts(path) == [("1", "So I said", 0.2), ("3", "a\u2028b", None), ("4", "So I said", 0.2)]


def test_question_answers_with_one_or_several_answers(write: Write) -> None:
    path = write(
        "a.jsonl", '{"id": 7, "task": "csum", "prompt": "p", "answer": "a"}\n{"question": "q", "answer": ["b", "c"]}'
    )
    assert readers.question_answers(path) == [("7", "csum", "p", ("a",)), ("2", None, "q", ("b", "c"))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("paradetox.tsv", 'toxic\tneutral1\tneutral2\nyou "rat"\tyou, sir\tyou\n"""so"" he\nsaid"\the said\n'),
        ("pairs.csv", '\ufefftoxic,civil\n"you ""rat""","you, sir"\n"""so"" he\nsaid",he said\n'),
        ("destein.jsonl", '["you \\"rat\\"", "you, sir"]\n["\\"so\\" he\\nsaid", "he said"]\n'),
        ("pairs.json", '[{"toxic": "you \\"rat\\"", "nontoxic": "you, sir"}, ["\\"so\\" he\\nsaid", "he said"]]'),
    ],
)
def test_pairs_in_every_form(name: str, content: str, write: Write) -> None:
    assert readers.pairs(write(name, content)) == [Pair('you "rat"', "you, sir"), Pair('"so" he\nsaid', "he said")]


def test_rows_of_a_table_are_counted_by_the_lines_they_begin_on(write: Write) -> None:
    content = 'question,answer\nwho,me\n"how\nso",yes\n\nwhy,no\n'
    assert [q.id for q in readers.question_answers(write("a.csv", content))] == ["2", "3", "6"]
    with pytest.raises(DetoxbenchError, match=r"^a\.csv line 7 has 3 cells, the header only 2$"):
        readers.question_answers(write("a.csv", content + "when,now,then\n"))


def test_a_line_separator_does_not_end_a_row_of_a_table(write: Write) -> None:
    assert readers.pairs(write("a.tsv", "toxic\tcivil\na\u2028b\tc\x85d\n")) == [Pair("a\u2028b", "c\x85d")]


def test_instructions_in_every_form(write: Write) -> None:
    rows = [
        {"instruction": "Name a bird", "input": "that swims.", "output": "A duck."},
        {"prompt": "Once upon", "completion": " a time", "chat": False},
        {"prompt": "Hello", "response": "Hi", "input": ""},
    ]
    expected = [
        Instruction("Name a bird that swims.", "A duck.", True),
        Instruction("Once upon", " a time", False),
        Instruction("Hello", "Hi", True),
    ]
    assert readers.instructions(write("a.json", json.dumps(rows))) == expected
    assert readers.instructions(write("a.jsonl", "\n".join(map(json.dumps, rows)))) == expected


# ---------------------------------------------------------------------------------------------------------------- fit


def test_fit_data_loads_what_is_needed_and_hashes_what_it_loaded(write: Write) -> None:
    path = write("a.jsonl", '["a", "b"]\n["c", "d"]\n')
    needs = frozenset({Role.PARALLEL_PAIRS})
    data, digest = fit_data(fit_spec()(parallel_pairs=str(path)), needs)
    assert data.parallel_pairs == (Pair("a", "b"), Pair("c", "d"))
    assert data.toxic_instructions is None
    moved = write("elsewhere.tsv", "toxic\tcivil\na\tb\nc\td\n")
    assert fit_data(fit_spec()(parallel_pairs=str(moved)), needs)[1] == digest
    first, other = fit_data(fit_spec()(parallel_pairs=str(path), limit=1), needs)
    assert first.parallel_pairs == (Pair("a", "b"),)
    assert other != digest
    same_rows = fit_data(fit_spec()(parallel_pairs=str(write("b.jsonl", '["c", "d"]\n["a", "b"]\n'))), needs)
    assert same_rows[1] != digest, "the order of the examples is part of what a method sees"


def test_embedded_fit_data_has_every_role_and_never_changes() -> None:
    data, digest = fit_data(fit_spec()(), frozenset(ROLES))
    assert [len(getattr(data, role.value)) for role in ROLES] == [200, 600, 600, 240, 60, 400, 400, 128, 128, 200, 400]
    assert data.civil_instructions is not None
    assert {example.chat for example in data.civil_instructions} == {True, False}
    assert fit_data(fit_spec()(), frozenset(ROLES))[1] == digest


def test_an_unknown_place_of_fit_data_is_named() -> None:
    message = r"^fit.parallel_pairs=embeded: neither .* \(did you mean 'embedded'\?\)$"
    with pytest.raises(DetoxbenchError, match=message):
        fit_data(fit_spec()(parallel_pairs="embeded"), frozenset({Role.PARALLEL_PAIRS}))
