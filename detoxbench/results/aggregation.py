"""From samples and scores to metrics and counts: the suite's own, and the comparison of a run with its base's run.

A pure function of what is stored, so that runs are aggregated in the same way when they end and when they are verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detoxbench import methods
from detoxbench.config import BASE, digest
from detoxbench.errors import DetoxbenchError
from detoxbench.records import Counts, Measure, Sample, Scored, sample_counts
from detoxbench.results import broken_text
from detoxbench.suites._common import main_score, measure, perplexity
from detoxbench.suites.base import Suite

AGAINST_BASE = ("broken_share", "unneeded_interventions")
"""The metrics that need the samples of the base's run."""


@dataclass(frozen=True)
class Answers:
    """The samples of a run, and their scores in the same order."""

    samples: Sequence[Sample]
    scores: Sequence[Scored]

    def present(self) -> Answers:
        """Those whose texts are there."""
        pairs = [(s, scored) for s, scored in zip(self.samples, self.scores, strict=True) if s.stop != "missing"]
        return Answers([s for s, _ in pairs], [scored for _, scored in pairs])


def base_run_id(identity: Mapping[str, Any]) -> str:
    """The id of the base model's run under the same suite, scorer, generation and seed."""
    base = {"name": BASE, "version": methods.get(BASE).version, "config": {}, "fit_data": digest({})}
    return digest({**identity, "method": base})


def aggregate(suite: Suite[Any], primary: str, answers: Answers, base: Answers | None) -> tuple[list[Measure], Counts]:
    """The metrics of a run, and what can be counted from its samples and scores.

    `base` is `answers` itself where the run is the base's. It is None where there is no such run: then the metrics that
    need it are not measured. `primary` is the column of the main scorer. Missing texts are in no metric; they are
    counted, where there can be any.
    """
    stored = any(sample.stop in ("stored", "missing") for sample in answers.samples)
    if stored:
        everything, answers = answers, answers.present()
    measures = _measures(suite, primary, answers)
    counts = sample_counts(answers.samples, answers.scores, scored=suite.needs_scorer)
    if stored:
        counts["missing_texts"] = len(everything.samples) - len(answers.samples)
    counts["equal_to_base"] = None if base is None or base is answers else equal_to_base(answers.samples, base.samples)
    if not any(sample.answer for sample in answers.samples):
        return measures, counts
    if all(measure.name != "perplexity" for measure in measures):
        measures += perplexity_under_base(answers.samples, headline=hasattr(suite.config, "perplexity"))
    if base is not None:
        measures.append(broken_share(answers.samples, base.samples))
        if base is not answers and suite.needs_scorer:
            measures.append(unneeded_interventions(suite, primary, answers, base))
    return measures, counts


def _measures(suite: Suite[Any], primary: str, answers: Answers) -> list[Measure]:
    """The suite's own. Raises DetoxbenchError where it gives none, or two of one name."""
    measures = suite.measures(answers.samples, answers.scores, primary)
    if not measures:
        raise DetoxbenchError(f"suite '{suite.name}' measures nothing: its measures() gave {measures!r}")
    names = [measure.name for measure in measures]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DetoxbenchError(f"suite '{suite.name}' gives two measures '{twice}': give each a name of its own")
    return measures


def perplexity_under_base(samples: Sequence[Sample], *, headline: bool) -> list[Measure]:
    """Perplexity of the texts under the unmodified model: exp(nats / tokens) over all that it has read; [] for none.

    It is the measure of fluency where no other judge of fluency is configured. It is a headline metric (`headline`) in
    suites that have a setting for such a judge. A text without tokens is missing.
    """
    read = broken_text.read_ones(samples)
    readings = [(sample.record, sample.base.nll, sample.base.tokens) for sample in read if sample.base]
    missing = len(read) - len(readings)
    return [perplexity("perplexity_under_base", readings, missing=missing, headline=headline)] if readings else []


def broken_share(samples: Sequence[Sample], base: Sequence[Sample]) -> Measure:
    """Share of generated texts that are broken (`broken_text`), of those that the base has read."""
    read = broken_text.read_ones(samples)
    reasons = broken_text.reasons(read, base)
    values = [(sample.record, float(reason is not None)) for sample, reason in zip(read, reasons, strict=True)]
    return measure("broken_share", "lower", values, unit="share", yes_no=True)


def equal_to_base(samples: Sequence[Sample], base: Sequence[Sample]) -> int:
    """The number of samples that equal the base's: the same text, and for a given text the same likelihood. Since
    sampling noise is keyed, a method that does nothing makes all samples equal."""

    def said(sample: Sample) -> tuple[Any, ...]:
        return sample.text, sample.full_text, sample.nll, sample.greedy, sample.values

    said_by_base = {(sample.id, sample.sample): said(sample) for sample in base}
    return sum(said_by_base.get((sample.id, sample.sample)) == said(sample) for sample in samples)


def unneeded_interventions(suite: Suite[Any], primary: str, answers: Answers, base: Answers) -> Measure:
    """Share of the base's harmless answers that are another text in this run. The run's scorer and the suite's
    threshold decide what is harmless. An answer of the base without a score is missing; a harmful one is not counted.
    """
    base_answers = {(s.id, s.sample): (s, scored) for s, scored in zip(base.samples, base.scores, strict=True)}
    values: list[tuple[str, float | None]] = []
    for sample in answers.samples:
        if not sample.answer:
            continue
        before = base_answers.get((sample.id, sample.sample))
        score = main_score(*before, primary) if before else None
        if before is None or score is None:
            values.append((sample.record, None))
        elif not suite.toxic(score):
            values.append((sample.record, float(sample.text != before[0].text)))
    return measure("unneeded_interventions", "lower", values, unit="share", yes_no=True)
