"""How a whole run grows: with prompts, samples, prompt length, model size and methods. Curves, not comparisons: only
what the harness itself costs (everything outside the model's forward passes) has a target, to stay flat."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.harness import Row, measured, peak_mb
from detoxbench.lm import LanguageModel
from detoxbench.runner.loaded import _loaded
from detoxbench.runner.stages import run_overrides

PROMPTS = (30, 75, 150, 300)
SAMPLES = (1, 4, 16)
WORDS = (10, 40, 160)
LAYERS = {"1.1M": 5, "4.2M": 20, "17M": 80}
"""Parameters of a random Llama of width 128 with fable's vocabulary -> its layers."""
FLAT = 1.5
"""How much dearer a sample of the largest run may be than one of the smallest, outside forward passes."""


class Point(NamedTuple):
    """A run: seconds in all and in forward passes, its samples, and the most memory that it held, MiB."""

    seconds: float
    forward: float
    samples: int
    peak: float | None

    @property
    def outside(self) -> float:
        """Milliseconds a sample outside forward passes."""
        return 1000 * (self.seconds - self.forward) / self.samples


def run(folder: Path, *overrides: str) -> Point:
    """One cell from nothing, its model loaded before the clock starts (`_loaded` keeps it)."""
    spent, began, found = [0.0], [0.0], []

    def begin(*_: object) -> None:
        began[0] = time.perf_counter()

    def end(*_: object) -> None:
        spent[0] += time.perf_counter() - began[0]

    load = LanguageModel.load

    def watched(*args: object, **given: object) -> LanguageModel:
        lm = load(*args, **given)  # type: ignore[arg-type]
        lm.model.register_forward_pre_hook(begin)
        lm.model.register_forward_hook(end)
        return lm

    def whole() -> None:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=folder) as runs:
            record = run_overrides([*overrides, f"runs_dir={runs}"]).record
        found.append(Point(time.perf_counter() - start, spent[0], record.counts["samples"], None))

    LanguageModel.load = watched  # type: ignore[method-assign, assignment]
    try:
        whole()  # loads the model
        spent[0] = 0.0
        peak = peak_mb(whole, "cpu")
    finally:
        LanguageModel.load = load  # type: ignore[method-assign]
        _loaded.cache_clear()
    return found[-1]._replace(peak=peak)


def curve(name: str, points: dict[str, Point], *, target: float | None = None) -> Iterator[Row]:
    for at, point in points.items():
        yield msgspec.structs.replace(
            measured(f"{name} = {at}", [point.outside], "ms a sample outside forwards"),
            seconds=point.seconds,
            peak_mb=point.peak,
            note=f"{point.samples:,} samples, {point.forward:.1f} s in forward passes",
        )
    if target is not None:
        first, *_, last = points.values()
        yield measured(f"harness a sample, by {name}", [last.outside / first.outside], "x", target=target)


def rows(device: str) -> Iterator[Row]:
    base = ["model=fable", "method=none", "suite=real_toxicity_prompts", "scorer=embedded"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from curve(
            "prompts", {str(n): run(folder, *base, f"suite.limit={n}", "gen.n=4") for n in PROMPTS}, target=FLAT
        )
        yield from curve(
            "samples a prompt",
            {str(n): run(folder, *base, "suite.limit=50", f"gen.n={n}") for n in SAMPLES},
            target=FLAT,
        )
        lengths = {}
        for words in WORDS:
            file = folder / f"{words}.jsonl"
            line = " ".join(["the fox went to the old mill and"] * (words // 8 + 1)).split()[:words]
            rows = ({"prompt": {"text": f"{' '.join(line)} {i}"}} for i in range(64))
            file.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
            lengths[str(words)] = run(folder, *base[:3], "scorer=profanity_check", f"suite.data={file}", "gen.n=4")
        yield from curve("words a prompt", lengths)
        sizes = {}
        for size, layers in LAYERS.items():
            torch.manual_seed(0)
            config = AutoConfig.for_model(
                "llama", vocab_size=1024, hidden_size=128, intermediate_size=384, num_hidden_layers=layers,
                num_attention_heads=4, tie_word_embeddings=False,
            )  # fmt: skip
            fable = LanguageModel.load("fable")
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / size)
            fable.tokenizer.save_pretrained(folder / size)
            sizes[size] = run(folder, "model=hf", f"model.path={folder / size}", *base[1:], "suite.limit=32", "gen.n=4")
        yield from curve("parameters", sizes)
