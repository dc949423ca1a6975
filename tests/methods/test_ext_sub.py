"""Ext-Sub against the numbers of its released code, and against its own algebra."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import detoxbench as db
from detoxbench.config import digest, identity
from detoxbench.data.examples import FitData, Instruction, Role
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.interventions.channels import Dense, LowRank
from detoxbench.lm import LanguageModel
from detoxbench.methods.ext_sub import Config, combine, released_rows
from detoxbench.runner.composition import cells
from tests.support.adapters import adapter_folder, logits, peft_logits
from tests.support.tiny import same, state, tiny, tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


def low_rank(seed: int, out: int = 5, into: int = 6, rank: int = 2) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, into, generator=g), torch.randn(out, rank, generator=g))


def product(w: LowRank) -> torch.Tensor:
    return (w.b.double() @ w.a.double()).float()


def result(one: LowRank, two: LowRank, **config: Any) -> torch.Tensor:
    return product(combine({"w": one}, {"w": two}, Config(**config))[0]["w"])


def extracted(w1: torch.Tensor, w2: torch.Tensor, alpha: float) -> torch.Tensor:
    """The published form, row by row: project on the bisector of the unit rows, subtract what is left."""
    c = w1 / w1.norm(dim=1, keepdim=True) + w2 / w2.norm(dim=1, keepdim=True)
    u = c / c.norm(dim=1, keepdim=True)
    return w1 - alpha * w2 + alpha * (w2 * u).sum(1, keepdim=True) * u


# --- the operation ---------------------------------------------------------------------------------------------------


def golden_adapter(tensors: dict[str, torch.Tensor], which: str) -> dict[str, LowRank]:
    names = [k.split("|")[1].removesuffix(".lora_A") for k in tensors if k.startswith(which) and k.endswith("lora_A")]
    return {n: LowRank(tensors[f"{which}|{n}.lora_A"], tensors[f"{which}|{n}.lora_B"]) for n in names}


@pytest.mark.parametrize(
    ("case", "operation", "alpha"),
    [
        ("llama_subtraction_a1.0", "subtract", 1.0),
        ("llama_ext-sub_a0.5", "ext_sub", 0.5),
        ("llama_ext-sub_a1.0", "ext_sub", 1.0),
    ],
)
def test_it_equals_the_released_code(case: str, operation: Any, alpha: float) -> None:
    tensors = load_file(GOLDEN / "ext_sub/operation.safetensors")
    expert, anti = golden_adapter(tensors, "expert"), golden_adapter(tensors, "anti")
    config = Config(operation=operation, alpha=alpha)
    combined, info = combine(expert, anti, config)
    assert len(combined) == 2
    assert info["zero_expert_rows"] == info["zero_anti_expert_rows"] == info["opposite_rows"] == 0
    for name, delta in combined.items():
        expected = tensors[f"{case}|{name}"]
        torch.testing.assert_close(delta.b @ delta.a, expected, atol=1e-6, rtol=0)
        whole = released_rows(expert[name], anti[name], config, "float32")
        torch.testing.assert_close(whole, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("arithmetic", ["float32", "adapter"])
@pytest.mark.parametrize(
    ("case", "operation", "alpha"),
    [
        ("llama_expert", "expert_only", 1.0),
        ("llama_subtraction_a1.0", "subtract", 1.0),
        ("llama_addition_a1.0", "add", 1.0),
        ("llama_ext-sub_a0.0", "ext_sub", 0.0),
        ("llama_ext-sub_a0.5", "ext_sub", 0.5),
        ("llama_ext-sub_a1.0", "ext_sub", 1.0),
    ],
)
def test_a_model_under_it_gives_the_released_logits(case: str, operation: str, alpha: float, arithmetic: str) -> None:
    """From the two adapter folders to the logits, as the released adapter gives them when PEFT merges it."""
    from transformers import AutoModelForCausalLM

    folder = GOLDEN / "ext_sub"
    expected = load_file(folder / "logits.safetensors")
    lm = LanguageModel(AutoModelForCausalLM.from_pretrained(folder / "tiny-llama"), tokenizer(), name="model_llama")
    paths = {"expert": str(folder / "expert"), "anti_expert": str(folder / "anti")}
    method = db.methods.create("ext_sub", operation=operation, alpha=alpha, arithmetic=arithmetic, **paths)
    with lm.applied(method.fit(lm, FitData())), torch.inference_mode():
        logits = lm.model(expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected[case], atol=1e-4, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000), st.floats(0, 4), st.integers(1, 5), st.integers(1, 5), st.integers(5, 9), st.integers(5, 9)
)
def test_the_closed_form_is_the_projection_form(seed: int, alpha: float, r1: int, r2: int, out: int, into: int) -> None:
    """For any shape and any two ranks; the result has rank r1 + r2."""
    one, two = low_rank(seed, out, into, r1), low_rank(seed + 1, out, into, r2)
    (w,) = combine({"w": one}, {"w": two}, Config(alpha=alpha))[0].values()
    assert w.a.shape[0] == r1 + r2
    expected = extracted(product(one), product(two), alpha)
    torch.testing.assert_close(product(w), expected, atol=1e-3, rtol=1e-3)


def test_columns_and_the_whole_matrix_can_share_a_direction_instead_of_rows() -> None:
    one, two = low_rank(0), low_rank(1)
    w1, w2 = product(one), product(two)
    columns = extracted(w1.T, w2.T, 0.7).T
    torch.testing.assert_close(result(one, two, alpha=0.7, projection="column"), columns, atol=1e-5, rtol=0)
    whole = extracted(w1.reshape(1, -1), w2.reshape(1, -1), 0.7).reshape(w1.shape)
    torch.testing.assert_close(result(one, two, alpha=0.7, projection="matrix"), whole, atol=1e-5, rtol=0)


def test_the_controls_say_what_ext_sub_is_made_of() -> None:
    """Ext-Sub at 2 alpha is subtraction at alpha plus the expert's amplification, which expert_scale shows alone."""
    one, two = low_rank(0), low_rank(1)
    w1, w2 = product(one), product(two)
    scale = result(one, two, operation="expert_scale", alpha=2.0)
    torch.testing.assert_close(scale, w1 * (1 + w2.norm(dim=1) / w1.norm(dim=1))[:, None], atol=1e-5, rtol=1e-5)
    subtract = result(one, two, operation="subtract", alpha=1.0)
    torch.testing.assert_close(result(one, two, alpha=2.0), subtract + scale - w1, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result(one, two, operation="add", alpha=0.5), w1 + 0.5 * w2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result(one, two, operation="negate", alpha=0.5), -0.5 * w2, atol=1e-5, rtol=1e-5)
    assert torch.equal(result(one, two, operation="expert_only", alpha=0.5), w1)


def test_alpha_zero_and_a_parallel_anti_expert_leave_the_expert() -> None:
    one = low_rank(0)
    for anti, alpha in ((low_rank(1, rank=3), 0.0), (LowRank(one.a, 3 * one.b), 1.0), (LowRank(one.a, 3 * one.b), 2.5)):
        torch.testing.assert_close(result(one, anti, alpha=alpha), product(one), atol=1e-5, rtol=0)


def test_the_extracted_share_is_measured() -> None:
    one = low_rank(0)

    def share(two: LowRank) -> float:
        return combine({"w": one}, {"w": two}, Config())[1]["extracted_norm_ratio"]

    two = low_rank(1)
    part = (product(one) - extracted(product(one), product(two), 1.0)).norm() / product(two).norm()
    assert share(two) == pytest.approx(float(part), abs=1e-6)
    assert share(one.scaled(2.0)) == pytest.approx(0, abs=1e-6)
    assert share(one.scaled(-2.0)) == pytest.approx(1)


@pytest.mark.parametrize("arithmetic", ["float32", "adapter"])
def test_zero_and_opposite_rows_have_a_result_and_are_counted(arithmetic: str) -> None:
    one, two = low_rank(0), low_rank(1)
    one.b[:2] = 0
    two.b[4] = 0
    two = two + LowRank(one.a, torch.zeros_like(one.b))
    two.b[3] = torch.cat([torch.zeros(2), -2 * one.b[3]])
    w1, w2 = product(one), product(two)

    def rows(**config: Any) -> torch.Tensor:
        if arithmetic == "adapter":
            return released_rows(one, two, Config(**config), "float32")
        return result(one, two, **config)

    found = rows(alpha=0.5)
    torch.testing.assert_close(found[:2], -0.5 * w2[:2])  # nothing of the expert's to share: all of it goes
    torch.testing.assert_close(found[2:3], extracted(w1[2:3], w2[2:3], 0.5))
    if arithmetic == "float32":  # in the released arithmetic the bisector of opposite rows is rounding noise
        torch.testing.assert_close(found[3], w1[3] - 0.5 * w2[3])
    torch.testing.assert_close(found[4], w1[4])
    torch.testing.assert_close(rows(alpha=0.5, zero_rows="keep_expert")[:2], torch.zeros(2, 6))
    assert torch.isfinite(rows(alpha=0.5)).all()
    _, info = combine({"w": one}, {"w": two}, Config())
    part = (w1 - result(one, two, alpha=1.0)).norm() / w2.norm()
    assert info["extracted_norm_ratio"] == pytest.approx(float(part), abs=1e-6)  # of a zero row, all is extracted
    assert (info["zero_expert_rows"], info["zero_anti_expert_rows"], info["opposite_rows"]) == (2, 1, 1)
    with pytest.raises(DetoxbenchError, match=r"2 zero rows in 'w': set method\.zero_rows"):
        combine({"w": one}, {"w": two}, Config(zero_rows="error"))


def test_adapters_of_different_parameters_are_refused() -> None:
    w = LowRank(torch.ones(1, 2), torch.ones(2, 1))
    with pytest.raises(DetoxbenchError, match="'b' is in one of them only"):
        combine({"a": w}, {"a": w, "b": w}, Config())


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="arithmetic=adapter is the released code: projection=row"):
        db.methods.create("ext_sub", arithmetic="adapter", projection="matrix")
    with pytest.raises(UsageError, match="batch_size=5 is no multiple of micro_batch_size=4"):
        db.methods.create("ext_sub", batch_size=5)


# --- with adapters that are there ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["q_proj", "v_proj"]),
        ("mistral", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]),
        ("gpt2", ["c_attn", "c_proj", "c_fc"]),
    ],
)
def test_two_adapters_combine_on_any_target(tmp_path: Path, family: str, targets: list[str]) -> None:
    """GQA and MLP shapes and Conv1D, which the released code cannot combine: weights equal the published form of each
    product, with each adapter's own scaling, and the written adapter is as good in PEFT."""
    lm = tiny(family)
    one = adapter_folder(lm, tmp_path / "one", r=4, lora_alpha=8, target_modules=targets, seed=1)
    two = adapter_folder(lm, tmp_path / "two", r=2, lora_alpha=16, target_modules=targets, seed=2)
    method = db.methods.create("ext_sub", expert=str(one), anti_expert=str(two), alpha=0.7)
    assert method.needs == frozenset()
    before = state(lm)
    intervention = method.fit(lm, FitData())
    assert same(before, state(lm))
    files = [load_file(folder / "adapter_model.safetensors") for folder in (one, two)]
    assert len(intervention.weights) == len(files[0]) // 2
    for weight in intervention.weights:
        key = f"base_model.model.{weight.parameter.removesuffix('.weight')}.lora_"
        w1, w2 = (s * f[f"{key}B.weight"] @ f[f"{key}A.weight"] for s, f in zip((2, 8), files, strict=True))
        assert isinstance(weight.delta, LowRank)
        assert weight.delta.a.shape[0] == 6
        torch.testing.assert_close(product(weight.delta), extracted(w1, w2, 0.7), atol=1e-4, rtol=1e-4)
    intervention.to_peft(tmp_path / "result", lm)
    with lm.applied(intervention):
        expected = logits(lm)
    torch.testing.assert_close(peft_logits(tiny(family), tmp_path / "result"), expected, atol=1e-4, rtol=0)


def test_subtraction_is_pefts_cat(tmp_path: Path) -> None:
    from peft import PeftModel

    lm, copy = tiny(), tiny()
    one = adapter_folder(lm, tmp_path / "one", r=4, lora_alpha=8, seed=1)
    two = adapter_folder(lm, tmp_path / "two", r=2, lora_alpha=16, seed=2)
    peft_model = PeftModel.from_pretrained(copy.model, str(one), adapter_name="one")
    peft_model.load_adapter(str(two), adapter_name="two")
    peft_model.add_weighted_adapter(["one", "two"], [1.0, -1.0], "cat", combination_type="cat")
    peft_model.set_adapter("cat")
    settings_ = {"expert": str(one), "anti_expert": str(two), "operation": "subtract"}
    with lm.applied(db.methods.create("ext_sub", **settings_).fit(lm, FitData())):
        torch.testing.assert_close(logits(lm), logits(copy), atol=1e-4, rtol=0)


def test_scaling_of_the_anti_expert_is_its_own_or_as_released_the_experts(tmp_path: Path) -> None:
    lm = tiny()
    one = adapter_folder(lm, tmp_path / "one", r=4, lora_alpha=8, seed=1)
    two = adapter_folder(lm, tmp_path / "two", r=4, lora_alpha=16, use_rslora=True, seed=2)  # 16 / sqrt(4) = 8

    def weight(**config: Any) -> torch.Tensor:
        found = db.methods.create("ext_sub", expert=str(one), anti_expert=str(two), **config).fit(lm, FitData())
        assert isinstance(found.weights[0].delta, LowRank)
        return product(found.weights[0].delta)

    expert = weight(operation="expert_only")
    own = weight(operation="subtract") - expert
    released = weight(operation="subtract", scaling="expert") - expert
    torch.testing.assert_close(own, 4 * released, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "targets"), [("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"])])
def test_bf16_adapters_are_computed_exactly_or_as_released(family: str, targets: list[str], tmp_path: Path) -> None:
    lm = tiny(family, dtype=torch.bfloat16)
    one = adapter_folder(lm, tmp_path / "one", target_modules=targets, seed=1, dtype=torch.bfloat16)
    two = adapter_folder(lm, tmp_path / "two", target_modules=targets, seed=2, dtype=torch.bfloat16)
    paths = {"expert": str(one), "anti_expert": str(two)}
    exact = db.methods.create("ext_sub", **paths).fit(lm, FitData())
    released = db.methods.create("ext_sub", **paths, arithmetic="adapter").fit(lm, FitData())
    with lm.applied(released):
        assert torch.isfinite(logits(lm)).all()
    for a, b in zip(exact.weights, released.weights, strict=True):
        assert isinstance(a.delta, LowRank)
        assert isinstance(b.delta, Dense)
        assert b.delta.delta.dtype == torch.bfloat16
        found = b.delta.delta.float().T if family == "gpt2" else b.delta.delta.float()
        error = (product(a.delta) - found).norm() / product(a.delta).norm()
        assert 1e-3 < float(error) < 1e-2  # the released code's own distance from float32 is 0.41 to 0.45 %


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("operation", ["ext_sub", "subtract", "add"])
def test_ia3_by_the_rule_and_by_the_released_formulas(tmp_path: Path, family: str, operation: str) -> None:
    """The factors of every adapted map, read off the changed weights."""
    lm, alpha = tiny(family), 0.7
    one = adapter_folder(lm, tmp_path / "one", kind="ia3", seed=1)
    two = adapter_folder(lm, tmp_path / "two", kind="ia3", seed=2)
    files = [load_file(folder / "adapter_model.safetensors") for folder in (one, two)]
    paths = {"expert": str(one), "anti_expert": str(two), "operation": operation, "alpha": alpha}
    for formulas in ("corrected", "released"):
        found = db.methods.create("ext_sub", **paths, ia3=formulas).fit(lm, FitData())
        deltas = {w.parameter: w.delta.delta for w in found.weights if isinstance(w.delta, Dense)}
        for key in files[0]:
            module = key.removeprefix("base_model.model.").removesuffix(".ia3_l")
            l1, l2 = (f[key].flatten() for f in files)
            d1, d2 = l1 - 1, l2 - 1
            p = (d2 + d2.norm() / d1.norm() * d1) / 2
            expected = {
                "corrected": {
                    "ext_sub": 1 + d1 - alpha * (d2 - p),
                    "subtract": 1 + d1 - alpha * d2,
                    "add": 1 + d1 + alpha * d2,
                },
                "released": {
                    "ext_sub": 1 + d1 - d2 + alpha * p,
                    "subtract": l1 + alpha * (2 - l2),
                    "add": l1 + l2,
                },
            }[formulas][operation]
            weight = lm.architecture.module(module).weight
            out_first = files[0][key].shape[0] != 1
            if lm.architecture.transposed(module):
                out_first = not out_first
            factors = expected[:, None] if out_first else expected
            torch.testing.assert_close(weight + deltas[f"{module}.weight"], weight * factors, atol=1e-5, rtol=1e-4)


def test_an_adapter_by_path_is_known_by_its_content(tmp_path: Path) -> None:
    lm = tiny()
    one = adapter_folder(lm, tmp_path / "one", seed=1)
    moved = adapter_folder(lm, tmp_path / "elsewhere", seed=1)
    other = adapter_folder(lm, tmp_path / "other", seed=2)

    def identity(path: Path) -> Any:
        return db.methods.create("ext_sub", expert=str(path)).fingerprints()

    assert identity(one) == identity(moved) != identity(other)
    assert db.methods.create("ext_sub").fingerprints() == {}
    assert db.methods.create("ext_sub", expert=str(one)).needs == {Role.TOXIC_INSTRUCTIONS}
    assert db.methods.create("ext_sub", operation="negate").needs == {Role.TOXIC_INSTRUCTIONS}
    assert db.methods.create("ext_sub", operation="expert_only").needs == {Role.CIVIL_INSTRUCTIONS}
    negate = db.methods.create("ext_sub", operation="negate", expert=str(one), anti_expert=str(other))
    assert set(negate.fingerprints()) == {"anti_expert"}
    only = negate.fit(lm, FitData()).weights
    assert len(only) == len(load_file(other / "adapter_model.safetensors")) // 2


def test_a_run_goes_from_two_adapters_to_a_table_and_notices_when_one_changes(tmp_path: Path) -> None:
    lm = db.LanguageModel.load("fable")
    paths = [adapter_folder(lm, tmp_path / str(i), seed=i, spread=0.01) for i in range(2)]
    given = [f"method.expert={paths[0]}", f"method.anti_expert={paths[1]}"]
    rest = ["suite=safeedit", "suite.limit=2", "with_base=false", f"runs_dir={tmp_path / 'runs'}"]
    run = db.run(["method=ext_sub", *given, *rest])
    assert run.record.cost["examples"] == 0
    assert db.run(["method=ext_sub", *given, *rest]).cached
    adapter_folder(lm, tmp_path / "1", seed=7, spread=0.01)
    assert db.run(["method=ext_sub", *given, *rest]).run_id != run.run_id


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "uses DoRA"),
        ({"lora_bias": True}, "uses lora_bias"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"init_lora_weights": "pissa"}, "initialised by pissa"),
        ({"peft_type": "VERA"}, "is of type VERA; LORA, IA3, PREFIX_TUNING can be read"),
        ({"r": 5}, "has rank 4 by 4 in .*; its configuration says 5"),
    ],
)
def test_an_adapter_that_is_more_than_two_factors_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """Before anything is computed: also when the other side would have to be trained first."""
    lm = tiny()
    folder = adapter_folder(lm, tmp_path / "one", seed=1)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    method = db.methods.create("ext_sub", anti_expert=str(folder))
    with pytest.raises(DetoxbenchError, match=said):
        method.fit(lm, FitData(civil_instructions=(Instruction("a", "b"),)))
    if "r" not in changes:
        with pytest.raises(DetoxbenchError, match=said):
            method.fingerprints()


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    lm = tiny()
    embedding = adapter_folder(lm, tmp_path / "e", target_modules=["embed_tokens"], seed=1)
    with pytest.raises(DetoxbenchError, match="no LORA matrix of a linear map"):
        db.methods.create("ext_sub", expert=str(embedding)).fingerprints()
    wide = adapter_folder(tiny(hidden_size=64), tmp_path / "w", seed=1)
    with pytest.raises(DetoxbenchError, match=r"does not fit 'model\.layers\.0\.self_attn\.q_proj' of 'tiny-llama'"):
        db.methods.create("ext_sub", expert=str(wide), anti_expert=str(wide)).fit(lm, FitData())
    gpt2 = adapter_folder(tiny("gpt2"), tmp_path / "g", target_modules=["c_attn"], seed=1)
    with pytest.raises(DetoxbenchError, match="has no module 'transformer"):
        db.methods.create("ext_sub", expert=str(gpt2), anti_expert=str(gpt2)).fit(lm, FitData())
    ia3 = adapter_folder(lm, tmp_path / "i", kind="ia3", seed=1)
    lora = adapter_folder(lm, tmp_path / "l", seed=1)
    with pytest.raises(DetoxbenchError, match=r"of two kinds \(Ia3 and Lora\)"):
        db.methods.create("ext_sub", expert=str(ia3), anti_expert=str(lora)).fit(lm, FitData())
    with pytest.raises(DetoxbenchError, match=r"no adapter folder '\./nowhere'"):
        db.methods.create("ext_sub", expert="./nowhere").fingerprints()


def test_another_base_model_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny()
    folder = adapter_folder(lm, tmp_path / "one", seed=1)
    method = db.methods.create("ext_sub", expert=str(folder), anti_expert=str(folder))
    with caplog.at_level(logging.WARNING, "detoxbench"):
        method.fit(lm, FitData())
    assert caplog.text == ""
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "huggyllama/llama-7b"}))
    with caplog.at_level(logging.WARNING, "detoxbench"):
        method.fit(lm, FitData())
    assert "the adapters name the base model huggyllama/llama-7b; this is tiny-llama" in caplog.text


# --- trained ---------------------------------------------------------------------------------------------------------


def test_the_lora_loop_learns_its_data() -> None:
    """The expert makes its own responses likelier; the anti-expert, subtracted, makes its own less likely."""
    lm = tiny()
    civil = tuple(Instruction("say it", "thank you", False) for _ in range(16))
    rude = tuple(Instruction("say it", "go away", False) for _ in range(16))
    recipe = {
        "batch_size": 4,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "epochs": 4,
        "target_modules": ("o_proj", "q_proj"),
    }
    method = db.methods.create("ext_sub", operation="subtract", **recipe)
    intervention = method.fit(lm, FitData(civil_instructions=civil, toxic_instructions=rude))

    def nll(text: str) -> float:
        (found,) = lm.continuation_nll(["say it"], [text])
        assert found is not None
        return found[0]

    before = nll(" thank you"), nll(" go away")
    with lm.applied(intervention):
        after = nll(" thank you"), nll(" go away")
    assert after[0] < before[0] - 1
    assert after[1] > before[1] + 1
    losses = intervention.info["expert_losses"]
    assert len(losses) == 16
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_every_experiment_composes() -> None:
    names = ["ablation/ext_sub_controls", "ablation/ext_sub_alpha", "paper/ext_sub_llama_7b"]
    found = {name: cells([f"experiment={name}"]) for name in names}
    operations = {spec.method.operation for _, spec in found["ablation/ext_sub_controls"]}
    assert operations >= {"ext_sub", "subtract", "expert_scale"}
    (paper,) = (spec.method for _, spec in found["paper/ext_sub_llama_7b"])
    assert paper == Config()  # the recipe is the method's default


def test_fidelity_is_a_name_for_switches_that_can_be_set_alone() -> None:
    reference = Config(fidelity="reference")
    assert (reference.scaling, reference.arithmetic, reference.ia3) == ("expert", "adapter", "released")
    assert digest(identity(reference)) == digest(
        identity(Config(scaling="expert", arithmetic="adapter", ia3="released"))
    )
    assert Config(fidelity="reference", arithmetic="float32").arithmetic == "float32"
    assert (Config().scaling, Config().arithmetic, Config().ia3) == ("own", "float32", "corrected")
