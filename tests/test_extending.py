"""What docs/extending.md shows is installed and run as it stands there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support import third_party
from tests.support.processes import detoxbench

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
CLASSES = {
    "mean_steering": ("method", "MeanSteering"),
    "unlikelihood": ("method", "Unlikelihood"),
    "thanks": ("suite", "Thanks"),
    "exclamations": ("scorer", "Exclamations"),
}
FEW = ["gen.max_new_tokens=8", "fit.limit=24"]
STRONG = {"mean_steering": "method.strength=2", "unlikelihood": "method.learning_rate=1e-2"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with the four modules of the page, announced by its entry points."""
    folder = tmp_path_factory.mktemp("site")
    package = folder / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shown = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    entries: dict[str, list[str]] = {}
    for (name, (kind, cls)), code in zip(CLASSES.items(), shown, strict=True):
        (package / f"{name}.py").write_text(code)
        (package / "conf" / kind).mkdir(parents=True, exist_ok=True)
        (package / "conf" / kind / f"{name}.yaml").write_text(f"name: {name}\n")
        entries.setdefault(f"{kind}s", []).append(f'{name} = "mine.{name}:{cls}"')
    (gen,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (package / "conf" / "suite" / "thanks.yaml").write_text(gen)
    groups = "".join(f'[project.entry-points."detoxbench.{g}"]\n' + "\n".join(e) + "\n" for g, e in entries.items())
    confs = '[project.entry-points."detoxbench.confs"]\nmine = "mine:conf"\n'
    third_party.announce(folder, f'[project]\nname = "mine"\nversion = "1"\n{groups}{confs}')
    return folder


def ran(site: Path, folder: Path, *overrides: str) -> str:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    done = detoxbench(folder, "run", *overrides, *FEW, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mean_steering", "unlikelihood"])
def test_the_methods_change_what_is_said(site: Path, tmp_path: Path, method: str) -> None:
    ran(site, tmp_path, f"method={method}", STRONG[method], "suite=real_toxicity_prompts", "suite.prompts=12")
    assert len({file.read_bytes() for file in tmp_path.glob("runs/*/samples.jsonl")}) == 2


def test_the_suite_asks_and_measures_by_the_scorer(site: Path, tmp_path: Path) -> None:
    shown = ran(site, tmp_path, "suite=thanks", "scorer=exclamations")
    assert "thanked_share" in shown
    assert "mean_toxicity" in shown
    (samples,) = tmp_path.glob("runs/*/samples.jsonl")
    lines = samples.read_text().splitlines()
    assert len(lines) == 4
    assert '"tags":{"words":9}' in lines[0]
