"""Manifests of data sets, `data list|fetch|verify`, and whether a method has read what it is asked."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest

from detoxbench import cli, scorers, suites
from detoxbench.data import manifest, readers
from detoxbench.data.contamination import contamination, fit_texts
from detoxbench.data.examples import EditRecord, FitData, Pair, ParaphraseSet, Role
from detoxbench.data.manifest import File
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.results.leaderboard import leaderboard
from detoxbench.results.store import Run
from detoxbench.runner import composition, generations, stages
from detoxbench.runner.cell import checkpoint_folder, prepare


def test_every_manifest_is_whole_and_serves_what_there_is() -> None:
    known = {*suites.names(), *scorers.names(), "scorer check", *(f"fit.{role}" for role in Role.known)}
    for name, m in manifest.manifests().items():
        assert set(m.serves) <= known, name
        assert m.serves, name
        assert callable(getattr(readers, m.reader)), name
        assert all((m.title, m.files, m.source, m.licence, m.split, m.schema, m.citation)), name
        for file in m.files:
            assert file.sha256 is None or len(file.sha256) == 64
            assert Path(file.name).name == file.name, "a name, not a path"
    served = {name for m in manifest.manifests().values() for name in m.serves}
    assert set(suites.names()) - {"lm_eval"} <= served, "a suite's published data needs a manifest"


def test_list_is_for_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list"]) == 0
    assert "paradetox" in capsys.readouterr().out
    assert cli.main(["data", "list", "--json"]) == 0
    assert {m["name"] for m in json.loads(capsys.readouterr().out)} == set(manifest.manifests())


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the manifest of ParaDetox knows."""
    file = tmp_path / "mine.tsv"
    file.write_text("toxic\tneutral1\nyou fool\thello\n", encoding="utf-8")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    changed = manifest.manifests() | {
        "paradetox": msgspec_replace(manifest.manifest("paradetox"), [File(name="paradetox.tsv", sha256=digest)])
    }
    monkeypatch.setattr(manifest, "manifests", lambda: changed)
    return file


def msgspec_replace(m: manifest.Manifest, files: list[File]) -> manifest.Manifest:
    import msgspec

    return msgspec.structs.replace(m, files=files)


def test_verify_tells_the_published_file_from_another_and_from_a_broken_one(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def verdict(name: str = "paradetox") -> tuple[int, str]:
        code = cli.main(["data", "verify", name, str(published)])
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return code, out

    assert verdict() == (0, "it is paradetox.tsv of paradetox, byte for byte; 1 records\n")
    code, said = verdict("advbench")
    assert code == 1
    assert "cannot be read as advbench" in said
    published.write_text("toxic\tneutral1\nyou fool\thello\nyou pig\thi\n", encoding="utf-8")
    code, said = verdict()
    assert code == 1
    assert "reads as paradetox (2 records), but is none of its known files (SHA-256 " in said
    published.write_text("toxic\tneutral1\n\thello\n", encoding="utf-8")
    code, said = verdict()
    assert code == 1
    assert "line 2" in said
    published.unlink()
    assert "No such file" in verdict()[1]


def test_a_file_of_unknown_hash_is_judged_by_its_schema(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": {"text": "so he said"}}\n')
    assert manifest.verify("real_toxicity_prompts", file)[:3] == (False, True, True)


def test_fetch_says_at_once_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    with pytest.raises(
        DetoxbenchError, match=r"HF_HUB_OFFLINE is set: .*hf download --repo-type dataset zjunlp/SafeEdit"
    ):
        manifest.fetch("safeedit_test")
    with pytest.raises(DetoxbenchError, match=r"not fetched from the hub: get it from github\.com/s-nlp/paradetox"):
        manifest.fetch("paradetox")
    assert time.perf_counter() - start < 3
    with pytest.raises(UsageError, match=r"unknown data set 'paradetx' \(did you mean 'paradetox'\?\)"):
        manifest.fetch("paradetx")
    assert cli.main(["data", "fetch"]) == 2
    assert cli.main(["data", "verify", "paradetox"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_fetch_returns_what_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(repo: str, name: str, **more: object) -> str:
        calls.append((repo, name, more["repo_type"], more.get("local_files_only", False)))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert manifest.fetch("safeedit_test") == [tmp_path / "SafeEdit_test.json"]
    assert calls == [("zjunlp/SafeEdit", "SafeEdit_test.json", "dataset", True)]


# -------------------------------------------------------------------------------------------------------- contamination


def test_a_prompt_that_was_read_is_found_as_it_is_and_inside_a_longer_text() -> None:
    read = ["How do I bake  a CAKE?", "Once upon a time there was a goblin, and he was rude.", "short"]
    asked = [
        "how do i bake a cake?",
        "once upon a time there was a goblin",
        "a time",
        "short",
        "new one",
        "new one",
        " ",
    ]
    found = contamination(read, asked)
    assert (found.shared, found.prompts, found.flagged) == (3, 6, True)
    assert found.examples == (asked[0], asked[1], "short")
    assert not contamination([], asked).flagged
    assert contamination(["twenty characters of", "one text and of next"], ["of\none text and of next"]).shared == 0


def test_the_same_file_is_flagged_whatever_its_name(tmp_path: Path) -> None:
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(content)
    same = contamination([], ["one", "two"], fit_files=[tmp_path / "a"], suite_files=[tmp_path / "b", tmp_path / "c"])
    assert (same.flagged, same.shared, same.prompts) == (True, 2, 2)
    assert not contamination([], ["one"], fit_files=[tmp_path / "a"], suite_files=[tmp_path / "c"]).flagged


def test_every_text_of_every_role_counts_as_read() -> None:
    data = FitData(
        parallel_pairs=(Pair("a", "b"),),
        paraphrase_sets=(ParaphraseSet("id", ("c",), ("d", "e")),),
        edit_records=(EditRecord("f", "g", "h"),),
    )
    assert {*"abcdefgh"} <= set(fit_texts(data.by_role.values()))


def test_a_run_counts_the_prompts_that_its_method_has_read(tmp_path: Path) -> None:
    """Self-made pairs hold two of the prompts."""
    pairs, prompts = tmp_path / "pairs.jsonl", tmp_path / "prompts.jsonl"
    texts = [f"the goblin {n} went to the market and he said" for n in range(4)]
    prompts.write_text("".join(json.dumps({"prompt": {"text": text}}) + "\n" for text in texts))
    given = [(f"{text} you fool .", f"{text} thank you .") for text in texts[:2]]
    given += [(f"you are a fool {n} .", f"you are a friend {n} .") for n in range(6)]
    pairs.write_text("".join(json.dumps({"toxic": a, "civil": b}) + "\n" for a, b in given))
    common = ["suite=real_toxicity_prompts", f"suite.data={prompts}", "gen.n=1", "gen.max_new_tokens=4"]
    common += ["scorer=profanity_check", f"runs_dir={tmp_path / 'runs'}", "model.device=cpu"]
    pytest.importorskip("profanity_check")
    result = stages.run_overrides([*common, "method=destein", f"fit.parallel_pairs={pairs}"])
    assert result.record.counts["prompts_in_fit_data"] == 2
    assert result.base is not None
    assert Run(result.base.folder).record().counts["prompts_in_fit_data"] == 0

    both = tmp_path / "both.jsonl"  # of no prompt is the text in a pair, but the file is the same
    rows = [{"toxic": a, "civil": b, "prompt": {"text": f"one more {i}"}} for i, (a, b) in enumerate(given)]
    both.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = composition.compose_run([*common, "method=destein", f"fit.parallel_pairs={both}", f"suite.data={both}"])
    cell = prepare(spec, checkpoint_folder(spec, download=False))
    made = generations.Generation(1.0, 1.0, 0.0, 0, 0, "cpu")
    assert stages._counts(cell, [], {}, made)["prompts_in_fit_data"] == len(rows)

    (table,) = leaderboard(tmp_path / "runs").tables
    (flag,) = [note for note in table.notes if note.startswith("flagged")]
    assert flag.endswith("(too good, maybe): destein (2 of 4)")
