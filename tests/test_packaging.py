"""What is built works somewhere else: the wheel, in a fresh environment, from another folder."""

import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.environments import ROOT, fresh, pip, run


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_all_that_is_needed_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"detoxbench"}
    assert "detoxbench/methods/dinm.py" in names, "methods/ lies at the top of a checkout, and inside the package here"
    for needed in ("detoxbench/conf/config.yaml", "detoxbench/conf/method/destein.yaml", "detoxbench/py.typed"):
        assert needed in names
    assert {f"detoxbench/report/{name}" for name in ("template.html", "style.css", "script/page.js")} <= set(names)
    templates = {f"detoxbench/{f.relative_to(ROOT / 'detoxbench')}" for f in (ROOT / "detoxbench").rglob("*.template")}
    assert templates
    assert templates <= set(names), "`detoxbench new` writes packages from the wheel, too"
    shipped = {f"detoxbench/{f.relative_to(ROOT / 'detoxbench')}" for f in (ROOT / "detoxbench").rglob("*.safetensors")}
    assert shipped
    assert shipped <= set(names), "the embedded model and judge ship with the package"
    assert sum(info.compress_size for info in zipfile.ZipFile(wheel).infolist()) < 10e6


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(python, site-packages) of an environment with the wheel; dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    python, site = fresh(folder / "env")
    pip(python, "install", "--no-index", wheel, cwd=folder)
    return python, site


def test_the_installed_wheel_works_in_another_folder(installed: tuple[Path, Path], tmp_path: Path) -> None:
    python, site = installed
    commands = [["list"], ["plan", "method=destein", "suite.limit=2"], ["check", "method", "none"]]
    one_process = f"from detoxbench import cli; print(cli.__file__, [cli.main(c) for c in {commands!r}])"
    said = run(python, "-c", one_process, cwd=tmp_path)
    for name in ("fable", "destein", "safeedit", "embedded", "method=destein"):
        assert name in said
    assert "fault" not in said
    where, codes = said.splitlines()[-1].split(" ", 1)
    assert Path(where).is_relative_to(site)
    assert codes == "[0, 0, 0]"


def test_a_folder_called_methods_beside_the_user_is_not_ours(installed: tuple[Path, Path], tmp_path: Path) -> None:
    """As people have who write methods of their own: nothing of ours may be looked for in it."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").write_text("raise ImportError('not of detoxbench')\n")
    ask = "import detoxbench as db; print(db.methods.get('dinm'), db.__file__)"
    for python, package in ((installed[0], installed[1]), (Path(sys.executable), ROOT)):
        said = run(python, "-c", ask, cwd=tmp_path)
        assert "detoxbench.methods.dinm.DINM" in said
        assert Path(said.split()[-1]) == package / "detoxbench" / "__init__.py"
        for command in ((python, "-m", "detoxbench"), (python.with_name("detoxbench"),)):
            assert "method=dinm" in run(*command, "plan", "method=dinm", "suite.limit=2", cwd=tmp_path)


USERS_FILE = """\
from detoxbench import FitData, Intervention, LanguageModel
from detoxbench.methods.dinm import DINM, Config

method = DINM(Config(num_steps=3), name="dinm")
reveal_type(method.config)


def fit(lm: LanguageModel) -> Intervention:
    return method.fit(lm, FitData())
"""
NOT_FOLLOWED = "torch transformers numpy msgspec sklearn scipy peft omegaconf hydra safetensors huggingface_hub rich"


@pytest.mark.slow
def test_type_checkers_find_the_methods(tmp_path: Path) -> None:
    """For a user's file, strictly and without ignoring anything; reading torch would take mypy minutes."""
    (tmp_path / "user.py").write_text(USERS_FILE)
    heavy = ",".join(f"{package}.*" for package in NOT_FOLLOWED.split())
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\n\n[mypy-{heavy}]\nfollow_imports = skip\n")
    said = run(sys.executable, "-m", "mypy", "user.py", cwd=tmp_path)
    assert 'Revealed type is "detoxbench.methods.dinm.Config"' in said
