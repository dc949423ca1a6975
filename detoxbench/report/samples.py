"""The texts of the sample browser: the same prompt under every method, within a stated size.

Texts are untrusted and stay data: the page reads them from JSON and puts them into the document as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from detoxbench.errors import DetoxbenchError
from detoxbench.records import Sample, Scored
from detoxbench.report.content import Content, Section
from detoxbench.results import broken_text
from detoxbench.results.store import Run, is_run

INSIDE = 3_000_000
"""Bytes of samples in the page itself, over all tables; the other samples go to a side file a table."""
BESIDE = 40_000_000
"""Bytes of a side file at most; the other samples are in the runs' samples.jsonl only, and the page says so."""


@dataclass(frozen=True)
class Block:
    """The samples of one table, as the page reads them.

    `requests`: [id, record, kind, prompt]; `given`: the texts are read, not written. `outputs[i]` are request i's:
    [row, seed, sample, text, stop, tokens, *scores] with `text` an index into `texts` and scores in the order of
    `columns` (null is missing). `main` is the column that verdicts are made from, None where nothing is judged.
    """

    requests: list[tuple[str, str, str, str]]
    outputs: list[list[list[Any]]]
    texts: list[str]
    columns: list[str]
    main: str | None
    given: bool

    @property
    def size(self) -> int:
        """Bytes that it takes in the page or in a side file."""
        return len(for_script(self).encode())


@dataclass(frozen=True)
class Chosen:
    """The samples of one table: those in the page, those in its side file (None without one), and how many records
    there are."""

    inside: Block
    beside: Block | None
    records: int


def samples(content: Content, *, inside: int = INSIDE, beside: int = BESIDE) -> list[Chosen]:
    """The samples of each section. Only whole records (a prompt, or all questions of one record) are taken, evenly
    spread."""
    read = [_read(content, section, beside) for section in content.sections]
    wholes = [_block(answers, list(answers)) for answers, _ in read]
    sizes = [block.size for block in wholes]
    chosen = []
    for (answers, records), whole, size, share in zip(read, wholes, sizes, _shared(sizes, inside), strict=True):
        inside_records = list(answers)
        block = whole
        while inside_records and size > share:
            inside_records = spread(
                inside_records, min(len(inside_records) - 1, int(len(inside_records) * share / size))
            )
            block = _block(answers, inside_records)
            size = block.size
        within = set(inside_records)
        rest = [record for record in answers if record not in within]
        chosen.append(Chosen(block, _block(answers, rest) if rest else None, records))
    return chosen


def for_script(value: Any) -> str:
    """JSON that can stand inside a <script> element: nothing in it ends the element or opens a comment."""
    encoded = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029\x7f":
        encoded = encoded.replace(character, f"\\u{ord(character):04x}")
    return encoded


def spread(items: Sequence[str], n: int) -> list[str]:
    """`n` of `items` in their order, evenly spread."""
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _shared(sizes: Sequence[int], budget: int) -> list[int]:
    """The bytes for each size: small sizes get all they need, the others equal parts of the rest of `budget`."""
    shares = [0] * len(sizes)
    left = budget
    for done, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        shares[i] = min(sizes[i], left // (len(sizes) - done))
        left -= shares[i]
    return shares


AnswersByRecord = dict[str, list[tuple[int, int, Sample, Scored, bool | None]]]
"""Record -> (row, seed, sample, its scores, whether it is broken: None where that is unknown) of all runs."""


def _read(content: Content, section: Section, limit: int) -> tuple[AnswersByRecord, int]:
    """The records that a side file of `limit` bytes can hold, by the size of the files, and how many there are."""
    runs = [
        (i, *content.records[run_id])
        for i in section.measured
        for run_id in section.table.rows[i].run_ids
        if run_id in content.records
    ]
    answers: AnswersByRecord = {}
    total = 0
    size = sum(path.stat().st_size for _, run, _ in runs for path in run.folder.glob("s*.jsonl"))
    bases: dict[Path, Sequence[Sample] | None] = {}
    for number, (row, run, record) in enumerate(runs):
        try:
            run_samples, base = run.samples(), run.folder.with_name(record.base_run_id or record.run_id)
            if base not in bases:
                bases[base] = Run(base).samples() if is_run(base) else None
            broken = _broken(run_samples, bases[base] if "broken_share" in record.metrics else None)
            pairs = [(s, c, b) for s, c, b in zip(run_samples, run.scores(), broken, strict=True) if s.prompt or s.text]
        except (OSError, ValueError) as error:
            raise DetoxbenchError(
                f"the samples of run {run.folder.name} cannot be read ({error}): delete its folder and run it again"
            ) from None
        if number == 0:
            records = list(dict.fromkeys(sample.record for sample, *_ in pairs))
            total = len(records)
            answers = {r: [] for r in spread(records, int(total * min(1.0, limit / max(1, size))))}
        for sample, scored, is_broken in pairs:
            if sample.record in answers:
                answers[sample.record].append((row, record.seed, sample, scored, is_broken))
    return answers, total


def _broken(samples: Sequence[Sample], base: Sequence[Sample] | None) -> list[bool | None]:
    """For each sample whether it is broken, as `broken_share` counts it; None without a base that can judge it."""
    if base is None:
        return [None] * len(samples)
    read = broken_text.read_ones(samples)
    broken = {(s.id, s.sample): r is not None for s, r in zip(read, broken_text.reasons(read, base), strict=True)}
    return [broken.get((s.id, s.sample)) for s in samples]


def _block(answers: AnswersByRecord, records: Sequence[str]) -> Block:
    # 1. Every answer to these records, with what is shown of its scores.
    flat = [
        (record, row, seed, sample, _values(sample, scored, broken))
        for record in records
        for row, seed, sample, scored, broken in answers[record]
    ]
    columns = list(dict.fromkeys(column for *_, values in flat for column in values))
    # 2. By request, in the order in which they come first; a text is written once and then named by its number.
    requests: dict[str, tuple[str, str, str, str]] = {}
    by_request: dict[str, list[tuple[int, int, Sample, dict[str, float]]]] = {}
    for record, row, seed, sample, values in flat:
        requests.setdefault(sample.id, (sample.id, record, sample.label, sample.prompt))
        by_request.setdefault(sample.id, []).append((row, seed, sample, values))
    texts: dict[str, int] = {}
    outputs = [
        [
            [
                row, seed, s.sample, texts.setdefault(s.text, len(texts)), s.stop, s.tokens,
                *(_rounded(values.get(column)) for column in columns),
            ]
            for row, seed, s, values in several
        ]
        for several in by_request.values()
    ]  # fmt: skip
    only_read = all(sample.stop == "given" for _, _, _, sample, _ in flat)
    return Block(list(requests.values()), outputs, list(texts), columns, _main(columns), only_read)


def _values(sample: Sample, scored: Scored, broken: bool | None) -> dict[str, float]:
    """The scores of an answer that are shown, by column."""
    values = {
        f"{slot}/{name}": value
        for slot, slot_scores in scored.scores.items()
        for name, value in (slot_scores or {}).items()
        if slot == "main" or name != "degenerate"  # it is the same from every scorer
    }
    if sample.nll is not None:
        values["nll"] = sample.nll
    if broken is not None:
        values["broken"] = float(broken)
    return values


def _main(columns: Sequence[str]) -> str | None:
    """The column that verdicts are made from."""
    judged = [column for column in columns if column.startswith("main/") and column != "main/degenerate"]
    # Where a scorer has several columns the one that suites read is called toxicity; else it has but one.
    return "main/toxicity" if "main/toxicity" in judged else next(iter(judged), None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
