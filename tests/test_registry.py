"""Built-ins and third parties come in by the same door, and one broken plugin breaks nothing else."""

import os
import subprocess
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from detoxbench import methods, registry, suites
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.methods.base import Method
from detoxbench.registry import Registry
from tests.support import processes, third_party


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return third_party.install(tmp_path_factory.mktemp("site"))


def detoxbench(site: Path, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return processes.detoxbench(folder, *argv, PYTHONPATH=path)


def test_a_third_party_method_is_listed_described_and_planned(elsewhere: Path, tmp_path: Path) -> None:
    listed = detoxbench(elsewhere, tmp_path, "list", "methods")
    assert "whisper" in listed.stdout
    assert "Says a kind word" in detoxbench(elsewhere, tmp_path, "describe", "method", "whisper").stdout
    planned = detoxbench(elsewhere, tmp_path, "plan", "method=whisper", "method.words=psst ", "suite.limit=2")
    assert planned.returncode == 0, planned.stderr
    assert "method=whisper" in planned.stdout


@pytest.mark.slow
def test_a_third_party_method_runs_by_its_name(elsewhere: Path, tmp_path: Path) -> None:
    done = detoxbench(elsewhere, tmp_path, "run", "method=whisper", "suite=utility", "suite.limit=2", "with_base=false")
    assert done.returncode == 0, done.stderr
    assert "method=whisper" in done.stdout


def test_a_third_party_suite_needs_no_setting_in_its_file(elsewhere: Path, tmp_path: Path) -> None:
    described = detoxbench(elsewhere, tmp_path, "describe", "suite", "loudness")
    assert described.returncode == 0, described.stderr
    assert "one answer a prompt, greedy, at most 5 new tokens" in described.stdout
    planned = detoxbench(elsewhere, tmp_path, "plan", "suite=loudness", "suite.prompts=7")
    assert planned.returncode == 0, planned.stderr
    assert "7 prompts x 1, up to 5 new tokens each" in planned.stdout
    wrong = detoxbench(elsewhere, tmp_path, "plan", "suite=loudness", "suite.promts=7")
    assert "unknown key 'suite.promts' of suite 'loudness' (did you mean 'suite.prompts'?)" in wrong.stderr


def test_what_is_broken_warns_by_name_and_the_rest_works(elsewhere: Path, tmp_path: Path) -> None:
    listed = detoxbench(elsewhere, tmp_path, "list")
    assert listed.returncode == 0
    assert "the method 'broken' of package 'acme-detox' cannot be imported (acme_detox.absent:Nothing)" in listed.stderr
    assert "the conf folder 'gone' of package 'acme-detox' is not there" in listed.stderr
    assert "destein" in listed.stdout


# ------------------------------------------------------------------------------------------- the class itself


def entries(monkeypatch: pytest.MonkeyPatch, **values: str) -> Registry[object]:
    """A registry of methods that holds these entry points only."""
    found = [EntryPoint(name.rstrip("_"), value, "detoxbench.methods") for name, value in values.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    return Registry("method", "detoxbench.methods.base:Method")


def test_names_are_sorted_and_import_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert entries(monkeypatch, b="absent:B", a="absent:A").names() == ["a", "b"]


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown method 'destien' \(did you mean 'destein'\?\); known: adapter, "):
        methods.get("destien")
    with pytest.raises(UsageError, match="unknown suite"):
        suites.get("destein")


def test_a_class_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DetoxbenchError, match=r"'odd' of an unknown package is not a subclass of detoxbench.methods.base:Method"
    ):
        entries(monkeypatch, odd="pathlib:Path").get("odd")


def test_two_claims_on_a_name_name_both(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = entries(monkeypatch, none="detoxbench.methods.none:Base", none_="pathlib:Path")
    with pytest.raises(DetoxbenchError, match=r"two packages claim the method 'none'.*methods.none:Base.*pathlib:Path"):
        claimed.names()
    twice = entries(monkeypatch, none="detoxbench.methods.none:Base", none_="detoxbench.methods.none:Base")
    assert twice.names() == ["none"], "one package seen twice on the path is one claim"


def test_working_leaves_out_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    some = entries(monkeypatch, none="detoxbench.methods.none:Base", broken="absent:B")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [name for name, _ in some.working()] == ["none"]
    assert ["'broken'" in str(warning.message) for warning in caught] == [True]


def test_create_makes_a_configured_method() -> None:
    made = methods.create("destein", alpha=0.1, seed=3)
    assert isinstance(made, Method)
    assert (made.name, made.seed, made.config.alpha) == ("destein", 3, 0.1)
    with pytest.raises(UsageError, match=r"unknown key 'alhpa' of method 'destein' \(did you mean 'alpha'\?\)"):
        methods.create("destein", alhpa=0.1)
    with pytest.raises(UsageError, match="out of range"):
        methods.create("destein", alpha=-1)
