"""The second stage: answers under the intervention, and their readings by the unmodified model."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from detoxbench.engine.share import ALONE, Share
from detoxbench.errors import DetoxbenchError
from detoxbench.files.lines import appending, encode, encode_lines, gathered, of_process, read_lines
from detoxbench.files.locking import Held
from detoxbench.files.sealing import PARTIAL, seal, whole_or_aside
from detoxbench.files.writing import write_atomic
from detoxbench.model.finite import require_finite_values
from detoxbench.progress import bar
from detoxbench.records import BaseReading, Request, Sample
from detoxbench.results import broken_text
from detoxbench.runner.cell import RunCell
from detoxbench.runner.cost import Running, added_prompt_tokens, running_costs, working_seconds
from detoxbench.runner.fits import FITS, Fit, all_fits, fitted_already, fitted_groups
from detoxbench.runner.loaded import fitted_intervention, generating_model, language_model
from detoxbench.runner.processes import together
from detoxbench.suites.base import Probe

if TYPE_CHECKING:
    from detoxbench.engine.generation import Generated
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

READINGS = "base_readings.partial.jsonl"
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
    """A line of base_readings.partial.jsonl: the reading of a sample."""

    id: str
    sample: int
    base: BaseReading | None


def generated(cell: RunCell) -> tuple[list[Sample], Generation]:
    """All samples, in the order of the requests, those of an earlier try included."""
    folder = cell.generation_folder
    samples_file, generation_file = folder / "samples.jsonl", folder / "generation.json"
    with cell.locked(folder) as held:
        if whole_or_aside(folder):
            return read_lines(samples_file, Sample), msgspec.json.decode(generation_file.read_bytes(), type=Generation)
        lm = generating_model(cell)
        resumed, start = folder.exists(), working_seconds(lm)
        computes = _arithmetic(cell, lm)
        answers, tokens_per_second = _answered(cell, held) if cell.texts is None else (_stored(cell, lm), None)
        once = not cell.per_record
        intervention, fit = (fitted_intervention(cell), None) if once else all_fits(cell, language_model(cell))
        samples = _read_by_base(cell, held, [g.sample for g in answers])
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
            seconds=None if resumed else working_seconds(lm) - start,
        )
        held()
        write_atomic(samples_file, encode_lines(samples))
        write_atomic(generation_file, encode(generation))
        seal(folder, [samples_file.name, generation_file.name, *([FITS] if cell.per_record else [])])
        for partial in (PARTIAL, READINGS):
            (folder / partial).unlink(missing_ok=True)
        log.info("generated %d samples at %.0f tokens/s", len(samples), tokens_per_second or 0)
        return samples, generation


def _answered(cell: RunCell, held: Held) -> tuple[list[Generated], float | None]:
    """What was generated for each request, in their order, and the speed: None where nothing was generated here.

    Each batch is appended to a file, where a killed run finds it again.
    """
    wanted = [(r.id, k) for r in cell.requests for k in range(cell.spec.gen.n if r.text is None else 1)]
    speed = together(_answer, cell, len(wanted), frozenset(_answers_there(cell)))
    held()
    there = _answers_there(cell)
    _require_all(cell, len(wanted) - len(there.keys() & set(wanted)))
    return [there[key] for key in wanted], speed


def _answers_there(cell: RunCell) -> dict[tuple[str, int], Generated]:
    """What has been generated, by request id and number of the sample."""
    from detoxbench.engine.generation import Generated

    fitted = fitted_already(cell)
    rows = gathered(cell.generation_folder / PARTIAL, Generated)
    return {(g.sample.id, g.sample.sample): g for g in rows if fitted is None or g.sample.record in fitted}


def _answer(cell: RunCell, share: Share, wanted: int, done: Collection[tuple[str, int]]) -> float | None:
    """Generate this process's share of the samples that are not `done`, of all that are wanted. Returns its tokens a
    second; None where it had none to make."""
    from detoxbench.engine.generation import Generated

    lm, tokens, seconds = generating_model(cell), 0, 0.0
    answers = _answers_per_record if cell.per_record else _answers
    with (
        appending(of_process(cell.generation_folder / PARTIAL, share.rank), Generated) as (_, append),
        bar(f"{cell.method.name}: {cell.suite.name}", wanted, done=len(done)) as advance,
    ):
        for batch, took in answers(cell, lm, done, share):
            append(batch)
            tokens += sum(g.sample.tokens for g in batch)
            seconds += took
            advance(len(batch) * share.ranks)  # the others are about as far
    return tokens / seconds if tokens else None


def _require_all(cell: RunCell, missing: int) -> None:
    """Raises DetoxbenchError where what other processes have made is not to be seen."""
    if missing:
        raise DetoxbenchError(
            f"{missing} samples that other processes have made are not in '{cell.generation_folder}': runs_dir must be "
            "one folder for all processes"
        )


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


def _read_by_base(cell: RunCell, held: Held, samples: Sequence[Sample]) -> list[Sample]:
    """The samples, the generated ones with their readings by the unmodified model."""
    chosen = broken_text.read_ones(samples)
    if not chosen:
        return list(samples)
    together(_read, cell, chosen, frozenset(_readings_there(cell)))
    held()
    there = _readings_there(cell)
    _require_all(cell, sum((s.id, s.sample) not in there for s in chosen))
    return [msgspec.structs.replace(s, base=there.get((s.id, s.sample))) for s in samples]


def _readings_there(cell: RunCell) -> dict[tuple[str, int], BaseReading | None]:
    """The readings that have been made, by request id and number of the sample."""
    return {(row.id, row.sample): row.base for row in gathered(cell.generation_folder / READINGS, _Reading)}


def _read(cell: RunCell, share: Share, chosen: Sequence[Sample], done: Collection[tuple[str, int]]) -> None:
    """Read this process's share of the `chosen` samples that are not `done`, by whole chunks of them all."""
    from detoxbench.runner.base_reading import chunks, readings

    lm, requests = generating_model(cell), {request.id: request for request in cell.requests}
    left = [chunk for chunk in chunks(chosen) if any((s.id, s.sample) not in done for s in chunk)]
    with (
        appending(of_process(cell.generation_folder / READINGS, share.rank), _Reading) as (_, append),
        bar(f"{cell.method.name}: the base reads", len(chosen), done=len(done)) as advance,
    ):
        for chunk in share.of(left):
            append(
                [_Reading(s.id, s.sample, read) for s, read in zip(chunk, readings(lm, requests, chunk), strict=True)]
            )
            advance(len(chunk) * share.ranks)


def _arithmetic(cell: RunCell, lm: LanguageModel) -> dict[str, Any]:
    """How the model computes; logs a warning where that is not what `model.dtype` says."""
    from detoxbench.runner.provenance import arithmetic

    computes = arithmetic(lm.model) if lm.backend is None else lm.backend.described()
    if cell.spec.model.dtype == "float32" and computes["products"] != "float32":
        log.warning(
            "model.dtype=float32, but products are made in %s (autocast, torch.set_float32_matmul_precision or an "
            "environment variable such as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE): texts depend on their batch",
            computes["products"],
        )
    return computes


def _answers(
    cell: RunCell, lm: LanguageModel, done: Container[tuple[str, int]], share: Share
) -> Iterator[tuple[list[Generated], float]]:
    """Batches of a share of the samples that are not `done` yet, under the one intervention, with the seconds that each
    took."""
    if cell.suite.probe is not None:
        probe = cell.suite.probe(lm, cell.suite.config, cell.requests)
        left = [r for r in cell.requests if (r.id, 0) not in done]
        yield from _probed(lm, fitted_intervention(cell), probe, share.of(left))
        return
    with lm.applied(fitted_intervention(cell)):
        start = working_seconds(lm)
        for batch in sample_requests(cell, lm, [cell.requests], done, share):
            yield batch, working_seconds(lm) - start
            start = working_seconds(lm)


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
    cell: RunCell,
    lm: LanguageModel,
    parts: Sequence[Sequence[Request]],
    done: Container[tuple[str, int]],
    share: Share = ALONE,
) -> Iterator[list[Generated]]:
    """A share of the samples of all `parts` that are not `done` yet. Given texts are read, in chunks within each part;
    the others are generated, in batches over all parts. What is in a chunk or a batch depends neither on what is done
    nor on the share, which is one of whole chunks and batches."""
    from detoxbench.engine.generation import generate
    from detoxbench.engine.likelihood import CHUNK, loglikelihoods

    for requests in parts:
        to_read = [r for r in requests if r.text is not None]
        chunks = [to_read[start : start + CHUNK] for start in range(0, len(to_read), CHUNK)]
        left = [chunk for chunk in chunks if any((r.id, 0) not in done for r in chunk)]
        own = {r.id for chunk in share.of(left) for r in chunk if (r.id, 0) not in done}
        yield from loglikelihoods(lm, to_read, own)
    to_generate = [r for requests in parts for r in requests if r.text is None]
    yield from generate(lm, to_generate, cell.spec.gen, cell.spec.seed, done=done, share=share)


def _answers_per_record(
    cell: RunCell, lm: LanguageModel, done: Container[tuple[str, int]], share: Share
) -> Iterator[tuple[list[Generated], float]]:
    """Each record's samples under the intervention fitted on it, several records in one batch, with the seconds that
    generating them took. The share is one of whole groups of records."""
    requests = _by_record(cell.requests)
    for group in fitted_groups(cell, language_model(cell), requests, done, share):
        # With another engine one record is routed, too: what it carries does not hang on how many records there are.
        alone = len(group) == 1 and lm.backend is None
        with lm.applied(*group.values()) if alone else lm.routed(group):
            start = working_seconds(lm)
            for batch in sample_requests(cell, lm, [requests[record] for record in group], done):
                yield batch, working_seconds(lm) - start
                start = working_seconds(lm)


def _by_record(requests: Sequence[Request]) -> dict[str, list[Request]]:
    by_record: dict[str, list[Request]] = {}
    for request in requests:
        by_record.setdefault(request.record, []).append(request)
    return by_record
