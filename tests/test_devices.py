"""Everything that computes, with its model on a device: nothing meets what was left on the CPU, nothing that is kept
stays on the device, and texts, likelihoods and scores are those of the CPU.

The device is pretended (`tests.support.pretended_device`): a second GPU, so that what forgets the number is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import detoxbench as db
from detoxbench.authoring.conformance import EXAMPLES, FAMILIES, PROMPTS, Case
from detoxbench.config import GenSpec
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.engine.likelihood import loglikelihoods
from detoxbench.engine.sampling import NO_TOKEN, pick
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.random_state import unchanged_random_state
from detoxbench.fitting.training import LoraConfig, train_lora
from detoxbench.interventions.channels import Dense, Hook, LowRank, Prefix, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.interventions.per_row import per_row_weights
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Scope
from detoxbench.model.devices import out_of_memory, placed
from detoxbench.records import Request
from detoxbench.scorers import hf_classifier, judge, perplexity, similarity
from detoxbench.scorers.base import Scorer
from detoxbench.scorers.hf_classifier import HFClassifier
from detoxbench.scorers.judge import Judge
from detoxbench.scorers.perplexity import Perplexity
from detoxbench.scorers.similarity import Similarity
from tests.suites.test_mechanism import looked
from tests.support import elsewhere
from tests.support.adapters import adapter_folder
from tests.support.pretended_device import Pretended, pretended_device
from tests.support.tiny import same, state, tiny, write

GPU = "cuda:1"
CLASSIFIER = Path(__file__).parent / "golden" / "safeedit_classifier"
GREEDY, SAMPLED = GenSpec(max_new_tokens=3), GenSpec(max_new_tokens=3, do_sample=True, top_p=0.9, n=2)
ASKED = PROMPTS[:2]
LOW = torch.bfloat16


@contextmanager
def there(lm: LanguageModel, device: str = GPU) -> Iterator[Pretended]:
    """With the model on a device that is pretended."""
    with pretended_device() as on:
        lm.model.to(device)
        yield on
        assert lm.device == torch.device(device)
        lm.model.to("cpu")


def texts(lm: LanguageModel, gen: GenSpec = SAMPLED) -> list[str]:
    return [s.text for s in lm.generate(ASKED, gen)]


def asked() -> list[Request]:
    return [Request(id=str(i), prompt=p, record=str(i), kind="x", text=" you.") for i, p in enumerate(ASKED)]


def nlls(lm: LanguageModel) -> list[float | None]:
    requests = asked()
    return [g.sample.nll for part in loglikelihoods(lm, requests, {r.id for r in requests}) for g in part]


def tensors(intervention: Intervention) -> dict[str, Tensor]:
    return {f"{place}.{k}": t for place, part in intervention.parts() for k, t in part.named_tensors().items()}


def expect_same(lm: LanguageModel, intervention: Intervention, *, reads: bool = True, device: str = GPU) -> None:
    """Under it texts, likelihoods and the bits of the model afterwards are those of the CPU."""
    before = state(lm)

    def found() -> list[Any]:
        with lm.applied(intervention):
            return [texts(lm), texts(lm, GREEDY), *(nlls(lm) if reads else [])]

    here = found()
    with there(lm, device):
        assert found() == here
    assert same(state(lm), before)


# ------------------------------------------------------------------------------------------------ the engine


@pytest.mark.parametrize("device", [GPU, "mps"])
def test_a_model_is_loaded_generates_and_reads(tmp_path: Path, device: str) -> None:
    lm = tiny()
    write(lm, tmp_path)
    with pretended_device():
        loaded = LanguageModel.load(str(tmp_path), device=device)
        assert loaded.device == torch.device(device)
        assert (texts(loaded), texts(loaded, GREEDY), nlls(loaded)) == (texts(lm), texts(lm, GREEDY), nlls(lm))


@pytest.mark.parametrize(
    "gen",
    [
        GenSpec(),
        GenSpec(do_sample=True),
        GenSpec(do_sample=True, top_k=3),
        GenSpec(do_sample=True, top_p=0.8, temperature=0.7),
    ],
    ids=["greedy", "all", "top-k", "top-p"],
)
def test_tokens_are_picked_as_on_the_cpu(gen: GenSpec) -> None:
    logits = noise(40, 3000) * torch.linspace(1, 40, 40)[:, None]  # few candidates and many
    logits[1::3] = logits[1::3].round()  # many equal ones
    logits[::4, ::2] = -torch.inf
    logits[5], logits[6, 7], logits[9, 8] = -torch.inf, torch.nan, torch.inf
    keys = torch.arange(40) * 12345
    tokens, near_ties = pick(logits, keys, gen, 3, 1e-3)
    assert (tokens == NO_TOKEN).nonzero()[:, 0].tolist() == [5, 6, 9]
    with pretended_device():
        there = pick(logits.to(GPU), keys, gen, 3, 1e-3)
    assert torch.equal(there[0], tokens)
    usual = tokens != NO_TOKEN
    assert torch.equal(there[1][usual], near_ties[usual])


def change(lm: LanguageModel, **channels: Any) -> Intervention:
    return Intervention(method="m", base=lm.fingerprint, **channels)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(lm: LanguageModel) -> Weight:
    out, into = lm.model.get_parameter(DOWN).shape
    return Weight(DOWN, LowRank(noise(2, into), noise(out, 2)))


DOWN = "model.layers.1.mlp.down_proj.weight"
CHANNELS = {
    "dense weights": lambda lm: {"weights": (Weight(DOWN, Dense(noise(32, 48))),)},
    "a new bias": lambda lm: {"weights": (Weight(DOWN.replace("weight", "bias"), Dense(noise(32))),)},
    "low-rank weights": lambda lm: {"weights": (low_rank(lm),)},
    "a hook": lambda lm: {
        "hooks": (Hook("model.layers.1", "post", "caa.add", {"vector": noise(32)}, {"strength": 1.0}),)
    },
    "a prefix": lambda lm: {"prefixes": (Prefix(noise(3, 2, lm.model.config.num_key_value_heads, 2, 8)),)},
}


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, id="float32"), pytest.param(LOW, id="bfloat16", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:only .* survives")
def test_a_channel_does_the_same_on_a_device(channel: str, dtype: torch.dtype) -> None:
    lm = tiny(dtype=dtype)
    expect_same(lm, change(lm, **CHANNELS[channel](lm)))


def test_changes_that_differ_by_record_do_the_same_on_a_device() -> None:
    lm = tiny()
    out, into = lm.model.get_parameter(DOWN).shape
    changes = {"0": change(lm, weights=(Weight(DOWN, Dense(noise(out, into))),))}
    turned = low_rank(lm).delta.transposed()  # of the up-projection, whose sides are the other way round
    changes["1"] = change(lm, weights=(Weight(DOWN.replace("down", "up"), turned),))

    def found() -> list[Any]:
        with lm.routed(changes):
            return [[s.text for s in lm.generate(asked(), SAMPLED)], *nlls(lm)]

    here = found()
    with there(lm):
        assert found() == here


def test_a_route_is_kept_for_each_device_by_itself() -> None:
    lm = tiny()
    maps = [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    variants = [{f"{path}.weight": noise(32, 48, seed=i) for path in maps} for i in range(2)]
    with pretended_device():
        for i, path in enumerate(maps):  # as where a model is spread over several
            lm.architecture.module(path).to(f"cuda:{i}")
        variants = [{k: v.to(lm.model.get_parameter(k).device) for k, v in of.items()} for of in variants]
        with per_row_weights(lm, variants, must_announce=False) as set_rows:
            set_rows([0, 1, 0])
            lm.model._forward_pre_hooks.clear()  # which would look for the ids of a whole pass
            for i, path in enumerate(maps):
                found = lm.architecture.module(path)(torch.ones(3, 2, 48, device=f"cuda:{i}"))
                assert found.device == torch.device("cuda", i)


def test_a_sum_of_likelihoods_is_taken_where_sums_must_have_an_order() -> None:
    lm = tiny()
    gedi = elsewhere.fitted("gedi")  # sums up probabilities itself, and asks for likelihoods
    torch.use_deterministic_algorithms(True)
    try:
        expect_same(lm, gedi)
    finally:
        torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------------------------ methods


def _cases(fast: set[str]) -> list[Any]:
    return [
        pytest.param(name, family, device, id=f"{name}-{family}-{device}", marks=[] if quick else pytest.mark.slow)
        for device in (GPU, "mps")
        for family in FAMILIES
        for name in db.methods.names()
        for quick in (name in fast and family == FAMILIES[0] and device == GPU,)
    ]


@pytest.mark.parametrize(("name", "family", "device"), _cases({"caa", "dinm", "ext_sub"}))
def test_a_method_fits_on_a_device(name: str, family: str, device: str, tmp_path: Path) -> None:
    """What it learns is that of the CPU (but for the last bits, where an optimiser is another one there), is kept on
    the CPU, and acts on the device as on the CPU."""
    case = Case(db.methods.create(name, **elsewhere.settings(name, family, tmp_path)), family)
    lm, data = case.model(), case.data
    try:
        here = case.fit(lm, data)
    except DetoxbenchError as error:
        pytest.skip(str(error))
    before = state(lm)
    with there(lm, device) as on:
        made = case.fit(lm, data)
        assert {str(on.of(t)) for t in tensors(made).values()} <= {"cpu"}
        assert on.opened <= {1}
    assert same(state(lm), before)
    mine, theirs = tensors(made), tensors(here)
    assert mine.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(mine[key], tensor, rtol=1e-3, atol=1e-4, msg=f"{key} differs")
    reads = made.outputs == () and all("after" not in op.asks for op in made.logits)
    expect_same(lm, made, reads=reads, device=device)


def test_edits_of_each_record_are_kept_on_the_cpu() -> None:
    method = db.methods.create("dinm", protocol="per_record", learning_rate=1e-2)
    assert method.scope is Scope.PER_RECORD
    case, lm = Case(method, "llama"), tiny()
    with there(lm) as on:
        edits = list(method.fit_many(lm, case.records(case.data), [0, 1]))
        assert len(edits) == 2
        assert {str(on.of(t)) for edit in edits for t in tensors(edit).values()} == {"cpu"}


def test_an_adapter_that_is_given_and_one_that_is_trained_are_combined(tmp_path: Path) -> None:
    lm = tiny()
    folder = adapter_folder(lm, tmp_path / "expert", seed=1)
    settings = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "target_modules": ("q_proj", "v_proj"), "rank": 4}
    method = db.methods.create("ext_sub", expert=str(folder), **settings)
    data, _ = fit_data(fit_spec()(limit=EXAMPLES), method.needs)
    with there(lm) as on:
        made = method.fit(lm, data)
        assert {str(on.of(t)) for t in tensors(made).values()} == {"cpu"}


def test_training_stays_on_the_models_device_and_opens_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny()
    data, _ = fit_data(fit_spec()(limit=EXAMPLES), db.methods.create("sft").needs)
    examples = next(iter(data.by_role.values()))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with there(lm) as on:
        train_lora(lm, examples, LoraConfig(epochs=1, learning_rate=1e-2, batch_size=4), seed=0, description="a LoRA")
        assert on.opened == {1}
        on.opened.clear()
        with unchanged_random_state():
            torch.manual_seed(3)
        assert not on.opened


# ------------------------------------------------------------------------------------------------ looking and scoring


@pytest.mark.slow
def test_the_mechanism_is_looked_at_on_a_device() -> None:
    lm = tiny()
    changed = change(lm, weights=(low_rank(lm),))
    here, _ = looked(lm, changed)
    with there(lm):
        assert looked(lm, changed)[0] == here


def saved(folder: Path, lm: LanguageModel) -> str:
    return str(write(lm, folder))


def sentences(folder: Path) -> str:
    """A sentence-transformers model."""
    package = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Pooling, Transformer

    body = Transformer(str(CLASSIFIER))
    package.SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension())]).save(str(folder))
    return str(folder)


SCORERS: dict[str, Callable[[Path, str], Scorer[Any]]] = {
    "hf_classifier": lambda folder, device: HFClassifier(
        hf_classifier.Config(path=str(CLASSIFIER), label=1, device=device)
    ),
    "perplexity": lambda folder, device: Perplexity(perplexity.Config(path=saved(folder, tiny()), device=device)),
    "judge": lambda folder, device: Judge(judge.Config(path=saved(folder, tiny()), device=device), name="judge"),
    "similarity": lambda folder, device: Similarity(similarity.Config(path=sentences(folder), device=device)),
}


@pytest.mark.parametrize("device", [GPU, pytest.param("mps", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_scores_on_its_device(name: str, device: str, tmp_path: Path) -> None:
    given = (["you are kind.", "go away"], ["hi", "go home"])
    here = SCORERS[name](tmp_path, "cpu").score(*given)
    with pretended_device() as on:
        assert SCORERS[name](tmp_path, device).score(*given) == here
        assert on.to_cpu > 0


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    "told",
    [
        "CUDA out of memory. Tried to allocate 2.00 MiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 1 GB)",
    ],
)
def test_want_of_memory_is_known_in_all_its_words(told: str) -> None:
    assert out_of_memory(RuntimeError(told))
    assert not out_of_memory(RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"))


def test_a_model_is_loaded_straight_onto_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor after the other, tied ones once, and checked as on the CPU."""
    folder = saved(tmp_path, tiny("gpt2"))
    here = LanguageModel.load(folder, device="cpu")
    monkeypatch.delattr(nn.Module, "to")
    for dtype in ("float32", "bfloat16"):
        with pretended_device() as on:
            lm = LanguageModel.load(folder, device=GPU, dtype=dtype)
            assert {str(on.of(t)) for t in [*lm.model.parameters(), *lm.model.buffers()]} == {GPU}
            assert lm.model.lm_head.weight is lm.model.transformer.wte.weight
            assert lm.fingerprint == here.fingerprint
            assert on.to_device <= 2 * len(lm.model.state_dict())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.h.1.mlp.c_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pretended_device(), pytest.raises(DetoxbenchError, match=r"no weights for transformer\.h\.1\.mlp\.c_proj"):
        LanguageModel.load(folder, device=GPU)


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")


def test_a_model_that_does_not_fit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, tiny())
    monkeypatch.setattr("transformers.core_model_loading._materialize_copy", full)
    said = rf"the model in '.*' does not fit on {GPU}: it takes 0\.0 GiB.*choose dtype=bfloat16"
    with pretended_device(), pytest.raises(DetoxbenchError, match=said):
        LanguageModel.load(folder, device=GPU)


def test_what_is_moved_and_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny().model
    monkeypatch.setattr(nn.Module, "to", full)
    with pretended_device(), pytest.raises(DetoxbenchError, match=f"the embedding does not fit on {GPU}: it takes 0.0"):
        placed(model, GPU, "the embedding")
