"""The five losses of unlearning against their formulas in plain torch, and whether they do what they say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

import detoxbench as db
from detoxbench.data.examples import FitData, Instruction, Preference, Role
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.fitting.responses import Response
from detoxbench.fitting.sides import beside
from detoxbench.lm import LanguageModel
from tests.support.tiny import tiny

PAIRS = (
    Preference("who is it ?", "a friend", "nobody , you pig", chat=False),
    Preference("why ?", "please ask him again", "go away", chat=True),
    Preference("", "good day to you", "you rat", chat=False),
    Preference("the cat", "is asleep", "is an ugly thing", chat=False),
)
RETAINED = (Instruction("", "the duck slept", chat=False),) * 4
CHEAP: dict[str, Any] = {
    "rank": 4, "lora_dropout": 0.0, "epochs": 1, "batch_size": 4, "micro_batch_size": 4, "warmup_ratio": 0.0,
    "learning_rate": 1e-2, "schedule": "constant",
}  # fmt: skip
DATA = FitData(preferences=PAIRS, retain_texts=RETAINED)
LOSSES = ("npo", "simnpo", "ga", "grad_diff", "unlikelihood")


def log_ps(lm: LanguageModel, example: Instruction) -> list[float]:
    """log p of every token of a response and of its end, alone and without padding."""
    before, whole = lm.answered(example.prompt, example.response, example.chat)
    ids = [*whole, *lm.end_of(example.chat)]
    with torch.no_grad():
        scores = log_softmax(lm.model(torch.tensor([ids])).logits[0].double(), -1)
    return [float(scores[i - 1, ids[i]]) for i in range(len(before), len(ids))]


def rejected(lm: LanguageModel) -> list[list[float]]:
    return [log_ps(lm, Instruction(p.prompt, p.rejected, p.chat)) for p in PAIRS]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def by_hand(loss: str, now: list[list[float]], before: list[list[float]], retain: list[float]) -> float:
    """Equations of the papers with their published settings, in Python's floats."""
    tokens = [value for text in now for value in text]
    if loss == "npo":
        ratios = [sum(n) - sum(b) for n, b in zip(now, before, strict=True)]
        return mean([-2 / 0.1 * log_sigmoid(-0.1 * ratio) for ratio in ratios]) - mean(retain)
    if loss == "simnpo":
        return 0.125 * mean([-2 / 4.5 * log_sigmoid(-4.5 * mean(text)) for text in now]) - mean(retain)
    if loss == "unlikelihood":
        return mean([-math.log(1 - math.exp(value)) for value in tokens])
    return mean(tokens) - (mean(retain) if loss == "grad_diff" else 0)


@pytest.mark.parametrize("parameters", [("lora",), pytest.param(("mlp",), marks=pytest.mark.slow)])
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_is_its_formula_before_and_after_an_update(loss: str, parameters: tuple[str, ...]) -> None:
    lm = tiny()
    settings = {**CHEAP, "loss": loss, "parameters": parameters}
    data = FitData(preferences=PAIRS) if loss in ("ga", "unlikelihood") else DATA
    once = db.methods.create("npo", **settings).fit(lm, data)
    twice = db.methods.create("npo", **{**settings, "epochs": 2}).fit(lm, data)
    before, kept = rejected(lm), log_ps(lm, RETAINED[0])
    assert twice.info["losses"][0] == pytest.approx(by_hand(loss, before, before, kept), rel=1e-4)
    with lm.applied(once):
        now, kept = rejected(lm), log_ps(lm, RETAINED[0])
    assert twice.info["losses"][1] == pytest.approx(by_hand(loss, now, before, kept), rel=1e-3)
    assert twice.info["losses"][1] < twice.info["losses"][0]
    assert twice.info["forget_nll"][1] == pytest.approx(-mean([value for text in now for value in text]), rel=1e-4)


def test_settings_replace_what_was_published() -> None:
    lm = tiny()
    settings = {**CHEAP, "beta": 2.0, "delta": 0.5, "forget_weight": 3.0, "retain_weight": 0.0}
    method = db.methods.create("npo", **settings, loss="simnpo")
    assert method.needs == {Role.PREFERENCES}
    found = method.fit(lm, FitData(preferences=PAIRS)).info
    wanted = 3 * mean([-2 / 2 * log_sigmoid(2 * (-mean(text) - 0.5)) for text in rejected(lm)])
    assert found["losses"][0] == pytest.approx(wanted, rel=1e-5)
    assert "retain_nll" not in found


def test_what_is_unlearnt_may_be_toxic_instructions() -> None:
    method = db.methods.create("npo", **CHEAP, loss="ga", forget="toxic_instructions")
    assert method.needs == {Role.TOXIC_INSTRUCTIONS}
    instructions = [Instruction(p.prompt, p.rejected, p.chat) for p in PAIRS]
    one = method.fit(tiny(), FitData(toxic_instructions=instructions))
    other = db.methods.create("npo", **CHEAP, loss="ga").fit(tiny(), FitData(preferences=PAIRS))
    assert one.info["losses"] == other.info["losses"]


def test_every_epoch_pairs_with_other_retain_texts() -> None:
    ones = [Response([n], [n], False) for n in range(5)]
    others = [Response([n], [n], False) for n in range(10, 13)]
    rows = beside(ones, others, seed=0)
    assert [one for one, _ in rows(0)] == ones
    assert {other.ids[0] for _, other in rows(0)} == {10, 11, 12}
    assert rows(0) == rows(0)
    assert rows(0) != rows(1)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_on_the_embedded_model_what_is_unlearnt_gets_less_likely(loss: str) -> None:
    lm = LanguageModel.load("fable")
    method = db.methods.create("npo", loss=loss, learning_rate=1e-3, batch_size=8, micro_batch_size=8, rank=8)
    data, _ = fit_data(fit_spec()(limit=96), method.needs)
    change = method.fit(lm, data)
    forgotten = change.info["forget_nll"]
    assert mean(forgotten[-4:]) > mean(forgotten[:4])
    assert sum(change.info["losses"][-4:]) < sum(change.info["losses"][:4])
    assert all(any(float(t.abs().max()) > 0 for t in w.delta.tensors().values()) for w in change.weights)
