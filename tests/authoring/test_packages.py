"""`detoxbench new` writes packages that install, build, pass their own tests and run, as they are."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from detoxbench import cli
from detoxbench.authoring import packages
from tests.support.environments import ROOT, fresh, pip, run

NAMES = {"method": "calm_down", "suite": "angry_people", "scorer": "rude_words"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of each kind."""
    folder = tmp_path_factory.mktemp("written")
    for kind, name in NAMES.items():
        assert cli.main(["new", kind, name, "--into", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_they_install_pass_their_tests_and_run(written: Path, tmp_path: Path) -> None:
    python, _ = fresh(tmp_path / "env", ROOT)
    pip(python, "install", *(part for name in NAMES.values() for part in ("-e", written / name)), cwd=tmp_path)
    method, suite, scorer = NAMES.values()
    tests = [str(written / name / "tests") for name in NAMES.values()]
    pytest_argv = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests]
    chosen = f"method={method}", f"suite={suite}", f"scorer={scorer}", "method.strength=2", "suite.limit=2"
    one_process = (  # to import torch three times would take longer than all the rest
        "import sys, pytest; from detoxbench import cli; "
        f"sys.exit(pytest.main({pytest_argv!r}) or cli.main(['run', *{chosen!r}]) or cli.main(['list']))"
    )
    said = run(python, "-c", one_process, cwd=tmp_path)
    assert "6 passed" in said
    assert "toxic_share" in said
    assert all(f"  {name} " in said for name in NAMES.values())


@pytest.mark.slow
def test_their_wheels_hold_the_settings(written: Path, tmp_path: Path) -> None:
    python, _ = fresh(tmp_path / "env")
    pip(python, "wheel", "-w", tmp_path / "dist", *(written / name for name in NAMES.values()), cwd=tmp_path)
    for kind, name in NAMES.items():
        (wheel,) = (tmp_path / "dist").glob(f"{name}-*.whl")
        held = {file for file in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in file}
        assert held == {f"{name}/__init__.py", f"{name}/conf/{kind}/{name}.yaml"}


def test_they_are_as_clean_as_this_package(written: Path) -> None:
    for action in (["check"], ["format", "--check"]):
        settings = ["--no-cache", "--config", ROOT / "pyproject.toml"]
        run(sys.executable, "-m", "ruff", *action, *settings, *(written / name for name in NAMES.values()), cwd=written)


@pytest.mark.parametrize("kind", NAMES)
def test_what_is_in_them_has_one_import(written: Path, kind: str) -> None:
    name = NAMES[kind]
    text = (written / name / name / "__init__.py").read_text()
    assert text.count("from detoxbench import ") == 1
    assert "detoxbench." not in text.replace("from detoxbench import ", "")


def test_what_was_written_is_listed_with_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", "method", "word_bias", "--into", str(tmp_path / "a" / "b")]) == 0
    listed, _, following = capsys.readouterr().out.partition("\n\n")
    files = {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert set(listed.splitlines()) == files
    assert "detoxbench check method word_bias\n" in following


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["Word", "2nd", "word-bias", "word bias", "größe", "class", "_x", "x_", "../x", ""])
def test_what_cannot_be_a_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "suite", name]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"'{name}' cannot be the name of a suite: write small letters, digits and _, as in my_suite" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["method", "destein"], "there is a method 'destein' already (detoxbench describe method destein)"),
        (["scorer", "refusal"], "there is a scorer 'refusal' already"),
        (["suite", "json"], "a package 'json' would hide another one of that name"),
        (["suite", "tests"], "a package 'tests' would hide another one of that name"),
        (["method", "there"], "'there' is there already"),
        (["methd", "mine"], "invalid choice: 'methd'"),
    ],
)
def test_what_is_taken_is_refused(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert cli.main(["new", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["new", "suite", "mine", "--into", str(tmp_path / "file")]) == 1
    assert "cannot write" in (err := capsys.readouterr().err)
    assert err.count("\n") == 1


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(kind: str, name: str) -> dict[str, str]:
        return {"pyproject.toml": "half", "pyproject.toml/below": "a file cannot be a folder"}

    monkeypatch.setattr(packages, "package_files", full)
    assert cli.main(["new", "suite", "mine", "--into", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["hook", "config", "any", "mapping", "role"])
def test_a_class_is_called_like_nothing_else_in_its_module(name: str) -> None:
    text = packages.package_files("method", name)[f"{name}/__init__.py"]
    assert f"class {name.capitalize()}Method(Method[Config]):" in text
    compile(text, name, "exec")
