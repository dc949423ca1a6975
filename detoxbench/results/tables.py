"""The frozen values of which a table of finished runs is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from detoxbench.records import Counts

LEVEL = 0.05
"""A difference is supported when its p-value, Holm-adjusted over its table, is below."""


NOT_SAID = "not said"
"""The fidelity of a row whose runs say nothing of it."""


BESIDE = ("cost.", "counts.")
"""Prefixes of the names of columns that are not metrics."""


EMBEDDED = "the embedded world 'fable' demonstrates the harness and is no evidence about methods"


Verdict = Literal["better", "worse", "differs", "unsupported"]


@dataclass(frozen=True)
class Difference:
    """A row's metric minus another row's, over the `seeds` and the `n` clusters that both have.

    `effect` is in standard deviations of the clusters' differences, `detectable` the smallest difference that a test
    at 0.05 finds with a power of 80 % given the spread seen; `above` and `below` count the clusters that are higher and
    lower here (all as in `stats.PairedDifference`). `p_holm` is adjusted over the tests it was made with.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    verdict: Verdict
    method: str
    n: int
    seeds: list[int]
    effect: float | None
    detectable: float | None
    above: int
    below: int


@dataclass(frozen=True)
class Cell:
    """One metric of one row: mean over its seeds with a 95 % interval. `missing` is summed over seeds.

    `by_seed` holds each seed's own value, in the order of the row's seeds.
    """

    value: float | None
    low: float | None
    high: float | None
    interval: str
    n: int
    missing: int
    difference: Difference | None = None
    by_seed: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Column:
    """A metric. `best` is the label of the row that is better than each of the others by a test, if one is."""

    name: str
    better: Literal["higher", "lower", "neither"]
    unit: Literal["share", "number"]
    best: str | None = None


@dataclass(frozen=True)
class Row:
    """One configuration of a method. Costs are means over its seeds, counts are sums; None is not measured."""

    label: str
    method: dict[str, Any]
    seeds: list[int]
    run_ids: list[str]
    cells: dict[str, Cell]
    cost: dict[str, float | None]
    counts: Counts
    fits: list[str] = field(default_factory=list)
    """What was fitted under each seed: equal where it is the same intervention (`stats.seed_kind`); empty: unknown."""
    data: dict[str, str] = field(default_factory=dict)
    """Names of the data for the fit and for the prompts, by setting."""
    fidelity: str | None = None
    """How near its method is to what was published, as its runs say it; None where they do not."""
    broken: bool = False
    """More than half of its texts are broken (the interval's lower end is above one half, too), so its other numbers
    mean little, and none is called better."""

    @property
    def said(self) -> str:
        """Its fidelity in words; empty for what a paper reports."""
        return (self.fidelity or NOT_SAID) if self.run_ids else ""

    @property
    def shown(self) -> str:
        """The label, and that its texts are broken."""
        return f"{self.label} (broken)" if self.broken else self.label


@dataclass(frozen=True)
class Pairwise:
    """All differences in one metric: differences[i][j] is row i minus row j; Holm over the tests of one half."""

    metric: str
    labels: list[str]
    differences: list[list[Difference | None]]


@dataclass(frozen=True)
class Standing:
    """A row among all: Borda points and rank over the metrics that have a direction, where 95 % of the resampled ranks
    lie, the share of resamples in which it is first, and whether it is on the Pareto front."""

    label: str
    points: float
    rank: int
    low: int | None
    high: int | None
    first: float | None
    front: bool


@dataclass(frozen=True)
class Table:
    """Comparable runs: `shared` is everything that all of them have in common and that can change a number.

    `apart` is the part of it in which this table differs from another of the same suite. `against` is the label of the
    row that differences are to. `beside` names what is shown beside the metrics, as "cost.KEY" and "counts.KEY"; None
    is the usual. `front` names the axes of the Pareto front in `standings`.
    """

    model: str
    suite: str
    scorer: str
    shared: dict[str, Any]
    columns: list[Column]
    rows: list[Row]
    notes: list[str]
    apart: dict[str, Any] = field(default_factory=dict)
    against: str | None = None
    beside: list[str] | None = None
    pairwise: list[Pairwise] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)
    front: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Model, suite and scorer."""
        return f"{self.model} · {self.suite} · scored by {self.scorer}"


@dataclass(frozen=True)
class Board:
    """Tables, and the notes on all of them or on runs that are in none."""

    tables: list[Table]
    notes: list[str]


def mean_by_key(many: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Means of what is known; None where nothing is."""
    means: dict[str, float | None] = {}
    for key in dict.fromkeys(k for values in many for k in values):
        known = [v for values in many if (v := values.get(key)) is not None]
        means[key] = sum(known) / len(known) if known else None
    return means


def sum_by_key(many: Sequence[Counts]) -> Counts:
    """Sums; None where one of `many` did not count."""
    sums: Counts = {}
    for key in dict.fromkeys(k for values in many for k in values):
        known = [n for values in many if (n := values.get(key)) is not None]
        sums[key] = sum(known) if len(known) == len(many) else None
    return sums
