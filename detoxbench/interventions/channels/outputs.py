"""Choices among texts that were written whole, by a guide: best of n, and filters."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.interventions.channels.base import Channel, Params
from detoxbench.model.in_force import Outcome, OutputFunction
from detoxbench.registry import SCORERS

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model

log = logging.getLogger("detoxbench")
Guide = Callable[[Sequence[str], Sequence[str]], "list[float | None]"]
"""guide(texts, prompts): how bad each text is, a probability; None where it has no verdict."""


@dataclass(frozen=True)
class Output(Channel):
    """A decision over whole texts by how bad a guide finds them: among `candidates` texts the one that it finds least
    bad ("choose", of equal ones the first), or `text` in the place of one that it finds at least as bad as `threshold`
    ("replace").

    The guide is a registered scorer, or, with guide="linear", `tensors`: the weight of each of the model's tokens that
    a text holds, [vocabulary], and a bias, [1]. `reads` says what it is given: the answer, the prompt, or the worse of
    both. Candidates are samples of their own, drawn as the suite draws, or by temperature alone where it draws none.
    """

    optional: ClassVar[bool] = True
    compilable: ClassVar[bool] = True

    do: Literal["choose", "replace"]
    guide: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    candidates: int = 1
    threshold: float = 0.5
    text: str = ""
    reads: Literal["answer", "prompt", "both"] = "answer"

    def __post_init__(self) -> None:
        if self.do not in ("choose", "replace") or self.reads not in ("answer", "prompt", "both"):
            raise UsageError(f"an output has do={self.do!r} and reads={self.reads!r}: see Output for what there is")
        if self.candidates < 1 or (self.do == "replace" and self.candidates > 1):
            raise UsageError(f"an output has candidates={self.candidates}: choose among 1 or more, and replace one")

    @property
    def place(self) -> str:
        return f"texts that '{self.guide}' judges"

    def named_tensors(self) -> Mapping[str, Tensor]:
        return self.tensors

    def as_json(self) -> dict[str, Any]:
        keys = ("do", "guide", "candidates", "threshold", "text", "reads")
        return {key: getattr(self, key) for key in keys}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Output:
        return cls(**document, tensors=tensors)

    def settings(self) -> Params:
        return {"threshold": self.threshold}

    @classmethod
    def put_on(cls, lm: Model, parts: Sequence[Output], undo: ExitStack) -> None:
        for part in parts:
            guide = _linear(lm, part.tensors) if part.guide == "linear" else _scorer(part.guide)
            decide = _choose if part.do == "choose" else _replace
            function = OutputFunction(part.candidates, _by(part, guide, decide))
            lm.in_force.outputs.append(function)
            undo.callback(lm.in_force.outputs.pop)


Decide = Callable[[Output, Sequence["float | None"]], Outcome]


def _by(
    part: Output, guide: Guide, decide: Decide
) -> Callable[[Sequence[str], Sequence[Sequence[str]]], list[Outcome]]:
    """Ask the guide once for all candidates, and decide for each prompt."""

    def all_decided(prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[Outcome]:
        texts = [text for of in candidates for text in of]
        of_text = [prompt for prompt, of in zip(prompts, candidates, strict=True) for _ in of]
        worst: list[float | None] = [None] * len(texts)
        if part.reads in ("answer", "both"):
            worst = guide(texts, of_text)
        if part.reads in ("prompt", "both"):
            of_prompts = iter(guide(prompts, [""] * len(prompts)))
            spread = [verdict for of in candidates for verdict in [next(of_prompts)] * len(of)]
            worst = [max((x for x in pair if x is not None), default=None) for pair in zip(worst, spread, strict=True)]
        verdicts = iter(worst)
        return [decide(part, [next(verdicts) for _ in of]) for of in candidates]

    return all_decided


def _choose(_: Output, verdicts: Sequence[float | None]) -> Outcome:
    """The least bad one; one without a verdict only where none has one."""
    known = [(value, i) for i, value in enumerate(verdicts) if value is not None]
    return Outcome(min(known)[1] if known else 0)


def _replace(part: Output, verdicts: Sequence[float | None]) -> Outcome:
    """The text that stands for a bad one. A text without a verdict is let through, as by a filter that fails."""
    (verdict,) = verdicts
    return Outcome(0, part.text if verdict is not None and verdict >= part.threshold else None)


def _scorer(name: str) -> Guide:
    scorer: Any = SCORERS.get(name)(name=name)

    def guide(texts: Sequence[str], prompts: Sequence[str]) -> list[float | None]:
        rows = scorer.score(texts, prompts)
        if len(rows) != len(texts):
            raise DetoxbenchError(f"the guide '{name}' gave {len(rows)} verdicts for {len(texts)} texts: mend it")
        verdicts = [None if row is None else _number(row.get(scorer.primary)) for row in rows]
        lacking = sum(v is None and bool(t.strip()) for v, t in zip(verdicts, texts, strict=True))
        if lacking:
            log.warning("the guide '%s' has no verdict on %d of %d texts", name, lacking, len(texts))
        return verdicts

    return guide


def _number(value: Any) -> float | None:
    """None for what is no finite number, which would win or lose every comparison."""
    return float(value) if value is not None and math.isfinite(value) else None


def _linear(lm: Model, tensors: Mapping[str, Tensor]) -> Guide:
    weights, bias = tensors["weights"].double(), float(tensors["bias"])

    def guide(texts: Sequence[str], _: Sequence[str]) -> list[float | None]:
        import torch

        held = [torch.tensor(sorted(set(lm.tokens(text, special=False))), dtype=torch.long) for text in texts]
        return [float(torch.sigmoid(weights[ids].sum() + bias)) for ids in held]

    return guide
