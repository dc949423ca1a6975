"""Tracking: what a tracker is told is what run.json says, and its trouble is one warning that costs the run nothing."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import detoxbench as db
from detoxbench import tracking
from detoxbench.config import TrackerSpec, digest
from detoxbench.errors import DetoxbenchError
from detoxbench.files.lines import encode_lines
from detoxbench.records import Measure, Sample, Scored
from detoxbench.results import stats
from detoxbench.results.leaderboard import leaderboard
from detoxbench.results.store import Clusters, MetricRecord, Run, RunRecord
from detoxbench.tracking.report import Report, report_of
from detoxbench.tracking.wandb_sink import records, whole
from tests.support.fake_wandb import FakeServer, serving

OFFLINE = TrackerSpec(name="wandb", samples=150)
ONLINE = TrackerSpec(name="wandb", samples=150, mode="online", entity="us")
CURVE = [2.0, 1.5, 1.25]


def make_run(
    runs_dir: Path,
    method: str = "destein",
    *,
    seed: int = 2,
    top_p: float = 0.9,
    per_record: bool = False,
    n: int = 300,
) -> Run:
    """A finished run's folder, as the runner leaves it: yes or no for each of `n` prompts, better than the base's."""
    made = np.random.default_rng([seed, len(method)]).random(n) < (0.3 if method == "none" else 0.7)
    ids = [f"r{i}" for i in range(n)]
    total = {i: float(value) for i, value in zip(ids, made, strict=True)}
    measures = [
        Measure("DS", "higher", total, dict.fromkeys(ids, 1.0), unit="share", binary=True),
        Measure("EMT@4", "lower", {}, {}, missing=3),
    ]
    identity = {
        "schema": 1,
        "model": {"fingerprint": "f00d", "dtype": "float32"},
        "method": {"name": method, "config": {} if method == "none" else {"alpha": 0.4}},
        "suite": {"name": "safeedit"},
        "scorer": {"name": "embedded"},
        "gen": {"top_p": top_p},
        "seed": seed,
    }
    base = {**identity, "method": {"name": "none", "config": {}}}
    model = {"path": "org/tiny", "revision": "main"}
    record = RunRecord(
        schema=1,
        run_id=digest(identity),
        created="2026-01-01T00:00:00Z",
        model="tiny",
        method=method,
        suite="safeedit",
        scorer="embedded",
        seed=seed,
        identity=identity,
        spec={"runs_dir": "runs", "seed": seed, "with_base": False, "model": model},
        metrics=stats.attach(measures),
        counts={"samples": n, "empty": 4},
        cost={"fit_seconds": 1.5, "fit_peak_mb": None},
        diagnostics={"losses": CURVE, "zero_rows": 3, "layers": {"0": 7, "step": [1, 2]}, "note": "a text", "none": []},
        base_run_id=None if method == "none" else digest(base),
        provenance={"python": "3.11", "packages": {"torch": "2.13.0"}},
    )
    folder = runs_dir / record.run_id
    folder.mkdir(parents=True)
    samples = [
        Sample(id=i, record=i, kind="q", sample=0, prompt=f"<b>{i}", text=f"{method} says ü", stop="eos", tokens=3)
        for i in ids
    ]
    scores = [Scored(id=i, sample=0, scores={"main": {"toxicity": 0.5} if i != "r0" else None}) for i in ids]
    (folder / "run.json").write_bytes(msgspec.json.encode(record))
    (folder / "clusters.json").write_bytes(msgspec.json.encode(Clusters.of(measures)))
    (folder / "samples.jsonl").write_bytes(encode_lines(samples))
    (folder / "scores.jsonl").write_bytes(encode_lines(scores))
    if method != "none" and not per_record:
        (folder / "intervention").mkdir()
        (folder / "intervention" / "tensors.safetensors").write_bytes(bytes(range(256)) * 20)
        (folder / "intervention" / "intervention.json").write_text("{}")
    return Run(folder)


@pytest.fixture(autouse=True)
def a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_unsent", set())
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", *tracking.AGENT):
        monkeypatch.delenv(name, raising=False)


def track(run: Run, spec: TrackerSpec) -> None:
    tracking.report_run(run, run.record(), spec, run.folder.parent, alone=True)
    tracking.wait()


# ------------------------------------------------------------------------------------------------ what is told of a run


def record_of(config: dict[str, Any], summary: dict[str, Any], curves: dict[str, list[float]]) -> RunRecord:
    """run.json put together again from what a tracker was told."""
    metrics = {
        name: MetricRecord(
            value=summary[name], **{key: summary[f"{name}/{key}"] for key in ("low", "high", "n", "missing")}, **rest
        )
        for name, rest in config["metrics"].items()
    }
    flat = {
        **{key: value for key, value in summary.items() if key.startswith("fit/")},
        **curves,
        **config["diagnostics"],
    }
    diagnostics: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")[1:]
        at = diagnostics
        for parent in parents:
            at = at.setdefault(parent, {})
        at[name] = value
    parts = {
        kind: {k.split("/")[1]: v for k, v in summary.items() if k.startswith(f"{kind}/")}
        for kind in ("counts", "cost")
    }
    same = ["schema", "run_id", "created", "model", "method", "suite", "scorer", "seed", "identity", "spec"]
    given = {key: config[key] for key in [*same, "base_run_id", "provenance"]}
    return RunRecord(metrics=metrics, diagnostics=diagnostics, **parts, **given)


def sample_rows(run: Run, base: Run, step: int = 2) -> list[list[Any]]:
    return [
        [s.id, 0, s.record, "q", s.prompt, s.text, "eos", (scored.scores["main"] or {}).get("toxicity"), b.text]
        for s, scored, b in zip(run.samples(), run.scores(), base.samples(), strict=True)
    ][::step]


def test_a_report_says_all_that_run_json_says(tmp_path: Path) -> None:
    base, run = make_run(tmp_path, "none"), make_run(tmp_path)
    report = report_of(run, OFFLINE)
    assert record_of(report.config, report.summary, report.curves) == run.record()
    assert report.tables["samples"].rows == sample_rows(run, base)
    assert report.tables["records"].columns == ["record", "DS", "DS (base)", "EMT@4", "EMT@4 (base)"]
    ours, theirs = run.clusters().total["DS"], base.clusters().total["DS"]
    assert report.tables["records"].rows == [[i, ours[i], theirs[i], None, None] for i in ours]
    (ds, _) = (
        dict(zip(report.tables["intervals"].columns, row, strict=True)) for row in report.tables["intervals"].rows
    )
    assert ds == {
        "metric": "DS", "method": "destein", "seed": 2, "missing": 0, "better": "higher",
        **{key: report.summary[f"DS/{key}"] for key in ("low", "high", "n", "difference")},
        "value": report.summary["DS"], "p": report.summary["DS/difference/p"],
    }  # fmt: skip
    assert report.metrics == {"DS": run.record().metrics["DS"].value}


def test_the_difference_to_the_base_is_the_leaderboards(tmp_path: Path) -> None:
    make_run(tmp_path, "none"), make_run(tmp_path, "none", seed=3)
    run = make_run(tmp_path)
    summary = report_of(run, OFFLINE).summary
    (tmp_path / "alone").mkdir()
    for name in (run.folder.name, run.record().base_run_id):
        (tmp_path / "alone" / name).symlink_to(tmp_path / name)
    shown = leaderboard(tmp_path / "alone").tables[0].rows[1].cells["DS"].difference
    told = [summary[f"DS/difference{key}"] for key in ("", "/low", "/high", "/p", "/n")]
    assert told == [shown.value, shown.low, shown.high, shown.p, shown.n]
    assert shown.p < 1e-6


def test_the_base_is_found_when_the_run_was_made_without_it_and_missed_when_it_is_not_there(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert report_of(run, OFFLINE).config["compared_with"] is None
    assert report_of(run, OFFLINE).tables["samples"].columns[-1] == "main/toxicity"
    alone = msgspec.structs.replace(run.record(), base_run_id=None)
    (run.folder / "run.json").write_bytes(msgspec.json.encode(alone))
    make_run(tmp_path, "none", seed=1), make_run(tmp_path, "none", top_p=0.5)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert report_of(run, OFFLINE).config["compared_with"] is None
    base = make_run(tmp_path, "none")
    assert report_of(run, OFFLINE).config["compared_with"] == base.folder.name


def test_one_group_for_each_leaderboard_table(tmp_path: Path) -> None:
    made = [
        make_run(tmp_path, method, seed=seed, top_p=p, n=5)
        for method in ("none", "dinm") for seed in (0, 1) for p in (0.5, 0.9)
    ]  # fmt: skip
    groups: dict[str, set[str]] = {}
    for run in made:
        groups.setdefault(report_of(run, OFFLINE).group, set()).add(run.folder.name)
    tables = [{i for row in table.rows for i in row.run_ids} for table in leaderboard(tmp_path).tables]
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, tables))
    assert len(groups) == 2
    assert {name.rpartition("/")[0] for name in groups} == {"tiny/safeedit/embedded"}
    assert report_of(made[0], replace(OFFLINE, group="mine")).group == "mine"


def test_the_intervention_goes_along_up_to_the_limit_and_says_which_model_it_changes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    artifact = report_of(run, OFFLINE).artifact
    assert [file.name for file in artifact.files] == ["intervention.json", "tensors.safetensors"]
    base = {"fingerprint": "f00d", "dtype": "float32", "name": "tiny", "path": "org/tiny", "revision": "main"}
    assert artifact.metadata["base_model"] == base
    assert artifact.metadata["bytes"] == 256 * 20 + 2
    for limit in (0.0, 0.005):
        report = report_of(run, replace(OFFLINE, artifact_mb=limit))
        assert report.artifact is None
        assert f"tracker.artifact_mb={limit:g}" in report.config["intervention"]
    per_record = report_of(make_run(tmp_path / "other", per_record=True), OFFLINE)
    assert per_record.artifact is None
    assert "every record" in per_record.config["intervention"]
    assert report_of(make_run(tmp_path / "other", "none"), OFFLINE).artifact is None


@pytest.mark.parametrize(("limit", "rows"), [(0, 0), (1, 1), (7, 7), (299, 150), (300, 300), (1000, 300)])
def test_samples_are_spread_evenly(tmp_path: Path, limit: int, rows: int) -> None:
    assert len(report_of(make_run(tmp_path), replace(OFFLINE, samples=limit)).tables["samples"].rows) == rows


# ---------------------------------------------------------------------------------------------------- Weights & Biases


class Reported:
    """A run reported once in online mode, to a server that answers."""

    def __init__(self, base: Run, run: Run, server: FakeServer) -> None:
        self.base, self.run, self.server = base, run, server
        (self.path,) = (run.folder.parent / "wandb").glob("offline-run-*")
        (file,) = self.path.glob("*.wandb")
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: dict[str, Any] = {}
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.described = record.run
                self.config |= {u.key: msgspec.json.decode(u.value_json) for u in record.run.config.update}
            elif kind == "summary":
                self.summary |= {u.key: msgspec.json.decode(u.value_json) for u in record.summary.update if u.key}
            elif kind == "history":
                row = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
                self.history.append({key: msgspec.json.decode(value) for key, value in row.items()})
            elif kind == "artifact":
                self.artifacts[record.artifact.name] = record.artifact

    def curve(self, name: str) -> list[float]:
        return [row[name] for row in self.history if name in row]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reported]:
    runs_dir = tmp_path_factory.mktemp("wandb") / "runs"
    base, run = make_run(runs_dir, "none"), make_run(runs_dir)
    environment = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch, serving() as server:
        patch.chdir(runs_dir.parent)
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", "0" * 40)
        track(run, ONLINE)
        patch.undo()
        assert dict(os.environ) == environment
        yield Reported(base, run, server)


def test_an_offline_run_read_back_equals_run_json(reported: Reported) -> None:
    record = reported.run.record()
    curves = {name: reported.curve(name) for name in ("fit/losses", "fit/layers/step")}
    assert record_of(reported.config, reported.summary, curves) == record
    assert curves["fit/losses"] == CURVE
    told = report_of(reported.run, ONLINE)
    assert {key: reported.summary[key] for key in told.summary} == told.summary
    run = reported.described
    assert (run.run_id, run.display_name) == (record.run_id, "destein/safeedit/2")
    assert (run.run_group, run.job_type) == (told.group, "destein")
    assert (run.project, run.entity) == ("detoxbench", "us")
    assert set(run.tags) == {"tiny", "safeedit", "embedded"}
    assert not run.sweep_id


def test_the_tables_read_back_equal_the_samples_and_the_metrics_of_every_prompt(reported: Reported) -> None:
    tables = {
        name: msgspec.json.decode(next(reported.path.glob(f"files/media/table/{name}_*.json")).read_bytes())
        for name in ("samples", "records")
    }
    assert tables["samples"]["data"] == sample_rows(reported.run, reported.base)
    told = report_of(reported.run, ONLINE).tables["records"]
    assert (tables["records"]["columns"], tables["records"]["data"]) == (told.columns, told.rows)


def test_the_artifact_is_the_intervention_where_it_lies_and_all_files_stay_in_the_runs_folder(
    reported: Reported,
) -> None:
    artifact = reported.artifacts[f"intervention-{reported.run.folder.name}"]
    assert artifact.type == "intervention"
    assert msgspec.json.decode(artifact.metadata) == report_of(reported.run, ONLINE).artifact.metadata
    (tensors,) = [f for f in artifact.manifest.contents if f.path.endswith(".safetensors")]
    assert Path(tensors.local_path) == reported.run.folder / "intervention" / "tensors.safetensors"
    for table in (a for name, a in reported.artifacts.items() if name.startswith("run-")):
        for file in table.manifest.contents:
            assert Path(file.local_path).is_relative_to(reported.path)
    assert [path.name for path in reported.run.folder.parents[1].iterdir()] == ["runs"]


def test_online_mode_sends_all_of_it(reported: Reported) -> None:
    server, record = reported.server, reported.run.record()
    (first, *_) = server.runs
    assert (first["name"], first["groupName"], first["jobType"]) == (
        record.run_id, report_of(reported.run, ONLINE).group, "destein",
    )  # fmt: skip
    assert first["sweep"] is None
    told = {key: value for key, value in report_of(reported.run, ONLINE).summary.items() if value is not None}
    assert {key: server.summary[key] for key in told} == told
    assert [row["fit/losses"] for row in server.history if "fit/losses" in row] == CURVE
    name = f"intervention-{record.run_id}"
    assert server.artifacts[name]["metadata"]["base_model"]["fingerprint"] == "f00d"
    tensors = (reported.run.folder / "intervention" / "tensors.safetensors").read_bytes()
    assert server.files[f"{name}/tensors.safetensors"] == tensors
    (table,) = [v for k, v in server.files.items() if k.startswith("media/table/samples")]
    assert msgspec.json.decode(table)["data"] == sample_rows(reported.run, reported.base)


@pytest.mark.slow
def test_a_server_that_does_not_serve_is_given_up_on_and_the_run_stays_for_later(
    reported: Reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead, silent, broken, refusing, or with no key for it; all at once, as each is waited for."""
    monkeypatch.setenv("HOME", str(reported.path / "tmp"))  # no key in a .netrc
    with (
        socket.socket() as free,
        socket.create_server(("127.0.0.1", 0)) as silent,
        serving(500) as broken,
        serving(401) as refusing,
        serving() as fine,
    ):
        free.bind(("127.0.0.1", 0))
        dead, quiet = (f"http://127.0.0.1:{s.getsockname()[1]}" for s in (free, silent))
        key = {"WANDB_API_KEY": "0" * 40}
        cases = {
            "dead": {"WANDB_BASE_URL": dead, **key},
            "silent": {"WANDB_BASE_URL": quiet, **key},
            "broken": {"WANDB_BASE_URL": broken.url, **key},
            "refusing": {"WANDB_BASE_URL": refusing.url, **key},
            "no key": {"WANDB_BASE_URL": fine.url},
        }

        def send(name: str) -> str:
            job = tracking._Job(reported.run, reported.run.record(), ONLINE, reported.path.parent, cases[name])
            with pytest.raises(DetoxbenchError) as refused:
                tracking._call(job, "send", 4.0 if name in ("silent", "broken") else 60.0)
            return str(refused.value)

        for marker in reported.path.glob("*.synced"):
            marker.unlink()
        with ThreadPoolExecutor() as pool:
            said = dict(zip(cases, pool.map(send, cases), strict=True))
        assert f"no answer from {dead}" in said["dead"]
        assert "no end within 4 s" in said["silent"]
        assert "no end within 4 s" in said["broken"]
        assert "refused" in said["refusing"]
        assert "wandb login" in said["no key"]
        assert not fine.runs
        assert list(reported.path.glob("*.wandb"))


def test_a_full_disk_is_one_warning_and_leaves_no_half_report(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))  # bytes a file, which stands for a disk that is full
    try:
        with pytest.warns(UserWarning, match=f"tracker wandb: run {run.folder.name} was not reported") as warned:
            track(run, OFFLINE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(warned) == 1
    assert not list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert not list(tmp_path.glob("wandb/.reported/*"))
    assert run.record().run_id == run.folder.name


def test_a_file_that_was_cut_off_is_not_whole(reported: Reported, tmp_path: Path) -> None:
    (file,) = reported.path.glob("*.wandb")
    assert whole(file)
    for lost in (1, 20, 1000):
        (tmp_path / "cut").write_bytes(file.read_bytes()[:-lost])
        assert not whole(tmp_path / "cut")


def test_in_a_sweep_the_run_is_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "runs", n=5)
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("wandb_version: 1\nmethod.alpha:\n  value: 0.4\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "config.yaml")
    monkeypatch.setenv("WANDB_PROJECT", "swept")
    track(run, OFFLINE)
    (file,) = tmp_path.glob("runs/wandb/offline-run-*-agents1/*.wandb")
    (described,) = [r.run for r in records(file) if r.WhichOneof("record_type") == "run"]
    assert (described.run_id, described.sweep_id, described.project) == ("agents1", "sweep7", "swept")
    assert {u.key for u in described.config.update} >= {"method.alpha", "run_id"}


# --------------------------------------------------------------------------------------------- never in the run's way


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What would have been asked of the tracker's process: (action, run id)."""
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(tracking, "_call", lambda job, action, _: made.append((action, job.run.folder.name)))
    return made


def test_no_tracker_does_nothing(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    track(make_run(tmp_path, n=1), TrackerSpec())
    assert not calls
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_is_reported_once_and_again_when_it_is_to_be_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, str]]
) -> None:
    run = make_run(tmp_path, n=1)
    monkeypatch.setenv("WANDB_RUN_ID", "somebodys")  # without a sweep it means nothing
    for spec, added in ((OFFLINE, 1), (OFFLINE, 0), (replace(OFFLINE, project="x"), 1), (ONLINE, 2), (ONLINE, 0)):
        before = len(calls)
        track(run, spec)
        assert len(calls) - before == added, spec
    track(make_run(tmp_path, "none", n=1), ONLINE)
    assert len(calls) == 6


def test_the_runner_hands_over_new_runs_and_finished_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, Path, bool]] = []
    monkeypatch.setattr(
        tracking, "report_run", lambda run, record, spec, where, *, alone: told.append((record.run_id, where, alone))
    )
    overrides = ["method=none", "suite.records=2", "gen.max_new_tokens=2", "tracker=wandb", f"runs_dir={tmp_path}"]
    made = db.run(overrides)
    again = db.run([*overrides, "with_base=false"])
    assert again.cached
    assert told == [(made.run_id, tmp_path, False), (made.run_id, tmp_path, True)]


def test_a_server_that_failed_is_not_asked_again_until_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, str]]
) -> None:
    one, two = make_run(tmp_path, n=1), make_run(tmp_path, "none", n=1)
    works = tracking._call

    def call(job: Any, action: str, seconds: float) -> None:
        works(job, action, seconds)
        if action == "send":
            raise DetoxbenchError("no answer")

    monkeypatch.setattr(tracking, "_call", call)
    with pytest.warns(UserWarning, match=r"no answer; `wandb sync RUNS/wandb/offline-run-\*` sends it later") as warned:
        tracking.report_run(one, one.record(), ONLINE, tmp_path), track(two, ONLINE)
    assert len(warned) == 1
    assert calls == [("write", one.folder.name), ("send", one.folder.name), ("write", two.folder.name)]
    monkeypatch.setattr(tracking, "_call", works)
    monkeypatch.setattr(tracking, "_unsent", set())
    track(two, ONLINE)
    assert calls[-1] == ("send", two.folder.name)


def test_a_slow_tracker_holds_up_neither_the_run_nor_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(tracking, "_call", lambda *_: begun.set() or go_on.wait())
    for method in ("none", "destein", "dinm"):
        run = make_run(tmp_path, method, n=1)
        tracking.report_run(run, run.record(), OFFLINE, tmp_path)  # returns although the first is not done
    assert begun.wait(10)
    with pytest.warns(UserWarning, match="not reported in time: 3 of the runs") as warned:
        tracking.wait(0)
    assert len(warned) == 1
    go_on.set()
    tracking.wait()
    assert len(list(tmp_path.glob("wandb/.reported/*"))) == 1, "what was waiting is left for the next time"


def test_what_the_tracker_prints_sets_and_drops_stays_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A package that is not there, or breaks at import, is one warning; so is a run that cannot be read."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "wandb.py").write_text(
        "import os; print('hello'); os.environ['X'] = '1'; open('debug.log', 'w')\n"
        "raise ModuleNotFoundError(\"No module named 'wandb'\")"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs", n=1)
    with pytest.warns(
        UserWarning, match="tracker wandb: run .* was not reported: ModuleNotFoundError: No module named 'wandb'"
    ) as warned:
        track(run, OFFLINE)
    (run.folder / "scores.jsonl").unlink()
    with pytest.warns(UserWarning, match=r"scores\.jsonl"):
        track(run, OFFLINE)
    assert len(warned) == 1
    assert capfd.readouterr() == ("", "")
    assert "X" not in os.environ
    assert not (tmp_path / "debug.log").exists()


def test_a_sweep_of_several_runs_at_once_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, str]]
) -> None:
    run = make_run(tmp_path, n=1)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")
    with pytest.warns(UserWarning, match="add with_base=false"):
        tracking.report_run(run, run.record(), OFFLINE, tmp_path)
    tracking.wait()
    assert [path.name for path in tmp_path.glob("wandb/.reported/*")] == [run.folder.name]


def test_reports_are_lists_of_plain_values(tmp_path: Path) -> None:
    """So that every tracker can store them."""
    report = report_of(make_run(tmp_path), OFFLINE)
    assert isinstance(report, Report)
    msgspec.json.encode([report.config, report.summary, report.curves, [t.rows for t in report.tables.values()]])
