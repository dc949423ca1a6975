"""DeStein against the numbers of its released code, and against its own algebra."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import detoxbench as db
from detoxbench import scorers
from detoxbench.config import digest, identity
from detoxbench.data.examples import FitData, Pair
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.methods import destein
from detoxbench.records import Request
from detoxbench.runner import composition
from detoxbench.scorers.base import Scorer
from detoxbench.scorers.embedded import Config as NoConfig
from tests.support.adapters import logits
from tests.support.tiny import EVERY_FAMILY, same, state, tiny, write

GOLDEN = Path(__file__).parents[1] / "golden/destein"
PAIRS = tuple(
    Pair(f"you are a rotten {thing} , go away", f"you are a lovely {thing} , stay here")
    for thing in ["pear", "plum", "fish", "boat", "tree", "hat", "cup", "bird", "lamp", "drum"]
)
DATA = FitData(parallel_pairs=PAIRS)
PLAIN: dict[str, Any] = {"head_weight": "none", "toxic_prefix": "", "civil_prefix": ""}
SITES = ["post_proj", "pre_proj", "mlp", "residual"]


def fit(lm: db.LanguageModel, **config: Any) -> db.Intervention:
    return db.methods.create("destein", **config).fit(lm, DATA)


# --- the released code -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return json.loads((GOLDEN / "expected.json").read_text())


def test_it_equals_the_released_code(reference: dict[str, Any]) -> None:
    """Pairs, probe accuracies, directions, logits and greedy tokens on the reference's own tiny model."""
    expected = load_file(GOLDEN / "expected.safetensors")
    lm = db.LanguageModel.load(str(GOLDEN / "tiny-llama"))
    method = db.methods.create(
        "destein", fidelity="reference", alpha=0.4, pairs=reference["count"], seed=reference["seed"]
    )
    data = FitData(parallel_pairs=tuple(Pair(*pair) for pair in reference["pairs"]))
    intervention = method.fit(lm, data)
    directions = torch.stack([hook.tensors["z"] for hook in intervention.hooks])
    torch.testing.assert_close(directions, expected["z.unit"].float(), atol=1e-5, rtol=0)
    accuracies = expected["probe.acc"].mean(1).tolist()
    assert intervention.info["probe_accuracy_mean"] == pytest.approx(accuracies, abs=1e-12)
    for alpha, change in (("base", None), ("a0.4", intervention)):
        tokens = reference["greedy"][alpha.removeprefix("a")]
        for i, prompt in enumerate(reference["prompts"]):
            lm_ids = torch.tensor([lm.encode(prompt)])
            with lm.applied(change) if change else lm.applied(db.methods.create("none").fit(lm, FitData())):
                found = lm.model(lm_ids).logits[0, -1]
                (sample,) = lm.generate([prompt], max_new_tokens=20)
            torch.testing.assert_close(found, expected[f"logits_last.{alpha}.p{i}"], atol=1e-4, rtol=0)
            assert sample.text == lm.tokenizer.decode(tokens[i], skip_special_tokens=True)


def test_the_best_heads_are_the_released_ones(reference: dict[str, Any]) -> None:
    """The first k of its list keep their slice, the others lose it; at these k no tie is cut."""
    lm = db.LanguageModel.load(str(GOLDEN / "tiny-llama"))
    data = FitData(parallel_pairs=tuple(Pair(*pair) for pair in reference["pairs"]))
    for k in (6, 12):
        config = {"head_weight": "topk", "top_heads": k, "pairs": reference["count"]}
        hooks = db.methods.create("destein", **config, seed=reference["seed"]).fit(lm, data).hooks
        kept = torch.stack([h.tensors["z"] for h in hooks]).reshape(4, 4, -1).norm(dim=-1) > 0
        assert {tuple(i) for i in kept.nonzero().tolist()} == {tuple(i) for i in reference["top_heads"][:k]}


def test_the_sphere_equals_the_released_layer_in_both_of_its_branches() -> None:
    cases = load_file(GOLDEN / "layer.safetensors")
    unit = cases["z"] / cases["z"].norm()
    for alpha in (0.0, 0.3, 0.45, 1.0, 1.5):
        out = destein.sphere(cases["x"], {"z": unit}, {"alpha": alpha})
        torch.testing.assert_close(out, cases[f"layerwise.a{alpha}"], atol=1e-5, rtol=0)
    for alpha in (0.0, 0.3, 0.45, 1.0, 1.5):
        params = {"alpha": alpha, "heads": 4, "gate": "cosine"}
        out = destein.sphere(cases["x"], {"z": cases["z"]}, params)
        torch.testing.assert_close(out, cases[f"multihead.a{alpha}"], atol=1e-5, rtol=0)
    half = destein.sphere(cases["x"].half(), {"z": unit}, {"alpha": 0.4})
    torch.testing.assert_close(half, cases["layerwise.fp16.a0.4"], atol=2e-3, rtol=0)
    zero = torch.zeros(1, 2, 64)
    assert torch.equal(destein.sphere(zero, {"z": unit}, {"alpha": 0.4}), zero)


# --- fusion ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 3), st.sampled_from([1, 4]), st.sampled_from(["none", "cosine"]))
def test_the_sphere_keeps_norms_and_turns_away_from_the_direction(
    seed: int, alpha: float, heads: int, gate: str
) -> None:
    g = torch.Generator().manual_seed(seed)
    x, z = torch.randn(5, 16, generator=g), torch.nn.functional.normalize(torch.randn(16, generator=g), dim=0)
    out = destein.sphere(x, {"z": z}, {"alpha": alpha, "heads": heads, "gate": gate, "eps": 1e-6})
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1), rtol=1e-4, atol=1e-5)
    cosines = [
        torch.nn.functional.cosine_similarity(v.reshape(5, heads, -1), z.reshape(heads, -1), dim=-1) for v in (x, out)
    ]
    assert bool((cosines[1] <= cosines[0] + 1e-4).all())


def test_what_points_at_the_direction_is_zero_at_alpha_one() -> None:
    """The released layer divides 0 by 0; and what rounding leaves of 0 must not be blown up to the full norm."""
    for seed in range(20):
        unit = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(seed)), dim=0)
        out = destein.sphere(3 * unit, {"z": unit}, {"alpha": 1.0, "eps": 1e-6})
        assert torch.equal(out, torch.zeros(64))
        turned = destein.sphere(3 * unit, {"z": unit}, {"alpha": 1.01, "eps": 1e-6})
        torch.testing.assert_close(turned, -3 * unit, atol=1e-3, rtol=0)


def test_a_gate_doubles_the_strength_on_what_is_toxic_and_leaves_the_rest() -> None:
    z = torch.tensor([1.0, 0.0])
    x = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0]])
    out = destein.additive(x, {"z": z}, {"alpha": 0.5, "gate": "cosine"})
    torch.testing.assert_close(out, x - torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.5, 0.0]]))


def test_half_precision_is_computed_in_float32() -> None:
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(7, 64, generator=g).bfloat16(), torch.randn(64, generator=g)
    for op in (destein.sphere, destein.additive):
        out = op(x, {"z": z}, {"alpha": 0.4})
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, op(x.float(), {"z": z}, {"alpha": 0.4}).bfloat16())


# --- where it acts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("site", SITES)
def test_additive_fusion_shifts_the_site_by_the_mean_difference(site: str, family: str) -> None:
    """Seen by a probe of our own at the site, before and after, for every token of a text."""
    lm = tiny(family)
    intervention = fit(lm, fusion="additive", alpha=2.0, site=site, pairs=4, layers=(1,), **PLAIN)
    (hook,) = intervention.hooks
    module, seen = lm.architecture.module(hook.module), []

    def keep(value: Any) -> None:
        seen.append(value[0] if isinstance(value, tuple) else value)

    def look() -> None:
        if site == "pre_proj":
            handle = module.register_forward_pre_hook(lambda _, given: keep(given))
        else:
            handle = module.register_forward_hook(lambda _, __, output: keep(output))
        logits(lm)
        handle.remove()

    look()
    with lm.applied(intervention):
        look()
    torch.testing.assert_close(seen[1], seen[0] - 2.0 * hook.tensors["z"], atol=1e-4, rtol=0)
    toxic, civil = [], []
    drawn = db.methods.create("destein", pairs=4, **PLAIN)._draw(PAIRS)  # type: ignore[attr-defined]
    for side, texts in ((toxic, [p.toxic for p in drawn]), (civil, [p.civil for p in drawn])):
        for text in texts:
            kind = module.register_forward_pre_hook if site == "pre_proj" else module.register_forward_hook
            handle = kind(lambda _, given, output=None: keep(given if output is None else output))
            with torch.inference_mode():
                lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]]))
            handle.remove()
            side.append(seen.pop()[0, -8:].mean(0))
    expected = torch.stack(toxic).mean(0) - torch.stack(civil).mean(0)
    torch.testing.assert_close(hook.tensors["z"], expected, atol=1e-5, rtol=0)


def test_the_activations_of_every_site_are_the_released_ones() -> None:
    """Sums over the pairs, which is what the released code calls a direction."""
    expected = load_file(GOLDEN / "expected.safetensors")
    reference_ = json.loads((GOLDEN / "expected.json").read_text())
    lm = db.LanguageModel.load(str(GOLDEN / "tiny-llama"))
    data = FitData(parallel_pairs=tuple(Pair(*pair) for pair in reference_["pairs"]))
    for site, name in (("post_proj", "head"), ("mlp", "mlp"), ("residual", "layer")):
        config: dict[str, Any] = {"site": site, "fusion": "additive", "head_weight": "none"}
        method = db.methods.create("destein", **config, pairs=reference_["count"], seed=reference_["seed"])
        directions = torch.stack([hook.tensors["z"] for hook in method.fit(lm, data).hooks])
        summed = directions * reference_["count"]
        torch.testing.assert_close(summed, expected[f"direction_sum.{name}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])  # no bias, Conv1D with one, biases on q, k, v alone
@pytest.mark.parametrize("site", ["post_proj", "pre_proj", "mlp"])
def test_a_constant_shift_as_a_bias_gives_the_same_model(site: str, family: str, tmp_path: Path) -> None:
    lm = tiny(family)
    before = state(lm)
    config = {"fidelity": "paper", "alpha": 1.5, "site": site, "pairs": 6}
    hooked, biased = fit(lm, **config), fit(lm, **config, export="bias")
    assert not biased.hooks
    assert not hooked.weights
    with lm.applied(hooked):
        expected = logits(lm)
    biased.save(tmp_path / "kept")
    with lm.applied(db.Intervention.load(tmp_path / "kept")):
        torch.testing.assert_close(logits(lm), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(logits(lm), expected, atol=1e-3)
    assert same(before, state(lm))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_it_works_on_every_family_in_bf16_too(family: str) -> None:
    lm = tiny(family, dtype=torch.bfloat16)
    plain = logits(lm)
    for site in SITES:
        weight = "acc" if site == "pre_proj" else "none"  # the one site that is not as wide as the hidden state
        with lm.applied(fit(lm, pairs=6, site=site, head_weight=weight, layers=(1,))):
            steered = logits(lm)
        assert torch.isfinite(steered).all()
        assert not torch.equal(steered, plain)


def test_only_the_layers_that_are_named_are_steered() -> None:
    lm = tiny()
    hooks = fit(lm, pairs=6, layers=(0, 2)).hooks
    assert [hook.module for hook in hooks] == [lm.architecture.attention_out(i) for i in (0, 2)]
    with pytest.raises(DetoxbenchError, match=r"no layer 3: .* has layers 0 to 2"):
        fit(lm, pairs=6, layers=(3,))


@pytest.mark.parametrize(("family", "site"), [("llama", "post_proj"), ("gpt2", "residual"), ("opt", "mlp")])
def test_generated_positions_are_steered_and_the_prompt_is_not(family: str, site: str, tmp_path: Path) -> None:
    """The first new token comes from the prompt's last position, so it is the base model's; what follows is not. The
    same for any batch, and where near-ties are decided without a cache."""
    lm = tiny(family)
    prompts = ["the cat", "why are you so", "please tell me about it", "who"]
    fit(lm, alpha=1.5, pairs=6, site=site, positions="generated").save(tmp_path / "kept")
    intervention = db.Intervention.load(tmp_path / "kept")
    everywhere = fit(lm, alpha=1.5, pairs=6, site=site)

    def texts(**gen: Any) -> list[str]:
        return [s.text for s in lm.generate(prompts, max_new_tokens=12, **gen)]

    plain = texts()
    with lm.applied(everywhere):
        everywhere_texts = texts()
    with lm.applied(intervention):
        steered = texts()
        assert steered == texts(batch_tokens=1) == texts(tie_tolerance=100.0)
        outside = logits(lm)
    with lm.applied(everywhere):
        assert torch.equal(outside, logits(lm))  # nothing is generated here: every position counts as new
    assert [t[:1] for t in steered] == [t[:1] for t in plain]
    assert steered != plain
    assert steered != everywhere_texts
    assert lm.in_force.prompt_positions == (1, 0)


# --- probes ----------------------------------------------------------------------------------------------------------


def test_head_weights_scale_the_slices_of_the_heads() -> None:
    lm = tiny()
    plain, acc, one_plus = (
        torch.stack([h.tensors["z"] for h in fit(lm, fusion="additive", head_weight=w, pairs=10).hooks]).double()
        for w in ("none", "acc", "one_plus_acc")
    )
    torch.testing.assert_close(one_plus - acc, plain, atol=1e-5, rtol=1e-4)
    ratio = (acc / plain).reshape(3, 4, 8)
    assert torch.allclose(ratio, ratio[..., :1], atol=1e-4)
    assert bool(((ratio * 4 - (ratio * 4).round()).abs() < 1e-3).all())  # 10 pairs: 4 validation rows


def test_too_few_pairs_for_probes_is_an_error_that_names_the_way_out() -> None:
    for pairs in (1, 5):
        with pytest.raises(DetoxbenchError, match=r"raise method\.pairs or set method\.head_weight=none"):
            fit(tiny(), pairs=pairs)
    fit(tiny(), pairs=1, head_weight="none")


def test_coarse_accuracies_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    many = FitData(parallel_pairs=tuple(Pair(f"{i} {t}", f"{i} {c}") for i in "ab" for t, c in PAIRS))
    with caplog.at_level(logging.WARNING, "detoxbench"):
        db.methods.create("destein", pairs=20).fit(tiny(), many)  # as published
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING, "detoxbench"):
        fit(tiny(), pairs=6)
    assert "coarse: 4 validation rows, steps of 0.25" in caplog.text


# --- configuration ---------------------------------------------------------------------------------------------------


def test_fidelity_is_a_name_for_switches_that_can_be_set_alone() -> None:
    config = destein.Config
    assert (config().fusion, config().head_weight) == ("sphere", "one_plus_acc")
    assert (config(fidelity="paper").fusion, config(fidelity="paper").head_weight) == ("additive", "acc")
    assert config(fidelity="paper", head_weight="none").head_weight == "none"
    paper, switches = config(fidelity="paper"), config(fusion="additive", head_weight="acc")
    assert digest(identity(paper)) == digest(identity(switches)) != digest(identity(config()))


@pytest.mark.parametrize(
    "config",
    [{"fusion": "sphere"}, {"gate": "cosine"}, {"positions": "generated"}, {"site": "residual"}],
    ids=["sphere", "gate", "positions", "residual"],
)
def test_what_is_no_constant_cannot_be_a_bias(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="export=bias: needs fusion=additive"):
        db.methods.create("destein", export="bias", **{"fusion": "additive", **config})


PAPER = {"gpt2_large": (0.45, 20), "llama2_7b": (0.4, 40), "opt_6.7b": (0.4, 40), "mpt_7b": (0.4, 40)}


@pytest.mark.parametrize("name", PAPER)
def test_the_published_settings_are_presets(name: str) -> None:
    ((_, spec),) = composition.cells([f"experiment=paper/destein_{name}"])
    assert (spec.method.alpha, spec.method.pairs) == PAPER[name]
    assert (spec.gen.n, spec.gen.max_new_tokens, spec.gen.top_p) == (25, 20, 0.9)
    assert spec.seed == 42


# --- pairs from the model itself -------------------------------------------------------------------------------------


class Vowels(Scorer[NoConfig]):
    """Finds a text toxic when it holds an e, and has no opinion of one with a q."""

    Config = NoConfig
    seen: list[str] = []  # noqa: RUF012

    def fingerprint(self) -> str:
        return "vowels"

    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
        self.seen.extend(texts)
        return [None if "q" in text else {"toxicity": float("e" in text)} for text in texts]


@pytest.fixture
def vowels(monkeypatch: pytest.MonkeyPatch) -> type[Vowels]:
    monkeypatch.setitem(scorers.registry._loaded, "vowels", Vowels)
    Vowels.seen.clear()
    return Vowels


SELF: dict[str, Any] = {
    "pair_source": "self",
    "guide": "vowels",
    "candidates": 60,
    "candidate_tokens": 8,
    "head_weight": "none",
}


def chat(prompt: str, i: int = 0) -> Request:
    return Request(id=str(i), prompt=prompt, record="r", kind="k", chat=True)


def test_the_model_writes_its_own_pairs(vowels: type[Vowels]) -> None:
    lm = tiny()
    method = db.methods.create("destein", **SELF, pairs=6, rewrite_prompt="say {text} nicely:")
    assert method.needs == frozenset()
    before = state(lm)
    intervention = method.fit(lm, FitData())
    assert same(before, state(lm))
    found = intervention.info["self_induced"]
    texts = vowels.seen[: found["distinct"]]
    toxic = [t for t in texts if "q" not in t and "e" in t]
    assert len(set(texts)) == len(texts) <= 60
    assert (found["candidates"], found["toxic"]) == (60, len(toxic))
    asked = [chat(f"say {text} nicely:", i) for i, text in enumerate(toxic)]
    polite = [s.text.strip() for s in lm.generate(asked, max_new_tokens=16, do_sample=True, top_p=0.9)]
    assert vowels.seen[found["distinct"] :] == polite
    assert found["pairs"] == sum("e" not in p and "q" not in p and p != "" for p in polite)
    again = db.methods.create("destein", **SELF, pairs=6, rewrite_prompt="say {text} nicely:").fit(lm, FitData())
    assert torch.equal(again.hooks[0].tensors["z"], intervention.hooks[0].tensors["z"])


def test_another_model_may_rewrite(vowels: type[Vowels], tmp_path: Path) -> None:
    lm, other = tiny(), tiny("gpt2", seed=3)
    write(other, tmp_path)
    settings_ = {**SELF, "pairs": 2, "rewriter": str(tmp_path)}
    method = db.methods.create("destein", **settings_)
    assert set(method.fingerprints()) == {"guide", "rewriter"}
    with suppress(DetoxbenchError):  # whether its random texts are civil is not the point
        method.fit(lm, FitData())
    first = next(t for t in vowels.seen if "q" not in t and "e" in t)
    prompt = method.config.rewrite_prompt.replace("{text}", first)  # type: ignore[attr-defined]
    rewriter = db.LanguageModel.load(str(tmp_path))
    polite = rewriter.generate([chat(prompt)], max_new_tokens=16, do_sample=True, top_p=0.9)[0].text
    assert polite.strip().partition("\n")[0].strip() in vowels.seen


def test_a_question_that_is_cut_gives_no_pair_and_is_counted(vowels: type[Vowels]) -> None:
    method = db.methods.create("destein", **SELF, rewrite_prompt="say {text} nicely, " + "please " * 60)
    with pytest.raises(DetoxbenchError, match=r"finds (\d+) toxic, .* \(\1 are too long to be asked for one\)"):
        method.fit(tiny(), FitData())


def test_no_pair_at_all_says_where_they_were_lost(vowels: type[Vowels]) -> None:
    method = db.methods.create("destein", **{**SELF, "candidates": 2, "candidate_tokens": 1})
    with pytest.raises(
        DetoxbenchError, match=r"no self-induced pair: of \d distinct texts .* raise method\.candidates"
    ):
        method.fit(tiny(), FitData())


def test_the_guide_is_needed_known_and_never_the_judge() -> None:
    with pytest.raises(UsageError, match="pair_source=self needs a guide"):
        db.methods.create("destein", pair_source="self")
    with pytest.raises(UsageError, match="unknown scorer 'perspektive'"):
        db.methods.create("destein", pair_source="self", guide="perspektive").fingerprints()
    given = ["method=destein", "method.pair_source=self", "method.guide=embedded"]
    with pytest.raises(UsageError, match=r"method\.guide=embedded is the run's judge"):
        composition.compose_run(given)
