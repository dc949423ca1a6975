"""GeDi's decoding against the released formula, computed with separate models and token by token."""

from __future__ import annotations

import math

import pytest
import torch

import detoxbench as db
from tests.support.tiny import METHOD_FAMILIES, tiny

FAST = {"rank": 2, "epochs": 1, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 3e-2}
TEXTS = [db.LabelledText("kind words", toxic=False), db.LabelledText("rude words", toxic=True)]
DATA = db.FitData(labelled_texts=TEXTS * 8)


@pytest.mark.parametrize("family", METHOD_FAMILIES)
def test_tokens_are_weighed_by_the_released_formula(family: str) -> None:
    lm, omega, filter_p, target_p = tiny(family), 4.0, 0.6, 0.55
    method = db.methods.create(
        "gedi", omega=omega, filter_p=filter_p, target_p=target_p, target_modules=("all-linear",), **FAST
    )
    change = method.fit(lm, DATA)
    sides = [
        db.Intervention(method="m", base=lm.fingerprint, weights=change.logits[0].under[name].weights)
        for name in ("civil", "toxic")
    ]
    with lm.applied(change):
        (sample,) = lm.generate(["hello"], max_new_tokens=6)
    ids = lm.encode("hello")
    prompt, so_far = len(ids), [0.0, 0.0]
    with torch.no_grad():
        for _ in range(6):
            base = lm.model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
            logps = []
            for side in sides:
                with lm.applied(side):
                    logps.append(lm.model(torch.tensor([ids])).logits[0, -1].log_softmax(0))
            length = len(ids) - prompt + 1
            means = [(total + logp) / length for total, logp in zip(so_far, logps, strict=True)]
            civil = torch.stack(means, 1).log_softmax(1)[:, 0]
            z = base + omega * civil
            p, held = z.softmax(0), 0.0
            for w in civil.argsort(stable=True).tolist():
                held += float(p[w])
                if held < filter_p and float(civil[w]) < math.log(target_p):
                    z[w] = -torch.inf
            ids.append(int(z.argmax()))
            so_far = [total + float(logp[ids[-1]]) for total, logp in zip(so_far, logps, strict=True)]
            if ids[-1] in lm.eos_ids:
                break
    assert sample.text == lm.tokenizer.decode(ids[prompt:], skip_special_tokens=True)


def test_both_classes_are_needed() -> None:
    with pytest.raises(
        db.DetoxbenchError, match=r"'gedi' compares toxic with civil texts, and fit\.labelled_texts has no toxic one"
    ):
        db.methods.create("gedi", **FAST).fit(tiny(), db.FitData(labelled_texts=TEXTS[:1] * 8))
