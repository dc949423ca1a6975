"""SafeDecoding against the released rule, computed token by token."""

from __future__ import annotations

import pytest
import torch

import detoxbench as db
from detoxbench.engine.likelihood import loglikelihoods
from tests.support.tiny import METHOD_FAMILIES, tiny

FAST = {"rank": 2, "epochs": 1, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 3e-2}
DATA = db.FitData(refusals=[db.Instruction("do it", "no no no")] * 16)


def joined(base: torch.Tensor, expert: torch.Tensor, alpha: float, c: int) -> dict[int, float]:
    """Token -> probability by the released loop over ever more of the most probable tokens."""
    ours, theirs = base.argsort(descending=True).tolist(), expert.argsort(descending=True).tolist()
    k = c
    while len(common := set(ours[:k]) & set(theirs[:k])) < c:
        k += 1
    p, q = base.softmax(0), expert.softmax(0)
    mass = {w: max(float(p[w] + alpha * (q[w] - p[w])), 1e-8) for w in common}
    return {w: value / sum(mass.values()) for w, value in mass.items()}


@pytest.mark.parametrize("family", METHOD_FAMILIES)
def test_the_first_tokens_are_chosen_by_the_released_rule(family: str) -> None:
    lm = tiny(family)
    change = db.methods.create("safe_decoding", first_m=3, common_tokens=4, target_modules=("all-linear",), **FAST).fit(
        lm, DATA
    )
    expert = db.Intervention(method="m", base=lm.fingerprint, weights=change.logits[0].under["expert"].weights)
    with lm.applied(change):
        (sample,) = lm.generate(["hello"], max_new_tokens=6)
    ids = lm.encode("hello")
    prompt = len(ids)
    with torch.no_grad():
        for step in range(6):
            base = lm.model(torch.tensor([ids])).logits[0, -1]
            with lm.applied(expert):
                other = lm.model(torch.tensor([ids])).logits[0, -1]
            chances = joined(base, other, 3.0, 4)
            ids.append(max(chances, key=lambda w: (chances[w], -w)) if step < 3 else int(base.argmax()))
            if ids[-1] in lm.eos_ids:
                break
    assert sample.text == lm.tokenizer.decode(ids[prompt:], skip_special_tokens=True)


def test_a_text_is_read_by_it_and_outside_of_the_common_tokens_it_has_no_likelihood() -> None:
    lm = tiny()
    change = db.methods.create("safe_decoding", common_tokens=3, **FAST).fit(lm, DATA)
    expert = db.Intervention(method="m", base=lm.fingerprint, weights=change.logits[0].under["expert"].weights)
    ids = torch.tensor([lm.encode("hello")])
    with torch.no_grad():
        base = lm.model(ids).logits[0, -1]
        with lm.applied(expert):
            chances = joined(base, lm.model(ids).logits[0, -1], 3.0, 3)
    letters = {lm.tokenizer.decode([w]): w for w in range(3, 29)}
    inside = [text for text, w in letters.items() if w in chances]
    outside = next(text for text, w in letters.items() if w not in chances)
    requests = [db.Request(id=t, prompt="hello", record=t, kind="x", text=t) for t in (*inside, outside)]
    with lm.applied(change):
        read = {g.sample.id: g.sample.nll for b in loglikelihoods(lm, requests, {r.id for r in requests}) for g in b}
    assert read[outside] is None
    assert inside
    for text in inside:
        assert read[text] == pytest.approx(-torch.tensor(chances[letters[text]]).log().item(), rel=1e-3, abs=1e-4)


def test_a_given_expert_needs_no_refusals(tmp_path: object) -> None:
    lm = tiny()
    change = db.methods.create("safe_decoding", **FAST).fit(lm, DATA)
    assert change.info["losses"]
    expert = db.Intervention(method="m", base=lm.fingerprint, weights=change.logits[0].under["expert"].weights)
    expert.to_peft(f"{tmp_path}/expert", lm)
    given = db.methods.create("safe_decoding", expert=f"{tmp_path}/expert")
    assert given.needs == frozenset()
    with lm.applied(given.fit(lm, db.FitData())):
        texts = lm.generate(["hello", "you"], max_new_tokens=6)
    with lm.applied(change):
        assert texts == lm.generate(["hello", "you"], max_new_tokens=6)
