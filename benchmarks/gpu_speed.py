"""How fast the engine is on a device: random weights of real shapes, so that nothing is downloaded. `benchmarks.gpu`
prints it behind its checks.

A step reads every weight and every key and value once, which takes at the least the bytes divided by the bandwidth of
the memory: the limit that the share is of. It is measured by copying, on the device itself.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.models import SHAPES, random_lm, texts
from detoxbench.model.devices import empty_caches

if TYPE_CHECKING:
    from detoxbench.interventions.channels import LowRank
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

REPEATS = 3
RANK = 16
COPIED = {"cpu": 2**26, "cuda": 2**30}
"""Bytes that are copied to measure the bandwidth."""
HEAD = ("shape", "what", "tokens/s", "beside", "ms a step", "of the bandwidth limit", "peak GB")


class Line(NamedTuple):
    """A line of the table, as it is shown; "-" where there is no such thing, or it was not measured."""

    shape: str
    what: str
    tokens_per_second: str = "-"
    beside: str = "-"
    step_ms: str = "-"
    share: str = "-"
    peak_gb: str = "-"


@dataclass(frozen=True)
class Work:
    """What is measured on a model of one shape."""

    shape: str
    vocabulary: int = 32_000
    rows: int = 64
    prompt: int = 128
    """Tokens of each."""
    new: int = 64
    records: int = 8
    """Records with an edit of their own."""
    trained: int = 256
    """Tokens of an example that a LoRA is trained on."""

    def bytes_needed(self) -> int:
        """Of the weights in bfloat16, the caches of three streams a row, and some to work in."""
        shape = SHAPES[self.shape]
        width, layers, inner = shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"]
        weights = layers * (4 * width**2 + 3 * width * inner) + 2 * self.vocabulary * width
        cache = 3 * self.rows * (self.prompt + self.new) * layers * 2 * width
        return int(2 * (weights + cache) * 1.2) + 4 * 2**30


WORKS = {
    "cpu": (Work("0.1M", 1_000, rows=4, prompt=8, new=8, records=2, trained=16),),
    "cuda": (Work("1B"), Work("7B")),
}


class Speed(NamedTuple):
    """Of one way of generating."""

    tokens: float
    """New ones a second, over all rows, the reading of the prompts included."""
    step: float
    """Seconds of a step behind the prompts."""
    peak_gb: float | None


def measurements(device: str) -> Iterator[tuple[str, str, Callable[[], Line]]]:
    """What is to be measured, in order: shape, what, and the measurement. Of a shape that the device has no room for
    there is one line, which says so. One that breaks off must not hide the others."""
    for work in WORKS[device]:
        if lacking := _lacking(work, device):
            yield work.shape, lacking, partial(Line, work.shape, lacking)
            continue
        shape = _Shape(work, device)
        for name, measurement in shape.measurements():
            yield work.shape, name, measurement
        shape.let_go()  # before it is asked whether there is room for the next


def _lacking(work: Work, device: str) -> str:
    """Why a shape is left out; "" where there is room for it."""
    import torch

    if device != "cuda":
        return ""
    free, _ = torch.cuda.mem_get_info()
    if free >= work.bytes_needed():
        return ""
    return f"left out: it needs {work.bytes_needed() / 2**30:.0f} GiB, and {free / 2**30:.0f} are free"


class _Shape:
    """A model of one shape, and what is measured on it."""

    def __init__(self, work: Work, device: str) -> None:
        self.work, self.device = work, device

    @cached_property
    def lm(self) -> LanguageModel:
        return random_lm(self.work.shape, self.work.vocabulary, device=self.device, dtype="bfloat16")

    @cached_property
    def limit(self) -> float:
        """Seconds that a step takes at the least."""
        return _bytes_of_a_step(self.lm, self.work) / bandwidth(self.device)

    @cached_property
    def base(self) -> Speed:
        """Of our engine, nothing in force."""
        return _measured(self.lm, self.work, partial(_engine, self.lm, self.work))

    def let_go(self) -> None:
        """Give the memory of the model back."""
        self.__dict__.pop("lm", None)
        gc.collect()
        empty_caches()

    def measurements(self) -> Iterator[tuple[str, Callable[[], Line]]]:
        """Each with its name."""
        yield f"base, {self.work.rows} rows", self._base
        yield "transformers.generate", self._transformers
        for name, make in CHANNELS.items():
            yield name, partial(self._under, name, lambda make=make: self.lm.applied(make(self.lm)))
        name = f"edits of {self.work.records} records, in one batch"
        yield name, partial(self._under, name, lambda: self.lm.routed(_edits(self.lm, self.work)))
        for again in (False, True):
            name = f"an update of a LoRA, 4 x {self.work.trained} tokens"
            name += ", gradient checkpointing" if again else ""
            yield name, partial(_trained, self, name, again)

    def _base(self) -> Line:
        return _line(self, f"base, {self.work.rows} rows", self.base, "-")

    def _transformers(self) -> Line:
        theirs = _measured(self.lm, self.work, partial(_transformers, self.lm, self.work))
        beside = f"{theirs.tokens / self.base.tokens:.2f} x the base"
        return _line(self, "transformers.generate", theirs, beside)

    def _under(self, name: str, changed: Callable[[], AbstractContextManager[None]]) -> Line:
        with changed():
            found = _measured(self.lm, self.work, partial(_engine, self.lm, self.work))
        return _line(self, name, found, f"{found.tokens / self.base.tokens:.2f} x the base")


def _line(shape: _Shape, what: str, speed: Speed, beside: str) -> Line:
    steps = (f"{1000 * speed.step:.2f}", f"{shape.limit / speed.step:.0%}") if speed.step > 0 else ("-", "-")
    peak = "-" if speed.peak_gb is None else f"{speed.peak_gb:.1f}"
    return Line(shape.work.shape, what, f"{speed.tokens:,.0f}", beside, *steps, peak)


# --------------------------------------------------------------------------------------------------------- generating


def _measured(lm: LanguageModel, work: Work, generate: Callable[[int], object]) -> Speed:
    """By so many new tokens and by a quarter of them, which tells the steps from the reading of prompts."""
    from detoxbench.runner.cost import Meter

    short = max(1, work.new // 4)
    generate(short)  # warms up
    lengths: dict[int, list[float]] = {work.new: [], short: []}
    with Meter(*lm.devices) as memory:
        for _ in range(REPEATS):
            for new, seconds in lengths.items():
                with Meter(*lm.devices) as meter:
                    generate(new)
                seconds.append(meter.seconds)
    long, quick = (statistics.median(seconds) for seconds in lengths.values())
    peak = None if memory.peak_mb is None else memory.peak_mb / 1024
    return Speed(work.rows * work.new / long, (long - quick) / (work.new - short), peak)


def _engine(lm: LanguageModel, work: Work, new: int) -> object:
    from detoxbench.config import GenSpec
    from detoxbench.engine.generation import generate
    from detoxbench.records import Request

    records = [str(i % work.records) for i in range(work.rows)]
    prompts = texts(lm, [work.prompt] * work.rows)
    asked = [
        Request(id=str(i), prompt=prompt, record=record, kind="x")
        for i, (prompt, record) in enumerate(zip(prompts, records, strict=True))
    ]
    gen = GenSpec(max_new_tokens=new, batch_tokens=3 * work.rows * (work.prompt + new + RANK))
    return list(generate(lm, asked, gen, 0, ends=frozenset()))


def _transformers(lm: LanguageModel, work: Work, new: int) -> object:
    import torch

    model: Any = lm.model
    ids = torch.tensor([lm.tokens(text) for text in texts(lm, [work.prompt] * work.rows)], device=lm.device)
    with torch.inference_mode():
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, min_new_tokens=new,
            pad_token_id=2,
        )  # fmt: skip


def bandwidth(device: str) -> float:
    """Bytes a second that the memory of a device reads and writes, by copying."""
    import torch

    source = torch.ones(COPIED[device] // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * COPIED[device] / statistics.median(seconds[2:])


def _bytes_of_a_step(lm: LanguageModel, work: Work) -> float:
    """That a step reads at the least: every weight but the embedding, and the keys and values of all rows, half of the
    new ones on the mean."""
    config = lm.model.config
    embedding = lm.model.get_input_embeddings().weight
    weights = sum(p.numel() * p.element_size() for p in lm.model.parameters() if p is not embedding)
    width = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    held = work.rows * (work.prompt + work.new / 2)
    return weights + held * config.num_hidden_layers * 2 * width * embedding.element_size()


# ----------------------------------------------------------------------------------------------------------- channels


def _intervention(lm: LanguageModel, **channels: Any) -> Intervention:
    from detoxbench.interventions.intervention import Intervention

    return Intervention(method="measured", base=lm.fingerprint, **channels)


def _down(lm: LanguageModel) -> str:
    """The weight that is edited: a down-projection in the middle."""
    return f"{lm.architecture.mlp_down(len(lm.architecture.layers) // 2)}.weight"


def _dense(lm: LanguageModel) -> Intervention:
    import torch

    from detoxbench.interventions.channels import Dense, Weight

    change = torch.full(lm.model.get_parameter(_down(lm)).shape, 2.0**-8)
    return _intervention(lm, weights=(Weight(_down(lm), Dense(change)),))


def _low_rank(lm: LanguageModel) -> Intervention:
    from detoxbench.interventions.channels import Weight

    return _intervention(lm, weights=tuple(Weight(name, low) for name, low in _lora(lm, 0).items()))


def _lora(lm: LanguageModel, seed: int) -> dict[str, LowRank]:
    """A small drawn LoRA on every linear layer but the head."""
    import torch

    from detoxbench.interventions.channels import LowRank

    draw, changes = torch.Generator().manual_seed(seed), dict[str, LowRank]()
    for path in lm.architecture.linear_maps():
        if path != lm.architecture.head:
            out, into = lm.architecture.module(path).weight.shape
            a, b = (torch.randn(shape, generator=draw) for shape in ((RANK, into), (out, RANK)))
            changes[f"{path}.weight"] = LowRank(a * 0.02, b * 0.02 / RANK**0.5)
    return changes


def _vector(lm: LanguageModel) -> Intervention:
    import torch

    from detoxbench.interventions.channels import Hook

    site = lm.architecture.layer(len(lm.architecture.layers) // 2)
    vector = torch.full((lm.architecture.hidden_size,), 0.01)
    return _intervention(lm, hooks=(Hook(site, "post", "caa.add", {"vector": vector}, {"strength": 1.0}),))


def _sphere(lm: LanguageModel) -> Intervention:
    import torch

    from detoxbench.interventions.channels import Hook

    params = {"alpha": 0.4, "gate": "none", "eps": 1e-6, "heads": 1}
    z = torch.nn.functional.normalize(torch.ones(lm.architecture.hidden_size), dim=-1)
    sites = [lm.architecture.attention_out(layer) for layer in range(len(lm.architecture.layers))]
    return _intervention(lm, hooks=tuple(Hook(site, "post", "destein.sphere", {"z": z}, params) for site in sites))


def _prefix(lm: LanguageModel) -> Intervention:
    import torch

    from detoxbench.interventions.channels import Prefix

    config = lm.model.config
    heads, head = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    return _intervention(lm, prefixes=(Prefix(torch.zeros(config.num_hidden_layers, 2, heads, RANK, head)),))


def _experts(lm: LanguageModel) -> Intervention:
    from detoxbench.interventions.channels import Carried, LogitOp, Weight

    under = {
        side: Carried(weights=tuple(Weight(name, low) for name, low in _lora(lm, seed).items()))
        for seed, side in enumerate(("expert", "anti_expert"))
    }
    op = LogitOp("dexperts.ensemble", params={"alpha": 2.0, "filter_p": 0.9}, under=under, sensitivity=5)
    return _intervention(lm, logits=(op,))


CHANNELS: dict[str, Callable[[LanguageModel], Intervention]] = {
    "weights: one dense edit": _dense,
    f"weights: low-rank side paths on every linear layer, rank {RANK}": _low_rank,
    "hook: one vector (caa)": _vector,
    "hooks: the sphere at every layer (destein)": _sphere,
    f"prefix of {RANK} tokens": _prefix,
    "logits: two LoRAs beside the base (dexperts)": _experts,
}


def _edits(lm: LanguageModel, work: Work) -> dict[str, Intervention]:
    """A dense edit of the same layer for each record."""
    return {str(record): _dense(lm) for record in range(work.records)}


# ----------------------------------------------------------------------------------------------------------- training


def _trained(shape: _Shape, what: str, again: bool) -> Line:
    """An update of a LoRA on the queries and values, four examples at once."""
    from detoxbench.data.examples import Instruction
    from detoxbench.fitting.training import LoraConfig, train_lora
    from detoxbench.runner.cost import Meter

    lm, length = shape.lm, shape.work.trained
    asked, answers = texts(lm, [length // 2] * 12), texts(lm, [length // 2] * 12, seed=1)
    examples = [Instruction(a, b, chat=False) for a, b in zip(asked, answers, strict=True)]
    config = LoraConfig(
        rank=RANK, target_modules=("q_proj", "v_proj"), epochs=1, batch_size=4, micro_batch_size=4, warmup_ratio=0.0,
        gradient_checkpointing=again,
    )  # fmt: skip
    train_lora(lm, examples[:4], config, seed=0, description="warming up")
    with Meter(*lm.devices) as meter:
        train_lora(lm, examples, config, seed=0, description="a LoRA")
    speed, step = f"{len(examples) * length / meter.seconds:,.0f}", f"{4000 * meter.seconds / len(examples):.2f}"
    peak = "-" if meter.peak_mb is None else f"{meter.peak_mb / 1024:.1f}"
    return Line(shape.work.shape, what, speed, step_ms=step, peak_gb=peak)
