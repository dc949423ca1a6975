"""A device that is not there: tensors that are moved to it stay in the memory of the CPU and carry its name.

Two modes of torch see everything. `_Names` sees what Python calls: it moves by copying, makes tensors "on" the device,
and answers `Tensor.device`. `_Meetings` sees the operations below: what they make is where their tensors are, and
tensors of two devices that meet raise `Meeting`, as on a real device. Both count transfers and waits.

Not seen: kernels, memory, rounding, and what libraries in C ask of a device by themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
aten = torch.ops.aten


class Meeting(RuntimeError):
    """What a real device would refuse."""


@dataclass
class Pretended:
    """Which tensors are on a device, by the storage that they share with their views, and what was counted."""

    to_device: int = 0
    """Copies from the CPU to a device, and from one device to another."""
    to_cpu: int = 0
    """Copies from a device to the CPU, numbers and lists read from its tensors among them."""
    waits: int = 0
    """Times that the CPU waits for the device: every blocking copy in either direction, and every operation whose
    outcome's size hangs on its values (nonzero, a mask as an index)."""
    launches: int = 0
    """Operations on tensors of a device, views left out: about the kernels that are started."""
    opened: set[int] = field(default_factory=set)
    """GPUs whose random generator was asked for, which opens them."""
    _storages: dict[int, tuple[StorageWeakRef, torch.device]] = field(default_factory=dict)
    """By address, which no other storage gets while there is a weak reference to it."""

    def of(self, tensor: Tensor) -> torch.device:
        """Where a tensor is: on the device that its storage was put on, else where it really is."""
        if tensor.is_meta or tensor.layout != torch.strided:
            return torch.device("meta") if tensor.is_meta else CPU
        found = self._storages.get(tensor.untyped_storage()._cdata)
        return CPU if found is None else found[1]

    def put(self, tensor: Tensor, device: torch.device) -> None:
        """Say where a new tensor is."""
        if tensor.is_meta or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        if device.type == "cpu":
            self._storages.pop(storage._cdata, None)
            return
        if device.type == "mps" and tensor.dtype == torch.float64:
            raise Meeting("mps has no float64")
        if len(self._storages) % 1024 == 1023:
            self._storages = {k: held for k, held in self._storages.items() if not held[0].expired()}
        self._storages[storage._cdata] = StorageWeakRef(storage), device

    def grouped(self, lists: Sequence[Sequence[Any]], with_indices: bool = False) -> dict[Any, Any]:
        """Lists of tensors by the device and type of those of the first list, as optimizers take them: in torch by code
        in C, which sees where tensors really are."""
        found: dict[Any, Any] = {}
        for i, first in enumerate(lists[0]):
            columns, indices = found.setdefault((self.of(first), first.dtype), ([[] for _ in lists], []))
            for column, of in zip(columns, lists, strict=True):
                column += [of[i]] if of else []
            indices += [i] if with_indices else []
        return found

    def count_copy(self, source: torch.device, to: torch.device, *, blocking: bool = True) -> None:
        """Count a copy from one place to another."""
        if source == to:
            return
        self.to_cpu += to.type == "cpu"
        self.to_device += to.type != "cpu"
        self.waits += blocking or to.type == "cpu"

    def counts(self) -> dict[str, int]:
        """All that is counted."""
        return {name: getattr(self, name) for name in ("to_device", "to_cpu", "waits", "launches")}


@contextmanager
def pretended_device() -> Iterator[Pretended]:
    """While open, devices such as "cuda:0" and "mps" seem to be there."""
    pretended = Pretended()
    meetings = _Meetings(pretended)

    def get_rng_state(device: int) -> Tensor:
        pretended.opened.add(device)
        return torch.zeros(16, dtype=torch.uint8)

    def mem_get_info(*_: Any) -> Any:
        raise RuntimeError("a device that is pretended has no memory")

    cuda = {"get_rng_state": get_rng_state, "set_rng_state": lambda *_: None, "mem_get_info": mem_get_info}
    with (
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", pretended.grouped),
        _loading_in_sight(),
        meetings,
        _Names(pretended, meetings),
    ):
        yield pretended


@contextmanager
def _loading_in_sight() -> Iterator[None]:
    """transformers reads weights in threads, which no mode sees, and on mps by code in C."""

    def opened(file: str, **_: Any) -> Any:
        return safe_open(file, framework="pt", device="cpu")

    threads = mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"})
    with threads, mock.patch("transformers.modeling_utils.safe_open", opened):
        yield


def device_of(given: Any) -> torch.device:
    """A device by its full name: "cuda" is "cuda:0"."""
    device = torch.device("cuda", given) if isinstance(given, int) else torch.device(given)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


# ------------------------------------------------------------------------------------------------ what Python calls

_DATA = (torch.tensor, torch.as_tensor, torch.asarray)
_TO_HOST = {Tensor.numpy: "numpy()", Tensor.__array__: "__array__"}
_DEVICE: Any = Tensor.device.__get__
_KINDS: dict[Any, str] = {
    getattr(Tensor, name).__get__: kind for name, kind in (("is_cuda", "cuda"), ("is_cpu", "cpu"), ("is_mps", "mps"))
}


class _Names(TorchFunctionMode):
    """Moves to devices, tensors made there, and questions where one is."""

    def __init__(self, pretended: Pretended, meetings: _Meetings) -> None:
        super().__init__()
        self.on, self.meetings = pretended, meetings

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func == _DEVICE:
            return self.on.of(args[0])
        if func in _KINDS:
            return self.on.of(args[0]).type == _KINDS[func]
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, args, given)
        if func is Tensor.tolist:
            self.on.count_copy(self.on.of(args[0]), CPU)
        if func in _TO_HOST and (device := self.on.of(args[0])).type != "cpu":
            raise Meeting(f"{_TO_HOST[func]} of a tensor on {device}: move it to the CPU first")
        inner = next((d for d in map(self.on.of, _tensors([*args, *given.values()])) if d.type != "cpu"), None)
        named = given.pop("device", None)
        asked = None if named is None else device_of(named)
        self.meetings.within.append(asked or inner)
        try:
            result = func(*args, **given)
        finally:
            self.meetings.within.pop()
        if asked is not None and isinstance(result, Tensor):
            result = self._made(func, args, result, asked)
        if func is Tensor.__deepcopy__ and isinstance(result, Tensor):
            self.on.put(result, self.on.of(args[0]))
        return result

    def _made(self, func: Callable[..., Any], args: Sequence[Any], result: Tensor, asked: torch.device) -> Tensor:
        """What a function with device=... gives."""
        if func in _DATA:  # from numbers of the CPU, or from a tensor
            source = self.on.of(args[0]) if isinstance(args[0], Tensor) else CPU
            self.on.count_copy(source, asked)
            result = result.clone() if isinstance(args[0], Tensor) and source != asked else result
        self.on.put(result, asked)
        return result

    def _moved(self, func: Callable[..., Any], args: Sequence[Any], given: dict[str, Any]) -> Tensor:
        """`x.to(...)`, `x.cpu()`, `x.cuda(...)`."""
        x: Tensor = args[0]
        source = self.on.of(x)
        if func is not Tensor.to:
            named = given.get("device", args[1] if len(args) > 1 else "cuda")
            target = CPU if func is Tensor.cpu else device_of(named)
            typed, blocking = x, True
        else:
            if isinstance(args[1] if len(args) > 1 else None, Tensor):
                args = (x, self.on.of(args[1]), args[1].dtype, *args[2:])
            copy = given.pop("copy", False)
            named, dtype, non_blocking, layout = torch._C._nn._parse_to(*args[1:], **given)
            target, blocking = source if named is None else device_of(named), not non_blocking
            typed = x.to(dtype or x.dtype, copy=copy, memory_format=layout or torch.preserve_format)
        if target == source:
            return typed
        self.on.count_copy(source, target, blocking=blocking)
        moved: Tensor = _Move.apply(typed, self.on, source, target)
        return moved


class _Move(torch.autograd.Function):
    """A copy elsewhere, whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, on: Pretended, source: torch.device, target: torch.device) -> Tensor:
        ctx.back = on, target, source
        return _elsewhere(x, on, target)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        on, source, target = ctx.back
        on.count_copy(source, target)
        return _elsewhere(gradients[0], on, target), None, None, None


def _elsewhere(x: Tensor, on: Pretended, target: torch.device) -> Tensor:
    launches = on.launches
    with torch._C.DisableTorchFunction():
        copy = x.detach().clone()
    on.launches = launches  # no kernel copies between devices
    on.put(copy, target)
    return copy


# ------------------------------------------------------------------------------------------- the operations below

_INDEX = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default}
_INDEX |= {aten._index_put_impl_.default, aten._unsafe_index_put.default}
_SIZED_BY_VALUES = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.equal.default, aten.bincount.default,
}  # fmt: skip
_NO_KERNEL = {
    aten._local_scalar_dense.default, aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default,
    aten.empty_strided.default, aten.lift_fresh.default, aten.detach.default,
}  # fmt: skip
_NO_FIXED_ORDER = {aten.cumsum.default, aten.cumsum_.default}
"""What refuses numbers with a fraction on CUDA under torch.use_deterministic_algorithms."""


class _Meetings(TorchDispatchMode):
    """Where what operations make is, and which ones would be refused."""

    def __init__(self, pretended: Pretended) -> None:
        super().__init__()
        self.on = pretended
        self.within: list[torch.device | None] = []
        """Where the calls under way, outermost first, make tensors of nothing."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        tensors = list(_tensors([*args, *given.values()]))
        with torch._C.DisableTorchFunction():
            places = [self.on.of(t) for t in tensors]
            device = self._device(func, args, tensors, places)
        # 1. An operation made of others, so that those are seen: `item` of `_local_scalar_dense`.
        if _composite(func):
            self.within.append(device if device.type != "cpu" else None)
            try:
                with self:
                    return func.decompose(*args, **given)
            finally:
                self.within.pop()
        # 2. What is refused or waited for, and the operation itself.
        with torch._C.DisableTorchFunction():
            self._refused(func, args, given, device)
            self._count(func, args, places, device)
            result = func(*args, **given)
            # 3. Where it gives something new, that is on the device of what it was made of.
            if device.type != "cpu":
                old = {t.untyped_storage()._cdata for t in tensors if t.layout == torch.strided}
                for new in _tensors([result]):
                    if new.layout == torch.strided and new.untyped_storage()._cdata not in old:
                        self.on.put(new, device)
        return result

    def _device(
        self, func: Any, args: Sequence[Any], tensors: Sequence[Tensor], places: Sequence[torch.device]
    ) -> torch.device:
        """The device of an operation. Raises Meeting for two of them."""
        if not tensors:
            return next((d for d in reversed(self.within) if d is not None), CPU)
        if func in (aten.copy_.default, aten._foreach_copy_.default):
            return places[0]
        # 1. A number of no dimension and indices may be on the CPU.
        indices = {id(t) for t in _tensors([args[1]])} if func in _INDEX else set()
        meeting = {
            device
            for tensor, device in zip(tensors, places, strict=True)
            if not (device.type == "cpu" and (tensor.dim() == 0 or id(tensor) in indices))
        }
        if len(meeting) > 1:
            raise Meeting(f"{func} of tensors on {' and '.join(sorted(map(str, meeting)))}")
        device = meeting.pop() if meeting else CPU
        # 2. What is written to is not moved by that.
        written = places[0] if func._schema.is_mutable else device
        if written != device:
            raise Meeting(f"{func} writes what is on {device} into a tensor on {written}")
        return device

    def _refused(self, func: Any, args: Sequence[Any], given: Mapping[str, Any], device: torch.device) -> None:
        if device.type == "cpu":
            return
        if given.get("generator") is not None:
            raise Meeting(f"{func} on {device} with a generator of the CPU")
        if device.type == "mps" and given.get("dtype") == torch.float64:
            raise Meeting(f"{func}: mps has no float64")
        unfixed = func in _NO_FIXED_ORDER and device.type == "cuda" and args[0].is_floating_point()
        if unfixed and torch.are_deterministic_algorithms_enabled():
            raise Meeting(f"{func} on CUDA has no deterministic implementation")

    def _count(self, func: Any, args: Sequence[Any], places: Sequence[torch.device], device: torch.device) -> None:
        if func is aten.copy_.default:
            self.on.count_copy(places[1], places[0], blocking=not (len(args) > 2 and args[2]))
        elif func is aten._local_scalar_dense.default:
            self.on.count_copy(device, CPU)
        if device.type == "cpu":
            return
        indices = list(_tensors([args[1]])) if func in _INDEX else []
        for index in indices:
            if self.on.of(index).type == "cpu" and index.dim():
                self.on.count_copy(CPU, device)
        masks = sum(index.dtype in (torch.bool, torch.uint8) for index in indices)  # each is looked through by nonzero
        self.on.waits += masks + (func in _SIZED_BY_VALUES)
        self.on.launches += not func.is_view and func not in _NO_KERNEL


_COMPOSITES: dict[Any, bool] = {}


def _composite(func: Any) -> bool:
    if func not in _COMPOSITES:
        key = torch._C.DispatchKey.CompositeImplicitAutograd
        _COMPOSITES[func] = func.namespace == "aten" and func.has_kernel_for_dispatch_key(key)
    return _COMPOSITES[func]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, also those in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
