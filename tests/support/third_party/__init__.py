"""A package of somebody else, installed for a test without pip: files and a dist-info folder on the path."""

import shutil
from pathlib import Path

SOURCE = Path(__file__).parent / "acme_detox"


def install(target: Path) -> Path:
    """Put the package into `target`, as `pip install --target` would."""
    shutil.copytree(SOURCE / "acme_detox", target / "acme_detox")
    announce(target, (SOURCE / "pyproject.toml").read_text())
    return target


def announce(target: Path, pyproject: str) -> None:
    """Write the dist-info folder of what lies in `target`, with the entry points of `pyproject`."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    project = tomllib.loads(pyproject)["project"]
    info = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
