"""A run's claims compared with its own samples and scores: every aggregate is computed again.

Needs no model and no scorer. It shows that a run's numbers are those of its samples and scores, that the samples are
all of what the suite asks, and that nothing in its identity was changed since. It cannot show that the texts are the
model's and the scores the scorer's: for that, somebody has to run it again.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple, get_type_hints

from detoxbench import scorers, suites
from detoxbench.config import BASE, IDENTITY_VERSION, SCHEMA_VERSION, build, choices_of, digest, identity
from detoxbench.errors import DetoxbenchError
from detoxbench.records import Counts, Sample, Scored
from detoxbench.results import broken_text, stats
from detoxbench.results.aggregation import AGAINST_BASE, Answers, aggregate, base_run_id
from detoxbench.results.store import Clusters, MetricRecord, Run, RunRecord, is_run
from detoxbench.suites.base import Suite
from detoxbench.text import one_line

SECTIONS = ("model", "method", "suite", "scorer", "gen")
"""The groups of settings in an identity."""
TOLERANCE = 1e-6
"""Relative: the last bits of sums differ between machines."""
OF_WIDTH = 1e-3
"""By how much of its width an interval may differ: quantiles of resamples and of t, between versions of libraries."""


class Problem(NamedTuple):
    """What does not match: the claimed value, and what it should be."""

    what: str
    claimed: Any
    recomputed: Any

    def __str__(self) -> str:
        return f"{self.what}: claimed {one_line(self.claimed)}, recomputed {one_line(self.recomputed)}"


@dataclass(frozen=True)
class Verification:
    """A run and what is wrong with it; `verified` when nothing is. `metrics`, `counts` and `clusters` are recomputed.
    They may hold more than the run claims, such as a metric that its version did not have."""

    run: str
    problems: list[Problem]
    record: RunRecord | None = None
    metrics: dict[str, MetricRecord] = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)
    clusters: Clusters | None = None

    @property
    def verified(self) -> bool:
        """Whether everything that could be computed again is as claimed."""
        return not self.problems


def verify(run: Run, data: Sequence[Path] = ()) -> Verification:
    """Check a run's folder against itself. What cannot be read or computed is a problem, too, and no exception.

    No file and no hub is asked for what the run names: runs come from strangers. Where a suite needs its data to
    compute a metric, `data` are files of one's own; each is read where a setting of the suite has its name.
    """
    try:
        record, clusters, samples, scores = run.record(), run.clusters(), run.samples(), run.scores()
    except Exception as error:  # its files are untrusted: whatever is wrong with them is the verdict
        return Verification(run.folder.name, [Problem("files", "a finished run", _error_text(error, run.folder))])
    problems: list[Problem] = []
    metrics: dict[str, MetricRecord] = {}
    counts: Counts = {}
    recomputed = Clusters.of([])
    try:
        problems += _identity(record, run.folder.name)
        problems += _pairing(samples, scores)
        if not problems:  # otherwise the rest means nothing
            suite = _suite(record, data)
            problems += _coverage(record, suite, samples)
            primary, answers = scorers.get(record.scorer).primary, Answers(samples, scores)
            base = _base(run, record, answers)
            measures, counts = aggregate(suite, primary, answers, base)
            problems += _without_base(record, base)
            problems += _counts(record.counts, counts, old=record.schema == 1)
            metrics, recomputed = stats.attach(measures), Clusters.of(measures)
            problems += _metrics(record.metrics, metrics)
            problems += _clusters(clusters, recomputed)
    except Exception as error:  # samples are untrusted: whatever a suite raises on them is a problem of the run
        problems.append(Problem("metrics", "those of its samples", _error_text(error, run.folder)))
    return Verification(run.folder.name, problems, record, metrics, counts, recomputed)


def _error_text(error: Exception, folder: Path) -> str:
    text = str(error).replace(f"{folder}/", "")
    if match := re.search(rf"{os.devnull}/([^'\"]+)", text):
        return f"'{one_line(match[1], 40)}' is not in the run: give your own, --data FILE"
    return text if isinstance(error, DetoxbenchError) else f"{type(error).__name__}: {text}"


def provenance_line(record: RunRecord) -> str:
    """Where a run says it was made."""
    provenance = record.provenance
    git = provenance.get("git") or {}
    commit = f"commit {git.get('commit', '?')[:12]}{' with uncommitted changes' if git.get('dirty') else ''}"
    packages = provenance.get("packages") or {}
    parts = [
        f"detoxbench {packages.get('detoxbench')}",
        f"torch {packages.get('torch')}",
        str(provenance.get("device")),
    ]
    return one_line(", ".join([*parts, *([commit] if git else [])]), 200)


def _identity(record: RunRecord, folder: str) -> Iterator[Problem]:
    """The run id, and that names, seed and settings shown to people are those of the identity."""
    claimed = record.identity
    if not 1 <= record.schema <= SCHEMA_VERSION:
        yield Problem("schema", record.schema, f"this version reads up to {SCHEMA_VERSION}")
        return
    if record.run_id != digest(claimed):
        yield Problem("run_id", record.run_id, digest(claimed))
    if folder != record.run_id:
        yield Problem("folder", folder, record.run_id)
    if bad := next((key for key in SECTIONS if not isinstance(claimed.get(key), dict)), None):
        yield Problem(f"identity.{bad}", claimed.get(bad), "a group of settings")
        return
    yield from _names(record)
    yield from _settings(record)
    expected = base_run_id(claimed)
    if record.base_run_id not in (None, expected):
        yield Problem("base_run_id", record.base_run_id, expected)


def _names(record: RunRecord) -> Iterator[Problem]:
    parts = record.identity
    expected = {key: parts[key].get("name") for key in ("method", "suite", "scorer")}
    claimed = {key: getattr(record, key) for key in expected}
    expected |= {key: parts.get(key) for key in ("seed", "schema")}
    claimed |= {"seed": record.seed, "schema": min(record.schema, IDENTITY_VERSION)}
    for key, value in expected.items():
        if claimed[key] != value:
            yield Problem(key, claimed[key], value)


def _settings(record: RunRecord) -> Iterator[Problem]:
    for section in SECTIONS:
        part = record.identity[section]
        settings = part if section in ("model", "gen") else part.get("config", {})
        shown = record.spec[section]
        for key, value in settings.items():
            if key in shown and shown[key] != value:
                yield Problem(f"spec.{section}.{key}", shown[key], value)


def _pairing(samples: Sequence[Sample], scores: Sequence[Scored]) -> Iterator[Problem]:
    keys = [(s.id, s.sample) for s in samples]
    if len(scores) != len(samples):
        yield Problem("scores", f"{len(scores)} lines", f"{len(samples)} samples")
    for number, (key, score) in enumerate(zip(keys, scores, strict=False), 1):
        if key != (score.id, score.sample):
            yield Problem(
                f"scores line {number}", f"of {score.id}, sample {score.sample}", f"{key[0]}, sample {key[1]}"
            )
            break
    if twice := [key for key, times in Counter(keys).items() if times > 1]:
        yield Problem("samples", f"{twice[0]} twice", "once")


def _suite(record: RunRecord, data: Sequence[Path]) -> Suite[Any]:
    """The suite as it was configured. Raises DetoxbenchError where this installation has another version of it."""
    cls = suites.get(record.suite)
    version = record.identity["suite"].get("version")
    if version != cls.version:
        raise DetoxbenchError(f"version {version} aggregated it, version {cls.version} is installed here")
    judged_by = record.identity["suite"].get("broken_text")
    if judged_by not in (None, broken_text.VERSION):  # None: the run is older than these versions
        raise DetoxbenchError(
            f"version {judged_by} told its broken texts, version {broken_text.VERSION} is installed here"
        )
    claimed, hints = record.identity["suite"].get("config") or {}, get_type_hints(cls.Config)
    shown = record.spec.get("suite", {})
    settings = {
        field.name: _unread(shown[field.name], (field.default, *choices_of(hints[field.name])), data)
        for field in fields(cls.Config)
        if field.name in shown and field.name not in claimed
    }
    config: Any = build(cls.Config, settings | claimed, "suite")
    rebuilt = identity(config)
    if digest(rebuilt) != digest(claimed):
        raise DetoxbenchError(f"its settings {claimed} are not those of this version ({rebuilt})")
    return cls(config, name=record.suite)


def _unread(value: Any, harmless: Collection[Any], data: Sequence[Path]) -> Any:
    """A setting of a run that decides nothing but what is read: as it is where it names nothing outside of the run,
    a file of one's own that has its name, or a place that cannot be there."""
    if not isinstance(value, str) or value in harmless or value in _INSIDE or value in scorers.names():
        return value
    name = PureWindowsPath(value).name
    return next((str(file) for file in data if file.name == name), f"{os.devnull}/{name}")


_INSIDE = ("embedded", "auto", "none")
"""Values of settings that name no file, hub or package."""


def _coverage(record: RunRecord, suite: Suite[Any], samples: Sequence[Sample]) -> Iterator[Problem]:
    """Problems where the samples do not answer every request as often as the settings say.

    The identity holds a digest of the requests. They are made again from the samples, which hold all of a request
    except whether it was a chat; for the embedded data this is known from the suite.
    """
    answers: dict[str, list[Sample]] = {}
    for sample in samples:
        answers.setdefault(sample.id, []).append(sample)
    for id, several in answers.items():
        n = 1 if several[0].stop == "given" else record.identity["gen"]["n"]
        if [s.sample for s in several] != list(range(n)):
            yield Problem(f"samples of request {id}", [s.sample for s in several], list(range(n)))
            return
        if len({(s.prompt, s.record, s.label) for s in several}) > 1:
            yield Problem(f"samples of request {id}", "several prompts, records or kinds", "one of each")
            return
    if record.counts.get("requests") != len(answers):
        yield Problem("counts.requests", record.counts.get("requests"), len(answers))
    firsts = [several[0] for several in answers.values()]
    chats: list[Sequence[bool]] = [[False] * len(firsts), [True] * len(firsts)]
    if getattr(suite.config, "data", None) == "embedded":
        chat_by_id = {request.id: request.chat for request in suite.requests()}
        chats = [[chat_by_id.get(s.id, False) for s in firsts]]
    digests = [digest([_request(s, chat) for s, chat in zip(firsts, each, strict=True)]) for each in chats]
    claimed = record.identity["suite"].get("requests")
    if claimed not in digests:
        yield Problem("samples", f"the requests of digest {claimed}", f"{digests[0]} from {len(firsts)} requests")


def _request(sample: Sample, chat: bool) -> dict[str, Any]:
    """The request that a sample answers, as it stands in the digest of requests (`runner.cell`)."""
    request: dict[str, Any] = {"id": sample.id, "prompt": sample.prompt, "record": sample.record, "kind": sample.kind}
    request |= {"chat": chat}
    request |= {"text": sample.text} if sample.stop == "given" else {}
    return request | ({"tags": sample.tags} if sample.tags else {})


def _base(run: Run, record: RunRecord, answers: Answers) -> Answers | None:
    """The answers of the base's run, which lies beside the run, in a pack too; None where it is not there."""
    if record.method == BASE:
        return answers
    if not record.base_run_id:
        return None
    base = Run(run.folder.with_name(record.base_run_id))
    return Answers(base.samples(), base.scores()) if is_run(base.folder) else None


def _without_base(record: RunRecord, base: Answers | None) -> Iterator[Problem]:
    claimed = [name for name in AGAINST_BASE if name in record.metrics]
    if base is None and claimed:
        yield Problem(
            claimed[0], record.metrics[claimed[0]].value, f"nothing: its base {record.base_run_id} is not here"
        )


def _counts(claimed: Counts, recomputed: Counts, *, old: bool) -> Iterator[Problem]:
    """`old`: the run is of schema 1, which wrote 0 for what was not counted."""
    for name in claimed.keys() & recomputed.keys():
        if claimed[name] != recomputed[name] and not (old and recomputed[name] is None and claimed[name] == 0):
            yield Problem(f"counts.{name}", claimed[name], recomputed[name])


def _metrics(claimed: Mapping[str, MetricRecord], recomputed: Mapping[str, MetricRecord]) -> Iterator[Problem]:
    for name in claimed.keys() - recomputed.keys():
        yield Problem(name, claimed[name].value, None)
    for name, metric in recomputed.items():
        if name not in claimed:
            continue
        slack = OF_WIDTH * ((metric.high or 0.0) - (metric.low or 0.0))
        for part in MetricRecord.__struct_fields__:
            value, claim = getattr(metric, part), getattr(claimed[name], part)
            if not _same(value, claim, slack if part in ("low", "high") else 0.0):
                yield Problem(name if part == "value" else f"{name}.{part}", claim, value)


def _clusters(claimed: Clusters, recomputed: Clusters) -> Iterator[Problem]:
    for name, binary in claimed.binary.items():
        if binary != recomputed.binary.get(name):
            yield Problem(f"clusters.json: binary of {name}", binary, recomputed.binary.get(name))
    for part in ("total", "count"):
        sums, claimed_sums = getattr(recomputed, part), getattr(claimed, part)
        for name, a in claimed_sums.items():
            b = sums.get(name, {})
            odd = next((c for c in dict.fromkeys([*a, *b]) if not _same(a.get(c), b.get(c))), None)
            if odd is not None:
                yield Problem(f"clusters.json: {part} of {name} in '{odd}'", a.get(odd), b.get(odd))


def _same(a: Any, b: Any, slack: float = 0.0) -> bool:
    if isinstance(a, float | int) and isinstance(b, float | int) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=max(slack, 1e-12))
    return bool(a == b)
