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
    shipped = {f"detoxbench/{f.relative_to(ROOT / 'detoxbench')}" for f in (ROOT / "detoxbench").rglob("*.safetensors")}
    assert shipped
    assert shipped <= set(names), "the embedded model and judge ship with the package"
    assert sum(info.compress_size for info in zipfile.ZipFile(wheel).infolist()) < 10e6


def test_the_installed_wheel_works_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    """Dependencies are this environment's; the package itself is the wheel's."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    python, site = fresh(tmp_path / "env")
    pip(python, "install", "--no-index", wheel, cwd=elsewhere)
    command = python, "-m", "detoxbench.cli"
    where = run(python, "-c", "import detoxbench; print(detoxbench.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(site)
    listed = run(*command, "list", cwd=elsewhere)
    for name in ("fable", "destein", "safeedit", "embedded"):
        assert name in listed
    assert "method=destein" in run(*command, "plan", "method=destein", "suite.limit=2", cwd=elsewhere)
    assert "fault" not in run(*command, "check", "method", "none", cwd=elsewhere)


def test_a_folder_called_methods_beside_the_user_is_not_ours(wheel: Path, tmp_path: Path) -> None:
    """As people have who write methods of their own: nothing of ours may be looked for in it."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").write_text("raise ImportError('not of detoxbench')\n")
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel, cwd=ROOT)
    ask = "import sys; sys.path.insert(1, PLACE); import detoxbench as db; print(db.methods.get('dinm'), db.__file__)"
    for place, package in ((str(site), site), (str(ROOT), ROOT)):
        said = run(sys.executable, "-c", ask.replace("PLACE", repr(place)), cwd=tmp_path)
        assert "detoxbench.methods.dinm.DINM" in said
        assert said.split()[-1] == str(package / "detoxbench" / "__init__.py")
    for command in ((sys.executable, "-m", "detoxbench"), (Path(sys.executable).with_name("detoxbench"),)):
        assert "dinm" in run(*command, "list", "methods", cwd=tmp_path)
        assert "method=dinm" in run(*command, "plan", "method=dinm", "suite.limit=2", cwd=tmp_path)
