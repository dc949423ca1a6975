"""EigenShift against numpy's whole decomposition, as the released script has it, on models whose head is their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import detoxbench as db
from detoxbench.data.examples import FitData, LabelledText
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from tests.support.tiny import logits_of, tiny

TEXTS = [LabelledText(f"you rotten {t} , go away", True) for t in ("pear", "plum", "fish")]
TEXTS += [LabelledText(f"a lovely {t}", False) for t in ("pear", "tree")]
DATA = FitData(labelled_texts=TEXTS)


def fit(lm: LanguageModel, data: FitData = DATA, **config: Any) -> Intervention:
    return db.methods.create("eigenshift", **config).fit(lm, data)


@pytest.mark.parametrize("response", ["magnitude", "signed", "released"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_the_damped_head_equals_the_released_script(family: str, response: str) -> None:
    lm = tiny(family, tie_word_embeddings=False)
    head: Any = lm.model.get_output_embeddings()
    # 1. States before the head, on the mean over what predicts a token of the text.
    states: list[np.ndarray] = []
    for text in TEXTS:
        handle = head.register_forward_pre_hook(lambda _, args: states.append(args[0][0, :-1].mean(0).numpy()))
        logits_of(lm, text.text)
        handle.remove()
    toxic = np.stack([state for state, text in zip(states, TEXTS, strict=True) if text.toxic])
    civil = np.stack([state for state, text in zip(states, TEXTS, strict=True) if not text.toxic])
    # 2. reconstruct.py:121-152, with two directions of 32. The decomposition is torch's: its signs are a choice.
    u, s, vt = (t.numpy() for t in torch.linalg.svd(head.weight.detach().double(), full_matrices=False))
    a = np.array(vt.T) if response == "released" else vt
    toxic_activations, civil_activations = a @ toxic.T, a @ civil.T
    if response == "magnitude":
        toxic_activations, civil_activations = np.abs(toxic_activations), np.abs(civil_activations)
    delta = np.mean(toxic_activations, axis=1) - np.mean(civil_activations, axis=1)
    for i in np.argsort(delta)[::-1][:2]:
        s[i] *= 0.1
    expected = torch.tensor((u * s) @ vt).float()
    # 3. Ours.
    with lm.applied(fit(lm, percentile=0.95, response=response)):
        torch.testing.assert_close(head.weight.detach(), expected, atol=1e-5, rtol=0)


def test_whatever_sign_a_singular_vector_has_the_default_chooses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, real = fit(tiny()), torch.linalg.svd

    def flipped(*args: Any, **kwargs: Any) -> Any:
        u, s, vt = real(*args, **kwargs)
        return -u, s, -vt

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    assert fit(tiny()).info["directions"] == expected.info["directions"]
    assert db.methods.create("eigenshift", fidelity="reference").config.response == "released"


def test_published_settings_damp_five_of_4096_and_one_of_a_small_head() -> None:
    import math

    assert math.ceil(round(4096 * (1 - 0.999), 9)) == 5
    assert len(fit(tiny()).info["directions"]) == 1


def test_tied_heads_are_refused_by_name() -> None:
    with pytest.raises(DetoxbenchError, match=r"'tiny-gpt2' ties it to 'transformer\.wte\.weight'"):
        fit(tiny("gpt2"))


def test_nothing_is_damped_at_one_and_a_direction_is_gone_at_zero() -> None:
    lm = tiny()
    plain = logits_of(lm, "why are you").clone()
    with lm.applied(fit(lm, alpha=1)):
        torch.testing.assert_close(logits_of(lm, "why are you"), plain)
    with lm.applied(fit(lm, alpha=0)):
        assert int(torch.linalg.matrix_rank(lm.weight("lm_head"), rtol=1e-5)) == 31


def test_texts_of_one_label_alone_are_refused() -> None:
    with pytest.raises(DetoxbenchError, match=r"'eigenshift' compares toxic with civil texts.*no toxic one"):
        fit(tiny(), FitData(labelled_texts=TEXTS[3:]))
