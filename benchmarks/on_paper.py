"""A large multirun on paper, `python -m benchmarks.on_paper`: hours, memory and storage by stage, and what limits.

Nothing is measured here. All numbers follow from the constants below: sizes of the model, the GPU, the suites and the
methods, and the shares of a GPU's bandwidth and arithmetic that are taken to be reached.
"""

from __future__ import annotations

from typing import NamedTuple

GPUS, GPUS_A_REPLICA, SEEDS = 64, 4, 3
GPU_GB, BANDWIDTH, FLOPS = 80, 3.35e12, 990e12
"""One H100 SXM: memory, bytes a second, dense bf16 operations a second (its data sheet)."""
BANDWIDTH_SHARE, FLOPS_SHARE = 0.5, 0.4
"""What is taken to be reached of both."""
PARAMETERS, LAYERS, WIDTH, INNER, KEY_VALUES, VOCABULARY = 70e9, 80, 8192, 28672, 1024, 128256
"""Llama 3 70B: its config.json. KEY_VALUES: width of the keys, and of the values, of a layer."""
BYTES = 2
"""Of a number in bf16."""
RANK = 16
JUDGE = 355e6
"""Parameters of the judge: RoBERTa-large."""
SHARE_OF_NEW_TOKENS = 0.6
"""Answers end before the limit."""


class Suite(NamedTuple):
    """The published size (docs/suites.md): texts generated with so many new tokens at most, after prompts of so many
    tokens, or read."""

    name: str
    texts: int
    new: int
    prompt: int


class Method(NamedTuple):
    """Forward passes a token (docs/field.md; self_debias with its five published prefixes), and tokens of all fits of
    one seed with operations a parameter and token: 2 reading, 6 training with checkpointing and frozen weights."""

    name: str
    passes: float = 1
    fit_tokens: float = 0
    fit_operations: int = 6
    lora: bool = False
    beside: bool = False
    """Its passes are rows of other interventions, which the vLLM engine does not carry."""


SUITES = [
    Suite("safeedit", 6750, 600, 500), Suite("safeedit_test_all", 540, 600, 400),
    Suite("real_toxicity_prompts", 250_000, 20, 15), Suite("toxic_instructions", 200, 500, 60),
    Suite("harmful_requests", 6720, 512, 150), Suite("over_refusal", 450, 256, 20),
    Suite("bias", 23_679, 20, 10), Suite("utility", 4929, 92, 60),
    Suite("likelihood_utility", 80_000, 0, 30), Suite("truthfulqa", 6000, 0, 40),
]  # fmt: skip
_LORA = 2000 * 2 * 200 * 3
"""Tokens that a LoRA is trained on: pairs, texts of a pair, tokens of a text, epochs."""
METHODS = [
    *(Method(name, fit_tokens=_LORA, lora=True) for name in
      ("sft", "dpo", "npo", "contrastive_perplexity", "circuit_breakers", "rmu")),
    Method("ext_sub", fit_tokens=2 * _LORA, lora=True), Method("dexperts", 3, 2 * _LORA, lora=True, beside=True),
    Method("gedi", 3, 2 * _LORA, lora=True, beside=True), Method("safe_decoding", 2, _LORA, lora=True, beside=True),
    Method("dinm", fit_tokens=1350 * 10 * 1000), Method("profs", fit_tokens=400_000, fit_operations=2),
    *(Method(name, fit_tokens=400_000, fit_operations=2) for name in ("destein", "caa", "aura", "lm_steer")),
    Method("toxification_reversal", 3, beside=True), Method("self_debias", 6, beside=True),
    Method("best_of_n", 4), Method("self_reminder"),
]  # fmt: skip


class Stage(NamedTuple):
    """GPU hours of a stage, and the most memory of a replica in GB."""

    name: str
    hours: float
    memory: float
    limit: str


def rows_at_once() -> int:
    """Texts of safeedit's length whose keys and values fit beside the weights."""
    free = 0.9 * GPUS_A_REPLICA * GPU_GB * 1e9 - PARAMETERS * BYTES
    tokens = free / (2 * KEY_VALUES * LAYERS * BYTES)
    return int(tokens / (SUITES[0].prompt + SUITES[0].new))


def step_seconds(rows: int, *, together: int) -> float:
    """One forward pass of so many rows; `together` GPUs work at a time on each layer."""
    weights = PARAMETERS * BYTES / (BANDWIDTH * BANDWIDTH_SHARE)
    return (weights + rows * 2 * PARAMETERS / (FLOPS * FLOPS_SHARE)) / together


def cells(*, cut: bool) -> list[tuple[float, int]]:
    """(forward passes a token, GPUs that work at a time) of the base and of every method; all of a replica where
    layers are `cut` over them and vLLM carries the method."""
    return [
        (method.passes, GPUS_A_REPLICA if cut and not method.beside else 1) for method in (Method("none"), *METHODS)
    ]


def generating_hours(*, cut: bool) -> float:
    """GPU hours for all methods, the base and all seeds, on all suites that generate."""
    rows = rows_at_once()
    new = sum(suite.texts * suite.new * SHARE_OF_NEW_TOKENS for suite in SUITES)
    seconds = sum(passes * new * step_seconds(rows, together=gpus) / rows for passes, gpus in cells(cut=cut))
    return SEEDS * seconds * GPUS_A_REPLICA / 3600


def reading_hours(*, cut: bool, base: bool) -> float:
    """GPU hours for prompts and given texts under every method, or for the `base`'s reading of every answer, as it is
    and with its words in reverse."""
    given = sum(suite.texts * suite.prompt for suite in SUITES)
    answers = sum(suite.texts * (suite.prompt + suite.new * SHARE_OF_NEW_TOKENS) for suite in SUITES if suite.new)
    if base:
        gpus = GPUS_A_REPLICA if cut else 1
        tokens = 2 * answers * len(cells(cut=cut)) / gpus
    else:
        tokens = sum(passes * given / gpus for passes, gpus in cells(cut=cut))
    return SEEDS * tokens * 2 * PARAMETERS / (FLOPS * FLOPS_SHARE) * GPUS_A_REPLICA / 3600


def stages(*, cut: bool) -> list[Stage]:
    """All stages, each with its limit."""
    weights = PARAMETERS * BYTES / 1e9
    fits = SEEDS * sum(method.fit_tokens * method.fit_operations for method in METHODS) * PARAMETERS
    # Checkpointed: the input of every layer, and logits with their gradient, of 4,096 tokens.
    activations = 4096 * (WIDTH * LAYERS * BYTES + 2 * VOCABULARY * 4) / 1e9
    scored = SEEDS * (1 + len(METHODS)) * sum(suite.texts * suite.new * SHARE_OF_NEW_TOKENS for suite in SUITES)
    cache = rows_at_once() * (SUITES[0].prompt + SUITES[0].new) * 2 * KEY_VALUES * LAYERS * BYTES / 1e9
    reads = weights + 8192 * VOCABULARY * 4 / 1e9  # float32 logits of one pass
    of_gpu = FLOPS * FLOPS_SHARE * 3600
    return [
        # Factors, gradients and both of Adam's moments.
        Stage("fit", fits / of_gpu * GPUS_A_REPLICA, weights + activations + 4 * lora_gb(), "arithmetic"),
        Stage("generate", generating_hours(cut=cut), weights + cache, "bandwidth, then arithmetic"),
        Stage("read prompts and given texts", reading_hours(cut=cut, base=False), reads, "arithmetic"),
        Stage("the base reads the answers", reading_hours(cut=cut, base=True), reads, "arithmetic"),
        Stage("score", scored * 2 * JUDGE / of_gpu, JUDGE * 4 / 1e9, "arithmetic of the judge"),
    ]


def lora_gb() -> float:
    """One LoRA on all linear maps, in float32."""
    attention = (WIDTH + WIDTH) * 2 + (WIDTH + KEY_VALUES) * 2
    return RANK * LAYERS * (attention + 3 * (WIDTH + INNER)) * 4 / 1e9


def storage_gb() -> dict[str, float]:
    """What lies on the disk in the end."""
    texts = SEEDS * (1 + len(METHODS)) * sum(suite.texts for suite in SUITES)
    characters = (
        SEEDS
        * (1 + len(METHODS))
        * sum(suite.texts * 4 * (suite.prompt + suite.new * SHARE_OF_NEW_TOKENS) for suite in SUITES)
    )
    return {
        "the model": PARAMETERS * BYTES / 1e9,
        "LoRAs": SEEDS * lora_gb() * sum(method.fit_tokens / _LORA for method in METHODS if method.lora),
        "texts with what was read of them": (characters + 300 * texts) / 1e9,
        "scores": 60 * texts / 1e9,
    }


def main() -> None:
    """Print the tables."""
    replicas = GPUS // GPUS_A_REPLICA
    print(f"{len(METHODS)} methods and the base, {len(SUITES)} suites, {SEEDS} seeds: "
          f"{SEEDS * (1 + len(METHODS)) * len(SUITES)} cells; {replicas} replicas of {GPUS_A_REPLICA} GPUs, "
          f"{rows_at_once()} rows at once\n")  # fmt: skip
    print("| stage | layers in turn, hours | layers cut, where vLLM carries it, hours | GB a replica | limited by |")
    print("|---|---:|---:|---:|---|")
    ours, faster = stages(cut=False), stages(cut=True)
    for one, other in zip(ours, faster, strict=True):
        print(f"| {one.name} | {one.hours / GPUS:,.1f} | {other.hours / GPUS:,.1f} | {one.memory:,.0f} | {one.limit} |")
    print(f"| in all | {sum(s.hours for s in ours) / GPUS:,.1f} | {sum(s.hours for s in faster) / GPUS:,.1f} | | |")
    print("\n| on the disk | GB |\n|---|---:|")
    for what, size in storage_gb().items():
        print(f"| {what} | {size:,.1f} |")


if __name__ == "__main__":
    main()
