"""SASA against the released formulas in plain torch, token by token, and what it does to the embedded model."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import detoxbench as db
from detoxbench.config import GenSpec
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.engine.sampling import noise_key, pick
from detoxbench.interventions.intervention import compose
from detoxbench.methods.sasa import classifier, weigh
from detoxbench.model.logit_state import LogitState
from detoxbench.runner.composition import compose_run
from tests.interventions.test_logit_ops import asked, experts, low_rank, of_all
from tests.support.on_fable import toxicity
from tests.support.tiny import CHARACTERS, METHOD_FAMILIES, tiny

SAMPLED = GenSpec(max_new_tokens=8, do_sample=True, top_p=0.9)
GENS = {"greedy": GenSpec(max_new_tokens=8), "nucleus": SAMPLED}


def labelled(count: int = 40) -> db.FitData:
    r = random.Random(5)
    texts = ["".join(r.choice(CHARACTERS) for _ in range(r.randrange(3, 12))) for _ in range(count)]
    return db.FitData(labelled_texts=[db.LabelledText(t, toxic=i % 3 == 0) for i, t in enumerate(texts)])


def fitted(lm: db.LanguageModel, **config: Any) -> db.Intervention:
    return db.methods.create("sasa", **config).fit(lm, labelled())


def last_state(lm: db.LanguageModel, ids: list[int]) -> torch.Tensor:
    """hidden_states[-1] at the last token of `ids` read alone, [width], as the first release reads it."""
    with torch.no_grad():
        return lm.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]


def released_classifier(civil: torch.Tensor, toxic: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """wv and mu_mu of the first release: AISteer360, sasa/control.py, _setup_wv, in float64."""
    scatter = torch.cov(civil.T) * (len(civil) - 1) + torch.cov(toxic.T) * (len(toxic) - 1)
    f, d, _ = torch.linalg.svd(scatter / (len(civil) + len(toxic) - 2))
    f, d = f[:, d > 1e-6], d[d > 1e-6]
    wv = f @ torch.diag(1 / d) @ (f.T @ (civil.mean(0) - toxic.mean(0)) / 2)
    return wv / wv.norm(), (civil.mean(0) + toxic.mean(0)) / 2


@pytest.mark.parametrize("texts", [200, 12], ids=["more texts than width", "fewer texts than width"])
def test_the_classifier_is_the_released_one(texts: int) -> None:
    g = torch.Generator().manual_seed(0)
    mixing, shift = torch.randn(32, 32, generator=g).double(), torch.randn(32, generator=g).double()
    civil, toxic = (torch.randn(n, 32, generator=g).double() @ mixing for n in (texts, texts // 2))
    direction, middle, directions = classifier(civil + shift, toxic)
    wv, mu_mu = released_classifier(civil + shift, toxic)
    assert torch.allclose(direction, wv, atol=1e-9)
    assert torch.allclose(middle, mu_mu)
    assert directions == min(32, texts + texts // 2 - 2)
    if texts == 200:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        x, labels = torch.cat([civil + shift, toxic]).numpy(), [1] * texts + [0] * (texts // 2)
        theirs = torch.from_numpy(LinearDiscriminantAnalysis("lsqr").fit(x, labels).coef_[0])
        assert torch.allclose(direction, theirs / theirs.norm(), atol=1e-6)


def test_few_texts_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    info = fitted(tiny()).info
    assert "sasa: 40 labelled texts are few for states that vary in 32 directions" in caplog.text
    assert info["civil_texts"] + info["toxic_texts"] == 40


def test_classes_that_cannot_be_told_apart_are_named() -> None:
    lm = tiny()
    texts = [db.LabelledText("abc", toxic=False), db.LabelledText("xyz", toxic=True)]
    with pytest.raises(db.DetoxbenchError, match=r"differ in no direction.*give more fit\.labelled_texts"):
        db.methods.create("sasa").fit(lm, db.FitData(labelled_texts=texts))
    with pytest.raises(db.DetoxbenchError, match=r"'sasa' compares toxic with civil texts"):
        db.methods.create("sasa").fit(lm, db.FitData(labelled_texts=texts[:1] * 8))


@pytest.mark.parametrize("gen", GENS)
@pytest.mark.parametrize("family", METHOD_FAMILIES)
def test_tokens_are_weighed_by_the_released_formula(family: str, gen: str) -> None:
    lm, beta, top_p, most = tiny(family), 30.0, 0.4, 8
    change = fitted(lm, beta=beta, top_p=top_p, max_candidates=most)
    # 1. The classifier, from the states of each text alone.
    texts = labelled().labelled_texts or ()
    civil, toxic = (
        torch.stack([last_state(lm, lm.tokens(t.text)) for t in texts if t.toxic == side]).double()
        for side in (False, True)
    )
    wv, mu_mu = (x.float() for x in released_classifier(civil, toxic))
    assert torch.allclose(change.logits[0].tensors["direction"], wv, atol=1e-4)
    assert torch.allclose(change.logits[0].tensors["middle"], mu_mu, atol=1e-5)
    # 2. The text, each candidate by a forward pass of its own over all that stands before it.
    with lm.applied(change):
        (sample,) = lm.generate([db.Request(id="a", prompt="hello", record="a", kind="x")], GENS[gen], seed=4)
    ids = lm.encode("hello")
    prompt, key, left = len(ids), torch.tensor([noise_key(4, "a", 0)]), set[int]()
    for step in range(GENS[gen].max_new_tokens):
        with torch.no_grad():
            z = lm.model(torch.tensor([ids])).logits[0, -1]
        order = z.argsort(descending=True)
        before = z[order].softmax(0).cumsum(0) - z[order].softmax(0)
        left.add(int((before < top_p).sum()))
        candidates = order[before < top_p][:most]
        margins = torch.stack([wv @ (last_state(lm, [*ids, int(v)]) - mu_mu) for v in candidates])
        weighed = torch.full_like(z, -torch.inf)
        weighed[candidates] = z[candidates] + beta * margins.softmax(0)
        ids.append(int(pick(weighed[None], key, GENS[gen], step, 0.0)[0]))
        if ids[-1] in lm.eos_ids:
            break
    assert sample.text == lm.tokenizer.decode(ids[prompt:], skip_special_tokens=True)
    assert min(left) < most, "top-p leaves fewer at times"


def test_beta_is_the_weight_of_the_margin_itself_where_that_is_said() -> None:
    lm = tiny()
    (op,) = fitted(lm, margin="plain", beta=3.0, max_candidates=None, top_p=1).logits
    seen: list[torch.Tensor] = []
    with lm.applied(dataclasses.replace(fitted(lm), logits=(op,))):
        function = lm.in_force.logit_functions[0]
        lm.in_force.logit_functions[0] = dataclasses.replace(
            function,
            function=lambda z, state: seen.append(torch.stack([z, function.function(z, state)])) or seen[-1][1],
        )
        lm.generate(["hello"], max_new_tokens=1, tie_tolerance=0)
    (z,), (weighed,) = seen[0]
    wv, mu_mu = op.tensors["direction"], op.tensors["middle"]
    margins = torch.stack([wv @ (last_state(lm, [*lm.encode("hello"), v]) - mu_mu) for v in range(len(z))])
    assert torch.allclose(weighed, z + 3 * margins, atol=1e-4)


@pytest.mark.parametrize("gen", GENS)
@pytest.mark.parametrize("stacked", [pytest.param(False, marks=pytest.mark.slow), True], ids=["alone", "stacked"])
def test_samples_do_not_depend_on_batch_order_or_neighbours(gen: str, stacked: bool) -> None:
    lm, requests = tiny(), asked(7)
    change = fitted(lm, beta=40.0, max_candidates=5)
    if stacked:
        edit = db.Intervention(method="edit", base=lm.fingerprint, weights=low_rank(lm, 3, 0.2))
        change = compose(edit, experts(lm), change)
    with lm.applied(change):
        together = of_all(lm, requests, GENS[gen])
        for tokens in (1, 5 * 33):
            small = dataclasses.replace(GENS[gen], batch_tokens=tokens)
            assert of_all(lm, random.Random(1).sample(requests, len(requests)), small) == together
    assert of_all(lm, requests, GENS[gen]) != together


def test_a_cut_that_hangs_on_rounding_is_made_on_the_row_alone() -> None:
    """Noise of half the tolerance, another in every batch shape, stands for rounding: it moves what top-p leaves, and
    which candidates are the likeliest."""
    lm, requests = tiny(), asked(12)
    gen = dataclasses.replace(SAMPLED, tie_tolerance=0.05)
    with lm.applied(fitted(lm, beta=40.0, max_candidates=4)):
        quiet = of_all(lm, requests, gen)
        forward = lm.model.forward

        def noisy(**inputs: Any) -> Any:
            output = forward(**inputs)
            if len(output.logits) > 1:
                g = torch.Generator().manual_seed(len(output.logits))
                output.logits = output.logits + (torch.rand(output.logits.shape, generator=g) - 0.5) * 0.04
            return output

        lm.model.forward = noisy  # type: ignore[method-assign]
        try:
            assert of_all(lm, requests, gen) == quiet
        finally:
            del lm.model.forward


def test_the_preset_has_the_settings_of_the_paper() -> None:
    method = compose_run(["experiment=paper/sasa_gpt2_large"]).method
    assert (method.beta, method.top_p, method.max_candidates) == (500, 0.9, None)


def test_rows_whose_last_candidate_hangs_on_rounding_are_named() -> None:
    change = fitted(tiny(), max_candidates=2, top_p=0.99)
    logits = torch.tensor([[3.0, 2.0, 1.995, 0.0], [3.0, 2.0, 1.5, 0.0], [9.0, 1.0, 0.995, 0.0]])

    def top_p(z: torch.Tensor, p: float) -> torch.Tensor:  # of the last row a single one is left
        return torch.tensor([[True] * 4, [True] * 4, [True, False, False, False]])

    state = LogitState(
        change.logits[0].tensors, change.logits[0].params, torch.zeros(3), None, list, None, None, top_p, near=0.01,
        states_after=lambda ids: torch.zeros(*ids.shape, 32),
    )  # fmt: skip
    weighed = weigh(logits, state)
    assert [rows.tolist() for rows in state.contested] == [[True, False, False]]
    assert weighed.isfinite().tolist() == [[True, True, False, False]] * 2 + [[True, False, False, False]]


def test_suites_that_read_texts_refuse_it_before_anything_is_loaded(tmp_path: Path) -> None:
    change = fitted(db.LanguageModel.load("fable"))
    change.save(tmp_path / "saved")
    for method in (
        ["method=sasa"],
        ["method=compose", "method.parts=[self_reminder,sasa]"],
        ["method=intervention", f"method.path={tmp_path / 'saved'}"],
    ):
        with pytest.raises(db.UsageError, match=r"acts only while texts are generated, and suite 'likelihood_utility'"):
            db.run([*method, "suite=likelihood_utility", f"runs_dir={tmp_path / 'runs'}"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_run_counts_every_candidate(tmp_path: Path) -> None:
    result = db.run(
        ["method=sasa", "method.max_candidates=4", "method.top_p=1", "suite=utility", "suite.limit=3",
         "with_base=false", "fit.limit=20", f"runs_dir={tmp_path}"]
    )  # fmt: skip
    assert 4.8 < (result.record.cost["forward_passes_per_token"] or 0) <= 5.1  # a prompt's token, and four candidates


@pytest.mark.slow
def test_it_makes_the_embedded_model_less_toxic() -> None:
    lm = db.LanguageModel.load("fable")
    method = db.methods.create("sasa", beta=10.0, max_candidates=5)
    change = method.fit(lm, fit_data(fit_spec()(), method.needs)[0])
    before = toxicity(lm, samples=10)
    with lm.applied(change):
        assert toxicity(lm, samples=10) < before / 2
