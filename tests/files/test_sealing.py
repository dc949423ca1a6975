"""Nothing damaged is used in silence: every file of a run and its stages, damaged in every way, is noticed and said."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import detoxbench as db
from detoxbench.cli import main
from detoxbench.errors import DetoxbenchError
from detoxbench.files.lines import appending, encode, encode_lines
from detoxbench.files.sealing import SEAL, Damaged, seal, whole, whole_or_aside
from detoxbench.records import Sample, Scored
from detoxbench.results.leaderboard import leaderboard
from detoxbench.results.store import Run, find_run, readable, runs
from detoxbench.runner import fits
from detoxbench.runner.composition import compose_run
from detoxbench.runner.plan import plan
from detoxbench.scorers import cache

SETTINGS = ["suite=safeedit", "suite.records=1", "gen.max_new_tokens=4", "method=destein", "fit.limit=10"]
RUN_FILES = [
    "run.json", "clusters.json", "samples.jsonl", "scores.jsonl", "log.txt", SEAL, "intervention/tensors.safetensors",
    "intervention/intervention.json",
]  # fmt: skip
STAGE_FILES = [
    *(
        ("fit", name)
        for name in ("fit.json", "intervention/tensors.safetensors", "intervention/intervention.json", SEAL)
    ),
    *(("generate", name) for name in ("samples.jsonl", "generation.json", SEAL)),
]


def cut_a_line(data: bytes) -> bytes:
    return b"".join(data.splitlines(keepends=True)[:-1])


def cut_a_byte(data: bytes) -> bytes:
    return data[:-1]


def empty(data: bytes) -> bytes:
    return b""


def flip_a_bit(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


def change_a_digit(data: bytes) -> bytes:
    at = next(i for i in range(len(data) - 1, -1, -1) if data[i : i + 1].isdigit())
    return data[:at] + (b"7" if data[at : at + 1] != b"7" else b"3") + data[at + 1 :]


def double(data: bytes) -> bytes:
    return data + data


def overwrite(data: bytes) -> bytes:
    return b"\0" * len(data)


DAMAGES = [cut_a_line, cut_a_byte, empty, flip_a_bit, change_a_digit, double, overwrite]


def hurt(path: Path, damage: Callable[[bytes], bytes] | None) -> None:
    """Damage a file in place, as a disk does, so that what is linked to it is damaged too; None deletes it."""
    if damage is None:
        path.unlink()
        return
    data = path.read_bytes()
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(damage(data))
    assert path.read_bytes() != data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, its base beside it."""
    return db.run([*SETTINGS, f"runs_dir={tmp_path_factory.mktemp('made') / 'runs'}"]).folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it with its stages, links and all."""
    shutil.copytree(finished.parent, tmp_path / "runs", copy_function=os.link)
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file() and not path.is_symlink():
            _unshare(path, finished.parent, tmp_path / "runs")
    return tmp_path / "runs" / finished.name


def _unshare(path: Path, original: Path, copy: Path) -> None:
    """Make `path` a file of the copy's own, which the copy's other names of it share as the original's do."""
    if path.stat().st_ino != (original / path.relative_to(copy)).stat().st_ino:
        return
    same = [p for p in copy.rglob("*") if p.is_file() and p.stat().st_ino == path.stat().st_ino]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    for other in same:
        if other != path:
            other.unlink()
            os.link(path, other)


def state(run: Path) -> list[str]:
    return [
        stage.state for stage in plan(compose_run([*SETTINGS, f"runs_dir={run.parent}"])).cells if stage.stage != "base"
    ]


# --- runs -------------------------------------------------------------------------------------------------------------


def test_an_intact_run_is_whole_and_lists_every_file(run: Path) -> None:
    assert whole(run)
    listed = msgspec.json.decode((run / SEAL).read_bytes())["files"]
    assert sorted([*listed, SEAL]) == sorted(RUN_FILES)
    assert set(state(run)) == {"cached"}


@pytest.mark.parametrize("damage", [*DAMAGES, None])
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_damaged_run_is_never_there_already(run: Path, name: str, damage: Callable[[bytes], bytes] | None) -> None:
    hurt(run / name, damage)
    with pytest.raises(Damaged, match=run.name):
        whole(run)
    assert not whole_or_aside(run)
    assert not run.exists()
    assert (run.parent / f"{run.name}.corrupt").is_dir()


@pytest.mark.parametrize("damage", [*DAMAGES, None])
@pytest.mark.parametrize("name", ["run.json", "clusters.json", SEAL])
def test_tables_leave_a_damaged_run_out_by_name(run: Path, name: str, damage: Callable[[bytes], bytes] | None) -> None:
    hurt(run / name, damage)
    board = leaderboard(run.parent)
    assert [row.label for table in board.tables for row in table.rows] == ["none"]
    assert any(run.name in note and "damaged" in note for note in board.notes)


@pytest.mark.parametrize("name", ["samples.jsonl", "scores.jsonl"])
def test_what_reads_samples_checks_them(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    hurt(run / name, change_a_digit)
    notes: list[str] = []
    assert [record.method for _, record in readable(run.parent, notes, whole=True)] == ["none"]
    assert run.name in notes[0]
    with pytest.raises(Damaged, match=name):
        Run(run).samples() and Run(run).scores()
    base = Run(run).record().base_run_id
    assert main(["compare", str(run), str(base), "--runs-dir", str(run.parent)]) != 0
    assert f"{name} is not what was written" in capsys.readouterr().err
    assert main(["report", str(run.parent), "--out", str(run.parent.parent / "page.html")]) == 0
    assert f"{name} is not what was written" in (run.parent.parent / "page.html").read_text()


def test_a_cut_file_shows_in_tables_that_do_not_read_it(run: Path) -> None:
    hurt(run / "samples.jsonl", cut_a_line)
    board = leaderboard(run.parent)
    assert any("samples.jsonl has" in note for note in board.notes)


def test_a_run_without_run_json_does_not_vanish(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hurt(run / "run.json", None)
    assert run in [found.folder for found in runs(run.parent)]
    assert find_run(run.name[:8], run.parent).folder == run
    for command in (["compare", run.name[:8], "x"], ["submit", str(run)], ["verify", str(run)]):
        more = ["--runs-dir", str(run.parent)] if command[0] == "compare" else []
        out = ["--out", str(run.parent.parent / "p.zip")] if command[0] == "submit" else []
        assert main([*command, *more, *out]) != 0
    said = capsys.readouterr()
    assert "run.json is missing" in said.err + said.out


@pytest.mark.parametrize("command", ["leaderboard", "ablate"])
def test_commands_name_a_damaged_run(run: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    hurt(run / "run.json", change_a_digit)
    main([command, str(run.parent), *(["--over", "method.alpha"] if command == "ablate" else [])])
    said = capsys.readouterr()
    text = "".join((said.out + said.err).split())
    assert run.name in text
    assert "damaged" in text


def test_a_corrupt_folder_is_no_run_any_more(run: Path) -> None:
    hurt(run / "run.json", change_a_digit)
    whole_or_aside(run)
    shutil.copytree(run.parent / f"{run.name}.corrupt", run)
    whole_or_aside(run)
    assert {p.name for p in run.parent.glob("*.corrupt*")} == {f"{run.name}.corrupt", f"{run.name}.corrupt-2"}
    notes: list[str] = []
    assert [record.method for _, record in readable(run.parent, notes)] == ["none"]
    assert notes == []


# --- stages -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(finished: Path) -> dict[str, str]:
    """Stage -> its folder's name."""
    return {s.stage: s.key for s in plan(compose_run([*SETTINGS, f"runs_dir={finished.parent}"])).cells}


@pytest.mark.parametrize("damage", [*DAMAGES, None])
@pytest.mark.parametrize(("stage", "name"), STAGE_FILES)
def test_a_damaged_stage_is_set_aside(
    run: Path, keys: dict[str, str], stage: str, name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    folder = run.parent / ".stages" / keys[stage]
    hurt(folder / name, damage)
    with pytest.raises(Damaged):
        whole(folder)
    assert not whole_or_aside(folder)
    assert folder.with_name(f"{folder.name}.corrupt").is_dir()


def test_the_plan_says_what_is_damaged(run: Path, keys: dict[str, str]) -> None:
    shutil.rmtree(run)
    assert state(run) == ["cached", "cached", "to do"]
    hurt(run.parent / ".stages" / keys["fit"] / "fit.json", flip_a_bit)
    stages = plan(compose_run([*SETTINGS, f"runs_dir={run.parent}"])).cells
    assert [s.remark for s in stages if "damaged (fit.json is not what was written), to be done again" in s.remark]
    assert state(run) == ["to do", "cached", "to do"]


def test_damage_to_a_linked_file_hits_both_and_both_are_done_again(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {name: (run / name).read_bytes() for name in RUN_FILES if name not in ("run.json", "log.txt", SEAL)}
    hurt(run / "samples.jsonl", cut_a_line)
    hurt(run / "intervention" / "tensors.safetensors", flip_a_bit)
    with caplog.at_level(logging.WARNING, logger="detoxbench"):
        again = db.run([*SETTINGS, f"runs_dir={run.parent}"])
    assert not again.cached
    assert {name: (run / name).read_bytes() for name in before} == before
    aside = {p.name.partition("-")[0].partition(".")[0] for p in run.parent.rglob("*.corrupt")}
    assert aside == {run.name, "fit", "generate"}
    assert caplog.text.count("is damaged") == 3
    assert db.run([*SETTINGS, f"runs_dir={run.parent}"]).cached


# --- unfinished stages ------------------------------------------------------------------------------------------------


def rows(n: int) -> list[Scored]:
    return [Scored(id=f"r{i}", sample=0, scores={"main": {"toxicity": i / 7}}) for i in range(n)]


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    path = tmp_path / "score-1" / "partial.jsonl"
    for part in (rows(6)[:2], rows(6)[2:]):
        with appending(path, Scored) as (_, append):
            append(part)
    return path


def left(path: Path) -> list[Scored]:
    with appending(path, Scored) as (found, _):
        return list(found)


def test_an_unfinished_stage_goes_on(partial: Path) -> None:
    assert left(partial) == rows(6)
    with appending(partial, Scored, whole=4) as (found, append):
        assert found == rows(4)
        append(rows(6)[4:])
    assert left(partial) == rows(6)


def test_a_torn_last_line_is_no_damage(partial: Path, caplog: pytest.LogCaptureFixture) -> None:
    partial.write_bytes(partial.read_bytes()[:-9])
    assert left(partial) == rows(5)
    assert caplog.text == ""


def lines(change: Callable[[list[bytes]], Any]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        several = data.splitlines(keepends=True)
        change(several)
        return b"".join(several)

    return changed


@pytest.mark.parametrize(
    "damage",
    [
        lines(lambda x: x.pop(2)),
        lines(lambda x: x.insert(2, x[0])),
        lines(lambda x: x.__setitem__(2, change_a_digit(x[2]))),
        lines(lambda x: x.__setitem__(2, x[2].replace(b"r2", b"r3"))),
        lines(lambda x: x.__setitem__(2, b"\n")),
        lines(lambda x: x.__setitem__(slice(2, 4), [x[3], x[2]])),
        lines(lambda x: x.__setitem__(2, flip_a_bit(x[2]))),
    ],
)
def test_a_damaged_line_is_said_and_what_follows_done_again(
    partial: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    hurt(partial, damage)
    assert left(partial) == rows(2)
    assert "damaged at line 3" in caplog.text


def test_the_rows_of_another_stage_are_not_taken(partial: Path) -> None:
    other = partial.parent.with_name("score-2")
    shutil.copytree(partial.parent, other)
    assert left(other / partial.name) == []


# --- what is stored can be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_lacks_is_not_stored(value: float) -> None:
    row = Scored(id="r1", sample=0, scores={"main": {"toxicity": value}})
    with pytest.raises(DetoxbenchError, match=r"of 'r1' cannot be stored: scores\.main\.toxicity is -?(nan|inf)"):
        encode_lines([row])
    with pytest.raises(DetoxbenchError, match=r"info\.loss\.1 is"):
        encode(fits.Fit(0.0, None, 1, 1, 1, 1, {"loss": [1.0, value]}))


def test_half_a_character_is_not_stored() -> None:
    sample = Sample(id="r1", record="r", kind="k", sample=0, prompt="a \ud83d", text="", stop="eos", tokens=1)
    with pytest.raises(DetoxbenchError, match="half a character"):
        encode(sample)


def test_a_stage_that_could_not_be_read_back_is_not_left(tmp_path: Path) -> None:
    path = tmp_path / "score-1" / "partial.jsonl"
    bad = Scored(id="r9", sample=0, scores={"main": {"toxicity": float("nan")}})
    with appending(path, Scored) as (_, append):
        append(rows(2))
        with pytest.raises(DetoxbenchError):
            append([rows(3)[2], bad])
    assert left(path) == rows(2)


# --- scores kept by text ----------------------------------------------------------------------------------------------


def test_a_damaged_score_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "scores.jsonl"
    cache._append(file, [cache._Line.of("a", {"toxicity": 0.25}), cache._Line.of("b", {"toxicity": 1})])
    assert {line.key for line in cache._read(file)} == {"a", "b"}
    hurt(file, lambda data: data.replace(b"0.25", b"0.26"))
    assert {line.key for line in cache._read(file)} == {"b"}
    assert "scored again" in caplog.text


def test_a_seal_of_named_files_covers_those(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(name)
    seal(folder, ["a"])
    (folder / "b").write_text("other")
    assert whole(folder)
    (folder / "a").write_text("b")
    with pytest.raises(Damaged, match="a is not what was written"):
        whole(folder)
