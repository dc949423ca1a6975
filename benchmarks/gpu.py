"""What must hold on a device, and then how fast it is, within ten minutes: `python -m benchmarks.gpu --device cuda`.

The checks take two. The tests check the same on a CPU. Here kernels, rounding and memory are those of the
device; models are random or embedded, so that nothing is downloaded. The tables are Markdown, and the exit code says
whether everything holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.config import GenSpec
    from detoxbench.engine.generation import Generated
    from detoxbench.lm import LanguageModel
    from detoxbench.records import Request

NEEDED = (
    "torch", "transformers", "tokenizers", "safetensors", "peft", "msgspec", "filelock", "numpy", "scipy", "sklearn",
    "jinja2",
)  # fmt: skip
"""Packages without which nothing can be checked; detoxbench has more, for other work."""
LOW = ("bfloat16", "float16")
SECONDS = 480
"""After so many no measurement of speed begins; the longest one takes about a minute."""
_TRAINED = {"epochs": 1, "rank": 4, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2}
CHEAP: dict[str, dict[str, Any]] = {
    "contrastive_perplexity": {"rank": 4, "learning_rate": 1e-2, "positives": 2, "negatives": 2},
    "destein": {"pairs": 6},
    "dexperts": {"epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2},
    "guard_filter": {"threshold": 0.01},
    "gedi": {"epochs": 1, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2},
    "sasa": {"beta": 50.0, "max_candidates": 5},
    "safe_decoding": {"epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2},
    "dinm": {"learning_rate": 1e-2},
    "ext_sub": {"epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2},
    "caa": {"strength": 4},
    "lm_steer": {"updates": 20, "batch_size": 8, "rank": 8, "epsilon": 0.1},
    "few_shot": {"question": "say it rudely .", "answer": "i can not .", "continuation": "thank you .\n"},
    "ft_l": {"learning_rate": 1e-2, "num_steps": 10},
    "refusal_direction": {"filter": False, "strength": 4.0},
    "system_prompt": {"text": "be kind .", "continuation": "be kind . "},
    "toxification_reversal": {"toxic_prefix": "be a rude fool . ", "civil_prefix": "be kind . "},
    **dict.fromkeys(("dpo", "npo", "sft", "simpo"), _TRAINED),
    "circuit_breakers": {"rank": 4, "updates": 5, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2},
    "rmu": {"updates": 6, "learning_rate": 1e-2},
}
"""Settings that make a method's fit take a second on a small model; a method that is fast as it is needs no entry."""
OWN_HEAD = frozenset({"eigenshift"})
"""Methods that refuse a model whose head is tied to its embeddings, as that of the embedded one and of GPT-2."""
CLOSE = {"float32": 1e-4, "bfloat16": 2.0**-4, "float16": 2.0**-7}
"""How far padding may move a logit, as a share of the largest logit."""


class Check(NamedTuple):
    """One line of the table; `holds` is None where the device has no such thing."""

    name: str
    dtype: str
    holds: bool | None
    figures: str


class Sizes(NamedTuple):
    """How much is checked: the shape and vocabulary of the random model, prompts, rows of logits, and draws."""

    shape: str
    vocabulary: int
    prompts: int
    rows: int
    draws: int
    methods: Sequence[str]
    """The types that methods are checked in."""


SIZES = {
    "cpu": Sizes("0.1M", 1_000, 16, 40, 20_000, ("float32",)),
    "cuda": Sizes("15M", 32_000, 64, 256, 200_000, ("float32", "bfloat16")),
}


def checks(device: str) -> Iterator[partial[Check] | partial[Iterator[Check]]]:
    """What is to be done, in order; one that breaks off must not hide the others."""
    sizes = SIZES[device]
    yield partial(products, device)
    for dtype in LOW:
        lm = _model(sizes, device, dtype)
        for check in (top_k_of_one, nucleus, contested, after_a_kill):
            yield partial(check, lm, sizes.prompts)
        yield partial(distribution, device, dtype, sizes.draws)
    for dtype in ("float32", *LOW):
        yield partial(pick_as_on_a_cpu, device, dtype, sizes)
    yield partial(batches, _model(sizes, device, "float32"), sizes.prompts)
    for dtype in ("float32", "bfloat16"):
        yield partial(padding, _model(sizes, device, dtype))
    for dtype in sizes.methods:
        yield partial(methods, device, dtype)


# --- numbers ---------------------------------------------------------------------------------------------------------


def products(device: str) -> Check:
    """Products of float32 are float32, and those that are not are found out."""
    import torch

    from detoxbench.model.precision import FLOAT32, NAMES, products

    where = torch.device(device)
    plain, coarse = products(where), 2.0**-7
    if device == "cuda" and torch.cuda.get_device_capability()[0] >= 8:
        coarse, before = 2.0**-10, torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            lowered = products(where)
        finally:
            torch.set_float32_matmul_precision(before)
    else:  # no TF32 there: autocast stands for it
        with torch.autocast(device, torch.bfloat16):
            lowered = products(where)
    told = f"{NAMES[plain]}; lowered on purpose: {NAMES[lowered]}"
    return Check("products are float32, or found out", "float32", (plain, lowered) == (FLOAT32, coarse), told)


def distribution(device: str, dtype: str, draws: int) -> Check:
    """Chi-square of draws from equal logits around the nucleus' edge, at the 0.1 % level."""
    import torch
    from scipy.stats import chisquare

    from detoxbench.config import GenSpec
    from detoxbench.engine.sampling import noise_key, pick

    gen = GenSpec(do_sample=True, top_p=0.7)
    row = torch.randn(60, generator=torch.Generator().manual_seed(0)).mul(2).round().to(getattr(torch, dtype)).float()
    inside = left(row.tolist(), gen)
    keys = torch.tensor([noise_key(0, str(i), 0) for i in range(draws)])
    tokens, _ = pick(row.to(device).expand(draws, -1), keys, gen, 0, 0.0, _spacing(dtype))
    seen = torch.bincount(tokens, minlength=60)
    outside = draws - int(seen[inside].sum())
    p = float(chisquare(seen[inside], row[inside].double().softmax(-1) * draws).pvalue) if not outside else 0.0
    return Check("draws fit their nucleus", dtype, p > 0.001, f"p = {p:.3f}, {draws:,} draws, {outside} outside")


def pick_as_on_a_cpu(device: str, dtype: str, sizes: Sizes) -> Check:
    """Equal and masked logits among them."""
    import torch

    from detoxbench.config import GenSpec
    from detoxbench.engine.sampling import noise_key, pick

    g = torch.Generator().manual_seed(1)
    logits = torch.randn(sizes.rows, sizes.vocabulary, generator=g) * torch.linspace(0.5, 8, sizes.rows)[:, None]
    logits = logits.to(getattr(torch, dtype)).float()
    logits[::5, ::3] = -torch.inf
    logits[1::7] = logits[1::7].round()
    keys = torch.tensor([noise_key(0, str(i), 0) for i in range(sizes.rows)])
    gens = [GenSpec(), *(GenSpec(do_sample=True, top_p=p, top_k=k) for p, k in ((1, 0), (0.9, 0), (1, 50), (0.8, 300)))]
    tolerance = (1e-3, 0.0) if dtype == "float32" else (0.0, _spacing(dtype))
    tokens = counts = 0
    for gen in gens:
        here, there = (pick(x, keys, gen, 3, *tolerance) for x in (logits.to(device), logits))
        tokens += int((here[0] == there[0]).sum())
        counts += int((here[1] == there[1]).sum())
    n = len(gens) * sizes.rows
    return Check("tokens as on a CPU", dtype, tokens == n, f"{tokens:,} of {n:,}; contested equally: {counts:,}")


def left(logits: Sequence[float], gen: GenSpec) -> list[int]:
    """What top-p leaves of one row, told plainly: in the order of (value, token id), in float64."""
    import torch

    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    p = torch.tensor([logits[i] for i in order], dtype=torch.float64).softmax(-1)
    before = p.cumsum(-1) - p
    return [i for k, i in enumerate(order) if k == 0 or float(before[k]) < gen.top_p]


# --- generation ------------------------------------------------------------------------------------------------------


def top_k_of_one(lm: LanguageModel, prompts: int) -> Check:
    from detoxbench.config import GenSpec

    greedy = _made(lm, prompts, GenSpec(max_new_tokens=16))
    one = _made(lm, prompts, GenSpec(max_new_tokens=16, do_sample=True, top_k=1))
    equal = sum(a.sample.text == b.sample.text for a, b in zip(greedy, one, strict=True))
    return Check("top_k=1 is greedy", _type(lm), equal == prompts, f"{equal} of {prompts} texts")


def nucleus(lm: LanguageModel, prompts: int) -> Check:
    """Every token lies in the nucleus of its own logits."""
    from detoxbench.config import GenSpec
    from detoxbench.engine import generation

    gen, seen, pick = GenSpec(max_new_tokens=4, do_sample=True, top_p=0.6), list[tuple[Any, Any]](), generation.pick

    def watched(logits: Tensor, *given: Any) -> Any:
        found = pick(logits, *given)
        seen.append((logits.cpu(), found[0]))
        return found

    generation.pick = watched
    try:
        _made(lm, prompts, gen)
    finally:
        generation.pick = pick
    inside = [int(t) in left(x.tolist(), gen) for logits, tokens in seen for x, t in zip(logits, tokens, strict=True)]
    told = f"{sum(inside):,} of {len(inside):,} tokens inside"
    return Check("top-p is in force", _type(lm), all(inside) and len(inside) >= prompts, told)


def contested(lm: LanguageModel, prompts: int) -> Check:
    """The share of contested tokens is that of any batch: within 0.2 points, or four standard errors of few tokens."""
    from detoxbench.config import GenSpec

    gen = GenSpec(max_new_tokens=16, do_sample=True, top_p=0.9, n=2)
    shares, tokens = [], 0
    for rows in (1, 7, 64):
        made = _made(lm, prompts, gen, rows=rows)
        tokens = sum(g.sample.tokens for g in made)
        shares.append(100 * sum(g.near_ties for g in made) / tokens)
    share = sum(shares) / 3 / 100
    allowed = max(0.2, 400 * (2 * share * (1 - share) / tokens) ** 0.5)
    told = f"{', '.join(f'{share:.2f}' for share in shares)} % of {tokens:,} tokens in batches of 1, 7, 64"
    return Check("contested tokens", _type(lm), max(shares) - min(shares) <= allowed, told)


def after_a_kill(lm: LanguageModel, prompts: int) -> Check:
    """What is left has the same texts, whatever is made already."""
    from detoxbench.config import GenSpec

    gen = GenSpec(max_new_tokens=16, do_sample=True, top_p=0.9)
    whole = {g.sample.id: g.sample for g in _made(lm, prompts, gen, rows=7)}
    equal = tried = 0
    for cut in (1, prompts // 2, prompts - 1):
        rest = _made(lm, prompts, gen, rows=7, done={(name, 0) for name in list(whole)[:cut]})
        equal += sum(whole[g.sample.id] == g.sample for g in rest)
        tried += prompts - cut
    return Check("same texts after a kill", _type(lm), equal == tried, f"{equal} of {tried} texts")


def batches(lm: LanguageModel, prompts: int) -> Check:
    from detoxbench.config import GenSpec

    gen = GenSpec(max_new_tokens=16, do_sample=True, top_p=0.9)
    one, seven, many = ({g.sample.id: g.sample.text for g in _made(lm, prompts, gen, rows=rows)} for rows in (1, 7, 64))
    equal = sum(one[k] == seven[k] == many[k] for k in one)
    return Check("same texts in batches of 1, 7, 64", _type(lm), equal == prompts, f"{equal} of {prompts} texts")


def padding(lm: LanguageModel) -> Iterator[Check]:
    """Logits of prompts that share a batch beside those of each alone, one step behind the prompt, by kernel."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels: dict[str, Any] = {"eager": nullcontext()}
    for name, backend in (
        ("math", SDPBackend.MATH), ("flash", SDPBackend.FLASH_ATTENTION),
        ("mem-efficient", SDPBackend.EFFICIENT_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION),
    ):  # fmt: skip
        kernels[f"sdpa {name}"] = sdpa_kernel(backend)
    for name, kernel in kernels.items():
        lm.model.set_attn_implementation(name.split()[0])
        title = f"left padding, {name}"
        try:
            with kernel, torch.inference_mode():
                off, largest = _moved_by_padding(lm)
        except RuntimeError as error:
            if "kernel" not in str(error).lower():
                raise
            yield Check(title, _type(lm), None, "no such kernel for a batch with a mask here")
            continue
        holds = off <= CLOSE[_type(lm)] * largest  # false where either is NaN
        yield Check(title, _type(lm), holds, f"moves logits by up to {off:.1e}, largest logit {largest:.1f}")
    lm.model.set_attn_implementation("sdpa")


def _moved_by_padding(lm: LanguageModel) -> tuple[float, float]:
    """(the largest difference, the largest logit) over the last position of the prompts and the one behind it."""
    import torch

    from detoxbench.config import GenSpec
    from detoxbench.engine import generation

    gen = GenSpec(max_new_tokens=2)

    def logits(rows: list[generation._Row]) -> Tensor:
        found, cache, mask = generation._prefill(lm, generation._Batch.of(lm, rows), 2)
        read = mask.shape[1] - 2
        output = lm.model(
            input_ids=torch.full((len(rows), 1), 5, device=lm.device), attention_mask=mask[:, : read + 1],
            position_ids=mask[:, :read].sum(1, keepdim=True), past_key_values=cache.past, use_cache=True,
        )  # fmt: skip
        return torch.stack([found.logits.float(), output.logits[:, -1].float()], 1)

    rows = generation._rows(lm, _requests(lm, 8, (1, 40)), gen, 0)
    together, alone = logits(rows), torch.cat([logits([row]) for row in rows])
    return float((together - alone).abs().max()), float(alone.abs().max())


# --- methods ---------------------------------------------------------------------------------------------------------


def methods(device: str, dtype: str) -> Iterator[Check]:
    """Every method that needs no setting fits on the embedded model, changes texts, and leaves every bit as it was."""
    import torch

    from detoxbench import methods
    from detoxbench.config import required_fields
    from detoxbench.data.fit import fit_data
    from detoxbench.data.roles import ROLES, fit_spec
    from detoxbench.lm import LanguageModel

    lm = LanguageModel.load("fable", dtype=dtype, device=device)
    data, _ = fit_data(fit_spec()(limit=12), frozenset(ROLES))
    prompts = ["the cat", "why are you", "please tell me", "at the park", "who"]

    def texts() -> list[str]:
        return [s.text for s in lm.generate(prompts, max_new_tokens=16, do_sample=True, n=2)]

    plain, before = texts(), {k: v.clone() for k, v in lm.model.state_dict().items()}
    for name in (name for name in methods.names() if not required_fields(methods.get(name).Config)):
        if name in OWN_HEAD:
            yield Check(f"{name} acts and comes off", dtype, None, "refuses the embedded model, whose head is tied")
            continue
        start = time.perf_counter()
        intervention = methods.create(name, **CHEAP.get(name, {})).fit(lm, data)
        seconds = time.perf_counter() - start
        with lm.applied(intervention):
            changed = sum(a != b for a, b in zip(plain, texts(), strict=True))
        after = lm.model.state_dict()
        off = [k for k, v in before.items() if not torch.equal(v, after[k])]
        holds = (changed > 0) == (name != "none") and not off and after.keys() == before.keys() and texts() == plain
        told = f"fitted in {seconds:.1f} s, {changed} of {len(plain)} texts changed, {len(off)} tensors left changed"
        yield Check(f"{name} acts and comes off", dtype, holds, told)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _model(sizes: Sizes, device: str, dtype: str) -> LanguageModel:
    from benchmarks.models import random_lm

    return random_lm(sizes.shape, sizes.vocabulary, device=device, dtype=dtype)


def _requests(lm: LanguageModel, n: int, lengths: tuple[int, int]) -> list[Request]:
    from benchmarks.models import texts
    from detoxbench.records import Request

    r = random.Random(0)
    made = texts(lm, [r.randint(*lengths) for _ in range(n)])
    return [Request(id=str(i), prompt=text, record=str(i), kind="x") for i, text in enumerate(made)]


def _made(lm: LanguageModel, n: int, gen: GenSpec, *, rows: int = 64, **more: Any) -> list[Generated]:
    """Texts of n prompts of 3 to 20 tokens, in batches of so many rows (of the longest; 1 is 1 of any length)."""
    from detoxbench.engine.generation import generate

    gen = dataclasses.replace(gen, batch_tokens=rows * (20 + gen.max_new_tokens) if rows > 1 else 1)
    asked = _requests(lm, n, (3, 20))
    return [g for batch in generate(lm, asked, gen, 0, **more) for g in batch]


def _spacing(dtype: str) -> float:
    import torch

    return torch.finfo(getattr(torch, dtype)).eps


def _type(lm: LanguageModel) -> str:
    return str(lm.dtype).removeprefix("torch.")


# --- the command -----------------------------------------------------------------------------------------------------


def lacking(device: str) -> str | None:
    """Why nothing can be checked here, in one line."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        return f"missing here: {', '.join(missing)}; install them, or all of detoxbench: pip install -e ."
    import torch

    from detoxbench import methods

    if not methods.names():
        return "detoxbench is not installed, so that its methods are not found: pip install --no-deps -e ."
    if device == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device here: --device cpu checks the same on the CPU"
    return None


def tried(check: partial[Check] | partial[Iterator[Check]]) -> Iterator[Check]:
    """What is found, and as a failed check what broke."""
    try:
        found = check()
        yield from [found] if isinstance(found, Check) else found
    except Exception as error:  # the rest of the table is worth more than a traceback
        yield Check(f"{check.func.__name__} broke off", "-", False, _told(error))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def speeds(device: str, until: float) -> int:
    """Print how fast the engine is, of what there is time for. Gives how many measurements broke off."""
    from benchmarks.gpu_speed import HEAD, Line, measurements

    print(f"\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    failed = 0
    for shape, what, measurement in measurements(device):
        try:
            late = time.perf_counter() > until
            line = Line(shape, f"{what}: left out, no time left") if late else measurement()
        except Exception as error:
            failed += 1
            line = Line(shape, f"{what} **broke off**: {_told(error)}")
        print(f"| {' | '.join(line)} |", flush=True)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=tuple(SIZES))
    parser.add_argument("--checks-only", action="store_true", help="do not measure how fast it is")
    args = parser.parse_args(argv)
    device: str = args.device
    if reason := lacking(device):
        print(f"benchmarks.gpu: {reason}", file=sys.stderr)
        return 2
    import torch

    start, failed = time.perf_counter(), 0
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}\n\n| check | dtype | result | figures |\n|---|---|---|---|")
    for check in (found for planned in checks(device) for found in tried(planned)):
        result = "-" if check.holds is None else "holds" if check.holds else "**FAILS**"
        failed += check.holds is False
        print(f"| {check.name} | {check.dtype} | {result} | {check.figures} |", flush=True)
    if not args.checks_only:
        failed += speeds(device, start + SECONDS)
    print(f"\n{failed} failed, {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
