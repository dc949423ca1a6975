"""What one knob does, or two: runs that differ in nothing else, as a curve with tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from detoxbench import methods
from detoxbench.config import BASE
from detoxbench.errors import UsageError, did_you_mean
from detoxbench.results.ablation_effects import Effects, effects
from detoxbench.results.ablation_runs import (
    PART,
    AblationRun,
    base_runs,
    by_parts,
    by_setting,
    caused_by_knobs,
    choose,
    entries,
    order,
    written,
)
from detoxbench.results.settings import embedded
from detoxbench.results.store import RunRecord
from detoxbench.results.table_notes import broken_warning
from detoxbench.results.tables import EMBEDDED, Cell, Column, Difference


@dataclass(frozen=True)
class Point:
    """One setting of the knobs: `values` in their order."""

    values: tuple[Any, ...]
    seeds: list[int]
    run_ids: list[str]
    cells: dict[str, Cell]
    broken: bool = False
    """More than half of its texts are broken (`tables.Row.broken`): none of its numbers, and no trend, is called
    better."""


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
        """What was varied, of which runs."""
        names = self.names
        return (
            f"{names['method']} over {' and '.join(self.knobs)} · {names['model']} · {names['suite']} · "
            f"scored by {names['scorer']}"
        )

    def levels(self, knob: int) -> list[Any]:
        """The values of a knob, in order."""
        by_text = {written(point.values[knob]): point.values[knob] for point in self.points}
        return sorted(by_text.values(), key=order)

    def at(self, *values: Any) -> Point | None:
        """The setting with these values of the knobs; None where it was not run."""
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

    over: one knob or two; with.PART and with.OTHER of compositions: which of these parts they have.
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
    every = list(entries(Path(folder), notes))
    parts = any(knob.startswith(PART) for knob in over)
    if parts:
        every, where = by_parts(every, over, where), ()
    chosen = choose(every, over, where, folder, notes)
    caused = caused_by_knobs(chosen, over, along)
    settings = by_setting(chosen, over)
    base = base_runs(every, settings)

    record = next((entry.record for entry in chosen if entry.record.method != BASE), chosen[0].record)
    columns = _columns(record, metrics, all_metrics)
    default = {} if parts else _defaults(over, record)
    values = [tuple(same[0].known[knob] for knob in over) for same in settings]
    reference = _reference(against, over, values, bool(base), default)
    rows = [*settings, base] if base else settings
    outcome = effects(rows, over, values, columns, reference, notes)
    points = _points(rows, values, outcome)
    result = Ablation(
        knobs=list(over),
        names={key: getattr(record, key) for key in ("model", "method", "suite", "scorer")},
        columns=columns,
        points=points[: len(settings)],
        base=points[-1] if base else None,
        against=_reference_name(reference, over, values),
        trends=outcome.trends,
        interactions=outcome.interactions,
    )
    also = _warnings(result, record, along, caused, default) + _missing_notes(result)
    if parts and len(over) == 2:
        also.append("interaction: what the parts do together beyond the sum of what each does alone, 0 if they add up")
    return replace(result, notes=notes + also)


def _points(rows: Sequence[Sequence[AblationRun]], values: Sequence[tuple[Any, ...]], outcome: Effects) -> list[Point]:
    """A point for each row: one for each setting, and behind them the base's, which has no values."""
    return [
        Point(
            setting,
            [entry.record.seed for entry in row],
            [entry.record.run_id for entry in row],
            outcome.cells[r],
            outcome.broken[r],
        )
        for r, (setting, row) in enumerate(zip([*values, ()][: len(rows)], rows, strict=True))
    ]


def _columns(record: RunRecord, metrics: Sequence[str], all_metrics: bool) -> list[Column]:
    for name in metrics:
        if name not in record.metrics:
            near = did_you_mean(name, record.metrics)
            raise UsageError(f"unknown metric '{name}'{near}; known: {', '.join(record.metrics)}")
    wanted = metrics or [name for name, m in record.metrics.items() if all_metrics or m.headline]
    return [Column(name, record.metrics[name].better, record.metrics[name].unit) for name in wanted]


def _defaults(over: Sequence[str], record: RunRecord) -> dict[str, Any]:
    """The defaults of those knobs that are a method's."""
    if record.method not in methods.names():
        return {}
    config = methods.get(record.method).Config()  # null switches are resolved to the values that they stand for
    names = {f"method.{f.name}": f.name for f in fields(config)}
    defaults: dict[str, Any] = msgspec.to_builtins({k: getattr(config, names[k]) for k in over if k in names})
    return defaults


def _reference(
    against: str | None,
    over: Sequence[str],
    values: Sequence[tuple[Any, ...]],
    has_base: bool,
    default: Mapping[str, Any],
) -> int | None:
    """The number of the row that differences are to; the base's row comes after the points. None without such a row.

    Raises UsageError where `against` names a row that does not exist.
    """
    if against in (None, "base") and _no_part(over) in values:
        return values.index(_no_part(over))
    if against == "base" or (against is None and has_base):
        if not has_base:
            raise UsageError("--against base: there is no run of method=none under the same setting; run it first")
        return len(values)
    names = [" ".join(map(written, setting)) for setting in values]
    wanted = against if against is not None else " ".join(written(default.get(knob)) for knob in over)
    if wanted in names:
        return names.index(wanted)
    if against is None:
        return None
    raise UsageError(f"--against {against}: no such value; there are: base, {', '.join(names)}")


def _no_part(over: Sequence[str]) -> tuple[Any, ...]:
    """The values of a composition of none of the parts, which is the base; () for other knobs."""
    return (False,) * len(over) if over[0].startswith(PART) else ()


def _reference_name(reference: int | None, over: Sequence[str], values: Sequence[tuple[Any, ...]]) -> str | None:
    if reference is None:
        return None
    base = reference == len(values) or values[reference] == _no_part(over)
    return "base" if base else " ".join(map(written, values[reference]))


def _warnings(
    result: Ablation, record: RunRecord, along: Sequence[str], caused: Sequence[str], default: Mapping[str, Any]
) -> list[str]:
    """Warnings about the numbers, and the defaults of the knobs."""
    over = result.knobs
    settings = [f"{','.join(over)}={','.join(map(written, p.values))}" for p in result.points if p.broken]
    notes = broken_warning([*settings, *(["the base"] if result.base and result.base.broken else [])])
    if embedded(record):
        notes.append(EMBEDDED)
    if along:
        notes.append(f"{', '.join(along)}: varies along, so what is seen may be owed to it")
    if caused:
        notes.append(f"{', '.join(caused)}: another one where {' or '.join(over)} is another")
    if defaults := [f"{knob}={written(value)}" for knob, value in default.items()]:
        notes.append(f"default: {', '.join(defaults)}")
    return notes


def _missing_notes(result: Ablation) -> list[str]:
    """What is missing for a comparison over all seeds, for a trend or for an interaction."""
    notes = []
    points = result.points
    if len({tuple(point.seeds) for point in (*points, *([result.base] if result.base else []))}) > 1:
        notes.append("not all have the same seeds: differences are over those in common")
    for k, knob in enumerate(result.knobs):
        several = {written(point.values[k]) for point in points}
        if len(several) > 2 and not all(isinstance(point.values[k], int | float) for point in points):
            notes.append(f"the values of {knob} have no order: no trend")
    if len(result.knobs) == 2 and not result.trends and len(points) < math.prod(len(result.levels(k)) for k in (0, 1)):
        notes.append("not every combination of values is there: no trends and no interaction")
    return notes
