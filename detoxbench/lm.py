"""A causal language model as the harness sees it: identified, generated from, scored with, intervened on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detoxbench.config import GenSpec, ModelSpec
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.interventions.intervention import Intervention, LowRank, Prompt, applied
from detoxbench.interventions.weight_changes import low_rank_form, weight_in_force
from detoxbench.model import checkpoint
from detoxbench.model.architecture import Architecture
from detoxbench.model.chat import ChatTemplate, chosen, in_use
from detoxbench.model.finite import require_finite_model
from detoxbench.model.tokens import encoded, thinking_marks
from detoxbench.records import Request, Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from detoxbench.interventions.routing import Route


class LanguageModel:
    """A model with its tokenizer. Parts: `model`, `tokenizer`, `architecture`, `fingerprint`, `device`, `dtype`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "model",
        fingerprint: str | None = None,
        chat_template: str = "auto",
        template_args: Mapping[str, Any] | None = None,
        template_date: str = ModelSpec.template_date,
        thinking: str = "auto",
        low_rank: Literal["auto", "merged", "side_path"] = "auto",
    ) -> None:
        """Wrap a model that is already in memory. Without a `fingerprint` one is taken from its tensors.

        `low_rank` says how low-rank changes of weights take effect: merged, or as side_path with float32 factors; auto
        merges in float32 only, since lower precision rounds most of a small change away (`weight_changes`). The four
        before it are fields of ModelSpec. Raises UsageError for a template or a variable that is not there, and
        NonFiniteError for weights that are NaN or infinite.
        """
        if fingerprint is None:  # `load` has checked what it read
            require_finite_model(model, f"model '{name}'")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.architecture = Architecture(model)
        self.fingerprint = fingerprint or _fingerprint_in_memory(model)
        self.chat_template = chat_template
        self.prompts: list[Prompt] = []
        """Prompt rewritings in force, innermost first; `applied` adds and removes them."""
        self.logit_functions: list[Callable[[Tensor], Tensor]] = []
        """Functions on the next-token logits in force."""
        self.in_force: list[str] = []
        """Methods of the interventions that are on, the first one first; `applied` adds and removes them."""
        self.low_rank = low_rank_form(low_rank, str(self.dtype).removeprefix("torch."))
        """Whether low-rank changes are merged or act as side paths."""
        self.side_paths: dict[str, list[LowRank]] = {}
        """Low-rank changes that act beside the linear map at a path, innermost first."""
        self.route: Route | None = None
        """Which intervention is in force for which rows; `routed` sets it."""
        self.prompt_positions = (1, 0)
        """Rows of the forward pass under way, and how many leading positions of each are prompt; set by `reading`."""
        self._template_values: dict[str, Any] = {"date": template_date, "args": template_args}
        self._template: ChatTemplate | None = None
        self.thinking = thinking_marks(thinking, tokenizer, self.template.source if self.template else None)
        """What marks the thinking of this model, which is no part of its answers."""

    @classmethod
    def load(
        cls,
        path: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        name: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> LanguageModel:
        """Load a local folder, a hub id, or 'fable' (the embedded model trained with `seed`).

        `dtype` is float32, float16 or bfloat16; `device` is auto (cuda, then mps, then cpu) or a torch device;
        `settings` are those of the constructor: chat_template, template_args, template_date, thinking. Raises
        DetoxbenchError when the model cannot be had, is not what its folder says (`pretrained.load`), or is of a kind
        that the engine cannot serve (`serving.require_served`).
        """
        folder = find(path, revision=revision, seed=seed)
        from detoxbench.engine.serving import require_served
        from detoxbench.model import pretrained

        model, tokenizer = pretrained.load(pretrained.CAUSAL, folder, dtype, f"the model in '{folder}'")
        lm = cls(
            model.to(pick_device(device)),
            tokenizer,
            name=name or path,
            fingerprint=checkpoint.fingerprint(folder),
            **settings,
        )
        require_served(lm)
        return lm

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def bare(self) -> bool:
        """Whether a forward pass is the model's own: no hook, prefix, route or logit function is in force."""
        if self.route is not None or self.logit_functions or self.architecture.reserved:
            return False
        return not any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules())

    @property
    def eos_ids(self) -> set[int]:
        """Tokens that end a text, from the generation configuration and the tokenizer."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        return {int(i) for i in [*ids, self.tokenizer.eos_token_id] if i is not None}

    @property
    def start_id(self) -> int:
        """The token that stands before everything: what an empty prompt is given."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise DetoxbenchError(f"the tokenizer of '{self.name}' has neither a start nor an end token")

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template in use."""
        templates = self.tokenizer.chat_template
        if self._template is None or self._template.source != chosen(templates, self.chat_template):
            self._template = in_use(
                templates, self.chat_template, model=self.name, special_tokens=self.tokenizer.special_tokens_map,
                **self._template_values,
            )  # fmt: skip
        return self._template

    def encode(self, prompt: str, chat: bool = False, record: str | None = None) -> list[int]:
        """Token ids of a prompt as the model gets it: rewritten by the interventions in force (where those differ by
        row, `record` says which), in its chat template."""
        text, special = self.rendered(prompt, chat, record)
        return self.tokens(text, special=special) or [self.start_id]

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text that something is to follow, so without an end token; see `tokens.encoded`."""
        return encoded(self.tokenizer, text, special=special)

    def rendered(self, prompt: str, chat: bool = False, record: str | None = None) -> tuple[str, bool]:
        """The text that `encode` tokenises, and whether the tokenizer adds special tokens (a template has its own).

        Raises DetoxbenchError where the chat template refuses the prompt or leaves it out.
        """
        for rewriting in (*self.prompts, *(self.route.prompts(record) if self.route else ())):
            prompt = rewriting.rewrite(prompt, chat)
        template = self.template if chat else None
        return (prompt, True) if template is None else (template.prompt(prompt), False)

    def joined(self, before: str, text: str, *, special: bool = True) -> tuple[list[int], list[int]]:
        """(token ids of `before`, of both together): tokenised as one text, which is how a model reads it.

        Where there is nothing before, the start token is.
        """
        first = self.tokens(before, special=special) or [self.start_id]
        whole = self.tokens(before + text, special=special)
        if not before and whole[: len(first)] != first:  # the tokenizer puts no start token in front
            whole = [*first, *whole]
        return first, whole

    def answered(self, prompt: str, answer: str, chat: bool = False) -> tuple[list[int], list[int]]:
        """(token ids of the prompt, of prompt and answer together): what training shows the model.

        Between them stands what the chat template puts there; without one, a blank where there is none.
        """
        text, special = self.rendered(prompt, chat)
        template = self.template if chat else None
        if template is not None:
            return self.joined(text, template.turn[0] + answer.lstrip(), special=special)
        blank = " " if text and not text[-1].isspace() and not answer[:1].isspace() else ""
        return self.joined(text, blank + answer, special=special)

    def end_of(self, chat: bool = False) -> list[int]:
        """The token that ends a text, or with `chat` an answer: [id], or [] where there is none.

        An answer ends in what the chat template puts behind it, a text in the tokenizer's end token.
        """
        template = self.template if chat else None
        after = self.tokens(template.turn[1], special=False) if template else []
        first = [i for i in after if i in self.eos_ids]
        own = [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]
        return [*first, *own, *sorted(self.eos_ids)][:1]

    def applied(self, intervention: Intervention) -> AbstractContextManager[None]:
        """`with lm.applied(intervention):` puts it on; leaving takes it off, bit for bit."""
        return applied(self, intervention)

    def routed(self, interventions: Mapping[str, Intervention]) -> AbstractContextManager[None]:
        """`with lm.routed({record: intervention}):` each is in force for the requests of its record, in one batch."""
        from detoxbench.interventions.routing import routed

        return routed(self, interventions)

    def weight(self, path: str, inputs: slice = slice(None)) -> Tensor:
        """The weight of the linear map at `path` in float32 as it is stored, with every change in force; of some of its
        `inputs` only, if that is enough."""
        return weight_in_force(self, path, inputs)

    def variant(self, record: str) -> int:
        """Equal for two records if the same interventions are in force for both, so that they may share a cache."""
        return self.route.variant(record) if self.route is not None else 0

    @contextmanager
    def reading(self, records: Sequence[str], prompt_positions: int) -> Iterator[None]:
        """For the engine: a forward pass with the record of every row, whose first positions belong to its prompt."""
        if self.route is not None:
            self.route.assign(records)
        self.prompt_positions = (len(records), prompt_positions)
        try:
            yield
        finally:
            self.prompt_positions = (1, 0)

    def generate(
        self, prompts: Sequence[str | Request], gen: GenSpec | None = None, *, seed: int = 0, **settings: Any
    ) -> list[Sample]:
        """Answer every prompt `gen.n` times: samples in the order of the prompts.

        `settings` are fields of GenSpec, given instead of `gen`: `lm.generate(["hello"], max_new_tokens=5)`.
        """
        from detoxbench.engine.generation import generate
        from detoxbench.engine.serving import require_served

        if self.bare:
            require_served(self)
        gen = GenSpec(**settings) if gen is None else gen
        requests = [
            p if isinstance(p, Request) else Request(id=str(i), prompt=p, record=str(i), kind="prompt")
            for i, p in enumerate(prompts)
        ]
        made = (g.sample for batch in generate(self, requests, gen, seed) for g in batch)
        found = {(s.id, s.sample): s for s in made}
        return [found[r.id, k] for r in requests for k in range(gen.n)]

    def continuation_nll(self, prompts: Sequence[str], texts: Sequence[str]) -> list[tuple[float, int] | None]:
        """Negative log-likelihood of each text after its prompt: (sum in nats, number of tokens), None for no tokens.

        Prompt and text are tokenised together, as the text was read, and NLL(prompt + text) - NLL(prompt) is taken
        over the difference of their lengths (DeStein, evaluate_generations.py:77-109); of inputs longer than the
        context the beginning is cut, and tokens of the text that go with it are not counted.
        """
        from detoxbench.engine.likelihood import Row, read_rows

        limit = self.architecture.context
        rows: list[Row] = []
        plans: list[tuple[int, int]] = []  # tokens of the text, and how many rows of `rows` are its own
        for prompt, text in zip(prompts, texts, strict=True):
            start = self.tokens(prompt) if prompt else []
            whole = self.tokens(prompt + text)
            count = len(whole) - max(len(start), 1)
            read = whole if limit is None else whole[-limit:]
            lead = max(len(start) - (len(whole) - len(read)), 1)
            own = [Row(read, lead)] if whole[: len(start)] == start else [Row(read, 1), Row(start, 1)]
            own = own if count > 0 else []
            rows += own
            plans.append((min(count, len(read) - 1), len(own)))
        found = iter([nll for nll, _ in read_rows(self, rows)])
        # Where the joint tokens do not begin with the prompt's own, the prompt's part is read by itself and taken off.
        nlls = [[next(found) for _ in range(own)] for _, own in plans]
        return [(of[0] - sum(of[1:]), count) if of else None for (count, _), of in zip(plans, nlls, strict=True)]


def find(path: str, *, revision: str | None = None, seed: int = 0) -> Path:
    """The folder of a model: 'fable' is the embedded one, anything else is `checkpoint.locate`d."""
    if path == "fable":
        from detoxbench.fable.build import locate

        return locate(seed)
    return checkpoint.locate(path, revision)


def pick_device(device: str) -> str:
    """auto is cuda, else mps, else cpu. Raises UsageError for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"model.device={device} is not to be had here: {str(error).splitlines()[0]}") from None
    return device


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Run a block that seeds or draws from the global generators, and put their states back."""
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _fingerprint_in_memory(model: PreTrainedModel) -> str:
    """From the configuration and names, types, shapes and all bytes of parameters and buffers."""
    import torch

    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    sha = hashlib.sha256(str(sorted(config.items())).encode())
    for name, tensor in sorted({**dict(model.named_buffers()), **model.state_dict()}.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()[:16]
