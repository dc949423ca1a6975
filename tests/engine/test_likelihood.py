"""Given texts are read in passes whose logits have a bound on every device, and in halves where memory is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from detoxbench.config import GenSpec
from detoxbench.engine import generation, likelihood
from detoxbench.engine.generation import Generated
from detoxbench.engine.likelihood import Window, loglikelihoods, window_nlls
from detoxbench.errors import DetoxbenchError
from detoxbench.lm import LanguageModel
from detoxbench.records import Request
from tests.support.pretended_device import pretended_device
from tests.support.tiny import tiny


def windows(count: int, tokens: int = 12) -> list[Window]:
    return [Window([3 + (i + k) % 20 for k in range(tokens)], 2, str(i)) for i in range(count)]


def passes(lm: LanguageModel, given: Sequence[Window]) -> list[list[int]]:
    return list(likelihood._passes(lm, given))


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "mps"])
def test_the_logits_of_a_pass_have_a_bound_on_every_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny()
    bytes_a_window = 11 * lm.architecture.vocabulary * 4  # ten tokens and the last column, in float32
    monkeypatch.setitem(likelihood.PASS_LOGITS, "cpu", 3 * bytes_a_window)
    monkeypatch.setattr(likelihood, "PASS_LOGITS_ELSEWHERE", 5 * bytes_a_window)
    with pretended_device():
        lm.model.to(device)
        sizes = [len(of) for of in passes(lm, windows(12))]
        lm.model.to("cpu")
    assert sizes == ([3, 3, 3, 3] if device == "cpu" else [5, 5, 2])


def test_on_a_cpu_passes_are_cut_as_ever() -> None:
    """At 2^23 logits, which decides last bits, and so bytes of stored runs."""
    lm = tiny()
    assert likelihood.PASS_LOGITS["cpu"] == 4 * 2**23
    long = [Window([3] * 4001, 1, str(i)) for i in range(3)]  # 4,001 x 36 logits: 8,192 tokens are reached first
    assert passes(lm, long) == [[0, 1], [2]]


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory for three texts a pass. How many were tried each time."""
    one_pass, sizes = likelihood._one_pass, list[int]()

    def tried(lm: Any, given: Sequence[Window], outside: bool) -> Any:
        sizes.append(len(given))
        if len(given) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return one_pass(lm, given, outside)

    monkeypatch.setattr(likelihood, "_one_pass", tried)
    likelihood._tell_of_halving.cache_clear()
    return sizes


def test_a_pass_that_finds_too_little_memory_is_made_in_halves(
    tight: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm, given = tiny(), windows(12)
    found = window_nlls(lm, given)
    assert tight == [12, 6, 3, 3, 6, 3, 3]
    assert [r.getMessage() for r in caplog.records] == ["out of memory: given texts are read in halves"]
    monkeypatch.undo()
    for (nll, greedy), (whole_nll, whole_greedy) in zip(found, window_nlls(lm, given), strict=True):
        assert nll == pytest.approx(whole_nll, abs=1e-5)
        assert greedy == whole_greedy


def asked(count: int) -> list[Request]:
    return [Request(id=str(i), prompt="the cat", record=str(i), kind="x", text=f" sat {i} .") for i in range(count)]


def read(lm: LanguageModel, requests: Sequence[Request], wanted: set[str]) -> list[Generated]:
    return [g for part in loglikelihoods(lm, requests, wanted) for g in part]


def test_halves_of_given_texts_are_the_same_after_a_kill(tight: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read does not hang on what was read before: every pass is tried whole again."""
    monkeypatch.setattr(likelihood, "CHUNK", 8)
    lm, requests = tiny(dtype=torch.bfloat16), asked(20)
    ids = [r.id for r in requests]
    whole = read(lm, requests, set(ids))
    every, tight[:] = list(tight), []
    assert whole[8:] == read(lm, requests, set(ids[8:]))  # killed after a chunk
    assert tight == every[-len(tight) :]
    assert whole[11:] == read(lm, requests, set(ids[11:]))  # in the middle of one


def test_one_text_that_memory_is_too_small_for_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(likelihood, "_one_pass", full)
    monkeypatch.setattr(generation, "_run", full)
    with pytest.raises(DetoxbenchError, match=r"memory is too small for one text of \d+ tokens.*model\.dtype=bfloat16"):
        read(tiny(), asked(2), {"0", "1"})
    with pytest.raises(DetoxbenchError, match=r"memory is too small for request '\d' alone \(\d+ tokens"):
        tiny().generate(["abc", "d"], GenSpec(max_new_tokens=2))


def test_other_errors_are_not_taken_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(likelihood, "_one_pass", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        read(tiny(), asked(2), {"0", "1"})
