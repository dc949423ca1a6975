"""FT-L against a plain loop of Adam on the same matrix, as the released code writes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench.data.examples import EditRecord, FitData
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from tests.support.tiny import same, state, tiny, tokenizer

RECORDS = [
    EditRecord(prompt="tell me how to be rude", safe="no thanks", unsafe="be rude"),
    EditRecord(prompt="shout", safe="i would not do that", unsafe="ha"),
    EditRecord(prompt="say something bad about tom please", safe="no", unsafe="bad tom"),
]


def fit(lm: LanguageModel, records: list[EditRecord] = RECORDS, **config: Any) -> Intervention:
    return db.methods.create("ft_l", **config).fit(lm, FitData(edit_records=records))


def raw(family: str = "llama") -> LanguageModel:
    """A tiny model without a chat template, as released: prompts are plain text."""
    lm = tiny(family)
    lm.tokenizer = tokenizer(False)
    return lm


def released_loop(
    lm: LanguageModel,
    record: EditRecord,
    layer: int,
    steps: int,
    rate: float,
    *,
    prompt_last: bool = False,
    eps: float | None = None,
) -> tuple[torch.Tensor, list[float]]:
    """ft_main.py for one request: the edited weight and the loss at each step."""
    tokens = lm.tokenizer
    prompt = torch.tensor([tokens(record.prompt)["input_ids"]])
    whole = torch.tensor([tokens(f"{record.prompt} {record.safe}")["input_ids"]])
    target = torch.tensor(tokens(f" {record.safe}")["input_ids"])
    weight = lm.model.get_parameter(f"{lm.architecture.mlp_down(layer)}.weight")
    before = weight.detach().clone()
    optimizer = torch.optim.Adam([weight], lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        if prompt_last:
            log_p = lm.model(prompt).logits[0, -1].log_softmax(-1)
            loss = -log_p[target].mean()
        else:
            log_p = lm.model(whole).logits[0, :-1].log_softmax(-1)
            each = -log_p.gather(1, whole[0, 1:, None])[:, 0]
            loss = each[prompt.shape[1] - 1 :].mean()
        losses.append(float(loss.detach()))
        if losses[-1] < 1e-2:
            break
        loss.backward()
        optimizer.step()
        if eps is not None:
            with torch.no_grad():
                weight.clamp_(before - eps, before + eps)
    delta = (weight - before).detach()
    with torch.no_grad():
        weight.copy_(before)
    lm.model.zero_grad(set_to_none=True)
    return delta, losses


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "case",
    [{}, {"objective": "prompt_last"}, {"norm_constraint": 2e-3}],
    ids=["target_new", "prompt_last", "constrained"],
)
def test_losses_and_weight_equal_the_released_loop(family: str, case: dict[str, Any]) -> None:
    delta, losses = released_loop(
        raw(family), RECORDS[1], 1, 12, 1e-3, prompt_last="objective" in case, eps=case.get("norm_constraint")
    )
    edit = fit(raw(family), instance=1, layer=1, num_steps=12, learning_rate=1e-3, **case)
    (weight,) = edit.weights
    assert edit.info["loss"] == pytest.approx(losses, rel=1e-4)
    # Adam divides a gradient by its own size, so that where it is almost 0 its last bits are as large as a step.
    found = weight.delta.tensors()["delta"]
    assert float((found - delta).abs().quantile(0.98)) < 2e-5
    torch.testing.assert_close(found, delta, atol=2e-3, rtol=0)


def test_it_stops_below_a_loss_of_a_hundredth() -> None:
    assert fit(raw(), num_steps=1).info["layer"] == 1  # 21 of 32, in three
    lm = raw()
    head: Any = lm.model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(5)  # else such a small model is never so sure
    _, losses = released_loop(lm, RECORDS[2], 2, 100, 0.02)
    edit = fit(LanguageModel(lm.model, lm.tokenizer), instance=2, layer=2, num_steps=100, learning_rate=0.02)
    assert len(edit.info["loss"]) == len(losses) < 100
    assert edit.info["loss"][-1] < 1e-2 <= edit.info["loss"][-2]


def test_each_record_is_edited_as_it_is_alone() -> None:
    lm, method = tiny(), db.methods.create("ft_l", protocol="per_record", edit_batch=2, num_steps=4, learning_rate=1e-3)
    before = state(lm)
    data = [FitData(edit_records=[record]) for record in RECORDS]
    for record, edit in zip(RECORDS, method.fit_many(lm, data, range(3)), strict=True):
        assert same(before, state(lm))
        alone = fit(lm, [record], num_steps=4, learning_rate=1e-3)
        torch.testing.assert_close(
            edit.weights[0].delta.tensors()["delta"], alone.weights[0].delta.tensors()["delta"], atol=2e-5, rtol=0
        )
    (last,) = method.fit_many(lm, data, [2])
    assert last.digest() == edit.digest()


def test_it_makes_the_model_say_the_safe_answer() -> None:
    lm = tiny()
    edit = fit(lm, instance=0, layer=2, learning_rate=0.02, num_steps=60)
    request = db.Request(id="0", prompt=RECORDS[0].prompt, record="0", kind="p", chat=True)
    with lm.applied(edit):
        assert lm.generate([request], max_new_tokens=10)[0].text.strip() == "no thanks"


def test_the_bias_is_tuned_where_it_is_asked_for_and_there() -> None:
    assert len(fit(tiny("gpt2"), tune_bias=True, num_steps=2).weights) == 2
    assert len(fit(tiny("llama"), tune_bias=True, num_steps=2).weights) == 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="instance is for protocol=once"):
        db.methods.create("ft_l", protocol="per_record", instance=1)
    with pytest.raises(DetoxbenchError, match=r"method\.instance exceeds the 3 records"):
        fit(tiny(), instance=3)
