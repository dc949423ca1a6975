"""A causal language model as it is: identified, encoding texts, and what is in force on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detoxbench.config import ModelSpec, Quantization
from detoxbench.errors import DetoxbenchError
from detoxbench.fable import build as fable
from detoxbench.model import checkpoint
from detoxbench.model.architecture import Architecture
from detoxbench.model.backend import Backend
from detoxbench.model.chat import ChatTemplate, chosen, in_use
from detoxbench.model.devices import of_inputs, present
from detoxbench.model.finite import require_finite_model
from detoxbench.model.in_force import InForce
from detoxbench.model.quantization import holds_packed, packed
from detoxbench.model.tokens import encoded, thinking_marks

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Self

LowRankForm = Literal["merged", "side_path"]


class Model:
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
        merges in float32 only, since lower precision rounds most of a small change away (`channels.weights`). The four
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
        self.in_force = InForce()
        """What acts on it now; interventions add to it and take off what they added."""
        self.backend: Backend | None = None
        """What computes its forward passes; None: `model`."""
        self.low_rank = low_rank_form(low_rank, str(self.dtype).removeprefix("torch."), packed=holds_packed(model))
        """Whether low-rank changes are merged or act as side paths."""
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
        device_map: str = "none",
        max_memory: Mapping[int | str, str] | None = None,
        quantization: Quantization = "none",
        name: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Self:
        """Load a local folder, a hub id, or 'fable' (the embedded model trained with `seed`).

        `dtype` is float32, float16, bfloat16, or auto (`checkpoint.resolved_dtype`); `device` is auto (cuda, then mps,
        then cpu) or a torch device. With `device_map` auto the model is spread over all GPUs, the memory of the CPU and
        the disk, each of which holds at most what `max_memory` gives it. With `quantization` (int8
        or nf4, by bitsandbytes) linear layers are held in so few bits. `settings` are those of the constructor:
        chat_template, template_args, template_date, thinking. Raises DetoxbenchError when the model cannot be found or
        downloaded, is not what its folder says (`pretrained.load`), or cannot do what this class does
        (`require_usable`).
        """
        from detoxbench.model import pretrained

        folder = find(path, revision=revision, seed=seed)
        thing, dtype = f"the model in '{folder}'", checkpoint.resolved_dtype(dtype, folder)
        spread = pretrained.Spread(max_memory) if device_map == "auto" else None
        model, tokenizer = pretrained.load(pretrained.CAUSAL, folder, dtype, thing, device, spread, quantization)
        lm = cls(
            model,
            tokenizer,
            name=name or path,
            fingerprint=checkpoint.fingerprint(folder),
            **settings,
        )
        lm.require_usable()
        return lm

    def require_usable(self) -> None:
        """For subclasses, on a model that was just loaded: raises DetoxbenchError where it cannot do what they do."""

    @property
    def device(self) -> torch.device:
        """Where token ids go, and logits come from: of a model on one device, where it is."""
        return of_inputs(self.model)

    @property
    def devices(self) -> list[torch.device]:
        """Every device that it lies on, `device` first."""
        places = dict.fromkeys(p.device for p in self.model.parameters() if not p.is_meta)
        return list(dict.fromkeys([self.device, *places]))

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.model.dtype

    @property
    def bare(self) -> bool:
        """Whether a forward pass is the model's own: no hook, prefix, route or logit function is in force."""
        on = self.in_force
        if on.route is not None or on.logit_functions or on.reserved:
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

    def encode(self, prompt: str, chat: bool = False, record: str | None = None, companion: int = 0) -> list[int]:
        """Token ids of a prompt as the model gets it: rewritten by the interventions in force (where those differ by
        row, `record` says which, and `companion` which of those that run beside it), in its chat template."""
        text, special = self.rendered(prompt, chat, record, companion)
        return self.tokens(text, special=special) or [self.start_id]

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text that another text follows, so without an end token; see `tokens.encoded`."""
        return encoded(self.tokenizer, text, special=special)

    def rendered(
        self, prompt: str, chat: bool = False, record: str | None = None, companion: int = 0
    ) -> tuple[str, bool]:
        """The text that `encode` tokenises, and whether the tokenizer adds special tokens (a template has its own).

        Raises DetoxbenchError where the chat template refuses the prompt or leaves it out.
        """
        on = self.in_force
        routed = on.route.prompts(record) if on.route else ()
        beside = on.companions[companion - 1].prompts if companion else ()
        turns: list[tuple[str, str]] = []
        for rewriting in (*on.prompts, *routed, *beside):
            prompt = rewriting.rewrite(prompt, chat)
            turns = [*rewriting.before(chat), *turns]  # what is further out was said earlier
        template = self.template if chat else None
        if template is None:
            return "".join(f"{text}\n" for _, text in turns) + prompt, True
        return template.prompt(prompt, turns), False

    def joined(self, before: str, text: str, *, special: bool = True) -> tuple[list[int], list[int]]:
        """(token ids of `before`, of both together): tokenised as one text, which is how a model reads it.

        An empty `before` is the start token.
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
        eos = [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]
        return [*first, *eos, *sorted(self.eos_ids)][:1]

    @property
    def context(self) -> int | None:
        """Tokens that there are positions for, less those of a prefix in force; None where there is no limit."""
        limit = self.architecture.context
        return None if limit is None else limit - self.in_force.reserved

    def weight(self, path: str, inputs: slice = slice(None)) -> Tensor:
        """The weight of the linear map at `path`, in float32 and in the shape in which it is stored, with every change
        in force; `inputs` selects some of its inputs. Raises DetoxbenchError for a weight that is quantised."""
        module: Any = self.architecture.module(path)
        transposed = self.architecture.transposed(path)
        if what := packed(module.weight):
            raise DetoxbenchError(
                f"'{path}.weight' of '{self.name}' is quantised or packed ({what}), and cannot be read as it is: load "
                "the model in float32, bfloat16 or float16"
            )
        with present(module):
            weight = module.weight.detach()
            total: Tensor = (weight[inputs] if transposed else weight[:, inputs]).float()
        for low in self.in_force.side_paths.get(path, ()):
            product = low.b @ low.a[:, inputs]
            total = total + (product.T if transposed else product)
        return total

    def variant(self, record: str) -> int:
        """Equal for two records if the same interventions are in force for both."""
        route = self.in_force.route
        return route.variant(record) if route is not None else 0

    def changes(self, record: str, companion: int = 0) -> tuple[int, int]:
        """Equal for two streams if the same changes but for rewritten prompts are in force for both, so that they may
        share a cache; hooks that compare are left out, which act where prompts end."""
        changed = companion and self.in_force.companions[companion - 1].set_rows is not None
        return self.variant(record), companion if changed else 0

    def companions(self, record: str) -> list[int]:
        """The numbers of the companions that run beside rows of the record (`InForce.companions`)."""
        functions = [f for f in self.in_force.logit_functions if f.variant in (None, self.variant(record))]
        return sorted({*self.in_force.compared, *(n for function in functions for n in function.companions.values())})

    @contextmanager
    def reading(
        self,
        records: Sequence[str],
        prompt_positions: int,
        companions: Sequence[int] | None = None,
        beside: Mapping[int, Sequence[int]] | None = None,
    ) -> Iterator[None]:
        """For the engine: a forward pass with the record of every row, and which companion it is (0: the row itself).

        The first positions of each row belong to its prompt; more than there are say that the prompt goes on behind
        them. `beside` are the rows of the companions that hooks compare with (`InForce.beside`).
        """
        import torch

        on = self.in_force
        if on.route is not None:
            on.route.set_rows(records)
        of_row = [0] * len(records) if companions is None else companions
        self._set_companions(of_row)
        on.prompt_positions = (len(records), prompt_positions)
        on.beside = {n: torch.tensor(rows, device=self.device) for n, rows in (beside or {}).items()}
        try:
            yield
        finally:
            on.prompt_positions, on.beside = (1, 0), {}
            self._set_companions(())

    def _set_companions(self, of_row: Sequence[int]) -> None:
        for number, companion in enumerate(self.in_force.companions, start=1):
            if companion.set_rows is not None:
                companion.set_rows([c == number for c in of_row])


def find(path: str, *, revision: str | None = None, seed: int = 0, download: bool = True) -> Path:
    """The folder of a model: 'fable' is the embedded one, anything else is `checkpoint.locate`d."""
    return fable.locate(seed) if path == "fable" else checkpoint.locate(path, revision, download=download)


def low_rank_form(setting: str, dtype: str, *, packed: bool = False) -> LowRankForm:
    """What `low_rank` stands for in a model of type `dtype`: auto merges in float32 (and float64) only, and nothing
    into weights that are `packed`."""
    if setting in ("merged", "side_path"):
        return "merged" if setting == "merged" else "side_path"
    return "merged" if dtype in ("float32", "float64") and not packed else "side_path"


def _fingerprint_in_memory(model: PreTrainedModel) -> str:
    """From the configuration and names, types, shapes and all bytes of parameters and buffers."""
    import torch

    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    sha = hashlib.sha256(str(sorted(config.items())).encode())
    for name, tensor in sorted({**dict(model.named_buffers()), **model.state_dict()}.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()[:16]
