"""NaN, infinity and what overflows: refused by name where they arise, never stored, never scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import detoxbench as db
from detoxbench.errors import NonFiniteError, UsageError
from detoxbench.fable.build import locate
from detoxbench.fitting.activations import last_token_means
from detoxbench.fitting.row_optimiser import tune
from detoxbench.fitting.token_losses import sequence_nll
from detoxbench.fitting.training import LoraConfig, optimise_lora
from detoxbench.interventions import peft_io
from detoxbench.interventions.channels import Carried, Dense, Hook, LogitOp, LowRank, Prefix, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.model.finite import require_finite, require_finite_values
from detoxbench.model.logit_state import LogitFunction, LogitState
from detoxbench.runner import composition
from tests.support.adapters import adapter_folder
from tests.support.tiny import same, state, tiny, write

NAN, INF = math.nan, math.inf
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def saved(lm: LanguageModel, folder: Path) -> str:
    return str(write(lm, folder))


def spoil(file: Path, value: float, name: str | None = None) -> str:
    """Put `value` into the last number of one tensor of a file; its name."""
    tensors = load_file(file)
    name = name or sorted(tensors)[0]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, {"format": "pt"})
    return name


# ----------------------------------------------------------------------------------------------------- what is checked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_number_among_many_is_found(dtype: torch.dtype, value: float) -> None:
    good = torch.ones(100).to(dtype)
    bad = torch.ones(100).index_fill(0, torch.tensor([57]), value).to(dtype)
    require_finite([("a", good), ("whole", torch.arange(3)), ("none", torch.empty(0))], "x", "y")
    with pytest.raises(NonFiniteError, match=r"^x: 'b' holds (NaN|inf|-inf): mend it$"):
        require_finite([("a", good), ("b", bad), ("c", good)], "x", "mend it")


def test_what_overflows_when_squared_is_found_and_what_does_not_is_left_alone() -> None:
    with pytest.raises(NonFiniteError, match=r"holds -1e\+30, whose square overflows"):
        require_finite([("z", torch.tensor([1.0, -1e30]))], "x", "y")
    require_finite([("z", torch.tensor([1e18]))], "x", "y")


def test_nested_values_are_named_by_their_key() -> None:
    require_finite_values({"a": [1.0, {"b": None, "c": "nan", "d": True}]}, "x", "y")
    with pytest.raises(NonFiniteError, match=r"^x: 'a\.1\.b' is nan: y$"):
        require_finite_values({"a": [1.0, {"b": NAN}]}, "x", "y")


# --------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("value", [NAN, INF, 1e25])
def test_a_model_with_a_broken_weight_is_not_loaded(tmp_path: Path, value: float) -> None:
    path = saved(tiny(), tmp_path)
    name = spoil(tmp_path / "model.safetensors", value, f"{DOWN}.weight")
    with pytest.raises(NonFiniteError, match=rf"the model in .*: '{name}' holds (NaN|inf|1e\+25)"):
        LanguageModel.load(path)


def test_a_weight_that_its_dtype_cannot_hold_is_named(tmp_path: Path) -> None:
    path = saved(tiny(), tmp_path)
    spoil(tmp_path / "model.safetensors", 1e6, f"{DOWN}.weight")
    LanguageModel.load(path, dtype="bfloat16")
    with pytest.raises(NonFiniteError, match=r"read as float16: .*down_proj.* holds inf.* change the dtype"):
        LanguageModel.load(path, dtype="float16")


def test_a_model_in_memory_is_checked_with_its_buffers() -> None:
    lm = tiny()
    lm.model.register_buffer("mask", torch.tensor([0.0, -INF]))
    LanguageModel(lm.model, lm.tokenizer)
    lm.model.register_buffer("scale", torch.tensor([NAN]))
    with pytest.raises(NonFiniteError, match="model 'mine': 'scale' holds NaN"):
        LanguageModel(lm.model, lm.tokenizer, name="mine")


# -------------------------------------------------------------------------------------------------------- interventions


def channels(lm: LanguageModel) -> dict[str, Callable[[torch.Tensor], dict[str, Any]]]:
    """An intervention through each channel, as a function of a tensor of one number."""
    width = lm.architecture.hidden_size
    return {
        "dense": lambda t: {"weights": (Weight(f"{DOWN}.weight", Dense(t.expand(width, 48).clone())),)},
        "low rank": lambda t: {
            "weights": (Weight(f"{DOWN}.weight", LowRank(torch.ones(1, 48), t.expand(width, 1).clone())),)
        },
        "hook": lambda t: {"hooks": (Hook(DOWN, "post", "destein.additive", {"z": t.expand(width)}, {"alpha": 0.1}),)},
        "setting": lambda t: {
            "hooks": (Hook(DOWN, "post", "destein.additive", {"z": torch.ones(width)}, {"alpha": float(t)}),)
        },
        "logits": lambda t: {
            "logits": (
                LogitOp(
                    "dexperts.ensemble",
                    params={"alpha": 0.1, "filter_p": 1},
                    under={
                        "anti_expert": Carried(
                            (Weight(f"{DOWN}.weight", LowRank(torch.ones(1, 48), t.expand(width, 1).clone())),)
                        )
                    },
                ),
            )
        },
        "prefix": lambda t: {"prefixes": (Prefix(t.expand(3, 2, 2, 4, 8)),)},
    }


@pytest.mark.parametrize("channel", ["dense", "low rank", "hook", "setting", "logits", "prefix"])
@pytest.mark.parametrize("value", [NAN, -INF, 1e30])
def test_a_broken_intervention_is_neither_saved_nor_loaded_nor_applied(
    channel: str, value: float, tmp_path: Path
) -> None:
    lm = tiny()
    make = channels(lm)[channel]
    good, bad = (Intervention(method="m", base=lm.fingerprint, **make(torch.tensor([v]))) for v in (0.01, value))
    before = state(lm)
    with lm.applied(good):
        lm.generate(["hello"], max_new_tokens=2)
    for refused in (lambda: bad.save(tmp_path / "x"), lambda: lm.applied(bad).__enter__()):
        with pytest.raises(NonFiniteError, match=r"the intervention of 'm': '.+' (holds|is) "):
            refused()
    assert not (tmp_path / "x").exists()
    assert same(before, state(lm))
    assert (lm.in_force.methods, lm.in_force.logit_functions, lm.in_force.reserved) == ([], [], 0)
    if channel != "setting":
        good.save(tmp_path / "good")
        name = spoil(tmp_path / "good" / "tensors.safetensors", value)
        assert name
        with pytest.raises(NonFiniteError, match=r"the intervention of 'm' in '.*good': '.+' holds "):
            Intervention.load(tmp_path / "good")


def test_a_fit_that_records_nan_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"of 'ext_sub': 'norms\.1' is nan"):
        Intervention(method="ext_sub", base="b", info={"norms": [1.0, NAN]}).save(tmp_path / "x")


def test_a_change_that_the_dtype_cannot_hold_is_refused_and_undone() -> None:
    lm = tiny(dtype=torch.float16)
    before = state(lm)
    delta = Dense(torch.full((lm.architecture.hidden_size, 48), 1e5))
    change = Intervention(method="m", base=lm.fingerprint, weights=(Weight(f"{DOWN}.weight", delta),))
    with (
        pytest.raises(NonFiniteError, match=r"down_proj\.weight' holds inf: .* lower the strength"),
        lm.applied(change),
    ):
        pass
    assert same(before, state(lm))


def test_interventions_by_row_are_checked_too() -> None:
    lm = tiny()
    delta = Dense(torch.full((lm.architecture.hidden_size, 48), NAN))
    bad = Intervention(method="m", base=lm.fingerprint, weights=(Weight(f"{DOWN}.weight", delta),))
    with pytest.raises(NonFiniteError, match="the intervention of 'm'"), lm.routed({"0": bad, "1": bad}):
        pass


# ------------------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("operation", ["negate", "ext_sub", "expert_only"])
def test_one_nan_in_an_adapter_is_found_when_it_is_read(operation: str, tmp_path: Path) -> None:
    lm = tiny()
    for name in ("good", "bad"):
        adapter_folder(lm, tmp_path / name)
    tensor = spoil(tmp_path / "bad" / "adapter_model.safetensors", NAN)
    expert, anti = ("bad", "good") if operation == "expert_only" else ("good", "bad")
    method = db.methods.create(
        "ext_sub", operation=operation, expert=str(tmp_path / expert), anti_expert=str(tmp_path / anti)
    )
    with pytest.raises(NonFiniteError, match=rf"the adapter file .*bad.*: '{tensor}' holds NaN"):
        method.fit(lm, db.FitData())
    with pytest.raises(NonFiniteError, match="holds NaN"):
        peft_io.load(str(tmp_path / "bad"), lm)


# -------------------------------------------------------------------------------------------------------------- fitting


def test_a_training_stops_at_the_update_that_diverges() -> None:
    lm, calls = tiny(), [0]
    before = state(lm)

    def loss(model: Any, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        calls[0] += 1
        value = model(**batch).logits.float().square().mean()
        return value * (INF if calls[0] == 3 else 1.0), {}

    config = LoraConfig(rank=2, batch_size=1, micro_batch_size=1, epochs=5)
    with pytest.raises(NonFiniteError, match=r"'x' diverged: lower method\.learning_rate \(the .* of update 3 is"):
        optimise_lora(
            lm, lambda epoch: [0], config, collate=lambda rows: {"input_ids": torch.tensor([[3, 4, 5]])}, loss=loss,
            seed=0, description="x",
        )  # fmt: skip
    assert calls == [3]
    assert same(before, state(lm))


def test_an_edit_whose_last_update_is_not_finite_is_refused() -> None:
    lm = tiny()

    def losses() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = lm.model(input_ids=torch.tensor([[3, 4]]), use_cache=False).logits
        return (logits - logits.detach()).abs().sqrt().sum()[None], {}  # 0, with an infinite gradient

    with pytest.raises(NonFiniteError, match=r"after the last update of 'x': '.*down_proj\.weight' holds NaN"):
        tune(lm, [[f"{DOWN}.weight"]], [{}], losses, steps=1, learning_rate=0.1, description="x")


def broken_lm(value: float = NAN, **kwargs: Any) -> LanguageModel:
    """A model that breaks after it was read."""
    lm = tiny(**kwargs)
    with torch.no_grad():
        lm.model.get_parameter(f"{DOWN}.weight")[0, 0] = value
    return lm


def test_a_training_on_whole_texts_takes_no_nan_for_a_number() -> None:
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with pytest.raises(NonFiniteError, match="likelihoods of texts are NaN"):
        sequence_nll(broken_lm().model, batch)


def test_activations_that_are_not_finite_are_named() -> None:
    site = tiny().architecture.attention_out(2)
    with pytest.raises(NonFiniteError, match=rf"toxic activations of 'hello': '{site}' holds NaN"):
        last_token_means(broken_lm(), ["hello"], [site], 2, inputs=False, description="toxic activations")


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"do_sample": True, "top_p": 0.9}, {"top_k": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_that_are_not_finite_end_a_generation(settings: dict[str, Any], dtype: torch.dtype) -> None:
    lm = broken_lm(dtype=dtype)
    with pytest.raises(NonFiniteError, match=r"of 'tiny-llama' \(\w+\) under method 'none' are nan at token 1 of requ"):
        lm.generate(["hello", "you"], max_new_tokens=3, **settings)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_p": 0.9}])
@pytest.mark.parametrize(("value", "said"), [(NAN, "nan"), (INF, "inf"), (-INF, "-inf for every token")])
def test_a_row_that_breaks_later_is_named_by_request_and_step(
    settings: dict[str, Any], value: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, calls = tiny(), [0]

    def late(logits: torch.Tensor, _: LogitState) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 3:
            logits[0] = value
        return logits

    monkeypatch.setattr(lm.in_force, "logit_functions", [LogitFunction(late)])
    monkeypatch.setattr(lm.in_force, "methods", ["mine"])
    with pytest.raises(NonFiniteError, match=rf"under method 'mine' are {said} at token 3 of request '0'"):
        lm.generate(["hello"], max_new_tokens=5, tie_tolerance=0, **settings)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"do_sample": True, "top_p": 0.9, "temperature": 1e-6}])
def test_a_logit_function_may_forbid_tokens(settings: dict[str, Any]) -> None:
    lm = tiny()

    def only_a(logits: torch.Tensor, _: LogitState) -> torch.Tensor:
        return torch.where(torch.arange(logits.shape[1]) == 3, logits, -INF)

    lm.in_force.logit_functions.append(LogitFunction(only_a))
    assert lm.generate(["hello"], max_new_tokens=4, **settings)[0].text == "aaaa"
    assert lm.continuation_nll(["hello"], ["aa"])[0][0] == 0.0  # type: ignore[index]
    with pytest.raises(NonFiniteError, match="gives no probability to token 2 of the text 'ab'"):
        lm.continuation_nll(["hello"], ["ab"])


def test_likelihoods_that_are_not_finite_are_named() -> None:
    with pytest.raises(NonFiniteError, match="are nan at token 1 of the text 'you'"):
        broken_lm().continuation_nll(["hello", "h"], ["you", "me"])


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method.alpha=1e30", r"'method\.alpha' is out of range: 1e\+?30 must be <= 1e\+06"),
        ("method.alpha=inf", r"'method\.alpha' is out of range: inf"),
        ("method.alpha=nan", r"'method\.alpha' is nan: give a number"),
        ("gen.temperature=1e-300", r"'gen\.temperature' is out of range: 1e-300 must be >= 1e-06"),
    ],
)
def test_settings_that_overflow_are_refused_before_anything_is_loaded(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        composition.compose_run(["method=destein", override])


def test_a_broken_model_leaves_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in locate(0).iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (weights,) = folder.glob("*.safetensors")
    name = spoil(weights, NAN)
    settings = [
        "model=hf",
        f"model.path={folder}",
        "suite=safeedit",
        "suite.records=1",
        f"runs_dir={tmp_path / 'runs'}",
    ]
    with pytest.raises(NonFiniteError, match=name):
        db.run(settings)
    assert not list(tmp_path.glob("runs/*/run.json"))
