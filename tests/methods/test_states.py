"""RMU and circuit breakers against their formulas in plain torch, and whether they do what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench.data.examples import FitData, Instruction, LabelledText, Preference
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.lm import LanguageModel
from tests.support.tiny import tiny

TOXIC, KEPT = "you silly rat", "the duck slept near the house"
CIVIL = LabelledText("good day", toxic=False)
RMU_DATA = FitData(
    labelled_texts=(LabelledText(TOXIC, toxic=True), CIVIL), retain_texts=(Instruction("", KEPT, chat=False),)
)
ANSWER = Preference("who ?", "a friend", "a silly rat", chat=False)
CB_DATA = FitData(preferences=(ANSWER,), retain_texts=(Instruction("", KEPT, chat=False),))
RMU: dict[str, Any] = {"batch_size": 2, "learning_rate": 1e-2, "coefficient": 5.0, "alpha": 3.0, "layer": 2}
BREAKERS: dict[str, Any] = {
    "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2, "rank": 4, "lora_dropout": 0.0, "alpha": 7.0,
    "retain_chosen": False, "retain_weight": 0.5,
}  # fmt: skip


def hidden(lm: LanguageModel, ids: list[int]) -> tuple[torch.Tensor, ...]:
    """Of one text, without padding, [tokens, width] each."""
    with torch.no_grad():
        read = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return tuple(state[0].double() for state in read)


# ----------------------------------------------------------------------------------------------------------------- RMU


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_of_rmu_is_the_formula_before_and_after_an_update(family: str) -> None:
    lm = tiny(family, **({"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0} if family == "gpt2" else {}))
    once = db.methods.create("rmu", **RMU, updates=1, seed=4).fit(lm, RMU_DATA)
    twice = db.methods.create("rmu", **RMU, updates=2, seed=4).fit(lm, RMU_DATA).info
    u = torch.rand(32, generator=torch.Generator().manual_seed(4))
    target = 5.0 * u / u.norm()
    seen: dict[str, torch.Tensor] = {}

    def behind_layer_2(text: str) -> torch.Tensor:
        site = lm.architecture.module(lm.architecture.layer(2))

        def keep(_: Any, arguments: Any, output: Any) -> None:
            seen["states"] = (output[0] if isinstance(output, tuple) else output)[0].double()

        handle = site.register_forward_hook(keep)
        with torch.no_grad():
            lm.model(torch.tensor([lm.tokens(text)]))
        handle.remove()
        return seen["states"]

    before = behind_layer_2(KEPT)
    assert twice["losses"][0] == pytest.approx(float((behind_layer_2(TOXIC) - target).square().mean()), rel=1e-5)
    with lm.applied(once):
        forget = float((behind_layer_2(TOXIC) - target).square().mean())
        retain = float((behind_layer_2(KEPT) - before).square().mean())
    assert twice["losses"][1] == pytest.approx(forget + 3 * retain, rel=1e-4)
    assert twice["forget_loss"][1] == pytest.approx(forget, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "trained"), [(None, [0]), (2, [0, 1, 2]), (1, [0, 1]), (-1, [0, 1, 2])])
def test_rmu_trains_the_down_projections_up_to_its_layer(layer: int | None, trained: list[int]) -> None:
    lm = tiny()
    change = db.methods.create("rmu", **{**RMU, "layer": layer}, updates=2).fit(lm, RMU_DATA)
    assert change.info["trained_layers"] == trained
    assert {w.parameter for w in change.weights} == {f"{lm.architecture.mlp_down(i)}.weight" for i in trained}
    assert all(float(w.delta.delta.abs().max()) > 0 for w in change.weights)


def test_rmu_without_toxic_texts_says_so() -> None:
    with pytest.raises(DetoxbenchError, match="nothing to train on for 'rmu': the data are empty"):
        db.methods.create("rmu").fit(tiny(), RMU_DATA.replace(labelled_texts=(CIVIL,)))


# ---------------------------------------------------------------------------------------------------- circuit breakers


def test_the_loss_of_circuit_breakers_is_the_formula_before_and_after_updates() -> None:
    lm = tiny()
    once = db.methods.create("circuit_breakers", **BREAKERS, updates=1, targets=[1, 3]).fit(lm, CB_DATA)
    twice = db.methods.create("circuit_breakers", **BREAKERS, updates=2, targets=[1, 3]).fit(lm, CB_DATA).info
    broken = lm.answered(ANSWER.prompt, ANSWER.rejected, chat=False)[1]
    kept = lm.answered("", KEPT, chat=False)[1]
    before, kept_before = hidden(lm, broken), hidden(lm, kept)
    assert twice["losses"][0] == pytest.approx(7.0, rel=1e-5)  # every cosine is 1, and nothing is retained yet
    with lm.applied(once):
        now, kept_now = hidden(lm, broken), hidden(lm, kept)
    cosines = [torch.cosine_similarity(now[i], before[i], dim=-1) for i in (1, 3)]
    distances = [(a - b).norm(dim=-1) for a, b in zip(kept_now, kept_before, strict=True)]
    assert len(distances) == 4
    breaking = float(torch.stack(cosines).relu().mean())
    retaining = float(torch.stack(distances).mean())
    assert twice["losses"][1] == pytest.approx(7 * (0.75 * breaking + 0.5 * 0.25 * retaining), rel=1e-4)
    assert twice["distance"][1] == pytest.approx(retaining, rel=1e-3)
    assert retaining > 0


def test_a_weight_of_ours_is_in_the_fidelity_line() -> None:
    assert "of ours" not in db.methods.create("circuit_breakers").fidelity
    assert "second term 0.03 times, of ours" in db.methods.create("circuit_breakers", retain_weight=0.03).fidelity


def test_an_update_of_several_micro_batches_has_one_weight() -> None:
    settings = {**BREAKERS, "batch_size": 4, "targets": [1, 3], "updates": 2}
    whole = db.methods.create("circuit_breakers", **{**settings, "micro_batch_size": 4}).fit(tiny(), CB_DATA).info
    parts = db.methods.create("circuit_breakers", **{**settings, "micro_batch_size": 2}).fit(tiny(), CB_DATA).info
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "targets", "last"), [(3, [1], 1), (32, [10, 20], 20), (8, [2, 5], 5), (2, [1], 1)])
def test_loras_end_one_layer_above_the_last_target(layers: int, targets: list[int], last: int) -> None:
    lm = tiny(num_hidden_layers=layers)
    change = db.methods.create("circuit_breakers", **BREAKERS, updates=1).fit(lm, CB_DATA)
    assert change.info["targets"] == targets
    touched = {int(w.parameter.split(".")[2]) for w in change.weights}
    assert touched == set(range(last + 1))


def test_a_rank_is_at_the_most_the_width() -> None:
    change = db.methods.create("circuit_breakers", **{**BREAKERS, "rank": 64}, updates=1).fit(tiny(), CB_DATA)
    assert change.info["rank"] == 32


@pytest.mark.slow
def test_chosen_answers_are_retained_too() -> None:
    settings = {**BREAKERS, "updates": 20, "batch_size": 1, "micro_batch_size": 1, "targets": [1]}
    without = db.methods.create("circuit_breakers", **settings).fit(tiny(), CB_DATA)
    kept = db.methods.create("circuit_breakers", **{**settings, "retain_chosen": True}).fit(tiny(), CB_DATA)
    assert without.info["distance"] != kept.info["distance"]


def test_targets_are_counted_from_one() -> None:
    with pytest.raises(UsageError, match="targets are counted from 1"):
        db.methods.create("circuit_breakers", targets=[0])


# --------------------------------------------------------------------------------------------------------- on the fable


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "falling"),
    [
        ("rmu", {"layer": 2, "updates": 40, "learning_rate": 1e-3, "alpha": 1}, "forget_loss"),
        (
            "circuit_breakers",
            {"updates": 40, "learning_rate": 3e-3, "batch_size": 4, "micro_batch_size": 4, "retain_weight": 0.01},
            "cosine",
        ),
    ],
)
def test_on_the_embedded_model_what_is_to_change_does(name: str, settings: dict[str, Any], falling: str) -> None:
    lm = LanguageModel.load("fable")
    method = db.methods.create(name, **settings)
    data, _ = fit_data(fit_spec()(), method.needs)
    measured = method.fit(lm, data).info[falling]
    assert sum(measured[-5:]) < 0.8 * sum(measured[:5])
