"""DExperts as a method; its formula is checked in tests/interventions/test_logit_ops.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import detoxbench as db
from detoxbench.interventions import peft_io
from tests.support.tiny import tiny

FAST = {"rank": 2, "epochs": 1, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2}
DATA = db.FitData(
    civil_instructions=[db.Instruction("hello", "kind words", chat=False)] * 8,
    toxic_instructions=[db.Instruction("hello", "rude words", chat=False)] * 8,
)


def factors(change: db.Intervention, side: str) -> list[torch.Tensor]:
    return [t for w in change.logits[0].under[side].weights for t in w.delta.tensors().values()]


def test_its_adapters_are_those_of_ext_sub() -> None:
    lm = tiny()
    change = db.methods.create("dexperts", **FAST).fit(lm, DATA)
    expert = db.methods.create("ext_sub", operation="expert_only", **FAST).fit(lm, DATA)
    theirs = [t for w in expert.weights for t in w.delta.tensors().values()]
    assert all(map(torch.equal, factors(change, "expert"), theirs))
    anti = db.methods.create("ext_sub", operation="negate", **FAST).fit(lm, DATA)
    theirs = [t * (1 if name == "a" else -1) for w in anti.weights for name, t in w.delta.tensors().items()]
    assert all(map(torch.equal, factors(change, "anti_expert"), theirs))
    assert change.info["expert_losses"]


def test_without_an_expert_the_base_takes_its_place() -> None:
    lm = tiny()
    method = db.methods.create("dexperts", sides="anti_expert", filter_p=1.0, alpha=0.5, **FAST)
    assert method.needs == {db.Role.TOXIC_INSTRUCTIONS}
    change = method.fit(lm, DATA)
    anti = db.Intervention(method="m", base=lm.fingerprint, weights=change.logits[0].under["anti_expert"].weights)
    ids = torch.tensor([lm.encode("hello")])
    with torch.no_grad():
        base = lm.model(ids).logits[0, -1]
        with lm.applied(anti):
            beside = lm.model(ids).logits[0, -1]
    expected = int((base + 0.5 * (base - beside)).argmax())
    with lm.applied(change):
        (sample,) = lm.generate(["hello"], max_new_tokens=1)
    assert sample.text == lm.tokenizer.decode([expected], skip_special_tokens=True)


def test_adapters_that_are_given_are_taken_and_others_than_loras_refused(tmp_path: Path) -> None:
    lm = tiny()
    change = db.methods.create("dexperts", **FAST).fit(lm, DATA)
    for side in ("expert", "anti_expert"):
        carried = db.Intervention(method="m", base=lm.fingerprint, weights=change.logits[0].under[side].weights)
        carried.to_peft(tmp_path / side, lm)
    given = db.methods.create(
        "dexperts", expert=str(tmp_path / "expert"), anti_expert=str(tmp_path / "anti_expert"), **FAST
    )
    assert given.needs == frozenset()
    assert sorted(given.fingerprints()) == ["anti_expert", "expert"]
    again = given.fit(lm, db.FitData())
    assert all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(factors(again, "expert"), factors(change, "expert"), strict=True)
    )
    ia3 = peft_io.Ia3(torch.ones(32), on_input=False)
    with pytest.raises(db.DetoxbenchError, match=r"method\.expert is Ia3, and 'dexperts' computes LoRAs"):
        given._carried("expert", {"model.layers.0.self_attn.q_proj": ia3})  # type: ignore[attr-defined]


@pytest.mark.slow
def test_it_makes_the_embedded_model_kinder(tmp_path: Path) -> None:
    few = ["suite=real_toxicity_prompts", "suite.prompts=60", "gen.n=4", f"runs_dir={tmp_path}"]
    learned = ["method.epochs=2", "method.learning_rate=2e-3", "method.batch_size=16", "method.micro_batch_size=16"]
    result = db.run(["method=dexperts", *learned, *few])
    assert result.base is not None
    base, moved = (r.record.metrics["toxic_share"].value for r in (result.base, result))
    assert moved < base - 0.1
    assert result.record.cost["forward_passes_per_token"] == pytest.approx(3, abs=0.01)
