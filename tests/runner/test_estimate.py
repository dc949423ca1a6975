"""What is left of some runs in seconds, memory and disk, from stored runs whose costs are set: sums are known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import detoxbench as db
from detoxbench import cli
from detoxbench.files.sealing import seal
from detoxbench.runner.composition import cells
from detoxbench.runner.estimate import Estimate, estimate, stored

QUICK = ["suite=utility", "suite.limit=2"]


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """self_reminder and its base, with what they took set to round numbers: 20 s for each of two requests."""
    folder = tmp_path_factory.mktemp("runs")
    db.run([*QUICK, f"runs_dir={folder}", "method=self_reminder"])
    for run in folder.glob("*/run.json"):
        change(
            run,
            seconds={"generate": 40.0, "score": 8.0},
            cost={"generation_peak_mb": 500.0, "fit_peak_mb": 400.0, "fit_seconds": 3.0},
        )
    return folder


def change(file: Path, *, cost: dict[str, Any], created: str | None = None, **provenance: Any) -> None:
    """A run.json with other costs and provenance, sealed again."""
    document = json.loads(file.read_text())
    document["created"] = created or document["created"]
    document["cost"] |= cost
    document["provenance"] |= provenance
    file.unlink()  # it may be linked
    file.write_text(json.dumps(document))
    (file.parent / "digests.json").unlink()
    seal(file.parent)


def estimated(runs_dir: Path, *overrides: str, into: Path | None = None) -> Estimate:
    specs = [spec for _, spec in cells([*QUICK, f"runs_dir={into or runs_dir}", *overrides], multirun=True)]
    return estimate(specs, [runs_dir])


def seconds(found: Estimate) -> list[tuple[str, float | None, str]]:
    return [(stage.stage, stage.seconds, stage.basis) for stage in found.stages]


def test_a_run_says_what_its_stages_took(tmp_path: Path) -> None:
    db.run([*QUICK, f"runs_dir={tmp_path}"])
    (run,) = stored([tmp_path])
    assert (run.seconds["generate"] or 0) > 0
    assert (run.seconds["score"] or 0) > 0
    assert run.work.texts == 2
    assert run.work.model_bytes > 100_000
    assert run.work.tokens > 2 * run.record.spec["gen"]["max_new_tokens"]
    assert run.disk_bytes["generate"] > 100


def test_what_is_stored_takes_nothing(runs_dir: Path) -> None:
    found = estimated(runs_dir, "method=self_reminder")
    assert (found.stages, found.seconds()) == ([], 0)


def test_another_seed_takes_what_the_first_took(runs_dir: Path) -> None:
    found = estimated(runs_dir, "method=self_reminder", "seed=1,2")
    base, method = [("generate", 40.0, "from 1 run"), ("score", 8.0, "from 2 runs")], ("fit", 3.0, "from 1 run")
    assert seconds(found) == [*base, method, *base, *base, method, *base]
    assert (found.seconds("generate"), found.seconds(), found.peak_mb) == (160, 4 * 48 + 2 * 3, 500)
    assert found.disk_bytes > 1000


def test_a_stage_is_counted_once(runs_dir: Path) -> None:
    with_base = estimated(runs_dir, "method=none,self_reminder", "seed=1")
    assert [stage.stage for stage in with_base.stages] == ["generate", "score", "fit", "generate", "score"]


def test_twice_the_requests_take_twice_as_long(runs_dir: Path) -> None:
    found = estimated(runs_dir, "method=none", "suite.limit=4")
    (generate, score) = seconds(found)
    assert score == ("score", 16.0, "from 2 runs of other suite")
    assert generate[1] == pytest.approx(80, rel=0.1), "but for the lengths of the other prompts"
    assert generate[2] == "from 1 run of other suite"


def test_settings_and_generation_that_differ_are_named(runs_dir: Path) -> None:
    found = estimated(runs_dir, "method=self_reminder", "gen.max_new_tokens=50", "method.prefix=Be kind.")
    assert found.stages[-2].basis == "from 1 run of other generation and settings"


def test_a_method_that_is_not_stored_is_not_known_and_not_free(runs_dir: Path) -> None:
    found = estimated(runs_dir, "method=destein", "seed=0")
    assert [stage.title for stage in found.unknown] == ["fit of method=destein suite=utility",
                                                        "generate of method=destein suite=utility"]  # fmt: skip
    assert found.seconds() == 8


def test_fits_that_learn_alike_take_the_time_of_one(tmp_path: Path) -> None:
    db.run([*QUICK, f"runs_dir={tmp_path}", "method=caa", "fit.limit=4"])
    found = estimated(tmp_path, "method=caa", "fit.limit=4", "method.strength=0.5,1.5", "seed=1")
    fits = [stage for stage in found.stages if stage.stage == "fit"]
    assert [fit.basis for fit in fits] == ["from 1 run of other settings", "learned with another"]
    assert (fits[0].seconds or 0) > 0 == fits[1].seconds


def test_a_larger_model_takes_longer_by_its_size(runs_dir: Path, tmp_path: Path) -> None:
    for name, factor in (("small", 2), ("large", 1)):
        (tmp_path / name).mkdir()
        run = next(path for path in runs_dir.glob("*/run.json") if json.loads(path.read_text())["method"] == "none")
        copy = tmp_path / name / run.parent.name
        copy.mkdir()
        for file in run.parent.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        document = json.loads(run.read_text())
        document["identity"]["model"]["fingerprint"] = "another"
        (copy / "run.json").write_text(json.dumps(document))
        work = document["provenance"]["work"]
        change(copy / "run.json", cost={}, work=work | {"model_bytes": work["model_bytes"] // factor})
    found = estimated(tmp_path / "small", "method=none", into=tmp_path / "new")
    assert seconds(found)[0] == ("generate", 80.0, "from 1 run of other model")
    assert seconds(found)[1] == ("score", 8.0, "from 1 run"), "a judge reads the same texts"
    assert found.peak_mb == 1000


def test_times_of_another_machine_are_left_out(runs_dir: Path, tmp_path: Path) -> None:
    """Those of the newest run's count."""
    db.run([*QUICK, f"runs_dir={tmp_path}", "seed=7"])
    (run,) = tmp_path.glob("*/run.json")
    for created, device in (("2000-01-01", {"cpu"}), ("9999-01-01", {"another"})):
        change(run, cost={}, created=created, device="another")
        both = stored([runs_dir, tmp_path])
        assert {known.record.provenance["device"] for known in both} == device


def test_the_command_says_it(runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", *QUICK, "method=self_reminder", "seed=1", "--estimate"]
    assert cli.main([*command, f"runs_dir={runs_dir}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines[-5:-1]] == [
        "estimated from 2 stored runs", "  fit: 1 to do, 3 s", "  generate: 2 to do, 80 s", "  score: 2 to do, 16 s",
    ]  # fmt: skip
    assert re.fullmatch(r"  in all: 99 s, at most 500 MB of memory, 1\d\.\d kB of disk", lines[-1])
    assert cli.main([*command, f"runs_dir={tmp_path}"]) == 0
    assert "no stored run says what it took" in capsys.readouterr().out
    assert cli.main([*command, f"runs_dir={tmp_path}", "--like", str(runs_dir)]) == 0
    assert "in all: 99 s" in capsys.readouterr().out
    assert cli.main(["plan", *QUICK, f"runs_dir={runs_dir}", "method=destein", "--estimate"]) == 0
    assert "not counted, since no stored run tells: 2 stages: fit of method=destein" in capsys.readouterr().out
    assert cli.main(["plan", *QUICK, f"runs_dir={runs_dir}", "--estimate"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is to do"
