"""The import rules of the project, and that every setting says whether it is part of a run's identity."""

import ast
import dataclasses
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import detoxbench
from detoxbench import methods, scorers, suites
from detoxbench.config import EngineSpec, GenSpec, ModelSpec, RunSpec, TrackerSpec
from detoxbench.data.roles import fit_spec

ROOT = Path(detoxbench.__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "accelerate", "detoxify", "sklearn", "wandb", "evaluate", "datasets"}
HEAVY |= {"trackio", "vllm"}
FLOORS = [
    "errors text metrics terminal",
    "config progress records evaluate_modules",
    "registry files",
    "fable",
    "model",
    "engine",
    "interventions",
    "data",
    "lm",
    "vllm_engine",
    "scorers",
    "fitting",
    "methods suites",
    "results",
    "tracking",
    "runner",
    "detoxbench intervention method",
    "authoring report sharing",
    "cli",
    "__main__",
]
"""Lowest first: a file imports from lower floors and from its own folder, wherever in the file it does so."""
SECTIONS = {"model", "method", "suite", "scorer", "gen", "fit", "tracker", "engine"}


def sources(package: str) -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path, *, at_import_only: bool) -> Iterator[str]:
    """What a file imports, as dotted names: all, or only what it imports when it is imported itself."""

    def visit(node: ast.AST) -> Iterator[str]:
        if at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(file.read_text(encoding="utf-8")))


def modules(names: Iterator[str], known: dict[str, Path]) -> set[str]:
    """Imported names as modules of `known`: the name itself, or what it is an attribute of."""
    return {name if name in known else name.rpartition(".")[0] for name in names} & set(known)


def all_sources() -> dict[str, Path]:
    """Every module of the package, its methods (which lie beside it in a checkout) among them."""
    return {**sources("detoxbench"), **{f"detoxbench.{name}": file for name, file in sources("methods").items()}}


def graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports anywhere: in functions and for the type checker, too."""
    known = all_sources()
    return {module: modules(imports(file, at_import_only=False), known) - {module} for module, file in known.items()}


def room(module: str) -> str:
    """The folder (or loose file) of the package that a module is in."""
    return [*module.split("."), "detoxbench"][1]


def test_no_import_runs_upwards() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
    for module, others in graph().items():
        for other in others:
            below = floor[room(other)] < floor[room(module)]
            assert below or room(other) == room(module), f"{module} imports {other}: see FLOORS"


def test_every_folder_has_its_floor() -> None:
    assert {room(module) for module in all_sources()} == {name for names in FLOORS for name in names.split()}


@pytest.mark.parametrize("file", sources("methods").values(), ids=lambda file: file.stem)
def test_methods_import_what_an_author_may_use(file: Path) -> None:
    """Nothing of the harness that runs them: a method is data in, an intervention out."""
    for name in imports(file, at_import_only=False):
        top, _, rest = name.partition(".")
        assert top != "methods", f"{file.name} imports {name}, which is detoxbench.{name}"
        if top == "detoxbench":
            assert room(f"detoxbench.{rest}") not in ("suites", "scorers"), f"{file.name} imports {name}"


@pytest.mark.parametrize("package", ["detoxbench", "methods"])
def test_nothing_heavy_is_imported_before_it_is_used(package: str) -> None:
    """So that help, list, describe and plan answer at once."""
    for module, file in sources(package).items():
        if module == "detoxbench.evaluate_modules":  # imported by people who live in evaluate, by nothing here
            continue
        heavy = {name.split(".")[0] for name in imports(file, at_import_only=True)} & HEAVY
        assert not heavy, f"{module} imports {heavy} when it is imported: do it in the function that needs it"


def test_results_never_bring_torch() -> None:
    known = sources("detoxbench/results")
    for module, file in known.items():
        assert "torch" not in {name.split(".")[0] for name in imports(file, at_import_only=False)}, module
    code = f"import sys, {', '.join(known)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_help_brings_nothing_that_runs() -> None:
    code = (
        "import contextlib, sys\nfrom detoxbench import cli\n"
        "with contextlib.suppress(SystemExit):\n    cli.main(['run', '--help']), cli.main(['status', '--help'])\n"
        "sys.exit('detoxbench.runner.cell' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_no_circles() -> None:
    arrows, done = graph(), set[str]()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in arrows[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in arrows:
        visit(module, ())


def configs() -> list[type]:
    components = [cls.Config for registry in (methods, suites, scorers) for _, cls in registry.working()]
    return [RunSpec, ModelSpec, GenSpec, fit_spec(), TrackerSpec, EngineSpec, *components]


@pytest.mark.parametrize("config", configs(), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_setting_is_identity_or_runtime_and_explained(config: type) -> None:
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for field in dataclasses.fields(config):
        if config is RunSpec and field.name.removesuffix("_name") in SECTIONS:
            continue  # a section: its own fields are classified
        assert "identity" in field.metadata, (
            f"{config.__qualname__}.{field.name} is a plain field: make it knob(...) if it can change a number, "
            "and runtime(...) if it cannot or if its content is hashed"
        )
        assert field.metadata["help"], f"{field.name} has no meaning"


PUBLISHED = [
    "aura",
    "caa",
    "dinm",
    "destein",
    "eigenshift",
    "ext_sub",
    "few_shot",
    "ft_l",
    "profs",
    "refusal_direction",
    "self_reminder",
    "system_prompt",
]


def test_published_methods_name_the_source_of_every_default() -> None:
    for name in PUBLISHED:
        for field in dataclasses.fields(methods.get(name).Config):
            if field.metadata["identity"]:
                assert field.metadata["source"], f"{name}.{field.name} has no source"


@pytest.mark.parametrize(("before", "after"), [(None, "passive"), ("active", "active")])
def test_importing_the_package_brings_no_torch_and_waits_passively_unless_told(before: str | None, after: str) -> None:
    code = "import sys, os, detoxbench; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": before} if before else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == after, done.stderr


def test_what_type_checkers_see_of_the_public_surface_is_what_is_there() -> None:
    tree = ast.parse(Path(detoxbench.__file__).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    seen = {
        alias.asname: f"{node.module}:{alias.name}" if node.module != "detoxbench" else f"detoxbench.{alias.name}"
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == detoxbench._PUBLIC


def test_paths_that_the_readme_has_shown_still_import() -> None:
    from detoxbench.config import knob
    from detoxbench.intervention import Intervention, LogitOp
    from detoxbench.method import Method, Role

    assert [knob, Intervention, LogitOp, Method, Role] == [
        getattr(detoxbench, name) for name in ("knob", "Intervention", "LogitOp", "Method", "Role")
    ]


def test_the_public_surface_is_there() -> None:
    for name in detoxbench.__all__:
        assert getattr(detoxbench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'LangaugeModel'"):
        _ = detoxbench.LangaugeModel


def undocumented(module: str) -> Iterator[str]:
    """Public functions, classes and methods of a module without a docstring. A method says what it says where it was
    first defined."""
    found = importlib.import_module(module)
    for name, value in vars(found).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module:
            continue
        if inspect.isfunction(value) and not value.__doc__:
            yield name
        if inspect.isclass(value):
            # A dataclass or a tuple without a docstring is given its signature.
            if not value.__doc__ or value.__doc__.startswith(f"{name}("):
                yield name
            for attribute, member in vars(value).items():
                function = getattr(member, "fget", None) or getattr(member, "__func__", member)
                inherited = any(attribute in vars(base) for base in value.__mro__[1:])
                public = inspect.isfunction(function) and not attribute.startswith("_")
                if public and not inherited and not function.__doc__:
                    yield f"{name}.{attribute}"


@pytest.mark.parametrize("module", all_sources())
def test_everything_public_says_what_it_is(module: str) -> None:
    if module not in ("detoxbench.__main__", "detoxbench.cli.__main__", "detoxbench.tracking.__main__"):
        assert list(undocumented(module)) == []
