"""Overrides to typed runs: Hydra composes the YAML files of conf/, `detoxbench.config` validates what comes out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detoxbench.config import EngineSpec, GenSpec, ModelSpec, RunSpec, TrackerSpec, build, texts, unescaped
from detoxbench.errors import UsageError, did_you_mean
from detoxbench.registry import REGISTRIES
from detoxbench.runner.values_only import require_values

if TYPE_CHECKING:  # Hydra takes 0.1 s to import, and `detoxbench list` does without it
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

COMPOSITION = "compose"
"""The method that is made of other methods."""
LAUNCHER_EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_slurm": "submitit",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/ray": "ray",
}
"""Hydra's launchers that are packages of their own, and the extras that install them."""
VERSION_BASE = "1.3"
"""The Hydra behaviour that conf/ is written for."""


class UnforeseeableSweep(UsageError):
    """The sweeper chooses its cells while it runs. `runs_dir` is where they go."""

    def __init__(self, sweeper: str, runs_dir: str) -> None:
        self.runs_dir = runs_dir
        super().__init__(f"the sweeper {sweeper} chooses its cells while it runs")


def conf_dir() -> Path:
    """The project's own conf/: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def conf_dirs() -> list[Path]:
    """Every folder that groups are read from: our own, then those of the entry-point group `detoxbench.confs`.

    An entry's value is "package:folder", or a package whose folder conf/ is meant. A broken one is warned about by
    name.
    """
    folders = [conf_dir()]
    for entry in sorted(entry_points(group="detoxbench.confs")):
        try:
            spec = find_spec(entry.module)
            origin = spec.origin if spec else None
        except Exception:
            origin = None
        folder = Path(origin).parent / (entry.attr or "conf") if origin else None
        if folder is None or not folder.is_dir():
            owner = f"package '{entry.dist.name}'" if entry.dist else "an unknown package"
            warnings.warn(f"the conf folder '{entry.name}' of {owner} is not there ({entry.value})", stacklevel=2)
        elif folder not in folders:
            folders.append(folder)
    return folders


def options(group: str) -> dict[str, Path]:
    """The choices of a configuration group and their files; needs no Hydra."""
    return {file.stem: file for folder in reversed(conf_dirs()) for file in sorted((folder / group).glob("*.yaml"))}


def compose_run(overrides: Sequence[str]) -> RunSpec:
    """One run, complete and validated, from Hydra overrides such as "method=destein". Raises UsageError."""
    return run_spec(load(overrides)[0])


def cells(overrides: Sequence[str], *, multirun: bool = False) -> list[tuple[list[str], RunSpec]]:
    """Every run of the overrides, complete and validated, each with its own overrides; a single one without `multirun`.

    A configuration may itself ask for a multirun (hydra.mode: MULTIRUN). Raises as `compose_run`, and
    UnforeseeableSweep where another sweeper than Hydra's basic one is chosen.
    """
    if not multirun:
        cfg, hydra = load(overrides)
        if hydra.mode is None or hydra.mode.name != "MULTIRUN":
            return [(list(overrides), run_spec(cfg))]
    with _hydra(overrides):
        whole = _multirun_config(overrides)
        expanded = _expanded(overrides, whole)
    launcher = _plain(whole.hydra.launcher)
    return [(cell, _cell(cell, launcher)) for cell in expanded]


def _cell(overrides: Sequence[str], launcher: Any) -> RunSpec:
    """One cell of a multirun. Hydra reads the launcher once for all of them, before any group that has several values:
    what such a group says of it would be passed over, and is refused."""
    cfg, hydra = load(overrides)
    if _plain(hydra.launcher) != launcher:
        raise UsageError(
            "the launcher is set in a group that has several values, where Hydra does not read it: give it by itself, "
            f"as in launcher=joblib (asked for by {' '.join(overrides)})"
        )
    return run_spec(cfg)


def launches_elsewhere(overrides: Sequence[str]) -> bool:
    """Whether the cells of a multirun would run in processes that a launcher starts. Raises UsageError."""
    with _hydra(overrides):
        target: str = _multirun_config(overrides).hydra.launcher._target_
    return not target.endswith(".BasicLauncher")


def _plain(cfg: DictConfig) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=False)


def load(overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """The composed configuration of one run, not yet validated, and Hydra's own. Raises UsageError."""
    from hydra import compose as hydra_compose
    from omegaconf import open_dict

    with _hydra(overrides):
        cfg = hydra_compose("config", settable(overrides), return_hydra_config=True)
        require_values(cfg, overrides)
        _unescape(cfg, overrides)
    with open_dict(cfg):
        return cfg, cfg.pop("hydra")


def settable(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra has to get them: a setting that no YAML file repeats may be given like any other.

    Hydra takes `method.alpha=1` only where a file has the key. With `++` it takes every key, and `build` then refuses
    those that the component's class does not have.
    """
    return [f"++{text}" if _SETTING.match(text) else text for text in overrides]


_SETTING = re.compile(r"(model|method|suite|scorer|gen|fit|tracker|engine)\.[^=]+=")


def as_given(override: str) -> str:
    """The reverse of `settable`, for people."""
    return override.removeprefix("++")


def _unescape(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Make typed line breaks and tabs real in the text settings (`knob(text=True)`) that `overrides` give.

    Values from files are left as they are: YAML has its own way to write them. Needs `_hydra`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    for key in {o.key_or_group for o in OverridesParser.create().parse_overrides(list(overrides))}:
        kind, _, field = key.partition(".")
        component = cfg.get(kind) if kind in REGISTRIES else None
        if component is None or field not in component or OmegaConf.is_interpolation(component, field):
            continue
        registry, name, value = REGISTRIES[kind], component.get("name"), component.get(field)
        if isinstance(value, str) and name in registry.names() and field in texts(registry.get(name).Config):
            component[field] = unescaped(value)


def _expanded(overrides: Sequence[str], whole: DictConfig) -> list[list[str]]:
    """The overrides of every cell of a multirun: choices and ranges multiplied out by Hydra's basic sweeper. Needs
    `_hydra`, and `whole`, its `_multirun_config`.

    Raises UsageError, and UnforeseeableSweep where another sweeper is chosen.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (expanded,) = BasicSweeper.split_arguments(_with_params(overrides, whole), max_batch_size=None)
    return [[as_given(override) for override in cell] for cell in expanded]


def swept(overrides: Sequence[str]) -> tuple[list[str], dict[str, Override]]:
    """Overrides apart: those of one value as text, and those of several (choices, ranges, intervals) by key.

    Of a key that is given twice (by an experiment and on the command line, say) the last counts. Raises UsageError, and
    UnforeseeableSweep where another sweeper than Hydra's basic one is chosen.
    """
    with _hydra(overrides):
        parsed = _with_params(overrides, _multirun_config(overrides))
        last = {as_given(override.get_key_element()): override for override in parsed}
        several = {key: override for key, override in last.items() if override.is_sweep_override()}
        fixed = [as_given(str(override.input_line)) for key, override in last.items() if key not in several]
        return fixed, several


def of_jobs(overrides: Sequence[str], count: int) -> list[str]:
    """The overrides by which Hydra starts so many jobs where `overrides` say, whatever cells they run: what those say
    of Hydra and the launcher, and the number of the job. Raises as `swept`."""
    fixed, _ = swept(overrides)
    kept = [text for text in fixed if re.match(r"[+~]*(hydra[./]|(launcher|experiment|runs_dir)=)", text)]
    return [*kept, "hydra.mode=MULTIRUN", "hydra.sweeper.params=null", f"+job=range({count})"]


def _with_params(overrides: Sequence[str], whole: DictConfig) -> list[Override]:
    """The sweeper's own overrides, then those given, parsed. Needs `_hydra`."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweeper = whole.hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        raise UnforeseeableSweep(sweeper._target_, str(whole.runs_dir))
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides(settable([*params, *overrides]))


def _multirun_config(overrides: Sequence[str]) -> DictConfig:
    """What holds for a multirun as a whole: composed without what has several values. Needs `_hydra`."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    loader = GlobalHydra.instance().config_loader()
    whole = loader.load_configuration("config", settable(overrides), RunMode.MULTIRUN)
    require_values(whole, overrides)
    return whole


def run_spec(cfg: DictConfig) -> RunSpec:
    """A composed configuration as a typed, validated run. Raises UsageError naming key, place and remedy."""
    require_values(cfg)
    values = _resolved(cfg)
    builders = _builders()
    known = [*builders, "seed", "low_rank", "runs_dir", "runs_lock", "with_base", "cells_per_job"]
    for key in values:
        if key not in known:
            raise UsageError(f"unknown key '{key}'{did_you_mean(key, known)}; known: {', '.join(known)}")
    _tune_parts(values)
    sections: dict[str, Any] = {}
    for key, build_section in builders.items():
        settings = values.pop(key, None)
        if not isinstance(settings, Mapping):
            raise UsageError(f"'{key}' must be a group of keys (given: {settings!r})")
        sections[key] = build_section(settings)
    for kind in REGISTRIES:
        sections[kind], sections[f"{kind}_name"] = sections[kind]
    _check_judge(sections)
    return build(RunSpec, sections | values, "")


def _resolved(cfg: DictConfig) -> Any:
    """The configuration as plain values. Raises UsageError where a value is missing or cannot be resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        if match := re.search(r"Missing mandatory value: (\S+)", str(error)):
            raise UsageError(f"'{match[1]}' must be given: {match[1]}=...") from None
        raise UsageError(_first_line(error)) from None


def _tune_parts(values: dict[str, Any]) -> None:
    """Give each part of a composition the values of its method that the model of this name needs (conf/tuned), as the
    method has them alone; what is set for the part stays."""
    method, model = values.get("method"), values.get("model")
    if not isinstance(method, dict) or not isinstance(model, Mapping) or method.get("name") != COMPOSITION:
        return
    from omegaconf import OmegaConf

    files, settings = options("tuned/method"), dict(method.get("part") or {})
    for name, _, part in (str(part).partition(":") for part in method.get("parts") or ()):
        if file := files.get(f"{model.get('name')}_{part or name}"):
            tuned: Any = OmegaConf.to_container(OmegaConf.load(file))
            settings[name] = {**tuned["method"], **(settings.get(name) or {})}
    method["part"] = settings


def _builders() -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """For each group of keys the function that makes a typed configuration of it."""
    from detoxbench.data.roles import fit_spec

    return {
        "model": partial(build, ModelSpec, where="model"),
        "gen": partial(build, GenSpec, where="gen"),
        "fit": partial(build, fit_spec(), where="fit"),
        "tracker": partial(build, TrackerSpec, where="tracker"),
        "engine": partial(build, EngineSpec, where="engine"),
        **{kind: partial(_component, kind) for kind in REGISTRIES},
    }


def _component(kind: str, settings: Mapping[str, Any]) -> tuple[Any, str]:
    """The typed configuration of a registered component, and its name."""
    if "name" not in settings:
        raise UsageError(f"'{kind}.name' must be given: which {kind} the other keys belong to")
    name = str(settings["name"])
    values = {key: value for key, value in settings.items() if key != "name"}
    return build(REGISTRIES[kind].get(name).Config, values, kind, owner=f"{kind} '{name}'"), name


def _check_judge(sections: Mapping[str, Any]) -> None:
    name = sections["method_name"]
    if sections["scorer_name"] in REGISTRIES["method"].get(name)(sections["method"], name=name).guides:
        raise UsageError(
            f"method.guide={sections['scorer_name']} is the run's judge, which no method may see: name another guide"
        )
    data = getattr(sections["suite"], "data", "embedded")
    asked = REGISTRIES["suite"].get(sections["suite_name"]).needs_scorer
    if asked and sections["scorer_name"].startswith("embedded") and data != "embedded":
        other_scorers = [name for name in options("scorer") if not name.startswith("embedded")]
        raise UsageError(
            f"scorer '{sections['scorer_name']}' knows the embedded world only, and suite.data is '{data}': "
            f"choose scorer={' or scorer='.join(other_scorers)}"
        )


@cache
def register_search_path() -> None:
    """Tell Hydra about third parties' conf folders."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class ThirdPartyConf(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in conf_dirs()[1:]:
                search_path.append("detoxbench.confs", f"file://{folder}")

    Plugins.instance().register(ThirdPartyConf)


@contextmanager
def _hydra(overrides: Sequence[str]) -> Iterator[None]:
    """Make Hydra ready to compose; its errors inside the block become one-line UsageErrors."""
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    register_search_path()
    ready = partial(initialize_config_dir, str(conf_dir()), job_name="detoxbench", version_base=VERSION_BASE)
    with _outside_users_hydra(), ready():
        try:
            yield
        except (HydraException, OmegaConfBaseException, ValueError, AttributeError) as error:
            if type(error) is AttributeError and "full_key: " not in str(error):
                raise  # ours: what OmegaConf raises so names its key
            raise UsageError(_explain(error, overrides)) from None
        except YAMLError as error:
            raise UsageError(f"a configuration file is no YAML: {' '.join(str(error).split())}") from None
        except KeyError as error:  # Hydra looks it up before anything could be checked
            raise UsageError(
                f"hydra.job.env_copy asks for {error} of the environment: leave it out, settings are no place for it"
            ) from None


@contextmanager
def _outside_users_hydra() -> Iterator[None]:
    """Put aside, and afterwards put back, the Hydra that the caller may be using (`initialize`, `@hydra.main`)."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import JobRuntime
    from hydra.version import VersionBase

    users_hydra, users_version = GlobalHydra.instance().hydra, VersionBase.instance().version_base
    users_job = JobRuntime.instance().conf.copy()
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = users_hydra
        VersionBase.instance().version_base = users_version
        JobRuntime.instance().conf = users_job


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's error in one line, with the nearest right name. Runs while Hydra is ready to compose."""
    from hydra.errors import MissingConfigException, OverrideParseException

    text = str(error)
    if isinstance(error, OverrideParseException):
        override = as_given(error.override)
        return f"cannot read the override {override!r}: {_how_to_write(override)}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        if extra := LAUNCHER_EXTRAS.get(error.missing_cfg_file):
            name = error.missing_cfg_file.rpartition("/")[2]
            return f"the launcher '{name}' needs a package that is not installed: pip install 'detoxbench[{extra}]'"
        group, _, name = error.missing_cfg_file.partition("/")
        below = name.rpartition("/")[0]
        beside = {f"{below}/{option}".lstrip("/") for option in error.options}
        folders = [folder / group for folder in conf_dirs()]
        nested = {file.relative_to(f).with_suffix("").as_posix() for f in folders for file in f.rglob("*.yaml")}
        return _unknown_option(group, name, sorted(beside | nested))
    if "Config group override must be a string" in text:
        groups = [o for o in overrides if o.partition("=")[0] in REGISTRIES or o.startswith("model=")]
        return f"a group takes the name of one of its choices, and neither nothing nor a value ({', '.join(groups)})"
    if isinstance(error, AttributeError) and (match := re.search(r"full_key: (\S+)", text)):
        return f"'{match[1]}' is null and takes no group of keys: give each by itself, +{match[1]}.NAME=VALUE"
    if match := re.search(r"An item is already at '([^']+)'", text):
        return f"the key '{match[1]}' is there already: override it without the +"
    if match := re.search(r"Could not (?:override|append|delete)[^']*'([^'=]+)", text):
        return _unknown_key(match[1], overrides)
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        return (
            f"'{as_given(match[1])}' names several values: add -m to run them all, or quote it twice if it is one value"
        )
    return _first_line(error)


def _how_to_write(override: str) -> str:
    """A value that Hydra's grammar does not take as it is (with = ~ ( # or letters beyond ASCII) needs quotes."""
    key, equals, value = override.partition("=")
    if not equals:
        return "write key=value"
    if value[:1] in {"'", '"', "[", "{", "$"}:
        return f"its quotes or brackets do not close, or a value inside needs quotes of its own: {value}"
    quoted = value.replace('"', '\\"')
    return f"""quote the value twice, for the shell and for Hydra: '{key}="{quoted}"'"""


def _unknown_option(group: str, name: str, known: Sequence[str]) -> str:
    text = f"unknown {group} '{name}'{did_you_mean(name, known)}; known: {', '.join(sorted(known)) or 'none'}"
    if group == "model":
        return f"{text}; any other name or folder: model=hf model.path={name}"
    if group in REGISTRIES and name in REGISTRIES[group].names():
        return (
            f"the {group} '{name}' is registered, but no conf folder has {group}/{name}.yaml: write it with the line "
            f"'name: {name}', and name its folder under the entry points detoxbench.confs"
        )
    return text


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    """Says which part of a dotted key is unknown, by composing without the overrides that name it."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig

    rest = [override for override in overrides if override.partition("=")[0].lstrip("+~") != key]
    try:
        node: Any = GlobalHydra.instance().config_loader().load_configuration("config", rest, RunMode.MULTIRUN)
    except HydraException:
        return f"unknown key '{key}'"
    groups = {folder.name for conf in conf_dirs() for folder in conf.iterdir() if folder.is_dir()} - {"tuned"}
    known = sorted({str(name) for name in node} - {"hydra"} | groups)
    owner = prefix = ""
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            break
        prefix += f"{part}."
        node = node.get(part)
        known = [prefix + str(name) for name in node if name != "name"] if isinstance(node, DictConfig) else []
        if part in REGISTRIES and isinstance(node, DictConfig) and "name" in node:
            owner = f" of {part} '{node.name}'"
    return f"unknown key '{key}'{owner}{did_you_mean(key, known)}; known: {', '.join(known) or 'none'}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
