"""DeStein while generating, against the same engine without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.harness import Row, compare
from benchmarks.models import random_lm, texts
from detoxbench.config import GenSpec
from detoxbench.records import Request

if TYPE_CHECKING:
    from detoxbench.engine.generation import Generated
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

DEVICES = ("cpu", "cuda")


def rows(device: str) -> Iterator[Row]:
    import torch

    from detoxbench.interventions.channels import Dense, Hook, Weight
    from detoxbench.interventions.intervention import Intervention

    small = device == "cpu"
    lm = random_lm("110M" if small else "1B", 32_000, device=device, dtype="float32" if small else "bfloat16")
    sites = [lm.architecture.attention_out(layer) for layer in range(len(lm.architecture.layers))]
    drawn = torch.randn(len(sites), lm.architecture.hidden_size, generator=torch.Generator().manual_seed(0))
    directions = dict(zip(sites, torch.nn.functional.normalize(drawn, dim=-1), strict=True))
    params = {"alpha": 0.4, "gate": "none", "eps": 1e-6, "heads": 1}
    hooks = [Hook(site, "post", "destein.sphere", {"z": z}, params) for site, z in directions.items()]
    biases = [Weight(f"{site}.bias", Dense(-0.4 * z)) for site, z in directions.items()]
    forms = (
        ("on the sphere, as released", 1.03, Intervention(method="destein", base=lm.fingerprint, hooks=tuple(hooks))),
        ("folded into biases", 1.01, Intervention(method="destein", base=lm.fingerprint, weights=tuple(biases))),
    )
    for form, target, intervention in forms:
        yield _steered(lm, intervention, form, target, device)


def _steered(lm: LanguageModel, intervention: Intervention, form: str, target: float, device: str) -> Row:
    from detoxbench.engine.generation import generate

    gen = GenSpec(max_new_tokens=8, do_sample=True, top_p=0.9, n=25, tie_tolerance=0)
    prompts = texts(lm, [10] * (1 if device == "cpu" else 16))
    asked = [Request(id=str(i), prompt=prompt, record=str(i), kind="x") for i, prompt in enumerate(prompts)]

    def plain() -> list[list[Generated]]:
        return list(generate(lm, asked, gen, 0, ends=frozenset()))

    def steered() -> list[list[Generated]]:
        with lm.applied(intervention):
            return plain()

    def check(ours: Sequence[object], theirs: Sequence[object]) -> None:
        if ours == theirs:
            raise ValueError("steering changed no text")

    return compare(
        f"DeStein while generating, {form}",
        steered,
        plain,
        against="the same engine without it",
        target=target,
        repeats=7,
        unit="x the time",
        check=check,
        device=device,
    )
