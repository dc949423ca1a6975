"""Fresh virtual environments that see the packages of this one, so that nothing is downloaded."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def run(*command: object, cwd: Path) -> str:
    """What a command said. It must succeed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fresh(folder: Path, *more: Path) -> tuple[Path, Path]:
    """(python, site-packages) of a new environment in `folder`.

    The packages of this environment, and then the folders `more`, come behind its own on the path. An editable
    install's .pth file in there is not read, so that detoxbench is seen only where it is installed or in `more`.
    """
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    behind = [*(path for path in sys.path if path.endswith("site-packages")), *map(str, more)]
    (site / "dependencies.pth").write_text("\n".join(behind))
    return folder / "bin" / "python", site


def pip(python: Path, *arguments: object, cwd: Path) -> None:
    """pip for that environment: nothing is built in isolation or downloaded."""
    action, *rest = arguments
    run(sys.executable, *PIP, "--python", python, action, "--no-build-isolation", "--no-deps", *rest, cwd=cwd)
