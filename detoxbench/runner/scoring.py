"""The third stage: the scores of every answer."""

from __future__ import annotations

import shutil
from collections.abc import Container, Mapping, Sequence

from detoxbench.errors import DetoxbenchError
from detoxbench.files.lines import appending, encode_lines, read_lines
from detoxbench.files.sealing import PARTIAL, seal, whole_or_aside
from detoxbench.files.writing import write_atomic
from detoxbench.progress import bar
from detoxbench.records import Sample, Scored
from detoxbench.runner.cell import RunCell
from detoxbench.scorers.asking import Asking, Score
from detoxbench.scorers.cache import remembering

SCORES, FAILED = "scores.jsonl", "failed.txt"
"""Files of the stage: the scores, and how many are missing because a scorer broke."""
SCORE_CHUNK = 1024
"""Samples scored, and written, at a time."""


def score(cell: RunCell, samples: Sequence[Sample]) -> tuple[list[Scored], int]:
    """The scores of all samples by all scorers, in the order of the samples; and how many are missing because a scorer
    failed, so that another try may get them.

    Raises DetoxbenchError, and keeps nothing, where a scorer has scored no text at all.
    """
    if whole_or_aside(cell.score_folder):
        return read_lines(cell.score_folder / SCORES, Scored), int((cell.score_folder / FAILED).read_text())
    if not cell.suite.needs_scorer:
        scores = [Scored(id=s.id, sample=s.sample, scores=dict.fromkeys(cell.scorers)) for s in samples]
        return _keep(cell, scores, 0), 0
    asking = {slot: Asking(scorer) for slot, scorer in cell.scorers.items()}
    scores = _scored(cell, samples, asking)
    try:
        for slot, each in asking.items():
            each.require_some([s.text for s in samples], [s.scores[slot] for s in scores], silent=slot != "main")
    except DetoxbenchError:
        shutil.rmtree(cell.score_folder)
        raise
    broken = sum(each.broken for each in asking.values())
    _keep(cell, scores, broken)
    (cell.score_folder / PARTIAL).unlink()
    return scores, broken


def _keep(cell: RunCell, scores: list[Scored], broken: int) -> list[Scored]:
    """Write the finished stage."""
    write_atomic(cell.score_folder / FAILED, str(broken).encode())
    write_atomic(cell.score_folder / SCORES, encode_lines(scores))
    seal(cell.score_folder, [SCORES, FAILED])
    return scores


def _scored(cell: RunCell, samples: Sequence[Sample], asking: Mapping[str, Asking]) -> list[Scored]:
    """Score the samples that an earlier try has not scored, chunk by chunk."""
    chats = {r.id for r in cell.requests if r.chat}
    judges = _judges(cell, asking)
    with (
        appending(cell.score_folder / PARTIAL, Scored, whole=SCORE_CHUNK) as (scores, append),
        bar(f"scoring by {cell.scorers['main'].name}", len(samples), done=len(scores)) as advance,
    ):
        while len(scores) < len(samples):
            chunk = samples[len(scores) : len(scores) + SCORE_CHUNK]
            rows = _scored_chunk(cell, chunk, judges, chats)
            if not any(each.broken for each in asking.values()):  # a resumed run scores the others again
                append(rows)
            scores += rows
            advance(len(rows))
    return scores


def _scored_chunk(
    cell: RunCell, chunk: Sequence[Sample], judges: Mapping[str, Score], chats: Container[str]
) -> list[Scored]:
    there = [s for s in chunk if s.stop != "missing"]
    texts = [s.text for s in there]
    prompts = {on: [_before(s, chats, reads_on=on) for s in there] for on in (False, True)}
    columns = {slot: iter(ask(texts, prompts[cell.scorers[slot].reads_on])) for slot, ask in judges.items()}
    return [
        Scored(
            id=s.id,
            sample=s.sample,
            scores={slot: None if s.stop == "missing" else next(values) for slot, values in columns.items()},
        )
        for s in chunk
    ]


def _judges(cell: RunCell, asking: Mapping[str, Asking]) -> dict[str, Score]:
    """By slot, the function that asks a scorer for the texts that no run has scored yet, and checks its scores."""
    identities = {"main": cell.identity["scorer"], **cell.identity["suite"]["scorers"]}
    stages = cell.score_folder.parent
    return {slot: remembering(cell.scorers[slot], stages, identities[slot], asking[slot].score) for slot in asking}


def _before(sample: Sample, chats: Container[str], *, reads_on: bool) -> str:
    """The prompt as a scorer is given it; see `Scorer.reads_on`."""
    seam = sample.prompt[-1:] + sample.text[:1]
    turn = reads_on and sample.id in chats and not any(c.isspace() for c in seam)
    return f"{sample.prompt}\n" if turn else sample.prompt
