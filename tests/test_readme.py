"""What the README shows is run as it stands there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support import third_party
from tests.support.processes import detoxbench

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_method_that_is_shown_whole_runs(tmp_path: Path) -> None:
    method, settings, entry_points = blocks("python")[0], blocks("yaml")[0], blocks("toml")[0]
    (tmp_path / "word_bias.py").write_text(method)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "word_bias.yaml").write_text(settings)
    third_party.announce(tmp_path, f'[project]\nname = "word-bias"\nversion = "1"\n{entry_points}')
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    few = ["suite=real_toxicity_prompts", "suite.prompts=40", f"runs_dir={tmp_path / 'runs'}"]
    done = detoxbench(Path.cwd(), "run", "-m", "method=word_bias", "method.strength=0,4", *few, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    shares = [float(value) for value in re.findall(r"toxic_share +([\d.]+) %", done.stdout)]
    assert shares[1] < shares[0] - 5  # it does what it says


def test_the_python_surface_works_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[1], "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "fable · utility" in shown
    assert (tmp_path / "steering" / "intervention.json").is_file()


def test_every_linked_file_is_there() -> None:
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 3
    assert [link for link in links if not (root / link).exists()] == []
