"""What a run would do, from files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from detoxbench.config import BASE, RunSpec
from detoxbench.errors import DetoxbenchError
from detoxbench.files.sealing import PARTIAL
from detoxbench.runner.cell import RunCell, checkpoint_folder, comparison_runs, prepare, state_of


class PlannedStage(NamedTuple):
    """What a run would do for one stage."""

    stage: Literal["base", "control", "model", "fit", "generate", "score"]
    key: str
    state: Literal["cached", "to do", "missing"]
    remark: str


@dataclass(frozen=True)
class Plan:
    """What a run would do; `run_id` is None while the model's files are not there to be identified."""

    run_id: str | None
    cells: list[PlannedStage]

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        return all(cell.state == "cached" for cell in self.cells)


def plan(spec: RunSpec) -> Plan:
    """What a run would do, from files alone: reads data, loads no weights, asks no network. Raises like `prepare`."""
    folder, missing = None, []
    try:
        folder = checkpoint_folder(spec, download=False)
    except DetoxbenchError as error:
        missing = [PlannedStage("model", spec.model.path, "missing", str(error))]
    cell = prepare(spec, folder)
    if folder is None:
        return Plan(None, missing)
    stages = _stages(cell)
    beside = []
    if spec.model.dtype != (own := cell.spec.model.dtype):
        remark = f"loaded in {own}, the checkpoint's own type (model.dtype={spec.model.dtype})"
        beside.append(PlannedStage("model", spec.model.path, "cached", remark))
    for other_spec in comparison_runs(spec):
        other = prepare(other_spec, folder)
        name: Literal["base", "control"] = "base" if other_spec.method_name == BASE else "control"
        remark = "the run of method=none to compare with" if name == "base" else f"a control of {spec.method_name}"
        beside.append(PlannedStage(name, other.folder.name, "cached" if other.finished else "to do", remark))
    return Plan(cell.folder.name, beside + stages)


def _stages(cell: RunCell) -> list[PlannedStage]:
    """The stages with their state, from the files that are there."""
    finished, names = cell.finished, cell.data_names()
    suite_data = names.pop("suite.data", "")
    learned = "; ".join(f"{key.removeprefix('fit.')}: {name}" for key, name in names.items())
    examples = f"{cell.method.examples(cell.data)} examples" + (f" ({learned})" if learned else "")
    stages = [
        _planned("fit", cell.fit_folder, examples, finished),
        _planned(
            "generate",
            cell.generation_folder,
            _generating(cell) + (f" of {suite_data}" if suite_data else ""),
            finished,
        ),
        _planned("score", cell.score_folder, _scoring(cell), finished),
    ]
    if cell.per_record:
        fits = f", a fit for each of {len(cell.records)} records"
        stages[1] = stages[1]._replace(remark=stages[1].remark + fits)
    return stages[1:] if cell.per_record or cell.method.name == BASE else stages


def _generating(cell: RunCell) -> str:
    """What is read and generated."""
    count, gen = len(cell.requests), cell.spec.gen
    to_read = sum(r.text is not None for r in cell.requests)
    if cell.suite.probe is not None:
        return f"{count} looks inside the model, without and with the method"
    work = [f"{to_read} texts to read"] if to_read else []
    if to_read < count:
        work.append(f"{count - to_read} prompts x {gen.n}, up to {gen.max_new_tokens} new tokens each")
    return ", ".join(work)


def _scoring(cell: RunCell) -> str:
    if not cell.suite.needs_scorer:
        return "no scorer is asked"
    texts = sum(1 if r.text is not None else cell.spec.gen.n for r in cell.requests)
    return f"{texts} texts by {', '.join(scorer.name for scorer in cell.scorers.values())}"


def _planned(stage: Literal["fit", "generate", "score"], folder: Path, remark: str, finished: bool) -> PlannedStage:
    done, why = (True, "") if finished else state_of(folder)
    why = why or ("begun" if not done and (folder / PARTIAL).is_file() else "")
    return PlannedStage(stage, folder.name, "cached" if done else "to do", remark + (f", {why}" if why else ""))
