"""Generation: many samples of a prompt, attacks that share a beginning, long prompts, and the engine's own share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Row, compare, measured
from benchmarks.models import random_lm, texts
from detoxbench.config import GenSpec
from detoxbench.records import Request, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.lm import LanguageModel

DEVICES = ("cpu", "cuda")
ENDLESS: frozenset[int] = frozenset()
"""No token ends a text: every side makes as many."""


def rows(device: str) -> Iterator[Row]:
    small = device == "cpu"
    dtype, shape = ("float32", "15M") if small else ("bfloat16", "1B")
    lm = random_lm(shape, 50_257, device=device, dtype=dtype)
    yield _samples(lm, prompts=4 if small else 64, device=device)
    yield _attacks(lm, questions=8 if small else 64, device=device)
    yield _long(lm, prompts=24 if small else 32, device=device)
    for size, prompts in (("15M", 10), ("110M", 2)) if small else (("1B", 64),):
        yield _own_share(random_lm(size, 32_000, device=device, dtype=dtype), prompts=prompts)


def _samples(lm: LanguageModel, *, prompts: int, device: str) -> Row:
    """RealToxicityPrompts: 25 samples a prompt of 20 tokens by top-p 0.9, the released loop makes a prompt a call."""
    gen = GenSpec(max_new_tokens=20, do_sample=True, top_p=0.9, n=25)
    asked = _requests(texts(lm, [7 + i % 8 for i in range(prompts)]))

    def theirs() -> list[list[int]]:
        made = []
        for request in asked:
            ids = _ids(lm, [request.prompt]).repeat(25, 1)
            made += _generated(lm, ids, max_new_tokens=20, do_sample=True, top_p=0.9, top_k=0)
        return made

    def check(ours: list[Sample], _: object) -> None:
        if device == "cpu":  # in fp32
            _require_same(ours, _engine(lm, asked[::-1], gen, batch_tokens=700)(), "in small batches")
        _require_distribution(lm, asked[0])

    return compare(
        f"25 samples a prompt, top-p 0.9, 20 tokens ({prompts} prompts)",
        _engine(lm, asked, gen),
        theirs,
        against="transformers.generate, 25 copies of a prompt a call",
        target=1.8,
        check=check,
        device=device,
        note="same distribution (chi-square) and exact top-p; our samples are the same bits in other batches",
    )


def _attacks(lm: LanguageModel, *, questions: int, device: str) -> Row:
    """One attack of 200 tokens before every question, four sampled answers of 20 tokens each."""
    (attack,) = texts(lm, [200])
    asked = _requests([f"{attack} {question}" for question in texts(lm, [8 + i % 9 for i in range(questions)], 1)])
    gen = GenSpec(max_new_tokens=20, do_sample=True, n=4, top_p=0.9)

    def theirs() -> list[list[int]]:
        made = []
        for request in asked:
            made += _generated(
                lm, _ids(lm, [request.prompt]), max_new_tokens=20, do_sample=True, top_p=0.9, top_k=0,
                num_return_sequences=4,
            )  # fmt: skip
        return made

    def check(*_: object) -> None:
        greedy = [
            _generated(lm, _ids(lm, [request.prompt]), max_new_tokens=20, do_sample=False)[0] for request in asked
        ]
        _require_equal(lm, _engine(lm, asked, GenSpec(max_new_tokens=20))(), greedy)

    return compare(
        f"4 answers to each of {questions} questions behind one attack of 200 tokens",
        _engine(lm, asked, gen),
        theirs,
        against="transformers.generate, num_return_sequences=4",
        target=3,
        check=check,
        device=device,
        note="greedy answers have identical tokens",
    )


def _long(lm: LanguageModel, *, prompts: int, device: str) -> Row:
    """Greedy answers of 40 tokens to prompts of 250 to 300, both sides in one batch."""
    asked = _requests(texts(lm, [250 + 50 * i // prompts for i in range(prompts)]))

    def theirs() -> list[list[int]]:
        return _generated(lm, *_batch(lm, [r.prompt for r in asked]), max_new_tokens=40, do_sample=False)

    return compare(
        f"greedy, {prompts} prompts of 250 to 300 tokens, 40 new",
        _engine(lm, asked, GenSpec(max_new_tokens=40)),
        theirs,
        against="transformers.generate, the same batch",
        target=1.0,
        check=lambda ours, others: _require_equal(lm, ours, others),
        device=device,
        note="identical tokens",
    )


def _own_share(lm: LanguageModel, *, prompts: int) -> Row:
    """What of the engine's time is not the model's."""
    asked = _requests(texts(lm, [10 + i % 20 for i in range(prompts)]))
    run = _engine(lm, asked, GenSpec(max_new_tokens=20, do_sample=True, top_p=0.9, n=10))
    inside = 0.0
    forward = lm.model.forward

    def timed(*args: Any, **given: Any) -> Any:
        nonlocal inside
        start = time.perf_counter()
        output = forward(*args, **given)
        if lm.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        inside += time.perf_counter() - start
        return output

    lm.model.forward = timed
    shares = []
    for repeat in range(4):
        inside, start = 0.0, time.perf_counter()
        run()
        if repeat:  # the first warms up
            shares.append(100 * (1 - inside / (time.perf_counter() - start)))
    lm.model.forward = forward
    return measured(
        f"engine time outside model forwards, {lm.name}, vocabulary 32,000, top-p 0.9", shares, "%", target=10
    )


def _requests(prompts: Sequence[str]) -> list[Request]:
    return [Request(id=str(i), prompt=prompt, record=str(i), kind="x") for i, prompt in enumerate(prompts)]


def _engine(
    lm: LanguageModel, asked: Sequence[Request], gen: GenSpec, *, batch_tokens: int = 16384
) -> Callable[[], list[Sample]]:
    import dataclasses

    from detoxbench.engine.generation import generate

    gen = dataclasses.replace(gen, batch_tokens=batch_tokens)
    return lambda: [g.sample for batch in generate(lm, asked, gen, 0, ends=ENDLESS) for g in batch]


def _ids(lm: LanguageModel, prompts: Sequence[str]) -> Tensor:
    return _batch(lm, prompts)[0]


def _batch(lm: LanguageModel, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    made = lm.tokenizer(list(prompts), return_tensors="pt", padding=True).to(lm.device)
    return made["input_ids"], made["attention_mask"]


def _generated(lm: LanguageModel, ids: Tensor, mask: Tensor | None = None, **settings: Any) -> list[list[int]]:
    """transformers.generate without end token: the new tokens of every row."""
    import torch

    mask = torch.ones_like(ids) if mask is None else mask
    end, lm.model.generation_config.eos_token_id = lm.model.generation_config.eos_token_id, None
    try:
        made: Tensor = lm.model.generate(ids, attention_mask=mask, pad_token_id=2, **settings)
    finally:
        lm.model.generation_config.eos_token_id = end
    new: list[list[int]] = made[:, ids.shape[1] :].tolist()
    return new


def _require_equal(lm: LanguageModel, ours: Sequence[Sample], theirs: Sequence[Sequence[int]]) -> None:
    """Raises ValueError where the tokens of the samples, in the order of their ids, are not theirs."""
    for sample, tokens in zip(sorted(ours, key=lambda s: int(s.id)), theirs, strict=True):
        if sample.text.strip() != lm.tokenizer.decode(tokens, skip_special_tokens=True):  # ours may begin with a blank
            raise ValueError(f"the tokens of prompt {sample.id} differ")


def _require_same(ours: Sequence[Sample], others: Sequence[Sample], how: str) -> None:
    def ordered(samples: Sequence[Sample]) -> list[Sample]:
        return sorted(samples, key=lambda s: (s.id, s.sample))

    if ordered(ours) != ordered(others):
        raise ValueError(f"the samples are others {how}")


def _require_distribution(lm: LanguageModel, request: Request, n: int = 1000) -> None:
    """Raises ValueError where the first tokens of n samples of either side are not drawn from the nucleus that
    transformers cuts: one outside of it, or a chi-square below the 0.1 % level."""
    import torch
    from scipy.stats import chisquare
    from transformers import TopPLogitsWarper

    from detoxbench.engine.sampling import noise_key, pick

    ids = _ids(lm, [request.prompt])
    with torch.inference_mode():
        logits = lm.model(ids).logits[:, -1].float().cpu()
    expected = TopPLogitsWarper(0.9)(None, logits).double().softmax(-1)[0]
    # The engine's own draw, and not its texts: a special token has none.
    keys = torch.tensor([noise_key(0, request.id, k) for k in range(n)])  # [n]
    ours, _ = pick(logits.expand(n, -1), keys, GenSpec(do_sample=True, top_p=0.9), 0, 0.0)
    torch.manual_seed(0)
    made = _generated(lm, ids, max_new_tokens=1, do_sample=True, top_p=0.9, top_k=0, num_return_sequences=n)
    for side, drawn in (("ours", ours.tolist()), ("theirs", [t for (t,) in made])):
        counts = torch.bincount(torch.tensor(drawn), minlength=len(expected)).double()
        if float(counts[expected == 0].sum()):
            raise ValueError(f"{side}: tokens outside the nucleus were drawn")
        often = expected * n >= 5
        seen = torch.cat([counts[often], counts[~often].sum()[None]])
        hoped = torch.cat([expected[often], expected[~often].sum()[None]]) * n
        if chisquare(seen[hoped > 0], hoped[hoped > 0]).pvalue < 0.001:
            raise ValueError(f"{side}: the first tokens are not drawn from the nucleus' distribution")
