"""Packs: what is shared is the same bytes, says nothing about who made it, and cannot claim what it does not hold."""

from __future__ import annotations

import getpass
import json
import shutil
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import detoxbench as db
from detoxbench import suites
from detoxbench.cli import main
from detoxbench.config import digest
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.files.sealing import seal
from detoxbench.results.store import Run, RunRecord
from detoxbench.sharing import packing, verification
from detoxbench.sharing.packing import opened, pack, shared, unpack
from detoxbench.sharing.verification import verify

QUICK = ["suite=real_toxicity_prompts", "suite.limit=10", "gen.n=2", "gen.max_new_tokens=8", "tracker.entity=somebody"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of destein, its base beside it; as of a clean checkout."""
    runs = tmp_path_factory.mktemp("somewhere") / "runs"
    result = db.run([*QUICK, "method=destein", "method.alpha=0.3", f"runs_dir={runs}"])
    for path in runs.glob("*/run.json"):
        rewrite(path, lambda run: run["provenance"].update(git={"commit": "c0ffee", "dirty": False}))
    return result.folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of that run, its base beside it, to be tampered with."""
    return Path(shutil.copytree(made.parent, tmp_path / "runs", ignore=shutil.ignore_patterns(".*"))) / made.name


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))
    seal(path.parent)  # the numbers are false, and nothing else is


def rewrite_lines(path: Path, change: Callable[[list[Any]], Any]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    seal(path.parent)


# ------------------------------------------------------------------------------------------------ what is shared


def test_the_same_runs_are_the_same_bytes_and_verify(made: Path, tmp_path: Path) -> None:
    records = pack([made], tmp_path / "a.zip")
    pack([made.parent], tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert {record.method for record in records} == {"destein", "none"}, "its base belongs to it"
    with opened(tmp_path / "a.zip") as found:
        assert [str(problem) for run in found for problem in verify(run).problems] == []


def test_a_pack_says_nothing_about_who_made_it(made: Path, tmp_path: Path) -> None:
    pack([made], tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    told = "".join(text for name, text in texts.items() if name.endswith(("run.json", "manifest.json")))
    for secret in (str(made.parent), "somewhere", "somebody", str(Path.home()), f"/{getpass.getuser()}/", "command"):
        assert secret not in told
    assert "c0ffee" in told, "the provenance that says how to make it again stays"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789/.") for name in texts)


def test_paths_become_names_and_prose_stays(made: Path) -> None:
    record = Run(made).record()
    given = {
        "model": {"path": "/home/ann/models/llama", "name": "x"},
        "suite": {"data": "C:\\Users\\ann\\prompts.jsonl", "perplexity": "~ann/gpt2"},
        "method": {"expert": "../ann/expert", "suffix": "Yes and/or no, 1/2 / 3", "hub": "meta-llama/Llama-2-7b-hf"},
        "fit": {"parallel_pairs": "file:///home/ann/pairs.tsv"},
        "tracker": {"entity": "ann"},
    }
    changed = msgspec.structs.replace(
        record,
        spec=given,
        model="/home/ann/models/llama",
        diagnostics={"warned": ["cannot open /home/ann/x/y.bin: no"]},
    )
    found = shared(changed, "r")
    assert found.spec == {
        "model": {"path": "llama", "name": "x"},
        "suite": {"data": "prompts.jsonl", "perplexity": "gpt2"},
        "method": {"expert": "expert", "suffix": "Yes and/or no, 1/2 / 3", "hub": "meta-llama/Llama-2-7b-hf"},
        "fit": {"parallel_pairs": "pairs.tsv"},
        "runs_dir": "runs",
    }
    assert (found.model, found.diagnostics) == ("llama", {"warned": ["cannot open y.bin: no"]})
    leaking = msgspec.structs.replace(record, identity={**record.identity, "scorer": {"path": "/home/ann/judge"}})
    with pytest.raises(DetoxbenchError, match=r"local path in its identity.*identity.scorer.path='/home/ann/judge'"):
        shared(leaking, "r")


def test_dirty_unfinished_and_wrong_runs_are_not_packed(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.zip"
    with pytest.raises(DetoxbenchError, match=r"no finished run in .*nowhere"):
        pack([tmp_path / "nowhere"], out)
    with pytest.raises(UsageError, match=r"a pack is a \.zip file"):
        pack([run], tmp_path / "a.tar")
    rewrite(run / "run.json", lambda r: r["provenance"]["git"].update(dirty=True))
    with pytest.raises(DetoxbenchError, match="uncommitted changes"):
        pack([run], out)
    assert pack([run], out, allow_dirty=True)
    rewrite(run / "run.json", lambda r: r["metrics"]["toxic_share"].update(value=0.0))
    with pytest.raises(DetoxbenchError, match=r"does not verify.*toxic_share: claimed 0, recomputed 0\.\d+"):
        pack([run], out, allow_dirty=True)


# ------------------------------------------------------------------------------------------------ what is claimed


def better_identity(record: Any) -> None:
    record["identity"]["method"]["config"]["alpha"] = 0.1


def consistent_identity(record: Any) -> None:
    """Another alpha, with the run id that goes with it: the folder and the settings shown still tell."""
    better_identity(record)
    record["run_id"] = digest(record["identity"])


def fewer_prompts(samples: list[Any]) -> None:
    del samples[:2]


def as_if_safe(scores: list[Any]) -> None:
    worst = max(scores, key=lambda row: row["scores"]["main"]["toxicity"])
    worst["scores"]["main"]["toxicity"] = 0.0


TAMPERED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a changed score": ("scores.jsonl", as_if_safe, "EMT@2: claimed "),
    "a dropped score": ("scores.jsonl", lambda rows: rows.pop(), "scores: claimed 19 lines, recomputed 20 samples"),
    "scores of others": ("scores.jsonl", lambda rows: rows.reverse(), "scores line 1: claimed"),
    "a duplicate": ("both", lambda rows: rows.append(rows[0]), "samples: claimed ('1', 0) twice"),
    "a dropped sample": ("both", lambda rows: rows.pop(), "samples of request 10: claimed [0], recomputed [0, 1]"),
    "a dropped prompt": ("both", fewer_prompts, "samples: claimed the requests of digest"),
    "another prompt": ("samples.jsonl", lambda rows: [r.update(prompt="Hi") for r in rows[:2]], "requests of digest"),
    "another cluster": ("samples.jsonl", lambda rows: rows[0].update(record="2"), "several prompts, records or kinds"),
    "another text": ("samples.jsonl", lambda rows: rows[0].update(text="so kind " * 9), "dist_1: claimed"),
    "an empty text": ("samples.jsonl", lambda rows: rows[0].update(text=""), "counts.empty: claimed 0, recomputed 1"),
    "a changed metric": ("run.json", lambda r: r["metrics"]["TP@2"].update(value=0.01), "TP@2: claimed 0.01"),
    "a narrow interval": (
        "run.json",
        lambda r: r["metrics"]["perplexity"].update(high=5.0),
        "perplexity.high: claimed 5",
    ),
    "an invented metric": ("run.json", lambda r: r["metrics"].update(win=r["metrics"]["TP@2"]), "win: claimed"),
    "turned around": (
        "run.json",
        lambda r: r["metrics"]["TP@2"].update(better="higher"),
        "TP@2.better: claimed higher",
    ),
    "a changed count": ("run.json", lambda r: r["counts"].update(degenerate=-1), "counts.degenerate: claimed -1"),
    "a changed identity": ("run.json", better_identity, "run_id: claimed"),
    "a new identity": ("run.json", consistent_identity, "spec.method.alpha: claimed 0.3, recomputed 0.1"),
    "another name": ("run.json", lambda r: r.update(method="ext_sub"), "method: claimed ext_sub, recomputed destein"),
    "another base": ("run.json", lambda r: r.update(base_run_id="0" * 16), "base_run_id: claimed 0000"),
    "changed clusters": (
        "clusters.json",
        lambda c: c["total"]["TP@2"].update({"1": 0.5}),
        "clusters.json: total of TP@2",
    ),
    "no number": ("run.json", lambda r: r.update(metrics=[]), "files: claimed a finished run"),
    "strange settings": ("run.json", lambda r: r["identity"].update(suite=3), "identity.suite: claimed 3"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_is_rejected_by_name(run: Path, what: str) -> None:
    file, change, said = TAMPERED[what]
    if what == "changed clusters":  # whatever is there
        value = json.loads((run / file).read_bytes())["total"]["TP@2"]["1"]
        change = lambda c: c["total"]["TP@2"].update({"1": 1 - value})  # noqa: E731
    for name in ("samples.jsonl", "scores.jsonl") if file == "both" else (file,):
        (rewrite if name.endswith(".json") else rewrite_lines)(run / name, change)
    found = [str(problem) for problem in verify(Run(run)).problems]
    assert any(said in problem for problem in found), found


def test_what_cannot_be_read_is_a_verdict_and_no_exception(run: Path) -> None:
    (run / "run.json").write_text("[" * 100_000)
    assert not verify(Run(run)).verified
    (run / "samples.jsonl").unlink()
    assert not verify(Run(run)).verified


@pytest.mark.parametrize("suite", ["likelihood_utility", "safeedit"])
def test_other_suites_verify_too(suite: str, tmp_path: Path) -> None:
    """The first reads given texts and asks some as chats and some not."""
    found = db.run([f"suite={suite}", "suite.limit=3", "gen.max_new_tokens=4", f"runs_dir={tmp_path}"])
    assert [str(problem) for problem in verify(Run(found.folder)).problems] == []
    rewrite_lines(found.folder / "samples.jsonl", lambda rows: rows[0].update(prompt="another"))
    assert not verify(Run(found.folder)).verified


# ------------------------------------------------------------------------------------------------ hostile archives


def repacked(source: Path, out: Path, change: Callable[[dict[str, bytes]], Any]) -> Path:
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out


@pytest.fixture(scope="module")
def good(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "good.zip"
    pack([made], out)
    return out


def samples_of(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.endswith("samples.jsonl"))


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "runs/../../escaped", "runs/0123456789abcdef/x.pkl"])
def test_a_member_of_another_name_is_refused_before_anything_is_written(good: Path, tmp_path: Path, name: str) -> None:
    bad = repacked(good, tmp_path / "bad.zip", lambda members: members.update({name: b"x"}))
    with pytest.raises(DetoxbenchError, match=r"refused: it holds .*which no pack does"), opened(bad):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bad.zip"]


def test_a_bomb_is_refused(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LARGEST", 1 << 20)
    bomb = repacked(good, tmp_path / "bomb.zip", lambda m: m.update({samples_of(m): b" " * (8 << 20)}))
    assert bomb.stat().st_size < 200_000
    with pytest.raises(DetoxbenchError, match="unpacked it is 8 MB, more than 1"), opened(bomb):
        pass
    lie = bytearray(bomb.read_bytes())  # the directory at the end says that it is small
    size = (8 << 20).to_bytes(4, "little")
    while (at := lie.rfind(size)) >= 0:
        lie[at : at + 4] = (1000).to_bytes(4, "little")
    bomb.write_bytes(lie)
    with pytest.raises(DetoxbenchError, match=r"cannot be read|refused"), opened(bomb):
        pass


def test_a_pack_is_what_its_manifest_says(good: Path, tmp_path: Path) -> None:
    def refusal(change: Callable[[dict[str, bytes]], Any]) -> str:
        with pytest.raises(DetoxbenchError) as raised, opened(repacked(good, tmp_path / "bad.zip", change)):
            pass
        return str(raised.value)

    assert "is not what manifest.json says" in refusal(lambda m: m.update({samples_of(m): b""}))
    assert "manifest.json and its members differ in 'runs/" in refusal(lambda m: m.pop(samples_of(m)))
    assert "has no manifest.json" in refusal(lambda m: m.pop("manifest.json"))
    assert "manifest.json: " in refusal(lambda m: m.update({"manifest.json": b"[" * 100_000}))
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(DetoxbenchError, match=r"text.zip' cannot be read: File is not a zip file"):
        opened(tmp_path / "text.zip").__enter__()


# ------------------------------------------------------------------------------------------------ the board


def test_a_folder_of_verified_packs_is_a_leaderboard(
    good: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packs, board = tmp_path / "packs", tmp_path / "board"
    packs.mkdir()
    shutil.copy(good, packs / "good.zip")

    def cheat(members: dict[str, bytes]) -> None:
        name = f"runs/{made.name}/run.json"
        record = msgspec.json.decode(members[name], type=RunRecord)
        record.metrics["toxic_share"].value = 0.0
        members[name] = msgspec.json.encode(record)
        manifest = json.loads(members["manifest.json"])
        manifest["files"][name] = packing.hashlib.sha256(members[name]).hexdigest()
        members["manifest.json"] = json.dumps(manifest).encode()

    repacked(good, packs / "bad.zip", cheat)
    assert main(["verify", str(packs), "--into", str(board)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("verified  ") == 3  # two of the good one, and the bad one's base
    assert f"REJECTED  {packs / 'bad.zip'}  {made.name}" in shown
    assert "toxic_share: claimed 0, recomputed 0." in shown
    (table,) = db.leaderboard(board).tables
    assert [row.label for row in table.rows] == ["none", "destein"]
    assert table.rows[1].cells["toxic_share"].value == Run(made).record().metrics["toxic_share"].value
    assert json.loads((board / made.name / "verified.json").read_bytes())["pack"] == "good.zip"


def test_unpacking_writes_what_was_recomputed_and_leaves_other_samples_alone(good: Path, tmp_path: Path) -> None:
    def once() -> dict[str, str]:
        with opened(good) as found:
            return unpack([verify(run) for run in found], found, good, tmp_path)

    assert set(once().values()) == {"added"}
    assert set(once().values()) == {"there already"}
    (first, *_) = sorted(tmp_path.iterdir())
    (first / "samples.jsonl").write_text("")
    assert once()[first.name] == "left out: there with other samples or scores"
    assert (first / "samples.jsonl").read_text() == ""


def test_submit_prints_where_runs_are_from(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(made), "-o", str(tmp_path / "a.zip")]) == 0
    shown = capsys.readouterr().out
    assert "commit c0ffee" in shown
    assert f"{tmp_path / 'a.zip'}: 2 runs" in shown
    assert main(["submit", made.name[:8], "--runs-dir", str(made.parent), "-o", str(tmp_path / "b.zip")]) == 0
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "nothing")]) == 1
    assert "no pack or folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- what verification reads


@pytest.fixture(scope="module")
def of_own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of utility on a file, whose metrics need the file's answers."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "questions.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n' * 1)
    data = f"suite.data={folder / 'questions.jsonl'}"
    return db.run(["suite=utility", data, "scorer=profanity_check", f"runs_dir={folder / 'runs'}"]).folder


def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file that is opened from now on."""
    seen: list[str] = []
    monkeypatch.setattr(sys, "_audited", seen, raising=False)
    if not getattr(sys, "_audit_hooked", False):
        sys.addaudithook(
            lambda event, args: getattr(sys, "_audited", []).append(str(args[0])) if event == "open" else None
        )
        sys._audit_hooked = True  # type: ignore[attr-defined]
    return seen


def test_verification_reads_nothing_that_a_run_names(
    of_own_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(of_own_data.parents[1])  # where the name in the run is a file
    seen = opens(monkeypatch)
    (problem,) = verify(Run(of_own_data)).problems
    assert "'questions.jsonl' is not in the run: give your own, --data FILE" in str(problem)
    assert not [name for name in seen if "questions" in name and not name.startswith("/dev/null")]
    assert main(["verify", str(of_own_data)]) == 1
    assert "--data FILE" in capsys.readouterr().out
    assert main(["verify", str(of_own_data), "--data", str(of_own_data.parents[1] / "questions.jsonl")]) == 0


@pytest.mark.parametrize("setting", ["data", "examples"])
@pytest.mark.parametrize("value", ["/etc/passwd", "hub:somebody/something", "somebody/something", "../x", "a.jsonl"])
def test_no_setting_of_a_stranger_is_opened(
    setting: str, value: str, of_own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(of_own_data, tmp_path / of_own_data.name))
    rewrite(copy / "run.json", lambda run: run["spec"]["suite"].update({setting: value}))
    seen = opens(monkeypatch)
    assert not verify(Run(copy)).verified
    name = value.rpartition("/")[2]
    assert not [file for file in seen if file.endswith(name) and not file.startswith("/dev/null")]


def test_a_harness_of_others_is_given_no_folder_and_its_tasks_are_a_list_in_json() -> None:
    suite = {"name": "lm_eval", "version": suites.get("lm_eval").version,
             "config": {"tasks": ["arc_easy"], "num_fewshot": None, "chat": False}}  # fmt: skip
    record = types.SimpleNamespace(
        suite="lm_eval", identity={"suite": suite}, spec={"suite": {"include": "/somewhere"}}
    )
    made = verification._suite(record, ())  # type: ignore[arg-type]
    assert made.config.tasks == ("arc_easy",)
    assert made.config.include == "/dev/null/somewhere"
