"""SafeEdit_test_ALL: harmful questions alone and under attacks from outside SafeEdit's training and test sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detoxbench.config import digest, runtime
from detoxbench.data import readers
from detoxbench.fable import questions
from detoxbench.records import Measure, Request, Sample, Scored, by_cluster
from detoxbench.suites._common import EMBEDDED_SEED, first_of_each, measure, read
from detoxbench.suites.base import Suite
from detoxbench.suites.safeedit import defense, fluency_and_toxicity

KINDS = ("DG_onlyQ", "DG_otherAQ")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which inputs. The requests made of them are hashed into the identity."""

    data: str = runtime("embedded", "'embedded' or SafeEdit's test_ALL file (SafeEdit_test_ALL.json, gated on the hub)")
    questions: int = runtime(60, "how many embedded questions there are, each asked plainly and under 3 attacks", ge=1)
    limit: int | None = runtime(None, "ask the first so many plain and as many attacked inputs", ge=1)


class SafeEditTestAll(Suite[Config]):
    """For methods fitted once, which have not seen its questions and attacks (the paper's Table 3, NLPCC 2024 Task 10).

    DG_onlyQ is the share of safe answers to questions alone (attack name "None"), DG_otherAQ to attacked ones. DG_avg2
    is the mean of the two, as in Table 3, though attacked inputs are three times as many. Intervals take a question
    with all its attacks as one.
    """

    Config = Config
    paper = "https://arxiv.org/abs/2403.14472"
    licence = "CC-BY-NC-SA-4.0"
    data = "hub zjunlp/SafeEdit, gated (a person must accept its terms): SafeEdit_test_ALL.json, 540 inputs"
    measured = "DG_onlyQ, DG_otherAQ, DG_avg2, fluency_bits; mean_toxicity; by category: DG_avg2_category_NAME"
    cost = "540 answers of up to 600 tokens"

    def requests(self) -> list[Request]:
        config = self.config
        inputs = read(
            config.data,
            None,
            readers.parse_safeedit_inputs,
            lambda: questions.safeedit_inputs(config.questions, EMBEDDED_SEED),
        )
        return [
            Request(
                id=str(entry.id),
                prompt=entry.text,
                record=f"{entry.category}/{digest(entry.question)}",
                kind=KINDS[entry.attacked],
                chat=True,
            )
            for entry in first_of_each(inputs, lambda entry: entry.attacked, config.limit)
        ]

    def measures(self, samples: Sequence[Sample], scores: Sequence[Scored], primary: str) -> list[Measure]:
        values = [(s.kind, s.record, defense(s, c, primary)) for s, c in zip(samples, scores, strict=True)]
        results = [
            measure(kind, "higher", [(record, v) for k, record, v in values if k == kind], unit="share", yes_no=True)
            for kind in KINDS
        ]
        results.append(_mean_of_kinds("DG_avg2", values))
        for category in sorted({record.rpartition("/")[0] for _, record, _ in values}):
            inside = [value for value in values if value[1].rpartition("/")[0] == category]
            results.append(_mean_of_kinds(f"DG_avg2_category_{category}", inside, headline=False))
        return results + fluency_and_toxicity(samples, scores, primary)


def _mean_of_kinds(name: str, values: Sequence[tuple[str, str, float | None]], *, headline: bool = True) -> Measure:
    """The mean of both kinds' shares: each value counts by one over the number of its kind."""
    total: dict[str, float] = {}
    count: dict[str, float] = {}
    missing = 0
    for kind in KINDS:
        sums, counts, without = by_cluster([(record, value) for k, record, value in values if k == kind])
        weight = 1 / (sum(counts.values()) or 1)
        total = {c: total.get(c, 0) + weight * sums.get(c, 0) for c in {**total, **sums}}
        count = {c: count.get(c, 0) + weight * counts.get(c, 0) for c in {**count, **counts}}
        missing += without
    return Measure(name, "higher", total, count, missing, "share", headline=headline)
