"""Parameters of a model that are trained themselves (in full), and not by a LoRA beside them.

A parameter W acts as W + delta while it is trained, rounded once to its type, and the trained delta is held in float32:
small steps are not lost in a model of lower precision, nothing of the model is written to, and without delta it is the
model as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels.weights import require_in_memory, require_plain
from detoxbench.lm import LanguageModel

if TYPE_CHECKING:
    from torch import Tensor, nn

ALL = "all"
"""Stands for every parameter of the model."""
log = logging.getLogger("detoxbench")


def names_of(lm: LanguageModel, wanted: Sequence[str]) -> list[str]:
    """The parameters that the entries of method.parameters mean: "all", or parts of dotted names ("mlp.down_proj",
    "layers.3"). Parameters that are tied to another (most heads, to the embedding) are left out, with a warning.

    Raises DetoxbenchError for an entry that means nothing, or nothing that can be trained.
    """
    require_in_memory(lm)
    parameters = dict(lm.model.named_parameters(remove_duplicate=False))
    holders: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        holders.setdefault(parameter.data_ptr(), []).append(name)
    tied = {name for names in holders.values() if len(names) > 1 for name in names}
    chosen: set[str] = set()
    for entry in wanted:
        matches = {name for name in parameters if entry == ALL or f".{entry}." in f".{name}."}
        if not matches:
            raise DetoxbenchError(f"{type(lm.model).__name__} has no parameter '{entry}': set method.parameters")
        if matches <= tied:
            raise DetoxbenchError(f"'{min(matches)}' is tied to another parameter: leave it out of method.parameters")
        chosen |= matches
    if left := sorted(chosen & tied):
        log.warning("parameters that are tied to another are not trained: %s", ", ".join(left))
    names = [name for name in parameters if name in chosen - tied]
    for name in names:
        require_plain(lm, name, parameters[name])
    return names


@contextmanager
def trainable(lm: LanguageModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within, each named parameter is the model's plus a delta, which begins at 0, in float32, and alone is trained:
    gives them by name. `lm.model.disable_adapter()` is the model without, as PEFT's. Leaves parameters and modules as
    they were; flags, and the attribute, are the caller's to restore."""
    from torch.nn.utils import parametrize

    state = _State()
    with ExitStack() as undo:
        lm.model.requires_grad_(False)
        deltas: dict[str, Tensor] = {}
        for name in names:
            path, _, leaf = name.rpartition(".")
            module = lm.architecture.module(path)
            added = _added(module.get_parameter(leaf), state)
            undo.callback(_in_order, module, dict(module._parameters))
            parametrize.register_parametrization(module, leaf, added)
            undo.callback(parametrize.remove_parametrizations, module, leaf, leave_parametrized=False)
            deltas[name] = added.delta
        lm.model.disable_adapter = state.disabled
        yield deltas


def _in_order(module: nn.Module, parameters: dict[str, Any]) -> None:
    """Put the parameters back in the order in which they were."""
    module._parameters.clear()
    module._parameters.update(parameters)


class _State:
    """Whether the deltas act."""

    def __init__(self) -> None:
        self.on = True

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True


def _added(parameter: Tensor, state: _State) -> Any:
    """The parametrization of a parameter by its delta."""
    import torch

    class Added(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.delta = torch.nn.Parameter(torch.zeros_like(parameter, dtype=torch.float32))

        def forward(self, original: Tensor) -> Tensor:
            if not state.on:
                return original
            return (original + self.delta).to(original.dtype)  # the sum is in float32, at the least

    return Added()
