"""Packages to begin with: a method, a suite or a scorer that works, with its settings, tests and pyproject.

The folders of templates/ are the packages, file by file: `NAME` in a path and `${name}` in a text stand for the name.
"""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from string import Template

from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.files.writing import write_folder
from detoxbench.registry import REGISTRIES

TEMPLATES = Path(__file__).parent / "templates"
SUFFIX = ".template"
"""Of files in templates/, so that no tool takes them for Python or for settings."""


def write_package(kind: str, name: str, into: Path) -> Path:
    """Write a new package with a `kind` ("method", "suite" or "scorer") called `name` into the folder `into`.

    Returns its folder. It is written whole or not at all. Raises UsageError where the name cannot be taken, and
    DetoxbenchError where nothing can be written.
    """
    folder = into / name
    require_free(kind, name, folder)
    texts = package_files(kind, name)

    def fill(new: Path) -> None:
        for path, text in texts.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_text(text, encoding="utf-8")

    try:
        write_folder(folder, fill)
    except OSError as error:
        raise DetoxbenchError(f"cannot write '{folder}': {error.strerror or error}; choose another --into") from None
    return folder


def require_free(kind: str, name: str, folder: Path) -> None:
    """Raises UsageError where `name` cannot be that of a module, is taken, or `folder` is there already."""
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name) or keyword.iskeyword(name):
        raise UsageError(f"'{name}' cannot be the name of a {kind}: write small letters, digits and _, as in my_{kind}")
    if name in REGISTRIES[kind].names():
        raise UsageError(f"there is a {kind} '{name}' already (detoxbench describe {kind} {name}): choose another name")
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"'{folder}' is there already: choose another name or another --into")
    if name == "tests" or find_spec(name) is not None:
        raise UsageError(f"a package '{name}' would hide another one of that name: choose another name")


def package_files(kind: str, name: str) -> dict[str, str]:
    """The files of a package: path below its folder -> text."""
    values = {"kind": kind, "name": name, "project": name.replace("_", "-"), "class_name": class_name(kind, name)}
    texts = {}
    for tree in (TEMPLATES / "common", TEMPLATES / kind):
        for file in sorted(tree.rglob(f"*{SUFFIX}")):
            path = file.relative_to(tree).as_posix().removesuffix(SUFFIX).replace("NAME", name)
            texts[path] = Template(file.read_text(encoding="utf-8")).substitute(values)
    return texts


def class_name(kind: str, name: str) -> str:
    """word_bias -> WordBias; MappingMethod where the module has something else called Mapping."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    module = (TEMPLATES / kind / "NAME" / f"__init__.py{SUFFIX}").read_text(encoding="utf-8")
    return f"{camel}{kind.capitalize()}" if re.search(rf"\b{camel}\b", module) else camel
