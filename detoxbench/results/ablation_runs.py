"""Which runs an ablation is made of: those that differ in its knobs and in nothing else."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detoxbench.config import BASE
from detoxbench.errors import UsageError, did_you_mean
from detoxbench.results.settings import differing, flat
from detoxbench.results.store import Run, RunRecord, readable

SECTIONS = ("method", "suite", "scorer", "gen", "model", "fit")
COMPOSED = "compose"
"""The method that is made of others."""
PART = "with."
"""With it begins a knob that says whether a composition has a part: with.destein is false or true."""
DIGESTS = ("method.fit_data", "suite.requests")
"""Digests of data that may differ because of a knob: where data are, how many are used, whether a method needs them."""


@dataclass(frozen=True)
class AblationRun:
    """A run, and its settings by dotted key."""

    run: Run
    record: RunRecord
    identity: dict[str, Any]
    """What can change a number."""
    known: dict[str, Any]
    """The identity and all other settings of the run: everything that a key may name."""


def entries(folder: Path, notes: list[str]) -> Iterator[AblationRun]:
    """The runs under `folder`; what cannot be read is named in `notes`."""
    for run, record in readable(folder, notes):
        identity: dict[str, Any] = {"seed": record.seed}
        for section in ("method", "suite", "scorer"):
            part = dict(record.identity[section])
            identity[section] = part.pop("name")
            identity |= flat(part.pop("config", {}), f"{section}.")
            identity |= flat(part, f"{section}.")
        for section in ("model", "gen"):
            identity |= flat(record.identity[section], f"{section}.")
        identity |= flat(record.identity.get("engine", {}), "engine.")
        spec_settings = {k: v for s in SECTIONS for k, v in flat(record.spec.get(s, {}), f"{s}.")}
        yield AblationRun(run, record, identity, {"model": record.model, **spec_settings, **identity})


def choose(
    every: Sequence[AblationRun], over: Sequence[str], where: Sequence[str], folder: str | Path, notes: Sequence[str]
) -> list[AblationRun]:
    """The runs that have the knobs `over` and fit the conditions `where`, without the base's.

    Raises UsageError, with the notes, where there is none and where a knob is the same in all.
    """
    keys = {key for entry in every for key in entry.known}
    fitting = [entry for entry in every if all(_fits(entry, condition, keys) for condition in where)]
    chosen = [e for e in fitting if all(knob in e.known for knob in over) and e.identity["method"] != BASE]
    if not chosen:
        known = sorted({key for entry in fitting for key in entry.known})
        unknown = next((knob for knob in over if knob not in known), over[0])
        under = f" with {' '.join(where)}" if where else ""
        problem = f"no run in '{folder}'{under} has a knob '{unknown}'{did_you_mean(unknown, known)}"
        raise UsageError("; ".join([problem, *notes]))
    for knob in over:
        if len({written(e.known[knob]) for e in chosen}) < 2:
            value = written(chosen[0].known[knob])
            problem = f"'{knob}' never varies in '{folder}': it is {value} in all {len(chosen)} runs"
            raise UsageError("; ".join([problem, *notes]))
    return chosen


def _fits(entry: AblationRun, condition: str, keys: Collection[str]) -> bool:
    """Whether a run has the value of a condition "key=value". Raises UsageError for a key that is none of `keys`."""
    key, _, wanted = condition.partition("=")
    if "=" not in condition or key not in keys:
        near = did_you_mean(key, keys)
        raise UsageError(f"--where {condition}: write key=value, with a key that a run has{near}")
    if key not in entry.known:
        return (
            entry.record.method == BASE
        )  # it has no knobs of a method, and is still what the others are compared with
    value = entry.known[key]
    try:
        return bool(value == json.loads(wanted)) or written(value) == wanted
    except ValueError:
        return written(value) == wanted


def caused_by_knobs(chosen: Sequence[AblationRun], over: Sequence[str], along: Sequence[str]) -> list[str]:
    """The digests of data that differ because a knob does: they are equal wherever the knobs are equal.

    Raises UsageError, naming it, where anything else differs but the knobs, the seed and the keys `along`.
    """
    allowed = {*over, *along, "seed"}
    differing_keys = [key for key in differing([e.identity for e in chosen]) if key not in allowed]
    data_settings = [{k: v for k, v in e.known.items() if k.startswith(("fit.", "suite."))} for e in chosen]
    same_data = not {*differing(data_settings)} - {*allowed, *DIGESTS}
    caused = [key for key in differing_keys if same_data and key in DIGESTS and _follows(key, over, chosen)]
    if unexplained := [key for key in differing_keys if key not in caused]:
        # Another method has other knobs, too: then the method alone is named.
        shown = ([key for key in unexplained if key in SECTIONS] or unexplained)[:4]
        varying = "; ".join(_varies(key, chosen) for key in shown)
        raise UsageError(f"{varying}: choose by {_choice(shown, chosen)}, or allow it by --along KEY")
    return caused


def _follows(key: str, over: Sequence[str], chosen: Sequence[AblationRun]) -> bool:
    """Whether `key` is equal wherever the knobs are equal."""
    seen = {(*(written(e.known[knob]) for knob in over), written(e.identity.get(key))) for e in chosen}
    return len(seen) == len({values[:-1] for values in seen})


def _varies(key: str, chosen: Sequence[AblationRun]) -> str:
    values = list(dict.fromkeys(written(e.known.get(key, "absent")) for e in chosen))
    return f"'{key}' varies too ({', '.join(values[:6])})"


def _choice(keys: Sequence[str], chosen: Sequence[AblationRun]) -> str:
    return " ".join(f"--where {key}={written(chosen[0].known.get(key))}" for key in keys)


def by_setting(chosen: Sequence[AblationRun], over: Sequence[str]) -> list[list[AblationRun]]:
    """The runs of each setting of the knobs, by seed, and the settings in their order.

    Raises UsageError where a setting has two runs of one seed: they differ in a key that may vary along.
    """
    groups: dict[str, list[AblationRun]] = {}
    for entry in sorted(chosen, key=lambda e: e.record.seed):
        groups.setdefault(json.dumps([entry.known[knob] for knob in over]), []).append(entry)
    ordered = sorted(groups.values(), key=lambda same: [order(same[0].known[knob]) for knob in over])
    for same in ordered:
        _check_seeds(same, over)
    return ordered


def _check_seeds(same: Sequence[AblationRun], over: Sequence[str]) -> None:
    by_seed: dict[int, list[AblationRun]] = {}
    for entry in same:
        by_seed.setdefault(entry.record.seed, []).append(entry)
    for seed, several in by_seed.items():
        if len(several) > 1:
            keys = differing([e.identity for e in several])[:4]
            setting = " ".join(f"{knob}={written(several[0].known[knob])}" for knob in over)
            differences = "; ".join(_varies(key, several) for key in keys)
            raise UsageError(
                f"{len(several)} runs of {setting} seed={seed}: {differences}: choose by {_choice(keys, several)}"
            )


def base_runs(every: Sequence[AblationRun], settings: Sequence[Sequence[AblationRun]]) -> list[AblationRun]:
    """The base's runs; [] unless all settings agree in everything that they must share with the base."""
    shared = [_without_method(entry.identity) for same in settings for entry in same]
    if differing([{k: v for k, v in identity.items() if k != "seed"} for identity in shared]):
        return []
    return [e for e in every if e.identity["method"] == BASE and _without_method(e.identity) in shared]


def by_parts(every: Sequence[AblationRun], over: Sequence[str], where: Sequence[str]) -> list[AblationRun]:
    """For knobs with.PART: the compositions of such parts, in the order of the knobs, and the base's runs, which have
    none of them. Instead of their method's settings they have these knobs, false or true. A condition of `where` on a
    part's setting holds for all runs without that part.

    Raises UsageError for another knob beside them, and where a part has other settings in one run than in another.
    """
    if other := [knob for knob in over if not knob.startswith(PART)]:
        raise UsageError(f"--over {','.join(over)}: '{other[0]}' is no part: give one part or two, with.METHOD")
    names = [knob.removeprefix(PART) for knob in over]
    keys = {key for entry in every for key in entry.known}
    chosen, seen = [], dict[str, AblationRun]()
    for entry in every:
        parts = _parts(entry)
        if parts is None or parts != [name for name in names if name in parts]:
            continue
        if not all(_fits(entry, c, keys) or c.partition("=")[0] not in entry.known for c in where):
            continue
        for name in parts:
            _check_part(name, seen.setdefault(name, entry), entry)
        knobs = {f"{PART}{name}": name in parts for name in names}
        fit = {key: value for key, value in entry.known.items() if key.startswith("fit.")}
        identity = {**_without_method(entry.identity), **fit, "method": COMPOSED, **knobs}
        chosen.append(replace(entry, identity=identity, known={**entry.known, **identity}))
    return chosen


def _parts(entry: AblationRun) -> list[str] | None:
    """The parts of a composition, [] of the base; None of another method."""
    if entry.record.method == COMPOSED:
        return str(entry.identity.get("method.parts", "")).split("+")
    return [] if entry.record.method == BASE else None


def _check_part(name: str, one: AblationRun, other: AblationRun) -> None:
    """Raises UsageError, naming it, where a part has two settings in two runs."""
    settings = [{k: v for k, v in e.identity.items() if k.startswith(f"method.{name}.")} for e in (one, other)]
    if keys := differing(settings):
        raise UsageError(
            f"{_varies(keys[0], [one, other])}, so the runs are not of the same '{name}': choose by "
            f"--where {keys[0]}={written(one.known.get(keys[0]))}"
        )


def _without_method(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in identity.items() if k != "method" and not k.startswith("method.")}


def order(value: Any) -> tuple[Any, ...]:
    """A key to sort by: numbers by size, behind them other values by their text."""
    return (0, value) if isinstance(value, int | float) else (1, written(value))


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) and value else json.dumps(value)
