"""What a block of work and an intervention cost, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detoxbench.config import BASE, GenSpec
from detoxbench.records import Request
from detoxbench.runner.cell import RunCell

if TYPE_CHECKING:
    import torch

    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

TIMED_REQUESTS, TIMED_TOKENS, ROUNDS = 16, 16, 5
"""The relative speed is the median over rounds, without and with the intervention in turn, on so much work."""


class Meter:
    """`with Meter(device) as m:` measures `m.seconds` and `m.peak_mb`: the most memory held during the block, the model
    included, of the GPU or (on Linux) of the process; None where it cannot be measured."""

    seconds: float
    peak_mb: float | None

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Meter:
        import torch

        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _reset_process_peak()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.peak_mb = torch.cuda.max_memory_allocated(self._device) / 2**20
        else:
            self.peak_mb = _process_peak_mb()
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

    before = tokens()
    with lm.applied(intervention):
        return (tokens() - before) / len(cell.requests)


class Relative(NamedTuple):
    """The cost of a token under an intervention, relative to the cost without; None where there are no tokens."""

    speed: float | None
    passes: float | None


def relative_costs(cell: RunCell, lm: LanguageModel, intervention: Intervention) -> Relative:
    """The speed: tokens a second, the median over rounds taken in turn in this process. The passes: rows in all forward
    passes that the same tokens took."""
    if cell.method.name == BASE:
        return Relative(1.0, 1.0)
    sample = cell.requests[:TIMED_REQUESTS]
    if all(r.text is not None and not r.text for r in sample):
        return Relative(None, None)
    speeds, passes = [], 1.0
    for _ in range(ROUNDS):
        plain_seconds, plain_rows = _timed(cell, lm, sample)
        with lm.applied(intervention):
            seconds, rows = _timed(cell, lm, sample)
        speeds.append(plain_seconds / seconds)
        passes = rows / plain_rows
    return Relative(statistics.median(speeds), passes)


def _timed(cell: RunCell, lm: LanguageModel, sample: Sequence[Request]) -> tuple[float, int]:
    """(seconds, rows in all forward passes) for reading and generating the same number of tokens on both sides: no text
    ends early, and no near-tie is looked at twice."""
    from detoxbench.engine.generation import generate
    from detoxbench.engine.likelihood import loglikelihoods

    gen = GenSpec(
        max_new_tokens=min(TIMED_TOKENS, cell.spec.gen.max_new_tokens),
        tie_tolerance=0,
        batch_tokens=cell.spec.gen.batch_tokens,
    )
    to_read, to_generate = [r for r in sample if r.text], [r for r in sample if r.text is None]
    rows = 0

    def count(_: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        nonlocal rows
        rows += len(args[0] if args else kwargs["input_ids"])

    handle = lm.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        start = time.perf_counter()
        for _ in loglikelihoods(lm, to_read, {r.id for r in to_read}):
            continue
        for _ in generate(lm, to_generate, gen, 0, ends=frozenset()):
            continue
        return time.perf_counter() - start, rows
    finally:
        handle.remove()
