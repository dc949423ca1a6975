"""SFT, DPO and SimPO against their formulas in plain torch, and whether they do what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

import detoxbench as db
from detoxbench.data.examples import FitData, Instruction, Preference
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from tests.support.tiny import tiny

PAIRS = (
    Preference("who is it ?", "a friend", "nobody , you pig", chat=False),
    Preference("why ?", "please ask him again", "go away", chat=True),
    Preference("", "good day to you", "you rat", chat=False),
    Preference("the cat", "is asleep", "is an ugly thing", chat=False),
)
CHEAP: dict[str, Any] = {
    "rank": 4, "lora_dropout": 0.0, "epochs": 1, "batch_size": 4, "micro_batch_size": 4, "warmup_ratio": 0.0,
    "learning_rate": 1e-2,
}  # fmt: skip


def log_p(lm: LanguageModel, prompt: str, response: str, chat: bool) -> tuple[float, int]:
    """(log-probability of the response and its end token, how many tokens these are), alone and without padding."""
    before, whole = lm.answered(prompt, response, chat)
    ids = [*whole, *lm.end_of(chat)]
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids])).logits[0].double()
    scores = log_softmax(logits, -1)
    tokens = range(len(before), len(ids))
    return sum(float(scores[i - 1, ids[i]]) for i in tokens), len(tokens)


def scored(lm: LanguageModel, data: tuple[Preference, ...]) -> list[tuple[tuple[float, int], tuple[float, int]]]:
    return [(log_p(lm, p.prompt, p.chosen, p.chat), log_p(lm, p.prompt, p.rejected, p.chat)) for p in data]


def minus_log_sigmoid(x: float) -> float:
    return float(torch.log1p(torch.exp(torch.tensor(-x, dtype=torch.float64))))


@pytest.mark.parametrize("parameters", [("lora",), ("mlp",)])
def test_the_first_loss_of_dpo_is_log_2_and_the_next_is_the_formula(parameters: tuple[str, ...]) -> None:
    """Before the first update p is p_ref. The loss of a second update is the formula on the model after the first."""
    lm, beta = tiny(), 0.3
    once = db.methods.create("dpo", **CHEAP, parameters=parameters, beta=beta, schedule="constant")
    change = once.fit(lm, FitData(preferences=PAIRS))
    assert change.info["losses"][0] == pytest.approx(float(torch.log(torch.tensor(2.0))), abs=1e-6)
    twice = db.methods.create("dpo", **{**CHEAP, "epochs": 2}, parameters=parameters, beta=beta, schedule="constant")
    found = twice.fit(lm, FitData(preferences=PAIRS)).info
    reference = scored(lm, PAIRS)
    with lm.applied(change):
        policy = scored(lm, PAIRS)
    margins = [beta * ((c[0] - rc[0]) - (r[0] - rr[0])) for (c, r), (rc, rr) in zip(policy, reference, strict=True)]
    assert found["losses"][1] == pytest.approx(sum(map(minus_log_sigmoid, margins)) / len(margins), rel=1e-4)
    assert found["losses"][1] < found["losses"][0]
    assert found["margin"][1] == pytest.approx(sum(margins) / len(margins), rel=1e-3)
    assert found["accuracy"][1] == sum(m > 0 for m in margins) / len(margins)


@pytest.mark.parametrize("end_token", [True, False])
def test_the_loss_of_simpo_is_the_formula(end_token: bool) -> None:
    lm = tiny()
    method = db.methods.create("simpo", **CHEAP, beta=1.7, gamma_beta_ratio=0.4, end_token=end_token)
    found = method.fit(lm, FitData(preferences=PAIRS)).info
    if not end_token:
        lm.end_of = lambda chat=False: []  # type: ignore[method-assign]
    margins = [1.7 * (c / nc - r / nr - 0.4) for (c, nc), (r, nr) in scored(lm, PAIRS)]
    assert found["losses"][0] == pytest.approx(sum(map(minus_log_sigmoid, margins)) / len(margins), rel=1e-5)
    assert found["margin"][0] == pytest.approx(sum(margins) / len(margins), rel=1e-5)


def test_the_reference_has_no_dropout() -> None:
    """Where the policy itself has none, p is p_ref before the first update, even if the base model's config has."""
    lm = tiny("gpt2")  # attn_pdrop, embd_pdrop and resid_pdrop are 0.1
    losses = [
        db.methods.create("dpo", **CHEAP).fit(lm, FitData(preferences=PAIRS[:1] * 4)).info["losses"][0]
        for _ in range(2)
    ]
    assert losses[0] == losses[1]
    assert losses[0] != pytest.approx(0.6931, abs=1e-4), "the policy is trained with dropout, the reference without"


def test_sft_is_the_expert_of_ext_sub() -> None:
    civil = [Instruction(p.prompt, p.chosen, p.chat) for p in PAIRS] * 2
    settings = {**CHEAP, "lora_dropout": 0.05}
    sft = db.methods.create("sft", **settings).fit(tiny(), FitData(civil_instructions=civil))
    expert = db.methods.create("ext_sub", **settings, operation="expert_only").fit(
        tiny(), FitData(civil_instructions=civil)
    )
    assert sft.info["losses"] == expert.info["expert_losses"]
    for one, other in zip(sft.weights, expert.weights, strict=True):
        assert one.parameter == other.parameter
        assert torch.equal(one.delta.b @ one.delta.a, other.delta.b @ other.delta.a)


def test_a_pair_without_room_for_its_responses_is_left_out() -> None:
    long = Preference("a" * 200, "yes", "no", chat=False)
    method = db.methods.create("dpo", **CHEAP, max_length=64)
    info = method.fit(tiny(), FitData(preferences=(*PAIRS, long))).info
    assert info["cut_texts"] == 2
    assert len(info["losses"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [["lora"], ["all"]])
@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_on_the_embedded_model_the_loss_falls_and_the_change_is_not_zero(name: str, parameters: list[str]) -> None:
    change = on_fable(name, parameters)
    losses = change.info["losses"]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert change.info["accuracy"][-1] > 0.5
    assert_moved(change)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [["lora"], ["all"]])
def test_on_the_embedded_model_sft_makes_its_responses_likelier(parameters: list[str]) -> None:
    change = on_fable("sft", parameters, learning_rate=5e-3)
    lm = LanguageModel.load("fable")
    data, _ = fit_data(fit_spec()(limit=96), db.methods.get("sft").needs)  # type: ignore[arg-type]

    def likelihood() -> float:
        return sum(log_p(lm, *example)[0] for example in data.civil_instructions or ())

    before = likelihood()
    with lm.applied(change):
        assert likelihood() > before
    assert_moved(change)


def on_fable(name: str, parameters: list[str], **settings: Any) -> Intervention:
    """Fitted on 96 examples, in 12 updates."""
    settings = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "micro_batch_size": 8, "rank": 8, **settings}
    method = db.methods.create(name, parameters=parameters, **settings)
    data, _ = fit_data(fit_spec()(limit=96), method.needs)
    return method.fit(LanguageModel.load("fable"), data)


def assert_moved(change: Intervention) -> None:
    assert all(any(float(t.abs().max()) > 0 for t in w.delta.tensors().values()) for w in change.weights)


def test_what_is_trained_is_in_the_fidelity_line() -> None:
    for name in ("dpo", "simpo"):
        assert "LoRA at a rate of ours" in db.methods.create(name).fidelity
        assert "parameters in full" in db.methods.create(name, parameters=["all"]).fidelity
