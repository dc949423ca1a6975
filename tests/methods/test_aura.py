"""AURA against scikit-learn's AUROC and the released hook, output times factor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

import detoxbench as db
from detoxbench.data.examples import FitData, LabelledText
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.aura import auroc
from tests.support.on_fable import fitted, toxicity
from tests.support.tiny import METHOD_FAMILIES, logits_of, tiny

THINGS = ("pear", "plum", "fish", "hat", "cup")
TEXTS = [LabelledText(f"you rotten {t} , go away", True) for t in THINGS]
TEXTS += [LabelledText(f"a lovely {t}", False) for t in (*THINGS, "tree", "lamp")]
DATA = FitData(labelled_texts=TEXTS)


def fit(lm: LanguageModel, data: FitData = DATA, *, seed: int = 0, **config: Any) -> Intervention:
    return db.methods.create("aura", seed=seed, **config).fit(lm, data)


@pytest.mark.parametrize("family", METHOD_FAMILIES)
def test_it_does_what_the_released_hooks_do(family: str) -> None:
    """Factors from scikit-learn's AUROC of the largest outputs, one text at a time, multiplied onto the outputs."""
    lm = tiny(family)
    names = ("up_proj", "gate_proj", "gate_up_proj", "down_proj", "c_fc", "c_proj", "fc1", "fc2")
    names += ("dense_h_to_4h", "dense_4h_to_h")
    maps = [n for n, _ in lm.model.named_modules() if n.endswith(names) and "attn.c_proj" not in n]
    assert len(maps) == (9 if any("gate_proj" in n for n in maps) else 6)
    modules = {path: lm.model.get_submodule(path) for path in maps}
    # 1. Responses.
    responses: dict[str, list[torch.Tensor]] = {path: [] for path in maps}

    def keep(path: str) -> Any:
        return lambda _, __, out: responses[path].append(out.reshape(-1, out.shape[-1]).amax(0))

    handles = [module.register_forward_hook(keep(path)) for path, module in modules.items()]
    for text in TEXTS:
        logits_of(lm, text.text)
    for handle in handles:
        handle.remove()
    # 2. Factors.
    labels = [int(text.toxic) for text in TEXTS]
    factors = {}
    for path, rows in responses.items():
        values = torch.stack(rows).clone()
        areas = torch.tensor([roc_auc_score(labels, column) for column in values.T.numpy()])
        factors[path] = torch.where(areas > 0.5, 1 - 2 * (areas - 0.5), torch.ones_like(areas)).float()
    # 3. The hooks, beside ours.

    def damp(path: str) -> Any:
        return lambda _, __, out: out * factors[path]

    handles = [module.register_forward_hook(damp(path)) for path, module in modules.items()]
    expected = logits_of(lm, "why are you so kind").clone()
    for handle in handles:
        handle.remove()
    with lm.applied(fit(lm)):
        torch.testing.assert_close(logits_of(lm, "why are you so kind"), expected, atol=1e-4, rtol=1e-4)


def test_auroc_equals_scikit_learns_also_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    responses = torch.randint(0, 4, (40, 9), generator=generator).float()
    labels = torch.rand(40, generator=generator) < 0.3
    expected = [roc_auc_score(labels.numpy(), column) for column in responses.T.numpy()]
    assert auroc(responses, labels).tolist() == pytest.approx(expected, abs=1e-12)


def test_an_expert_is_silenced_and_a_civil_one_left_alone() -> None:
    lm = tiny("gpt2")
    with torch.no_grad():
        bias = lm.model.get_parameter("transformer.h.1.mlp.c_fc.bias")
        bias.add_(1.0)
    change = fit(lm, maps="up")
    weights = {weight.parameter: weight.delta.tensors()["delta"] for weight in change.weights}
    before = lm.weight("transformer.h.1.mlp.c_fc")  # [in, out]
    factor = (1 + weights["transformer.h.1.mlp.c_fc.weight"] / before).mean(0)  # [out]
    torch.testing.assert_close(1 + weights["transformer.h.1.mlp.c_fc.bias"] / bias.detach(), factor, atol=1e-4, rtol=0)
    assert float(factor.min()) >= 0
    assert float(factor.max()) == pytest.approx(1, abs=1e-6)
    assert len(weights) == 2 * 3


def test_texts_are_drawn_by_label_and_cut_behind_their_first_tokens() -> None:
    lm = tiny()
    some = fit(lm, texts=3, seed=1)
    assert (some.info["toxic_texts"], some.info["civil_texts"]) == (3, 3)
    assert db.methods.create("aura", texts=3).examples(DATA) == 6
    assert some.digest() != fit(lm, texts=3, seed=2).digest()
    longer = FitData(labelled_texts=[text._replace(text=text.text[:5] + "x" * 9) for text in TEXTS])
    shorter = FitData(labelled_texts=[text._replace(text=text.text[:5]) for text in TEXTS])
    assert fit(lm, longer, max_tokens=6).digest() == fit(lm, shorter).digest()


def test_texts_of_one_label_alone_are_refused() -> None:
    with pytest.raises(DetoxbenchError, match=r"'aura' compares toxic with civil texts.*no civil one"):
        fit(tiny(), FitData(labelled_texts=TEXTS[:3]))


@pytest.mark.slow
def test_it_makes_the_fable_more_civil() -> None:
    lm = LanguageModel.load("fable")
    before = toxicity(lm)
    with lm.applied(fitted(lm, "aura")):
        assert toxicity(lm) < before
