"""Overrides become typed runs, and what is wrong is said in one line with the nearest right name."""

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pytest
import yaml
from omegaconf import OmegaConf

from detoxbench import methods, scorers, suites
from detoxbench.config import EngineSpec, GenSpec, ModelSpec, RunSpec, TrackerSpec, build
from detoxbench.data.roles import fit_spec
from detoxbench.errors import UsageError
from detoxbench.fitting.paraphrase_generation import GenerationConfig
from detoxbench.registry import REGISTRIES
from detoxbench.runner import composition
from detoxbench.runner.composition import cells, compose_run
from detoxbench.runner.printed import printed, unregistered

CONF = composition.conf_dir()
PUBLISHED = ["model=hf", "model.path=somewhere"]  # no values tuned for the embedded model


def names(group: str) -> list[str]:
    return sorted(composition.options(group))


def defaults(cls: Any) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(cls)}


def plain(value: Any) -> Any:
    """As YAML has it: lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


def read(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file))


# ---------------------------------------------------------------------------------------------- what is in conf/


def test_every_registered_component_has_a_file_and_every_file_a_component() -> None:
    assert names("method") == methods.names()
    assert names("suite") == suites.names()
    auxiliary = {"embedded_trigram", "perplexity", "similarity"}  # brought by suites, never a run's judge
    assert set(names("scorer")) == set(scorers.names()) - auxiliary


def test_no_default_stands_twice_in_another_form() -> None:
    """What conf/ and docs/suites.md repeat is printed from the classes; `make printed` does it."""
    for file, text in printed(CONF.parent):
        assert file.is_file(), f"{file} is not there: make printed"
        assert file.read_text(encoding="utf-8") == text, f"{file.name} differs from the classes: make printed"
        if file.parent.name in ("method", "scorer"):
            cls = REGISTRIES[file.parent.name].get(file.stem)
            assert read(file) == {"name": file.stem} | {k: plain(v) for k, v in defaults(cls.Config).items()}


def test_settings_of_nothing_registered_are_named(tmp_path: Path) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    for name in ("destein", "unfiled"):
        (tmp_path / "conf" / "method" / f"{name}.yaml").write_text(f"name: {name}\n")
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    (tmp_path / "docs" / "methods" / "gone.md").write_text("# gone")
    assert unregistered(tmp_path) == [Path("conf/method/unfiled.yaml"), Path("docs/methods/gone.md")]
    assert unregistered(CONF.parent) == []


@pytest.mark.parametrize("name", names("suite"))
def test_suite_file_holds_the_defaults_and_the_whole_protocol(name: str) -> None:
    given = read(CONF / "suite" / f"{name}.yaml")
    assert given["suite"].pop("name") == name
    assert given["suite"] == defaults(suites.get(name).Config)
    how = set(read(CONF / "gen" / "protocol.yaml"))
    assert set(given["gen"]) == set(defaults(GenSpec)) - how


def test_root_files_hold_the_defaults() -> None:
    root = read(CONF / "config.yaml")
    scalars = {key: root[key] for key in ("seed", "runs_dir", "with_base")}
    assert scalars == {key: defaults(RunSpec)[key] for key in scalars}
    assert root["fit"] == defaults(fit_spec())
    assert read(CONF / "tracker" / "none.yaml") == defaults(TrackerSpec)
    assert read(CONF / "engine" / "transformers.yaml") == defaults(EngineSpec)
    assert set(read(CONF / "model" / "hf.yaml")) == set(defaults(ModelSpec))
    protocol = read(CONF / "gen" / "protocol.yaml")
    assert protocol == {key: defaults(GenSpec)[key] for key in protocol}


@pytest.mark.parametrize(
    "group", ["suite", "scorer", "gen", "tracker", "engine", pytest.param("method", marks=pytest.mark.slow)]
)
def test_every_choice_composes(group: str) -> None:
    for name in names(group):
        spec = composition.compose_run([f"{group}={name}"])
        assert getattr(spec, f"{group}_name", name) == name


def test_every_model_file_is_a_typed_model_and_no_more() -> None:
    """Each by itself, as composing thirty takes seconds; one is composed."""
    built = {}
    for name in set(names("model")) - {"hf"}:
        own = read(CONF / "model" / f"{name}.yaml")
        assert own.pop("defaults", ["hf", "_self_"]) == ["hf", "_self_"]
        given = read(CONF / "model" / "hf.yaml") | {"path": "somewhere"} | own
        built[name] = build(ModelSpec, given, "model")
    assert composition.compose_run(["model=gpt2"]).model == built["gpt2"]


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes(name: str) -> None:
    assert composition.cells([f"experiment={name}"])


def test_no_file_names_code() -> None:
    files = list(CONF.rglob("*.yaml"))
    assert len(files) > 20
    assert not [file for file in files if "_target_" in file.read_text()]


@pytest.mark.parametrize("file", sorted(CONF.glob("tuned/method/*.yaml")), ids=lambda file: file.stem)
def test_a_tuned_file_says_for_which_model_and_what_was_published(file: Path) -> None:
    model, name = next((m, file.stem[len(m) + 1 :]) for m in names("model") if file.stem.startswith(f"{m}_"))
    lines = file.read_text().splitlines()
    assert lines[1].startswith(f"# for model={model} only: ")
    published = defaults(methods.get(name).Config)
    for key, value in read(file)["method"].items():
        assert value != published[key], f"{key} is the published value anyway"
        if isinstance(value, int | float):  # prompts would not fit beside themselves
            (line,) = [line for line in lines if line.strip().startswith(f"{key}:")]
            said = re.split("# (?:published|default): ", line)[1]  # a default of ours is not called published
            assert (None if said == "null" else float(said)) == published[key]


# ---------------------------------------------------------------------------------------------- precedence


def test_published_defaults_hold_elsewhere_and_tuned_ones_on_fable() -> None:
    tuned = read(CONF / "tuned" / "method" / "fable_ext_sub.yaml")["method"]["learning_rate"]
    assert composition.compose_run([*PUBLISHED, "method=ext_sub"]).method == methods.get("ext_sub").Config()
    assert composition.compose_run(["model=fable", "method=ext_sub"]).method.learning_rate == tuned
    given = ["method=ext_sub", "method.learning_rate=0.1"]
    assert composition.compose_run(given).method.learning_rate == 0.1


def test_suites_bring_their_generation_protocol() -> None:
    safeedit, rtp, utility = (
        composition.compose_run([*PUBLISHED, f"suite={suite}"]).gen
        for suite in ("safeedit", "real_toxicity_prompts", "utility")
    )
    assert (safeedit.do_sample, safeedit.max_new_tokens, safeedit.n) == (False, 600, 1)
    assert (rtp.do_sample, rtp.max_new_tokens, rtp.n, rtp.top_p, rtp.top_k, rtp.temperature) == (
        True,
        20,
        25,
        0.9,
        0,
        1,
    )
    assert (utility.do_sample, utility.max_new_tokens, utility.n) == (False, 32, 1)


def test_gen_overrides_the_protocol_and_the_command_line_overrides_all() -> None:
    rtp = "suite=real_toxicity_prompts"
    assert composition.compose_run([rtp]).gen.n == 4  # fable's
    assert composition.compose_run([rtp, "gen=greedy"]).gen.n == 1
    assert composition.compose_run([rtp, "gen=greedy", "gen.n=2"]).gen.n == 2


def test_experiments_only_override() -> None:
    (_, spec), *others = composition.cells(["experiment=ablation/destein_alpha", "seed=3"])
    assert spec.method_name == "destein"
    assert spec.seed == 3
    assert [cell.method.alpha for _, cell in others] == [0.1, 0.2, 0.3, 0.4]


def test_null_may_be_written_as_python_writes_it() -> None:
    assert composition.compose_run(["suite.limit=None", "fit.limit=None"]).suite.limit is None
    with pytest.raises(UsageError, match="wrong value for 'seed'"):
        composition.compose_run(["seed=None"])


@pytest.mark.parametrize("group", ["model", "method", "suite", "scorer", "gen", "fit", "tracker", "engine"])
def test_a_setting_that_no_file_repeats_can_be_set(group: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As third parties' files leave out what is at its default."""
    setting = {
        "model": "revision=main", "method": "alpha=0.3", "suite": "limit=3", "scorer": "path=folder",
        "gen": "top_k=5", "fit": "limit=3", "tracker": "project=mine",
        "engine": "max_loras=4",
    }[group]  # fmt: skip
    shutil.copytree(composition.conf_dir(), tmp_path / "conf")
    key = setting.partition("=")[0]
    for file in [tmp_path / "conf" / "config.yaml", *(tmp_path / "conf").glob("[mstge]*/*.yaml")]:
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if not line.strip().startswith(f"{key}:")))
    monkeypatch.setattr(composition, "conf_dir", lambda: tmp_path / "conf")
    given = ["method=destein", "scorer=hf_classifier", "suite.data=prompts.jsonl", f"{group}.{setting}"]
    assert str(getattr(getattr(composition.compose_run(given), group), key)) == setting.partition("=")[2]
    fixed, several = composition.swept([*given[:-1], f"{given[-1]},x"])
    assert (fixed, list(several)) == (given[:-1], [f"{group}.{key}"])


@pytest.mark.parametrize("way", ["initialize", "main", "multirun"])
def test_runs_can_be_composed_inside_a_users_own_hydra(way: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    program = {
        "initialize": """
            import hydra
            with hydra.initialize(version_base="1.2", config_path="."):
                before = hydra.compose("config")
                check()
                assert hydra.compose("config") == before == {"mine": 1}
        """,
        "main": """
            import hydra
            @hydra.main(version_base=None, config_path=".", config_name="config")
            def main(cfg):
                check()
                assert hydra.core.hydra_config.HydraConfig.get().job.name == "program"
                assert hydra.compose("config") == cfg == {"mine": 1}
            main()
        """,
        "multirun": """
            import hydra
            @hydra.main(version_base=None, config_path=".", config_name="config")
            def main(cfg):
                assert hydra.core.hydra_config.HydraConfig.get().job.name == "program", "as in the job before"
                check()
            main()
        """,
    }[way]
    check = """
        from detoxbench.runner import composition
        from detoxbench.errors import UsageError
        def check():
            assert composition.compose_run(["method=destein"]).method_name == "destein"
            assert len(composition.cells(["seed=0,1"], multirun=True)) == 2
            try:
                composition.compose_run(["method=destien"])
            except UsageError as error:
                assert "did you mean 'destein'" in str(error)
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(check) + textwrap.dedent(program))
    several = ["-m", "mine=1,2"] if way == "multirun" else []
    done = subprocess.run(
        [sys.executable, "program.py", *several], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "value", ["a=b", "~/prompts.json", "a(b", "a#b", "prüfung.json", "a!b", "a{b", 'say "hi" to=me']
)
def test_a_value_that_needs_quotes_is_answered_with_the_quotes(value: str) -> None:
    with pytest.raises(UsageError, match="quote the value twice") as raised:
        composition.compose_run([f"runs_dir={value}"])
    (written,) = shlex.split(str(raised.value).partition("for Hydra: ")[2])
    assert composition.compose_run([written]).runs_dir == value


# ---------------------------------------------------------------------------------------------- multirun


def test_choices_and_ranges_are_multiplied_out() -> None:
    cells = [
        cell
        for cell, _ in composition.cells(["method=none,destein", "seed=range(0,3)", "suite=utility"], multirun=True)
    ]
    assert len(cells) == 6
    assert cells[0] == ["method=none", "seed=0", "suite=utility"]
    assert cells[-1] == ["method=destein", "seed=2", "suite=utility"]


@pytest.mark.parametrize("name", names("launcher"))
def test_every_launcher_composes_or_names_what_to_install(name: str) -> None:
    """Which one it is, is no part of a run."""
    alone = compose_run(["seed=1"])
    try:
        found = cells([f"launcher={name}", "seed=1"])
    except UsageError as error:
        if "needs a package that is not installed: pip install 'detoxbench[" not in str(error):
            raise
        pytest.skip(str(error))
    assert [spec for _, spec in found] == [alone]


@pytest.mark.parametrize(
    ("launcher", "key", "extra"),
    [("joblib", "joblib", "joblib"), ("slurm", "submitit_slurm", "submitit"), ("ray", "ray", "ray")],
)
def test_a_launcher_that_is_not_installed_names_what_to_install(
    launcher: str, key: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra.core.config_store import ConfigStore

    compose_run([])  # Hydra has looked for its plugins
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{key}.yaml", raising=False)
    with pytest.raises(UsageError) as error:
        cells([f"launcher={launcher}"])
    assert str(error.value) == (
        f"the launcher '{key}' needs a package that is not installed: pip install 'detoxbench[{extra}]'"
    )


def test_a_launcher_in_a_group_with_several_values_is_refused(tmp_path: Path) -> None:
    """Hydra would pass over it, and run the cells here one after the other."""
    (tmp_path / "experiment").mkdir()
    for name in ("here", "there"):
        launcher = (
            "hydra:\n  launcher:\n    _target_: hydra_plugins.somewhere.Launcher\n" if name == "there" else "seed: 7\n"
        )
        (tmp_path / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{launcher}")
    place = f"hydra.searchpath=['file://{tmp_path}']"
    with pytest.raises(UsageError, match="where Hydra does not read it: give it by itself") as error:
        cells([place, "experiment=here,there"], multirun=True)
    assert "\n" not in str(error.value)
    assert len(cells([place, "experiment=there", "seed=1,2"], multirun=True)) == 2, "by itself it is read"


def test_jobs_are_started_by_what_is_said_of_hydra_and_the_launcher_alone() -> None:
    said = ["hydra.verbose=true", "+hydra.job_logging.x=1", "launcher=basic", "runs_dir=here"]
    given = ["method=destein,none", "seed=1", "++gen.n=2", *said]
    assert composition.of_jobs(given, 3) == [*said, "hydra.mode=MULTIRUN", "hydra.sweeper.params=null", "+job=range(3)"]


def test_one_wrong_cell_refuses_all() -> None:
    with pytest.raises(UsageError, match=r"unknown key 'method.alpha' of method 'none'"):
        composition.cells(["method=destein,none", "method.alpha=0.3"], multirun=True)


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["method=destien"],
            "unknown method 'destien' (did you mean 'destein'?); known: ",
        ),
        (["suite=safedit"], "unknown suite 'safedit' (did you mean 'safeedit'?)"),
        (["scorer=embeded"], "unknown scorer 'embeded' (did you mean 'embedded'?)"),
        (["model=gpt3"], "unknown model 'gpt3' (did you mean 'gpt2'?)"),
        (["model=gpt3"], "any other name or folder: model=hf model.path=gpt3"),
        (["gen=gredy"], "unknown gen 'gredy' (did you mean 'greedy'?)"),
        (["tracker=wandbb"], "unknown tracker 'wandbb' (did you mean 'wandb'?)"),
        (["experiment=destein_slef"], "unknown experiment 'destein_slef' (did you mean 'destein_self'?)"),
        (["experiment=destein_alpha"], "'destein_alpha' (did you mean 'ablation/destein_alpha'?)"),
        (["experiment=ablation/destein"], "did you mean 'ablation/destein_"),
        (["method=destein", "method.alhpa=1"], "'method.alhpa' of method 'destein' (did you mean 'method.alpha'?)"),
        (["method=destein", "+method.alhpa=1"], "'method.alhpa' of method 'destein' (did you mean 'method.alpha'?)"),
        (["method=destein", "++method.alhpa=1"], "'method.alhpa' of method 'destein' (did you mean 'method.alpha'?)"),
        (["+gen.topp=1"], "unknown key 'gen.topp' (did you mean 'gen.top_p'?)"),
        (["+model.pth=x"], "unknown key 'model.pth' (did you mean 'model.path'?)"),
        (["+fit.limits=3"], "unknown key 'fit.limits' (did you mean 'fit.limit'?)"),
        (["+suite.dta=x"], "unknown key 'suite.dta' of suite 'safeedit' (did you mean 'suite.data'?)"),
        (["+tracker.mod=online"], "unknown key 'tracker.mod' (did you mean 'tracker.mode'?)"),
        (["+sede=1"], "unknown key 'sede' (did you mean 'seed'?)"),
        (["+method_name=destein"], "unknown key 'method_name' (did you mean 'method'?)"),
        (["methdo=destein"], "unknown key 'methdo' (did you mean 'method'?)"),
        (["methdo.alpha=1"], "unknown key 'methdo.alpha' (did you mean 'method'?)"),
        (["methdo/x=destein"], "unknown key 'methdo/x' (did you mean 'method'?)"),
        (["hydra.swep.dir=x"], "unknown key 'hydra.swep.dir' (did you mean 'hydra.sweep"),
        (["~sede"], "unknown key 'sede' (did you mean 'seed'?)"),
        (["+seed=1"], "the key 'seed' is there already: override it without the +"),
        (["method=destein", "method.alpha=high"], "wrong value for 'method.alpha': Expected float, got str"),
        (["method=destein", "method.pairs=2.5"], "wrong value for 'method.pairs': Expected int, got float"),
        (["method=destein", "method.alpha=null"], "wrong value for 'method.alpha'"),
        (["method=destein", "method.fusion=cube"], "wrong value for 'method.fusion'"),
        (["with_base=3"], "wrong value for 'with_base': Expected bool"),
        (["seed=abc"], "wrong value for 'seed': Expected int"),
        (["seed=-1"], "'seed' is out of range: -1 must be >= 0"),
        (["gen.top_p=0"], "'gen.top_p' is out of range: 0 must be > 0"),
        (["gen.top_p=1.5"], "'gen.top_p' is out of range: 1.5 must be <= 1"),
        (["gen.temperature=0"], "'gen.temperature' is out of range"),
        (["fit.limit=0"], "'fit.limit' is out of range: 0 must be >= 1"),
        (["model=hf"], "'model.path' must be given"),
        (["suite.data=???"], "'suite.data' must be given: 'embedded' or a SafeEdit file"),
        (["method.alpha"], "cannot read the override 'method.alpha': write key=value"),
        (["seed={1"], "cannot read the override 'seed={1'"),
        (["=3"], ""),
        (["method=none,destein"], "'method=none,destein' names several values: add -m to run them all"),
        (["seed=range(0,3)"], "'seed=range(0,3)' names several values: add -m"),
        (["runs_dir=${nowhere}"], "'nowhere' not found"),
        (["~method.name", "method=destein"], "'method.name' must be given"),
        (["~fit"], "'fit' must be a group of keys"),
        (["++method=3"], "force-add of config groups is not supported: '++method=3'"),
        (["method=destein", "+method._target_=os.system"], "'method._target_' is refused"),
        (["+a.b=[{_target_:os.system}]"], "'a.b.0._target_' is refused"),
        (
            ["suite.data=prompts.json"],
            "scorer 'embedded' knows the embedded world only, and suite.data is 'prompts.json'",
        ),
        (["suite.data=prompts.json"], "scorer=profanity_check"),
    ],
)
def test_a_wrong_override_is_explained_in_one_line(overrides: list[str], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        composition.compose_run(overrides)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_line_breaks_are_typed_in_text_settings_alone() -> None:
    typed = 'suite.template="Q: {question}\\nA:"'
    assert compose_run(["suite=utility", typed]).suite.template == "Q: {question}\nA:"
    assert compose_run(["suite=utility", 'suite.template="Q: {question}\nA:"']).suite.template == "Q: {question}\nA:"
    for _, spec in cells(["suite=utility", typed, "seed=1,2"], multirun=True):
        assert spec.suite.template == "Q: {question}\nA:"
    assert compose_run(["suite=utility", r"suite.template='{question}\\nA'"]).suite.template == r"{question}\nA"
    assert compose_run(["method=self_reminder", r"method.prefix='a\tb'"]).method.prefix == "a\tb"
    assert compose_run(["suite.data='C:\\new\\table.jsonl'", "scorer=word_list"]).suite.data == "C:\\new\\table.jsonl"
    assert compose_run(["scorer=judge", "scorer.path=x", r"scorer.unsafe='\\n\bbad'"]).scorer.unsafe == r"\\n\bbad"


def test_settings_that_are_texts_are_marked() -> None:
    """Whatever is named as words that a model reads, with the modules' own configurations."""
    configs = [registry.get(name).Config for registry in (methods, suites, scorers) for name in registry.names()]
    configs += [GenerationConfig]
    for config in configs:
        for field in dataclasses.fields(config):
            words = re.search("template|prompt|prefix|suffix|frame|before|after", field.name)
            if words and isinstance(field.default, str) and get_origin(get_type_hints(config)[field.name]) is None:
                assert field.metadata["text"], f"{config.__module__}.{field.name}"
            if isinstance(field.default, str) and "\n" in field.default:
                assert field.metadata["text"], f"{config.__module__}.{field.name}"


def test_template_variables_are_set_without_a_plus() -> None:
    assert compose_run(["model.template_args={enable_thinking: false}"]).model.template_args == {
        "enable_thinking": False
    }
    with pytest.raises(UsageError, match="template_date is a date"):
        compose_run(["model.template_date=tomorrow"])
    with pytest.raises(UsageError, match="thinking is auto, none, or two marks"):
        compose_run(["model.thinking=on"])


def test_a_file_is_judged_by_a_scorer_that_knows_real_text() -> None:
    spec = composition.compose_run(["suite.data=prompts.json", "scorer=profanity_check"])
    assert (spec.suite.data, spec.scorer_name) == ("prompts.json", "profanity_check")


def test_a_registered_method_without_a_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods.registry, "names", lambda: ["unfiled"])
    with pytest.raises(UsageError, match=r"'unfiled' is registered, but no conf folder has method/unfiled.yaml"):
        composition.compose_run(["method=unfiled"])


def test_yaml_of_the_root_is_commented_line_by_line() -> None:
    """The defaults list is what newcomers read first."""
    lines = (CONF / "config.yaml").read_text().splitlines()
    start = lines.index("defaults:") + 1
    entries = [line for line in lines[start : lines.index("")] if line.startswith("  - ") and "override" not in line]
    assert len(entries) == len(yaml.safe_load("\n".join(entries)))
    assert all("_self_" in line or "#" in line for line in entries)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.alpha=0.1,0.2", "^'method.alpha=0.1,0.2' names several values"),
        ("hydra.sweeper.params={seed:1}", "'hydra.sweeper.params' is null and takes no group of keys"),
        ("scorer=null", r"a group takes the name of one of its choices.*scorer=null"),
    ],
)
def test_what_hydra_refuses_is_answered_in_its_users_words(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        composition.compose_run(["method=destein", override])
