"""Tables of finished runs: what is comparable side by side, what is not apart, and no difference without a test."""

from __future__ import annotations

import fnmatch
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from detoxbench import methods
from detoxbench.config import BASE, EMBEDDED_DATA, digest
from detoxbench.config import identity as settings_of
from detoxbench.errors import UsageError, did_you_mean
from detoxbench.records import Counts
from detoxbench.results import stats
from detoxbench.results.store import Clusters, MetricRecord, Run, RunRecord, readable
from detoxbench.text import short

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

LEVEL = 0.05
"""A difference is supported when its p-value, Holm-adjusted over its table, is below."""
BESIDE = ("cost.", "counts.")
"""How the names of columns that are no metrics begin."""
EMBEDDED = "the embedded world 'fable' demonstrates the harness and is no evidence about methods"

Verdict = Literal["better", "worse", "differs", "unsupported"]


@dataclass(frozen=True)
class Difference:
    """A row's metric minus another row's, over the `seeds` and the `n` clusters that both have.

    `effect` is in standard deviations of the clusters' differences, `detectable` the smallest difference that a test
    at 0.05 finds with a power of 80 % given the spread seen; `above` and `below` count the clusters that are higher and
    lower here (all as in `stats.Difference`). `p_holm` is adjusted over the tests it was made with.
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
    """What the data are called that were fitted on and asked, by setting."""
    broken: bool = False
    """More than half of its texts are broken for sure, so its other numbers mean little, and none is called better."""

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
    is the usual. `front` names the axes of the Pareto front that `standings` tells of.
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
        return f"{self.model} · {self.suite} · scored by {self.scorer}"


@dataclass(frozen=True)
class Leaderboard:
    """What `leaderboard` returns: rich prints it as wide as the terminal, `str()` is the same without colour."""

    tables: list[Table]
    notes: list[str]

    def render(self, format: str = "table", *, width: int | None = None) -> str:
        """As "table" (`width` columns, the terminal's unless given), "md", "latex", "csv" (a line a value) or "json".

        Raises UsageError for another format.
        """
        from detoxbench.results import rendering

        if format == "table":
            return rendering.plain(self, width or shutil.get_terminal_size((120, 24)).columns)
        writers: dict[str, Callable[[Leaderboard], str]] = {
            "md": rendering.markdown,
            "latex": rendering.latex,
            "csv": rendering.comma_separated,
            "json": rendering.as_json,
        }
        if format not in writers:
            raise UsageError(f"unknown leaderboard format '{format}'; known: table, {', '.join(writers)}")
        return writers[format](self)

    def __str__(self) -> str:
        return self.render()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from detoxbench.results import rendering

        return rendering.rich_blocks(self, options.max_width)


def leaderboard(
    folder: str | Path = "runs",
    *,
    model: Sequence[str] = (),
    suite: Sequence[str] = (),
    method: Sequence[str] = (),
    scorer: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    all_metrics: bool = False,
    against: str | None = None,
    pairwise: Sequence[str] = (),
    ranks: bool = False,
    pareto: Sequence[str] | None = None,
    by: Literal["model", "suite"] | None = None,
    paper: bool = False,
    samples: bool = False,
) -> Leaderboard:
    """The finished runs under `folder` as tables, one for each group of comparable runs.

    Runs are comparable when their identities agree in everything but method and seed. A run that cannot be read is
    named in the notes. Raises DetoxbenchError when there is no such folder, UsageError for a name that fits nothing.

    model, suite, method, scorer: names or patterns ("gpt*"); only runs that match one of each are taken. The base
        (method none) always stays, since differences are to it.
    columns: metrics, "cost.KEY" and "counts.KEY" to show, in this order; otherwise the headline metrics with the usual
        costs and counts, or with `all_metrics` every metric. Only what is shown counts in the correction for
        multiplicity.
    against: what differences are to: a row's label, or a method that has one row. The base unless named.
    pairwise: metrics whose differences between all pairs of rows are wanted.
    ranks: with Borda ranks, how firm they are, and the Pareto front over `pareto` (`ranking.pareto_axes`).
    by: one table for each model or suite instead, with the suites or models of the same setting side by side
        (`grouping.grouped`): of each its first metric with a direction, unless `columns` or `all_metrics` say more.
    paper: with the numbers that papers report for a table's model and suite below what was measured.
    samples: leave out runs whose samples or scores are damaged, too, which no table is made of.
    """
    if by is not None and (ranks or pareto is not None or pairwise):
        raise UsageError("ranks and pairs are of one table: leave out 'by', which puts several side by side")
    notes: list[str] = []
    wanted = {"model": model, "suite": suite, "method": method, "scorer": scorer}
    groups: dict[bytes, list[_Entry]] = {}
    every = [
        _Entry(run, record, shared_identity(record)) for run, record in readable(Path(folder), notes, whole=samples)
    ]
    for entry in _chosen(every, wanted):
        groups.setdefault(_canonical(entry.shared), []).append(entry)
    first = by is not None and columns is None and not all_metrics
    ask = _Ask(columns, all_metrics, first, against, pairwise, ranks or pareto is not None, pareto)
    tables = [_table(group, ask, notes) for group in groups.values()]
    tables.sort(key=lambda t: (t.suite, t.model, t.scorer, digest(t.shared)))
    if not tables:
        notes.append(f"no finished runs in '{folder}': run something first (detoxbench run)")
    else:
        _check_names(tables, ask)
        tables = [table for table in tables if columns is None or table.columns or table.beside]
    from detoxbench.results import table_notes

    notes += table_notes.keep_apart(tables)
    board = Leaderboard(tables, notes)
    if paper:
        from detoxbench.results.paper import beside

        board = beside(board)
    if by is not None:
        from detoxbench.results.grouping import grouped

        board = grouped(board, by)
    return board


# ---------------------------------------------------------------------------------------------------- runs to tables


@dataclass(frozen=True)
class _Entry:
    run: Run
    record: RunRecord
    shared: dict[str, Any]


@dataclass(frozen=True)
class _Ask:
    """What the caller of `leaderboard` wants of each table."""

    columns: Sequence[str] | None
    all_metrics: bool
    first: bool
    """Only the first metric with a direction: a suite's main measure."""
    against: str | None
    pairwise: Sequence[str]
    ranks: bool
    pareto: Sequence[str] | None


def shared_identity(record: RunRecord) -> dict[str, Any]:
    """The part of a run's identity that runs have in common when they are comparable: all but method and seed."""
    return {k: v for k, v in record.identity.items() if k not in ("method", "seed")}


def _chosen(entries: list[_Entry], wanted: Mapping[str, Sequence[str]]) -> list[_Entry]:
    """The entries whose names match. Raises UsageError for a pattern that matches no run."""
    for key, patterns in wanted.items():
        names = sorted({getattr(entry.record, key) for entry in entries})
        for pattern in patterns:
            if entries and not fnmatch.filter(names, pattern):
                near = did_you_mean(pattern, names)
                raise UsageError(f"no run with {key} '{pattern}'{near}; there are: {', '.join(names)}")
        if patterns:
            kept = {name for name in names for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
            kept |= {BASE} if key == "method" else set()
            entries = [entry for entry in entries if getattr(entry.record, key) in kept]
    return entries


def embedded(record: RunRecord) -> bool:
    """Whether the model, or what it was fitted on or asked, was the toy world's, of which `EMBEDDED` is to be said."""
    toy = "fable" in (record.model, record.spec.get("model", {}).get("path"))
    return toy or any(name.startswith(EMBEDDED_DATA) for name in record.data.values())


def named_data(identities: Sequence[Mapping[str, Any]], data: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Identities of methods for people: their fit data by name instead of by digest, as far as the names tell apart
    what the digests do."""
    names = ["; ".join(name for key, name in own.items() if key.startswith("fit.")) for own in data]
    digests: dict[tuple[Any, str], set[str]] = {}
    for own, name in zip(identities, names, strict=True):
        digests.setdefault((own.get("name"), name), set()).add(str(own.get("fit_data")))
    return [
        {**own, "fit_data": name}
        if name and "fit_data" in own and len(digests[own.get("name"), name]) == 1
        else {**own}
        for own, name in zip(identities, names, strict=True)
    ]


def clusters_of(several: Iterable[tuple[Run, RunRecord]], notes: list[str]) -> dict[str, Clusters]:
    """The clusters of runs by run id; what cannot be read is told in `notes`."""
    found: dict[str, Clusters] = {}
    for run, record in several:
        try:
            found[record.run_id] = run.clusters()
        except (OSError, msgspec.DecodeError) as error:
            notes.append(f"no difference and no interval over seeds with {run.folder.name}: clusters.json: {error}")
    return found


def _table(group: list[_Entry], ask: _Ask, notes: list[str]) -> Table:
    from detoxbench.results import table_notes

    by_method: dict[bytes, list[_Entry]] = {}
    for entry in sorted(group, key=lambda e: e.record.seed):
        by_method.setdefault(_canonical(entry.record.identity["method"]), []).append(entry)
    groups = list(by_method.values())
    firsts = [entries[0].record for entries in groups]
    labels, order = row_labels(named_data([r.identity["method"] for r in firsts], [r.data for r in firsts]))
    members = [[entry.record for entry in groups[i]] for i in order]

    columns = _columns(group, ask)
    # One run alone is told by its run.json; only several need the clusters.
    clusters = clusters_of(((entry.run, entry.record) for entry in group) if len(group) > 1 else (), notes)
    panels = [ColumnPanel.of(members, column, clusters) for column in columns]
    reference = _reference(members, labels, ask.against)
    cells = [panel.cells(members) for panel in panels]
    broken = mostly_broken(members, clusters)
    if reference is not None:
        cells = _compared(panels, cells, reference, broken)
    rows = [
        Row(
            label=label,
            method=records[0].identity["method"],
            seeds=[r.seed for r in records],
            run_ids=[r.run_id for r in records],
            cells={panel.column.name: cells[k][i] for k, panel in enumerate(panels)},
            cost=mean_by_key([r.cost for r in records]),
            counts=sum_by_key([r.counts for r in records]),
            fits=fits_of(records),
            data=records[0].data,
            broken=broken[i],
        )
        for i, (label, records) in enumerate(zip(labels, members, strict=True))
    ]
    first = group[0]
    table = Table(
        model=" / ".join(sorted({e.record.model for e in group})),
        suite=first.record.suite,
        scorer=first.record.scorer,
        shared=dict(flat(first.shared)),
        columns=[
            replace(
                p.column, best=_best(p, [None if b else c.value for c, b in zip(found, broken, strict=True)], labels)
            )
            for p, found in zip(panels, cells, strict=True)
        ],
        rows=rows,
        notes=[
            *table_notes.of_table(
                columns, rows, ask.against, reference, embedded=any(embedded(e.record) for e in group)
            ),
            *table_notes.of_scorers(first.record.identity),
            *table_notes.weight_changes(labels, members),
            *table_notes.made_by(e.record for e in group),
            *table_notes.verified(rows, {e.record.run_id: told.pack for e in group if (told := e.run.verified())}),
        ],
        against=None if reference is None else labels[reference],
        beside=None if ask.columns is None else [name for name in ask.columns if name.startswith(BESIDE)],
        pairwise=[_pairwise(p, labels, broken) for p in panels if p.column.name in ask.pairwise],
    )
    return _ranked(table, clusters, ask.pareto) if ask.ranks else table


def fits_of(records: Sequence[RunRecord]) -> list[str]:
    """What was fitted in each run: equal where it is the same intervention.

    Runs from before its digest was kept have another one each, but for those in which a seed could change nothing: the
    base, and what has no tensors.
    """

    def nothing(record: RunRecord) -> bool:
        return record.method == BASE or record.cost.get("artifact_bytes") == 0

    return [r.fit or ("nothing fitted" if nothing(r) else r.run_id) for r in records]


def _canonical(value: Any) -> bytes:
    """The same for equal values, whatever the order of their keys: quicker than a digest, for thousands of runs."""
    return msgspec.json.encode(value, order="sorted")


def _columns(group: list[_Entry], ask: _Ask) -> list[Column]:
    metrics: dict[str, MetricRecord] = {}
    for entry in group:
        for name, metric in entry.record.metrics.items():
            metrics.setdefault(name, metric)
    if ask.columns is not None:
        chosen = [name for name in ask.columns if name in metrics]
    else:
        headline = {n for entry in group for n, metric in entry.record.metrics.items() if metric.headline}
        chosen = [name for name in metrics if ask.all_metrics or name in headline or name in ask.pairwise]
        if ask.first:
            chosen = [name for name in chosen if metrics[name].better != "neither"][:1] or chosen[:1]
    return [Column(name, metrics[name].better, metrics[name].unit) for name in chosen]


def _check_names(tables: list[Table], ask: _Ask) -> None:
    """Raises UsageError for a column or metric that no table has."""
    metrics = list(dict.fromkeys(c.name for t in tables for c in t.columns))
    others = [f"{kind}.{k}" for kind in ("cost", "counts") for t in tables for r in t.rows for k in getattr(r, kind)]
    every = [*metrics, *others]
    for name, known in [
        *((n, every) for n in [*(ask.columns or ()), *(ask.pareto or ())]),
        *((n, metrics) for n in ask.pairwise),
    ]:
        if name not in known:
            raise UsageError(f"no column '{name}' in any table{did_you_mean(name, known)}")
    if ask.against is not None and not any(table.against for table in tables):
        labels = list(dict.fromkeys(row.label for table in tables for row in table.rows))
        near = did_you_mean(ask.against, labels)
        raise UsageError(f"no single row '{ask.against}' in any table{near}; rows: {', '.join(labels)}")


def row_labels(identities: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[int]]:
    """Labels of configurations, sorted (the base first), and the index in `identities` that each belongs to.

    A label is the method's name, and the knobs in which configurations of that name differ. Digests (of the fit data,
    of files) and versions tell people little: they are named where the knobs do not suffice.
    """
    by_name: dict[str, list[int]] = {}
    for i, identity in enumerate(identities):
        by_name.setdefault(identity["name"], []).append(i)
    found: list[tuple[tuple[Any, ...], str, int]] = []
    for name, same in by_name.items():
        knobs = [dict(flat(identities[i].get("config", {}))) for i in same]
        if len({digest(values) for values in knobs}) < len(same):
            rest = [{k: v for k, v in identities[i].items() if k not in {"name", "config"}} for i in same]
            knobs = [values | dict(flat(more)) for values, more in zip(knobs, rest, strict=True)]
        chosen = differing(knobs)
        for i, values in zip(same, knobs, strict=True):
            shown = [(k, values.get(k)) for k in chosen]
            numbers = [v if isinstance(v, int | float) else math.inf for _, v in shown]
            label = " ".join([name, *(f"{k}={short(v)}" for k, v in shown)])
            found.append(((name != BASE, name, *numbers), label, i))
    found.sort(key=lambda f: f[:2])
    return [label for _, label, _ in found], [i for _, _, i in found]


def changed_settings(method: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a method's identity that are not its defaults, for people; none where it is not installed."""
    if method["name"] not in methods.names():
        return {}
    cls = methods.get(method["name"]).Config
    default = {f.name: f.default for f in fields(cls)}
    with suppress(TypeError):  # one that has to be given has no default
        default = settings_of(cls())  # with switches that are null turned into what they stand for
    usual = msgspec.to_builtins({k: v for k, v in default.items() if v is not MISSING})
    own = method.get("config", {})
    return {k: short(v) for k, v in own.items() if k not in usual or v != usual[k]}


def _reference(members: list[list[RunRecord]], labels: list[str], against: str | None) -> int | None:
    """The row that differences are to, if there is just one such row."""
    if against in labels:
        return labels.index(against)
    name = BASE if against is None else against
    fits = [i for i, records in enumerate(members) if records[0].identity["method"]["name"] == name]
    return fits[0] if len(fits) == 1 else None


# ------------------------------------------------------------------------------------------------- cells and tests


@dataclass(frozen=True)
class ColumnPanel:
    """A column's sums over all rows and seeds of a table."""

    column: Column
    seeds: list[int]
    sums: stats.Panel
    whole: list[bool]
    """Whether the sums of all of a row's runs are known."""
    binary: bool

    @staticmethod
    def of(members: Sequence[Sequence[RunRecord]], column: Column, clusters: Mapping[str, Clusters]) -> ColumnPanel:
        """`members`: the runs of each row, one a seed; `clusters` by run id."""
        seeds = sorted({record.seed for records in members for record in records})
        name, place = column.name, {seed: k for k, seed in enumerate(seeds)}
        rows: list[list[stats.Sums | None]] = []
        whole, binary = [], True
        fits: list[list[str]] = []
        for records in members:
            row: list[stats.Sums | None] = [None] * len(seeds)
            fits.append([""] * len(seeds))
            for record, fit in zip(records, fits_of(records), strict=True):
                fits[-1][place[record.seed]] = fit
                found = clusters.get(record.run_id)
                if found is not None and name in found.total:
                    row[place[record.seed]] = found.total[name], found.count[name]
                    binary = binary and found.binary[name]
            rows.append(row)
            whole.append(sum(run is not None for run in row) == len(records))
        return ColumnPanel(column, seeds, stats.panel(rows, fits), whole, binary)

    def differences(self, rows: list[int], other: int) -> list[tuple[stats.Difference, list[int]]]:
        """`rows` minus the row `other`, each with the seeds that both have."""
        share = self.column.unit == "share"
        found = stats.paired_differences(self.sums.rows(rows), self.sums.row(other), binary=self.binary, share=share)
        seen = (self.sums.counts.sum(2) > 0).tolist()
        seeds = [[s for k, s in enumerate(self.seeds) if seen[i][k] and seen[other][k]] for i in rows]
        return list(zip(found, seeds, strict=True))

    def cells(self, members: Sequence[Sequence[RunRecord]]) -> list[Cell]:
        """The column's cells, without differences."""
        several = [i for i, records in enumerate(members) if len(records) > 1 and self.whole[i]]
        over = stats.over_seeds(self.sums.rows(several), binary=self.binary, share=self.column.unit == "share")
        averaged = dict(zip(several, over, strict=True))
        cells = []
        for i, records in enumerate(members):
            found = [m for record in records if (m := record.metrics.get(self.column.name))]
            n, missing = max((m.n for m in found), default=0), sum(m.missing for m in found)
            by_seed = [m.value if (m := r.metrics.get(self.column.name)) else None for r in records]
            if len(records) == 1 and found:
                value, bounds = found[0].value, stats.Interval(found[0].low, found[0].high, found[0].interval)
            elif i in averaged:
                value, bounds = averaged[i]
            else:
                values = [v for v in by_seed if v is not None]
                value = sum(values) / len(values) if values else None
                bounds = stats.Interval(None, None, "none: clusters unknown")
            cells.append(Cell(value, *bounds, n, missing, by_seed=by_seed))
        return cells


def between(ours: Clusters, theirs: Clusters, column: Column) -> stats.Difference:
    """A metric of one run minus that of another, paired on the clusters of both, whatever their seeds."""
    name = column.name
    sums = stats.panel(
        [[(side.total[name], side.count[name]) if name in side.total else None] for side in (ours, theirs)]
    )
    binary = bool(ours.binary.get(name) and theirs.binary.get(name))
    return stats.paired_differences(sums.row(0), sums.row(1), binary=binary, share=column.unit == "share")[0]


BROKEN_SHARES = ("broken_share", "degenerate_share")


def mostly_broken(members: Sequence[Sequence[RunRecord]], clusters: Mapping[str, Clusters]) -> list[bool]:
    """For the runs of each row: is a share of broken texts above half, its interval's lower end too?"""
    found = [False] * len(members)
    for name in BROKEN_SHARES:
        if any(name in record.metrics for records in members for record in records):
            cells = ColumnPanel.of(members, Column(name, "lower", "share"), clusters).cells(members)
            found = [b or (cell.low is not None and cell.low > 0.5) for b, cell in zip(found, cells, strict=True)]
    return found


def unpraised(difference: Difference | None, broken: bool, other: bool = False) -> Difference | None:
    """A difference that calls neither its row better, if that is `broken`, nor the `other` one."""
    if difference and ((broken and difference.verdict == "better") or (other and difference.verdict == "worse")):
        return replace(difference, verdict="differs")
    return difference


def _compared(
    panels: list[ColumnPanel], cells: list[list[Cell]], reference: int, broken: Sequence[bool]
) -> list[list[Cell]]:
    """The columns' cells with their differences to the row `reference`, tested together."""
    rows = [i for i in range(len(cells[0]) if cells else 0) if i != reference]
    found = [(panel.column, *d) for panel in panels for d in panel.differences(rows, reference)]
    places = [(k, i) for k in range(len(panels)) for i in rows]
    compared = [list(column) for column in cells]
    for (k, i), difference in zip(places, tested(found), strict=True):
        compared[k][i] = replace(cells[k][i], difference=unpraised(difference, broken[i], broken[reference]))
    return compared


def _pairwise(panel: ColumnPanel, labels: list[str], broken: Sequence[bool]) -> Pairwise:
    pairs, found = [], []
    for j in range(len(labels) - 1):
        rows = list(range(j + 1, len(labels)))
        pairs += [(i, j) for i in rows]
        found += [(panel.column, d, seeds) for d, seeds in panel.differences(rows, j)]
    matrix: list[list[Difference | None]] = [[None] * len(labels) for _ in labels]
    for (i, j), difference in zip(pairs, tested(found), strict=True):
        matrix[i][j] = unpraised(difference, broken[i], broken[j])
        matrix[j][i] = unpraised(difference and _turned(difference), broken[j], broken[i])
    return Pairwise(panel.column.name, labels, matrix)


def _turned(d: Difference) -> Difference:
    """The same difference seen from the other row."""
    opposite: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
    return replace(
        d,
        value=-d.value,
        low=None if d.high is None else -d.high,
        high=None if d.low is None else -d.low,
        verdict=opposite.get(d.verdict, d.verdict),
        effect=None if d.effect is None else -d.effect,
        above=d.below,
        below=d.above,
    )


def tested(found: Sequence[tuple[Column, stats.Difference, list[int]]]) -> list[Difference | None]:
    """Differences with their verdicts, p-values adjusted over all of them; None where nothing could be compared."""
    adjusted = iter(stats.holm([d.p for _, d, _ in found if d.p is not None]))
    shown: list[Difference | None] = []
    for column, d, seeds in found:
        p = None if d.p is None else next(adjusted)
        if d.value is None:
            shown.append(None)
            continue
        verdict: Verdict = "unsupported"
        if p is not None and p < LEVEL:
            verdict = "differs"
            if column.better != "neither":
                verdict = "better" if (d.value > 0) == (column.better == "higher") else "worse"
        bounds = (d.low, d.high, d.p, p, verdict, d.method, d.n, seeds)
        shown.append(Difference(d.value, *bounds, d.effect, d.detectable, d.above, d.below))
    return shown


def _best(panel: ColumnPanel, values: list[float | None], labels: list[str]) -> str | None:
    """The row that is better than each other row by a test at LEVEL over their number (Bonferroni)."""
    known = [i for i, value in enumerate(values) if value is not None]
    if panel.column.better == "neither" or len(known) < 2:
        return None
    sign = 1 if panel.column.better == "higher" else -1
    best = max(known, key=lambda i: sign * (values[i] or 0.0))
    others = [i for i in known if i != best]
    found = [d for d, _ in panel.differences(others, best)]
    firm = all(d.p is not None and d.p * len(others) < LEVEL and sign * (d.value or 0.0) < 0 for d in found)
    return labels[best] if firm else None


def _ranked(table: Table, clusters: Mapping[str, Clusters], axes: Sequence[str] | None) -> Table:
    from detoxbench.results import ranking

    known = {c.name for c in table.columns} | {f"cost.{k}" for row in table.rows for k in row.cost}
    names = None if axes is None else [name for name in axes if name in known]
    notes = [] if axes is None else [f"not on the front's axes, absent here: {a}" for a in axes if a not in known]
    firm = {r.label: r for r in ranking.stability(table, clusters)}
    front = dict(zip([row.label for row in table.rows], ranking.pareto_front(table, names), strict=True))
    standings = []
    for label, points, rank in ranking.borda(table):
        low, high, first = firm[label][1:] if label in firm else (None, None, None)
        standings.append(Standing(label, points, rank, low, high, first, front[label]))
    shown = [axis.name for axis in ranking.pareto_axes(table, names)]
    return replace(table, standings=standings, front=shown, notes=[*table.notes, *notes])


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as (dotted key, value)."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def differing(many: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose values are not the same everywhere, in order of appearance."""
    keys = dict.fromkeys(key for values in many for key in values)
    absent = object()
    return [key for key in keys if any(v.get(key, absent) != many[0].get(key, absent) for v in many)]


def mean_by_key(many: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
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
