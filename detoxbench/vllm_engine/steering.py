"""Hooks on vLLM's modules, which do to each token what ours do to each position.

vLLM's batch is flat: the tokens of all rows one behind the other, [tokens, width], some rows with their prompt and some
with one token. Its decoder layers take and give the residual stream in two parts, (hidden, residual), to be added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels import Hook, Weight
from detoxbench.interventions.operations import bound
from detoxbench.vllm_engine.choosing import PROMPT

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model

Change = Callable[["Tensor"], "Tensor"]
"""Of [tokens, width]."""


def put_on(lm: Model, runner: Any, biases: Sequence[Weight], hooks: Sequence[Hook], undo: ExitStack) -> None:
    """Have the changes of biases, then the hooks, act on the model of vLLM's `runner` until `undo` is closed.

    Raises DetoxbenchError where vLLM's model has no module of that name.
    """
    for weight in biases:
        path, shift = weight.parameter.rpartition(".")[0], weight.delta.tensors()["delta"]
        undo.callback(_on_output(_module(runner, path), _shifted(shift), layer=False).remove)
    for hook in hooks:
        change = _at_positions(lm, runner, hook)
        if hook.module == lm.architecture.head:
            _before_head(runner.model, change, undo)
            continue
        module, layer = _module(runner, hook.module), hook.module in lm.architecture.layers
        put = _on_input if hook.when == "pre" else _on_output
        undo.callback(put(module, change, layer=layer).remove)


def _module(runner: Any, path: str) -> Any:
    try:
        return runner.model.get_submodule(path)
    except AttributeError:
        raise DetoxbenchError(
            f"vLLM's {type(runner.model).__name__} has no module '{path}', where an intervention acts: choose "
            "engine=transformers"
        ) from None


def _shifted(shift: Tensor) -> Change:
    return lambda x: (x.float() + shift.to(x.device)).to(x.dtype)


def _at_positions(lm: Model, runner: Any, hook: Hook) -> Change:
    """The hook's function at the tokens where it acts."""
    function = bound(hook.op, hook.tensors, hook.params, lm.device)
    if hook.positions == "all":
        return function
    ahead = 1 if hook.positions == "predicting" else 0  # the last token of the prompt, too

    def change(x: Tensor) -> Tensor:
        on = text_tokens(runner, ahead).to(x.device)  # which tokens, by index
        return x.index_copy(0, on, function(x[on])) if len(on) else x

    return change


def text_tokens(runner: Any, ahead: int) -> Tensor:
    """Which tokens of the forward pass under way, by index in its flat batch, are those of a text or at most so many
    before it."""
    import torch

    batch, found = runner.input_batch, list[int]()
    for i, request in enumerate(batch.req_ids):
        start, end = int(runner.query_start_loc.np[i]), int(runner.query_start_loc.np[i + 1])
        first = int(batch.num_computed_tokens_cpu[i])  # the position of the row's first token in this pass
        prompt = runner.requests[request].sampling_params.extra_args[PROMPT]
        found += range(start + max(prompt - ahead - first, 0), end)
    return torch.tensor(found, dtype=torch.long)


def _on_output(module: Any, change: Change, *, layer: bool) -> Any:
    def hook(_: Any, __: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return change(output)
        if not layer or output[1] is None:  # of a linear map (output, its bias, which it has added already)
            return (change(output[0]), *output[1:])
        hidden, residual, *more = output
        return (change(hidden + residual), residual.new_zeros(residual.shape), *more)

    return module.register_forward_hook(hook)


def _on_input(module: Any, change: Change, *, layer: bool) -> Any:
    """Of a layer the residual stream that it is given: its first argument that is no vector of positions, and the one
    named or standing behind it."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not layer:
            return (change(args[0]), *args[1:]), kwargs
        given = dict(enumerate(args)) | kwargs
        keys = [key for key, x in given.items() if getattr(x, "ndim", 0) == 2 and x.is_floating_point()]
        hidden, *residual = keys
        if residual:
            given[hidden] = change(given[hidden] + given[residual[0]])
            given[residual[0]] = given[residual[0]].new_zeros(given[residual[0]].shape)
        else:
            given[hidden] = change(given[hidden])
        return tuple(given[i] for i in range(len(args))), {name: given[name] for name in kwargs}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _before_head(model: Any, change: Change, undo: ExitStack) -> None:
    """vLLM does not call the head as a module: what leads to it is replaced."""
    compute = model.compute_logits
    model.compute_logits = lambda hidden, *args, **kwargs: compute(change(hidden), *args, **kwargs)
    undo.callback(delattr, model, "compute_logits")
