"""PEFT adapter folders: read into what a delta needs, and written from low-rank deltas.

Only exact conversions are made. An adapter is refused, before a tensor is read, if its effect is more than
`scaling * B A` (LoRA), a vector of factors (IA3) or past keys and values (prefix tuning); the error names what is more.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.files.writing import write_folder
from detoxbench.interventions.channels import Dense, LowRank, Prefix, Weight
from detoxbench.model import checkpoint
from detoxbench.model.finite import require_finite
from detoxbench.text import first_line

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.model.model import Model

log = logging.getLogger("detoxbench")


@dataclass(frozen=True)
class Lora:
    """A weight's change `scaling * b @ a` in float32; a [rank, in], b [out, rank], whichever way the weight lies."""

    a: Tensor
    b: Tensor
    scaling: float = 1.0

    def delta(self, scaling: float | None = None) -> LowRank:
        """The change with `scaling`, by default its own, folded into b."""
        return LowRank(self.a, self.b * (self.scaling if scaling is None else scaling))


@dataclass(frozen=True)
class Ia3:
    """Factors of a linear map's outputs or, where `on_input`, of its inputs: [features], 1 where nothing changes."""

    factors: Tensor
    on_input: bool

    def delta(self, scaling: float | None = None) -> LowRank:
        """The factors less 1, as a matrix of one row; IA3 has no scaling."""
        return LowRank(self.factors[None] - 1, self.factors.new_ones(1, 1))


@dataclass(frozen=True)
class PrefixTuning:
    """Keys and values of virtual tokens, [layers, 2, heads, tokens, head dimension], in float32."""

    kv: Tensor

    def delta(self, scaling: float | None = None) -> LowRank:
        """The vectors of all layers, heads and tokens as rows; a prefix has no scaling."""
        rows = self.kv.flatten(0, -2)
        return LowRank(rows.new_ones(rows.shape[1]).diag(), rows)

    def like(self, delta: LowRank) -> Prefix:
        """Rows that were made of `delta()`, as a prefix again."""
        return Prefix((delta.b @ delta.a).reshape(self.kv.shape))


@dataclass(frozen=True)
class PeftAdapter:
    """What an adapter folder holds, by module path (a prefix by "prefix"). `base` is the model that it names, `dtype`
    that of its tensors."""

    modules: Mapping[str, Lora | Ia3 | PrefixTuning]
    base: str
    dtype: str


# What PEFT calls the switches of adapter_config.json that change the effect or need more than the two factors.
_NAMES = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Fields that say how or on what it was trained: the result is in the tensors, by the names of their modules.
_TRAINING = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "feedforward_modules", "fan_in_fan_out", "lora_dropout"),
    *("layers_to_transform", "layers_pattern", "init_ia3_weights", "init_weights", "eva_config", "qalora_group_size"),
    *("megatron_core", "ensure_weight_tying", "token_dim", "encoder_hidden_size", "prefix_projection"),
}
# Fields that are read below.
_READ = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"),
    *("num_virtual_tokens", "num_transformer_submodules", "num_attention_heads", "num_layers"),
}
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_KEYS = {
    "LORA": r"base_model\.model\.(.+)\.(lora_[AB])\.weight",
    "IA3": r"base_model\.model\.(.+)\.(ia3_l)",
    "PREFIX_TUNING": r"(prompt_embeddings)",
}


def inspect(path: str) -> dict[str, Any]:
    """The configuration of the adapter at `path` (folder or hub id), checked with the names of its tensors; no weights.

    Raises DetoxbenchError for an adapter that cannot be represented exactly, naming what stands in the way.
    """
    from safetensors import SafetensorError, safe_open

    folder = checkpoint.locate_adapter(path)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
            keys = list(file.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise DetoxbenchError(f"the adapter '{path}' cannot be read: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise DetoxbenchError(f"the adapter '{path}' cannot be read: its adapter_config.json is no JSON object")
    kind = config.get("peft_type")
    if kind not in _KEYS:
        raise DetoxbenchError(f"the adapter '{path}' is of type {kind}; {', '.join(_KEYS)} can be read")
    _check_fields(path, config, folder)
    if (config.get("bias") or "none") != "none":
        raise DetoxbenchError(f"the adapter '{path}' trained biases (bias={config['bias']}), which are not B A")
    if str(config.get("init_lora_weights", "")).lower().startswith(_CHANGE_THE_BASE):
        raise DetoxbenchError(
            f"the adapter '{path}' was initialised by {config['init_lora_weights']}, which changes the base model too: "
            "convert it to a plain LoRA (PEFT: path_initial_model_for_weight_conversion)"
        )
    for key in keys:
        if not re.fullmatch(_KEYS[kind], key):
            raise DetoxbenchError(f"the adapter '{path}' holds '{key}', which is no {kind} matrix of a linear map")
    return config


def _check_fields(path: str, config: Mapping[str, Any], folder: Path) -> None:
    """Raises DetoxbenchError for a field that is on and not known to be represented exactly, and for a LoRA whose
    scaling is not given: PEFT would take its defaults, which have changed."""
    for name in sorted(config.keys() - _TRAINING - _READ):
        if config[name]:
            raise DetoxbenchError(
                f"the adapter '{path}' uses {_NAMES.get(name, name)} ({name}), so it may be more than a change B A: "
                "merge it into the model with PEFT, and name the merged model"
            )
    if config["peft_type"] != "LORA":
        return
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or (name == "r" and value < 1):
            raise DetoxbenchError(
                f"'{folder / 'adapter_config.json'}' has {name}={value!r}: without the number that it was trained with "
                "the adapter's scaling is not known; write it there"
            )
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(name) or {}, dict):
            raise DetoxbenchError(
                f"'{folder / 'adapter_config.json'}' has {name}={config[name]!r}, which is no mapping"
            )


def fingerprint(path: str) -> str:
    """16 hexadecimal digits of the adapter's content. Raises like `inspect`."""
    inspect(path)
    return checkpoint.adapter_fingerprint(checkpoint.locate_adapter(path))


def read(path: str, lm: Model) -> PeftAdapter:
    """The adapter at `path` (folder or hub id), rank_pattern, alpha_pattern and rsLoRA honoured.

    Raises DetoxbenchError like `inspect`, where it names a module that `lm` does not have, or has in another shape, and
    where a number is NaN or infinite."""
    config = inspect(path)
    kind, base = config["peft_type"], str(config.get("base_model_name_or_path") or "")
    if kind == "PREFIX_TUNING":
        (saved,) = _tensors(path).values()
        return PeftAdapter({"prefix": _prefix(lm, path, config, saved)}, base, str(saved.dtype).partition(".")[2])
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _tensors(path).items():
        module, part = re.fullmatch(_KEYS[kind], key).groups()  # type: ignore[union-attr]  # inspected
        tensors.setdefault(module, {})[part] = tensor
    modules: dict[str, Lora | Ia3 | PrefixTuning] = {}
    for module, parts in sorted(tensors.items()):
        if kind == "IA3":
            scale = parts["ia3_l"]
            modules[module] = Ia3(scale.float().flatten(), on_input=scale.shape[0] == 1)
        elif parts.keys() != {"lora_A", "lora_B"}:
            raise DetoxbenchError(f"the adapter '{path}' has only one of the two matrices of '{module}'")
        else:
            modules[module] = _lora(path, config, module, parts["lora_A"], parts["lora_B"])
    if not modules:
        raise DetoxbenchError(f"the adapter '{path}' is empty")
    _check_fits(lm, modules, path)
    first = next(iter(next(iter(tensors.values())).values()))
    return PeftAdapter(modules, base, str(first.dtype).partition(".")[2])


def _tensors(path: str) -> dict[str, Tensor]:
    """The tensors of an adapter that was inspected, all finite."""
    from safetensors.torch import load_file

    file = checkpoint.locate_adapter(path) / "adapter_model.safetensors"
    tensors = load_file(str(file))
    require_finite(tensors.items(), f"the adapter file '{file}'", "it is damaged: get it again, or train it again")
    return tensors


def _prefix(lm: Model, path: str, config: Mapping[str, Any], saved: Tensor) -> PrefixTuning:
    """PEFT saves [tokens, layers * 2 * heads * head dimension], the key of a layer before its value."""
    layers, heads = int(config["num_layers"]), int(config["num_attention_heads"])
    text_config = lm.model.config.get_text_config()
    known = len(lm.architecture.layers), int(getattr(text_config, "num_key_value_heads", None) or lm.architecture.heads)
    if (layers, heads) != known:
        raise DetoxbenchError(
            f"the adapter '{path}' is for {layers} layers with {heads} key heads; "
            f"'{lm.name}' has {known[0]} and {known[1]}"
        )
    return PrefixTuning(saved.float().reshape(len(saved), layers, 2, heads, -1).permute(1, 2, 3, 0, 4).contiguous())


def _lora(path: str, config: Mapping[str, Any], module: str, a: Tensor, b: Tensor) -> Lora:
    def of(pattern: str, otherwise: str) -> float:
        """PEFT's rule: the first pattern that matches the end of the module's path."""
        patterns: Mapping[str, float] = config.get(pattern) or {}
        values = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
        return float(next(values, config[otherwise]))

    rank = of("rank_pattern", "r")
    if not a.shape[0] == b.shape[1] == rank:
        raise DetoxbenchError(
            f"the adapter '{path}' has rank {a.shape[0]} by {b.shape[1]} in '{module}'; its configuration says {rank:g}"
        )
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    scaling = of("alpha_pattern", "lora_alpha") / root if root else math.nan
    if not math.isfinite(scaling):
        raise DetoxbenchError(f"the adapter '{path}' scales '{module}' by {scaling}: correct lora_alpha and r")
    return Lora(a.float(), b.float(), scaling)


def _check_fits(lm: Model, modules: Mapping[str, Lora | Ia3 | PrefixTuning], path: str) -> None:
    for module, part in modules.items():
        if isinstance(part, PrefixTuning):
            continue  # checked when it was read
        out, into = _features(lm, module)
        if isinstance(part, Lora):
            fits = (part.b.shape[0], part.a.shape[1]) == (out, into)
        else:
            fits = len(part.factors) == (into if part.on_input else out)
        if not fits:
            raise DetoxbenchError(f"the adapter '{path}' does not fit '{module}' of '{lm.name}' ({into} in, {out} out)")


def _features(lm: Model, module: str) -> tuple[int, int]:
    """(out, in) of a linear map."""
    from torch import nn

    layer = lm.architecture.module(module)
    if isinstance(layer, nn.Linear):  # whatever shape its weight is held in
        return layer.out_features, layer.in_features
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() != 2 or isinstance(layer, nn.Embedding):
        raise DetoxbenchError(f"'{module}' of {type(lm.model).__name__} is no linear map ({type(layer).__name__})")
    shape = tuple(weight.shape)
    return (shape[1], shape[0]) if lm.architecture.transposed(module) else (shape[0], shape[1])


def rescaling(lm: Model, module: str, change: Tensor, on_input: bool) -> Iterator[Weight]:
    """IA3 as deltas: weight (and, on the output side, bias) times `change`, which is factors - 1, [features]."""
    linear: Any = lm.architecture.module(module)
    weight = lm.weight(module)
    change = change.to(weight.device)
    along_rows = on_input == lm.architecture.transposed(module)
    yield Weight(f"{module}.weight", Dense((weight * (change[:, None] if along_rows else change)).cpu()))
    if not on_input and linear.bias is not None:
        yield Weight(f"{module}.bias", Dense((linear.bias.detach().float() * change).cpu()))


def load(path: str, lm: Model) -> tuple[tuple[Weight, ...], tuple[Prefix, ...], str]:
    """(changes of weights, prefixes, name of its base model) of the adapter at `path`, as they act on `lm`.

    Raises like `read`.
    """
    adapter = read(path, lm)
    weights: list[Weight] = []
    prefixes: list[Prefix] = []
    for module, part in adapter.modules.items():
        if isinstance(part, Lora):
            weights.append(Weight(f"{module}.weight", part.delta()))
        elif isinstance(part, Ia3):
            weights += rescaling(lm, module, part.factors - 1, part.on_input)
        else:
            prefixes.append(Prefix(part.kv))
    return tuple(weights), tuple(prefixes), adapter.base


def warn_of_other_bases(bases: Iterable[str], lm: Model) -> None:
    """Warn where the base models that adapters name (empty where they do not) have another name than `lm`, in the last
    part of their path."""
    named = sorted({base for base in bases if base})
    if len({name.rstrip("/").rpartition("/")[2].casefold() for name in [*named, lm.name]}) > 1:
        log.warning("the adapters name the base model %s; this is %s", " and ".join(named), lm.name)


def save(weights: Sequence[Weight], folder: str | Path, lm: Model, *, owner: str) -> None:
    """Write a LoRA that `peft.PeftModel.from_pretrained(model, folder)` loads; deltas of one parameter are stacked.

    `lora_alpha` is the rank, so PEFT's scaling is 1 in every module. `lm` gives the base model's name and how weights
    are stored, `owner` is the method that errors name. Raises DetoxbenchError for a part that is no low-rank change of
    a linear map, and for a folder that is in use."""
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DetoxbenchError(f"'{folder}' is there already: name a new folder")
    factors: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for weight in weights:
        module, _, leaf = weight.parameter.rpartition(".")
        if not isinstance(weight.delta, LowRank) or leaf != "weight":
            raise DetoxbenchError(f"'{owner}' cannot become a LoRA: its change of '{weight.parameter}' is dense")
        _features(lm, module)
        a, b = factors.setdefault(module, ([], []))
        a.append(weight.delta.a)
        b.append(weight.delta.b)
    if not factors:
        raise DetoxbenchError(f"'{owner}' cannot become a LoRA: it changes no weight")
    _write(folder, factors, lm)


def _write(folder: Path, factors: Mapping[str, tuple[list[Tensor], list[Tensor]]], lm: Model) -> None:
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.cat(a).detach().float().cpu().contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.cat(b, 1).detach().float().cpu().contiguous()
        ranks[module] = sum(len(part) for part in a)
    config = _lora_config(ranks, lm)

    def fill(new: Path) -> None:
        save_file(tensors, str(new / "adapter_model.safetensors"), metadata={"format": "pt"})
        (new / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")

    write_folder(folder, fill)


def _lora_config(ranks: Mapping[str, int], lm: Model) -> dict[str, Any]:
    """adapter_config.json of a LoRA with a rank for each module path; the most frequent one is the default."""
    most = max(ranks.values(), key=list(ranks.values()).count)
    pattern = {module: rank for module, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lm.name,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "fan_in_fan_out": any(lm.architecture.transposed(module) for module in ranks),
    }
