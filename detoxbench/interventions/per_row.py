"""Different weights for different rows of one batch.

A module whose parameters differ from row to row is called once for each variant, on the rows that have it, with the
variant's tensors in place of its own: the same operation on the same numbers as with that variant on the model alone.
Low-rank changes are side paths: the module is called once for all rows, and each row adds what its own variant has.
Everything else is computed once for all rows, which is what a batch is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels.deltas import LowRank
from detoxbench.interventions.channels.weights import (
    new_bias_like,
    on_device,
    replace_forward,
    require_eager,
    require_plain,
    with_side_path,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from detoxbench.model.model import Model

Split = tuple[list[tuple[int | None, int]], "Tensor | None", "Tensor | None"]
"""How a module divides the rows of a batch: (variant or None, its number of rows) for every call of the module; the
indices that bring the rows into this order, [rows]; those that bring them back, [rows] (both None: they are in it)."""


class _Rows:
    """The variant of each row of the coming forward passes. Where none is announced, all rows have the model's own
    weights, or, where they `must` be announced, nothing is computed."""

    def __init__(self, must: bool) -> None:
        self.must = must
        self.variants: list[int] = []
        self.tokens = 0
        self._splits: dict[tuple[frozenset[int], Any], Split] = {}
        self._places: dict[tuple[frozenset[int], Any], list[tuple[int, slice | Tensor]]] = {}

    def set_rows(self, variants: Sequence[int]) -> None:
        """Say what the rows of the forward passes from here on are."""
        if self.variants != list(variants):
            self.variants, self._splits, self._places = list(variants), {}, {}

    def check(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """A pre-hook of the whole model: the batch must be the one that was announced."""
        ids = args[0] if args else kwargs["input_ids"]
        if len(ids) != len(self.variants) and (self.variants or self.must):
            raise DetoxbenchError(
                f"a batch of {len(ids)} rows where {len(self.variants)} were announced: while weights differ by row, "
                "say what the rows are before every forward pass (lm.reading)"
            )
        self.tokens = ids.shape[1]

    def split(self, known: frozenset[int], device: Any) -> Split:
        """How a module with the `known` variants divides the rows; those of other variants have its own parameters.
        The indices are on the `device`, as modules may lie on several."""
        import torch

        if (known, device) not in self._splits:
            kinds = [v if v in known else None for v in self.variants]
            groups = list(dict.fromkeys(kinds))
            order = [row for group in groups for row, kind in enumerate(kinds) if kind == group]
            counted = [(group, kinds.count(group)) for group in groups]
            if order == sorted(order):
                self._splits[known, device] = counted, None, None
            else:
                sorting = torch.tensor(order)  # [rows]
                self._splits[known, device] = counted, sorting.to(device), sorting.argsort().to(device)
        return self._splits[known, device]

    def places(self, known: frozenset[int], device: Any) -> list[tuple[int, slice | Tensor]]:
        """(variant, its rows) of each of the `known` variants that has any: a slice where they lie side by side, as a
        rule, so that nothing is copied, else their indices, [rows of the variant]."""
        import torch

        if (known, device) not in self._places:
            found: dict[int, list[int]] = {}
            for row, variant in enumerate(self.variants):
                if variant in known:
                    found.setdefault(variant, []).append(row)
            self._places[known, device] = [
                (variant, slice(those[0], those[-1] + 1))
                if those == list(range(those[0], those[-1] + 1))
                else (variant, torch.tensor(those, device=device))
                for variant, those in found.items()
            ]
        return self._places[known, device]

    def by_row(self, x: Tensor, path: str) -> Tensor:
        """`x` with the rows of the batch as its first dimension; some modules (OPT's MLP) get all rows as one."""
        rows = len(self.variants)
        if x.dim() > 2 and len(x) == rows:
            return x
        if x.shape[:-1].numel() != rows * self.tokens:
            raise DetoxbenchError(f"'{path}' is not given every row whole: its weights cannot differ by row")
        return x.reshape(rows, self.tokens, x.shape[-1])

    def apart(
        self, path: str, known: frozenset[int], call: Callable[[int | None, Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """`call(variant, rows)` for the rows of each of the `known` variants, and with None for all others: the outputs
        in the order of the rows. `x`, [..., width], is given to the module at `path`, for all rows."""
        import torch

        if not self.variants:
            return call(None, x)
        groups, order, back = self.split(known, x.device)
        if len(groups) == 1:
            return call(groups[0][0], x)
        batch = self.by_row(x, path)  # [rows, tokens, width]
        if order is not None:
            batch = batch.index_select(0, order)
        pieces = torch.split(batch, [count for _, count in groups])
        output = torch.cat([call(variant, piece) for (variant, _), piece in zip(groups, pieces, strict=True)])
        output = output if back is None else output.index_select(0, back)
        return output.reshape(*x.shape[:-1], output.shape[-1])


@contextmanager
def per_row_weights(
    lm: Model,
    variants: Sequence[Mapping[str, Tensor]],
    side_paths: Sequence[Mapping[str, LowRank]] = (),
    *,
    must_announce: bool = True,
) -> Iterator[Callable[[Sequence[int]], None]]:
    """While open, each row is computed with the tensors of its variant (parameter -> value) in place of the model's,
    and with its variant's side paths (parameter -> low-rank change).

    Yields `set_rows(variants)`, to be called with the variant of every row before a forward pass (-1: none); without
    `must_announce` a pass that was not announced has no variants. Tensors are cast to the parameter's type as they are
    used, so that fp32 leaves get a gradient; the model's own are not written to. A missing bias may be given. Raises
    DetoxbenchError for a module that is no linear map (Linear, Conv1D) or is compiled, for a quantised parameter, and
    where a batch is not the announced one.
    """
    rows, values, beside = _Rows(must_announce), _by_module(variants), _by_module(side_paths)
    with ExitStack() as undo:
        require_eager(lm)
        undo.callback(lm.model.register_forward_pre_hook(rows.check, with_kwargs=True).remove)
        for path in dict.fromkeys([*values, *beside]):
            if not is_linear(lm, path):
                raise DetoxbenchError(f"'{path}' is no linear map: its weights cannot differ by row")
            if path in values:
                _replace(lm, path, values[path], rows, undo)
            if path in beside:
                _add(lm, path, {i: changes["weight"] for i, changes in beside[path].items()}, rows, undo)
        yield rows.set_rows


T = TypeVar("T")


def _by_module(variants: Sequence[Mapping[str, T]]) -> dict[str, dict[int, dict[str, T]]]:
    """Module path -> variant -> name of the parameter in its module -> its value."""
    grouped: dict[str, dict[int, dict[str, T]]] = {}
    for i, variant in enumerate(variants):
        for name, value in variant.items():
            path, _, leaf = name.rpartition(".")
            grouped.setdefault(path, {}).setdefault(i, {})[leaf] = value
    return grouped


def _replace(lm: Model, path: str, values: Mapping[int, Mapping[str, Tensor]], rows: _Rows, undo: ExitStack) -> None:
    """Have the module called once for each variant, with that variant's parameters."""
    module, nothing = lm.architecture.module(path), dict[str, "Tensor"]()
    original: Callable[[Tensor], Tensor] = module.forward
    types = {leaf: _type(lm, path, module, leaf) for parameters in values.values() for leaf in parameters}

    def call(variant: int | None, x: Tensor) -> Tensor:
        replaced = nothing if variant is None else values[variant]
        saved = {leaf: module._parameters[leaf] for leaf in replaced}
        try:
            for leaf, value in replaced.items():
                module._parameters[leaf] = value.to(types[leaf])  # type: ignore[assignment]
            return original(x)
        finally:
            module._parameters.update(saved)

    replace_forward(module, lambda x: rows.apart(path, frozenset(values), call, x), undo)


def _add(lm: Model, path: str, changes: Mapping[int, LowRank], rows: _Rows, undo: ExitStack) -> None:
    """Have the module called once for all rows, and each variant's side path added to its rows."""
    module = lm.architecture.module(path)
    original: Callable[[Tensor], Tensor] = module.forward
    beside = {i: on_device(low, module, lm.device) for i, low in changes.items()}

    def forward(x: Tensor) -> Tensor:
        output = original(x)
        if not rows.variants:
            return output
        x = x.to(output.device)  # as in `with_side_path`
        inputs, outputs = rows.by_row(x, path), rows.by_row(output, path)  # [rows, tokens, in] and [rows, tokens, out]
        for variant, those in rows.places(frozenset(beside), x.device):
            outputs[those] = with_side_path(outputs[those], inputs[those], beside[variant])
        return outputs.reshape(output.shape)

    replace_forward(module, forward, undo)


def _type(lm: Model, path: str, module: nn.Module, leaf: str) -> torch.dtype:
    """What a value of the parameter is cast to. Raises DetoxbenchError for one that is quantised."""
    parameter = module._parameters[leaf]
    if parameter is None:
        return new_bias_like(lm, path)[0]
    require_plain(lm, f"{path}.{leaf}", parameter)
    return parameter.dtype


def is_linear(lm: Model, path: str) -> bool:
    """Whether the module at `path` multiplies its input by its weight, and may add a bias."""
    from torch import nn

    return isinstance(lm.architecture.module(path), nn.Linear) or lm.architecture.transposed(path)
