"""A column's numbers over the rows and seeds of a table: cells, differences between rows and their tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from detoxbench.config import BASE
from detoxbench.results import stats
from detoxbench.results.store import Clusters, Run, RunRecord
from detoxbench.results.tables import LEVEL, Cell, Column, Difference, Pairwise, Verdict


def clusters_of(several: Iterable[tuple[Run, RunRecord]], notes: list[str]) -> dict[str, Clusters]:
    """The clusters of runs by run id; what cannot be read is named in `notes`."""
    by_run_id: dict[str, Clusters] = {}
    for run, record in several:
        try:
            by_run_id[record.run_id] = run.clusters()
        except (OSError, msgspec.DecodeError) as error:
            notes.append(f"no difference and no interval over seeds with {run.folder.name}: clusters.json: {error}")
    return by_run_id


def fits_of(records: Sequence[RunRecord]) -> list[str]:
    """What was fitted in each run: equal where it is the same intervention.

    Runs without a stored digest (older ones) count as different fits, except where a seed can change nothing: the base,
    and interventions without tensors.
    """

    def nothing(record: RunRecord) -> bool:
        return record.method == BASE or record.cost.get("artifact_bytes") == 0

    return [r.fit or ("nothing fitted" if nothing(r) else r.run_id) for r in records]


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
                run_clusters = clusters.get(record.run_id)
                if run_clusters is not None and name in run_clusters.total:
                    row[place[record.seed]] = run_clusters.total[name], run_clusters.count[name]
                    binary = binary and run_clusters.binary[name]
            rows.append(row)
            whole.append(sum(run is not None for run in row) == len(records))
        return ColumnPanel(column, seeds, stats.panel(rows, fits), whole, binary)

    def differences(self, rows: list[int], other: int) -> list[tuple[stats.PairedDifference, list[int]]]:
        """`rows` minus the row `other`, each with the seeds that both have."""
        share = self.column.unit == "share"
        differences = stats.paired_differences(
            self.sums.rows(rows), self.sums.row(other), binary=self.binary, share=share
        )
        seen = (self.sums.counts.sum(2) > 0).tolist()
        seeds = [[s for k, s in enumerate(self.seeds) if seen[i][k] and seen[other][k]] for i in rows]
        return list(zip(differences, seeds, strict=True))

    def cells(self, members: Sequence[Sequence[RunRecord]]) -> list[Cell]:
        """The column's cells, without differences."""
        several = [i for i, records in enumerate(members) if len(records) > 1 and self.whole[i]]
        over = stats.over_seeds(self.sums.rows(several), binary=self.binary, share=self.column.unit == "share")
        averaged = dict(zip(several, over, strict=True))
        cells = []
        for i, records in enumerate(members):
            metrics = [m for record in records if (m := record.metrics.get(self.column.name))]
            n, missing = max((m.n for m in metrics), default=0), sum(m.missing for m in metrics)
            by_seed = [m.value if (m := r.metrics.get(self.column.name)) else None for r in records]
            if len(records) == 1 and metrics:
                value, bounds = metrics[0].value, stats.Interval(metrics[0].low, metrics[0].high, metrics[0].interval)
            elif i in averaged:
                value, bounds = averaged[i]
            else:
                values = [v for v in by_seed if v is not None]
                value = sum(values) / len(values) if values else None
                bounds = stats.Interval(None, None, "none: clusters unknown")
            cells.append(Cell(value, *bounds, n, missing, by_seed=by_seed))
        return cells


def between(clusters_a: Clusters, clusters_b: Clusters, column: Column) -> stats.PairedDifference:
    """A metric of run A minus that of run B, paired on the clusters of both, whatever their seeds."""
    name = column.name
    sums = stats.panel(
        [[(side.total[name], side.count[name]) if name in side.total else None] for side in (clusters_a, clusters_b)]
    )
    binary = bool(clusters_a.binary.get(name) and clusters_b.binary.get(name))
    return stats.paired_differences(sums.row(0), sums.row(1), binary=binary, share=column.unit == "share")[0]


BROKEN_SHARES = ("broken_share", "degenerate_share")


def mostly_broken(members: Sequence[Sequence[RunRecord]], clusters: Mapping[str, Clusters]) -> list[bool]:
    """For each row (its runs): whether the share of broken texts, at the lower end of its interval, is above half."""
    broken = [False] * len(members)
    for name in BROKEN_SHARES:
        if any(name in record.metrics for records in members for record in records):
            cells = ColumnPanel.of(members, Column(name, "lower", "share"), clusters).cells(members)
            broken = [b or (cell.low is not None and cell.low > 0.5) for b, cell in zip(broken, cells, strict=True)]
    return broken


def unpraised(difference: Difference | None, broken: bool, other: bool = False) -> Difference | None:
    """The difference, but never in favour of broken texts: those of its row (`broken`), or of the row that it is to
    (`other`)."""
    if difference and ((broken and difference.verdict == "better") or (other and difference.verdict == "worse")):
        return replace(difference, verdict="differs")
    return difference


def compared(
    panels: list[ColumnPanel], cells: list[list[Cell]], reference: int, broken: Sequence[bool]
) -> list[list[Cell]]:
    """The columns' cells with their differences to the row `reference`, tested together."""
    rows = [i for i in range(len(cells[0]) if cells else 0) if i != reference]
    differences = [(panel.column, *d) for panel in panels for d in panel.differences(rows, reference)]
    places = [(k, i) for k in range(len(panels)) for i in rows]
    with_differences = [list(column) for column in cells]
    for (k, i), difference in zip(places, tested(differences), strict=True):
        with_differences[k][i] = replace(cells[k][i], difference=unpraised(difference, broken[i], broken[reference]))
    return with_differences


def pairs(panel: ColumnPanel, labels: list[str], broken: Sequence[bool]) -> Pairwise:
    """The differences between all pairs of rows in one column, tested together (Holm)."""
    places, differences = [], []
    for j in range(len(labels) - 1):
        rows = list(range(j + 1, len(labels)))
        places += [(i, j) for i in rows]
        differences += [(panel.column, d, seeds) for d, seeds in panel.differences(rows, j)]
    matrix: list[list[Difference | None]] = [[None] * len(labels) for _ in labels]
    for (i, j), difference in zip(places, tested(differences), strict=True):
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


def tested(differences: Sequence[tuple[Column, stats.PairedDifference, list[int]]]) -> list[Difference | None]:
    """Differences with their verdicts, p-values adjusted over all of them; None where nothing could be compared."""
    adjusted = iter(stats.holm([d.p for _, d, _ in differences if d.p is not None]))
    shown: list[Difference | None] = []
    for column, d, seeds in differences:
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


def best_row(panel: ColumnPanel, values: list[float | None], labels: list[str]) -> str | None:
    """The row that is better than each other row by a test at LEVEL over their number (Bonferroni)."""
    known = [i for i, value in enumerate(values) if value is not None]
    if panel.column.better == "neither" or len(known) < 2:
        return None
    sign = 1 if panel.column.better == "higher" else -1
    best = max(known, key=lambda i: sign * (values[i] or 0.0))
    other_rows = [i for i in known if i != best]
    differences = [d for d, _ in panel.differences(other_rows, best)]
    firm = all(d.p is not None and d.p * len(other_rows) < LEVEL and sign * (d.value or 0.0) < 0 for d in differences)
    return labels[best] if firm else None
