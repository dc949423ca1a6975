"""The second stage: answers under the intervention, and their readings by the unmodified model."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from detoxbench.files.lines import appending, encode, encode_lines, read_lines
from detoxbench.files.sealing import PARTIAL, seal, whole_or_aside
from detoxbench.files.writing import write_atomic
from detoxbench.model.finite import require_finite_values
from detoxbench.progress import bar
from detoxbench.records import BaseReading, Request, Sample
from detoxbench.results import broken_text
from detoxbench.runner.cell import RunCell
from detoxbench.runner.cost import Running, added_prompt_tokens, running_costs
from detoxbench.runner.fits import FITS, Fit, all_fits, fitted_already, fitted_groups
from detoxbench.runner.loaded import fitted_intervention, language_model
from detoxbench.suites.base import Probe

if TYPE_CHECKING:
    from detoxbench.engine.generation import Generated
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

READINGS = "readings.partial.jsonl"
"""The base's readings of the samples, until the samples are written with them."""
PROBED = 64
"""Requests measured, and written, at a time; the measurements without the intervention are kept in memory."""

log = logging.getLogger("detoxbench")


class Generation(msgspec.Struct):
    """generation.json: how a generation went, beside its samples."""

    tokens_per_second: float | None
    relative_speed: float | None
    added_prompt_tokens: float | None
    contested: int
    cut_prompts: int
    device: str
    fit: Fit | None = None
    """All fits together, where each record has its own."""
    forward_passes_per_token: float | None = None
    """Over the base model's; None in stages from before it was measured, like the two below."""
    peak_mb: float | None = None
    guide_seconds: float | None = None
    arithmetic: dict[str, Any] = {}
    """How the model computed (`provenance.arithmetic`)."""
    seconds: float | None = None
    """That the stage took, the model being loaded; None where it went on with what a stopped one had left."""


class _Reading(msgspec.Struct):
    """A line of readings.partial.jsonl: the reading of the next sample that is read."""

    base: BaseReading | None


def generated(cell: RunCell) -> tuple[list[Sample], Generation]:
    """All samples, in the order of the requests, those of an earlier try included."""
    folder = cell.generation_folder
    samples_file, generation_file = folder / "samples.jsonl", folder / "generation.json"
    with cell.locked(folder):
        if whole_or_aside(folder):
            return read_lines(samples_file, Sample), msgspec.json.decode(generation_file.read_bytes(), type=Generation)
        lm = language_model(cell)
        resumed, start = folder.exists(), time.perf_counter()
        computes = _arithmetic(cell, lm)
        answers, tokens_per_second = _answered(cell, lm) if cell.texts is None else (_stored(cell, lm), None)
        intervention, fit = all_fits(cell, lm) if cell.per_record else (fitted_intervention(cell), None)
        samples = _read_by_base(cell, lm, [g.sample for g in answers])
        change = intervention if cell.texts is None else None
        running = running_costs(cell, lm, change) if change else Running()
        generation = Generation(
            tokens_per_second=tokens_per_second,
            relative_speed=running.speed,
            forward_passes_per_token=running.passes,
            peak_mb=running.peak_mb,
            guide_seconds=running.guide_seconds,
            added_prompt_tokens=added_prompt_tokens(cell, lm, change) if change else None,
            contested=sum(g.near_ties for g in answers),
            cut_prompts=sum(g.truncated_prompt > 0 for g in answers),
            device=str(lm.device),
            fit=fit,
            arithmetic=computes,
            seconds=None if resumed else time.perf_counter() - start,
        )
        write_atomic(samples_file, encode_lines(samples))
        write_atomic(generation_file, encode(generation))
        seal(folder, [samples_file.name, generation_file.name, *([FITS] if cell.per_record else [])])
        for partial in (PARTIAL, READINGS):
            (folder / partial).unlink(missing_ok=True)
        log.info("generated %d samples at %.0f tokens/s", len(samples), tokens_per_second or 0)
        return samples, generation


def _answered(cell: RunCell, lm: LanguageModel) -> tuple[list[Generated], float | None]:
    """What was generated for each request, in their order, and the speed: None where all was there already.

    Each batch is appended to a file, where a killed run finds it again.
    """
    from detoxbench.engine.generation import Generated

    wanted = [(r.id, k) for r in cell.requests for k in range(cell.spec.gen.n if r.text is None else 1)]
    tokens, seconds = 0, 0.0
    with appending(cell.generation_folder / PARTIAL, Generated) as (rows, append):
        fitted = fitted_already(cell)
        done = {(g.sample.id, g.sample.sample): g for g in rows if fitted is None or g.sample.record in fitted}
        answers = _answers_per_record if cell.per_record else _answers
        with bar(f"{cell.method.name}: {cell.suite.name}", len(wanted), done=len(done)) as advance:
            for batch, took in answers(cell, lm, done):
                append(batch)
                done |= {(g.sample.id, g.sample.sample): g for g in batch}
                tokens += sum(g.sample.tokens for g in batch)
                seconds += took
                advance(len(batch))
    return [done[key] for key in wanted], tokens / seconds if tokens else None


def _stored(cell: RunCell, lm: LanguageModel) -> list[Generated]:
    """The texts that the method delivers, as samples; no forward pass is made for them."""
    from detoxbench.engine.generation import Generated

    stored = []
    for r in cell.requests:
        found = (cell.texts or {}).get(r.id)
        for k in range(cell.spec.gen.n):
            text = "" if found is None else found[k]
            tokens = len(lm.tokens(text, special=False)) if text else 0
            sample = Sample(
                id=r.id, record=r.record, kind=r.kind, tags=r.tags, sample=k, prompt=r.prompt, text=text,
                stop="missing" if found is None else "stored", tokens=tokens,
            )  # fmt: skip
            stored.append(Generated(sample, 0, 0))
    return stored


def _read_by_base(cell: RunCell, lm: LanguageModel, samples: Sequence[Sample]) -> list[Sample]:
    """The samples, the generated ones with their readings by the unmodified model."""
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
    by_sample = {(s.id, s.sample): row.base for s, row in zip(chosen, rows, strict=True)}
    return [msgspec.structs.replace(s, base=by_sample.get((s.id, s.sample))) for s in samples]


def _arithmetic(cell: RunCell, lm: LanguageModel) -> dict[str, Any]:
    """How the model computes; logs a warning where that is not what `model.dtype` says."""
    from detoxbench.runner.provenance import arithmetic

    computes = arithmetic(lm.model)
    if cell.spec.model.dtype == "float32" and computes["products"] != "float32":
        log.warning(
            "model.dtype=float32, but products are made in %s (autocast, torch.set_float32_matmul_precision or an "
            "environment variable such as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE): texts depend on their batch",
            computes["products"],
        )
    return computes


def _answers(
    cell: RunCell, lm: LanguageModel, done: Container[tuple[str, int]]
) -> Iterator[tuple[list[Generated], float]]:
    """Batches of the samples that are not `done` yet, under the one intervention, with the seconds that each took."""
    if cell.suite.probe is not None:
        probe = cell.suite.probe(lm, cell.suite.config, cell.requests)
        yield from _probed(lm, fitted_intervention(cell), probe, [r for r in cell.requests if (r.id, 0) not in done])
        return
    with lm.applied(fitted_intervention(cell)):
        start = time.perf_counter()
        for batch in sample_requests(cell, lm, [cell.requests], done):
            yield batch, time.perf_counter() - start
            start = time.perf_counter()


def _probed(
    lm: LanguageModel, intervention: Intervention, probe: Probe, left: Sequence[Request]
) -> Iterator[tuple[list[Generated], float]]:
    """Chunks of samples with what the probe measures inside the model, without and with the intervention."""
    from detoxbench.engine.generation import Generated

    for start in range(0, len(left), PROBED):
        chunk = left[start : start + PROBED]
        before = [probe.measure(request).state for request in chunk]
        with lm.applied(intervention):
            begin = time.perf_counter()
            after = [probe.measure(request) for request in chunk]
            took = time.perf_counter() - begin
        batch = []
        for r, old, new in zip(chunk, before, after, strict=True):
            values = probe.values(r, old, new.state)
            where = f"request '{r.id}' under method '{intervention.method}'"
            require_finite_values(values, where, "it cannot be measured: change the model or the method")
            sample = Sample(
                id=r.id, record=r.record, kind=r.kind, tags=r.tags, sample=0, prompt=r.prompt, text=r.text or "",
                stop="given", tokens=new.tokens, values=values,
            )  # fmt: skip
            batch.append(Generated(sample, 0, new.cut))
        yield batch, took


def sample_requests(
    cell: RunCell, lm: LanguageModel, parts: Sequence[Sequence[Request]], done: Container[tuple[str, int]]
) -> Iterator[list[Generated]]:
    """The samples of all `parts` that are not `done` yet. Given texts are read, in chunks within each part; the others
    are generated, in batches over all parts. What is in a chunk or a batch does not depend on what is done."""
    from detoxbench.engine.generation import generate
    from detoxbench.engine.likelihood import loglikelihoods

    for requests in parts:
        to_read = [r for r in requests if r.text is not None]
        yield from loglikelihoods(lm, to_read, {r.id for r in to_read if (r.id, 0) not in done})
    to_generate = [r for requests in parts for r in requests if r.text is None]
    yield from generate(lm, to_generate, cell.spec.gen, cell.spec.seed, done=done)


def _answers_per_record(
    cell: RunCell, lm: LanguageModel, done: Container[tuple[str, int]]
) -> Iterator[tuple[list[Generated], float]]:
    """Each record's samples under the intervention fitted on it, several records in one batch, with the seconds that
    generating them took."""
    requests = _by_record(cell.requests)
    for group in fitted_groups(cell, lm, requests, done):
        with lm.routed(group) if len(group) > 1 else lm.applied(*group.values()):
            start = time.perf_counter()
            for batch in sample_requests(cell, lm, [requests[record] for record in group], done):
                yield batch, time.perf_counter() - start
                start = time.perf_counter()


def _by_record(requests: Sequence[Request]) -> dict[str, list[Request]]:
    by_record: dict[str, list[Request]] = {}
    for request in requests:
        by_record.setdefault(request.record, []).append(request)
    return by_record
