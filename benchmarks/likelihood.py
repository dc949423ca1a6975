"""Perplexity of continuations given their prompts."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Row, compare
from benchmarks.models import random_lm, texts

DEVICES = ("cpu", "cuda")


def rows(device: str) -> Iterator[Row]:
    import torch

    small = device == "cpu"
    lm = random_lm("15M" if small else "1B", 50_257, device=device, dtype="float32" if small else "bfloat16")
    count = 75 if small else 1600
    prompts = [p for p in texts(lm, [7 + i % 8 for i in range(count // 25)]) for _ in range(25)]
    continuations = [f" {text}" for text in texts(lm, [20] * count, 1)]

    def theirs() -> list[float]:
        """A text at a time: its loss with the prompt less that of the prompt alone."""
        found = []
        with torch.inference_mode():
            for prompt, text in zip(prompts, continuations, strict=True):
                whole, begin = (
                    lm.tokenizer(t, return_tensors="pt")["input_ids"].to(device) for t in (prompt + text, prompt)
                )
                sums = [lm.model(ids, labels=ids).loss * (ids.shape[1] - 1) for ids in (whole, begin)]
                found.append(float(sums[0] - sums[1]))
        return found

    def ours() -> list[float]:
        found = lm.continuation_nll(prompts, continuations)
        return [nll for nll, _ in found if nll is not None] if None not in found else []

    def check(one: list[float], other: list[float]) -> None:
        worst = max(abs(a - b) / b for a, b in zip(one, other, strict=True))
        if worst > (1e-5 if small else 1e-2):
            raise ValueError(f"the negative log-likelihoods differ by up to {worst:.1e} of themselves")

    yield compare(
        f"perplexity of {count} continuations of 20 tokens given their prompts, vocabulary 50,257",
        ours,
        theirs,
        against="one text at a time, loss with prompt less loss of prompt",
        target=3,
        check=check,
        device=device,
        note="equal to a relative 1e-5 in fp32",
    )
