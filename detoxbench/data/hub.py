"""Data sets of the Hugging Face hub, named `hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]`, as rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.model.checkpoint import hub_unreachable

PREFIX = "hub:"
_PART = r"\w[\w.-]*"
_NAME = re.compile(
    rf"hub:(?P<path>{_PART}/{_PART})(/(?P<config>{_PART}))?(@(?P<revision>{_PART}))?(:(?P<split>{_PART}))?"
)


def load(place: str) -> list[dict[str, Any]]:
    """The rows of a hub data set, from the local cache where it is there; classes by their names. No code is run.

    Without a split the data set must have only one. Raises UsageError for a name of another form, and
    DetoxbenchError, without a delay, when the data set cannot be loaded.
    """
    match = _NAME.fullmatch(place)
    if match is None:
        raise UsageError(f"'{place}' names no hub data set: write hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]")
    unreachable = hub_unreachable()
    if unreachable:  # before datasets is imported, which reads it once: then only the cache is read, with no retries
        os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(match["path"], match["config"], revision=match["revision"], split=match["split"])
    except Exception as error:  # of every kind: connection, missing file, builder, split
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        because = f"it is not in the local cache and {unreachable}" if unreachable else reason
        raise DetoxbenchError(
            f"data set '{place}' cannot be had: {because}; give a file instead, or download it where there is network"
        ) from error
    if isinstance(loaded, dict):
        if len(loaded) > 1:
            raise DetoxbenchError(f"data set '{place}' has several splits: name one, {place}:{next(iter(loaded))}")
        loaded = next(iter(loaded.values()))
    features = getattr(loaded, "features", None) or {}
    names = {column: feature.names for column, feature in features.items() if hasattr(feature, "names")}
    return named(map(dict, loaded), names)


def named(rows: Iterable[dict[str, Any]], names: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Rows with the names of classes for their numbers; a data set holds them beside its rows (column -> names).

    0 may be "hate" in one and "normal" in another. Where the names are numbers themselves nothing is replaced.
    """
    worded = {
        column: class_names
        for column, class_names in names.items()
        if not all(name.isdecimal() for name in class_names)
    }

    def named_value(column: str, value: Any) -> Any:
        is_class = column in worded and type(value) is int and 0 <= value < len(worded[column])
        return worded[column][value] if is_class else value

    return [{column: named_value(column, value) for column, value in row.items()} for row in rows]
