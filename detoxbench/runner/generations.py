"""The second stage: answers under the intervention, and what the unmodified model finds of them."""

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
from detoxbench.runner.cell import Cell
from detoxbench.runner.cost import added_prompt_tokens, relative_costs
from detoxbench.runner.fits import FITS, Fit, all_fits, fitted_already, fitted_groups
from detoxbench.runner.loaded import fitted_intervention, language_model
from detoxbench.suites.base import Probe

if TYPE_CHECKING:
    from detoxbench.engine.generation import Generated
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

READINGS = "readings.partial.jsonl"
"""What the base finds of the samples, until they are written with it."""
PROBED = 64
"""Requests looked at, and written, at a time; what was seen without the intervention is held meanwhile."""

log = logging.getLogger("detoxbench")


class Generation(msgspec.Struct):
    """generation.json: how a generation went, beside its samples."""

    tokens_per_second: float | None
    relative_speed: float | None
    added_prompt_tokens: float
    contested: int
    cut_prompts: int
    device: str
    fit: Fit | None = None
    """All fits together, where each record has its own."""
    forward_passes_per_token: float | None = None
    """Over the base model's; None in stages from before it was measured."""
    arithmetic: dict[str, Any] = {}
    """How the model computed (`provenance.arithmetic`)."""


class _Reading(msgspec.Struct):
    """A line of readings.partial.jsonl: the reading of the next sample that is read."""

    base: BaseReading | None


def generated(cell: Cell) -> tuple[list[Sample], Generation]:
    """All samples, in the order of the requests, those of an earlier try included."""
    folder = cell.generation_folder
    done, finished = folder / "samples.jsonl", folder / "generation.json"
    with cell.locked(folder):
        if whole_or_aside(folder):
            return read_lines(done, Sample), msgspec.json.decode(finished.read_bytes(), type=Generation)
        lm = language_model(cell)
        computes = _arithmetic(cell, lm)
        made, tokens_per_second = _answered(cell, lm)
        intervention, fit = all_fits(cell, lm) if cell.per_record else (fitted_intervention(cell), None)
        samples = _read_by_base(cell, lm, [g.sample for g in made])
        relative = relative_costs(cell, lm, intervention)
        generation = Generation(
            tokens_per_second=tokens_per_second,
            relative_speed=relative.speed,
            forward_passes_per_token=relative.passes,
            added_prompt_tokens=added_prompt_tokens(cell, lm, intervention),
            contested=sum(g.near_ties for g in made),
            cut_prompts=sum(g.truncated_prompt > 0 for g in made),
            device=str(lm.device),
            fit=fit,
            arithmetic=computes,
        )
        write_atomic(done, encode_lines(samples))
        write_atomic(finished, encode(generation))
        seal(folder, [done.name, finished.name, *([FITS] if cell.per_record else [])])
        for partial in (PARTIAL, READINGS):
            (folder / partial).unlink(missing_ok=True)
        log.info("generated %d samples at %.0f tokens/s", len(samples), tokens_per_second or 0)
        return samples, generation


def _answered(cell: Cell, lm: LanguageModel) -> tuple[list[Generated], float | None]:
    """What was generated for each request, in their order, and the speed: None where all was there already.

    Each batch is appended to a file, where a killed run finds it again.
    """
    from detoxbench.engine.generation import Generated

    wanted = [(r.id, k) for r in cell.requests for k in range(cell.spec.gen.n if r.text is None else 1)]
    tokens, seconds = 0, 0.0
    with appending(cell.generation_folder / PARTIAL, Generated) as (rows, append):
        fitted = fitted_already(cell)
        made = {(g.sample.id, g.sample.sample): g for g in rows if fitted is None or g.sample.record in fitted}
        answers = _answers_per_record if cell.per_record else _answers
        with bar(f"{cell.method.name}: {cell.suite.name}", len(wanted), done=len(made)) as advance:
            for batch, took in answers(cell, lm, made):
                append(batch)
                made |= {(g.sample.id, g.sample.sample): g for g in batch}
                tokens += sum(g.sample.tokens for g in batch)
                seconds += took
                advance(len(batch))
    return [made[key] for key in wanted], tokens / seconds if tokens else None


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
    if cell.suite.probe is not None:
        probe = cell.suite.probe(lm, cell.suite.config, cell.requests)
        yield from _probed(lm, fitted_intervention(cell), probe, [r for r in cell.requests if (r.id, 0) not in made])
        return
    with lm.applied(fitted_intervention(cell)):
        start = time.perf_counter()
        for batch in sample_requests(cell, lm, [cell.requests], made):
            yield batch, time.perf_counter() - start
            start = time.perf_counter()


def _probed(
    lm: LanguageModel, intervention: Intervention, probe: Probe, left: Sequence[Request]
) -> Iterator[tuple[list[Generated], float]]:
    """Chunks of samples that hold what is seen inside the model without and with the intervention."""
    from detoxbench.engine.generation import Generated

    for start in range(0, len(left), PROBED):
        chunk = left[start : start + PROBED]
        before = [probe.measure(request).state for request in chunk]
        with lm.applied(intervention):
            begin = time.perf_counter()
            after = [probe.measure(request) for request in chunk]
            took = time.perf_counter() - begin
        made = []
        for r, old, new in zip(chunk, before, after, strict=True):
            values = probe.values(r, old, new.state)
            where = f"request '{r.id}' under method '{intervention.method}'"
            require_finite_values(values, where, "it cannot be measured: change the model or the method")
            sample = Sample(
                id=r.id, record=r.record, kind=r.kind, tags=r.tags, sample=0, prompt=r.prompt, text=r.text or "",
                stop="given", tokens=new.tokens, values=values,
            )  # fmt: skip
            made.append(Generated(sample, 0, new.cut))
        yield made, took


def sample_requests(
    cell: Cell, lm: LanguageModel, parts: Sequence[Sequence[Request]], made: Container[tuple[str, int]]
) -> Iterator[list[Generated]]:
    """The samples of all `parts` that are not `made` yet: given texts are read, in chunks of each part, others
    generated, in batches over all of them. What is in a chunk or a batch does not depend on what is made."""
    from detoxbench.engine.generation import generate
    from detoxbench.engine.likelihood import loglikelihoods

    for requests in parts:
        given = [r for r in requests if r.text is not None]
        yield from loglikelihoods(lm, given, {r.id for r in given if (r.id, 0) not in made})
    asked = [r for requests in parts for r in requests if r.text is None]
    yield from generate(lm, asked, cell.spec.gen, cell.spec.seed, made=made)


def _answers_per_record(
    cell: Cell, lm: LanguageModel, made: Container[tuple[str, int]]
) -> Iterator[tuple[list[Generated], float]]:
    """Each record's samples under the intervention fitted on it, several records in one batch, with the seconds that
    generating them took."""
    requests = _by_record(cell.requests)
    for group in fitted_groups(cell, lm, requests, made):
        with lm.routed(group) if len(group) > 1 else lm.applied(*group.values()):
            start = time.perf_counter()
            for batch in sample_requests(cell, lm, [requests[record] for record in group], made):
                yield batch, time.perf_counter() - start
                start = time.perf_counter()


def _by_record(requests: Sequence[Request]) -> dict[str, list[Request]]:
    found: dict[str, list[Request]] = {}
    for request in requests:
        found.setdefault(request.record, []).append(request)
    return found
