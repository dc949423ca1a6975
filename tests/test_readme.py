"""What the README shows is run as it stands there."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from tests.support.environments import ROOT, fresh, pip, run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language; of "", those of commands and of what they print."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [text for named, text in found if named == language]


def shown_files() -> dict[str, str]:
    """The files of the method that is shown whole: path, as it is named above the block, -> text."""
    found = re.findall(r"^`([\w/.]+)`[^\n`]*:\n\n```(?:python|yaml|toml)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return dict(found)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the method that is shown whole, exactly as it is printed."""
    folder = tmp_path_factory.mktemp("project")
    for path, text in shown_files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def test_the_tree_of_the_method_names_the_files_that_are_shown(package: Path) -> None:
    (tree,) = (block for block in blocks("") if block.startswith("pyproject.toml"))
    assert [line.split()[0] for line in tree.splitlines()] == sorted(shown_files())
    module = (package / "word_bias" / "__init__.py").read_text()
    assert re.findall(r"from (detoxbench\S*) import", module) == ["detoxbench"]
    assert (package / "word_bias/conf/method/word_bias.yaml").read_text() == "name: word_bias\n"


def test_the_method_that_is_shown_whole_is_installed_checked_and_run(package: Path, tmp_path: Path) -> None:
    (printed,) = (block.splitlines() for block in blocks("") if block.startswith("pip install -e"))
    assert printed[:2] == ["pip install -e .", "detoxbench check method word_bias"]
    python, _ = fresh(tmp_path / "env", ROOT)
    pip(python, "install", "-e", ".", cwd=package)
    few = ["suite=real_toxicity_prompts", "suite.prompts=25", "gen.n=2", "with_base=false"]
    commands = [["check", "method", "word_bias"], ["run", "-m", "method=word_bias", "method.strength=0,4", *few]]
    one_process = f"import sys; from detoxbench import cli; sys.exit(any([cli.main(c) for c in {commands!r}]))"
    said = run(python, "-c", one_process, cwd=tmp_path)
    (checked,) = (block for block in blocks("") if block.startswith("ok "))
    assert said.startswith(checked)
    shares = [float(value) for value in re.findall(r"toxic_share +([\d.]+) %", said)]
    assert shares[1] < shares[0] - 5  # it does what it says


def test_the_wheel_of_the_method_holds_its_settings(package: Path, tmp_path: Path) -> None:
    python, _ = fresh(tmp_path / "env")
    pip(python, "wheel", "-w", tmp_path / "dist", ".", cwd=package)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert {"word_bias/__init__.py", "word_bias/conf/method/word_bias.yaml"} < set(zipfile.ZipFile(wheel).namelist())


def test_the_python_surface_works_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[1], "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "fable · utility" in shown
    assert (tmp_path / "steering" / "intervention.json").is_file()


def test_every_linked_file_is_there() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [(p, link) for p in pages for link in re.findall(r"\]\((?!https?:)([^)#]+)", p.read_text(encoding="utf-8"))]
    assert len(links) > 30
    assert [f"{p.name}: {link}" for p, link in links if not (p.parent / link).exists()] == []
