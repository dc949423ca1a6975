"""Which runs an ablation is made of: those that differ in its knobs and in nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detoxbench.config import BASE
from detoxbench.errors import UsageError, did_you_mean
from detoxbench.results.settings import differing, flat
from detoxbench.results.store import Run, RunRecord, readable

SECTIONS = ("method", "suite", "scorer", "gen", "model", "fit")
DIGESTS = ("method.fit_data", "suite.requests")
"""What may differ because of a knob: where data are, how many are taken, whether a method needs them."""


@dataclass(frozen=True)
class Entry:
    """A run, and its settings by dotted key."""

    run: Run
    record: RunRecord
    identity: dict[str, Any]
    """What can change a number."""
    known: dict[str, Any]
    """That, and the settings beside it that the run was asked with: what a key may name."""


def entries(folder: Path, notes: list[str]) -> Iterator[Entry]:
    """The runs under `folder`; what cannot be read is told in `notes`."""
    for run, record in readable(folder, notes):
        identity: dict[str, Any] = {"seed": record.seed}
        for section in ("method", "suite", "scorer"):
            part = dict(record.identity[section])
            identity[section] = part.pop("name")
            identity |= flat(part.pop("config", {}), f"{section}.")
            identity |= flat(part, f"{section}.")
        for section in ("model", "gen"):
            identity |= flat(record.identity[section], f"{section}.")
        asked = {k: v for s in SECTIONS for k, v in flat(record.spec.get(s, {}), f"{s}.")}
        yield Entry(run, record, identity, {"model": record.model, **asked, **identity})


def choose(
    every: Sequence[Entry], over: Sequence[str], where: Sequence[str], folder: str | Path, notes: Sequence[str]
) -> list[Entry]:
    """The runs that have the knobs `over` and fit the conditions `where`, without the base's.

    Raises UsageError, with the notes, where there is none and where a knob is the same in all.
    """
    fitting = [entry for entry in every if all(_fits(entry, condition, every) for condition in where)]
    chosen = [e for e in fitting if all(knob in e.known for knob in over) and e.record.method != BASE]
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


def _fits(entry: Entry, condition: str, every: Sequence[Entry]) -> bool:
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


def caused_by_knobs(chosen: Sequence[Entry], over: Sequence[str], along: Sequence[str]) -> list[str]:
    """The digests of data that differ because a knob does: equal wherever the knobs are.

    Raises UsageError, naming it, where anything else differs but the knobs, the seed and the keys `along`.
    """
    allowed = {*over, *along, "seed"}
    others = [key for key in differing([e.identity for e in chosen]) if key not in allowed]
    data_settings = [{k: v for k, v in e.known.items() if k.startswith(("fit.", "suite."))} for e in chosen]
    same_data = not {*differing(data_settings)} - {*allowed, *DIGESTS}
    caused = [key for key in others if same_data and key in DIGESTS and _follows(key, over, chosen)]
    if told := [key for key in others if key not in caused]:
        told = [key for key in told if key in SECTIONS] or told  # another method has other knobs: say the one
        raise UsageError(
            f"{'; '.join(_varies(key, chosen) for key in told[:4])}: choose by {_choice(told[:4], chosen)}, "
            "or allow it by --along KEY"
        )
    return caused


def _follows(key: str, over: Sequence[str], chosen: Sequence[Entry]) -> bool:
    """Whether `key` is the same wherever the knobs are."""
    seen = {(*(written(e.known[knob]) for knob in over), written(e.identity.get(key))) for e in chosen}
    return len(seen) == len({values[:-1] for values in seen})


def _varies(key: str, chosen: Sequence[Entry]) -> str:
    values = list(dict.fromkeys(written(e.known.get(key, "absent")) for e in chosen))
    return f"'{key}' varies too ({', '.join(values[:6])})"


def _choice(keys: Sequence[str], chosen: Sequence[Entry]) -> str:
    return " ".join(f"--where {key}={written(chosen[0].known.get(key))}" for key in keys)


def by_setting(chosen: Sequence[Entry], over: Sequence[str]) -> list[list[Entry]]:
    """The runs of each setting of the knobs, by seed, and the settings in their order.

    Raises UsageError where a setting has two runs of one seed: what varies along is varied there.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in sorted(chosen, key=lambda e: e.record.seed):
        groups.setdefault(json.dumps([entry.known[knob] for knob in over]), []).append(entry)
    ordered = sorted(groups.values(), key=lambda same: [order(same[0].known[knob]) for knob in over])
    for same in ordered:
        _check_seeds(same, over)
    return ordered


def _check_seeds(same: Sequence[Entry], over: Sequence[str]) -> None:
    by_seed: dict[int, list[Entry]] = {}
    for entry in same:
        by_seed.setdefault(entry.record.seed, []).append(entry)
    for seed, several in by_seed.items():
        if len(several) > 1:
            keys = differing([e.identity for e in several])[:4]
            setting = " ".join(f"{knob}={written(several[0].known[knob])}" for knob in over)
            told = "; ".join(_varies(key, several) for key in keys)
            raise UsageError(
                f"{len(several)} runs of {setting} seed={seed}: {told}: choose by {_choice(keys, several)}"
            )


def base_runs(every: Sequence[Entry], settings: Sequence[Sequence[Entry]]) -> list[Entry]:
    """The base's runs, where all settings share what they would have to share with it."""
    shared = [_without_method(entry.identity) for same in settings for entry in same]
    if differing([{k: v for k, v in identity.items() if k != "seed"} for identity in shared]):
        return []
    return [e for e in every if e.record.method == BASE and _without_method(e.identity) in shared]


def _without_method(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in identity.items() if k != "method" and not k.startswith("method.")}


def order(value: Any) -> tuple[Any, ...]:
    """A key to sort by: numbers by size, behind them other values by their text."""
    return (0, value) if isinstance(value, int | float) else (1, written(value))


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) and value else json.dumps(value)
