"""What a run is: every byte that loading reads moves the identity, and what is not read does not."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from detoxbench.config import build, digest
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.files import hashing as file_hash
from detoxbench.files.hashing import sha256_of_file
from detoxbench.lm import LanguageModel
from detoxbench.model import checkpoint
from detoxbench.runner.cell import RunCell, checkpoint_folder, prepare
from detoxbench.runner.composition import compose_run
from tests.support.tiny import tiny, write


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model's folder; hashes of files of any size are remembered, in a folder of the test's own."""
    monkeypatch.setenv("DETOXBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hash, "REMEMBERED_FROM", 0)
    lm, folder = tiny(), tmp_path / "model"
    return write(lm, folder)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "additional_chat_templates/rag.jinja", "vocab.txt", "vocab.json", "merges.txt",
        "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "source.spm", "qwen.tiktoken", "vocab.bpe",
        "tekken.json", "special_tokens_map.json", "added_tokens.json", "some_words_of_a_new_tokenizer.xyz",
    ],
)  # fmt: skip
def test_every_file_that_loading_may_read_is_identified(saved: Path, name: str) -> None:
    before, path = checkpoint.fingerprint(saved), saved / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((path.read_bytes() if path.is_file() else b"") + b" ")
    changed = checkpoint.fingerprint(saved)
    assert changed != before
    path.write_bytes(path.read_bytes()[:-1] + b"\n")
    assert checkpoint.fingerprint(saved) not in {before, changed}


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "LICENSE", "LICENSE.txt", ".gitattributes", "pytorch_model.bin", "pytorch_model.bin.index.json",
        "tf_model.h5", "flax_model.msgpack", "model.onnx", "onnx/model.onnx", "original/consolidated.00.pth",
        "picture.png", "modeling_own.py", "consolidated.safetensors", "trainer_state.json", "optimizer.pt",
        "checkpoint-500/model.safetensors", "runs/events.out",
    ],
)  # fmt: skip
def test_what_loading_does_not_read_is_not(saved: Path, name: str) -> None:
    before = checkpoint.fingerprint(saved)
    (saved / name).parent.mkdir(exist_ok=True)
    (saved / name).write_bytes(b"1")
    assert checkpoint.fingerprint(saved) == before


def test_every_single_weight_is_identified(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    tensor = weights["model.embed_tokens.weight"]
    seen = {checkpoint.fingerprint(saved)}
    for row in (0, 7, len(tensor) - 1):
        tensor[row, 5] = torch.nextafter(tensor[row, 5], torch.tensor(9.0))
        save_file(weights, saved / "model.safetensors", {"format": "pt"})
        seen.add(checkpoint.fingerprint(saved))
    assert len(seen) == 4


def test_every_single_weight_in_memory_is_identified() -> None:
    lm = tiny(vocab_size=70_000)  # more numbers than a part of them would be taken of
    before = lm.fingerprint
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[40_001, 3] += 1e-3
    assert LanguageModel(lm.model, lm.tokenizer).fingerprint != before


@pytest.mark.parametrize("where", ["index", "config"])
def test_the_weights_are_those_that_transformers_chooses(saved: Path, where: str) -> None:
    (saved / "model.safetensors").rename(saved / "shard.safetensors")
    if where == "index":
        (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
    else:
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps(config | {"transformers_weights": "shard.safetensors"}))
    before = checkpoint.fingerprint(saved)
    (saved / "other.safetensors").write_bytes(b"1")
    assert checkpoint.fingerprint(saved) == before
    with open(saved / "shard.safetensors", "ab") as file:
        file.write(b" ")
    assert checkpoint.fingerprint(saved) != before


def test_a_snapshot_of_links_is_its_files(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for file in saved.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert checkpoint.fingerprint(tmp_path / "snapshot") == checkpoint.fingerprint(saved)


def test_an_adapter_is_its_two_files(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text(name)
    before = checkpoint.adapter_fingerprint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("trainers leave it there")
    assert checkpoint.adapter_fingerprint(tmp_path) == before
    (tmp_path / "adapter_model.safetensors").write_text("another")
    assert checkpoint.adapter_fingerprint(tmp_path) != before


# --- remembered hashes -----------------------------------------------------------------------------------------------


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is three seconds later than the clock says, so that what was written just now has settled."""
    now = time.time_ns
    monkeypatch.setattr(file_hash.time, "time_ns", lambda: now() + 3 * 10**9)


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read from now on."""
    made: list[Path] = []
    read = file_hash._read
    monkeypatch.setattr(file_hash, "_read", lambda path, advance: made.append(path) or read(path, advance))  # type: ignore[func-returns-value]
    return made


def test_a_hash_is_remembered_once_the_file_has_settled(
    saved: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checkpoint.fingerprint(saved)
    again = reads(monkeypatch)
    assert checkpoint.fingerprint(saved) == first
    assert again == []


def test_a_file_changed_just_now_is_read_again(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.fingerprint(saved)
    again = reads(monkeypatch)
    checkpoint.fingerprint(saved)
    assert {path.name for path in again} == {path.name for path in checkpoint.files_read(saved)}


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_change_that_keeps_size_and_mtime_is_seen(saved: Path, later: None, how: str) -> None:
    path = saved / "model.safetensors"
    before, stat, data = sha256_of_file(path), path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    if how == "in place":
        with open(path, "r+b") as file:
            file.write(data)
    else:
        (saved / "new").write_bytes(data)
        (saved / "new").replace(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert sha256_of_file(path) != before


@pytest.mark.parametrize("damage", [b"", b"{}", b"nonsense"])
def test_a_damaged_memory_is_passed_over(saved: Path, later: None, tmp_path: Path, damage: bytes) -> None:
    path = saved / "model.safetensors"
    true = sha256_of_file(path)
    (entry,) = (tmp_path / "cache" / "hashes").iterdir()
    for data in (damage, entry.read_bytes().replace(true[:8].encode(), b"deadbeef")):
        entry.write_bytes(data)
        assert sha256_of_file(path) == true


def test_no_cache_folder_is_no_failure(saved: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    true = sha256_of_file(saved / "config.json")
    monkeypatch.setenv("DETOXBENCH_CACHE", "/proc/no/such/place")
    assert sha256_of_file(saved / "config.json") == true


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match=r"gone\.json.*No such file"):
        sha256_of_file(tmp_path / "gone.json")


def test_large_files_are_announced(
    saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_hash, "SHOWN_FROM", 1)
    with caplog.at_level("INFO", logger="detoxbench"):
        checkpoint.fingerprint(saved)
    assert "hashing" in caplog.text


# --- numbers ----------------------------------------------------------------------------------------------------------

ONE = [1, 1.0, 1e0, 1.0000000000000002]
THIRD = [0.3, 0.1 + 0.2, 0.30000000000000004, 3e-1]


def identified(tmp_path: Path, *overrides: str) -> RunCell:
    spec = compose_run([*overrides, "suite.records=2", f"runs_dir={tmp_path}"])
    return prepare(spec, checkpoint_folder(spec, download=False))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("method.alpha", ["1", "1.0", "1e0", "1.0000000000000002"]),
        ("method.alpha", ["0.3", "0.30000000000000004", "3e-1"]),
        ("method.alpha", ["0", "0.0", "-0.0"]),
        ("gen.temperature", ["1", "1.0", "1e0"]),
        ("gen.top_k", ["5", "5.0", "5e0"]),
        ("seed", ["1", "1.0"]),
    ],
)
def test_equal_settings_are_one_run_and_one_value(tmp_path: Path, key: str, values: list[str]) -> None:
    cells = [identified(tmp_path, "method=destein", f"{key}={value}") for value in values]
    assert len({cell.folder.name for cell in cells}) == 1
    assert len({repr(cell.spec) for cell in cells}) == 1, "what is used is what is identified"


def test_settings_given_in_python_are_the_same_run(tmp_path: Path) -> None:
    composed = identified(tmp_path, "method=destein", "method.alpha=0.3").spec
    ids = set()
    for alpha in THIRD:
        method, gen = replace(composed.method, alpha=alpha), replace(composed.gen, temperature=1)
        cell = prepare(replace(composed, method=method, gen=gen), checkpoint_folder(composed, download=False))
        assert cell.method.config.alpha == 0.3
        assert isinstance(cell.spec.gen.temperature, float)
        ids.add(cell.folder.name)
    assert len(ids) == 1


@dataclass(frozen=True, kw_only=True)
class Nested:
    share: float = 0.5
    either: int | float = 1
    maybe: float | None = None
    several: list[float] = field(default_factory=list)
    pairs: dict[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    name: int | str | None = None


@pytest.mark.parametrize("value", ONE)
def test_numbers_are_one_within_lists_maps_and_unions(value: float) -> None:
    given = {"share": value, "either": value, "maybe": value, "several": [value, *THIRD], "layers": [value]}
    made = build(Nested, given | {"pairs": {"a": [value, *THIRD]}, "name": value}, "x")
    expected = Nested(
        share=1.0, either=1, maybe=1.0, several=[1.0, *[0.3] * 4], layers=(1,), pairs={"a": [1, *[0.3] * 4]}, name=1
    )
    assert repr(made) == repr(expected)


@pytest.mark.parametrize("value", [1e30, 10**30, 12345678901234567, 1.2345678901234567e16, -0.0, 5e-324, 1e308])
def test_extreme_numbers_are_stable(value: float) -> None:
    ((once,), (again,)) = (build(Nested, {"several": [v]}, "x").several for v in (value, float(value)))
    assert build(Nested, {"several": [once]}, "x").several == [once] == [again]
    assert once == pytest.approx(value, rel=1e-11, abs=0)
    assert math.copysign(1, once) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda v: {"share": v}, lambda v: {"several": [v]}, lambda v: {"pairs": {"a": [v]}}])
def test_numbers_that_are_not_finite_are_refused(value: float, wrap: Any) -> None:
    with pytest.raises(UsageError, match=r"'x\.(share|several|pairs\.a)' is .*(nan|inf): give a number"):
        build(Nested, wrap(value), "x")


def test_integers_stay_exact() -> None:
    assert build(Nested, {"layers": [2**62 + 1], "either": 2**53 + 1}, "x") == Nested(
        layers=(2**62 + 1,), either=2**53 + 1
    )


def test_what_cannot_be_stored_is_no_part_of_a_run() -> None:
    with pytest.raises(DetoxbenchError, match="half a character"):
        digest(["good \ud83d morning"])
    with pytest.raises(DetoxbenchError, match="not finite"):
        digest([math.nan])
