"""What a step of the engine asks of a device beside the forward pass: times it is waited for, copies, kernels.

Counted on a pretended device, in bfloat16, where no row is computed again. A copy to the device that does not wait
for it is no wait; the forward pass itself (of transformers) waits once a step to look whether the mask has padding.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from detoxbench.config import GenSpec
from detoxbench.engine import generation
from detoxbench.engine.likelihood import loglikelihoods
from detoxbench.lm import LanguageModel
from detoxbench.records import Request
from tests.support.pretended_device import Pretended, pretended_device
from tests.support.tiny import tiny

PROMPTS = ["the cat sat", "why are you"]


def peaked(sharpness: float = 10.0) -> LanguageModel:
    """A model whose next tokens are few of many, as those of a trained one."""
    lm = tiny(dtype=torch.bfloat16, vocab_size=2000)
    lm.model.lm_head.weight.data *= sharpness
    return lm


def requests(text: str | None = None) -> list[Request]:
    return [Request(id=p, prompt=p, record=p, kind="x", text=text) for p in PROMPTS]


class Beside:
    """What is counted outside of the forward passes of a model."""

    def __init__(self, on: Pretended, lm: LanguageModel) -> None:
        self.on, self.inside, self.begun = on, Counter[str](), Counter[str]()
        lm.model.register_forward_pre_hook(lambda *_: setattr(self, "begun", Counter(on.counts())))
        lm.model.register_forward_hook(lambda *_: self.inside.update(self.since(self.begun)))

    def since(self, begun: Counter[str]) -> Counter[str]:
        now = Counter(self.on.counts())
        now.subtract(begun)
        return now

    def now(self) -> Counter[str]:
        return self.since(self.inside)


def of_a_step(lm: LanguageModel, gen: GenSpec) -> dict[str, float]:
    """What a step adds to a generation of so many, on the average of eight."""
    with pretended_device() as on:
        lm.model.to("cuda:1")
        beside, counts = Beside(on, lm), [Counter[str]()]
        for steps in (8, 16):
            longer = dataclasses.replace(gen, max_new_tokens=steps)
            begun = beside.now()
            made = [g for part in generation.generate(lm, requests(), longer, 0, ends=frozenset()) for g in part]
            assert [g.sample.tokens for g in made] == [steps] * len(PROMPTS)
            found = beside.now()
            found.subtract(begun)
            counts.append(found)
    return {name: (counts[2][name] - counts[1][name]) / 8 for name in on.counts()}


@pytest.mark.parametrize(
    ("gen", "waits", "to_device", "to_cpu", "launches"),
    [
        pytest.param(GenSpec(), 1, 1, 1, 23, id="greedy"),
        pytest.param(GenSpec(do_sample=True, top_p=0.9), 2, 2, 2, 147, id="top-p"),
        pytest.param(GenSpec(do_sample=True, top_k=50), 2, 2, 2, 117, id="top-k"),
        pytest.param(GenSpec(do_sample=True), 2, 2, 2, 73, id="all tokens"),
    ],
)
def test_a_step_asks_no_more_of_a_device_than_this(
    gen: GenSpec, waits: int, to_device: int, to_cpu: int, launches: int
) -> None:
    most = {"to_device": to_device, "to_cpu": to_cpu, "waits": waits, "launches": launches}
    found = of_a_step(peaked(), gen)
    assert all(found[name] <= most[name] for name in most), f"{found}, at most {most}"


def test_a_flat_distribution_waits_once_for_each_number_of_candidates() -> None:
    found = of_a_step(peaked(1.0), GenSpec(do_sample=True, top_p=0.9))
    assert (found["waits"], found["to_cpu"]) == (4, 4)  # 256, 1,024, and all 2,000; then the tokens


def test_a_pass_over_given_texts_waits_for_its_likelihoods_alone() -> None:
    lm = peaked()
    with pretended_device() as on:
        lm.model.to("cuda:1")
        beside = Beside(on, lm)
        begun, asked = beside.now(), requests(" and more .")
        list(loglikelihoods(lm, asked, set(PROMPTS)))
        found = beside.now()
        found.subtract(begun)
    assert found["waits"] == found["to_cpu"] == 3  # whether all are finite, the likelihoods, and which were likeliest
