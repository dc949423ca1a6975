"""The pretended device refuses what a real one refuses, lets pass what it lets pass, and counts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.support.pretended_device import Meeting, Pretended, pretended_device


@pytest.fixture
def on() -> Iterator[Pretended]:
    with pretended_device() as pretended:
        yield pretended


def there(*shape: int, device: str = "cuda") -> Tensor:
    return torch.ones(shape or (3,), device=device)


def here(*shape: int) -> Tensor:
    return torch.ones(shape or (3,))


FAULTS: dict[str, Callable[[], object]] = {
    "a sum": lambda: there() + here(),
    "a product of matrices": lambda: here(3, 3) @ there(),
    "a layer that was left behind": lambda: torch.nn.Linear(3, 3)(there()),
    "ids that were not moved": lambda: torch.nn.Embedding(9, 3).to("cuda")(torch.tensor([1])),
    "two devices": lambda: there() + there(device="cuda:1"),
    "pieces of a list": lambda: torch.cat([there(), here()]),
    "a choice between two": lambda: torch.where(there() > 0, here(), there()),
    "an index on the device": lambda: here()[there().long()],
    "a value behind an index": lambda: there().index_put((torch.tensor([0, 1]),), here(2)),
    "writing into the CPU": lambda: here().add_(there()),
    "writing a number into the CPU": lambda: here().add_(there().sum()),
    "a view": lambda: there(2, 4)[0, 1:] + here(),
    "a copy": lambda: there().clone().detach() + here(),
    "what is like another": lambda: torch.zeros_like(there()) + here(),
    "numpy": lambda: there().numpy(),
    "a generator of the CPU": lambda: torch.randn(3, generator=torch.Generator(), device="cuda"),
    "a loss": lambda: torch.nn.functional.cross_entropy(there(2, 3), torch.tensor([0, 1])),
    "float64 on mps": lambda: there(device="mps").double(),
    "made as float64 on mps": lambda: torch.zeros(3, dtype=torch.float64, device="mps"),
    "a gradient's other factor": lambda: (there().requires_grad_() * here()).sum().backward(),
}


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
def test_it_refuses(fault: Callable[[], object], inference: bool) -> None:
    with torch.inference_mode(inference), pytest.raises(Meeting):
        fault()


ALLOWED: dict[str, Callable[[], Tensor]] = {
    "a number": lambda: there() + 1,
    "a number in a tensor": lambda: there() * torch.tensor(2.0),
    "an index on the CPU": lambda: there()[torch.tensor([0, 2])],
    "a mask": lambda: there()[there() > 0],
    "writing behind an index": lambda: there().index_put_((torch.tensor([0]),), there(1)),
    "a copy into it": lambda: there().copy_(here()),
    "moved as another": lambda: here().to(there()),
    "moved by its name": lambda: here().to("cuda", torch.float16),
    "another type": lambda: there().half(),
    "a layer that was moved": lambda: torch.nn.Linear(3, 3).to("cuda")(there()),
    "a copied layer": lambda: copy.deepcopy(torch.nn.Linear(3, 3).to("cuda")).weight,
    "made of data": lambda: torch.tensor([1, 2], device="cuda"),
    "made like it": lambda: there().new_zeros(2),
    "a list of tensors": lambda: torch.nn.utils.rnn.pad_sequence([there(), there(2)]),
    "attention": lambda: torch.nn.functional.scaled_dot_product_attention(*(there(1, 2, 3, 4) for _ in range(3))),
}


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("allowed", ALLOWED.values(), ids=ALLOWED)
def test_it_lets_pass(allowed: Callable[[], Tensor]) -> None:
    assert allowed().device == torch.device("cuda:0")


COUNTED: dict[str, tuple[Callable[[Tensor], object], tuple[int, int, int]]] = {
    "nothing": (lambda x: (x * 2)[:1], (0, 0, 0)),
    "to the CPU": (lambda x: x.cpu(), (0, 1, 1)),
    "to the device": (lambda x: here().to(x.device), (1, 0, 1)),
    "to the device without waiting": (lambda x: here().to(x.device, non_blocking=True), (1, 0, 0)),
    "from a list": (lambda x: torch.tensor([1], device=x.device), (1, 0, 1)),
    "made there": (lambda x: torch.zeros(3, device=x.device), (0, 0, 0)),
    "already there": (lambda x: x.to("cuda"), (0, 0, 0)),
    "copied into": (lambda x: x.copy_(here()), (1, 0, 1)),
    "copied out of": (lambda x: here().copy_(x), (0, 1, 1)),
    "item": (lambda x: x[0].item(), (0, 1, 1)),
    "float": (lambda x: float(x.sum()), (0, 1, 1)),
    "bool": (lambda x: bool((x > 0).any()), (0, 1, 1)),
    "a list": (lambda x: x.tolist(), (0, 1, 1)),
    "nonzero": (lambda x: x.nonzero(), (0, 0, 1)),
    "a mask as an index": (lambda x: x[x > 0], (0, 0, 1)),
    "an index on the CPU": (lambda x: x[torch.tensor([0, 1])], (1, 0, 1)),
    "equal": (lambda x: torch.equal(x, x + 1), (0, 0, 1)),
}


@pytest.mark.parametrize("case", COUNTED.values(), ids=COUNTED)
@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
def test_it_counts(
    on: Pretended, case: tuple[Callable[[Tensor], object], tuple[int, int, int]], inference: bool
) -> None:
    what, (to_device, to_cpu, waits) = case
    with torch.inference_mode(inference):
        x = there()
        before = on.counts()
        what(x)
        counted = {name: n - before[name] for name, n in on.counts().items()}
    del counted["launches"]
    assert counted == {"to_device": to_device, "to_cpu": to_cpu, "waits": waits}


def test_kernels_are_counted_and_views_are_not(on: Pretended) -> None:
    x = there(2, 3)
    before = on.launches
    (x.T[:1] + 1).softmax(-1)
    assert on.launches - before == 2


@pytest.mark.usefixtures("on")
def test_gradients_come_back_to_where_a_tensor_was() -> None:
    x = here().requires_grad_()
    (x.to("cuda") * there()).sum().backward()
    assert x.grad is not None
    assert x.grad.device.type == "cpu"


@pytest.mark.usefixtures("on")
def test_an_optimizer_keeps_its_state_on_the_device() -> None:
    layer = torch.nn.Linear(3, 3).to("cuda")
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(there()).sum().backward()
    torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    optimizer.step()
    assert optimizer.state[layer.weight]["exp_avg"].device.type == "cuda"


def test_sums_in_no_fixed_order_are_refused_where_it_must_be_fixed(on: Pretended) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        there().long().cumsum(0)
        here().cumsum(0)
        with pytest.raises(Meeting, match="deterministic"):
            there().cumsum(0)
    finally:
        torch.use_deterministic_algorithms(False)
    there().cumsum(0)


def test_a_freed_storage_leaves_its_address_to_none(on: Pretended) -> None:
    for _ in range(100):
        there(4096)
        assert here(4096).device.type == "cpu"


def test_nothing_is_left_of_it() -> None:
    with pretended_device():
        x = there()
    assert x.device.type == "cpu"
    assert torch.equal(x + here(), 2 * here())
