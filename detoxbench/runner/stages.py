"""Runs: fit -> generate -> score -> aggregate, each stage kept under its content's key.

A killed run resumes after the last whole batch that was written, and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from detoxbench.config import BASE, SCHEMA_VERSION, EngineSpec, RunSpec
from detoxbench.data.contamination import contamination, fit_texts
from detoxbench.errors import UsageError
from detoxbench.files.lines import encode
from detoxbench.files.private_paths import impersonal, without_paths
from detoxbench.files.sealing import seal, whole_or_aside
from detoxbench.files.writing import link, make_runs_dir, write_atomic, write_folder
from detoxbench.records import Counts, Measure, Sample
from detoxbench.results.aggregation import Answers, aggregate, base_run_id
from detoxbench.results.costs import COSTS
from detoxbench.results.stats import attach
from detoxbench.results.store import Clusters, Run, RunRecord, is_run
from detoxbench.runner.cell import RunCell, checkpoint_folder, comparison_runs, prepare
from detoxbench.runner.estimate import Work, work
from detoxbench.runner.fits import FITS, Fit, fit_once
from detoxbench.runner.generations import Generation, generated
from detoxbench.runner.multirun import working
from detoxbench.runner.processes import several
from detoxbench.runner.provenance import now, provenance
from detoxbench.runner.scoring import SCORES, score

log = logging.getLogger("detoxbench")


@dataclass(frozen=True)
class RunResult:
    """A finished run; `cached` when it was there already. `base` is the base model's run that it is compared with."""

    folder: Path
    record: RunRecord
    cached: bool
    base: RunResult | None

    @property
    def run_id(self) -> str:
        """The digest of everything that can change a number."""
        return self.record.run_id


def run_overrides(overrides: Sequence[str]) -> RunResult:
    """`run` from Hydra overrides: `detoxbench.run(["model=fable", "method=destein"])`."""
    from detoxbench.runner.composition import compose_run

    return run(compose_run(overrides))


def run(spec: RunSpec) -> RunResult:
    """Do the stages of one run that are missing, and return it. Raises DetoxbenchError (or UsageError) in one line.

    Everything that can be checked without weights is checked first.
    """
    files = checkpoint_folder(spec, download=True)
    cell = prepare(spec, files)
    beside = [run(other_spec) for other_spec in comparison_runs(spec)]
    base = beside[0] if beside else None
    if cell.finished:  # before anything is written: the folder may be read-only
        return _already_there(cell, base)
    if several() and spec.engine.name != EngineSpec.name:
        raise UsageError(
            f"engine={spec.engine.name} works in one process, and several share this run: start it alone, or choose "
            f"engine={EngineSpec.name}"
        )
    make_runs_dir(Path(spec.runs_dir))
    with cell.locked(cell.folder) as held, working(cell):
        if whole_or_aside(cell.folder) and cell.finished:  # by another process, meanwhile
            return _already_there(cell, base)
        with _logged() as lines:
            if not cell.per_record:
                fit_once(cell)
            samples, generation = generated(cell)
            scoring_began = None if cell.score_folder.exists() else time.perf_counter()
            scores, failed = score(cell, samples)
            fit = generation.fit or fit_once(cell)
            done = _Done(cell, fit, generation, Answers(samples, scores), failed, scoring_began, work(cell, files))
            held()
            record = _finish(done, base.folder if base else None, lines)
    return _reported(RunResult(cell.folder, record, False, base), spec)


def _already_there(cell: RunCell, base: RunResult | None) -> RunResult:
    return _reported(RunResult(cell.folder, Run(cell.folder).record(), True, base), cell.spec)


def _reported(result: RunResult, spec: RunSpec) -> RunResult:
    """The result, after its run was handed to the tracker. A run that was there already is handed over, too; the
    tracker leaves out what it has reported before."""
    if spec.tracker.name != "none":
        from detoxbench.tracking import report_run

        runs_dir, alone = Path(spec.runs_dir), not spec.with_base
        report_run(Run(result.folder), result.record, spec.tracker, runs_dir, alone=alone)
    return result


class _Done(NamedTuple):
    """A run whose stages are all there."""

    cell: RunCell
    fit: Fit
    generation: Generation
    answers: Answers
    failed_scores: int
    scoring_began: float | None
    """By time.perf_counter(); None where scoring went on with what a stopped one had left."""
    work: Work


def _finish(done: _Done, base_folder: Path | None, lines: Sequence[str]) -> RunRecord:
    """Aggregate, and write the run folder as a whole."""
    cell = done.cell
    base_id = base_run_id(cell.identity)
    # With with_base=false, too, the base's run may be there.
    base = Run(base_folder or cell.folder.with_name(base_id))
    compared = cell.method.name != BASE and is_run(base.folder)
    if cell.method.name == BASE:
        base_answers: Answers | None = done.answers
    else:
        base_answers = Answers(base.samples(), base.scores()) if compared else None
    measures, counts = aggregate(cell.suite, cell.scorers["main"].primary, done.answers, base_answers)
    record = _record(done, measures, counts, base_id if compared else None)

    def fill(folder: Path) -> None:
        _link_stages(cell, folder)
        write_atomic(folder / "clusters.json", encode(Clusters.of(measures)))
        shown = "".join(f"{without_paths(line, impersonal)}\n" for line in lines)
        write_atomic(folder / "log.txt", shown.encode())
        write_atomic(folder / "run.json", msgspec.json.format(encode(record), indent=1))
        seal(folder)

    write_folder(cell.folder, fill)
    shutil.rmtree(cell.score_folder)  # its key is the run's own: no other run uses it
    return record


def _link_stages(cell: RunCell, folder: Path) -> None:
    """Link the files of the stages into the run's folder, under the names that they have there."""
    link(cell.generation_folder / "samples.jsonl", folder / "samples.jsonl")
    link(cell.score_folder / SCORES, folder / SCORES)
    if cell.per_record:
        link(cell.generation_folder / FITS, folder / FITS)
    elif cell.method.name != BASE:
        for file in sorted((cell.fit_folder / "intervention").iterdir()):
            link(file, folder / "intervention" / file.name)


def _record(done: _Done, measures: Sequence[Measure], counts: Counts, base_run_id: str | None) -> RunRecord:
    import torch

    cell, fit, generation = done.cell, done.fit, done.generation
    spec, failed = cell.spec, done.failed_scores
    scored = None if done.scoring_began is None else time.perf_counter() - done.scoring_began  # and aggregated
    measured_in = {"fit": fit, "generation": generation}
    return RunRecord(
        schema=SCHEMA_VERSION,
        run_id=cell.keys.run,
        created=now(),
        model=without_paths(spec.model.name or spec.model.path, impersonal),
        method=cell.method.name,
        suite=cell.suite.name,
        scorer=cell.scorers["main"].name,
        seed=spec.seed,
        identity=dict(cell.identity),
        spec=without_paths(dataclasses.asdict(spec), impersonal),
        metrics=attach(measures),
        counts=_counts(cell, done.answers.samples, counts, generation) | ({"failed_scores": failed} if failed else {}),
        # What texts cost that were written elsewhere is not known here, and not 0.
        cost={k: None if cell.texts is not None else _measured(measured_in, c.measured) for k, c in COSTS.items()},
        diagnostics=without_paths(fit.info, impersonal),
        fit=fit.digest,
        data=cell.data_names(),
        fidelity=cell.method.fidelity or None,
        base_run_id=base_run_id,
        provenance={
            **without_paths(provenance(torch.device(generation.device)), impersonal),
            **generation.arithmetic,
            "seconds": {"generate": generation.seconds, "score": scored},
            "work": done.work._asdict(),
        },
    )


def _measured(stages: Mapping[str, Any], place: str) -> float | None:
    """A cost that is measured at STAGE.FIELD."""
    stage, _, field = place.partition(".")
    value: float | None = getattr(stages[stage], field)
    return value


def _counts(cell: RunCell, samples: Sequence[Sample], sample_counts: Counts, generation: Generation) -> Counts:
    """All counts of a run. `sample_counts` are those of samples and scores alone."""
    read = contamination(
        fit_texts(cell.data.by_role.values()),
        (r.prompt if r.text is None else r.text for r in cell.requests),
        fit_files=_files(getattr(cell.spec.fit, role) for role in cell.method.needs),
        suite_files=_files(dataclasses.astuple(cell.spec.suite)),
    )
    # What an adapter or a model in the method's settings was trained on is not known here.
    unknown = bool(cell.method.fingerprints()) and not read.shared
    written_here = cell.texts is None
    drawn = any(sample.answer for sample in samples) and cell.spec.gen.tie_tolerance > 0 and written_here
    return {
        "requests": len(cell.requests),
        **sample_counts,
        "contested_tokens": generation.contested if drawn else None,
        "cut_prompts": generation.cut_prompts if written_here else None,
        "prompts_in_fit_data": None if unknown else read.shared,
    }


def _files(settings: Iterable[Any]) -> list[str]:
    return [value for value in settings if isinstance(value, str) and os.path.isfile(os.path.expanduser(value))]


@contextmanager
def _logged() -> Iterator[list[str]]:
    """The lines logged while a run is worked on (its log.txt)."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(record.created))} {record.getMessage()}")

    handler, level = Keep(), log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
