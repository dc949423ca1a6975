"""Decoding methods: what they cost beside the same engine without them, and beside plain loops that do the same with
separate models, one sample at a time, as released code does."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.harness import Row, compare
from benchmarks.models import random_lm, texts
from detoxbench.config import GenSpec
from detoxbench.records import Request

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.interventions.channels import LowRank
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

DEVICES = ("cpu", "cuda")
RANK = 16
TOKENS = 10
"""New ones a sample; a plain loop of seven rows takes a second for each."""
ANNOUNCED = ("w3 w4 w5 w6 w7", *(" ".join(f"w{10 * i + k}" for k in range(5 + i)) for i in range(1, 6)))
"""Six texts of 5 to 10 tokens, as long as the released prefixes."""
Step = Callable[[list["Tensor"]], "Tensor"]
"""Next-token logits [1, vocabulary] out of those of every model and prompt, the base's first."""


class Case(NamedTuple):
    """One method, by our engine and by a plain loop."""

    name: str
    intervention: Intervention
    readers: list[tuple[LanguageModel, str]]
    """The model and the text before the prompt of each sequence that the plain loop reads, the base's first."""
    step: Step
    target: dict[str, float]
    """Device -> at most so many times the base's time."""


def rows(device: str) -> Iterator[Row]:
    small = device == "cpu"
    lm = random_lm("110M" if small else "1B", 32_000, device=device, dtype="float32" if small else "bfloat16")
    asked = _requests(lm, 16 if small else 64)
    for case in (_dexperts(lm), _self_debias(lm, ANNOUNCED[:1]), _self_debias(lm, ANNOUNCED)):
        yield _beside_the_base(lm, case, asked, device)
        if small:  # in bf16 the loop rounds its logits elsewhere, and texts may differ
            yield _beside_a_loop(lm, case, asked[:8])
    yield _best_of(lm, asked, device)


def _requests(lm: LanguageModel, count: int) -> list[Request]:
    prompts = texts(lm, [20 + i % 9 for i in range(count)])
    return [Request(id=str(i), prompt=prompt, record=str(i), kind="x") for i, prompt in enumerate(prompts)]


# ------------------------------------------------------------------------------------------------------------ methods


def _dexperts(lm: LanguageModel) -> Case:
    from detoxbench.interventions.channels import Carried, LogitOp, Weight
    from detoxbench.interventions.intervention import Intervention

    loras = {side: _lora(lm, seed) for seed, side in enumerate(("expert", "anti_expert"))}
    under = {
        side: Carried(weights=tuple(Weight(f"{name}.weight", delta) for name, delta in changed.items()))
        for side, changed in loras.items()
    }
    op = LogitOp("dexperts.ensemble", params={"alpha": 2.0, "filter_p": 0.9}, under=under, sensitivity=5)
    merged = [_merged(lm, changed) for changed in loras.values()]

    def step(logits: list[Tensor]) -> Tensor:
        from transformers import TopPLogitsWarper

        base, expert, anti_expert = logits
        outside = TopPLogitsWarper(0.9)(None, base).isinf()
        return (base + 2 * (expert - anti_expert)).masked_fill(outside, -float("inf"))

    return Case(
        "DExperts, two LoRAs of rank 16",
        Intervention(method="dexperts", base=lm.fingerprint, logits=(op,)),
        [(lm, ""), *((model, "") for model in merged)],
        step,
        {"cpu": 3.2, "cuda": 1.5},
    )


def _self_debias(lm: LanguageModel, announced: Sequence[str]) -> Case:
    from detoxbench import methods
    from detoxbench.data.examples import FitData

    method = methods.create("self_debias", prefixes=tuple(f"{text} " for text in announced))

    def step(logits: list[Tensor]) -> Tensor:
        import torch

        p, *invited = (row.softmax(-1) for row in logits)
        least = torch.stack([p - other for other in invited]).amin(0)
        damped = torch.where(least >= 0, torch.ones_like(p), torch.exp(50 * least).clamp(min=0.01))
        return logits[0] + damped.log()

    count = len(announced)
    return Case(
        f"self-debiasing, {count} prefix{'es' if count > 1 else ''}",
        method.fit(lm, FitData()),
        [(lm, ""), *((lm, f"{text} ") for text in announced)],
        step,
        {"cpu": 2.2, "cuda": 1.3} if count == 1 else {"cpu": 7.5, "cuda": 2.0},
    )


def _lora(lm: LanguageModel, seed: int) -> dict[str, LowRank]:
    """Module -> a drawn LoRA, strong enough to change what is said."""
    import torch

    from detoxbench.interventions.channels import LowRank

    draw = torch.Generator().manual_seed(seed)
    changes = {}
    for name, module in lm.model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            out, into = module.weight.shape
            b, a = (torch.randn(shape, generator=draw) for shape in ((out, RANK), (RANK, into)))
            changes[name] = LowRank(a=a * 0.05, b=b * 0.05 / RANK**0.5)  # [rank, in], [out, rank]
    return changes


def _merged(lm: LanguageModel, changes: dict[str, LowRank]) -> LanguageModel:
    """A second model with a LoRA in its weights, as released code has one."""
    from detoxbench.lm import LanguageModel

    model = copy.deepcopy(lm.model)
    for name, delta in changes.items():
        weight = model.get_submodule(name).weight
        weight.data += (delta.b @ delta.a).to(weight)  # [out, in]
    return LanguageModel(model, lm.tokenizer, name="merged")


# ------------------------------------------------------------------------------------------------------------ figures


def _beside_the_base(lm: LanguageModel, case: Case, asked: Sequence[Request], device: str) -> Row:
    base = _generate(lm, asked, dataclasses.replace(SAMPLED, tie_tolerance=0))

    def under() -> list[str]:
        with lm.applied(case.intervention):
            return base()

    return compare(
        f"{case.name}, {len(asked)} samples of {TOKENS} tokens",
        under,
        base,
        against="the same engine without it",
        target=case.target[device],
        unit="x the time",
        device=device,
        note="no near-tie is looked at twice, as in relative_speed",
    )


def _beside_a_loop(lm: LanguageModel, case: Case, asked: Sequence[Request]) -> Row:
    ours = _generate(lm, asked, SAMPLED)

    def under() -> list[str]:
        with lm.applied(case.intervention):
            return ours()

    def check(*_: object) -> None:
        with lm.applied(case.intervention):
            for gen in (GREEDY, SAMPLED):
                if _generate(lm, asked, gen)() != [_loop(case, request, gen) for request in asked]:
                    raise ValueError(f"texts differ from the plain loop's with do_sample={gen.do_sample}")

    return compare(
        f"{case.name}, {len(asked)} samples of {TOKENS} tokens",
        under,
        lambda: [_loop(case, request, SAMPLED) for request in asked],
        against="separate models or prompts, one sample at a time",
        target=3,
        check=check,
        note="equal texts, greedy and sampled by top-p 0.9 with the same draws",
    )


def _best_of(lm: LanguageModel, asked: Sequence[Request], device: str, n: int = 4) -> Row:
    """Behind prompts of 200 tokens, which are read once for all candidates."""
    import torch

    from detoxbench.interventions.channels import Output
    from detoxbench.interventions.intervention import Intervention

    weights = torch.randn(lm.architecture.vocabulary, generator=torch.Generator().manual_seed(0))
    choice = Output("choose", "linear", {"weights": weights, "bias": torch.zeros(1)}, candidates=n)
    intervention = Intervention(method="best_of_n", base=lm.fingerprint, outputs=(choice,))
    prompts = texts(lm, [200 + i % 9 for i in range(len(asked))])
    long = [Request(id=str(i), prompt=prompt, record=str(i), kind="x") for i, prompt in enumerate(prompts)]
    base = _generate(lm, long, dataclasses.replace(SAMPLED, tie_tolerance=0))

    def under() -> list[str]:
        with lm.applied(intervention):
            return base()

    return compare(
        f"best of {n}, {len(asked)} answers of {TOKENS} tokens behind prompts of 200",
        under,
        base,
        against="the same engine without it",
        target=n,
        unit="x the time",
        device=device,
        note=f"{n} times the new tokens; a prompt is read once",
    )


GREEDY = GenSpec(max_new_tokens=TOKENS)
SAMPLED = GenSpec(max_new_tokens=TOKENS, do_sample=True, top_p=0.9)


def _generate(lm: LanguageModel, asked: Sequence[Request], gen: GenSpec) -> Callable[[], list[str]]:
    from detoxbench.engine.generation import generate

    def written() -> list[str]:
        made = (g.sample for batch in generate(lm, asked, gen, 0, ends=frozenset()) for g in batch)
        return [sample.text.strip() for sample in sorted(made, key=lambda sample: int(sample.id))]

    return written


def _loop(case: Case, request: Request, gen: GenSpec) -> str:
    """One sample: every model reads its prompt, then the chosen token at every step, with a cache of its own."""
    import torch

    from detoxbench.engine.sampling import noise_key, pick

    keys = torch.tensor([noise_key(0, request.id, 0)])
    lm = case.readers[0][0]
    prompts = [reader.tokenizer(before + request.prompt, return_tensors="pt") for reader, before in case.readers]
    given = [prompt["input_ids"].to(lm.device) for prompt in prompts]  # [1, tokens] each
    caches: list[object] = [None] * len(given)
    chosen: list[int] = []
    with torch.inference_mode():
        while len(chosen) < gen.max_new_tokens:
            logits = []
            for i, (reader, _) in enumerate(case.readers):
                output = reader.model(given[i], past_key_values=caches[i], use_cache=True)
                caches[i] = output.past_key_values
                logits.append(output.logits[:, -1].float())
            token, _ = pick(case.step(logits), keys, gen, len(chosen), 0.0)
            chosen.append(int(token))
            given = [token[:, None].to(lm.device)] * len(given)
    text: str = lm.tokenizer.decode(chosen, skip_special_tokens=True)
    return text
