"""A configuration names no code and reads no environment: typed, in a stranger's experiment, on every path."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from detoxbench import cli
from detoxbench.errors import UsageError
from detoxbench.runner import composition
from detoxbench.runner.values_only import require_values

CODE = "configurations hold values and never name code"


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A folder of configurations with an empty experiment, of somebody else."""
    (tmp_path / "experiment").mkdir()
    return tmp_path


def experiment(folder: Path, text: str) -> list[str]:
    (folder / "experiment" / "theirs.yaml").write_text(f"# @package _global_\n{text}\n")
    return [f"hydra.searchpath=['file://{folder}']", "experiment=theirs"]


REFUSED = [
    ("hydra: {callbacks: {x: {_target_: os.mkdir, path: PLACE}}}", f"'hydra.callbacks.x._target_' is refused: {CODE}"),
    ("hydra: {launcher: {_target_: subprocess.Popen}}", "'hydra.launcher._target_' is refused"),
    ("hydra: {launcher: {_target_: '${runs_dir}'}}", "'hydra.launcher._target_' is refused"),
    ("hydra: {sweeper: {_target_: os.mkdir}}", "'hydra.sweeper._target_' is refused"),
    ("hydra: {sweeper: {params: {seed: {_target_: os.mkdir}}}}", "'hydra.sweeper.params.seed._target_' is refused"),
    ("hydra: {job_logging: {handlers: {x: {class: os.mkdir}}}}", "'hydra.job_logging.handlers.x.class' is refused"),
    ("hydra: {job_logging: {formatters: {x: {(): os.mkdir}}}}", "'hydra.job_logging.formatters.x.()' is refused"),
    ("hydra: {hydra_logging: {filters: {x: {a: 'ext://os.environ'}}}}", "'hydra.hydra_logging.filters.x.a' is refused"),
    ("hydra: {job: {env_set: {LD_PRELOAD: x.so}}}", "'hydra.job.env_set.LD_PRELOAD' is refused: set variables"),
    ("hydra: {job: {env_copy: [PATH]}}", "'hydra.job.env_set.PATH' is refused: set variables"),
    ("hydra: {job: {env_copy: [NOT_THERE]}}", "hydra.job.env_copy asks for 'NOT_THERE' of the environment"),
    ("hydra: {run: {dir: 'a/${oc.env:HOME}'}}", "'hydra.run.dir' is refused: ${oc.env:...} reads what is no setting"),
    ("runs_dir: 'a/${oc.env:HOME}/b'", "'runs_dir' is refused: ${oc.env:...} reads what is no setting"),
    ("method: {text: '${oc.${gen.x}:HOME}'}", "is refused: ${oc.${gen.x}:...} reads"),
    ("method: {text: 'a ${oc.create:{a: 1}} b'}", "'method.text' is refused: ${oc.create:...}"),
    ("runs_dir: '${hydra:runtime.cwd}'", "'runs_dir' is refused: ${hydra:...}"),
    ("method: {parts: [{_target_: os.mkdir}]}", "'method.parts.0._target_' is refused"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_a_strangers_experiment_runs_no_code_and_reads_no_environment(stranger: Path, text: str, said: str) -> None:
    place = stranger / "made"
    overrides = experiment(stranger, text.replace("PLACE", str(place)))
    with pytest.raises(UsageError) as error:
        composition.load(overrides)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not place.exists()


def test_cells_and_searches_are_looked_through_too(stranger: Path) -> None:
    text, said = REFUSED[0]
    overrides = experiment(stranger, text)
    for ask in (
        lambda: composition.cells(overrides, multirun=True),
        lambda: composition.swept([*overrides, "seed=1,2"]),
        lambda: composition.cells([*overrides[:1], "experiment=theirs,null"], multirun=True),
    ):
        with pytest.raises(UsageError) as error:
            ask()
        assert said in str(error.value)


@pytest.mark.parametrize("command", ["run -m", "plan", "tune --objective=DS", "run --cfg=job"])
def test_no_verb_runs_code_of_a_configuration(stranger: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    place, (verb, *flags) = stranger / "made", command.split()
    typed = ["+hydra.callbacks.x._target_=os.mkdir", f"+hydra.callbacks.x.path={place}", f"runs_dir={stranger}/runs"]
    several = ["seed=1,2"] if verb == "tune" or "-m" in flags else []
    assert cli.main([verb, *flags, *typed, *several]) == 2
    said = capsys.readouterr().err
    assert f"'hydra.callbacks.x._target_' is refused: {CODE}" in said
    assert said.count("\n") == 1
    assert not place.exists()
    assert not (stranger / "runs").exists()


def test_another_configuration_than_our_own_is_refused(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stranger / "mine.yaml").write_text(f"hydra: {{callbacks: {{x: {{_target_: os.mkdir, path: {stranger}/made}}}}}}\n")
    for flag in (f"--config-path={stranger}", "--config-name=mine"):
        assert cli.main(["run", flag]) == 2
        assert "the configuration is detoxbench's own: add to it with --config-dir DIR" in capsys.readouterr().err
    assert not (stranger / "made").exists()


def test_settings_are_copied_and_commands_for_a_launcher_are_typed(stranger: Path) -> None:
    overrides = experiment(stranger, "defaults: [{override /method: contrastive_perplexity}]\nmethod:\n  negatives: 7\n"
                                     "  positives: ${method.negatives}")  # fmt: skip
    assert composition.compose_run(overrides).method.positives == 7
    commands = OmegaConf.create({"hydra": {"launcher": {"setup": ["module load cuda"], "partition": "gpu"}}})
    require_values(commands, ["hydra.launcher.setup=[module load cuda]"])
    for other in ((), ("hydra.launcher.partition=gpu",)):
        with pytest.raises(
            UsageError, match=r"'hydra.launcher.setup.0' is refused in a file, since it can run commands"
        ):
            require_values(commands, other)
    literal = composition.compose_run(["method=self_reminder", r"method.prefix='costs \${a:5}'"])
    assert literal.method.prefix == "costs ${a:5}"


@pytest.mark.parametrize("text", ["method: [unclosed", "a: b: c", "method: {name: &x, text: *nowhere}", "\t- x"])
def test_what_is_no_yaml_is_told_in_one_line(stranger: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"a configuration file is no YAML: .*theirs\.yaml") as error:
        composition.compose_run(experiment(stranger, text))
    assert "\n" not in str(error.value)
