"""What a block of work and an intervention cost, measured."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detoxbench.config import BASE, GenSpec
from detoxbench.records import Request
from detoxbench.runner.cell import RunCell
from detoxbench.runner.loaded import vllm_in_memory

if TYPE_CHECKING:
    import torch

    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel
    from detoxbench.model.in_force import Outcome, OutputFunction

TIMED_REQUESTS, TIMED_TOKENS, ROUNDS = 16, 16, 5
"""Costs of generating are measured on so much work, the speed so many times."""


def working_seconds(lm: LanguageModel) -> float:
    """A clock for differences that stands still while an engine loads."""
    return time.perf_counter() - (lm.backend.loading_seconds if lm.backend is not None else 0.0)


class Meter:
    """`with Meter(*lm.devices) as m:` measures `m.seconds` and `m.peak_mb`: the most memory held during the block, the
    model included, of the GPUs together or (on Linux) of the process; None where it cannot be measured, or where vLLM
    holds memory beside the model."""

    seconds: float
    peak_mb: float | None

    def __init__(self, *devices: torch.device) -> None:
        self._gpus = [device for device in devices if device.type == "cuda"]

    def __enter__(self) -> Meter:
        import torch

        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        if not self._gpus:
            _reset_process_peak()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        for gpu in self._gpus:
            torch.cuda.synchronize(gpu)
        peaks = [torch.cuda.max_memory_allocated(gpu) / 2**20 for gpu in self._gpus]
        self.peak_mb = None if vllm_in_memory() else sum(peaks) if peaks else _process_peak_mb()
        self.seconds = time.perf_counter() - self._start


def _reset_process_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM to what is held now
    except OSError:
        return


def _process_peak_mb() -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        return None
    return None


def added_prompt_tokens(cell: RunCell, lm: LanguageModel, intervention: Intervention) -> float:
    """Mean over the requests."""

    def tokens() -> int:
        return sum(len(lm.encode(r.prompt, r.chat)) for r in cell.requests)

    if not intervention.prompts:
        return 0.0
    # The rest of it would be put on for nothing, with a copy of every weight that it changes.
    rewriting = type(intervention)(method=intervention.method, base=intervention.base, prompts=intervention.prompts)
    before = tokens()
    with lm.applied(rewriting):
        return (tokens() - before) / len(cell.requests)


class Running(NamedTuple):
    """What generating under an intervention costs; None where it was not measured."""

    speed: float | None = None
    """Tokens a second over the base model's."""
    passes: float | None = None
    """Rows in all forward passes for the same tokens, over the base model's."""
    peak_mb: float | None = None
    """The most memory held, as `Meter` has it."""
    guide_seconds: float | None = None
    """Seconds that guides took, a text that was asked for; None where the intervention asks none."""


def running_costs(cell: RunCell, lm: LanguageModel, intervention: Intervention) -> Running:
    """Measured on the first requests; the speed is the median over rounds, without and with it in turn."""
    sample = cell.requests[:TIMED_REQUESTS]
    if all(r.text is not None and not r.text for r in sample):
        return Running()
    if lm.backend is not None:
        return _costs_elsewhere(cell, lm, intervention, sample)
    if cell.method.name == BASE:
        with Meter(*lm.devices) as meter:
            _timed(cell, lm, sample)
        return Running(1.0, 1.0, meter.peak_mb)
    speeds, guiding = list[float](), list[float]()
    for _ in range(ROUNDS):
        plain = _timed(cell, lm, sample)
        with lm.applied(intervention), Meter(*lm.devices) as meter:
            under = _timed(cell, lm, sample)
        speeds.append(plain.seconds / under.seconds)
        guiding.append(under.guide_seconds / len(sample))
    asked = statistics.median(guiding) if intervention.outputs else None
    return Running(statistics.median(speeds), under.rows / plain.rows, meter.peak_mb, asked)


def _costs_elsewhere(
    cell: RunCell, lm: LanguageModel, intervention: Intervention, sample: Sequence[Request]
) -> Running:
    """`running_costs` where another engine makes the forward passes: it holds memory of its own and counts no passes of
    ours. Nor is there a speed where its model would be loaded anew for each of the rounds."""
    if cell.method.name == BASE:
        return Running(1.0)
    if not lm.swaps(intervention):
        return Running()
    speeds, guiding = list[float](), list[float]()
    for _ in range(ROUNDS):
        _timed(cell, lm, sample[:1])  # what was put on is taken off, and its cache is empty
        plain = _timed(cell, lm, sample)
        with lm.applied(intervention):
            _timed(cell, lm, sample[:1])  # it is put on when it is first needed
            under = _timed(cell, lm, sample)
        speeds.append(plain.seconds / under.seconds)
        guiding.append(under.guide_seconds / len(sample))
    asked = statistics.median(guiding) if intervention.outputs else None
    return Running(statistics.median(speeds), guide_seconds=asked)


class _Timed(NamedTuple):
    """Seconds in all, rows in all forward passes, and the seconds of guides among them."""

    seconds: float
    rows: int
    guide_seconds: float


def _timed(cell: RunCell, lm: LanguageModel, sample: Sequence[Request]) -> _Timed:
    """Reading and generating the same number of tokens on both sides: no text ends early, and no near-tie is looked at
    twice."""
    from detoxbench.engine.generation import generate
    from detoxbench.engine.likelihood import loglikelihoods

    gen = GenSpec(
        max_new_tokens=min(TIMED_TOKENS, cell.spec.gen.max_new_tokens),
        tie_tolerance=0,
        batch_tokens=cell.spec.gen.batch_tokens,
    )
    to_read, to_generate = [r for r in sample if r.text], [r for r in sample if r.text is None]
    with _rows_counted(lm) as rows, _guides_timed(lm) as guiding:
        start = time.perf_counter()
        for _ in loglikelihoods(lm, to_read, {r.id for r in to_read}):
            continue
        for _ in generate(lm, to_generate, gen, 0, ends=frozenset()):
            continue
        seconds = time.perf_counter() - start
    return _Timed(seconds, sum(rows), sum(guiding))


@contextmanager
def _rows_counted(lm: LanguageModel) -> Iterator[list[int]]:
    """The rows of every forward pass made meanwhile."""
    rows: list[int] = []

    def count(_: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        rows.append(len(args[0] if args else kwargs["input_ids"]))

    handle = lm.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@contextmanager
def _guides_timed(lm: LanguageModel) -> Iterator[list[float]]:
    """The seconds of every question that a guide in force is asked meanwhile."""
    seconds: list[float] = []

    def timed(function: OutputFunction) -> OutputFunction:
        def decide(prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> Sequence[Outcome]:
            start = time.perf_counter()
            outcomes = function.decide(prompts, candidates)
            seconds.append(time.perf_counter() - start)
            return outcomes

        return dataclasses.replace(function, decide=decide)

    functions = list(lm.in_force.outputs)
    lm.in_force.outputs[:] = map(timed, functions)
    try:
        yield seconds
    finally:
        lm.in_force.outputs[:] = functions
