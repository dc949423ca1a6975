"""The notes below tables: how to read them, what is missing, what is not supported, in what tables differ."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detoxbench import scorers
from detoxbench.config import BASE
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels.weights import ENOUGH
from detoxbench.results import stats
from detoxbench.results.settings import changed_settings
from detoxbench.results.store import RunRecord
from detoxbench.results.tables import EMBEDDED, LEVEL, Column, Row, Table
from detoxbench.text import short

MISSING_TEXTS = "missing_texts"
"""The count of texts that were not stored; where texts are generated there is no such count."""


def of_table(
    columns: Sequence[Column], rows: Sequence[Row], against: str | None, reference: int | None, *, embedded: bool
) -> list[str]:
    """The notes below a table whose differences are to the row `reference`, chosen by `against`."""
    return [
        *([EMBEDDED] if embedded else []),
        *broken_warning([row.label for row in rows if row.broken]),
        *_idle(rows),
        *_intervals(rows),
        *_tests(columns, rows, against),
        *(_no_reference(rows, against) if reference is None else _other_seeds(rows, rows[reference], against)),
        *_seeds(columns, rows),
        *fidelity(rows),
        *_data_and_settings(rows),
        *_counted(rows),
        *_missing_texts(rows),
        *_read_before(rows),
        *(note for name in rows[0].cells for note in _without_numbers(name, rows)),
    ]


def _intervals(rows: Sequence[Row]) -> list[str]:
    methods = sorted({c.interval for r in rows for c in r.cells.values() if c.low is not None})
    return [f"[low, high]: 95 % interval by prompt or record ({'; '.join(methods)})"] if methods else []


def _tests(columns: Sequence[Column], rows: Sequence[Row], against: str | None) -> list[str]:
    tests = sum(c.difference is not None and c.difference.p is not None for r in rows for c in r.cells.values())
    if not tests:
        return []
    base = "the base" if against is None else f"'{against}'"
    legend = (
        f"Δ: difference to {base} on the same prompts and seeds; ✓ better, ✗ worse, ≠ differs "
        f"(p < {LEVEL} after Holm over the {tests} tests of this table); n.s.: not supported"
    )
    return [legend, *_detectable(columns, rows)]


def _no_reference(rows: Sequence[Row], against: str | None) -> list[str]:
    """Why there are no differences."""
    name = BASE if against is None else against
    several = [row.label for row in rows if row.method["name"] == name]
    if several:
        return [f"several rows of '{name}' ({'; '.join(several)}): no differences (--against names one)"]
    if against is None:
        return ["no base run (method=none) here: no differences"]
    return [f"no row '{against}' here: no differences"]


def _other_seeds(rows: Sequence[Row], reference: Row, against: str | None) -> list[str]:
    """The rows that were not run under the reference's seeds."""
    name, reference_seeds = "base" if against is None else "the other", _listed(reference.seeds)
    notes = []
    for row in rows:
        if row.seeds != reference.seeds:
            common = sorted(set(row.seeds) & set(reference.seeds))
            over = f"differences are over {_listed(common)}" if common else "none in common, so no differences"
            notes.append(f"{row.label}: seeds {_listed(row.seeds)}, {name} {reference_seeds}: {over}")
    return notes


def _missing_texts(rows: Sequence[Row]) -> list[str]:
    """The rows that have no text for some requests."""
    missing = [(row, n) for row in rows if (n := row.counts.get(MISSING_TEXTS))]
    shown = (f"{row.label} ({n} of {n + (row.counts.get('samples') or 0)})" for row, n in missing)
    return [f"no text was stored for these samples, which are left out: {', '.join(shown)}"] if missing else []


def _read_before(rows: Sequence[Row]) -> list[str]:
    """The rows that were fitted on texts which are prompts of the run."""
    read = {row.label: (row.counts.get("prompts_in_fit_data"), row.counts.get("requests")) for row in rows}
    flagged = [f"{label} ({n} of {requests})" for label, (n, requests) in read.items() if n]
    return [f"flagged, fitted on texts that are asked here (too good, maybe): {', '.join(flagged)}"] if flagged else []


def _without_numbers(name: str, rows: Sequence[Row]) -> list[str]:
    """For one metric: the rows with missing values, those without any value, and those without an interval."""
    notes = []
    if missing := [f"{row.label} {row.cells[name].missing}" for row in rows if row.cells[name].missing]:
        notes.append(f"{name}: missing values, left out: {', '.join(missing)}")
    if unmeasured := [row.label for row in rows if row.cells[name].value is None and not row.cells[name].missing]:
        notes.append(f"{name}: not measured: {', '.join(unmeasured)}")
    measured = {row.label: row.cells[name] for row in rows if row.label not in unmeasured}
    bare = {label: cell.interval for label, cell in measured.items() if cell.low is None}
    if bare:
        reasons = (f"{label} ({reason.removeprefix('none: ')})" for label, reason in bare.items())
        notes.append(f"{name}: no interval: {', '.join(reasons)}")
    return notes


def broken_warning(labels: Sequence[str]) -> list[str]:
    """The warning of rows (or settings) whose texts are mostly broken: [] or one."""
    warning = "more than half of the texts are broken, so other numbers mean little and none is called better"
    return [f"WARNING: {warning}: {', '.join(labels)}"] if labels else []


def _idle(rows: Sequence[Row]) -> list[str]:
    """The rows whose samples are all equal to the base's."""
    same = [row for row in rows if (n := row.counts.get("equal_to_base")) and n == row.counts.get("samples")]
    labels = (f"{row.label} ({row.counts['equal_to_base']} of {row.counts['samples']} samples)" for row in same)
    return [f"this method did nothing, all is as the base has it: {', '.join(labels)}"] if same else []


def _counted(rows: Sequence[Row]) -> list[str]:
    """The counts that are 0 in all rows, and those that were not counted."""
    never, unknown = [], []
    for key in dict.fromkeys(key for row in rows for key in row.counts if key != MISSING_TEXTS):
        name, without = key.replace("_", " "), [row.label for row in rows if row.counts.get(key) is None]
        if without:
            unknown.append(name if len(without) == len(rows) else f"{name} ({', '.join(without)})")
        elif not any(row.counts[key] for row in rows):
            never.append(name)
    notes = [f"none in any row: {', '.join(never)}"] if never else []
    return notes + ([f"not measured: {', '.join(unknown)}"] if unknown else [])


def of_scorers(identity: Mapping[str, Any]) -> list[str]:
    """The known caveats of the scorers that judged the runs, the suite's own included."""
    judges = [identity["scorer"], *identity["suite"].get("scorers", {}).values()]
    notes = []
    for name in dict.fromkeys(str(judge["name"]) for judge in judges):
        try:
            caveat = scorers.get(name).caveat
        except DetoxbenchError:  # a scorer that is not installed here
            continue
        notes += [f"scorer {name}: {caveat}"] if caveat else []
    return notes


def _seeds(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """What the rows' seeds stand for (`stats.seed_kind`); where there are two, the values under each."""
    several = [row for row in rows if len(row.seeds) > 1]
    kinds = {row.label: stats.seed_kind(row.fits) for row in several}
    notes = []
    if same := [label for label, kind in kinds.items() if kind == "repeats"]:
        notes.append(f"the same intervention under every seed, so that seeds are further samples: {', '.join(same)}")
    if two := [row for row in several if kinds[row.label] == "these"]:
        notes.append(
            "two seeds with different fits: intervals and tests are for these two, not for new seeds (take three or "
            f"more): {'; '.join(f'{row.label}: {_by_seed(columns, row)}' for row in two)}"
        )
    if drawn := [label for label, kind in kinds.items() if kind == "drawn"]:
        notes.append(
            f"another fit under every seed, so that intervals and tests are for new seeds too: {', '.join(drawn)}"
        )
    return notes


def made_by(records: Iterable[RunRecord]) -> list[str]:
    """The versions of detoxbench that made the runs, each once."""
    versions: dict[str, None] = {}
    for record in records:
        git, packages = record.provenance.get("git") or {}, record.provenance.get("packages") or {}
        commit = f", commit {git['commit'][:12]}" if git.get("commit") else ""
        dirty = " with uncommitted changes" if commit and git.get("dirty") else ""
        if version := packages.get("detoxbench"):
            versions[f"detoxbench {version}{commit}{dirty}"] = None
    return [f"made by {' | '.join(versions)}"] if versions else []


def _data_and_settings(rows: Sequence[Row]) -> list[str]:
    """The names of prompts and fit data, and the settings that are neither the methods' defaults nor in a label."""
    suite_data = dict.fromkeys(row.data["suite.data"] for row in rows if "suite.data" in row.data)
    notes = [f"asked: {' | '.join(suite_data)}"] if suite_data else []
    fitted: dict[str, list[str]] = {}
    for row in rows:
        if names := [f"{k.removeprefix('fit.')} {v}" for k, v in row.data.items() if k.startswith("fit.")]:
            fitted.setdefault(" and ".join(names), []).append(row.label)
    notes += [f"fitted on {names}: {', '.join(labels)}" for names, labels in fitted.items()]
    taken = {
        r.label: [f"{k.removeprefix('method.')} {v}" for k, v in r.data.items() if k.startswith("method.")]
        for r in rows
    }
    if told := [f"{label}: {', '.join(names)}" for label, names in taken.items() if names]:
        notes.append(f"taken from elsewhere: {'; '.join(told)}")
    settings = []
    for row in rows:
        changed = [f"{k}={v}" for k, v in changed_settings(row.method).items()] if row.run_ids else []
        if not_in_label := [setting for setting in changed if setting not in row.label.split(" ")]:
            settings.append(f"{row.label}: {', '.join(not_in_label)}")
    return notes + ([f"settings that are not the method's defaults: {'; '.join(settings)}"] if settings else [])


def fidelity(rows: Sequence[Row]) -> list[str]:
    """How near the rows are to what was published: a note for each line, with the rows that it stands for."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.said:
            labels.setdefault(row.said, []).append(row.label)
    return [f"fidelity: {', '.join(of_line)}: {line}" for line, of_line in labels.items()]


def _by_seed(columns: Sequence[Column], row: Row) -> str:
    """Each metric under each seed."""
    parts = []
    for column in columns:
        values = [v if v is None or column.unit == "number" else 100 * v for v in row.cells[column.name].by_seed]
        parts.append(f"{column.name} {' and '.join('missing' if v is None else f'{v:.3g}' for v in values)}")
    return f"seeds {_listed(row.seeds)}: {', '.join(parts)}"


def verified(rows: Sequence[Row], packs: Mapping[str, str]) -> list[str]:
    """The rows that came in packs and were computed again; `packs` is by run id."""
    sure = [row for row in rows if all(run_id in packs for run_id in row.run_ids)]
    labels = (f"{row.label} ({', '.join(sorted({packs[run_id] for run_id in row.run_ids}))})" for row in sure)
    return [f"verified, computed again from samples and scores: {', '.join(labels) or 'no row'}"] if packs else []


def weight_changes(labels: Sequence[str], members: Sequence[Sequence[RunRecord]]) -> list[str]:
    """How the rows' changes of weights take effect, where rounding to the weights' type can lose a part of them.

    `members` are the runs of each row. Rows in which nothing is rounded away, and old runs without this record, are not
    named.
    """
    notes = []
    for label, records in zip(labels, members, strict=True):
        changes = [d for r in records if isinstance(d := r.diagnostics.get("weight_changes"), dict)]
        shares = [d["surviving_share"] for d in changes if d["surviving_share"] is not None]
        share = statistics.mean(shares) if shares else None
        lost = share is not None and share < ENOUGH
        lower = any(r.identity.get("model", {}).get("dtype") in ("bfloat16", "float16") for r in records)
        if changes and (lower or lost):
            # Where each record has its own fit, the form is a count by form.
            form = changes[0]["form"] if isinstance(changes[0]["form"], str) else " or ".join(changes[0]["form"])
            survival = (
                "not known what share survives" if share is None else f"{100 * share:.3g} % of it survives rounding"
            )
            if form == "side path":
                survival = (
                    "exact" if share is None else f"exact; merged, {100 * share:.3g} % of it would survive rounding"
                )
            less = ", so less than was fitted is measured" if lost and "merged" in form else ""
            notes.append(f"{label}: {form} ({survival}{less})")
    return [f"changes of weights: {'; '.join(notes)}"] if notes else []


def _detectable(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """The difference that this many clusters can detect: for each metric the median over the rows' differences."""
    by_n: dict[int, list[str]] = {}
    for column in columns:
        differences = [d for row in rows if (d := row.cells[column.name].difference) and d.detectable is not None]
        if differences:
            size = statistics.median([d.detectable for d in differences if d.detectable is not None])
            shown = f"{100 * size:.2g} points" if column.unit == "share" else f"{size:.2g}"
            by_n.setdefault(max(d.n for d in differences), []).append(f"{column.name} {shown}")
    power = f"power {stats.POWER:.0%}, one test at {LEVEL}".replace("%", " %")
    return [f"{n} prompts or records tell these differences apart ({power}): {', '.join(s)}" for n, s in by_n.items()]


def of_board(tables: Sequence[Table]) -> list[str]:
    """The settings in which the tables of one suite differ."""
    notes = []
    for suite in sorted({t.suite for t in tables}):
        same = [t for t in tables if t.suite == suite]
        for key in same[0].apart:
            values = dict.fromkeys(_shared_value(table, key) for table in same)
            notes.append(f"tables of {suite} are kept apart by {key}: {' | '.join(values)}")
    return notes


def _shared_value(table: Table, key: str) -> str:
    value = short(table.shared.get(key, "absent"))
    return f"{value} ({table.model})" if key == "model.fingerprint" else value


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values)) or "none"
