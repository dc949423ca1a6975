"""What vLLM is asked to carry, refusals before anything is loaded, and what of an engine is part of a run. No vLLM is
needed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from detoxbench.config import EngineSpec, GenSpec
from detoxbench.engine.generation import generate
from detoxbench.engine.sampling import noise_key
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.interventions.channels import Dense, Hook, LogitOp, LowRank, Prefix, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.model import precision
from detoxbench.records import Request
from detoxbench.runner import stages
from detoxbench.runner.cell import RunCell, checkpoint_folder, prepare
from detoxbench.runner.composition import compose_run
from detoxbench.vllm_engine import carried
from detoxbench.vllm_engine.choosing import Choices
from tests.support.tiny import tiny

VLLM = EngineSpec(name="vllm")


@pytest.fixture(autouse=True)
def _takes_loras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "takes_loras", lambda lm: True)


def prepared(*overrides: str) -> RunCell:
    spec = compose_run(["method=destein", *overrides])
    return prepare(spec, checkpoint_folder(spec, download=False))


def intervention(lm: LanguageModel, **parts: Any) -> Intervention:
    return Intervention(method="ours", base=lm.fingerprint, **parts)


def low_rank(lm: LanguageModel, rank: int = 4) -> Weight:
    path = lm.architecture.attention_out(0)
    out, into = lm.architecture.module(path).weight.shape
    return Weight(f"{path}.weight", LowRank(torch.ones(rank, into), torch.ones(out, rank)))


# ---------------------------------------------------------------------------------------------------- part of a run


def test_the_default_engine_is_no_part_of_a_run_and_another_is_of_what_it_generates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carried, "find_spec", lambda name: object())
    default, named, other = prepared(), prepared("engine=transformers"), prepared("engine=vllm")
    assert default.keys == named.keys
    assert "engine" not in default.identity
    assert other.identity["engine"] == {"name": "vllm"}
    assert other.keys.fit == default.keys.fit
    assert other.keys.generation != default.keys.generation
    assert other.keys.run != default.keys.run
    settings = (
        "engine.gpu_memory_utilization=0.9",
        "engine.max_loras=2",
        "engine.max_lora_rank=16",
        "engine.max_model_len=99",
    )
    assert prepared("engine=vllm", *settings).keys == other.keys


def test_an_engine_that_is_not_installed_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'detoxbench\[vllm\]'"):
        prepared("engine=vllm")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("suite=mechanism", "looks inside the model, which engine=vllm does not show: choose engine=transformers"),
        ("model.device=cuda:1", "set CUDA_VISIBLE_DEVICES"),
        ("model.quantization=int8", "holds weights in model.dtype, and model.quantization=int8"),
        ("engine.max_lora_rank=9", "max_lora_rank is one of 8, 16"),
        ("engine.gpu_memory_utilization=0", "a share, above 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    override: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carried, "find_spec", lambda name: object())
    monkeypatch.setattr("detoxbench.runner.cell.require_bitsandbytes", lambda *_: None)
    with pytest.raises(UsageError, match=message):
        prepared("engine=vllm", override)


def test_it_works_in_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(carried, "find_spec", lambda name: object())
    monkeypatch.setattr(stages, "several", lambda: True)
    with pytest.raises(UsageError, match="engine=vllm works in one process, and several share this run"):
        stages.run(compose_run(["engine=vllm", f"runs_dir={tmp_path / 'runs'}"]))
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- carried


def test_low_rank_changes_are_loras_up_to_a_rank_and_others_are_merged() -> None:
    lm = tiny("llama")
    small, large = (carried.parts(lm, intervention(lm, weights=(low_rank(lm, r),)), VLLM) for r in (64, 65))
    assert (len(small.loras), len(small.merged)) == (1, 0)
    assert (len(large.loras), len(large.merged)) == (0, 1)
    twice = intervention(lm, weights=(low_rank(lm, 40), low_rank(lm, 40)))
    assert len(carried.parts(lm, twice, VLLM).merged) == 2, "ranks of one map add up"
    norm = Weight("model.layers.0.input_layernorm.weight", Dense(torch.ones(32)))
    assert len(carried.parts(lm, intervention(lm, weights=(low_rank(lm), norm)), VLLM).merged) == 2


def test_biases_behind_attention_and_mlp_are_added_there() -> None:
    lm = tiny("llama")
    biases = tuple(
        Weight(f"{site}.bias", Dense(torch.ones(32)))
        for site in (lm.architecture.attention_out(0), lm.architecture.mlp_down(2))
    )
    found = carried.parts(lm, intervention(lm, weights=(*biases, low_rank(lm))), VLLM)
    assert found.biases == biases
    assert len(found.loras) == 1


def test_a_merge_that_would_round_is_refused_in_lower_precision() -> None:
    lm = tiny("llama", dtype=torch.bfloat16)
    assert carried.parts(lm, intervention(lm, weights=(low_rank(lm),)), VLLM).loras
    with pytest.raises(DetoxbenchError, match=r"\(rank 65\).*bfloat16 rounds it.*low_rank=merged, or choose engine"):
        carried.parts(lm, intervention(lm, weights=(low_rank(lm, 65),)), VLLM)
    lm.low_rank = "merged"
    assert carried.parts(lm, intervention(lm, weights=(low_rank(lm),)), VLLM).merged


def refused() -> dict[str, tuple[dict[str, Any], str]]:
    vector = {"z": torch.ones(32)}
    nothing = intervention(tiny("llama")).carried()
    q = "model.layers.0.self_attn.q_proj"
    return {
        "a fused map": (
            {"hooks": (Hook(q, "post", "destein.additive", vector),)},
            rf"a hook on '{q}' \(post, positions=all\).*choose engine=transformers",
        ),
        "texts before the head": (
            {"hooks": (Hook("lm_head", "pre", "destein.additive", vector, {}, "generated"),)},
            r"a hook on 'lm_head' \(pre, positions=generated\)",
        ),
        "a comparing hook": (
            {"hooks": (Hook("model.layers.0", "pre", "destein.additive", vector, {}, "predicting", {"bad": nothing}),)},
            "compares each row with rows under 'bad'",
        ),
        "another model": ({"logits": (LogitOp("dexperts.join", under={"expert": nothing}),)}, "under 'expert'"),
        "a hidden state": ({"logits": (LogitOp("sasa.weigh", asks=("after",)),)}, "looks at 'after'"),
        "a prefix": ({"prefixes": (Prefix(torch.ones(3, 2, 2, 1, 8)),)}, "a prefix, which engine=vllm does not carry"),
    }


@pytest.mark.parametrize("what", list(refused()))
def test_what_cannot_be_carried_is_refused_by_name(what: str) -> None:
    lm, (given, message) = tiny("llama"), refused()[what]
    with pytest.raises(DetoxbenchError, match=message):
        carried.parts(lm, intervention(lm, **given), VLLM)


def test_by_record_there_are_loras_and_nothing_else() -> None:
    lm = tiny("llama")
    assert carried.parts(lm, intervention(lm, weights=(low_rank(lm),)), VLLM, per_record=True).loras
    norm = Weight("model.layers.0.input_layernorm.weight", Dense(torch.ones(32)))
    hook = Hook(lm.architecture.layer(0), "post", "destein.additive", {"z": torch.ones(32)})
    for given, message in (
        ({"weights": (norm,)}, r"another change of 'model.layers.0.input_layernorm.weight' for each record"),
        ({"hooks": (hook,)}, r"another hook for each record \('model.layers.0'\).*method.protocol=once"),
    ):
        with pytest.raises(DetoxbenchError, match=message):
            carried.parts(lm, intervention(lm, **given), VLLM, per_record=True)


# -------------------------------------------------------------------------------------------------------- choosing


def test_rows_at_different_steps_get_the_tokens_of_the_default_engine() -> None:
    """As vLLM asks: rows in any place of its batch, some of them later than others, and a step that comes twice."""
    lm, gen = tiny("llama"), GenSpec(max_new_tokens=4, do_sample=True, top_p=0.9, n=2)
    requests = [Request(id=f"r{i}", prompt=p, record="r", kind="k") for i, p in enumerate(("the cat", "a dog!"))]
    expected = {(g.sample.id, g.sample.sample): g.sample.text for part in generate(lm, requests, gen, 0) for g in part}
    rows = [Sampled(lm, request, k) for request in requests for k in range(2)]
    choices = Choices(lm, rows, gen, precision.FLOAT32)
    late = 3  # the last row begins when the others have two tokens
    for turn in range(6):
        slots = {
            9 - i: (i, list(row.new))
            for i, row in enumerate(rows)
            if len(row.new) < 4 and not row.done and (i != late or turn > 1)
        }
        if not slots:
            break
        logits = torch.zeros(10, lm.architecture.vocabulary)
        for place, (i, _) in slots.items():
            with torch.inference_mode():
                logits[place] = lm.model(torch.tensor([rows[i].prompt + rows[i].new])).logits[0, -1]
        given = choices.made(logits, slots)
        assert torch.equal(choices.made(logits, slots), given), "a step that is run again"
        for place, (i, _) in slots.items():
            assert given[place].isfinite().nonzero().tolist() == [[rows[i].new[-1]]]
            rows[i].done = rows[i].new[-1] in lm.eos_ids
    choices.finish()
    for row in rows:
        text = lm.tokenizer.decode(row.new, skip_special_tokens=True)
        assert text == expected[row.request.id, row.sample]
    assert sum(row.near_ties for row in rows) == len(choices.near)


class Sampled:
    """A row."""

    def __init__(self, lm: LanguageModel, request: Request, sample: int) -> None:
        self.request, self.sample, self.prompt = request, sample, lm.encode(request.prompt)
        self.key, self.new, self.near_ties, self.done = noise_key(0, request.id, sample), list[int](), 0, False


def test_logits_that_are_not_finite_are_named() -> None:
    lm = tiny("llama")
    rows = [Sampled(lm, Request(id="mine", prompt="a", record="r", kind="k"), 0)]
    choices = Choices(lm, rows, GenSpec(), precision.FLOAT32)
    with pytest.raises(DetoxbenchError, match="token 1 of request 'mine'"):
        choices.made(torch.full((1, lm.architecture.vocabulary), torch.nan), {0: (0, [])})


def test_steering_knows_prompt_and_text_apart_in_a_flat_batch() -> None:
    """Two rows with their prompts, whole and in part, and one with a new token."""
    from types import SimpleNamespace as Some

    import numpy as np

    from detoxbench.vllm_engine.choosing import PROMPT
    from detoxbench.vllm_engine.steering import text_tokens

    def request(prompt: int) -> Any:
        return Some(sampling_params=Some(extra_args={PROMPT: prompt}))

    # given text: prompt 2 of 4 tokens; a prompt of 9, tokens 3 to 5 of it; a text's token at position 7, prompt 5
    runner = Some(
        input_batch=Some(req_ids=["a", "b", "c"], num_computed_tokens_cpu=np.array([0, 3, 7, 99])),
        query_start_loc=Some(np=np.array([0, 4, 7, 8, 0])),
        requests={"a": request(2), "b": request(9), "c": request(5)},
    )
    assert text_tokens(runner, 0).tolist() == [2, 3, 7]
    assert text_tokens(runner, 1).tolist() == [1, 2, 3, 7]
