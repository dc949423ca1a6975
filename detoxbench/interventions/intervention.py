"""What a method delivers: a small, reversible, serialisable change of a model, and how it is put on and taken off.

An intervention is tensors and names, never code. It acts through up to five channels: weight deltas, hooks on modules,
processors of the logits, a prefix of keys and values, and a rewriting of the prompt. A hook or processor names a
function as "METHOD.OP"; the function is found through the registered method's `ops`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detoxbench.engine.forward import cache_name
from detoxbench.engine.kv_cache import Cache
from detoxbench.errors import DetoxbenchError
from detoxbench.files.writing import write_folder
from detoxbench.interventions import weight_changes
from detoxbench.model.finite import LARGEST, require_finite, require_finite_values
from detoxbench.model.in_force import InForce

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from detoxbench.lm import LanguageModel

SCHEMA_VERSION = 1
Params = Mapping[str, Any]


@dataclass(frozen=True)
class Dense:
    """A delta of the parameter's own shape. Where a linear map has no bias, a delta of its bias creates one."""

    delta: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"delta": self.delta}


@dataclass(frozen=True)
class LowRank:
    """A delta `b @ a` ([out, rank] times [rank, in]) with any scaling folded in, whichever way the weight is stored."""

    a: Tensor
    b: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"a": self.a, "b": self.b}

    def __add__(self, other: LowRank) -> LowRank:
        """The sum of both changes, of the sum of their ranks."""
        import torch

        return LowRank(torch.cat([self.a, other.a]), torch.cat([self.b, other.b], dim=1))

    def scaled(self, rows: Tensor | float) -> LowRank:
        """Every row of the product times its own factor, [out], or all times one."""
        factors = rows if isinstance(rows, float) else rows.float()[:, None]
        return LowRank(self.a, (self.b * factors).to(self.b.dtype))

    def double(self) -> LowRank:
        return LowRank(self.a.double(), self.b.double())

    def transposed(self) -> LowRank:
        return LowRank(self.b.T, self.a.T)

    def row_dots(self, other: LowRank) -> Tensor:
        """Dot products of the rows of both products, [out]: b1 (a1 a2^T) b2^T row by row, no product formed."""
        # With a transposed view instead of its copy this small product takes ten times as long on two cores (MKL).
        return ((self.b @ (self.a @ other.a.T.contiguous())) * other.b).sum(1)


Delta = Dense | LowRank


@dataclass(frozen=True)
class Weight:
    """A change of one parameter, named as in `named_parameters()`."""

    parameter: str
    delta: Delta


@dataclass(frozen=True)
class Hook:
    """A function on a module's input ("pre") or output ("post"): `op(x, tensors, params) -> x`, x of any batch shape.

    Where the module takes or gives a tuple, x is its first element. `positions` generated leaves the prompt's positions
    as they are while texts are generated; where nothing is generated, all positions count as new.
    """

    module: str
    when: Literal["pre", "post"]
    op: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    params: Params = field(default_factory=dict)
    positions: Literal["all", "generated"] = "all"


@dataclass(frozen=True)
class LogitOp:
    """A function on the next-token logits, [rows, vocabulary]: `op(logits, tensors, params) -> logits`."""

    op: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    params: Params = field(default_factory=dict)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of virtual tokens that stand before everything: kv [layers, 2, heads, tokens, head dimension]."""

    kv: Tensor


@dataclass(frozen=True)
class Prompt:
    """A rewriting of prompts. `suffix` is for chat prompts only: a continuation has to go on from the prompt itself."""

    prefix: str = ""
    suffix: str = ""

    def rewrite(self, prompt: str, chat: bool) -> str:
        return self.prefix + prompt + (self.suffix if chat else "")


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """The fitted change, bound to the base model it was fitted on by that model's fingerprint."""

    method: str
    base: str
    weights: tuple[Weight, ...] = ()
    hooks: tuple[Hook, ...] = ()
    logits: tuple[LogitOp, ...] = ()
    prefixes: tuple[Prefix, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    """Diagnostics of the fit, as JSON values."""

    def require_finite(self, where: str | None = None) -> None:
        """Raises NonFiniteError, naming method and tensor (or setting), for a number that is NaN, infinite, or so large
        that it overflows when it is used. `where` is the place that is named instead of the method."""
        where = where or f"the intervention of '{self.method}'"
        remedy = "nothing is done with it: fit it again with smaller settings, or get its file again"
        require_finite(self._named_tensors(), where, remedy)
        settings: dict[str, Any] = {h.op: h.params for h in self.hooks} | {p.op: p.params for p in self.logits}
        require_finite_values(settings, where, remedy, largest=LARGEST)
        require_finite_values(self.info, where, remedy)

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, under the name of what it acts on."""
        for w in self.weights:
            yield from ((f"{w.parameter}: {name}", tensor) for name, tensor in w.delta.tensors().items())
        for h in self.hooks:
            yield from ((f"{h.module}: {name}", tensor) for name, tensor in h.tensors.items())
        for p in self.logits:
            yield from ((f"{p.op}: {name}", tensor) for name, tensor in p.tensors.items())
        for prefix in self.prefixes:
            yield "prefix: kv", prefix.kv

    def save(self, folder: str | Path) -> None:
        """Write `intervention.json` and `tensors.safetensors` into a new folder, at once or not at all.

        Raises as `require_finite`.
        """
        from safetensors.torch import save_file

        self.require_finite()
        document = {**self._document(), "info": dict(self.info)}

        def fill(new: Path) -> None:
            save_file(self._tensors(), str(new / "tensors.safetensors"))
            (new / "intervention.json").write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")

        write_folder(Path(folder), fill)

    def digest(self) -> str:
        """16 hexadecimal digits of what it is: the same for two fits that came to the same change, whatever they
        recorded on the way (`info`)."""
        import torch

        made = hashlib.sha256(json.dumps(self._document(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            made.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            made.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return made.hexdigest()[:16]

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors by the name that they are saved under, on the CPU."""
        tensors: dict[str, Tensor] = {}

        def keep(prefix: str, named: Mapping[str, Tensor]) -> None:
            tensors.update({f"{prefix}.{k}": v.detach().cpu().contiguous() for k, v in named.items()})

        for i, w in enumerate(self.weights):
            keep(f"weights.{i}", w.delta.tensors())
        for i, h in enumerate(self.hooks):
            keep(f"hooks.{i}", h.tensors)
        for i, p in enumerate(self.logits):
            keep(f"logits.{i}", p.tensors)
        for i, prefix in enumerate(self.prefixes):
            keep(f"prefixes.{i}", {"kv": prefix.kv})
        return tensors

    def _document(self) -> dict[str, Any]:
        """All that is no tensor, `info` apart, as JSON values."""
        return {
            "schema": SCHEMA_VERSION,
            "method": self.method,
            "base": self.base,
            "weights": [{"parameter": w.parameter, "kind": type(w.delta).__name__} for w in self.weights],
            "hooks": [
                {"module": h.module, "when": h.when, "op": h.op, "params": dict(h.params), "positions": h.positions}
                for h in self.hooks
            ],
            "logits": [{"op": p.op, "params": dict(p.params)} for p in self.logits],
            "prefixes": len(self.prefixes),
            "prompts": [{"prefix": p.prefix, "suffix": p.suffix} for p in self.prompts],
        }

    @classmethod
    def load(cls, folder: str | Path) -> Intervention:
        """Read what `save` wrote. Raises DetoxbenchError for a folder that holds no intervention of a known schema, and
        as `require_finite`."""
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            document = json.loads((folder / "intervention.json").read_text(encoding="utf-8"))
            tensors = load_file(str(folder / "tensors.safetensors"))
        except (OSError, json.JSONDecodeError) as error:
            raise DetoxbenchError(f"no intervention in '{folder}': {error}") from None
        if document.get("schema") != SCHEMA_VERSION:
            raise DetoxbenchError(
                f"'{folder}' has schema {document.get('schema')}; this version reads {SCHEMA_VERSION}"
            )

        def of(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}

        kinds: dict[str, type[Dense] | type[LowRank]] = {"Dense": Dense, "LowRank": LowRank}
        loaded = cls(
            method=document["method"],
            base=document["base"],
            weights=tuple(
                Weight(w["parameter"], kinds[w["kind"]](**of(f"weights.{i}")))
                for i, w in enumerate(document["weights"])
            ),
            hooks=tuple(
                Hook(h["module"], h["when"], h["op"], of(f"hooks.{i}"), h["params"], h.get("positions", "all"))
                for i, h in enumerate(document["hooks"])
            ),
            logits=tuple(LogitOp(p["op"], of(f"logits.{i}"), p["params"]) for i, p in enumerate(document["logits"])),
            prefixes=tuple(Prefix(**of(f"prefixes.{i}")) for i in range(document.get("prefixes", 0))),
            prompts=tuple(Prompt(**p) for p in document["prompts"]),
            info=document["info"],
        )
        loaded.require_finite(f"the intervention of '{loaded.method}' in '{folder}'")
        return loaded

    def to_peft(self, folder: str | Path, lm: LanguageModel) -> None:
        """Write the low-rank deltas as a LoRA into a new folder, see `peft_io.save`; `lm` is the base model."""
        from detoxbench.interventions import peft_io

        peft_io.save(self, folder, lm)

    @classmethod
    def from_peft(cls, path: str | Path, lm: LanguageModel) -> Intervention:
        """A LoRA or IA3 adapter (folder or hub id) as an intervention on `lm`, see `peft_io.load`."""
        from detoxbench.interventions import peft_io

        return peft_io.load(str(path), lm)

    def added_parameters(self) -> int:
        """Numbers that come on top of the model's own (steering vectors and the like)."""
        return sum(t.numel() for named in self._added() for t in named.values())

    def artifact_bytes(self) -> int:
        """Bytes of all tensors as saved."""
        held = [*(w.delta.tensors() for w in self.weights), *self._added()]
        return sum(t.numel() * t.element_size() for named in held for t in named.values())

    def _added(self) -> list[Mapping[str, Tensor]]:
        prefixes: list[Mapping[str, Tensor]] = [{"kv": p.kv} for p in self.prefixes]
        return [*(h.tensors for h in self.hooks), *(p.tensors for p in self.logits), *prefixes]


def compose(*interventions: Intervention) -> Intervention:
    """One intervention that does what all do: deltas add up, hooks and processors run in order, prompts are wrapped
    from the first (innermost) to the last. Raises DetoxbenchError when they belong to different base models."""
    bases = sorted({i.base for i in interventions})
    if len(bases) != 1:
        raise DetoxbenchError(f"cannot compose interventions fitted on different base models: {', '.join(bases)}")
    return Intervention(
        method="+".join(i.method for i in interventions),
        base=bases[0],
        weights=tuple(w for i in interventions for w in i.weights),
        hooks=tuple(h for i in interventions for h in i.hooks),
        logits=tuple(p for i in interventions for p in i.logits),
        prefixes=tuple(p for i in interventions for p in i.prefixes),
        prompts=tuple(p for i in interventions for p in i.prompts),
        info={i.method: dict(i.info) for i in interventions},
    )


def applied(lm: LanguageModel, intervention: Intervention) -> InForce:
    """Put `intervention` on `lm` (a context), and take it off exactly: touched tensors are copied back from saved
    originals, since adding and subtracting again is not exact. Holds for errors while entering, too. Contexts can be
    nested, and are left in reverse order (`InForce`). Low-rank changes are merged or act as side paths: `lm.low_rank`
    says which (`weight_changes`).

    Entering raises DetoxbenchError when the intervention was fitted on another model, names a part that is not there,
    holds numbers that are NaN or infinite, or would not take effect: on a compiled model, a quantised parameter.
    """
    return InForce(lm.model, intervention.method, lambda undo: _put_on(lm, intervention, undo))


def _put_on(lm: LanguageModel, intervention: Intervention, undo: ExitStack) -> None:
    require_base(lm, intervention)
    intervention.require_finite()
    if lm.route is not None:
        raise DetoxbenchError("interventions are routed to rows: apply what all rows share before that")
    lm.in_force.append(intervention.method)
    undo.callback(lm.in_force.pop)
    if intervention.weights or intervention.hooks or intervention.prefixes:
        weight_changes.require_eager(lm)
    weight_changes.put_on(lm, intervention.weights, undo)
    for hook in intervention.hooks:
        undo.callback(_register(lm, hook).remove)
    for processor in intervention.logits:
        lm.logit_functions.append(_bound(processor.op, processor.tensors, processor.params, lm))
        undo.callback(lm.logit_functions.pop)
    for prefix in intervention.prefixes:
        if lm.architecture.reserved:
            raise DetoxbenchError("a prefix is in force already: two cannot stand before everything")
        undo.callback(lm.model.register_forward_pre_hook(_prefixed(lm, prefix), with_kwargs=True).remove)
        undo.callback(setattr, lm.architecture, "reserved", 0)
        lm.architecture.reserved = prefix.kv.shape[3]
    for prompt in intervention.prompts:
        lm.prompts.append(prompt)
        undo.callback(lm.prompts.pop)


def require_base(lm: LanguageModel, intervention: Intervention) -> None:
    """Raises DetoxbenchError when the intervention was fitted on another model."""
    if intervention.base != lm.fingerprint:
        raise DetoxbenchError(
            f"this intervention of '{intervention.method}' was fitted on base model {intervention.base}, not on "
            f"{lm.fingerprint} ({lm.name}): fit it again on this model"
        )


def _prefixed(lm: LanguageModel, prefix: Prefix) -> Callable[..., Any]:
    """A pre-hook of the whole model: an empty cache begins with the prefix, which every position may look at."""
    kv = prefix.kv.to(lm.device, lm.dtype)
    tokens = kv.shape[3]
    config, name = lm.model.config.get_text_config(), cache_name(lm.model.__class__)
    if not Cache(config, tokens).movable:
        raise DetoxbenchError(
            f"a prefix needs attention in every layer; some of {type(lm.model).__name__} are recurrent"
        )

    def begin(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        from transformers import DynamicCache

        ids = args[0] if args else given["input_ids"]
        cache, mask = given.get(name), given.get("attention_mask")
        if cache is None:
            cache = DynamicCache(config=config)
        if cache.get_seq_length() == 0:
            for layer, (keys, values) in enumerate(kv):
                cache.update(keys.expand(len(ids), -1, -1, -1), values.expand(len(ids), -1, -1, -1), layer)
        given = {**given, name: cache}
        if mask is not None:
            import torch

            given["attention_mask"] = torch.cat([mask.new_ones(len(ids), tokens), mask], dim=1)
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + tokens
        return args, given

    return begin


def _bound(op: str, tensors: Mapping[str, Tensor], params: Params, lm: LanguageModel) -> Callable[[Tensor], Tensor]:
    from detoxbench.registries import methods

    owner, _, name = op.partition(".")
    ops = methods.get(owner).ops
    if name not in ops:
        raise DetoxbenchError(f"method '{owner}' has no operation '{name}'; it has: {', '.join(ops) or 'none'}")
    function = ops[name]
    here = {k: v.to(lm.device) for k, v in tensors.items()}
    return lambda x: function(x, here, params)


def _register(lm: LanguageModel, hook: Hook) -> torch.utils.hooks.RemovableHandle:
    import torch

    function = _bound(hook.op, hook.tensors, hook.params, lm)
    module = lm.architecture.module(hook.module)

    def on_first(value: Any) -> Any:
        return (steered(value[0]), *value[1:]) if isinstance(value, tuple) else steered(value)

    def steered(x: Tensor) -> Tensor:
        rows, prompt = lm.prompt_positions if hook.positions == "generated" else (1, 0)
        if not prompt:
            return function(x)
        tokens = x.reshape(rows, -1, x.shape[-1])  # some modules (OPT's MLP) are given all rows as one
        if prompt == tokens.shape[1]:
            return x
        return torch.cat([tokens[:, :prompt], function(tokens[:, prompt:])], 1).reshape(x.shape)

    if hook.when == "pre":
        return module.register_forward_pre_hook(lambda _, args: on_first(args))
    return module.register_forward_hook(lambda _, __, output: on_first(output))
