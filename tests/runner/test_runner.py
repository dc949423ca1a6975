"""Runs end to end on the embedded world: stages, identity, resuming after kill -9, sharing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import detoxbench as db
from detoxbench.engine import generation
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.files.locking import Claim, LeaseLost
from detoxbench.results.store import Run, runs
from detoxbench.runner import generations, loaded, scoring, stages
from detoxbench.runner.cell import RunCell, checkpoint_folder, comparison_runs, prepare
from detoxbench.runner.composition import compose_run
from detoxbench.runner.cost import Running
from detoxbench.runner.plan import plan
from detoxbench.runner.status import status
from tests.support.processes import Process

QUICK = ["suite=safeedit", "suite.records=6", "gen.max_new_tokens=8"]


def overrides(folder: Path, *more: str) -> list[str]:
    return [*QUICK, f"runs_dir={folder}", *more]


def cell(folder: Path, *more: str) -> RunCell:
    spec = compose_run(overrides(folder, *more))
    return prepare(spec, checkpoint_folder(spec, download=False))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, stages.RunResult]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, db.run(overrides(folder, "method=destein"))


def test_a_run_leaves_a_whole_folder_and_the_base_beside_it(done: tuple[Path, stages.RunResult]) -> None:
    folder, result = done
    assert {p.name for p in result.folder.iterdir()} == {
        "run.json", "clusters.json", "samples.jsonl", "scores.jsonl", "intervention", "log.txt", "digests.json",
    }  # fmt: skip
    assert result.base is not None
    assert result.record.base_run_id == result.base.run_id
    assert {run.record().method for run in runs(folder)} == {"none", "destein"}
    assert len(Run(result.folder).samples()) == 30
    assert [(s.id, s.sample) for s in Run(result.folder).samples()] == [
        (s.id, s.sample) for s in Run(result.folder).scores()
    ]
    assert not (result.base.folder / "intervention").exists()
    assert "fitted destein" in (result.folder / "log.txt").read_text()


def test_costs_are_measured(done: tuple[Path, stages.RunResult]) -> None:
    cost = done[1].record.cost
    measured = [cost[name] or 0 for name in ("fit_seconds", "tokens_per_second", "relative_speed")]
    assert min(measured) > 0
    assert 0.05 < measured[2] < 20
    assert cost["changed_parameters"] == 0
    assert cost["added_parameters"] == 4 * 128  # one vector a layer
    assert cost["artifact_bytes"] == 4 * 128 * 4
    assert cost["examples"] == 200
    assert cost["added_prompt_tokens"] == 0


@pytest.mark.slow
def test_runs_say_whether_they_have_the_same_intervention(done: tuple[Path, stages.RunResult]) -> None:
    """The base and prompts under any seed, here also in what each record has; not a fit that draws its examples."""
    folder, result = done
    base = db.run(overrides(folder, "seed=1")).record
    assert result.base is not None
    assert base.fit == result.base.record.fit
    reminded = [db.run(overrides(folder, "method=self_reminder", f"seed={s}")).record.fit for s in (0, 1)]
    assert reminded[0] == reminded[1]
    assert db.run(overrides(folder, "method=destein", "seed=1")).record.fit != result.record.fit
    edits = ["method=dinm", "suite.limit=2", "method.num_steps=1"]
    fits = [db.run(overrides(folder, *edits, f"seed={s}", "with_base=false")).record.fit for s in (0, 1)]
    assert fits[0] == fits[1]
    assert len({base.fit, *reminded, *fits, result.record.fit}) == 4


def test_prompt_tokens_and_changed_parameters_are_costs_too(done: tuple[Path, stages.RunResult]) -> None:
    reminded = db.run(overrides(done[0], "method=self_reminder")).record.cost
    assert (reminded["added_prompt_tokens"] or 0) > 10
    tiny_lora = [
        "method.epochs=1",
        "fit.limit=8",
        "method.batch_size=8",
        "method.micro_batch_size=8",
        "method.warmup_ratio=0",
    ]
    trained = db.run(overrides(done[0], "method=ext_sub", *tiny_lora)).record.cost
    assert trained["changed_parameters"] == 4 * 2 * 128 * 128  # q_proj and v_proj of four layers


def test_a_second_run_does_nothing(done: tuple[Path, stages.RunResult], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, result = done

    def never(*_: Any) -> None:
        raise AssertionError("a finished run loads nothing")

    monkeypatch.setattr(loaded, "_loaded", never)
    again = db.run(overrides(folder, "method=destein"))
    assert again.cached
    assert again.record == result.record
    assert all(stage.state == "cached" for stage in plan(compose_run(overrides(folder, "method=destein"))).cells)


def test_another_suite_shares_the_fit_and_another_scorer_the_samples(
    done: tuple[Path, stages.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = done[0]
    states = {s.stage: s.state for s in plan(compose_run(overrides(folder, "method=destein", "suite.records=7"))).cells}
    assert states == {"base": "to do", "fit": "cached", "generate": "to do", "score": "to do"}
    judged_otherwise = compose_run(overrides(folder, "method=destein", "scorer=profanity_check"))
    states = {s.stage: s.state for s in plan(judged_otherwise).cells}
    assert states == {"base": "to do", "fit": "cached", "generate": "cached", "score": "to do"}
    monkeypatch.setattr(loaded, "_loaded", lambda *_: pytest.fail("the samples were there"))
    judged = stages.run(judged_otherwise)
    assert judged.run_id != done[1].run_id
    assert Run(judged.folder).samples() == Run(done[1].folder).samples()
    assert os.stat(judged.folder / "samples.jsonl").st_ino == os.stat(done[1].folder / "samples.jsonl").st_ino


@pytest.mark.parametrize(
    "change",
    [
        "seed=1", "method.alpha=0.31", "gen.max_new_tokens=9", "gen.do_sample=true", "suite.records=7", "fit.limit=30",
        "model.dtype=bfloat16", "model.chat_template=none", "gen.tie_tolerance=0.01", "method=self_reminder",
    ],
)  # fmt: skip
def test_what_can_change_a_number_changes_the_run_id(tmp_path: Path, change: str) -> None:
    base = ["method=destein"]
    if change.startswith("method="):
        base = []
    assert cell(tmp_path, *base, change).folder.name != cell(tmp_path, "method=destein").folder.name


@pytest.mark.parametrize(
    "change",
    [
        "gen.batch_tokens=77",
        "tracker=wandb",
        "tracker.group=x",
        "model.device=cpu",
        "model.name=other",
        "with_base=false",
    ],
)
def test_what_cannot_change_a_number_does_not(tmp_path: Path, change: str) -> None:
    one, two = (cell(folder, "method=destein", *more) for folder, more in ((tmp_path / "a", [change]), (tmp_path, [])))
    assert one.identity == two.identity
    assert one.folder.name == two.folder.name


def test_the_base_of_every_method_is_one_run(tmp_path: Path) -> None:
    ids = {
        prepare(comparison_runs(spec)[0], checkpoint_folder(spec, download=False)).folder.name
        for spec in (
            compose_run(overrides(tmp_path, f"method={m}")) for m in ("destein", "self_reminder", "ext_sub", "dinm")
        )
    }
    assert ids == {cell(tmp_path, "method=none").folder.name}


def test_a_failing_stage_leaves_no_run_and_the_next_try_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = scoring.score
    monkeypatch.setattr(stages, "score", lambda *_: (_ for _ in ()).throw(DetoxbenchError("no power")))
    with pytest.raises(DetoxbenchError, match="no power"):
        db.run(overrides(tmp_path))
    assert list(runs(tmp_path)) == []
    monkeypatch.setattr(stages, "score", score)
    monkeypatch.setattr(loaded, "_loaded", lambda *_: pytest.fail("the samples were there"))
    assert not db.run(overrides(tmp_path)).cached


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch_size(done: tuple[Path, stages.RunResult], tmp_path: Path) -> None:
    small = db.run(overrides(tmp_path, "method=destein", "gen.batch_tokens=100"))
    for file in ("samples.jsonl", "scores.jsonl", "clusters.json"):
        assert (small.folder / file).read_bytes() == (done[1].folder / file).read_bytes()


def test_a_lock_that_is_held_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    here = cell(tmp_path)
    (tmp_path / ".stages").mkdir()
    other = FileLock(tmp_path / ".stages" / f"{here.folder.name}.lock")
    other.acquire()
    caplog.handler.addFilter(lambda record: other.release() or True)  # let go when the waiting is announced
    with here.locked(here.folder):
        assert "waiting for another process" in caplog.text


# --- kill -9 ---------------------------------------------------------------------------------------------------------

LONG = ["suite=real_toxicity_prompts", "suite.prompts=16", "gen.n=2", "method=destein", "with_base=false"]
SMALL_BATCHES = ["gen.batch_tokens=120"]


def start(folder: Path, *more: str) -> Process:
    return Process(Path.cwd(), ["run", *LONG, f"runs_dir={folder}", *more])


def kill_when(process: Process, partial: Path, lines: int) -> None:
    """kill -9 as soon as `partial` holds so many lines."""
    while process.poll() is None:
        if partial.is_file() and partial.read_bytes().count(b"\n") >= lines:
            process.send(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.end().returncode == -signal.SIGKILL, "it finished before it could be killed"


@pytest.mark.slow
def test_killed_twice_the_third_try_finishes_with_the_same_bytes(tmp_path: Path) -> None:
    spec = compose_run([*LONG, f"runs_dir={tmp_path / 'killed'}"])
    planned = prepare(spec, checkpoint_folder(spec, download=False))
    partial = planned.generation_folder / "partial.jsonl"
    kill_when(start(tmp_path / "killed", *SMALL_BATCHES), partial, 8)
    first = partial.read_bytes()
    with open(partial, "ab") as file:  # a kill can also hit in the middle of a line
        file.write(b'{"sample":{"id":"torn')
    kill_when(start(tmp_path / "killed", *SMALL_BATCHES), partial, first.count(b"\n") + 8)
    kept = partial.read_bytes()
    assert kept.startswith(first)  # nothing that was finished is made again
    assert not planned.finished
    third = start(tmp_path / "killed").end()
    assert (third.returncode, third.stderr) == (0, "")
    db.run([*LONG, f"runs_dir={tmp_path / 'whole'}"])
    for file in ("samples.jsonl", "scores.jsonl", "clusters.json", "intervention/tensors.safetensors"):
        one, two = (tmp_path / which / planned.folder.name / file for which in ("killed", "whole"))
        assert one.read_bytes() == two.read_bytes()
    records = [json.loads((tmp_path / w / planned.folder.name / "run.json").read_text()) for w in ("killed", "whole")]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert not partial.exists()


def test_under_a_lease_a_killed_run_is_taken_over_and_who_has_lost_one_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*LONG, "method=none", "suite.prompts=6", "runs_lock=lease"]
    spec = compose_run([*argv, f"runs_dir={tmp_path / 'killed'}"])
    planned = prepare(spec, checkpoint_folder(spec, download=False))
    killed = Process(Path.cwd(), ["run", *argv, *SMALL_BATCHES, f"runs_dir={tmp_path / 'killed'}"])
    kill_when(killed, planned.generation_folder / "partial.jsonl", 2)
    (running,) = status(tmp_path / "killed").running  # as far as one can see
    assert running.run == planned.keys.run
    for claim in tmp_path.glob("killed/.stages/*.claims/*"):
        os.utime(claim, (0, 0))  # as if the lease were over
    assert not status(tmp_path / "killed").running
    renew, seals = Claim.renew, 0

    def lost_at_the_end(claim: Claim) -> bool:
        nonlocal seals
        seals += threading.current_thread() is threading.main_thread()
        return renew(claim) and seals < 3  # after the answers, after the base's readings, before the seal

    monkeypatch.setattr(Claim, "renew", lost_at_the_end)
    with pytest.raises(LeaseLost, match="taken over 'generate-"):
        stages.run(spec)
    assert not (planned.generation_folder / "digests.json").exists()
    monkeypatch.undo()
    resumed = db.run([*argv[:-1], f"runs_dir={tmp_path / 'killed'}"])  # the folder keeps to leases
    assert len(list(tmp_path.glob("killed/.stages/*.claims"))) >= 3
    assert not list(tmp_path.glob("killed/.stages/*.lock"))
    whole = db.run([*argv[:-1], f"runs_dir={tmp_path / 'whole'}"])
    assert resumed.run_id == whole.run_id
    for file in ("samples.jsonl", "scores.jsonl", "clusters.json"):
        assert (resumed.folder / file).read_bytes() == (whole.folder / file).read_bytes()


class Cut(BaseException):
    """Like a kill: nothing of ours catches it."""


BFLOAT16 = {
    "one for all": ["suite=real_toxicity_prompts", "suite.prompts=12", "gen.n=3", "gen.batch_tokens=180"],
    "one a record": [
        "suite=safeedit", "suite.records=7", "method=dinm", "method.protocol=per_record", "method.num_steps=2",
        "gen.batch_tokens=120", "gen.max_new_tokens=12",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", BFLOAT16)
def test_in_bf16_a_cut_changes_neither_batches_nor_bytes(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it hits: after a batch, in the middle of one, and again in the try after."""
    ran, run = list[tuple[str, ...]](), generation._run
    stop: int | None = None

    def watched(lm: Any, rows: Any, *given: Any) -> None:
        if len(ran) == stop:
            raise Cut
        run(lm, rows, *given)
        ran.append(tuple(f"{row.request.id} {row.sample}" for row in rows))

    def bytes_of(folder: str) -> bytes:
        result = db.run([*BFLOAT16[what], "model.dtype=bfloat16", "with_base=false", f"runs_dir={tmp_path / folder}"])
        return b"".join((result.folder / name).read_bytes() for name in ("samples.jsonl", "scores.jsonl"))

    monkeypatch.setattr(generation, "_run", watched)
    monkeypatch.setattr(generations, "running_costs", lambda *_: Running(1.0, 1.0))
    expected, whole = bytes_of("whole"), list(ran)
    assert len(whole) >= 4
    for cut in (3,) if what == "one for all" else (2,):
        done = list[tuple[str, ...]]()
        for after in (cut, 1):
            stop = after
            ran.clear()
            with pytest.raises(Cut):
                bytes_of(f"cut {cut}")
            done += ran
            (partial,) = tmp_path.glob(f"cut {cut}/.stages/generate-*/partial.jsonl")
            partial.write_bytes(partial.read_bytes()[:-9])  # a kill in the middle of a line
        ran.clear()
        stop = None
        assert bytes_of(f"cut {cut}") == expected
        assert set(done + ran) == set(whole)
        assert len(done + ran) <= len(whole) + 2 * (3 if what == "one a record" else 1)


def test_the_controls_of_a_method_are_run_beside_it(tmp_path: Path) -> None:
    """DINM's suffix-only row stands beside every row of DINM, once for all its ablations."""

    def controls(*more: str) -> list[str]:
        planned = plan(compose_run(overrides(tmp_path, "method=dinm", *more)))
        return [stage.key for stage in planned.cells if stage.stage == "control"]

    assert len(controls()) == 1
    assert controls("method.learning_rate=1e-3") == controls()
    db.run(overrides(tmp_path, "method=dinm", "method.num_steps=2"))
    assert sorted(r.record().identity["method"]["config"].get("num_steps", -1) for r in runs(tmp_path)) == [-1, 0, 2]
    alone = compose_run(overrides(tmp_path, "method=dinm", "method.num_steps=0"))
    assert [c.method_name for c in comparison_runs(alone)] == ["none"]


@pytest.mark.parametrize(
    ("given", "asked_for"),
    [
        (
            ["model=hf", "model.path=absent", "method=destein"],
            ["fit.parallel_pairs=FILE", "fit.parallel_pairs=embedded"],
        ),
        (["model=gpt2", "method=ext_sub"], ["fit.civil_instructions=FILE", "fit.toxic_instructions=FILE"]),
        (["model=gpt2", "method=ext_sub", "fit.civil_instructions=x.json"], ["fit.toxic_instructions=FILE"]),
        (["method=ext_sub", "fit.civil_instructions=x.json"], ["beside the data", "fit.toxic_instructions=FILE"]),
    ],
)
def test_embedded_fit_data_are_not_taken_unasked_by_another_model_or_beside_ones_own(
    tmp_path: Path, given: list[str], asked_for: list[str]
) -> None:
    with pytest.raises(UsageError) as refused:
        plan(compose_run(overrides(tmp_path, *given)))
    assert all(part in str(refused.value) for part in asked_for)
    assert "\n" not in str(refused.value)


def test_embedded_fit_data_are_taken_where_they_are_typed_or_not_needed(tmp_path: Path) -> None:
    real = ["model=hf", "model.path=absent"]
    for more in (
        ["method=destein", "fit.parallel_pairs=embedded"],
        ["method=none"],
        ["method=dinm", "method.protocol=per_record"],
    ):
        assert plan(compose_run(overrides(tmp_path, *real, *more))).cells[0].state == "missing", "only the model is"
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "typed.yaml").write_text(
        "# @package _global_\nfit:\n  parallel_pairs: embedded\n"
    )
    typed = [*real, "method=destein", "experiment=typed", f"hydra.searchpath=[file://{tmp_path / 'conf'}]"]
    assert plan(compose_run(overrides(tmp_path, *typed))).cells[0].state == "missing"


def test_data_are_named_in_the_plan_and_in_the_run(done: tuple[Path, stages.RunResult], tmp_path: Path) -> None:
    assert done[1].record.data == {
        "fit.parallel_pairs": "embedded fable, 200 examples",
        "suite.data": "embedded fable, 30 requests",
    }
    pairs = tmp_path / "my pairs.jsonl"
    pairs.write_text('["you fool", "you friend"]\n' * 3)
    stages = plan(compose_run(overrides(tmp_path, "method=destein", f"fit.parallel_pairs='{pairs}'"))).cells
    (fit,) = [stage for stage in stages if stage.stage == "fit"]
    assert fit.remark.endswith("(parallel_pairs: my pairs.jsonl, 3 examples)")
    assert str(tmp_path) not in fit.remark
