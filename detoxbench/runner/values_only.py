"""What a configuration may hold: values. It names no code and reads no environment, whoever wrote it.

Experiments and configuration folders are passed on between people, and Hydra would do much for them: make objects of
any class (`_target_`, callbacks, logging), read the environment into settings that are stored and shared, and hand
commands to a launcher. All this is looked for before anything is resolved or started.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from detoxbench.errors import UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

Path = tuple[str, ...]

_PLUGINS = (("hydra", "launcher", "_target_"), ("hydra", "sweeper", "_target_"))
"""Where a class is named; Hydra makes an object of it only if it is a plugin that it has found."""
_PLUGIN_PACKAGES = ("hydra.", "hydra_plugins.")
_LOGGING = ("hydra_logging", "job_logging")
_LOGGING_PACKAGES = ("logging.", "colorlog.", "ext://sys.")
_ENVIRONMENT = ("env_set", "env_copy")
_COMMANDS = frozenset({"setup", "python", "srun_args", "additional_parameters", "runtime_env"})
"""Settings of launchers that are run as commands, or say what is."""
_HYDRAS_RESOLVERS = frozenset({"hydra", "now", "python_version"})
"""Only in what is Hydra's own: where it was started is of no use to others."""


def require_values(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Raises UsageError for what is no value in a composed configuration, of the run or with Hydra's own part:

    - a `_target_`, but for a launcher and a sweeper of Hydra or of its plugins, and classes in Hydra's logging;
    - `${resolver:...}`: `${key}` copies another setting, and a resolver would read the environment or make a setting
      that says so later; Hydra's own part may say when it was started;
    - variables that Hydra would set or keep, and commands for a launcher that are not among the `overrides`, but in a
      file.
    """
    from omegaconf import OmegaConf

    for path, value in _values(OmegaConf.to_container(cfg, resolve=False), ()):
        name = ".".join(path)
        if path[-1] == "_target_" and not (path in _PLUGINS and str(value).startswith(_PLUGIN_PACKAGES)):
            raise UsageError(f"'{name}' is refused: configurations hold values and never name code")
        if path[0] == "hydra" and len(path) > 1:
            _check_hydras(path, value, overrides)
        for resolver in _resolvers(value) if isinstance(value, str) and "${" in value else ():
            if path[0] != "hydra" or resolver not in _HYDRAS_RESOLVERS:
                raise UsageError(
                    f"'{name}' is refused: ${{{resolver}:...}} reads what is no setting; write the value itself, or "
                    "copy one with ${key}"
                )


def _values(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """(path, value) of everything that is no group or list, as it is written."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        if path:
            yield path, value
        return
    for key, inner in items:
        yield from _values(inner, (*path, str(key)))


def _check_hydras(path: Path, value: Any, overrides: Sequence[str]) -> None:
    """Raises UsageError for what is no value in Hydra's own part."""
    name, section = ".".join(path), path[1]
    if section in _LOGGING:
        text = str(value)
        names_code = path[-1] in ("()", "class") or text.startswith(("ext://", "cfg://"))
        if path[-1] == "()" or (names_code and not text.startswith(_LOGGING_PACKAGES)):
            raise UsageError(f"'{name}' is refused: configurations hold values and never name code")
    if section == "job" and len(path) > 2 and path[2] in _ENVIRONMENT and value:
        raise UsageError(f"'{name}' is refused: set variables of the environment where the command is given")
    if section == "launcher" and _COMMANDS & set(path[2:]) and value not in (None, {}, []):
        key = ".".join(path[: 1 + next(i for i, part in enumerate(path) if part in _COMMANDS)])
        if not any(override.lstrip("+").startswith((f"{key}=", f"{key}.")) for override in overrides):
            raise UsageError(f"'{name}' is refused in a file, since it can run commands: give {key}=... yourself")


@cache
def _resolvers(value: str) -> tuple[str, ...]:
    """The resolvers that a value asks, as they are written; one whose name is itself made of settings as a whole."""
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
    from omegaconf.grammar_parser import parse

    asks: Any = OmegaConfGrammarParser.InterpolationResolverContext
    try:
        left: list[Any] = [parse(value)]
    except GrammarParseError:
        return ()  # it cannot be resolved either, which says so
    found = []
    while left:
        node = left.pop()
        if isinstance(node, asks):
            found.append(node.resolverName().getText())
        left += getattr(node, "children", None) or ()
    return tuple(found)
