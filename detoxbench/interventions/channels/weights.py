"""How changes of weights take effect: merged into a parameter, or as a low-rank side path beside a linear map.

A change is merged by adding it in float32 and rounding once to the parameter's type. In bfloat16 or float16 that loses
everything below half a unit in the last place of a weight, which is most of a usual LoRA. A low-rank change can act as
a side path instead, `y + (x A^T) B^T` with float32 factors, added in float32 and rounded once with the output: this is
how PEFT computes a LoRA that is trained, so what was trained is what is measured. No weight is copied or written to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels.base import Channel
from detoxbench.interventions.channels.deltas import Delta, Dense, LowRank
from detoxbench.model.devices import computes_on, offloaded, with_float64
from detoxbench.model.finite import require_finite
from detoxbench.model.quantization import packed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from detoxbench.model.model import Model

ENOUGH = 0.9
"""A warning is given where a smaller share of a merged change survives."""


@dataclass(frozen=True)
class Weight(Channel):
    """A change of one parameter, named as in `named_parameters()`.

    A parameter that others share (a head that is the embedding) is changed only where that is meant: `tied`.
    """

    adds: ClassVar[bool] = False
    by_row: ClassVar[bool] = True

    parameter: str
    delta: Delta
    tied: bool = False

    @property
    def place(self) -> str:
        return self.parameter

    def named_tensors(self) -> Mapping[str, Tensor]:
        return self.delta.tensors()

    def as_json(self) -> dict[str, Any]:
        tied = {"tied": True} if self.tied else {}
        return {"parameter": self.parameter, "kind": type(self.delta).__name__, **tied}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Weight:
        kinds: dict[str, type[Dense] | type[LowRank]] = {"Dense": Dense, "LowRank": LowRank}
        return cls(document["parameter"], kinds[document["kind"]](**tensors), document.get("tied", False))

    @classmethod
    def put_on(cls, lm: Model, parts: Sequence[Weight], undo: ExitStack) -> None:
        put_on(lm, parts, undo)


@dataclass
class _Change:
    """All that is to happen to one parameter; `target` is None for a bias that is not there yet."""

    parameter: str
    path: str
    leaf: str
    module: nn.Module
    target: Tensor | None
    transposed: bool
    merged: list[Delta] = field(default_factory=list)
    beside: list[LowRank] = field(default_factory=list)


@dataclass(frozen=True)
class Edit:
    """What becomes of one parameter: its new value, a side path of its linear map, or both."""

    parameter: str
    value: Tensor | None
    side_path: LowRank | None


@dataclass(frozen=True)
class Record:
    """How changes of weights take effect, for the record of a run.

    `surviving_share` is <W' - W, D> / <D, D> over all changed weights, with D the change and W' the weights W + D
    rounded to their type: 1 for what a merge keeps whole, 0 for what it loses; also where nothing is merged. None where
    D is 0 or no weight could take it.
    """

    form: str
    """merged, side path, or "merged and side path"."""
    surviving_share: float | None
    merged_parameters: int
    side_path_parameters: int
    """Numbers in the factors of side paths."""


# ------------------------------------------------------------------------------------------------- what can be changed


def require_eager(lm: Model) -> None:
    """Raises DetoxbenchError for a compiled or scripted module, whose graph may use neither new hooks nor new weights.

    Known are `torch.compile(module)`, `module.compile()`, a compiled `forward`, and TorchScript.
    """
    import torch

    for path, module in lm.model.named_modules():
        forward = getattr(module, "forward", None)
        disabled = getattr(forward, "_torchdynamo_disable", False)
        traced = getattr(forward, "_torchdynamo_orig_callable", None) is not None and not disabled
        if traced or type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None):
            how = "torch.compile"
        elif isinstance(module, torch.jit.ScriptModule):
            how = "torch.jit"
        else:
            continue
        place = f"'{path}' of '{lm.name}'" if path else f"'{lm.name}'"
        raise DetoxbenchError(
            f"{place} is compiled ({how}), and its graph may ignore hooks and changed weights: give the model as it "
            "was before compiling"
        )


def require_plain(lm: Model, name: str, parameter: Tensor) -> None:
    """Raises DetoxbenchError for a parameter that a change cannot be added to: quantised, packed, or not in memory."""
    if what := packed(parameter):
        raise DetoxbenchError(
            f"'{name}' of '{lm.name}' is quantised or packed ({what}), and a change of it would be lost: load the "
            "model in float32, bfloat16 or float16 (low-rank changes of linear layers also work with "
            "low_rank=side_path)"
        )
    if parameter.is_meta:
        raise DetoxbenchError(
            f"'{name}' of '{lm.name}' is not in memory (device meta, offloaded), and a change of it would be lost: "
            "load the model without offloading (a larger GPU, or more of them); low-rank changes of linear layers also "
            "work with low_rank=side_path"
        )


def require_in_memory(lm: Model, path: str = "") -> None:
    """Raises DetoxbenchError where a parameter of the module (of the whole model) is offloaded."""
    module = lm.architecture.module(path)
    if (name := offloaded(module)) is not None:
        require_plain(lm, f"{path}.{name}".lstrip("."), module.get_parameter(name))


def _plain(lm: Model, name: str, parameter: Tensor) -> bool:
    try:
        require_plain(lm, name, parameter)
    except DetoxbenchError:
        return False
    return True


def _takes_side_path(lm: Model, path: str, leaf: str, module: nn.Module, target: Tensor) -> bool:
    """Whether a low-rank change of this parameter acts as a side path: of the weight of a linear map that is called as
    a module when text is read. Where code takes the weight itself, a side path would do nothing; it is merged."""
    from torch import nn

    if leaf != "weight":
        return False
    if not (isinstance(module, nn.Linear) or lm.architecture.transposed(path)):
        return False
    # A class with another forward may do more to the weight than multiply by it. Quantised ones always do.
    stock = type(module).forward is nn.Linear.forward or lm.architecture.transposed(path)
    return (stock or not _plain(lm, path, target)) and lm.architecture.called_for_text(path)


# ------------------------------------------------------------------------------------------------------- what happens


def edits(lm: Model, weights: Sequence[Weight], low_rank: str | None = None) -> Iterator[Edit]:
    """What becomes of each changed parameter, one at a time; a missing bias comes new. `low_rank` says whether low-rank
    changes are merged or side paths, by default as `lm.low_rank` does.

    Warns where less than `ENOUGH` of a merged change survives. Raises DetoxbenchError for a parameter that is not
    there, is tied to another or is quantised, and for a delta of another shape.
    """
    surviving, whole = 0.0, 0.0
    for change in _changes(lm, weights, low_rank or lm.low_rank):
        value = None
        if change.merged:
            value, parts = _merge(lm, change, change.merged)
            surviving, whole = surviving + parts[0], whole + parts[1]
        yield Edit(change.parameter, value, _sum(change.beside))
    if whole and surviving / whole < ENOUGH:
        import warnings

        warnings.warn(
            f"only {surviving / whole:.1%} of this change of '{lm.name}' survives being merged into its "
            f"{_name(lm.dtype)} weights: use low_rank=side_path for low-rank changes, or model.dtype=float32",
            stacklevel=2,
        )


def record(lm: Model, weights: Sequence[Weight]) -> Record | None:
    """How `weights` take effect on `lm`, None for none of them. Raises as `edits` does."""
    surviving, whole, merged, beside, forms = 0.0, 0.0, 0, 0, set[str]()
    for change in _changes(lm, weights, lm.low_rank):
        forms |= {"merged"} if change.merged else set()
        forms |= {"side path"} if change.beside else set()
        target = change.target
        if target is None or _plain(lm, change.parameter, target):
            _, parts = _merge(lm, change, [*change.merged, *change.beside], measure=True)
            surviving, whole = surviving + parts[0], whole + parts[1]
        merged += target.numel() if change.merged and target is not None else 0
        beside += sum(t.numel() for low in change.beside for t in low.tensors().values())
    return Record(" and ".join(sorted(forms)), surviving / whole if whole else None, merged, beside) if forms else None


def _changes(lm: Model, weights: Sequence[Weight], low_rank: str) -> Iterator[_Change]:
    """The changes by parameter, checked."""
    parameters = dict(lm.model.named_parameters(remove_duplicate=False))
    sharers: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        sharers.setdefault(parameter.data_ptr(), []).append(name)
    deltas: dict[str, list[Delta]] = {}
    for weight in weights:
        deltas.setdefault(weight.parameter, []).append(weight.delta)
    meant = {weight.parameter for weight in weights} - {weight.parameter for weight in weights if not weight.tied}
    for name, parts in deltas.items():
        path, _, leaf = name.rpartition(".")
        module, target = lm.architecture.module(path), parameters.get(name)
        change = _Change(name, path, leaf, module, target, lm.architecture.transposed(path))
        if target is None:
            new_bias = leaf == "bias" and getattr(module, "bias", False) is None
            if not new_bias or any(isinstance(part, LowRank) for part in parts):
                raise DetoxbenchError(f"{type(lm.model).__name__} has no parameter '{name}'")
            require_in_memory(lm, path)
        elif name not in meant and (
            shared := [n for n in sharers[target.data_ptr()] if n != name and not target.is_meta]
        ):
            raise DetoxbenchError(f"'{name}' is tied to '{shared[0]}': changing it would change both")
        beside = low_rank == "side_path" and target is not None and _takes_side_path(lm, path, leaf, module, target)
        for part in parts:
            if isinstance(part, LowRank) and beside:
                _check_factors(change, part)
                change.beside.append(part)
            else:
                change.merged.append(part)
        if change.merged and target is not None:
            require_plain(lm, name, target)
        yield change


def _check_factors(change: _Change, low: LowRank) -> None:
    module: Any = change.module
    shape = tuple(module.weight.shape)
    features = shape[::-1] if change.transposed else (module.out_features, module.in_features)
    if (low.b.shape[0], low.a.shape[1]) != features or low.a.shape[0] != low.b.shape[1]:
        raise DetoxbenchError(
            f"the delta of '{change.parameter}' is {tuple(low.b.shape)} times {tuple(low.a.shape)}, the linear map "
            f"gives {features[0]} of {features[1]} numbers"
        )


def _merge(
    lm: Model, change: _Change, parts: Sequence[Delta], *, measure: bool = False
) -> tuple[Tensor, tuple[float, float]]:
    """The parameter's new value, and (<W' - W, D>, <D, D>): in lower precision always, in float32 to `measure`."""
    import torch

    target = change.target
    if target is None:
        dtype, device = new_bias_like(lm, change.path)
        (first, *_) = parts
        target = torch.zeros(first.tensors()["delta"].shape, dtype=dtype, device=device)
    # Summed in float32 (float64 for such weights) and rounded once: a sum in lower precision would lose what is below
    # its last bit twice over.
    wide = torch.promote_types(target.dtype, torch.float32)
    before, total_delta = target.detach().to(wide), torch.zeros_like(target, dtype=wide)
    for part in parts:
        delta = full(part, change.transposed, before.device)
        if delta.shape != target.shape:
            raise DetoxbenchError(
                f"the delta of '{change.parameter}' is {tuple(delta.shape)}, the parameter is {tuple(target.shape)}"
            )
        total_delta += delta
    value = (before + total_delta).to(target.dtype)
    where, remedy = f"'{lm.name}' with its change", "the sum is too large for this dtype: lower the strength"
    require_finite([(change.parameter, value)], where, remedy)
    if not measure and target.dtype == wide:
        return value, (0.0, 0.0)
    moved = value.to(wide) - before
    return value, (
        float(with_float64(moved * total_delta).sum(dtype=torch.float64)),
        float(with_float64(total_delta.square()).sum(dtype=torch.float64)),
    )


def new_bias_like(lm: Model, path: str) -> tuple[torch.dtype, torch.device]:
    """Type and device of a bias that a linear map has not got yet: its weight's, unless that is quantised."""
    weight: Any = getattr(lm.architecture.module(path), "weight", None)
    plain = weight is not None and _plain(lm, path, weight)
    return (weight.dtype, weight.device) if plain else (lm.dtype, lm.device)


def full(delta: Delta, transposed: bool, device: Any) -> Tensor:
    """The whole change in float32, in the shape in which the weight is stored."""
    if isinstance(delta, Dense):
        return delta.delta.to(device).float()
    product = delta.b.to(device).float() @ delta.a.to(device).float()
    return product.T if transposed else product


def _sum(parts: Sequence[LowRank]) -> LowRank | None:
    """Several low-rank changes of one map as one, so that the output is rounded once."""
    total = None
    for part in parts:
        total = part if total is None else total + part
    return total


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


# --------------------------------------------------------------------------------------------------- putting them on


def put_on(lm: Model, weights: Sequence[Weight], undo: ExitStack) -> None:
    """Change the model's weights until `undo` is closed, which puts saved originals back, bit for bit."""
    import torch

    for edit in edits(lm, weights):
        path, _, leaf = edit.parameter.rpartition(".")
        module = lm.architecture.module(path)
        if edit.side_path is not None:
            _put_beside(lm, path, module, edit.side_path, undo)
        if edit.value is None:
            continue
        target = getattr(module, leaf)
        if target is None:
            module.bias = torch.nn.Parameter(edit.value, requires_grad=False)
            undo.callback(setattr, module, "bias", None)
        else:
            undo.callback(target.data.copy_, target.data.clone())
            target.data.copy_(edit.value)


def _put_beside(lm: Model, path: str, module: nn.Module, low: LowRank, undo: ExitStack) -> None:
    low = on_device(low, module, lm.device)
    forward: Callable[..., Tensor] = module.forward
    replace_forward(module, lambda x, *args, **kwargs: with_side_path(forward(x, *args, **kwargs), x, low), undo)
    stacked = lm.in_force.side_paths.setdefault(path, [])
    stacked.append(low)
    undo.callback(stacked.pop)


def on_device(low: LowRank, module: nn.Module, otherwise: torch.device) -> LowRank:
    """The factors in float32 where the module computes."""
    device = computes_on(module, otherwise)
    return LowRank(low.a.to(device).float(), low.b.to(device).float())


def with_side_path(output: Tensor, x: Tensor, low: LowRank) -> Tensor:
    """The output [..., out] of a linear map of `x` [..., in], and (x A^T) B^T, added in float32 and rounded once."""
    from torch.nn.functional import linear

    x = x.to(output.device, low.a.dtype)  # where a model is spread, what comes in may be on the device before
    return (output.float() + linear(linear(x, low.a), low.b)).to(output.dtype)


def replace_forward(module: nn.Module, forward: Callable[..., Any], undo: ExitStack) -> None:
    """Have `module` computed by `forward`, inside its hooks, until `undo` is closed."""
    before = vars(module).get("forward")  # set when something else has replaced it already
    module.forward = forward
    undo.callback(delattr, module, "forward") if before is None else undo.callback(setattr, module, "forward", before)


def as_info(effect: Record | None) -> Mapping[str, Any]:
    """A record as diagnostics of a run."""
    if effect is None:
        return {}
    return {"weight_changes": {"form": effect.form, "surviving_share": effect.surviving_share}}
