"""What is shipped for Weights & Biases beside the tracker: the sweep's file and the dashboard's script."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from detoxbench.config import RunSpec, TrackerSpec
from detoxbench.runner import composition
from detoxbench.tracking.report import report_of
from tests.support.fake_wandb import serving
from tests.tracking.test_tracking import make_run

EXAMPLES = Path(__file__).parents[2] / "examples"
SWEEPS = sorted(EXAMPLES.glob("*sweep*.yaml"))


def agent_commands(sweep: dict[str, Any]) -> list[list[str]]:
    """The command line of every run of a grid, by the code that `wandb agent` itself uses."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    choices = {name: given.get("values", [given.get("value")]) for name, given in sweep["parameters"].items()}
    commands = []
    for values in itertools.product(*choices.values()):
        args = {name: {"value": value} for name, value in zip(choices, values, strict=True)}
        filled = create_sweep_command_args({"args": args})
        filled["env"] = ["/usr/bin/env"]
        command: list[str] = []
        for part in create_sweep_command(sweep["command"]):
            command += filled[part[2:-1]] if part.startswith("${") else [part]
        commands.append(command)
    return commands


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_commands_of_a_sweep_are_runs_of_ours(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    commands = agent_commands(sweep)
    assert len(commands) == len({tuple(command) for command in commands}) == 15
    specs: list[RunSpec] = []
    for env, program, verb, *overrides in commands[::7]:
        assert (env, program, verb) == ("/usr/bin/env", sweep["program"], "run")
        assert not [override for override in overrides if override.startswith("-") or "${" in override]
        specs.append(composition.compose_run(overrides))
    assert {(spec.tracker.name, spec.tracker.mode, spec.with_base) for spec in specs} == {("wandb", "online", False)}
    assert {spec.tracker.project for spec in specs} == {sweep["project"]}
    assert len({(spec.method.alpha, spec.seed) for spec in specs}) == len(specs), "every agent's run is another cell"


def test_the_sweeps_objective_is_a_metric_of_its_suite(tmp_path: Path) -> None:
    """SafeEdit's DS, which a run is told with."""
    sweep = yaml.safe_load(SWEEPS[0].read_text())
    assert sweep["parameters"]["suite"]["value"] == "safeedit"
    assert sweep["metric"]["name"] in make_run(tmp_path, n=5).record().metrics


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("wandb_workspaces", reason="needs the extra: pip install detoxbench[workspaces]")
    spec = importlib.util.spec_from_file_location("wandb_workspace", EXAMPLES / "wandb_workspace.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_workspace_shows_metrics_with_intervals_fits_and_tables_of_one_group(
    script: ModuleType, tmp_path: Path
) -> None:
    for method, seed, p in (("none", 0, 0.9), ("destein", 0, 0.9), ("destein", 1, 0.9), ("none", 0, 0.5)):
        make_run(tmp_path, method, seed=seed, top_p=p, n=5)
    made = script.workspaces(tmp_path, "us", "detoxbench")
    assert len(made) == 2
    full = max(made, key=lambda w: len(w.sections[2].panels))
    bars, scatter, fits, tables = full.sections
    assert [panel.chart_strings["metric"] for panel in bars.panels] == ["DS", "EMT@4"]
    assert bars.panels[0].query["summaryTable"] == {"tableKey": "intervals"}
    assert not scatter.panels, "this suite has no fluency"
    assert [panel.y for panel in fits.panels] == [["fit/layers/step"], ["fit/losses"]]
    assert [panel.table_name for panel in tables.panels] == ["samples", "records"]
    view = full._to_model().model_dump_json(by_alias=True)
    assert full.name.removeprefix("detoxbench ") in view.partition("filters")[2], "it shows this group only"
    columns = report_of(make_run(tmp_path / "x", n=5), TrackerSpec()).tables["intervals"].columns
    assert set(bars.panels[0].chart_fields.values()) <= set(columns)


def test_toxicity_is_drawn_against_fluency_where_a_suite_has_both(script: ModuleType) -> None:
    class Reported:
        curves: dict[str, list[float]] = {}  # noqa: RUF012
        config = {"metrics": {name: {"headline": True} for name in ("TP@25", "EMT@25", "perplexity")}}  # noqa: RUF012

    made = script.workspace("us", "detoxbench", "group", [Reported])
    (plot,) = made.sections[1].panels
    assert (plot.x.name, plot.y.name) == ("perplexity", "EMT@25")


def test_the_script_saves_its_chart_and_workspaces(script: ModuleType, tmp_path: Path) -> None:
    make_run(tmp_path, n=5)
    root = str(EXAMPLES.parent)
    with serving() as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "PYTHONPATH": root}
        command = [sys.executable, str(EXAMPLES / "wandb_workspace.py"), str(tmp_path), "--entity", "us"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "/us/detoxbench?nw=" in done.stdout
    assert list(server.charts) == [script.CHART]
    (name,) = server.views
    assert name.startswith("detoxbench tiny/safeedit/embedded/")
    assert f"us/{script.CHART}" in str(server.views[name])
