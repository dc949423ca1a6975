"""What costs are measured with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detoxbench.interventions.channels import Dense, Prompt, Weight, weights
from detoxbench.interventions.intervention import Intervention
from detoxbench.records import Request
from detoxbench.runner.cost import added_prompt_tokens
from tests.support.tiny import tiny

DOWN = "model.layers.1.mlp.down_proj.weight"


def test_tokens_of_prompts_are_counted_without_putting_weights_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, touched = tiny(), list[int]()
    put_on = weights.put_on
    monkeypatch.setattr(
        weights, "put_on", lambda lm, parts, undo: touched.append(len(parts)) or put_on(lm, parts, undo)
    )
    cell: Any = SimpleNamespace(requests=[Request(id=p, prompt=p, record=p, kind="x") for p in ("hello", "why")])
    change = (Weight(DOWN, Dense(torch.ones(32, 48))),)
    both = Intervention(method="m", base=lm.fingerprint, weights=change, prompts=(Prompt(prefix="be kind . "),))
    assert added_prompt_tokens(cell, lm, both) == len(lm.encode("be kind . why")) - len(lm.encode("why")) > 5
    assert added_prompt_tokens(cell, lm, Intervention(method="m", base=lm.fingerprint, weights=change)) == 0
    assert sum(touched) == 0
