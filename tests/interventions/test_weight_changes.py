"""Changes of weights that take effect: small ones in lower precision, on every kind of module, or refused by name."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import detoxbench as db
from detoxbench.data.examples import Instruction
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.fitting import training
from detoxbench.fitting.training import LoraConfig, train_lora
from detoxbench.interventions.channels import Dense, Hook, LowRank, Prompt, Weight, weights
from detoxbench.interventions.intervention import Intervention, compose
from detoxbench.lm import LanguageModel
from detoxbench.model.model import find, low_rank_form
from detoxbench.runner.cell import RunCell, prepare
from detoxbench.runner.composition import compose_run
from tests.support import stored
from tests.support.adapters import adapter_folder, logits, peft_logits
from tests.support.quantised import quantised
from tests.support.tiny import same, state, tiny

BF16, FP16 = torch.bfloat16, torch.float16
EXAMPLES = [Instruction("hello", "good day to you"), Instruction("why", "because it is")]
ONE_UPDATE: dict[str, Any] = {"epochs": 1, "batch_size": 2, "micro_batch_size": 1, "rank": 2, "warmup_ratio": 0}


def factors(lm: LanguageModel, path: str, size: float, seed: int = 0, rank: int = 4) -> LowRank:
    """A random low-rank change whose entries have the standard deviation `size`."""
    shape = tuple(lm.architecture.module(path).weight.shape)
    out, into = shape[::-1] if lm.architecture.transposed(path) else shape
    g = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, into, generator=g) * size / rank**0.5, torch.randn(out, rank, generator=g))


def on(lm: LanguageModel, *weights: Weight, **channels: Any) -> Intervention:
    return Intervention(method="t", base=lm.fingerprint, weights=weights, **channels)


def down(lm: LanguageModel, layer: int = 0) -> str:
    return lm.architecture.mlp_down(layer)


# ------------------------------------------------------------------------------------------ small changes in bf16, fp16


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_a_small_low_rank_change_is_computed_as_peft_does(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lm = tiny(family, dtype=dtype)
    paths = [down(lm), lm.architecture.attention_out(1), down(lm)]  # one of them twice
    change = on(lm, *(Weight(f"{p}.weight", factors(lm, p, 1e-3, seed=i)) for i, p in enumerate(paths)))
    change.to_peft(tmp_path / "lora", lm)
    before, plain = state(lm), logits(lm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lm.applied(change):
            assert same(before, state(lm))  # no weight is written to
            changed = logits(lm)
    assert torch.equal(logits(lm), plain)
    assert not any("forward" in vars(m) for m in lm.model.modules())
    assert not torch.equal(changed, plain)
    assert torch.equal(changed, peft_logits(lm, tmp_path / "lora"))


def test_merged_into_bf16_most_of_a_small_change_is_lost_and_that_is_recorded_and_warned_of() -> None:
    lm = tiny(dtype=BF16, hidden_size=64, intermediate_size=96)
    with torch.no_grad():
        lm.architecture.module(down(lm)).weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    change = (Weight(f"{down(lm)}.weight", factors(lm, down(lm), 1e-5, rank=16)),)
    beside = weights.record(lm, change)
    lm.low_rank = "merged"
    merged = weights.record(lm, change)
    assert beside is not None
    assert merged is not None
    assert (beside.form, merged.form) == ("side path", "merged")
    assert beside.surviving_share == merged.surviving_share == pytest.approx(0.28, abs=0.06)
    assert (beside.merged_parameters, merged.merged_parameters) == (0, 64 * 96)
    assert (beside.side_path_parameters, merged.side_path_parameters) == (16 * (64 + 96), 0)
    before = state(lm)
    with (
        pytest.warns(UserWarning, match=r"only (2|3)\d\.\d% .* bfloat16 .* low_rank=side_path"),
        lm.applied(on(lm, *change)),
    ):
        moved = (state(lm)[change[0].parameter] != before[change[0].parameter]).float().mean()
    assert 0.05 < moved < 0.2
    assert same(before, state(lm))


def test_the_surviving_share_is_one_for_what_is_exact_and_zero_for_what_is_lost() -> None:
    lm = tiny(dtype=BF16)
    name = f"{down(lm)}.weight"
    parameter = lm.model.get_parameter(name)
    with torch.no_grad():
        parameter.fill_(1.0)

    def share(of: float) -> float | None:
        found = weights.record(lm, [Weight(name, Dense(torch.full(parameter.shape, of)))])
        assert found is not None
        return found.surviving_share

    assert share(2**-7) == 1.0  # a unit in the last place
    assert share(2**-9) == 0.0
    assert share(1.5 * 2**-8) == pytest.approx(2**-7 / (1.5 * 2**-8))  # rounded up
    assert share(0.0) is None  # nothing to survive: not measured
    assert weights.record(lm, []) is None
    full = tiny()
    exact = weights.record(full, [Weight(name, factors(full, down(full), 1e-3))])
    assert exact is not None
    assert exact.form == "merged"
    assert exact.surviving_share == pytest.approx(1, abs=1e-4)


def test_a_dense_change_a_low_rank_one_and_a_bias_of_one_layer_act_together() -> None:
    lm = tiny(dtype=BF16)
    path, x = down(lm), torch.randn(3, 48, generator=torch.Generator().manual_seed(1)).to(BF16)
    module = lm.architecture.module(path)
    low, dense, bias = factors(lm, path, 1e-4), torch.full((32, 48), 0.25), torch.full((32,), 0.5)
    whole = on(
        lm, Weight(f"{path}.weight", low), Weight(f"{path}.weight", Dense(dense)), Weight(f"{path}.bias", Dense(bias))
    )
    before = state(lm)
    weight = (module.weight.float() + dense).to(BF16)
    expected = linear(x, weight, bias.to(BF16)).float() + x.float() @ low.a.T @ low.b.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with lm.applied(whole):
            assert torch.equal(module(x), expected.to(BF16))
            torch.testing.assert_close(lm.weight(path), weight.float() + low.b @ low.a)
            torch.testing.assert_close(lm.weight(path, slice(1, None, 5)), (weight.float() + low.b @ low.a)[:, 1::5])
        assert weights.record(lm, whole.weights).form == "merged and side path"  # type: ignore[union-attr]
    assert same(before, state(lm))
    assert module.bias is None


def test_hooks_see_what_a_side_path_adds_whichever_is_put_on_first() -> None:
    lm = tiny(dtype=BF16)
    path = lm.architecture.attention_out(0)
    low = on(lm, Weight(f"{path}.weight", factors(lm, path, 0.05)))
    hook = on(lm, hooks=(Hook(path, "post", "destein.sphere", {"z": torch.ones(32)}, {"alpha": 0.5}),))
    found = []
    for first, second in ((low, hook), (hook, low)):
        with lm.applied(first), lm.applied(second):
            found.append(logits(lm))
    with lm.applied(compose(hook, low)):
        found.append(logits(lm))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


class _Bypassed(nn.Module):
    """Takes the weight of its child and multiplies by itself."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.down_proj = child

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.down_proj.weight)  # type: ignore[arg-type]


class _Normed(nn.Linear):
    """Multiplies by more than its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight / self.weight.norm())


@pytest.mark.parametrize("kind", ["bypassed", "own forward", "embedding", "norm"])
def test_where_a_side_path_would_do_nothing_the_change_is_merged(kind: str) -> None:
    lm = tiny(dtype=BF16)
    layers: Any = lm.model.model.layers
    name, shape = "model.layers.#.mlp.down_proj.weight", (32, 48)
    if kind == "bypassed":
        name = "model.layers.#.mlp.inner.down_proj.weight"
        for layer in layers:
            layer.mlp.inner = _Bypassed(layer.mlp.down_proj)
            layer.mlp.down_proj = nn.Identity()
            layer.mlp.forward = lambda x, mlp=layer.mlp: mlp.inner(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
    elif kind == "own forward":
        for layer in layers:
            layer.mlp.down_proj.__class__ = _Normed
    elif kind == "embedding":
        name, shape = "model.embed_tokens.weight", tuple(lm.model.model.embed_tokens.weight.shape)
    else:
        name, shape = "model.norm.weight", (32,)
    name = name.replace("#", "1")
    g = torch.Generator().manual_seed(0)
    low = LowRank(torch.randn(2, shape[-1], generator=g), torch.randn(shape[0], 2, generator=g))
    delta: Dense | LowRank = Dense(torch.randn(shape, generator=g)) if kind == "norm" else low
    before, plain = state(lm), logits(lm)
    with lm.applied(on(lm, Weight(name, delta))):
        expected = before[name].float() + (delta.delta if isinstance(delta, Dense) else delta.b @ delta.a)
        assert torch.equal(lm.model.get_parameter(name), expected.to(BF16))
        assert not torch.equal(logits(lm), plain)
    assert same(before, state(lm))


def test_a_parameter_keeps_its_own_type_where_types_are_mixed() -> None:
    """A float32 layer in a bf16 model: routed and merged changes are rounded to float32 and no further."""
    from detoxbench.interventions.per_row import per_row_weights

    lm = tiny(dtype=BF16)
    path = down(lm, 1)
    module = lm.architecture.module(path).float()
    x, value = torch.randn(2, 3, 48), torch.randn(32, 48)
    with per_row_weights(lm, [{f"{path}.weight": value, f"{path}.bias": torch.ones(32)}]) as set_rows, torch.no_grad():
        set_rows([0, 0])
        assert module._parameters["bias"] is None
        torch.testing.assert_close(module(x), linear(x, value) + 1, atol=1e-6, rtol=0)
    change = Weight(f"{path}.bias", Dense(torch.full((32,), 1 + 2**-12)))
    with lm.applied(on(lm, change)):
        assert module.bias is not None
        assert torch.equal(module.bias, change.delta.delta)  # type: ignore[union-attr]


def test_float64_weights_keep_their_precision() -> None:
    lm = tiny(dtype=torch.float64)
    name = f"{down(lm)}.weight"
    before = state(lm)
    with lm.applied(on(lm, Weight(name, Dense(torch.full((32, 48), 2.0**-40))))):
        assert torch.equal(lm.model.get_parameter(name), before[name] + 2.0**-40)


# ------------------------------------------------------------------------------------------------------ taken off again


def test_blocks_left_out_of_order_are_refused_and_the_model_is_as_it_was_when_all_are_left() -> None:
    lm = tiny()
    before = state(lm)
    path = f"{down(lm)}.weight"
    one, two = (on(lm, Weight(path, factors(lm, down(lm), 0.1, seed=i)), prompts=(Prompt(str(i)),)) for i in (1, 2))
    for first, second in ((one, two), (two, one)):
        outer, inner = lm.applied(first), lm.applied(second)
        outer.__enter__()
        inner.__enter__()
        inside = state(lm)
        with pytest.raises(DetoxbenchError, match=r"'t' cannot come off before 't', .*in reverse order"):
            outer.__exit__(None, None, None)
        assert same(inside, state(lm))  # both are on still
        inner.__exit__(None, None, None)
        assert same(before, state(lm))  # and now neither is
        assert lm.in_force.prompts == []
        outer.__exit__(None, None, None)
        assert same(before, state(lm))
    with lm.applied(one):  # nothing keeps another from being put on
        pass
    assert same(before, state(lm))


def test_generators_that_are_closed_in_the_wrong_order_leave_nothing_behind() -> None:
    lm = tiny()
    before = state(lm)

    def held(seed: int, form: str) -> Any:
        change = on(lm, Weight(f"{down(lm)}.weight", factors(lm, down(lm), 0.1, seed=seed)))
        with lm.applied(change) if form == "applied" else lm.routed({"a": change}):
            yield

    for form in ("applied", "routed"):
        one, two = held(1, "applied"), held(2, form)
        next(one)
        next(two)
        with pytest.raises(DetoxbenchError, match="reverse order"):
            one.close()
        two.close()
        assert same(before, state(lm))
        assert lm.in_force.route is None
        assert not any("forward" in vars(m) for m in lm.model.modules())


def test_two_wrappers_of_one_model_share_one_order_and_a_block_is_entered_once() -> None:
    lm = tiny()
    other = LanguageModel(lm.model, lm.tokenizer)
    before = state(lm)
    change = on(lm, Weight(f"{down(lm)}.weight", factors(lm, down(lm), 0.1)))
    outer, inner = lm.applied(change), other.applied(change)
    with inner:
        pass
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(DetoxbenchError, match="entered already"):
        outer.__enter__()
    with pytest.raises(DetoxbenchError, match="reverse order"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert same(before, state(lm))


# ------------------------------------------------------------------------------------------- what cannot take a change


def _compiled(how: str) -> LanguageModel:
    lm = tiny()
    if how == "the whole model":
        return LanguageModel(torch.compile(lm.model), lm.tokenizer)  # type: ignore[arg-type]
    if how == "a layer":
        lm.model.model.layers[1] = torch.compile(lm.model.model.layers[1])
    elif how == "in place":
        lm.model.compile()
    elif how == "a layer in place":
        lm.model.model.layers[1].mlp.compile()
    elif how == "forward":
        lm.model.forward = torch.compile(lm.model.forward)
    else:
        lm.model.model.layers[1].mlp.act_fn = torch.jit.trace(nn.SiLU(), torch.ones(2))
    return lm


@pytest.mark.parametrize(
    "how", ["the whole model", "a layer", "in place", "a layer in place", "forward", "TorchScript"]
)
def test_a_compiled_model_is_refused_by_name(how: str) -> None:
    lm = _compiled(how)
    said = r"is compiled \(torch\.(compile|jit)\), .* before compiling"
    path = "model.layers.0.mlp.down_proj"
    hook = on(lm, hooks=(Hook(path, "post", "destein.additive", {"z": torch.ones(32)}, {"alpha": 1.0}),))
    weight = on(lm, Weight(f"{path}.weight", Dense(torch.ones(32, 48))))
    for change in (hook, weight):
        with pytest.raises(DetoxbenchError, match=said) as caught, lm.applied(change):
            pass
        assert "\n" not in str(caught.value)
    with pytest.raises(DetoxbenchError, match=said), lm.routed({"a": weight}):
        pass
    with pytest.raises(DetoxbenchError, match=said):
        train_lora(lm, EXAMPLES, LoraConfig(**ONE_UPDATE), seed=0, description="x")
    with lm.applied(on(lm, prompts=(Prompt("be nice"),), logits=())):  # the graph has no part in it
        pass


@pytest.mark.parametrize("kind", ["int8", "uint8", "float8_e4m3fn", "float8_e5m2", "packed"])
def test_a_change_of_a_quantised_weight_is_refused_and_a_side_path_or_hook_beside_it_works(kind: str) -> None:
    lm = quantised(kind)
    path = down(lm)
    low, said = Weight(f"{path}.weight", factors(lm, path, 0.05)), rf"'{path}\.weight' of .* is quantised or packed"
    dense = on(lm, Weight(f"{path}.weight", Dense(torch.ones(32, 48))))
    with pytest.raises(DetoxbenchError, match=said), lm.applied(dense):
        pass
    with pytest.raises(DetoxbenchError, match=said), lm.routed({"a": dense}):
        pass
    plain = logits(lm)
    with lm.applied(on(lm, low)):
        assert not torch.equal(logits(lm), plain)
    with lm.applied(on(lm, hooks=(Hook(path, "post", "destein.additive", {"z": torch.ones(32)}, {"alpha": 1.0}),))):
        assert not torch.equal(logits(lm), plain)
    assert torch.equal(logits(lm), plain)
    found = weights.record(lm, [low])
    assert found is not None
    assert (found.form, found.surviving_share) == ("side path", None)
    lm.low_rank = "merged"
    with pytest.raises(DetoxbenchError, match=f"{said}.*low_rank=side_path"), lm.applied(on(lm, low)):
        pass


def test_a_weight_that_is_not_in_memory_is_refused() -> None:
    lm = tiny()
    fingerprint, module = lm.fingerprint, lm.architecture.module(down(lm))
    module.weight = nn.Parameter(module.weight.to("meta"), requires_grad=False)
    change = Intervention(
        method="t", base=fingerprint, weights=(Weight(f"{down(lm)}.weight", Dense(torch.ones(32, 48))),)
    )
    with pytest.raises(DetoxbenchError, match="not in memory"), lm.applied(change):
        pass


# ---------------------------------------------------------------------------------------------------- training a LoRA


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_lora_that_was_trained_in_bf16_is_what_is_measured(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny(family, dtype=BF16)
    seen: list[torch.Tensor] = []
    extract = training._extract

    def spy(peft_model: Any, scaling: float) -> Any:
        peft_model.eval()
        with torch.no_grad():
            seen.append(peft_model(torch.tensor([lm.encode("hello there, you.")])).logits)
        assert {p.dtype for n, p in peft_model.named_parameters() if "lora_" in n} == {torch.float32}
        return extract(peft_model, scaling)

    monkeypatch.setattr(training, "_extract", spy)
    config = LoraConfig(
        **ONE_UPDATE | {"epochs": 3}, learning_rate=1e-2, target_modules=("all-linear",), lora_alpha=4.0
    )
    trained = train_lora(lm, EXAMPLES, config, seed=0, description="x")
    plain = logits(lm)
    with lm.applied(on(lm, *(Weight(name, delta) for name, delta in trained.deltas.items()))):
        measured = logits(lm)
    assert not torch.equal(measured, plain)
    # The scaling stands in a factor here and behind the product there: a unit in the last place of few logits.
    torch.testing.assert_close(measured, seen[0], rtol=2**-7, atol=2**-6)
    assert (measured == seen[0]).float().mean() > 0.9


def test_peft_failing_half_way_leaves_the_model_as_it_was_and_says_why() -> None:
    lm = tiny()
    attention = lm.model.model.layers[2].self_attn
    attention.v_proj = nn.Sequential(attention.v_proj)  # PEFT wraps five layers before it comes to this one
    modules, before = dict(lm.model.named_modules()), state(lm)
    with pytest.raises(DetoxbenchError, match=r"cannot put a LoRA on 'tiny-llama': Target module Sequential") as caught:
        train_lora(lm, EXAMPLES, LoraConfig(**ONE_UPDATE), seed=0, description="x")
    assert "\n" not in str(caught.value)
    after = dict(lm.model.named_modules())
    assert after.keys() == modules.keys()
    assert all(after[name] is module for name, module in modules.items())
    assert same(before, state(lm))
    assert all(p.requires_grad for p in lm.model.parameters())
    assert not [name for name in vars(lm.model) if "peft" in name]


def test_a_lora_says_which_layers_and_experts_it_does_not_reach(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from detoxbench.authoring.tiny_models import COMMON, FAMILIES, tokenizer

    config = AutoConfig.for_model(
        "mixtral", **COMMON, **FAMILIES["llama"], num_local_experts=4, num_experts_per_tok=2
    )  # fmt: skip
    lm = LanguageModel(AutoModelForCausalLM.from_config(config), tokenizer(), name="mixture")
    lm.model.vision_tower = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with caplog.at_level(logging.WARNING, "detoxbench"):
        trained = train_lora(
            lm, EXAMPLES, LoraConfig(**ONE_UPDATE, target_modules=("all-linear",)), seed=0, description="x"
        )
    text = " ".join(caplog.messages)
    assert "2 of the 14 linear layers that get a LoRA are not called when 'mixture' reads text" in text
    assert "vision_tower.#" in text
    assert "a LoRA on all-linear reaches 12 linear layers of 'mixture', 14 %" in text
    assert "model.layers.#.mlp.experts.gate_up_proj" in text
    assert len(trained.deltas) == 14
    caplog.clear()
    plain = tiny()
    train_lora(plain, EXAMPLES, LoraConfig(**ONE_UPDATE, target_modules=("all-linear",)), seed=0, description="x")
    assert not caplog.messages
    change = on(lm, Weight("model.layers.0.mlp.experts.down_proj", LowRank(torch.ones(1, 48), torch.ones(32, 1))))
    with pytest.raises(DetoxbenchError, match=r"experts\.down_proj' is \(32, 48\), the parameter is \(4, 32, 48\)"):
        lm.applied(change).__enter__()


# ----------------------------------------------------------------------------------------------------- runs and tables


def test_what_a_form_stands_for() -> None:
    asked = {(a, d): low_rank_form(a, d) for a in ("auto", "merged") for d in ("float32", "bfloat16")}
    assert asked == {
        ("auto", "float32"): "merged",
        ("auto", "bfloat16"): "side_path",
        ("merged", "float32"): "merged",
        ("merged", "bfloat16"): "merged",
    }
    assert low_rank_form("side_path", "float32") == "side_path"
    assert (tiny().low_rank, tiny(dtype=FP16).low_rank) == ("merged", "side_path")


def test_the_form_is_part_of_the_methods_identity_and_not_of_the_base_models() -> None:
    def cell(*settings: str) -> RunCell:
        return prepare(
            compose_run(["model.dtype=bfloat16", "suite=utility", "suite.limit=1", *settings]), find("fable")
        )

    side, asked, merged = (
        cell("method=ext_sub", f"low_rank={form}") for form in ("auto", "side_path", "merged")
    )  # fmt: skip
    assert side.folder == asked.folder != merged.folder  # what it comes to counts, not how it was asked for
    assert (side.identity["method"]["low_rank"], merged.identity["method"]["low_rank"]) == ("side_path", "merged")
    assert cell("method=none").folder == cell("method=none", "low_rank=merged").folder  # one base run serves both
    others = [{k: v for k, v in c.identity.items() if k != "method"} for c in (side, merged)]
    assert others[0] == others[1]  # so both stand in one table


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'low_rank'.*auto, merged, side_path"):
        compose_run(["low_rank=both"])


def test_a_run_in_bf16_records_the_form_and_the_share_and_the_table_says_them(tmp_path: Path) -> None:
    adapter = adapter_folder(db.LanguageModel.load("fable", dtype="bfloat16"), tmp_path / "a", seed=1, spread=0.001)
    given = ["method=ext_sub", "method.operation=expert_only", f"method.expert={adapter}", "model.dtype=bfloat16"]
    rest = ["suite=safeedit", "suite.limit=1", "gen.max_new_tokens=1", f"runs_dir={tmp_path / 'runs'}"]
    side = db.run([*given, *rest])
    with pytest.warns(UserWarning, match="survives being merged into its bfloat16 weights"):
        merged = db.run([*given, *rest, "low_rank=merged"])
    assert side.run_id != merged.run_id
    assert side.base is not None
    assert merged.base is not None
    assert side.base.run_id == merged.base.run_id
    found, other = (r.record.diagnostics["weight_changes"] for r in (side, merged))
    assert (found["form"], other["form"]) == ("side path", "merged")
    assert found["surviving_share"] == other["surviving_share"]
    assert 0 < found["surviving_share"] < 0.9
    assert side.record.cost["changed_parameters"] == 0 == merged.record.cost["added_parameters"]
    assert side.record.cost["added_parameters"] == side.record.cost["artifact_bytes"] / 4  # type: ignore[operator]
    (table,) = db.leaderboard(tmp_path / "runs").tables
    assert [row.label for row in table.rows] == ["none", "ext_sub low_rank=merged", "ext_sub low_rank=side_path"]
    (note,) = [note for note in table.notes if note.startswith("changes of weights")]
    assert "ext_sub low_rank=side_path: side path (exact; merged, " in note
    assert "of it survives rounding, so less than was fitted is measured" in note


def test_a_table_says_nothing_of_weights_where_nothing_is_lost_and_reads_counts_of_many_fits(tmp_path: Path) -> None:
    measures = [stored.toxicity(dict.fromkeys(stored.CLUSTERS, 0.5))]
    exact = {"weight_changes": {"form": "merged", "surviving_share": 1.0}}
    stored.write(tmp_path, measures, "a", diagnostics=exact)
    stored.write(
        tmp_path, measures, "b", diagnostics={"weight_changes": {"form": {"merged": 7}, "surviving_share": 0.5}}
    )
    stored.write(tmp_path, measures, "c", diagnostics={"weight_changes": None})
    (table,) = db.leaderboard(tmp_path).tables
    (note,) = [note for note in table.notes if note.startswith("changes of weights")]
    assert note == ("changes of weights: b: merged (50 % of it survives rounding, so less than was fitted is measured)")
