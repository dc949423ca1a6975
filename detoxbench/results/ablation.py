"""What one knob does, or two: runs that differ in nothing else, as a curve with tests."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from detoxbench import methods
from detoxbench.config import BASE
from detoxbench.errors import UsageError, did_you_mean
from detoxbench.results import stats
from detoxbench.results.panels import ColumnPanel, clusters_of, mostly_broken, tested, unpraised
from detoxbench.results.settings import differing, embedded, flat
from detoxbench.results.store import Run, RunRecord, readable
from detoxbench.results.table_notes import broken_warning
from detoxbench.results.tables import EMBEDDED, Cell, Column, Difference

if TYPE_CHECKING:
    from detoxbench.results.stats import Array, Panel

SECTIONS = ("method", "suite", "scorer", "gen", "model", "fit")
DIGESTS = ("method.fit_data", "suite.requests")
"""What may differ because of a knob: where data are, how many are taken, whether a method needs them."""


@dataclass(frozen=True)
class Point:
    """One setting of the knobs: `values` in their order."""

    values: tuple[Any, ...]
    seeds: list[int]
    run_ids: list[str]
    cells: dict[str, Cell]
    broken: bool = False
    """More than half of its texts are broken for sure: none of its numbers is called better, and no trend over it."""


@dataclass(frozen=True)
class Ablation:
    """Metrics over the values of one knob or two.

    Differences of the points are to `against` ("base", or a value). `trends[metric][knob]` is the change a step from
    one value to the next (least squares over the steps, the mean over the other knob's values), for knobs whose values
    have an order; `interactions[metric]` is by how much one knob's change a step differs from one value of the other to
    the next. All tests of all shown metrics are corrected together (Holm).
    """

    knobs: list[str]
    names: dict[str, str]
    """Of model, method, suite and scorer."""
    columns: list[Column]
    points: list[Point]
    base: Point | None
    against: str | None
    trends: dict[str, dict[str, Difference]]
    interactions: dict[str, Difference]
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        names = self.names
        return (
            f"{names['method']} over {' and '.join(self.knobs)} · {names['model']} · {names['suite']} · "
            f"scored by {names['scorer']}"
        )

    def levels(self, knob: int) -> list[Any]:
        """The values of a knob, in order."""
        found = {written(point.values[knob]): point.values[knob] for point in self.points}
        return sorted(found.values(), key=_order)

    def at(self, *values: Any) -> Point | None:
        return next((point for point in self.points if point.values == values), None)


def ablation(
    folder: str | Path,
    over: Sequence[str],
    *,
    where: Sequence[str] = (),
    along: Sequence[str] = (),
    against: str | None = None,
    metrics: Sequence[str] = (),
    all_metrics: bool = False,
) -> Ablation:
    """The runs under `folder` as a curve over one knob or a table over two ("method.alpha", "gen.temperature", ...).

    where: "key=value" conditions that choose runs, by the same keys and model, method, suite, scorer and seed.
    along: keys that may change together with the knobs.
    against: what differences are to: "base" (method none under the same setting) or a value of a single knob; the base
        if it is there, else the knob's default.
    metrics: which to show; otherwise the headline metrics, or `all_metrics`.

    Raises UsageError where a knob never varies, and where something else varies too, naming it.
    """
    if not 1 <= len(over) <= 2 or len(set(over)) < len(over):
        raise UsageError(f"--over takes one knob or two, by a comma (given: {','.join(over)})")
    notes: list[str] = []
    every = list(_entries(Path(folder), notes))
    entries = [entry for entry in every if all(_fits(entry, condition, every) for condition in where)]
    chosen = [e for e in entries if all(knob in e.known for knob in over) and e.record.method != BASE]
    if not chosen:
        known = sorted({key for entry in entries for key in entry.known})
        odd = next((k for k in over if k not in known), over[0])
        under = f" with {' '.join(where)}" if where else ""
        problem = f"no run in '{folder}'{under} has a knob '{odd}'{did_you_mean(odd, known)}"
        raise UsageError("; ".join([problem, *notes]))
    for knob in over:
        if len({written(e.known[knob]) for e in chosen}) < 2:
            value = written(chosen[0].known[knob])
            problem = f"'{knob}' never varies in '{folder}': it is {value} in all {len(chosen)} runs"
            raise UsageError("; ".join([problem, *notes]))
    allowed = {*over, *along, "seed"}
    others = [key for key in differing([e.identity for e in chosen]) if key not in allowed]
    asked = differing([{k: v for k, v in e.known.items() if k.startswith(("fit.", "suite."))} for e in chosen])
    inert = not {*asked} - {*allowed, *DIGESTS}
    caused = [key for key in others if inert and key in DIGESTS and _follows(key, over, chosen)]
    if told := [key for key in others if key not in caused]:
        told = [key for key in told if key in SECTIONS] or told  # another method has other knobs: say the one
        raise UsageError(
            f"{'; '.join(_varies(key, chosen) for key in told[:4])}: choose by {_choice(told[:4], chosen)}, "
            "or allow it by --along KEY"
        )

    groups: dict[str, list[_Entry]] = {}
    for entry in sorted(chosen, key=lambda e: e.record.seed):
        groups.setdefault(json.dumps([entry.known[knob] for knob in over]), []).append(entry)
    ordered = sorted(groups.values(), key=lambda es: [_order(es[0].known[knob]) for knob in over])
    _check_single(over, ordered)
    base = _base(every, ordered)
    record = chosen[0].record
    columns = _columns(record, metrics, all_metrics)
    default = _defaults(over, record)
    index = _against(against, over, ordered, base, default)
    points, base_point, trends, interactions = _measured(over, ordered, base, columns, index, notes)
    return Ablation(
        knobs=list(over),
        names={key: getattr(record, key) for key in ("model", "method", "suite", "scorer")},
        columns=columns,
        points=points,
        base=base_point,
        against=None if index is None else "base" if index == len(ordered) else written(points[index].values[0]),
        trends=trends,
        interactions=interactions,
        notes=notes + _notes(over, along, caused, chosen, points, base_point, default, trends),
    )


# ------------------------------------------------------------------------------------------------ which runs


@dataclass(frozen=True)
class _Entry:
    run: Run
    record: RunRecord
    identity: dict[str, Any]
    """What can change a number, by dotted key."""
    known: dict[str, Any]
    """That, and what a run was asked with beside it: what a key may name."""


def _entries(folder: Path, notes: list[str]) -> Iterator[_Entry]:
    for run, record in readable(folder, notes):
        own: dict[str, Any] = {"seed": record.seed}
        for section in ("method", "suite", "scorer"):
            part = dict(record.identity[section])
            own[section] = part.pop("name")
            own |= flat(part.pop("config", {}), f"{section}.")
            own |= flat(part, f"{section}.")
        for section in ("model", "gen"):
            own |= flat(record.identity[section], f"{section}.")
        asked = {k: v for s in SECTIONS for k, v in flat(record.spec.get(s, {}), f"{s}.")}
        yield _Entry(run, record, own, {"model": record.model, **asked, **own})


def _fits(entry: _Entry, condition: str, every: Sequence[_Entry]) -> bool:
    key, _, wanted = condition.partition("=")
    known = {name for e in every for name in e.known}
    if "=" not in condition or key not in known:
        near = did_you_mean(key, known)
        raise UsageError(f"--where {condition}: write key=value, with a key that a run has{near}")
    if key not in entry.known:
        return entry.record.method == BASE  # the base has none of a method's knobs, and is compared with all the same
    value = entry.known[key]
    try:
        return bool(value == json.loads(wanted)) or written(value) == wanted
    except ValueError:
        return written(value) == wanted


def _follows(key: str, over: Sequence[str], entries: Sequence[_Entry]) -> bool:
    """Whether `key` is the same wherever the knobs are."""
    seen = {(*(written(e.known[knob]) for knob in over), written(e.identity.get(key))) for e in entries}
    return len(seen) == len({values[:-1] for values in seen})


def _varies(key: str, entries: Sequence[_Entry]) -> str:
    values = list(dict.fromkeys(written(e.known.get(key, "absent")) for e in entries))
    return f"'{key}' varies too ({', '.join(values[:6])})"


def _choice(keys: Sequence[str], entries: Sequence[_Entry]) -> str:
    return " ".join(f"--where {key}={written(entries[0].known.get(key))}" for key in keys)


def _base(every: Sequence[_Entry], ordered: Sequence[Sequence[_Entry]]) -> list[_Entry]:
    """The base's runs, where all points share what it would have to share with them."""
    shared = [{k: v for k, v in e.identity.items() if not _of_method(k)} for es in ordered for e in es]
    if differing([{k: v for k, v in s.items() if k != "seed"} for s in shared]):
        return []
    found = []
    for entry in every:
        own = {k: v for k, v in entry.identity.items() if not _of_method(k)}
        if entry.record.method == BASE and own in shared:
            found.append(entry)
    return found


def _check_single(over: Sequence[str], ordered: Sequence[Sequence[_Entry]]) -> None:
    """Raises UsageError where a setting of the knobs has two runs of one seed: what varies along is varied there."""
    for entries in ordered:
        by_seed: dict[int, list[_Entry]] = {}
        for entry in entries:
            by_seed.setdefault(entry.record.seed, []).append(entry)
        for seed, same in by_seed.items():
            if len(same) > 1:
                keys = differing([e.identity for e in same])[:4]
                setting = " ".join(f"{knob}={written(same[0].known[knob])}" for knob in over)
                told = "; ".join(_varies(key, same) for key in keys)
                raise UsageError(f"{len(same)} runs of {setting} seed={seed}: {told}: choose by {_choice(keys, same)}")


def _of_method(key: str) -> bool:
    return key == "method" or key.startswith("method.")


def _against(
    against: str | None,
    over: Sequence[str],
    ordered: Sequence[Sequence[_Entry]],
    base: Sequence[_Entry],
    default: Mapping[str, Any],
) -> int | None:
    """The row that differences are to; the base comes behind the points."""
    if against == "base" or (against is None and base):
        if not base:
            raise UsageError("--against base: there is no run of method=none under the same setting; run it first")
        return len(ordered)
    values = [" ".join(written(es[0].known[knob]) for knob in over) for es in ordered]
    wanted = against if against is not None else " ".join(written(default.get(knob)) for knob in over)
    if wanted in values:
        return values.index(wanted)
    if against is None:
        return None
    raise UsageError(f"--against {against}: no such value; there are: base, {', '.join(values)}")


def _defaults(over: Sequence[str], record: RunRecord) -> dict[str, Any]:
    """The defaults of those knobs that are a method's."""
    if record.method not in methods.names():
        return {}
    config = methods.get(record.method).Config()  # with switches that are null turned into what they stand for
    names = {f"method.{f.name}": f.name for f in fields(config)}
    made: dict[str, Any] = msgspec.to_builtins({k: getattr(config, names[k]) for k in over if k in names})
    return made


def _columns(record: RunRecord, metrics: Sequence[str], all_metrics: bool) -> list[Column]:
    for name in metrics:
        if name not in record.metrics:
            near = did_you_mean(name, record.metrics)
            raise UsageError(f"unknown metric '{name}'{near}; known: {', '.join(record.metrics)}")
    wanted = metrics or [name for name, m in record.metrics.items() if all_metrics or m.headline]
    return [Column(name, record.metrics[name].better, record.metrics[name].unit) for name in wanted]


def _order(value: Any) -> tuple[Any, ...]:
    """Numbers by size, behind them other values by their text."""
    return (0, value) if isinstance(value, int | float) else (1, written(value))


# ------------------------------------------------------------------------------------------------ what they say


def _measured(
    over: Sequence[str],
    ordered: Sequence[Sequence[_Entry]],
    base: Sequence[_Entry],
    columns: Sequence[Column],
    against: int | None,
    notes: list[str],
) -> tuple[list[Point], Point | None, dict[str, dict[str, Difference]], dict[str, Difference]]:
    """Points, base, trends and interactions."""
    rows = [*ordered, list(base)] if base else list(ordered)
    members = [[e.record for e in es] for es in rows]
    clusters = clusters_of(((e.run, e.record) for es in rows for e in es), notes)
    values = [tuple(es[0].known[knob] for knob in over) for es in ordered]
    contrasts = _contrasts(over, values)
    asked: list[tuple[Column, stats.Difference, list[int]]] = []
    cells: list[dict[str, Cell]] = [{} for _ in rows]
    for column in columns:
        panel = ColumnPanel.of(members, column, clusters)
        for r, cell in enumerate(panel.cells(members)):
            cells[r][column.name] = cell
        if against is None:
            asked += [(column, NOTHING, []) for _ in ordered]
        else:
            found = panel.differences(list(range(len(ordered))), against)
            asked += [(column, NOTHING if r == against else d, seeds) for r, (d, seeds) in enumerate(found)]
        for what, weights in contrasts.items():
            meant = replace(column, better="neither") if what == INTERACTION else column
            asked.append((meant, _contrast(panel.sums, weights), panel.seeds))

    broken = mostly_broken(members, clusters)
    reference = against is not None and broken[against]
    over_broken = any(broken[: len(ordered)])
    differences = iter(tested(asked))
    trends: dict[str, dict[str, Difference]] = {}
    interactions: dict[str, Difference] = {}
    for column in columns:
        for r in range(len(ordered)):
            difference = unpraised(next(differences), broken[r], reference)
            cells[r][column.name] = replace(cells[r][column.name], difference=difference)
        for what in contrasts:
            change = unpraised(next(differences), over_broken, over_broken)
            if change is not None and what == INTERACTION:
                interactions[column.name] = change
            elif change is not None:
                trends.setdefault(column.name, {})[what] = change
    made = [
        Point(
            values[r] if r < len(values) else (),
            [x.seed for x in records],
            [x.run_id for x in records],
            cells[r],
            broken[r],
        )
        for r, records in enumerate(members)
    ]
    return made[: len(ordered)], made[-1] if base else None, trends, interactions


INTERACTION = "interaction"
NOTHING = stats.Difference(None, None, None, None, 0, "none")


def _contrasts(over: Sequence[str], values: Sequence[tuple[Any, ...]]) -> dict[str, Array]:
    """Weights of the points whose weighted sum is a trend (change a step) or the interaction (change of a trend a
    step), by name; only where the knobs' values have an order and every combination is there."""
    levels = [list(dict.fromkeys(map(written, sorted((v[k] for v in values), key=_order)))) for k in range(len(over))]
    steps = []
    for k, several in enumerate(levels):
        numbers = all(isinstance(v[k], int | float) for v in values)  # two values have an order anyway
        x = np.arange(len(several)) - (len(several) - 1) / 2
        steps.append(x / (x**2).sum() if numbers or len(several) == 2 else None)
    if len(values) < math.prod(map(len, levels)):
        return {}
    place = [[several.index(written(v[k])) for v in values] for k, several in enumerate(levels)]
    found: dict[str, Array] = {}
    for k, step in enumerate(steps):
        if step is not None:
            found[over[k]] = step[place[k]] * len(levels[k]) / len(values)
    if len(over) == 2 and steps[0] is not None and steps[1] is not None:
        found[INTERACTION] = steps[0][place[0]] * steps[1][place[1]]
    return found


def _contrast(panel: Panel, weights: Array) -> stats.Difference:
    """The weighted sum of the points' values with its test, over the seeds and clusters that all of them have.

    It is put as a difference to 0: each cluster holds the sum plus its influence on it, so that the clusters' mean is
    the sum and their spread its error.
    """
    totals, counts = panel.totals[: len(weights)], panel.counts[: len(weights)]
    there = (counts > 0).any(2).all(0)
    totals, counts = totals[:, there], counts[:, there]
    shared = (counts > 0).all((0, 1))
    totals, counts = totals[:, :, shared], counts[:, :, shared]
    if not counts.size:
        return stats.Difference(None, None, None, None, 0, "none: no cluster in common")
    ratios = totals.sum(2, keepdims=True) / counts.sum(2, keepdims=True)
    values = ratios + (totals - ratios * counts) / counts.mean(2, keepdims=True)
    made = np.tensordot(weights, values, 1)[None]
    fits = panel.all_fits()[: len(weights)]
    each = [tuple(own[s] for own in fits) for s in np.flatnonzero(there).tolist()]  # what all points have fitted
    nothing = stats.Panel(np.zeros_like(made), np.ones_like(made), [each])
    return stats.paired_differences(stats.Panel(made, np.ones_like(made), [each]), nothing)[0]


def _notes(
    over: Sequence[str],
    along: Sequence[str],
    caused: Sequence[str],
    entries: Sequence[_Entry],
    points: Sequence[Point],
    base: Point | None,
    default: Mapping[str, Any],
    trends: Mapping[str, Any],
) -> list[str]:
    settings = [f"{','.join(over)}={','.join(map(written, p.values))}" for p in points if p.broken]
    notes = broken_warning([*settings, *(["the base"] if base and base.broken else [])])
    if embedded(entries[0].record):
        notes.append(EMBEDDED)
    if along:
        notes.append(f"{', '.join(along)}: varies along, so what is seen may be owed to it")
    if caused:
        notes.append(f"{', '.join(caused)}: another one where {' or '.join(over)} is another")
    told = [f"{knob}={written(value)}" for knob, value in default.items()]
    if told:
        notes.append(f"default: {', '.join(told)}")
    seeds = {tuple(point.seeds) for point in (*points, *([base] if base else []))}
    if len(seeds) > 1:
        notes.append("not all have the same seeds: differences are over those in common")
    for k, knob in enumerate(over):
        several = {written(point.values[k]) for point in points}
        if len(several) > 2 and not all(isinstance(point.values[k], int | float) for point in points):
            notes.append(f"the values of {knob} have no order: no trend")
    if len(over) == 2 and not trends and len(points) < math.prod(len({p.values[k] for p in points}) for k in (0, 1)):
        notes.append("not every combination of values is there: no trends and no interaction")
    return notes


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) and value else json.dumps(value)
