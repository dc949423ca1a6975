"""Next tokens as detoxbench chooses them, inside vLLM: its sampler is left one token of each row.

vLLM calls a logits processor with the logits of all rows that it runs at a step. Rows are at different steps of their
texts, and their noise depends on the step, so those at one step are chosen together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from detoxbench.config import GenSpec
from detoxbench.engine.logits import Place
from detoxbench.engine.next_token import next_tokens
from detoxbench.engine.streams import Streams

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.backend import Row
    from detoxbench.model.model import Model

ROW, PROMPT = "detoxbench_row", "detoxbench_prompt"
"""What a request brings in `SamplingParams.extra_args`: the number of its row, and the tokens of its prompt."""
Slots = Mapping[int, tuple[int, Sequence[int]]]
"""By place in vLLM's batch, the number of the row there and the tokens of its text so far, a list that vLLM extends."""


@dataclass
class Choices:
    """The rows that are generated now, and what was chosen for them."""

    lm: Model
    rows: Sequence[Row]
    gen: GenSpec
    spacing: float
    """Of the model's numbers (`precision.spacing`)."""
    near: set[tuple[int, int]] = field(default_factory=set)
    """(row, step) of the near-ties: a set, since vLLM runs a step again after it has put a row aside."""

    def made(self, logits: Tensor, slots: Slots) -> Tensor:
        """The logits [rows of vLLM's batch, vocabulary] with all but each row's token at -inf, and that at 0. Raises
        NonFiniteError."""
        import torch

        by_step: dict[int, list[int]] = {}
        for place, (_, text) in slots.items():
            by_step.setdefault(len(text), []).append(place)
        left = torch.full_like(logits, -torch.inf)
        for step, places in by_step.items():
            numbers = [slots[place][0] for place in places]
            tokens = self._at_step(logits[torch.tensor(places, device=logits.device)], numbers, step)
            left[torch.tensor(places), tokens] = 0.0
        return left

    def finish(self) -> None:
        """Count the near-ties."""
        for number, row in enumerate(self.rows):
            row.near_ties, row.done = sum(n == number for n, _ in self.near), True

    def _at_step(self, logits: Tensor, numbers: Sequence[int], step: int) -> Tensor:
        """The tokens of these rows, [rows] on the CPU, by their logits [rows, vocabulary] at one step."""
        import torch

        rows = [self.rows[number] for number in numbers]
        for row in rows:
            del row.new[step:]
        streams = Streams.of(self.lm, [row.request.record for row in rows])
        keys = torch.tensor([row.key for row in rows])
        place = Place([step] * len(rows), lambda on: [rows[i].prompt + rows[i].new for i in on], keys.tolist())
        tokens, near = next_tokens(self.lm, logits, streams, place, keys, self.gen, step, self.spacing, rows)
        for number, row, token, tied in zip(numbers, rows, tokens.tolist(), near.tolist(), strict=True):
            row.new.append(token)
            (self.near.add if tied else self.near.discard)((number, step))
        return tokens


class Desk:
    """Where vLLM's processor finds what is generated now."""

    def __init__(self) -> None:
        self.choices: Choices | None = None

    def processor(self) -> type[Any]:
        """The class of logits processors to give to vLLM."""
        from vllm.v1.sample.logits_processor import LogitsProcessor
        from vllm.v1.sample.logits_processor.builtin import process_dict_updates

        desk = self

        class Keyed(LogitsProcessor):  # type: ignore[misc]
            """`Choices.made` for the requests of ours."""

            def __init__(self, *_: Any) -> None:
                self.slots: dict[int, tuple[int, list[int]]] = {}

            def is_argmax_invariant(self) -> bool:
                return False

            def update_state(self, batch_update: Any) -> None:
                process_dict_updates(self.slots, batch_update, _slot)

            def apply(self, logits: Tensor) -> Tensor:
                return desk.choices.made(logits, self.slots) if desk.choices and self.slots else logits

        return Keyed


def _slot(params: Any, _: Any, text: list[int]) -> tuple[int, list[int]] | None:
    row = (params.extra_args or {}).get(ROW)
    return None if row is None else (row, text)
