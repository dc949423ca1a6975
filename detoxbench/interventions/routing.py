"""Different changes of one model for different rows of one batch.

A module whose parameters differ from row to row is called once for each variant, on the rows that have it, with the
variant's tensors in place of its own: the same operation on the same numbers as with that variant on the model alone.
Everything else is computed once for all rows, which is what a batch is for.

per_row_weights(lm, [tensors, ...])  each row is given the index of its variant; gradients flow
routed(lm, {record: intervention})   rows are those of requests, known by their record (the engine)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.apply import Applied, require_base
from detoxbench.interventions.channels import LowRank, Prompt
from detoxbench.interventions.channels.weights import (
    edits,
    new_bias_like,
    on_device,
    replace_forward,
    require_eager,
    require_plain,
    with_side_path,
)
from detoxbench.interventions.intervention import Intervention

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from detoxbench.model.model import Model

Split = tuple[list[tuple[int | None, int]], "Tensor | None", "Tensor | None"]
"""How a module divides the rows of a batch: (variant or None, its number of rows) for every call of the module; the
indices that bring the rows into this order, [rows]; those that bring them back, [rows] (both None: they are in it)."""


class _Rows:
    """The variant of each row of the coming forward passes."""

    def __init__(self) -> None:
        self.variants: list[int] = []
        self.tokens = 0
        self._splits: dict[frozenset[int], Split] = {}

    def set_rows(self, variants: Sequence[int]) -> None:
        """Say what the rows of the forward passes from here on are."""
        if self.variants != list(variants):
            self.variants, self._splits = list(variants), {}

    def check(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """A pre-hook of the whole model: the batch must be the one that was announced."""
        ids = args[0] if args else kwargs["input_ids"]
        if len(ids) != len(self.variants):
            raise DetoxbenchError(
                f"a batch of {len(ids)} rows where {len(self.variants)} were announced: while weights differ by row, "
                "say what the rows are before every forward pass (lm.reading)"
            )
        self.tokens = ids.shape[1]

    def split(self, known: frozenset[int], device: Any) -> Split:
        """How a module with the `known` variants divides the rows; those of other variants have its own parameters."""
        import torch

        if known not in self._splits:
            kinds = [v if v in known else None for v in self.variants]
            groups = list(dict.fromkeys(kinds))
            order = [row for group in groups for row, kind in enumerate(kinds) if kind == group]
            counted = [(group, kinds.count(group)) for group in groups]
            if order == sorted(order):
                self._splits[known] = counted, None, None
            else:
                sorting = torch.tensor(order)  # [rows]
                self._splits[known] = counted, sorting.to(device), sorting.argsort().to(device)
        return self._splits[known]

    def by_row(self, x: Tensor, path: str) -> Tensor:
        """`x` with the rows of the batch as its first dimension; some modules (OPT's MLP) get all rows as one."""
        rows = len(self.variants)
        if x.dim() > 2 and len(x) == rows:
            return x
        if x.shape[:-1].numel() != rows * self.tokens:
            raise DetoxbenchError(f"'{path}' is not given every row whole: its weights cannot differ by row")
        return x.reshape(rows, self.tokens, x.shape[-1])


@contextmanager
def per_row_weights(
    lm: Model, variants: Sequence[Mapping[str, Tensor]], side_paths: Sequence[Mapping[str, LowRank]] = ()
) -> Iterator[Callable[[Sequence[int]], None]]:
    """While open, each row is computed with the tensors of its variant (parameter -> value) in place of the model's,
    and with its variant's side paths (parameter -> low-rank change).

    Yields `set_rows(variants)`, to be called with the variant of every row before a forward pass. Tensors are cast to
    the parameter's type as they are used, so that fp32 leaves get a gradient; the model's own are not written to. A
    missing bias may be given. Raises DetoxbenchError for a module that is no linear map (Linear, Conv1D) or is
    compiled, for a quantised parameter, and where a batch is not the announced one.
    """
    rows, values, beside = _Rows(), _by_module(variants), _by_module(side_paths)
    with ExitStack() as undo:
        require_eager(lm)
        undo.callback(lm.model.register_forward_pre_hook(rows.check, with_kwargs=True).remove)
        for path in dict.fromkeys([*values, *beside]):
            if not _linear(lm, path):
                raise DetoxbenchError(f"'{path}' is no linear map: its weights cannot differ by row")
            low = {i: changes["weight"] for i, changes in beside.get(path, {}).items()}
            _vary(lm, path, values.get(path, {}), low, rows, undo)
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


def _vary(
    lm: Model,
    path: str,
    values: Mapping[int, Mapping[str, Tensor]],
    side_paths: Mapping[int, LowRank],
    rows: _Rows,
    undo: ExitStack,
) -> None:
    import torch

    module, known, nothing = lm.architecture.module(path), frozenset({*values, *side_paths}), dict[str, "Tensor"]()
    original: Callable[[Tensor], Tensor] = module.forward
    beside = {i: on_device(low, module) for i, low in side_paths.items()}
    types = {leaf: _type(lm, path, module, leaf) for parameters in values.values() for leaf in parameters}

    def call(variant: int | None, x: Tensor) -> Tensor:
        replaced = nothing if variant is None else values.get(variant, nothing)
        saved = {leaf: module._parameters[leaf] for leaf in replaced}
        try:
            for leaf, value in replaced.items():
                module._parameters[leaf] = value.to(types[leaf])  # type: ignore[assignment]
            output = original(x)
        finally:
            module._parameters.update(saved)
        return with_side_path(output, x, beside[variant]) if variant in beside else output

    def forward(x: Tensor) -> Tensor:
        groups, order, back = rows.split(known, x.device)
        if len(groups) == 1:
            return call(groups[0][0], x)
        batch = rows.by_row(x, path)
        batch = batch if order is None else batch.index_select(0, order)
        pieces = torch.split(batch, [count for _, count in groups])
        output = torch.cat([call(variant, piece) for (variant, _), piece in zip(groups, pieces, strict=True)])
        output = output if back is None else output.index_select(0, back)
        return output.reshape(*x.shape[:-1], output.shape[-1])

    replace_forward(module, forward, undo)


def _type(lm: Model, path: str, module: nn.Module, leaf: str) -> torch.dtype:
    """What a value of the parameter is cast to. Raises DetoxbenchError for one that is quantised."""
    parameter = module._parameters[leaf]
    if parameter is None:
        return new_bias_like(lm, path)[0]
    require_plain(lm, f"{path}.{leaf}", parameter)
    return parameter.dtype


def _linear(lm: Model, path: str) -> bool:
    from torch import nn

    return isinstance(lm.architecture.module(path), nn.Linear) or lm.architecture.transposed(path)


# --- interventions ----------------------------------------------------------------------------------------------------


def routable(lm: Model, intervention: Intervention) -> bool:
    """Whether it can differ from row to row: it acts through weights of linear maps and prompts only, others alone."""
    return all(part.by_row for _, part in intervention.parts()) and all(
        _linear(lm, w.parameter.rpartition(".")[0]) for w in intervention.weights
    )


@dataclass(frozen=True)
class Route:
    """Which intervention is in force for the rows of a record."""

    interventions: Mapping[str, Intervention]
    variants: Mapping[str, int]
    _set_rows: Callable[[Sequence[int]], None]

    def variant(self, record: str | None) -> int:
        """A number that is equal for two records exactly if the same change is in force for both."""
        if record is None or record not in self.variants:
            raise DetoxbenchError(f"no intervention is routed to record '{record}'; routed are {len(self.variants)}")
        return self.variants[record]

    def method(self, record: str) -> str:
        """The method of the record's intervention."""
        return self.interventions[record].method

    def prompts(self, record: str | None) -> tuple[Prompt, ...]:
        """The record's rewritings of prompts, innermost first."""
        self.variant(record)
        return self.interventions[str(record)].prompts

    def set_rows(self, records: Sequence[str]) -> None:
        """Say of which record each row of the coming forward passes is."""
        self._set_rows([self.variant(record) for record in records])


def routed(lm: Model, interventions: Mapping[str, Intervention]) -> Applied:
    """Put on each record's intervention for the rows of that record, all at once (a context); the engine tells rows
    apart by `Request.record`. What is on already (`applied`) is below all of them; nothing can be put on top.

    Every row is computed with the very tensors and side paths that `applied` would put there. Entering raises
    DetoxbenchError like `applied`, and for an intervention that is not `routable`.
    """
    methods = sorted({i.method for i in interventions.values()})
    return Applied(lm.model, ", ".join(methods), lambda undo: _route(lm, interventions, undo))


def _route(lm: Model, interventions: Mapping[str, Intervention], undo: ExitStack) -> None:
    if lm.in_force.route is not None:
        raise DetoxbenchError("interventions are routed already: leave that block first")
    require_eager(lm)
    distinct = {id(i): i for i in interventions.values()}
    for intervention in distinct.values():
        require_base(lm, intervention)
        intervention.require_finite()
        if not routable(lm, intervention):
            raise DetoxbenchError(
                f"an intervention of '{intervention.method}' changes more than prompts and linear maps: it cannot "
                "differ by row, apply it alone"
            )
    place = {key: i for i, key in enumerate(distinct)}
    edited = [list(edits(lm, i.weights)) for i in distinct.values()]
    values = [{e.parameter: e.value for e in changes if e.value is not None} for changes in edited]
    side_paths = [{e.parameter: e.side_path for e in changes if e.side_path is not None} for changes in edited]
    set_rows = undo.enter_context(per_row_weights(lm, values, side_paths))
    undo.callback(setattr, lm.in_force, "route", None)
    lm.in_force.route = Route(interventions, {record: place[id(i)] for record, i in interventions.items()}, set_rows)
