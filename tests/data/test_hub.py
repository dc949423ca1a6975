"""Data sets of the hub: asked at once or not at all, and read by the same readers as files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detoxbench.data import hub, readers
from detoxbench.data.examples import Pair, Role
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.errors import DetoxbenchError, UsageError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands in for the datasets package: two splits of pairs; records what is asked for."""
    found: list[tuple[Any, ...]] = []
    splits = {
        "train": [{"toxic": f"you fool {i}", "neutral1": f"my friend {i}"} for i in range(3)],
        "test": [{"toxic": "x", "neutral1": "y"}],
    }

    def load_dataset(path: str, name: str | None, revision: str | None, split: str | None) -> Any:
        found.append((path, name, revision, split))
        if path == "some/absent":
            raise ConnectionError("no network\nand more")
        return splits if split is None else splits[split]

    stand_in = SimpleNamespace(load_dataset=load_dataset, disable_progress_bars=lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    return found


def test_fit_data_comes_from_a_hub_data_set(asked: list[tuple[Any, ...]]) -> None:
    spec = fit_spec()(parallel_pairs="hub:s-nlp/paradetox/main@v1:train", limit=2)
    data, _ = fit_data(spec, frozenset({Role.PARALLEL_PAIRS}))
    assert data.parallel_pairs == (Pair("you fool 0", "my friend 0"), Pair("you fool 1", "my friend 1"))
    assert asked == [("s-nlp/paradetox", "main", "v1", "train")]


def test_several_splits_need_a_name(asked: list[tuple[Any, ...]]) -> None:
    with pytest.raises(DetoxbenchError, match="has several splits: name one, hub:some/data:train"):
        hub.load("hub:some/data")
    assert len(hub.load("hub:some/data:test")) == 1


def test_what_cannot_be_had_is_one_line(asked: list[tuple[Any, ...]]) -> None:
    with pytest.raises(DetoxbenchError, match=r"'hub:some/absent' cannot be had: .*HF_HUB_OFFLINE is set") as error:
        hub.load("hub:some/absent")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["hub:", "hub:name", "hub:a/b/c/d", "hub:a/b:c:d", "hub:../x"])
def test_a_name_of_another_form_is_refused(place: str, asked: list[tuple[Any, ...]]) -> None:
    with pytest.raises(UsageError, match="names no hub data set"):
        hub.load(place)
    assert not asked


def test_classes_are_read_by_their_names(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0, "split": 1}, {"text": "b", "label": 1, "split": -1}]
    names = {"label": ["hate", "neutral"], "split": ["0", "1"]}
    assert [tuple(row.values()) for row in hub.named(rows, names)] == [("a", "hate", 1), ("b", "neutral", -1)]
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"label": {"names": names["label"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(pyarrow.Table.from_pylist(rows).replace_schema_metadata(told), tmp_path / "a.parquet")
    assert [row.toxic for row in readers.labelled(tmp_path / "a.parquet")] == [True, False]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert [row.toxic for row in readers.labelled(tmp_path / "b.parquet")] == [False, True]
