"""What is built works somewhere else: the wheel, in a fresh environment, from another folder."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    assert {f"detoxbench/report/{name}" for name in ("template.html", "style.css", "report.js")} <= set(names)
    shipped = {f"detoxbench/{f.relative_to(ROOT / 'detoxbench')}" for f in (ROOT / "detoxbench").rglob("*.safetensors")}
    assert shipped
    assert shipped <= set(names), "the embedded model and judge ship with the package"
    assert sum(info.compress_size for info in zipfile.ZipFile(wheel).infolist()) < 10e6


def test_the_installed_wheel_works_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    """Dependencies are this environment's, seen through a .pth file; the package itself is the wheel's."""
    environment, elsewhere = tmp_path / "env", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python*/site-packages")
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel,
        cwd=elsewhere,
    )  # fmt: skip
    # Added behind the wheel; an editable install's own .pth file in there is not read.
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    command = environment / "bin" / "python", "-m", "detoxbench.cli"
    where = run(environment / "bin" / "python", "-c", "import detoxbench; print(detoxbench.__file__)", cwd=elsewhere)
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
