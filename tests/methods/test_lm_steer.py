"""LM-Steer against its formula in plain torch, and whether it does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench.fitting.token_losses import token_nlls
from detoxbench.lm import LanguageModel
from tests.support.on_fable import fitted, toxicity
from tests.support.tiny import METHOD_FAMILIES, tiny

TEXTS = [
    db.LabelledText("kind words", toxic=False),
    db.LabelledText("you silly rat", toxic=True),
    db.LabelledText("a friend", toxic=False),
]
DATA = db.FitData(labelled_texts=TEXTS)
ONE_UPDATE: dict[str, Any] = {"updates": 1, "batch_size": 3, "rank": 5, "epsilon": 0.2, "initial_std": 0.3}


def logits_of(lm: LanguageModel, ids: list[int], p1: torch.Tensor, p2: torch.Tensor, s: list[float]) -> torch.Tensor:
    """Head of h + 0.2 sum_k s_k P2_k P1_k^T h, [tokens, vocabulary]; P1 and P2 are [steers, width, rank]."""
    h = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].detach()
    head: Any = lm.model.get_output_embeddings()
    maps = torch.einsum("k,kor,kir->oi", torch.tensor(s), p2, p1)  # [width, width]
    logits = (h + 0.2 * torch.einsum("oi,ti->to", maps, h)) @ head.weight.detach().T
    cap = getattr(lm.model.config, "final_logit_softcapping", None)  # of Gemma 2
    return logits if cap is None else cap * torch.tanh(logits / cap)


def start(seed: int) -> list[torch.Tensor]:
    """P1 and P2 before training."""
    generator = torch.Generator().manual_seed(seed)
    return [0.3 * torch.randn(2, 32, 5, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("family", METHOD_FAMILIES)
def test_loss_and_update_are_those_of_the_formula(family: str) -> None:
    lm = tiny(family)
    steering = db.methods.create("lm_steer", **ONE_UPDATE, seed=3).fit(lm, DATA)
    p1, p2 = (p.requires_grad_() for p in start(3))
    nlls = []
    for text, toxic in TEXTS:
        ids = lm.tokens(text)
        logps = logits_of(lm, ids, p1, p2, [-1.0 if toxic else 1.0, 1.0]).log_softmax(-1)
        nlls += [-logps[t, ids[t + 1]] for t in range(len(ids) - 1)]
    loss = torch.stack(nlls).mean()
    optimizer = torch.optim.Adam([p1, p2], lr=1e-2)
    loss.backward()
    optimizer.step()
    assert steering.info["losses"] == pytest.approx([float(loss.detach())], abs=1e-5)
    tensors = steering.hooks[0].tensors
    torch.testing.assert_close(tensors["p1"], p1.detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(tensors["p2"], p2.detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dummy", [True, False])
@pytest.mark.parametrize("family", METHOD_FAMILIES)
def test_the_model_is_steered_by_the_formula(family: str, dummy: bool) -> None:
    lm = tiny(family)
    steering = db.methods.create("lm_steer", **ONE_UPDATE, strength=-2.5, dummy=dummy).fit(lm, DATA)
    p1, p2 = (steering.hooks[0].tensors[name] for name in ("p1", "p2"))
    assert len(p1) == len(p2) == 1 + dummy
    ids = lm.tokens("hello there")
    expected = logits_of(lm, ids, p1, p2, [-2.5, 1.0][: len(p1)])
    with lm.applied(steering), torch.no_grad():
        actual = lm.model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(actual, lm.model(torch.tensor([ids])).logits[0])


def test_the_states_before_the_head_are_changed_alike_where_a_model_makes_its_own_logits() -> None:
    lm, change = tiny(), torch.randn(32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    lm.model.requires_grad_(False)
    ids = torch.tensor([lm.tokens("hello"), lm.tokens("there")])
    batch, targets = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.ones_like(ids[:, 1:]).bool()
    found = []
    for through_head in (True, False):
        nlls, rows = token_nlls(
            lm.model,
            batch,
            targets,
            through_head=through_head,
            before_head=lambda h, rows: h + (1.0 + rows[:, None]) * (h @ change),
        )
        found.append((nlls.detach(), rows, *torch.autograd.grad(nlls.mean(), change)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_loss_falls_and_the_rank_is_at_most_the_width() -> None:
    settings = {"updates": 30, "batch_size": 3, "epsilon": 0.1, "max_length": 6}
    steering = db.methods.create("lm_steer", **settings).fit(tiny(), DATA)
    assert steering.info["rank"] == 32
    assert steering.info["cut_texts"] == 3
    assert sum(steering.info["losses"][-5:]) < 0.9 * sum(steering.info["losses"][:5])


def test_both_classes_are_needed() -> None:
    with pytest.raises(
        db.DetoxbenchError,
        match=r"'lm_steer' compares toxic with civil texts, and fit\.labelled_texts has no toxic one",
    ):
        db.methods.create("lm_steer", **ONE_UPDATE).fit(tiny(), db.FitData(labelled_texts=TEXTS[:1] * 8))


@pytest.mark.slow
def test_the_embedded_model_becomes_civil_with_the_value_and_more_toxic_against_it() -> None:
    lm = db.LanguageModel.load("fable")
    steering = fitted(lm, "lm_steer", updates=100, learning_rate=3e-3)
    (hook,) = steering.hooks
    found = {}
    for value in (3.0, -3.0):
        params = {**hook.params, "values": [value, 1.0]}
        change = db.Intervention(
            method="lm_steer", base=lm.fingerprint, hooks=(db.Hook(hook.module, "pre", hook.op, hook.tensors, params),)
        )
        with lm.applied(change):
            found[value] = toxicity(lm)
    assert found[3.0] < toxicity(lm) - 0.1
    assert found[-3.0] > toxicity(lm) + 0.1
