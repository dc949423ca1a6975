"""Where models are: a device is picked, may have too little memory, and lacks some of what the CPU can do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_NO_ROOM = ("out of memory", "can't allocate memory", "not enough memory", "_status_alloc_failed")
"""What torch says for want of memory; the last is cuBLAS's and cuDNN's, when their own workspace found none."""


def pick_device(device: str) -> str:
    """auto is cuda, else mps, else cpu. Raises UsageError for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"model.device={device} is not available on this machine: {str(error).splitlines()[0]}"
        ) from None
    return device


def placed(model: Any, device: str, thing: str) -> Any:
    """The model on the device that `pick_device` gives. Raises DetoxbenchError, which begins with `thing` ("the model
    in 'FOLDER'"), where it has too little memory for it."""
    device = pick_device(device)
    try:
        return model.to(device)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        raise no_room(thing, device, size) from None


def no_room(thing: str, device: str, size: int) -> DetoxbenchError:
    """What is raised where a model of `size` bytes does not fit on a device."""
    return DetoxbenchError(
        f"{thing} does not fit on {device}: it takes {size / 2**30:.1f} GiB, and there is less left; end what else is "
        "on the device, choose dtype=bfloat16, a smaller model, or device=cpu"
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what is raised for want of memory, on the CPU or on a device."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_ROOM)


def fits_in_memory(work: Callable[[], object]) -> bool:
    """Do some work, and say whether memory was large enough for it. Where it was not, all that the work held is given
    back by then: the error, which would keep it, goes no further."""
    try:
        work()
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    else:
        return True
    empty_caches()
    return False


def empty_caches() -> None:
    """Give back to the devices what torch keeps of their memory without need."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def computes_on(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a module computes: where accelerate has it computed, if a model is spread over devices, else where its
    tensors are; `otherwise` where it has none."""
    import torch

    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        if (place := getattr(part, "execution_device", None)) is not None:
            return torch.device(place)
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return otherwise if first is None else first.device


def of_inputs(model: Any) -> torch.device:
    """Where a model takes its token ids, and gives its logits back."""
    device: torch.device = model.device
    return device if device.type != "meta" else computes_on(model.get_input_embeddings(), device)


def offloaded(module: nn.Module) -> str | None:
    """The name of the first parameter that is not in memory while it is not used; None where there is none."""
    return next((name for name, parameter in module.named_parameters() if parameter.is_meta), None)


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """While open, the module's own parameters are in memory, to be read, also those that are offloaded."""
    if not any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def sent(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, which is not waited for where that is safe: CUDA takes what it is sent before it gives
    the control back."""
    return x.to(device, non_blocking=device.type == "cuda")


def with_float64(x: Tensor) -> Tensor:
    """The tensor where there is float64: on the CPU, if it is on mps, which has none."""
    return x.cpu() if x.device.type == "mps" else x


def double(x: Tensor) -> Tensor:
    """The tensor in float64, on its device where that has it."""
    return with_float64(x).double()


def running_sum(x: Tensor) -> Tensor:
    """`x.cumsum(-1)`. CUDA has none whose order of additions is fixed, and refuses it under
    `torch.use_deterministic_algorithms`: there it is computed on the CPU."""
    import torch

    if x.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return x.cpu().cumsum(-1).to(x.device)
    return x.cumsum(-1)
