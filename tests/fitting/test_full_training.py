"""Parameters trained in full: what acts is what was trained, and the model is as it was."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import torch

from detoxbench.data.examples import Instruction
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.parameters import names_of, trainable
from detoxbench.fitting.responses import collate as collate_responses
from detoxbench.fitting.responses import encode, untrained
from detoxbench.fitting.training import TrainingConfig, optimise, train, train_lora
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from tests.support.tiny import same, state, tiny

EXAMPLES = [Instruction("who is it ?", "a friend of mine", chat=False), Instruction("why ?", "ask him again")] * 4
CHEAP: dict[str, Any] = {"epochs": 2, "batch_size": 4, "micro_batch_size": 4, "warmup_ratio": 0.0}


def trained(lm: LanguageModel, **settings: Any) -> Any:
    config = TrainingConfig(**{**CHEAP, "learning_rate": 1e-2, **settings})
    return train(lm, EXAMPLES, config, seed=0, description="test")


def texts(lm: LanguageModel) -> list[str]:
    return [s.text for s in lm.generate(["who", "the cat"], max_new_tokens=8)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_names_are_parts_of_dotted_names(family: str) -> None:
    lm = tiny(family)
    down = lm.architecture.mlp_down(1)
    assert names_of(lm, [down]) == [n for n, _ in lm.model.named_parameters() if n.startswith(f"{down}.")]
    layer = lm.architecture.layer(1)
    assert set(names_of(lm, [layer])) > set(names_of(lm, [down]))
    everywhere = names_of(lm, [down.rpartition(".")[2]])
    assert len({name.split(".")[2] for name in everywhere}) == 3
    with pytest.raises(DetoxbenchError, match=r"has no parameter 'layer': set method\.parameters"):
        names_of(lm, ["layer"])


def test_what_is_tied_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny("llama", tie_word_embeddings=True)
    with caplog.at_level(logging.WARNING, "detoxbench"):
        names = names_of(lm, ["all"])
    assert "lm_head.weight, model.embed_tokens.weight" in caplog.text
    assert len(names) == len(list(lm.model.parameters())) - 1
    with pytest.raises(DetoxbenchError, match=r"'lm_head\.weight' is tied to another parameter"):
        names_of(lm, ["lm_head"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_is_as_it_was_and_the_change_is_what_was_trained(family: str, dtype: torch.dtype) -> None:
    lm = tiny(family, dtype=dtype)
    before, order = state(lm), [name for name, _ in lm.model.named_parameters()]
    classes = [type(m) for m in lm.model.modules()]
    flags = [p.requires_grad for p in lm.model.parameters()]
    objects = [id(p) for p in lm.model.parameters()]
    adapter = trained(lm, parameters=("all",))
    assert same(before, state(lm))
    assert [name for name, _ in lm.model.named_parameters()] == order
    assert [type(m) for m in lm.model.modules()] == classes
    assert [p.requires_grad for p in lm.model.parameters()] == flags
    assert [id(p) for p in lm.model.parameters()] == objects
    assert not hasattr(lm.model, "disable_adapter")
    assert all(float(delta.delta.abs().max()) > 0 for delta in adapter.deltas.values())
    assert adapter.losses[-1] < adapter.losses[0]


def test_a_failure_on_the_way_leaves_the_model_as_it_was() -> None:
    lm = tiny()
    before, classes = state(lm), [type(m) for m in lm.model.modules()]
    config = TrainingConfig(**CHEAP, parameters=("all",))
    collate = partial(collate_responses, pad=0)
    rows = [encode(lm, example, 64) for example in EXAMPLES]

    def loss(model: Any, batch: Any) -> Any:
        raise DetoxbenchError("no loss today")

    with pytest.raises(DetoxbenchError, match="no loss today"):
        optimise(lm, lambda epoch: rows, config, collate=collate, loss=loss, seed=0, description="test")
    assert not hasattr(lm.model, "disable_adapter")
    assert same(before, state(lm))
    assert [type(m) for m in lm.model.modules()] == classes


def test_within_the_model_is_the_base_plus_the_deltas_and_without_them_the_base() -> None:
    lm = tiny()
    names = names_of(lm, ["mlp.down_proj"])
    ids = torch.arange(4, 12)[None]
    plain = lm.model(ids).logits
    with trainable(lm, names) as deltas:
        assert torch.equal(lm.model(ids).logits, plain)
        assert {p for p in lm.model.parameters() if p.requires_grad} == set(deltas.values())
        with torch.no_grad():
            for delta in deltas.values():
                delta.add_(0.1)
        moved = lm.model(ids).logits
        assert not torch.equal(moved, plain)
        with untrained(lm.model):
            assert torch.equal(lm.model(ids).logits, plain)
        assert torch.equal(lm.model(ids).logits, moved)
    for name in names:
        lm.model.get_parameter(name).data.add_(0.1)
    assert torch.allclose(lm.model(ids).logits, moved, atol=1e-5)


def test_small_steps_are_not_lost_in_a_model_of_lower_precision() -> None:
    """A step of 1e-6 is far below half a unit in the last place of a weight in bfloat16."""
    lm = tiny(dtype=torch.bfloat16)
    adapter = trained(lm, parameters=("mlp.down_proj",), learning_rate=1e-6, epochs=4)
    assert all(0 < float(d.delta.abs().max()) < 1e-4 for d in adapter.deltas.values())


def test_one_step_is_the_step_that_torch_makes() -> None:
    """One update of RMSprop on all parameters, computed again by hand."""
    lm = tiny()
    adapter = trained(
        lm, parameters=("all",), optimizer="rmsprop", schedule="constant", batch_size=8, epochs=1, learning_rate=1e-3
    )
    again = tiny()
    again.model.requires_grad_(True)
    batches = [collate_responses([encode(again, e, 1024) for e in EXAMPLES[i : i + 4]], 0) for i in (0, 4)]
    tokens = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    for batch in batches:
        logits = again.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        (nll / tokens).backward()
    torch.nn.utils.clip_grad_norm_(again.model.parameters(), 1.0)
    before = {name: p.detach().clone() for name, p in again.model.named_parameters()}
    torch.optim.RMSprop(again.model.parameters(), lr=1e-3).step()
    for name, parameter in again.model.named_parameters():
        torch.testing.assert_close(adapter.deltas[name].delta, parameter.detach() - before[name], atol=2e-6, rtol=1e-3)


def test_a_lora_by_the_new_config_is_the_lora_by_the_old_one() -> None:
    config = TrainingConfig(**CHEAP, learning_rate=1e-2)
    one = train(tiny(), EXAMPLES, config, seed=3, description="test")
    other = train_lora(tiny(), EXAMPLES, config, seed=3, description="test")
    assert one.losses == other.losses
    assert all(torch.equal(one.deltas[name].b, other.deltas[name].b) for name in other.deltas)


def test_a_full_change_is_applied_by_the_harness() -> None:
    lm = tiny()
    adapter = trained(lm, parameters=("mlp",))
    plain = texts(lm)
    with lm.applied(Intervention(method="m", base=lm.fingerprint, weights=adapter.weights)):
        assert texts(lm) != plain
    assert texts(lm) == plain


@pytest.mark.parametrize("parameters", [(), ("lora", "mlp")])
def test_lora_stands_alone(parameters: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"parameters is \[lora\] or a list of parts of parameter names"):
        TrainingConfig(parameters=parameters)
