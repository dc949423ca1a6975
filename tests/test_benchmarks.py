"""The benchmark harness: what is compared is checked, ratios point the right way, the exit code tells."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import gpu, gpu_speed, harness, on_paper
from benchmarks.harness import Row, compare, measured, memory_row
from benchmarks.models import random_lm
from detoxbench import methods
from detoxbench.config import required_fields
from detoxbench.engine import next_token


class Clock:
    """Time that only `spend` moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.now)

    def spend(self, seconds: float, result: str = "") -> str:
        self.now += seconds
        return result


def test_the_ratio_is_the_median_of_interleaved_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(monkeypatch), []
    costs = iter([9, 1, 2, 1, 9, 9, 9])

    def ours() -> str:
        calls.append("ours")
        return clock.spend(next(costs, 1))

    def theirs() -> str:
        calls.append("theirs")
        return clock.spend(6)

    faster = compare("a", ours, theirs, target=3)
    assert calls == ["ours", "theirs"] * 5  # to warm up, three times on the clock, and once for the memory
    assert (faster.low, faster.reached, faster.high) == (3, 6, 6)
    assert (faster.seconds, faster.against_seconds) == (1, 6)
    assert faster.holds
    slower = compare("a", lambda: clock.spend(6), lambda: clock.spend(2), target=2.9, unit="x the time")
    assert slower.reached == 3
    assert not slower.holds


def test_sides_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(a: str, b: str) -> None:
        assert a == b

    with pytest.raises(AssertionError):
        compare("a", lambda: "x", lambda: "y", target=1, check=same)
    assert compare("a", lambda: "x", lambda: "x", target=None, check=same).holds


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_is_what_a_side_holds_at_a_time() -> None:
    def held(mb: int) -> bytearray:
        return bytearray(b"x" * (mb << 20))

    row = compare("a", lambda: [held(8) for _ in range(4)][:0], lambda: held(64), target=None, repeats=1)
    assert row.peak_mb == pytest.approx(40, abs=9)  # four, and while copying one of them twice
    assert row.against_peak_mb == pytest.approx(128, abs=9)
    assert not memory_row(row, target=0.1).holds
    assert memory_row(row, target=0.5).holds


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.SimpleNamespace]:
    def good(device: str) -> Iterator[Row]:
        yield measured("good", [1.0, 3.0, 2.0], "s", target=2.0)

    def bad(device: str) -> Iterator[Row]:
        yield measured("bad", [3.0], "s", target=2.0)

    def broken(device: str) -> Iterator[Row]:
        yield measured("before", [1.0], "s")
        raise ValueError("tokens differ")

    there = {"good": good, "bad": bad, "broken": broken}
    found = {name: types.SimpleNamespace(rows=rows) for name, rows in there.items()}
    found["good"].DEVICES = ("cpu", "cuda")
    monkeypatch.setattr(command, "names", lambda: sorted(found))
    monkeypatch.setattr(command, "import_module", lambda name: found[name.removeprefix("benchmarks.")])
    return found


def test_the_exit_code_says_whether_all_targets_are_reached(
    modules: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["good", "--json", str(tmp_path / "new" / "out.json")]) == 0
    written = json.loads((tmp_path / "new" / "out.json").read_text())
    assert written["rows"][0]["reached"] == 2.0
    assert {"date", "cpu", "cpus", "packages", "git"} <= set(written["machine"])
    assert "<= 2 s" in capsys.readouterr().out
    assert command.main(["bad"]) == 1
    assert "NO" in capsys.readouterr().out
    assert command.main(["broken", "good"]) == 1
    shown = capsys.readouterr()
    assert "benchmark 'broken' failed: ValueError: tokens differ" in shown.err
    assert "before" in shown.out
    assert "good" in shown.out


def test_a_benchmark_that_is_not_there_is_named(modules: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["goood"]) == 2
    assert "no benchmark 'goood' for cpu; there are: bad, broken, good" in capsys.readouterr().err
    assert command.main(["bad", "--device", "cuda"]) == 2
    assert "there are: good" in capsys.readouterr().err


# --- what must hold on a device --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_must_hold_on_a_device_holds_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu.SIZES, "cpu", gpu.SIZES["cpu"]._replace(prompts=9, rows=16, draws=5_000))
    assert gpu.main(["--device", "cpu"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    found = {(row[0].removeprefix("| "), row[1]) for row in rows[1:]}
    assert {(name, dtype) for name in ("top_k=1 is greedy", "top-p is in force") for dtype in gpu.LOW} <= found
    assert ("tokens as on a CPU", "float32") in found
    tried = {name for name in methods.names() if not required_fields(methods.get(name).Config)}
    assert {f"{name} acts and comes off" for name in tried} <= {name for name, _ in found}
    kernels = {row[0]: row[2] for row in rows if "left padding" in row[0]}
    assert kernels["| left padding, eager"] == kernels["| left padding, sdpa math"] == "holds"

    speeds = {row[1]: row[2:] for row in rows if row[0] == "| 0.1M"}
    assert len(speeds) == 2 + len(gpu_speed.CHANNELS) + 3
    assert all(float(tokens.replace(",", "")) > 0 for tokens, *_ in speeds.values())
    assert all(speeds[name][1].endswith("x the base") for name in ("transformers.generate", *gpu_speed.CHANNELS))


def test_shapes_that_a_device_has_no_room_for_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def shapes(free: int) -> list[str]:
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (free * 2**30, free * 2**30))
        return list(dict.fromkeys(f"{shape} {what[:42]}" for shape, what, _ in gpu_speed.measurements("cuda")))

    assert [what for what in shapes(79) if "base, " in what] == ["1B base, 64 rows", "7B base, 64 rows"]
    assert [what for what in shapes(24) if "7B" in what] == ["7B left out: it needs 41 GiB, and 24 are free"]


def test_the_limit_counts_every_weight_but_the_embedding() -> None:
    lm, work = random_lm("0.1M", 1_000, dtype="bfloat16"), gpu_speed.WORKS["cpu"][0]
    numbers = sum(p.numel() for p in lm.model.parameters()) - 64 * 1_000
    cache = work.rows * (work.prompt + work.new / 2) * 2 * 2 * 64  # two layers, keys and values of width 64
    assert gpu_speed._bytes_of_a_step(lm, work) == 2 * (numbers + cache)
    assert gpu_speed.bandwidth("cpu") > 1e8


def test_a_check_of_a_device_fails_where_the_engine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, pick = random_lm("0.1M", 500, dtype="bfloat16"), next_token.pick

    def unrestricted(logits: Any, keys: Any, gen: Any, *given: Any) -> Any:
        return pick(logits, keys, dataclasses.replace(gen, top_p=1.0, top_k=0), *given)

    monkeypatch.setattr(next_token, "pick", unrestricted)
    assert gpu.nucleus(lm, 4).holds is False
    assert gpu.top_k_of_one(lm, 4).holds is False


def test_a_device_that_fails_or_cannot_be_checked_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> gpu.Check:
        raise RuntimeError("CUDA error:\nan illegal memory access")

    def planned(device: str) -> list[partial[gpu.Check]]:
        first = gpu.Check("first", "float16", None, "not here")
        return [partial(lambda: first), partial(broken), partial(lambda: first._replace(name="last", holds=False))]

    monkeypatch.setattr(gpu, "checks", planned)
    speeds = [("1B", "base", broken), ("7B", "base", partial(gpu_speed.Line, "7B", "base", "9"))]
    monkeypatch.setattr(gpu_speed, "measurements", lambda _: speeds)
    assert gpu.main(["--device", "cpu"]) == 1
    shown = capsys.readouterr().out
    assert "| 1B | base **broke off**: RuntimeError: CUDA error: an illegal memory access | - | -" in shown
    assert "| 7B | base | 9 | - | - | - | - |" in shown
    assert "3 failed" in shown
    assert gpu.speeds("cpu", until=0.0) == 0
    assert "| 7B | base: left out, no time left | - | - | - | - | - |" in capsys.readouterr().out
    assert gpu.main(["--device", "cpu", "--checks-only"]) == 1
    shown = capsys.readouterr().out
    assert "| first | float16 | - | not here |" in shown
    assert "| last | float16 | **FAILS** | not here |" in shown
    assert "| broken broke off | - | **FAILS** | RuntimeError: CUDA error: an illegal memory access |" in shown
    assert "2 failed" in shown
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name in {"msgspec", "peft"} else name)
    assert gpu.main(["--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks.gpu: missing here: peft, msgspec; install them")
    monkeypatch.undo()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "torch finds no CUDA device here" in capsys.readouterr().err


def test_the_multirun_on_paper_is_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    on_paper.main()
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) > 12
    assert not [line for line in lines if line not in page]
