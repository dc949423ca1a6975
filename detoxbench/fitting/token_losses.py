"""Losses on whole texts: the negative log-likelihood of single tokens, with a gradient, in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from detoxbench.errors import NonFiniteError
from detoxbench.lm import LanguageModel
from detoxbench.model.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch = Mapping[str, "Tensor"]
"""Tensors of a micro-batch by name."""
CHUNK = 64
"""Positions whose logits are held at a time in `token_nlls`."""


BeforeHead = Callable[["Tensor", "Tensor"], "Tensor"]
"""(last hidden states [n, width], the row of each [n]) -> what the head gets in their place, [n, width]."""


def token_nlls(
    model: Any, batch: Batch, targets: Tensor, *, through_head: bool = True, before_head: BeforeHead | None = None
) -> tuple[Tensor, Tensor]:
    """NLL of tokens given those before them, with a gradient: (nats [n], the row of each [n]), in fp32.

    `batch` holds input_ids and attention_mask, [rows, tokens]; `targets`, [rows, tokens - 1], says which of the second
    to last tokens count. The head sees these positions alone, some dozens at a time, so that no [rows, tokens,
    vocabulary] is ever held. It is called as a module, hence a LoRA on it is trained; its logits are then computed
    again for the gradient, while under a frozen head each token's gradient is taken at once (`_at_once`).
    `through_head=False` takes the model's own logits, for models that do more after the head (`plain_head`).
    `before_head` changes the states that the head gets, and may have what is trained.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels, rows = ids[:, 1:][targets], targets.nonzero()[:, 0]
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, cap = causal.get_output_embeddings(), getattr(causal.config, "final_logit_softcapping", None)
    if not through_head:
        with _changed_input(head, before_head, ids.device):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1][targets]
        return cross_entropy(logits.float(), labels, reduction="none"), rows
    # A text model taken out of a multi-modal one (Llama 4) is its own base model.
    decoder = Architecture(causal).decoder if causal.base_model is causal else causal.base_model
    states = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    hidden = states.to(ids.device)[targets]  # a spread model ends on another device than it begins on
    hidden = hidden if before_head is None else before_head(hidden, rows)

    def nll(part: Tensor, label: Tensor) -> Tensor:
        logits = head(part).to(label.device).float()
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
        return cross_entropy(logits, label, reduction="none")

    trained = any(p.requires_grad for p in head.parameters())
    parts = [
        checkpoint(nll, part, label, use_reentrant=False) if trained else _at_once(nll, part, label)
        for part, label in zip(torch.split(hidden, CHUNK), torch.split(labels, CHUNK), strict=True)
    ]
    return torch.cat(parts), rows


@contextmanager
def _changed_input(head: Any, change: BeforeHead | None, device: torch.device) -> Iterator[None]:
    """While open, the head gets changed states, if there is a change; it is made on the device."""
    import torch

    if change is None:
        yield
        return

    def changed(_: Any, arguments: tuple[Any, ...]) -> Tensor:
        states = arguments[0].to(device)  # [rows, tokens, width]
        rows = torch.arange(len(states), device=states.device).repeat_interleave(states.shape[1])
        return change(states.flatten(0, 1), rows).view_as(states)

    handle = head.register_forward_pre_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def _at_once(nll: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, labels: Tensor) -> Tensor:
    """nll(hidden, labels) [n] of a map without trained parameters, with its gradient, taken while the logits are held.

    A token's NLL depends on its own state alone, so the gradient of their sum, [n, width], holds that of every one, and
    waits for the factor that the loss will give it. The logits [n, vocabulary] are gone before the next part.
    """
    import torch

    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return nll(hidden, labels)
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        nlls = nll(leaf, labels)
        (slope,) = torch.autograd.grad(nlls.sum(), leaf)
    value = nlls.detach()
    nothing = hidden - hidden.detach()  # 0, but with a gradient
    return value + (nothing * slope).sum(-1).to(value.dtype)


def sequence_nll(model: Any, batch: Batch, *, count_pads: bool = False, through_head: bool = True) -> Tensor:
    """Mean NLL of each row's tokens after the first, in nats: [rows]."""
    mask = batch["attention_mask"].bool()
    targets = mask[:, 1:] & mask[:, :-1] | count_pads
    nlls, rows = token_nlls(model, batch, targets, through_head=through_head)
    if bool(nlls.isnan().any()):  # infinite ones count as 5; NaN is a broken model
        raise NonFiniteError("the likelihoods of texts are NaN: the model is broken, or overflows: change model.dtype")
    return nlls.new_zeros(len(mask)).index_add(0, rows, finite(nlls)) / targets.sum(1)


def finite(nlls: Tensor) -> Tensor:
    """A NLL that is not finite counts as 5 and has no gradient (contrastive perplexity, train_mistral.py:674)."""
    return nlls.nan_to_num(nan=5.0, posinf=5.0)


def plain_head(lm: LanguageModel) -> bool:
    """Whether the logits are what `token_nlls` makes of the head's output: tried on four tokens."""
    import torch

    ids = torch.arange(4, device=lm.device)[None]
    batch, targets = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.ones_like(ids[:, 1:]).bool()
    with torch.inference_mode():
        one, other = (token_nlls(lm.model, batch, targets, through_head=way)[0] for way in (True, False))
    return torch.allclose(one, other, rtol=1e-2, atol=1e-2)
