"""Runs: fit -> generate -> score -> aggregate, each stage kept under its content's key.

A run that was killed goes on where its last whole batch was written, and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import shutil
import statistics
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from detoxbench.config import BASE, SCHEMA_VERSION, GenSpec, RunSpec, digest
from detoxbench.data.contamination import contamination, fit_texts
from detoxbench.errors import DetoxbenchError
from detoxbench.files.lines import appending, chained_lines, encode, encode_lines, read_lines
from detoxbench.files.sealing import PARTIAL, seal, whole_or_aside
from detoxbench.files.writing import link, make_runs_dir, write_atomic, write_folder
from detoxbench.interventions.channels import weights
from detoxbench.model.finite import require_finite_values
from detoxbench.progress import bar
from detoxbench.records import BaseReading, Counts, Request, Sample, Scored
from detoxbench.results import broken_text
from detoxbench.results.aggregation import Answers, aggregate, base_run_id
from detoxbench.results.store import Clusters, Run, RunRecord, is_run
from detoxbench.runner.plan import Cell, checkpoint_folder, companions, plan
from detoxbench.scorers.asking import Asking, Score
from detoxbench.scorers.cache import remembering
from detoxbench.suites.base import Observer

if TYPE_CHECKING:
    from detoxbench.engine.generation import Generated
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

__all__ = ["RunResult", "plan", "run", "run_overrides"]

FITS = "fits.jsonl"
"""What each fit recorded, where every record has its own."""
READINGS = "readings.partial.jsonl"
"""What the base finds of the samples, until they are written with it."""
SCORE_CHUNK = 1024
"""Samples scored, and written, at a time."""
OBSERVED = 64
"""Requests looked at, and written, at a time; what was seen without the intervention is held meanwhile."""
PROBE_REQUESTS, PROBE_TOKENS, PROBE_ROUNDS = 16, 16, 5
"""The relative speed is the median over rounds, without and with the intervention in turn, on so much work."""

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
        return self.record.run_id


def run_overrides(overrides: Sequence[str]) -> RunResult:
    """`run` from Hydra overrides: `detoxbench.run(["model=fable", "method=destein"])`."""
    from detoxbench.runner.composition import compose

    return run(compose(overrides))


def run(spec: RunSpec) -> RunResult:
    """Do what is not done yet of one run, and return it. Raises DetoxbenchError (or UsageError) in one line.

    Everything that can be checked without weights is checked first.
    """
    cell = Cell(spec, checkpoint_folder(spec, download=True))
    beside = [run(companion) for companion in companions(spec)]
    base = beside[0] if beside else None
    if cell.finished:  # before anything is written: the folder may be read-only
        return _already_there(cell, base)
    make_runs_dir(Path(spec.runs_dir))
    with cell.locked(cell.folder):
        if whole_or_aside(cell.folder) and cell.finished:  # by another process, meanwhile
            return _already_there(cell, base)
        with _logged() as lines:
            if not cell.per_record:
                _fit(cell)
            samples, generation = _generate(cell)
            scores, failed = _score(cell, samples)
            fit = generation.fit or _fit(cell)
            record = _finish(cell, fit, generation, samples, scores, base, lines, failed_scores=failed)
    return _reported(RunResult(cell.folder, record, False, base), spec)


def _already_there(cell: Cell, base: RunResult | None) -> RunResult:
    return _reported(RunResult(cell.folder, Run(cell.folder).record(), True, base), cell.spec)


def _reported(result: RunResult, spec: RunSpec) -> RunResult:
    """The result, its run handed to the tracker: one that was there already too, unless it has been reported."""
    if spec.tracker.name != "none":
        from detoxbench.tracking import track

        runs_dir, alone = Path(spec.runs_dir), not spec.with_base
        track(Run(result.folder), result.record, spec.tracker, runs_dir, alone=alone)
    return result


class _Fit(msgspec.Struct):
    """fit.json: what a fit cost and recorded."""

    seconds: float
    peak_mb: float | None
    examples: int
    changed_parameters: int
    added_parameters: int
    artifact_bytes: int
    info: dict[str, Any]
    digest: str | None = None
    """Of what was fitted (`Intervention.digest`); of all records' interventions where each has its own."""


class _Generation(msgspec.Struct):
    """generation.json: how a generation went, beside its samples."""

    tokens_per_second: float | None
    relative_speed: float | None
    added_prompt_tokens: float
    contested: int
    cut_prompts: int
    device: str
    fit: _Fit | None = None
    """All fits together, where each record has its own."""
    arithmetic: dict[str, Any] = {}
    """How the model computed (`provenance.arithmetic`)."""


class _Reading(msgspec.Struct):
    """A line of readings.partial.jsonl: the reading of the next sample that is read."""

    base: BaseReading | None


class _RecordFit(msgspec.Struct):
    """A line of fits.jsonl: the fit for one record, whose intervention is not kept."""

    record: str
    seconds: float
    peak_mb: float | None
    info: dict[str, Any]
    digest: str | None = None
    group: str = ""
    """The first of the records that share its batches: a run that was killed goes on with a whole group."""


def _fit(cell: Cell) -> _Fit:
    """Have the intervention on disk; return what it cost."""
    with cell.locked(cell.fit_folder):
        if whole_or_aside(cell.fit_folder):
            return msgspec.json.decode((cell.fit_folder / "fit.json").read_bytes(), type=_Fit)
        from detoxbench.runner.provenance import Meter

        lm = _lm(cell)
        with Meter(lm.device) as meter:
            intervention = cell.method.fit(lm, cell.data)
        changes = weights.record(lm, intervention.weights)
        info = {**intervention.info, **weights.as_info(changes)}
        fit = _fit_of(cell, intervention, changes, meter.seconds, meter.peak_mb, info)
        fit.digest = intervention.digest()

        def fill(folder: Path) -> None:
            intervention.save(folder / "intervention")
            write_atomic(folder / "fit.json", encode(fit))
            seal(folder)

        write_folder(cell.fit_folder, fill)
        log.info("fitted %s in %.1f s", cell.method.name, fit.seconds)
        return fit


def _fit_of(
    cell: Cell,
    intervention: Intervention,
    changes: weights.Record | None,
    seconds: float,
    peak_mb: float | None,
    info: dict[str, Any],
) -> _Fit:
    return _Fit(
        seconds=seconds,
        peak_mb=peak_mb,
        examples=cell.method.examples(cell.data),
        changed_parameters=changes.merged_parameters if changes else 0,
        added_parameters=intervention.added_parameters() + (changes.side_path_parameters if changes else 0),
        artifact_bytes=intervention.artifact_bytes(),
        info=info,
    )


def _generate(cell: Cell) -> tuple[list[Sample], _Generation]:
    """All samples, in the order of the requests, those of an earlier try included."""
    folder, gen = cell.generation_folder, cell.spec.gen
    done, finished = folder / "samples.jsonl", folder / "generation.json"
    with cell.locked(folder):
        if whole_or_aside(folder):
            return read_lines(done, Sample), msgspec.json.decode(finished.read_bytes(), type=_Generation)
        from detoxbench.engine.generation import Generated

        lm = _lm(cell)
        computes = _arithmetic(cell, lm)
        tokens, seconds = 0, 0.0
        with appending(folder / PARTIAL, Generated) as (rows, append):
            fitted = _fitted_already(cell)
            made = {(g.sample.id, g.sample.sample): g for g in rows if fitted is None or g.sample.record in fitted}
            wanted = [(r.id, k) for r in cell.requests for k in range(gen.n if r.text is None else 1)]
            title = f"{cell.method.name}: {cell.suite.name}"
            answers = _answers_per_record if cell.per_record else _answers
            with bar(title, len(wanted), done=len(made)) as advance:
                for batch, took in answers(cell, lm, made):
                    append(batch)
                    made |= {(g.sample.id, g.sample.sample): g for g in batch}
                    tokens += sum(g.sample.tokens for g in batch)
                    seconds += took
                    advance(len(batch))
        intervention, fit = _all_fits(cell, lm) if cell.per_record else (_intervention(cell), None)
        ordered = [made[key] for key in wanted]
        samples = _read_by_base(cell, lm, [g.sample for g in ordered])
        generation = _Generation(
            tokens_per_second=tokens / seconds if tokens else None,
            relative_speed=_relative_speed(cell, lm, intervention),
            added_prompt_tokens=_added_prompt_tokens(cell, lm, intervention),
            contested=sum(g.contested for g in ordered),
            cut_prompts=sum(g.cut > 0 for g in ordered),
            device=str(lm.device),
            fit=fit,
            arithmetic=computes,
        )
        write_atomic(done, encode_lines(samples))
        write_atomic(finished, encode(generation))
        seal(folder, [done.name, finished.name, *([FITS] if cell.per_record else [])])
        for partial in (PARTIAL, READINGS):
            (folder / partial).unlink(missing_ok=True)
        log.info("generated %d samples at %.0f tokens/s", len(samples), generation.tokens_per_second or 0)
        return samples, generation


def _read_by_base(cell: Cell, lm: LanguageModel, samples: Sequence[Sample]) -> list[Sample]:
    """The samples, the generated ones with what the unmodified model finds of them."""
    from detoxbench.runner.base_reading import CHUNK, readings

    chosen = broken_text.read_ones(samples)
    if not chosen:
        return list(samples)
    requests = {request.id: request for request in cell.requests}
    with (
        appending(cell.generation_folder / READINGS, _Reading, whole=CHUNK) as (rows, append),
        bar(f"{cell.method.name}: the base reads", len(chosen), done=len(rows)) as advance,
    ):
        for chunk in readings(lm, requests, chosen, done=len(rows)):
            new = [_Reading(reading) for reading in chunk]
            append(new)
            rows += new
            advance(len(new))
    found = {(s.id, s.sample): row.base for s, row in zip(chosen, rows, strict=True)}
    return [msgspec.structs.replace(s, base=found.get((s.id, s.sample))) for s in samples]


def _arithmetic(cell: Cell, lm: LanguageModel) -> dict[str, Any]:
    """How the model computes; told where that is not what `model.dtype` says."""
    from detoxbench.runner.provenance import arithmetic

    found = arithmetic(lm.model)
    if cell.spec.model.dtype == "float32" and found["products"] != "float32":
        log.warning(
            "model.dtype=float32, but products are made in %s (autocast, torch.set_float32_matmul_precision or an "
            "environment variable such as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE): texts depend on their batch",
            found["products"],
        )
    return found


def _answers(
    cell: Cell, lm: LanguageModel, made: Container[tuple[str, int]]
) -> Iterator[tuple[list[Generated], float]]:
    """Batches of the samples that are not `made` yet, under the one intervention, with the seconds that each took."""
    if cell.suite.observer is not None:
        observer = cell.suite.observer(lm, cell.suite.config, cell.requests)
        yield from _observed(lm, _intervention(cell), observer, [r for r in cell.requests if (r.id, 0) not in made])
        return
    with lm.applied(_intervention(cell)):
        start = time.perf_counter()
        for batch in _asked(cell, lm, [cell.requests], made):
            yield batch, time.perf_counter() - start
            start = time.perf_counter()


def _observed(
    lm: LanguageModel, intervention: Intervention, observer: Observer, left: Sequence[Request]
) -> Iterator[tuple[list[Generated], float]]:
    """Chunks of samples that hold what is seen inside the model without and with the intervention."""
    from detoxbench.engine.generation import Generated

    for start in range(0, len(left), OBSERVED):
        chunk = left[start : start + OBSERVED]
        before = [observer.look(request).state for request in chunk]
        with lm.applied(intervention):
            begin = time.perf_counter()
            after = [observer.look(request) for request in chunk]
            took = time.perf_counter() - begin
        made = []
        for r, old, new in zip(chunk, before, after, strict=True):
            values = observer.values(r, old, new.state)
            where = f"request '{r.id}' under method '{intervention.method}'"
            require_finite_values(values, where, "it cannot be measured: change the model or the method")
            sample = Sample(
                id=r.id, record=r.record, kind=r.kind, sample=0, prompt=r.prompt, text=r.text or "", stop="given",
                tokens=new.tokens, values=values,
            )  # fmt: skip
            made.append(Generated(sample, 0, new.cut))
        yield made, took


def _asked(
    cell: Cell, lm: LanguageModel, parts: Sequence[Sequence[Request]], made: Container[tuple[str, int]]
) -> Iterator[list[Generated]]:
    """The samples of all `parts` that are not `made` yet: given texts are read, in chunks of each part, others
    generated, in batches over all of them. What is in a chunk or a batch does not depend on what is made."""
    from detoxbench.engine.generation import generate
    from detoxbench.engine.likelihood import read

    for requests in parts:
        given = [r for r in requests if r.text is not None]
        yield from read(lm, given, {r.id for r in given if (r.id, 0) not in made})
    asked = [r for requests in parts for r in requests if r.text is None]
    yield from generate(lm, asked, cell.spec.gen, cell.spec.seed, made=made)


def _answers_per_record(
    cell: Cell, lm: LanguageModel, made: Container[tuple[str, int]]
) -> Iterator[tuple[list[Generated], float]]:
    """Each record's samples under the intervention fitted on it, several records in one batch, with the seconds that
    generating them took."""
    requests = _by_record(cell.requests)
    for group in _fitted_groups(cell, lm, requests, made):
        with lm.routed(group) if len(group) > 1 else lm.applied(*group.values()):
            start = time.perf_counter()
            for batch in _asked(cell, lm, [requests[record] for record in group], made):
                yield batch, time.perf_counter() - start
                start = time.perf_counter()


def _fitted_groups(
    cell: Cell, lm: LanguageModel, requests: Mapping[str, Sequence[Request]], made: Container[tuple[str, int]]
) -> Iterator[dict[str, Intervention]]:
    """Record -> intervention, as many records at a time as one batch may have rows for and `gen.edits_mb` holds; one
    that cannot differ by row comes alone. The first group is the one of the first record that lacks samples.

    What a fit recorded is on disk before its samples are, so that every record that has samples has it.
    """
    from detoxbench.interventions.routing import routable
    from detoxbench.runner.provenance import Meter

    gen, names = cell.spec.gen, list(cell.records)
    group: dict[str, Intervention] = {}
    size, rows = 0.0, 0
    with appending(cell.generation_folder / FITS, _RecordFit) as (earlier, append):
        wanted = range(_first_to_fit(names, requests, gen.n, made, earlier), len(names))
        fits = cell.method.fit_many(lm, list(cell.records.values()), wanted)
        for i in wanted:
            with Meter(lm.device) as meter:
                intervention = next(fits)
            more = intervention.artifact_bytes() if routable(lm, intervention) else math.inf
            asked = len(requests[names[i]]) * gen.n
            full = size + more > gen.edits_mb * 2**20 or (rows + asked) * gen.max_new_tokens > gen.batch_tokens
            first = names[i] if full or not group else next(iter(group))
            changes, digest = weights.record(lm, intervention.weights), intervention.digest()
            info = {**intervention.info, **weights.as_info(changes)}
            append([_RecordFit(names[i], meter.seconds, meter.peak_mb, info, digest, first)])
            if group and full:
                yield group
                group.clear()  # here, so that nobody holds it while the next is fitted
                size, rows = 0.0, 0
            group[names[i]] = intervention
            size, rows = size + more, rows + asked
            del intervention
    if group:
        yield group


def _first_to_fit(
    names: Sequence[str],
    requests: Mapping[str, Sequence[Request]],
    n: int,
    made: Container[tuple[str, int]],
    earlier: Sequence[_RecordFit],
) -> int:
    """Where to go on among the records: at the first of the group of the first one that lacks a sample."""

    def lacks(record: str) -> bool:
        return any((r.id, k) not in made for r in requests[record] for k in range(n if r.text is None else 1))

    groups = {fit.record: fit.group for fit in earlier}
    record = next((name for name in names if lacks(name)), None)
    return len(names) if record is None else names.index(groups.get(record) or record)


def _by_record(requests: Sequence[Request]) -> dict[str, list[Request]]:
    found: dict[str, list[Request]] = {}
    for request in requests:
        found.setdefault(request.record, []).append(request)
    return found


def _all_fits(cell: Cell, lm: LanguageModel) -> tuple[Intervention, _Fit]:
    """The first record's intervention, fitted again to measure costs on, and all records' fits as one."""
    found = _fitted_already(cell) or {}
    fits = [found[record] for record in cell.records]
    path = cell.generation_folder / FITS
    write_atomic(path, chained_lines(path, fits))  # a kill before the stage is whole finds them as they were
    first = next(cell.method.fit_many(lm, list(cell.records.values()), [0]))
    seconds = [fit.seconds for fit in fits]
    info = {"records": len(fits), "seconds_per_record": statistics.mean(seconds), **merged([fit.info for fit in fits])}
    peak = max((fit.peak_mb for fit in fits if fit.peak_mb is not None), default=None)
    log.info("fitted %s for each of %d records in %.1f s", cell.method.name, len(fits), sum(seconds))
    whole = _fit_of(cell, first, weights.record(lm, first.weights), sum(seconds), peak, info)
    whole.digest = digest([fit.digest for fit in fits])
    return first, whole


def _fitted_already(cell: Cell) -> dict[str, _RecordFit] | None:
    """What earlier tries recorded of each record's fit (the last, of one that was fitted twice); None under one fit."""
    if not cell.per_record:
        return None
    with appending(cell.generation_folder / FITS, _RecordFit) as (rows, _):
        return {fit.record: fit for fit in rows}


def merged(values: Sequence[Any]) -> Any:
    """The diagnostics of many fits as one: maps and lists part by part (where lists differ in length, over those that
    reach so far), measured numbers as their mean, whole numbers and texts as how often each came; None is left out."""
    values = [value for value in values if value is not None]
    if not values:
        return None
    first = values[0]
    if isinstance(first, dict):
        return {key: merged([value.get(key) for value in values]) for key in first}
    if isinstance(first, list):
        return [merged([v[i] for v in values if i < len(v)]) for i in range(max(map(len, values)))]
    if isinstance(first, float):
        return statistics.mean(values)
    return {str(value): values.count(value) for value in sorted(set(values))}


def _score(cell: Cell, samples: Sequence[Sample]) -> tuple[list[Scored], int]:
    """The scores of all samples by all scorers, in the order of the samples; and how many are missing because a scorer
    broke, so that another try may have them.

    Raises DetoxbenchError, and keeps nothing, where a scorer has scored no text at all.
    """
    done = cell.score_folder / "scores.jsonl"
    failed = cell.score_folder / "failed.txt"
    if whole_or_aside(cell.score_folder):
        return read_lines(done, Scored), int(failed.read_text())
    if not cell.suite.judged:
        scores = [Scored(id=s.id, sample=s.sample, scores=dict.fromkeys(cell.scorers)) for s in samples]
        write_atomic(failed, b"0")
        write_atomic(done, encode_lines(scores))
        seal(cell.score_folder, [done.name, failed.name])
        return scores, 0
    asking = {slot: Asking(scorer) for slot, scorer in cell.scorers.items()}
    chats = {r.id for r in cell.requests if r.chat}
    with (
        appending(cell.score_folder / PARTIAL, Scored, whole=SCORE_CHUNK) as (scores, append),
        bar(f"scoring by {cell.scorers['main'].name}", len(samples), done=len(scores)) as advance,
    ):
        judges = _judges(cell, asking)
        while len(scores) < len(samples):
            chunk = samples[len(scores) : len(scores) + SCORE_CHUNK]
            texts = [s.text for s in chunk]
            prompts = {on: [_before(s, chats, reads_on=on) for s in chunk] for on in (False, True)}
            columns = {slot: score(texts, prompts[cell.scorers[slot].reads_on]) for slot, score in judges.items()}
            rows = [
                Scored(id=s.id, sample=s.sample, scores={slot: values[i] for slot, values in columns.items()})
                for i, s in enumerate(chunk)
            ]
            if not any(each.broken for each in asking.values()):  # a run that goes on asks for the others again
                append(rows)
            scores += rows
            advance(len(rows))
    try:
        for slot, each in asking.items():
            each.require_some([s.text for s in samples], [s.scores[slot] for s in scores], silent=slot != "main")
    except DetoxbenchError:
        shutil.rmtree(cell.score_folder)
        raise
    broken = sum(each.broken for each in asking.values())
    write_atomic(failed, str(broken).encode())
    write_atomic(done, encode_lines(scores))
    seal(cell.score_folder, [done.name, failed.name])
    (cell.score_folder / PARTIAL).unlink()
    return scores, broken


def _judges(cell: Cell, asking: Mapping[str, Asking]) -> dict[str, Score]:
    """By slot, what asks a scorer for texts that no run has had scored, and checks what it gives."""
    identities = {"main": cell.identity["scorer"], **cell.identity["suite"]["scorers"]}
    stages = cell.score_folder.parent
    return {slot: remembering(cell.scorers[slot], stages, identities[slot], asking[slot].score) for slot in asking}


def _before(sample: Sample, chats: Container[str], *, reads_on: bool) -> str:
    """The prompt as a scorer is given it; see `Scorer.reads_on`."""
    seam = sample.prompt[-1:] + sample.text[:1]
    turn = reads_on and sample.id in chats and not any(c.isspace() for c in seam)
    return f"{sample.prompt}\n" if turn else sample.prompt


def _finish(
    cell: Cell,
    fit: _Fit,
    generation: _Generation,
    samples: Sequence[Sample],
    scores: Sequence[Scored],
    base: RunResult | None,
    lines: Sequence[str],
    *,
    failed_scores: int = 0,
) -> RunRecord:
    """Aggregate, and put the run folder there whole."""
    import torch

    from detoxbench.results.stats import attach
    from detoxbench.runner.provenance import now, provenance

    spec = cell.spec
    own, base_id = Answers(samples, scores), base_run_id(cell.identity)
    # With with_base=false, too, the base's run may be there.
    beside = Run(base.folder if base else cell.folder.with_name(base_id))
    there = cell.method.name != BASE and is_run(beside.folder)
    theirs = own if cell.method.name == BASE else Answers(beside.samples(), beside.scores()) if there else None
    measures, told = aggregate(cell.suite, cell.scorers["main"].primary, own, theirs)
    record = RunRecord(
        schema=SCHEMA_VERSION,
        run_id=cell.folder.name,
        created=now(),
        model=spec.model.name or spec.model.path,
        method=cell.method.name,
        suite=cell.suite.name,
        scorer=cell.scorers["main"].name,
        seed=spec.seed,
        identity=cell.identity,
        spec=dataclasses.asdict(spec),
        metrics=attach(measures),
        counts=_counts(cell, samples, told, generation) | ({"failed_scores": failed_scores} if failed_scores else {}),
        cost={
            "fit_seconds": fit.seconds,
            "fit_peak_mb": fit.peak_mb,
            "changed_parameters": fit.changed_parameters,
            "added_parameters": fit.added_parameters,
            "artifact_bytes": fit.artifact_bytes,
            "examples": fit.examples,
            "added_prompt_tokens": generation.added_prompt_tokens,
            "forward_passes_per_token": 1.0,  # no channel of an intervention calls another model
            "tokens_per_second": generation.tokens_per_second,
            "relative_speed": generation.relative_speed,
        },
        diagnostics=fit.info,
        fit=fit.digest,
        data=cell.data_names(),
        base_run_id=base_id if there else None,
        provenance=provenance(torch.device(generation.device)) | generation.arithmetic,
    )

    def fill(folder: Path) -> None:
        link(cell.generation_folder / "samples.jsonl", folder / "samples.jsonl")
        link(cell.score_folder / "scores.jsonl", folder / "scores.jsonl")
        if cell.per_record:
            link(cell.generation_folder / FITS, folder / FITS)
        elif cell.method.name != BASE:
            for file in sorted((cell.fit_folder / "intervention").iterdir()):
                link(file, folder / "intervention" / file.name)
        write_atomic(folder / "clusters.json", encode(Clusters.of(measures)))
        write_atomic(folder / "log.txt", "".join(f"{line}\n" for line in lines).encode())
        write_atomic(folder / "run.json", msgspec.json.format(encode(record), indent=1))
        seal(folder)

    write_folder(cell.folder, fill)
    shutil.rmtree(cell.score_folder)  # keyed by the run itself: nobody else will look for it
    return record


def _counts(cell: Cell, samples: Sequence[Sample], told: Counts, generation: _Generation) -> Counts:
    """`told` is what samples and scores alone tell."""
    read = contamination(
        fit_texts(dataclasses.astuple(cell.data)),
        (r.prompt if r.text is None else r.text for r in cell.requests),
        fit_files=_files(getattr(cell.spec.fit, role.value) for role in cell.method.needs),
        suite_files=_files(dataclasses.astuple(cell.spec.suite)),
    )
    # What an adapter or a model that the method was given has read is not known here.
    unknown = bool(cell.method.fingerprints()) and not read.shared
    drawn = any(sample.stop != "given" for sample in samples) and cell.spec.gen.tie_tolerance > 0
    return {
        "requests": len(cell.requests),
        **told,
        "contested_tokens": generation.contested if drawn else None,
        "cut_prompts": generation.cut_prompts,
        "prompts_in_fit_data": None if unknown else read.shared,
    }


def _files(settings: Iterable[Any]) -> list[str]:
    return [value for value in settings if isinstance(value, str) and os.path.isfile(os.path.expanduser(value))]


def _lm(cell: Cell) -> LanguageModel:
    model = cell.spec.model
    lm = _loaded(
        (model.path, model.revision, model.seed),
        msgspec.json.encode({key: getattr(model, key) for key in _HOW}),
        cell.identity["model"]["fingerprint"],
    )
    lm.low_rank = cell.low_rank  # set here, so that both forms share what is loaded
    return lm


_HOW = ("dtype", "device", "chat_template", "template_args", "template_date", "thinking")
"""How a model is loaded: keywords of `LanguageModel.load`."""


@functools.lru_cache(maxsize=1)
def _loaded(where: tuple[str, str | None, int], how: bytes, fingerprint: str) -> LanguageModel:
    """The model in memory, shared by the runs of this process; `fingerprint` notices files that have changed."""
    from detoxbench.lm import LanguageModel

    path, revision, seed = where
    return LanguageModel.load(path, revision=revision, seed=seed, **msgspec.json.decode(how))


def _intervention(cell: Cell) -> Intervention:
    from detoxbench.interventions.intervention import Intervention

    return Intervention.load(cell.fit_folder / "intervention")


def _added_prompt_tokens(cell: Cell, lm: LanguageModel, intervention: Intervention) -> float:
    """Mean over the requests."""

    def tokens() -> int:
        return sum(len(lm.encode(r.prompt, r.chat)) for r in cell.requests)

    before = tokens()
    with lm.applied(intervention):
        return (tokens() - before) / len(cell.requests)


def _relative_speed(cell: Cell, lm: LanguageModel, intervention: Intervention) -> float | None:
    """Tokens a second under the intervention over the base model's, taken in turn in this process; None where nothing
    is generated or read."""
    from detoxbench.engine.generation import generate
    from detoxbench.engine.likelihood import read

    if cell.method.name == BASE:
        return 1.0
    # The same number of tokens on both sides: no text ends early, and no near-tie is looked at twice.
    tokens = min(PROBE_TOKENS, cell.spec.gen.max_new_tokens)
    gen = GenSpec(max_new_tokens=tokens, tie_tolerance=0, batch_tokens=cell.spec.gen.batch_tokens)

    probe = cell.requests[:PROBE_REQUESTS]
    given = [r for r in probe if r.text]
    if not given and all(r.text is not None for r in probe):
        return None

    def seconds() -> float:
        start = time.perf_counter()
        for _ in read(lm, given, {r.id for r in given}):
            continue
        for _ in generate(lm, [r for r in probe if r.text is None], gen, 0, ends=frozenset()):
            continue
        return time.perf_counter() - start

    ratios = []
    for _ in range(PROBE_ROUNDS):
        plain = seconds()
        with lm.applied(intervention):
            ratios.append(plain / seconds())
    return statistics.median(ratios)


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
