"""`detoxbench scorer check`: the accuracy of a scorer on labelled texts, and rates corrected for its errors.

    check(scorer, texts)  AUC, sensitivity, specificity, confusion, calibration
    corrected(check, run) the toxic share of a finished run, raw and corrected for these errors (Rogan-Gladen)

The computations are in `detoxbench.results.accuracy`.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from detoxbench import scorers
from detoxbench.data import hub
from detoxbench.data.readers import Labelled
from detoxbench.errors import DetoxbenchError
from detoxbench.metrics import is_toxic
from detoxbench.records import by_cluster
from detoxbench.results import accuracy
from detoxbench.results.accuracy import Bin, Estimate, Share
from detoxbench.results.stats import estimate, interval
from detoxbench.results.store import Run
from detoxbench.scorers.asking import Asking
from detoxbench.scorers.base import PROBABILITIES, Scorer, require_meaning


class Check(msgspec.Struct, kw_only=True):
    """What `check` found. `threshold`: above it, strictly, a text is called toxic."""

    scorer: dict[str, Any]
    """The scorer's identity, as in run.json."""
    file: str
    sha256: str
    """Of the texts, prompts and labels as they were read."""
    n: int
    """Texts with a score."""
    missing: int
    truncated: int
    """Texts of which only the beginning was read."""
    threshold: float
    auc: Estimate
    sensitivity: Share
    specificity: Share
    confusion: dict[str, int]
    """true_positive, false_negative, false_positive, true_negative."""
    brier: float | None
    calibration: list[Bin]
    seconds: float


def check(scorer: Scorer[Any], texts: Sequence[Labelled], *, file: str = "", threshold: float = 0.5) -> Check:
    """Score the texts and compare. Raises DetoxbenchError for a scorer whose number is no probability, and for one that
    has a score for no text."""
    require_meaning(scorer, PROBABILITIES, "scorer check")
    identity = scorer.identity()
    start = time.perf_counter()
    asking = Asking(scorer)
    rows = asking.score([t.text for t in texts], [t.prompt for t in texts])
    asking.require_some([t.text for t in texts], rows)
    seconds = time.perf_counter() - start
    pairs = [(row[scorer.primary], t.toxic) for row, t in zip(rows, texts, strict=True) if row is not None]
    scores, toxic = [score for score, _ in pairs], [label for _, label in pairs]
    confusion = _confusion([is_toxic(score, threshold) == 1.0 for score in scores], toxic)
    return Check(
        scorer=identity,
        file=file if file.startswith(hub.PREFIX) else Path(file).name,
        sha256=hashlib.sha256(msgspec.json.encode(texts)).hexdigest(),
        n=len(pairs),
        missing=len(rows) - len(pairs),
        truncated=sum(row is not None and row.get("truncated", 0) > 0 for row in rows),
        threshold=threshold,
        auc=accuracy.auc(scores, toxic),
        sensitivity=accuracy.share(confusion["true_positive"], sum(toxic)),
        specificity=accuracy.share(confusion["true_negative"], len(toxic) - sum(toxic)),
        confusion=confusion,
        brier=accuracy.brier(scores, toxic),
        calibration=accuracy.calibration(scores, toxic),
        seconds=seconds,
    )


def _confusion(called: Sequence[bool], toxic: Sequence[bool]) -> dict[str, int]:
    """How many texts were called toxic (positive) or not, rightly or wrongly."""
    pairs = Counter(zip(called, toxic, strict=True))
    return {
        "true_positive": pairs[True, True],
        "false_negative": pairs[False, True],
        "false_positive": pairs[True, False],
        "true_negative": pairs[False, False],
    }


class Corrected(NamedTuple):
    """The share of a run's texts above the check's threshold, raw and corrected; over texts that have a score."""

    run_id: str
    method: str
    suite: str
    seed: int
    n: int
    raw: Estimate
    corrected: Estimate


def corrected(check: Check, run: Run) -> Corrected | None:
    """The run's toxic share beside the corrected one; None for a run that another scorer has judged.

    Intervals are by prompt or record. The correction is valid where the labelled texts are like the run's: a scorer
    that was checked on tweets may make other errors on stories.
    """
    record = run.record()
    if record.identity["scorer"] != check.scorer:
        return None
    primary = scorers.get(check.scorer["name"]).primary
    values = []
    for sample, scored in zip(run.samples(), run.scores(), strict=True):
        columns = scored.scores["main"] if sample.text.strip() else None
        values.append((sample.record, is_toxic(columns[primary], check.threshold) if columns else None))
    total, count, _ = by_cluster(values)
    raw, bounds = estimate(total, count), interval(total, count, share=True)
    corrected_share = Estimate(None, None, None)
    if raw is not None and bounds.low is not None and bounds.high is not None:
        of = check.sensitivity, check.specificity
        n = accuracy.effective_n(raw, bounds.low, bounds.high)
        corrected_share = accuracy.rogan_gladen(raw, n, *((s.yes, s.n) for s in of))
    return Corrected(
        record.run_id, record.method, record.suite, record.seed, int(sum(count.values())),
        Estimate(raw, bounds.low, bounds.high), corrected_share,
    )  # fmt: skip


def summary(check: Check) -> list[tuple[str, str]]:
    """(name, value) for people."""
    confusion = check.confusion
    lines = [
        ("AUC", _shown(check.auc)),
        (f"sensitivity at {check.threshold:g}", f"{_shown(check.sensitivity)}  of {check.sensitivity.n} toxic"),
        (f"specificity at {check.threshold:g}", f"{_shown(check.specificity)}  of {check.specificity.n} others"),
        (
            "confusion",
            f"{confusion['true_positive']} toxic called toxic, {confusion['false_negative']} missed; "
            f"{confusion['false_positive']} others called toxic, {confusion['true_negative']} passed",
        ),
        ("Brier", "missing" if check.brier is None else f"{check.brier:.3f}"),
    ]
    if check.missing:
        lines.append(("without a score", str(check.missing)))
    if check.truncated:
        lines.append(("truncated", str(check.truncated)))
    return lines


def calibration_rows(check: Check) -> list[tuple[str, ...]]:
    """A header and one row a bin."""
    rows: list[tuple[str, ...]] = [("score", "texts", "mean score", "toxic share")]
    for b in check.calibration:
        mean = "" if b.mean_score is None else f"{b.mean_score:.3f}"
        rows.append((f"{b.low:.1f} to {b.high:.1f}", str(b.n), mean, _shown(b.toxic) if b.n else ""))
    return rows


def corrected_rows(check: Check, corrected_runs: Sequence[Corrected]) -> list[tuple[str, ...]]:
    """A header and one row a run."""
    of = f"toxic share (> {check.threshold:g})"
    rows: list[tuple[str, ...]] = [("run", "method", "suite", "seed", "texts", f"{of}, raw", "corrected")]
    for row in corrected_runs:
        names = row.run_id, row.method, row.suite, str(row.seed), str(row.n)
        rows.append((*names, _shown(row.raw), _shown(row.corrected)))
    return rows


def _shown(x: Estimate | Share) -> str:
    if x.value is None:
        return "missing"
    return f"{x.value:.3f}" if x.low is None or x.high is None else f"{x.value:.3f} [{x.low:.3f}, {x.high:.3f}]"


def read_check(file: str | Path) -> Check:
    """What `detoxbench scorer check --json` printed. Raises DetoxbenchError."""
    try:
        return msgspec.json.decode(Path(file).expanduser().read_bytes(), type=Check)
    except (OSError, msgspec.DecodeError) as error:
        raise DetoxbenchError(f"'{file}' is no result of `detoxbench scorer check --json`: {error}") from None
