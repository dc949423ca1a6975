"""A language model whose forward passes vLLM makes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from detoxbench.config import EngineSpec, GenSpec
from detoxbench.errors import DetoxbenchError, NonFiniteError
from detoxbench.interventions.apply import Applied, require_base
from detoxbench.interventions.channels import LogitOp, Output, Prompt
from detoxbench.interventions.routing import Route
from detoxbench.lm import LanguageModel
from detoxbench.model import checkpoint, precision, pretrained
from detoxbench.vllm_engine import adapters, steering
from detoxbench.vllm_engine.carried import Parts, parts, takes_loras
from detoxbench.vllm_engine.choosing import Choices
from detoxbench.vllm_engine.serving import Asked, Vllm, installed, nlls, prepare_environment

if TYPE_CHECKING:
    import torch

    from detoxbench.interventions.intervention import Intervention
    from detoxbench.model.backend import Read, Row

CANARY = "The quick brown fox jumps over the lazy dog, while five boxing wizards pack my box. "
CANARY_PROMPT, CANARY_TOKENS = 16, 8
"""Tokens of it that are given, and that are asked for."""


class VllmModel(LanguageModel):
    """A model that is read and generated from by vLLM.

    The tokenizer, the architecture and what is in force are here; the weights are not: `model` has its modules on the
    meta device. vLLM is loaded when it is first needed, and stays until `close`. What acts on its model (LoRAs, hooks)
    is put on when it is first needed, and taken off when the intervention comes off; then the answer of the model
    without any to a fixed prompt has to be what it was at first.
    """

    def __init__(
        self, folder: Path, spec: EngineSpec, *, dtype: str = "float32", name: str = "", **settings: Any
    ) -> None:
        """The model in `folder`; `settings` are those of `Model`. Raises DetoxbenchError where its configuration or
        tokenizer cannot be read."""
        prepare_environment()
        super().__init__(
            _without_weights(folder, dtype),
            pretrained.described(folder, f"the model in '{folder}'")[1],
            name=name or str(folder),
            fingerprint=checkpoint.fingerprint(folder),
            **settings,
        )
        self.backend = _Backend(self, folder, spec)

    @property
    def device(self) -> torch.device:
        """Where vLLM computes."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def bare(self) -> bool:
        """No, since it has no forward pass of its own that `serving.require_served` could test."""
        return False

    def applied(self, intervention: Intervention) -> Applied:
        """`LanguageModel.applied`. Raises DetoxbenchError, too, for what vLLM cannot carry; nothing is loaded yet."""

        def put_on(undo: ExitStack) -> None:
            require_base(self, intervention)
            intervention.require_finite()
            self._backend.carry(lambda: [parts(self, intervention, self._backend.spec)], [intervention.method], undo)
            self.in_force.methods.append(intervention.method)
            undo.callback(self.in_force.methods.pop)
            LogitOp.put_on(self, intervention.logits, undo)
            Prompt.put_on(self, intervention.prompts, undo)
            Output.put_on(self, intervention.outputs, undo)

        return Applied(self.model, intervention.method, put_on)

    def routed(self, interventions: Mapping[str, Intervention]) -> Applied:
        """`LanguageModel.routed`, of LoRAs and prompts."""
        distinct = {id(i): i for i in interventions.values()}
        place = {key: number for number, key in enumerate(distinct)}
        variants = {record: place[id(i)] for record, i in interventions.items()}

        def carried() -> list[Parts]:
            for intervention in distinct.values():
                require_base(self, intervention)
                intervention.require_finite()
            return [parts(self, i, self._backend.spec, per_record=True) for i in distinct.values()]

        def put_on(undo: ExitStack) -> None:
            self._backend.carry(carried, [i.method for i in distinct.values()], undo)
            undo.callback(setattr, self.in_force, "route", None)
            self.in_force.route = Route(interventions, variants, lambda rows: None)

        return Applied(self.model, ", ".join(sorted({i.method for i in interventions.values()})), put_on)

    def swaps(self, intervention: Intervention) -> bool:
        """Whether it can be put on and taken off while vLLM stays loaded."""
        return not parts(self, intervention, self._backend.spec).merged

    @property
    def in_memory(self) -> bool:
        """Whether vLLM is loaded now."""
        return self._backend.loaded

    def close(self) -> None:
        """Let vLLM go."""
        self._backend.close()

    @property
    def _backend(self) -> _Backend:
        assert isinstance(self.backend, _Backend)
        return self.backend


def _without_weights(folder: Path, dtype: str) -> Any:
    """The model in `folder` with its modules and no weights."""
    import torch
    import transformers

    config, _ = pretrained.described(folder, f"the model in '{folder}'")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


class _Backend:
    """`model.backend.Backend` by vLLM: which model it has loaded, and what acts on that."""

    def __init__(self, lm: VllmModel, folder: Path, spec: EngineSpec) -> None:
        self.spec = spec
        self.loading_seconds = 0.0
        self._lm, self._base = lm, folder
        self._vllm: Vllm | None = None
        self._folder = folder
        """Of the model that vLLM has loaded."""
        self._wanted: list[Parts] = []
        """What is in force, one for each variant (`Model.variant`)."""
        self._worn: ExitStack | None = None
        """Takes off what acts on vLLM's model; None: nothing does."""
        self._loras: list[Path | None] = []
        self._answer: list[int] | None = None
        """Of the canary, when nothing had been put on yet."""

    # ------------------------------------------------------------------------------------------------ `Backend`

    def write(self, rows: Sequence[Row], gen: GenSpec, ends: Set[int]) -> None:
        """`Backend.write`."""
        vllm = self._ready()
        choices = Choices(self._lm, rows, gen, self._spacing)
        asked = [Asked(i, row.prompt, len(row.prompt), self._lora(row.request.record)) for i, row in enumerate(rows)]
        vllm.desk.choices = choices
        try:
            outputs = vllm.ask(asked, salted=self._salted, max_tokens=gen.max_new_tokens, ends=ends)
        except BaseException:  # requests are left in it
            self.close()
            raise
        finally:
            vllm.desk.choices = None
        choices.finish()
        for row, output in zip(rows, outputs, strict=True):
            if list(output.outputs[0].token_ids) != row.new:
                raise DetoxbenchError(
                    f"vLLM gave other tokens for request '{row.request.id}' than were chosen: its version has another "
                    "interface than the one that is tested (docs/scale.md)"
                )

    def nlls(self, windows: Sequence[Read], outside: bool) -> list[tuple[float, bool]]:
        """`Backend.nlls`, by the likelihoods of vLLM's prompts."""
        on = self._lm.in_force
        if on.logit_functions:
            raise DetoxbenchError(
                f"'{self._lm.name}' is under '{'+'.join(on.methods)}', an operation on the logits, which vLLM does not "
                "apply to texts that are given: choose engine=transformers for suites that read texts"
            )
        if not windows:
            return []
        vllm = self._ready()
        asked = [Asked(None, w.ids, w.context_length, self._lora(w.record)) for w in windows]
        found = nlls(vllm.ask(asked, salted=self._salted, max_tokens=1, read=True), asked)
        for window, (nll, _) in zip(windows, found, strict=True):
            if not math.isfinite(nll):
                text = self._lm.tokenizer.decode(window.ids[window.context_length :])[:40]
                raise NonFiniteError(
                    f"'{self._lm.name}' under method '{'+'.join(on.methods) or 'none'}' gives no probability to the "
                    f"text {text!r}: it has no likelihood"
                )
        return found

    def described(self) -> dict[str, Any]:
        """`Backend.described`."""
        products = precision.NAMES[precision.products(self._lm.device)]
        return {"engine": "vllm", "vllm": installed(), "products": products}

    # ---------------------------------------------------------------------------------------------------- swapping

    def carry(self, found: Callable[[], list[Parts]], methods: Sequence[str], undo: ExitStack) -> None:
        """Have parts in force until `undo` is closed. Raises DetoxbenchError where others are."""
        if self._wanted:
            raise DetoxbenchError(
                f"'{'+'.join(methods)}' cannot stand on top of '{'+'.join(self._lm.in_force.methods)}' with "
                "engine=vllm: compose both into one, or choose engine=transformers"
            )
        undo.callback(self._take_off)
        self._wanted = found()

    @property
    def loaded(self) -> bool:
        """Whether vLLM is in memory."""
        return self._vllm is not None

    def close(self) -> None:
        """Let vLLM go; it is loaded again when it is needed."""
        if self._worn is not None:
            self._worn.close()
            self._worn = None
        if self._vllm is not None:
            self._vllm.close()
            self._vllm = None

    def _ready(self) -> Vllm:
        """vLLM, with what is in force."""
        begin = time.perf_counter()
        if self._worn is None:
            self._put_on()
        if self._vllm is None:
            self._load(self._base)
        self.loading_seconds += time.perf_counter() - begin
        assert self._vllm is not None
        return self._vllm

    def _load(self, folder: Path) -> None:
        self.close()
        lm = self._lm
        self._vllm = Vllm(folder, str(lm.dtype)[6:], lm.architecture.context, self.spec, takes_loras(lm))
        self._folder = folder
        if folder == self._base:
            self._require_base_answer()

    def _put_on(self) -> None:
        """What is in force, on vLLM's model."""
        if not any(p.changes_model for p in self._wanted):
            return
        with ExitStack() as undo:
            folder = Path(undo.enter_context(TemporaryDirectory(prefix="detoxbench-")))
            if merged := [w for p in self._wanted for w in p.merged]:
                self.close()  # before the base is read: two would lie in memory
                self._load(adapters.write_merged(self._base, merged, str(self._lm.dtype)[6:], folder / "merged"))
            elif self._vllm is None:
                self._load(self._base)
            assert self._vllm is not None
            undo.callback(self._loras.clear)
            for i, p in enumerate(self._wanted):
                written = adapters.write_lora(self._lm, p.loras, folder / f"lora{i}") if p.loras else None
                self._loras.append(written)
                steering.put_on(self._lm, self._vllm.runner, p.biases, p.hooks, undo)
            self._vllm.empty_cache()  # of the model as it was
            self._worn = undo.pop_all()

    def _take_off(self) -> None:
        """Nothing is in force any more."""
        self._wanted = []
        if self._worn is None or self._vllm is None:
            return
        self._worn.close()
        self._worn = None
        if self._folder != self._base:
            self.close()
            return
        self._vllm.forget()
        self._require_base_answer()

    def _require_base_answer(self) -> None:
        """Raises DetoxbenchError where the model without any intervention answers a fixed prompt otherwise than at
        first. Its most probable tokens are taken, so that nothing of ours has a part in it."""
        assert self._vllm is not None
        ids = self._lm.tokens(CANARY)[:CANARY_PROMPT]
        (output,) = self._vllm.ask([Asked(None, ids, len(ids), None)], salted=False, max_tokens=CANARY_TOKENS)
        answer = list(output.outputs[0].token_ids)
        self._answer = self._answer or answer
        if answer != self._answer:
            raise DetoxbenchError(
                f"vLLM's '{self._lm.name}' does not answer as it did before an intervention was put on and taken off: "
                "start anew, and choose engine=transformers for this method"
            )

    # ------------------------------------------------------------------------------------------------------ of rows

    def _lora(self, record: str) -> Path | None:
        if not self._loras:
            return None
        return self._loras[self._lm.variant(record)]

    @property
    def _salted(self) -> bool:
        return any(hook.positions != "all" for p in self._wanted for hook in p.hooks)

    @cached_property
    def _spacing(self) -> float:
        import torch

        return max(precision.products(self._lm.device), torch.finfo(self._lm.dtype).eps)
