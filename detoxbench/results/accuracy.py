"""How good is a scorer? Pure functions on its scores of labelled texts, and rates corrected for its errors.

Texts count as independent. All intervals are 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from detoxbench.errors import NonFiniteError
from detoxbench.results.stats import wilson

BINS = 10
_Z = NormalDist().inv_cdf(0.975)


class Share(NamedTuple):
    """`yes` of `n`, with Wilson's interval; None without any."""

    yes: int
    n: int
    value: float | None
    low: float | None
    high: float | None


class Estimate(NamedTuple):
    """A number with its interval; None where there is nothing to compute it from."""

    value: float | None
    low: float | None
    high: float | None


class Bin(NamedTuple):
    """Texts whose score lies between `low` and `high`: their mean score, and how many of them are toxic."""

    low: float
    high: float
    n: int
    mean_score: float | None
    toxic: Share


def share(yes: int, n: int) -> Share:
    """`yes` of `n` with Wilson's interval."""
    return Share(yes, n, yes / n, *wilson(yes, n)) if n else Share(0, 0, None, None, None)


def auc(scores: Sequence[float], toxic: Sequence[bool]) -> Estimate:
    """Probability that a toxic text scores above one that is not (ties half).

    Interval of DeLong et al. (1988) on the logit scale; without spread (a perfect order, one text of a kind) no bounds.
    """
    x, y = _finite(scores), np.asarray(toxic, bool)
    positives, negatives = x[y], x[~y]
    m, n = len(positives), len(negatives)
    if not m or not n:
        return Estimate(None, None, None)
    # For each text, the share of texts of the other kind that are on the right side of it.
    below = _midranks(x)[y] - _midranks(positives)
    above = _midranks(x)[~y] - _midranks(negatives)
    of_positives, of_negatives = below / n, 1 - above / m
    value = float(of_positives.mean())
    if m < 2 or n < 2 or not 0 < value < 1:
        return Estimate(value, None, None)
    error = math.sqrt(of_positives.var(ddof=1) / m + of_negatives.var(ddof=1) / n)
    if not error:
        return Estimate(value, None, None)
    middle, half = math.log(value / (1 - value)), _Z * error / (value * (1 - value))
    return Estimate(value, 1 / (1 + math.exp(half - middle)), 1 / (1 + math.exp(-half - middle)))


def brier(scores: Sequence[float], toxic: Sequence[bool]) -> float | None:
    """Mean squared distance of score and label (Brier 1950): 0 perfect, 0.25 a constant 0.5."""
    return float(np.mean((_finite(scores) - np.asarray(toxic, float)) ** 2)) if len(scores) else None


def calibration(scores: Sequence[float], toxic: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Equally wide bins from 0 to 1; a score on a border belongs above it, and 1 to the last."""
    x, y = _finite(scores), np.asarray(toxic, bool)
    which = np.clip(np.floor(x * bins).astype(int), 0, bins - 1)
    filled = []
    for i in range(bins):
        within = which == i
        n = int(within.sum())
        mean = float(x[within].mean()) if n else None
        filled.append(Bin(i / bins, (i + 1) / bins, n, mean, share(int(y[within].sum()), n)))
    return filled


def effective_n(rate: float, low: float, high: float) -> float:
    """How many independent texts would give a rate an interval as wide as this: the effective sample size."""
    error = (high - low) / (2 * _Z)
    smoothed = min(max(rate, 1e-3), 1 - 1e-3)
    return smoothed * (1 - smoothed) / error**2 if error else math.inf


def rogan_gladen(rate: float, n: float, sensitivity: tuple[int, int], specificity: tuple[int, int]) -> Estimate:
    """The rate that a scorer without errors would have found: (rate + Sp - 1) / (Se + Sp - 1), kept inside 0 and 1.

    `rate` is the share that the scorer calls toxic among `n` independent texts (`effective_n`); `sensitivity` and
    `specificity` are (right, all) counts on labelled texts, which must be like those that are measured. Formula: Rogan
    and Gladen (1978); interval: Lang and Reiczigel (2014), which allows for the error of all three. None where the
    scorer is no better than chance, or one kind has no labelled text.
    """
    (hits, positives), (passes, negatives) = sensitivity, specificity
    if not positives or not negatives or hits / positives + passes / negatives <= 1:
        return Estimate(None, None, None)
    value = (rate + passes / negatives - 1) / (hits / positives + passes / negatives - 1)
    z2 = _Z * _Z
    n = min(n, 1e12)
    q, size = (n * rate + z2 / 2) / (n + z2), n + z2
    se, of_se = (hits + 1) / (positives + 2), positives + 2
    sp, of_sp = (passes + 1) / (negatives + 2), negatives + 2
    if se + sp <= 1:
        return Estimate(None, None, None)
    p = (q + sp - 1) / (se + sp - 1)
    from_se, from_sp = se * (1 - se) / of_se, sp * (1 - sp) / of_sp
    shift = 2 * z2 * (p * from_se - (1 - p) * from_sp)
    half = _Z * math.sqrt(q * (1 - q) / size + p**2 * from_se + (1 - p) ** 2 * from_sp) / (se + sp - 1)
    inside = min(max(value, 0.0), 1.0)
    low, high = (min(max(p + shift + side * half, 0.0), 1.0) for side in (-1, 1))
    return Estimate(inside, min(low, inside), max(high, inside))


def _finite(scores: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The scores as an array. Raises NonFiniteError: NaN has no rank; leave a missing score out with its label."""
    x = np.asarray(scores, float)
    if not np.isfinite(x).all():
        raise NonFiniteError(f"score {int(np.isfinite(x).argmin()) + 1} of {len(x)} is NaN or infinite: leave it out")
    return x


def _midranks(x: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: np.ndarray[tuple[int], np.dtype[np.float64]] = (ends - (counts - 1) / 2)[inverse]
    return ranks
