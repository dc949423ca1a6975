"""The first stage: what the method learns, once for the suite or once for each of its records."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from detoxbench.config import GenSpec, digest
from detoxbench.engine.share import ALONE, Share
from detoxbench.files.lines import appending, chained_lines, encode, gathered, of_process, unfinished_lines
from detoxbench.files.sealing import seal, whole_or_aside
from detoxbench.files.writing import write_atomic, write_folder
from detoxbench.fitting.shelf import sharing
from detoxbench.interventions.channels import weights
from detoxbench.records import Request
from detoxbench.runner.cell import RunCell
from detoxbench.runner.cost import Meter
from detoxbench.runner.loaded import language_model
from detoxbench.runner.shelf import RunShelf

if TYPE_CHECKING:
    from pathlib import Path

    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

FITS = "fits.jsonl"
"""What each fit recorded, where every record has its own."""

log = logging.getLogger("detoxbench")


class Fit(msgspec.Struct):
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


class RecordFit(msgspec.Struct):
    """A line of fits.jsonl: the fit for one record, whose intervention is not kept."""

    record: str
    seconds: float
    peak_mb: float | None
    info: dict[str, Any]
    digest: str | None = None
    group: str = ""
    """The first of the records that share its batches: a killed run resumes with a whole group."""


def fit_once(cell: RunCell) -> Fit:
    """Fit and save the intervention unless it is on disk already; return what the fit cost."""
    with cell.locked(cell.fit_folder) as held:
        if whole_or_aside(cell.fit_folder):
            return msgspec.json.decode((cell.fit_folder / "fit.json").read_bytes(), type=Fit)
        lm, shelf = language_model(cell), RunShelf(cell)
        with sharing(shelf), Meter(*lm.devices) as meter:
            intervention = cell.method.fit(lm, cell.data)
        changes = weights.record(lm, intervention.weights)
        info = {**intervention.info, **weights.as_info(changes)}
        seconds, peak_mb = meter.seconds + shelf.seconds, max((meter.peak_mb, *shelf.peaks_mb), key=lambda mb: mb or 0)
        fit = _fit_of(cell, intervention, changes, seconds, peak_mb, info)
        fit.digest = intervention.digest()

        def fill(folder: Path) -> None:
            intervention.save(folder / "intervention")
            write_atomic(folder / "fit.json", encode(fit))
            seal(folder)

        held()
        write_folder(cell.fit_folder, fill)
        log.info("fitted %s in %.1f s", cell.method.name, fit.seconds)
        return fit


def _fit_of(
    cell: RunCell,
    intervention: Intervention,
    changes: weights.Record | None,
    seconds: float,
    peak_mb: float | None,
    info: dict[str, Any],
) -> Fit:
    return Fit(
        seconds=seconds,
        peak_mb=peak_mb,
        examples=cell.method.examples(cell.data),
        changed_parameters=changes.merged_parameters if changes else 0,
        added_parameters=intervention.added_parameters() + (changes.side_path_parameters if changes else 0),
        artifact_bytes=intervention.artifact_bytes(),
        info=info,
    )


def fitted_groups(
    cell: RunCell,
    lm: LanguageModel,
    requests: Mapping[str, Sequence[Request]],
    done: Container[tuple[str, int]],
    share: Share = ALONE,
) -> Iterator[dict[str, Intervention]]:
    """Groups of records with the intervention of each, fitted here. A group is as large as a batch has rows and
    `gen.edits_mb` has room for; an intervention that cannot differ by row is a group of its own. The first group is
    that of the first record that lacks samples; `done` holds the (request id, sample) that exist.

    What a fit recorded is on disk before its samples are, so that every record that has samples has it. Several
    processes share the groups as they are if all changes are as large as the first record's.
    """
    names, gen, path = list(cell.records), cell.spec.gen, cell.generation_folder / FITS
    earlier = unfinished_lines(path, RecordFit)
    stretches = [range(len(names))] if share.ranks == 1 else _stretches(cell, lm, requests)
    left = [s for s in stretches if any(_lacks(requests[names[i]], gen.n, done) for i in s)]
    wanted = [s[_first_to_fit([names[i] for i in s], requests, gen.n, done, earlier) :] for s in share.of(left)]
    fits = cell.method.fit_many(lm, list(cell.records.values()), [i for stretch in wanted for i in stretch])
    with appending(of_process(path, share.rank), RecordFit) as (_, append):
        for stretch in wanted:
            yield from _groups(lm, gen, {names[i]: requests[names[i]] for i in stretch}, fits, append)


def _groups(
    lm: LanguageModel,
    gen: GenSpec,
    requests: Mapping[str, Sequence[Request]],
    fits: Iterator[Intervention],
    append: Callable[[Sequence[RecordFit]], None],
) -> Iterator[dict[str, Intervention]]:
    """`fitted_groups` of the records that `requests` are by."""
    group: dict[str, Intervention] = {}
    filling = _Filling(gen)
    for record, asked in requests.items():
        with Meter(*lm.devices) as meter:
            intervention = next(fits)
        full = not filling.takes(_size(lm, intervention), len(asked))
        first = record if full or not group else next(iter(group))
        changes, digest = weights.record(lm, intervention.weights), intervention.digest()
        info = {**intervention.info, **weights.as_info(changes)}
        append([RecordFit(record, meter.seconds, meter.peak_mb, info, digest, first)])
        if group and full:
            yield group
            group.clear()  # here, so that it is not held in memory while the next is fitted
        group[record] = intervention
        del intervention
    if group:
        yield group


class _Filling:
    """How full a group of records is."""

    def __init__(self, gen: GenSpec) -> None:
        self._gen = gen
        self._bytes, self._rows = 0.0, 0

    def takes(self, size: float, requests: int) -> bool:
        """Put a record in, with a change of `size` bytes; False where it is the first of a new group."""
        rows = requests * self._gen.n
        all_bytes, all_rows = self._bytes + size, self._rows + rows
        full = all_bytes > self._gen.edits_mb * 2**20 or all_rows * self._gen.max_new_tokens > self._gen.batch_tokens
        self._bytes, self._rows = (size, rows) if full else (all_bytes, all_rows)
        return not full


def _size(lm: LanguageModel, intervention: Intervention) -> float:
    """Bytes that a group has to have room for; infinite for what cannot differ by row."""
    from detoxbench.interventions.routing import routable

    return intervention.artifact_bytes() if routable(lm, intervention) else math.inf


def _stretches(cell: RunCell, lm: LanguageModel, requests: Mapping[str, Sequence[Request]]) -> list[range]:
    """The records, by index, of each group if all changes are as large as that of the first record, which is fitted."""
    size = _size(lm, next(cell.method.fit_many(lm, list(cell.records.values()), [0])))
    filling = _Filling(cell.spec.gen)
    begins = [i for i, record in enumerate(cell.records) if not filling.takes(size, len(requests[record])) or i == 0]
    return [range(begin, end) for begin, end in pairwise([*begins, len(cell.records)])]


def _first_to_fit(
    names: Sequence[str],
    requests: Mapping[str, Sequence[Request]],
    n: int,
    done: Container[tuple[str, int]],
    earlier: Sequence[RecordFit],
) -> int:
    """The index of the record to go on at: the first of the group of the first record that lacks a sample."""
    groups = {fit.record: fit.group for fit in earlier}
    record = next((name for name in names if _lacks(requests[name], n, done)), None)
    return len(names) if record is None else names.index(groups.get(record) or record)


def _lacks(requests: Sequence[Request], n: int, done: Container[tuple[str, int]]) -> bool:
    """Whether a record with these requests lacks a sample."""
    return any((r.id, k) not in done for r in requests for k in range(n if r.text is None else 1))


def all_fits(cell: RunCell, lm: LanguageModel) -> tuple[Intervention, Fit]:
    """The first record's intervention, fitted again to measure costs on, and all records' fits as one."""
    by_record = fitted_already(cell) or {}
    fits = [by_record[record] for record in cell.records]
    path = cell.generation_folder / FITS
    write_atomic(path, chained_lines(path, fits))  # so a run that is killed before the stage is whole finds all fits
    first = next(cell.method.fit_many(lm, list(cell.records.values()), [0]))
    seconds = [fit.seconds for fit in fits]
    info = {"records": len(fits), "seconds_per_record": statistics.mean(seconds), **merged([fit.info for fit in fits])}
    peak = max((fit.peak_mb for fit in fits if fit.peak_mb is not None), default=None)
    log.info("fitted %s for each of %d records in %.1f s", cell.method.name, len(fits), sum(seconds))
    whole = _fit_of(cell, first, weights.record(lm, first.weights), sum(seconds), peak, info)
    whole.digest = digest([fit.digest for fit in fits])
    return first, whole


def fitted_already(cell: RunCell) -> dict[str, RecordFit] | None:
    """What earlier tries recorded of each record's fit (the last, of one that was fitted twice); None under one fit."""
    if not cell.per_record:
        return None
    return {fit.record: fit for fit in gathered(cell.generation_folder / FITS, RecordFit)}


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
