"""How configurations are told apart, for people: labels, settings that are not the defaults, names of data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from typing import Any

import msgspec

from detoxbench import methods
from detoxbench.config import BASE, EMBEDDED_DATA, digest
from detoxbench.config import identity as settings_of
from detoxbench.results.store import RunRecord
from detoxbench.text import short


def shared_identity(record: RunRecord) -> dict[str, Any]:
    """The part of a run's identity that runs have in common when they are comparable: all but method and seed."""
    return {k: v for k, v in record.identity.items() if k not in ("method", "seed")}


def embedded(record: RunRecord) -> bool:
    """Whether the model, the fit data or the prompts are of the toy world, so that the note `EMBEDDED` applies."""
    toy = "fable" in (record.model, record.spec.get("model", {}).get("path"))
    return toy or any(name.startswith(EMBEDDED_DATA) for name in record.data.values())


def named_data(identities: Sequence[Mapping[str, Any]], data: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Identities of methods for people: fit data, and what is taken from files, by name instead of by digest, where a
    name stands for one digest."""
    rows = list(zip(identities, map(_names, data), strict=True))
    digests: dict[tuple[Any, str, str], set[str]] = {}
    for method, names in rows:
        for key, name in names.items():
            digests.setdefault((method.get("name"), key, name), set()).add(str(method.get(key)))
    return [
        method | {k: n for k, n in names.items() if k in method and len(digests[method.get("name"), k, n]) == 1}
        for method, names in ((dict(method), names) for method, names in rows)
    ]


def _names(data: Mapping[str, str]) -> dict[str, str]:
    """Of a run's names of data those that stand for a digest in its method's identity, by the key of that."""
    fitted = "; ".join(name for key, name in data.items() if key.startswith("fit."))
    taken = {key.removeprefix("method."): name for key, name in data.items() if key.startswith("method.")}
    return taken | ({"fit_data": fitted} if fitted else {})


def row_labels(identities: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[int]]:
    """Labels of configurations, sorted (the base first), and the index in `identities` that each belongs to.

    A label is the method's name, and the knobs in which configurations of that name differ; those that only some have,
    only where they are needed. Digests (of the fit data, of files) and versions tell people little: they are in the
    label only where the knobs are not enough.
    """
    by_name: dict[str, list[int]] = {}
    for i, identity in enumerate(identities):
        by_name.setdefault(identity["name"], []).append(i)
    labelled: list[tuple[tuple[Any, ...], str, int]] = []
    for name, same in by_name.items():
        knobs = [dict(flat(identities[i].get("config", {}))) for i in same]
        if len({digest(values) for values in knobs}) < len(same):
            rest = [{k: v for k, v in identities[i].items() if k not in {"name", "config"}} for i in same]
            knobs = [values | dict(flat(more)) for values, more in zip(knobs, rest, strict=True)]
        chosen = differing(knobs)
        in_all = [key for key in chosen if all(key in values for values in knobs)]
        if len({digest([values[key] for key in in_all]) for values in knobs}) == len(same):
            chosen = in_all  # what only some have, as the settings of a part of a composition, is not needed
        for i, values in zip(same, knobs, strict=True):
            shown = [(k, values.get(k)) for k in chosen]
            numbers = [v if isinstance(v, int | float) else math.inf for _, v in shown]
            label = " ".join([name, *(f"{k}={short(v)}" for k, v in shown)])
            labelled.append(((name != BASE, name, *numbers), label, i))
    labelled.sort(key=lambda f: f[:2])
    return [label for _, label, _ in labelled], [i for _, _, i in labelled]


def changed_settings(method: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a method's identity that are not its defaults, for people; none where it is not installed."""
    if method["name"] not in methods.names():
        return {}
    cls = methods.get(method["name"]).Config
    default = {f.name: f.default for f in fields(cls)}
    with suppress(TypeError):  # a setting that must be given has no default
        default = settings_of(cls())  # null switches are resolved to the values that they stand for
    # As JSON has them, as in run.json: lists for tuples.
    usual = msgspec.json.decode(msgspec.json.encode({k: v for k, v in default.items() if v is not MISSING}))
    config = msgspec.json.decode(msgspec.json.encode(method.get("config", {})))
    return {k: short(v) for k, v in config.items() if k not in usual or v != usual[k]}


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
