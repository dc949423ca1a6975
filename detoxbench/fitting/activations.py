"""What goes on inside a model: activations recorded at named modules, forward passes that reuse the outputs of lower
layers while upper layers change, and linear probes on heads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.channels.weights import replace_forward, require_eager
from detoxbench.model.finite import require_finite
from detoxbench.progress import track

if TYPE_CHECKING:
    from torch import Tensor, nn

    from detoxbench.lm import LanguageModel

BROKEN_MODEL = "the model is broken, or overflows in its dtype: change model.dtype"


@contextmanager
def recorded(lm: LanguageModel, sites: Sequence[str], *, inputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """The outputs (or inputs) of the named modules in the latest forward pass; of a tuple, its first element. They are
    on `lm.device`, wherever the modules are."""
    require_eager(lm)
    device = lm.device
    seen: dict[str, Tensor] = {}

    def keep(site: str) -> Any:
        def hook(_: Any, arguments: Any, output: Any = None) -> None:
            value = arguments if inputs else output
            seen[site] = (value[0] if isinstance(value, tuple) else value).to(device)

        return hook

    handles = []
    try:
        for site in sites:
            module = lm.architecture.module(site)
            register = module.register_forward_pre_hook if inputs else module.register_forward_hook
            handles.append(register(keep(site)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class CachedPrefixForward:
    """The forward pass of one batch of texts, again and again, while only the parameters of some modules change.

    Modules that are computed before the first of those give the same output each time, so their outputs are kept from
    the first pass. The head gets the wanted positions alone. Texts are padded on the right, where causal attention
    never looks.
    """

    def __init__(
        self, lm: LanguageModel, texts: Sequence[tuple[Sequence[int], range]], changing: Collection[str]
    ) -> None:
        """`texts` are token ids, each with the positions whose logits are wanted; `changing` are paths of modules."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        self._lm = lm
        # 1. The batch, [texts, longest].
        pad = texts[0][0][-1]  # any token serves; transformers warns of its pad token
        self._ids = pad_sequence([torch.tensor(ids) for ids, _ in texts], True, pad).to(lm.device)
        # 2. Text and position of each wanted logit, [wanted positions of all texts].
        self._counts = [len(wanted) for _, wanted in texts]
        self._rows = torch.arange(len(texts)).repeat_interleave(torch.tensor(self._counts)).to(lm.device)
        self._positions = torch.tensor([p for _, wanted in texts for p in wanted], device=lm.device)
        # 3. The largest modules that hold no changing one: the layers below, and parts of the same layer.
        self._changing = [lm.architecture.module(path) for path in changing]
        paths = [path.split(".") for path in changing]
        around = {".".join(names[:n]) for names in paths for n in range(len(names) + 1)}
        self._others = [m for n, m in lm.model.named_modules() if n not in around and n.rpartition(".")[0] in around]
        self._cached: dict[nn.Module, Any] | None = None

    def logits(self) -> list[Tensor]:
        """For each text fp32 logits [wanted positions, vocabulary].

        Raises DetoxbenchError for a model whose logits are not what its head makes of each position.
        """
        import torch

        model, outputs = self._lm.model, dict[Any, list[Any]]()
        with ExitStack() as undo:
            head = model.get_output_embeddings()
            pick = head.register_forward_pre_hook(lambda _, args: (self._wanted(args[0])[None],))
            undo.callback(pick.remove)
            if self._cached is None:
                self._watch(outputs, undo)
            for module, output in (self._cached or {}).items():
                replace_forward(module, lambda *_, output=output, **__: output, undo)
            logits = model(input_ids=self._ids, use_cache=False).logits  # [1, wanted positions of all, vocabulary]
        if logits.shape[:2] != (1, len(self._rows)):
            raise DetoxbenchError(f"{type(model).__name__} does not make its logits by its head, position by position")
        if self._cached is None:  # a module that is called more than once (a shared one) is left alone
            self._cached = {m: calls[0] for m, calls in outputs.items() if len(calls) == 1 and calls[0] is not None}
        return list(torch.split(logits[0].float(), self._counts))

    def _wanted(self, states: Tensor) -> Tensor:
        """Of states [texts, tokens, width] those of the wanted positions, [wanted positions of all texts, width]."""
        return states[self._rows.to(states.device), self._positions.to(states.device)]

    def _watch(self, outputs: dict[Any, list[Any]], undo: ExitStack) -> None:
        """Record in `outputs` what each module gives at each call, None where a changing one has begun before."""
        begun: list[bool] = []

        def watched(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                outputs.setdefault(module, []).append(None if begun else output)
                return output

            return call

        for module in self._changing:
            undo.callback(module.register_forward_pre_hook(lambda *_: begun.append(True)).remove)
        for module in self._others:
            replace_forward(module, watched(module, module.forward), undo)


def pooled_states(
    lm: LanguageModel,
    texts: Sequence[Sequence[int]],
    sites: Sequence[str],
    pool: Callable[[Tensor], Tensor],
    *,
    inputs: bool,
    description: str,
) -> list[Tensor]:
    """For each site the outputs (or `inputs`) of every text, float32 on the CPU, [texts, ...]: pool(states), where the
    states of one text are [tokens, width].

    `texts` are token ids. One text at a time, so that no pad takes part. Raises NonFiniteError, naming site and text,
    for what is NaN or infinite.
    """
    import torch

    pooled: list[list[Tensor]] = [[] for _ in sites]
    with torch.inference_mode(), recorded(lm, sites, inputs=inputs) as seen:
        for ids in track(texts, description):
            lm.model(input_ids=torch.tensor([list(ids)], device=lm.device), use_cache=False)
            # Some modules (OPT's MLP) get the rows of the batch as one.
            states = [pool(seen[site].reshape(-1, seen[site].shape[-1]).float()) for site in sites]
            text = lm.tokenizer.decode(list(ids), skip_special_tokens=True)[:40]
            require_finite(zip(sites, states, strict=True), f"{description} of {text!r}", BROKEN_MODEL)
            for of_site, state in zip(pooled, states, strict=True):
                of_site.append(state.cpu())
    return [torch.stack(of_site) for of_site in pooled]


def last_token_means(
    lm: LanguageModel, texts: Sequence[str], sites: Sequence[str], window: int, *, inputs: bool, description: str
) -> tuple[Tensor, int]:
    """(mean over the last `window` tokens of each text at each site, float32 on the CPU, [sites, texts, width]; how
    many texts lost their beginning to fit the model's context).

    Texts shorter than the window count whole. Raises as `pooled_states`.
    """
    import torch

    ids, limit = [lm.tokens(text) for text in texts], lm.context
    cut = sum(limit is not None and len(tokens) > limit for tokens in ids)
    fitting = [tokens[-(limit or 0) :] for tokens in ids]
    means = pooled_states(
        lm, fitting, sites, lambda states: states[-window:].mean(0), inputs=inputs, description=description
    )
    return torch.stack(means), cut


def head_probes(ones: Tensor, zeros: Tensor, heads: int, *, train: int, seed: int, description: str) -> Tensor:
    """Validation accuracies [sites, heads], float64, of a logistic regression on each head's slice of the width.

    `ones` and `zeros` are [sites, pairs, width]; the first `train` pairs train, the rest validate, both sides of a pair
    together. Raises DetoxbenchError where the width does not divide into heads.
    """
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression

    sites, pairs, width = ones.shape
    if width % heads:
        raise DetoxbenchError(f"a width of {width} is no multiple of {heads} heads: set method.head_weight=none")
    x = np.stack([ones.numpy(), zeros.numpy()], 2).reshape(sites, 2 * pairs, heads, width // heads)
    y = np.tile([1, 0], pairs)
    cut = 2 * train
    accuracy = torch.empty(sites, heads, dtype=torch.float64)
    for site in track(range(sites), description):
        for head in range(heads):
            slices = x[site, :, head]
            probe = LogisticRegression(random_state=seed, max_iter=1000).fit(slices[:cut], y[:cut])
            accuracy[site, head] = probe.score(slices[cut:], y[cut:])
    return accuracy
