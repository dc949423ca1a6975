"""Self-debiasing against the released formula, computed a row at a time."""

from __future__ import annotations

import pytest
import torch

import detoxbench as db
from tests.support.tiny import METHOD_FAMILIES, tiny

PREFIXES = ("rude words: ", "a threat. ")


def damped(base: torch.Tensor, invited: list[torch.Tensor], decay: float, least: float) -> torch.Tensor:
    """The probabilities of one token by the formula, [vocabulary]."""
    p = base.softmax(0)
    new = []
    for w in range(len(p)):
        d = min(float(p[w] - other.softmax(0)[w]) for other in invited)
        a = 1.0 if d >= 0 else max(torch.tensor(decay * d).exp().item(), least)
        new.append(a * float(p[w]))
    return torch.tensor(new) / sum(new)


@pytest.mark.parametrize("family", METHOD_FAMILIES)
@pytest.mark.parametrize(("decay", "least"), [(50.0, 0.01), (5.0, 0.3)])
def test_it_is_the_released_formula(family: str, decay: float, least: float) -> None:
    lm = tiny(family)
    method = db.methods.create("self_debias", prefixes=PREFIXES, decay_constant=decay, epsilon=least)
    with lm.applied(method.fit(lm, db.FitData())):
        (sample,) = lm.generate(["hello"], max_new_tokens=5)
    prompts = [lm.encode(f"{prefix}hello") for prefix in ("", *PREFIXES)]
    new: list[int] = []
    with torch.no_grad():
        for _ in range(5):
            base, *invited = (lm.model(torch.tensor([ids + new])).logits[0, -1] for ids in prompts)
            new.append(int(damped(base, invited, decay, least).argmax()))
            if new[-1] in lm.eos_ids:
                break
    assert sample.text == lm.tokenizer.decode(new, skip_special_tokens=True)


def test_its_probabilities_are_those_of_the_formula() -> None:
    lm = tiny()
    method = db.methods.create("self_debias", prefixes=PREFIXES)
    request = db.Request(id="a", prompt="hello", record="a", kind="x", text="b")
    from detoxbench.engine.likelihood import loglikelihoods

    with lm.applied(method.fit(lm, db.FitData())):
        ((read,),) = loglikelihoods(lm, [request], {"a"})
    with torch.no_grad():
        base, *invited = (
            lm.model(torch.tensor([lm.encode(f"{prefix}hello")])).logits[0, -1] for prefix in ("", *PREFIXES)
        )
    (token,) = lm.encode("hellob")[len(lm.encode("hello")) :]
    assert read.sample.nll == pytest.approx(-float(damped(base, invited, 50.0, 0.01)[token].log()), rel=1e-4)


def test_the_default_has_seven_rows_a_sample_and_no_prefix_is_refused() -> None:
    lm = tiny(max_position_embeddings=256)
    change = db.methods.create("self_debias").fit(lm, db.FitData())
    assert len(change.logits[0].under) == 6
    rows = list[int]()
    with lm.applied(change):
        count = lm.model.register_forward_pre_hook(
            lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True
        )
        lm.generate(["hello"], max_new_tokens=3, tie_tolerance=0)
        count.remove()
    assert rows == [7, 7, 7]
    with pytest.raises(db.UsageError, match="prefixes is empty"):
        db.run(["method=self_debias", "method.prefixes=[]", "suite=utility"])
