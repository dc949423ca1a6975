"""Typed configuration: what may be set, what it means, and which of it is part of a run's identity."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)

SCHEMA_VERSION = 3
"""Version of a run's files; raise it when one changes meaning, and keep the old ones loading. 3: samples have tags."""
IDENTITY_VERSION = 2
"""Version of what a run's identity means, which is part of it: raise it and every run is another one."""
LARGEST_SETTING = 1e6
"""Upper bound of fractional settings that declare none: far beyond use, and far below where arithmetic overflows."""
Dtype = Literal["float32", "float16", "bfloat16"]
"""Types that a model may be loaded in."""
Quantization = Literal["none", "nf4", "int8"]
"""Bits that weights of linear layers may be held in, by bitsandbytes."""
BASE = "none"
"""The method that is no intervention."""
EMBEDDED_DATA = "embedded fable"
"""The name under which data of the embedded world are shown."""


def knob(
    default: Any,
    help: str,
    *,
    source: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    text: bool = False,
    required: bool = False,
    applied: bool = False,
    later: bool = False,
) -> Any:
    """A field that can change a number: it is part of the run's identity. `source` says where its default is from.

    `text` marks words that a model reads or writes: typed in an override, \\n and \\t stand for line break and tab.
    `required` marks what must be given: its default is empty (`required_fields`).
    `applied` marks what no learning reads: it only acts when what was learned is applied (`Method.learned_once`).
    `later` marks what was added to a configuration whose runs are stored, with a default that says what was so before:
    at its default it is left out of the identity, so that runs keep their ids.
    """
    bounds = {k: v for k, v in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if v is not None}
    known = {"identity": True, "help": help, "source": source, "bounds": bounds, "text": text, "required": required}
    return dataclasses.field(default=default, metadata={**known, "applied": applied, "later": later})


def runtime(default: Any, help: str, *, ge: float | None = None, text: bool = False, required: bool = False) -> Any:
    """A field that cannot change a number (where things lie, how they are shown), or whose content is hashed."""
    bounds = {} if ge is None else {"ge": ge}
    known = {"identity": False, "help": help, "source": "", "bounds": bounds, "text": text, "required": required}
    return dataclasses.field(default=default, metadata=known)


def required_fields(config: type[DataclassInstance] | DataclassInstance) -> list[str]:
    """The fields that have no useful default and must be given."""
    return [field.name for field in dataclasses.fields(config) if field.metadata.get("required")]


def applied_fields(config: type[DataclassInstance] | DataclassInstance) -> list[str]:
    """The knobs that no learning reads."""
    return [field.name for field in dataclasses.fields(config) if field.metadata.get("applied")]


def switch(help: str, *, source: str = "", applied: bool = False, **values: Any) -> Any:
    """A knob that chooses between what we do and what others did: `values` are its values at fidelity=default,
    at reference (the released code) and, where it differs from both, at paper.

    null stands for the value at the configuration's `fidelity`, a `runtime` field; `resolve_switches` puts it there.
    """
    field = knob(None, help, source=source, applied=applied)
    return dataclasses.field(default=None, metadata={**field.metadata, "switch": values})


def resolve_switches(config: DataclassInstance) -> None:
    """For `__post_init__` of a configuration: every switch that is null takes its value at `config.fidelity`."""
    for field in dataclasses.fields(config):
        values = field.metadata.get("switch")
        if values and getattr(config, field.name) is None:
            object.__setattr__(config, field.name, values[getattr(config, "fidelity")])  # noqa: B009


def switched_as(config: DataclassInstance, fidelity: str, *, but: Collection[str] = ()) -> bool:
    """Whether every switch of `config`, `but` some, has its value at this `fidelity`."""
    fields = [field for field in dataclasses.fields(config) if "switch" in field.metadata and field.name not in but]
    return all(getattr(config, field.name) == field.metadata["switch"].get(fidelity) for field in fields)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model, and how it is loaded. Its weights enter the identity by their fingerprint, not by their path."""

    name: str = runtime("", "name shown in tables")
    path: str = runtime("", "local folder or Hugging Face hub id; 'fable' is the embedded model")
    revision: str | None = runtime(None, "hub revision (branch, tag or commit)")
    seed: int = runtime(0, "which of the embedded models: the seed it was trained with", ge=0)
    dtype: Literal["float32", "float16", "bfloat16", "auto"] = knob(
        "float32",
        "type of the weights and the arithmetic; auto: the checkpoint's own, by whose name it is stored and identified",
    )
    quantization: Quantization = knob(
        "none",
        "bits that the weights of linear layers but the head are held in, by bitsandbytes; what would change such "
        "weights is refused, and low-rank changes act beside them",
        later=True,
    )
    chat_template: str = knob(
        "auto", "auto: the tokenizer's own, if it has one; none: raw text; or the template's name"
    )
    template_args: dict[str, Any] | None = knob(
        None, "variables of the chat template, such as {enable_thinking: false}; null: none"
    )
    template_date: str = knob(
        "2024-07-26",
        "today's date, where a chat template asks for it (never the clock's)",
        source="Llama 3.1's template: 26 Jul 2024, where it is given none",
    )
    thinking: str = knob(
        "auto",
        "marks of thinking, which is not part of the answer: auto: such tags of the chat template or the tokenizer, if "
        "there are any; none; or the two marks with a blank between",
    )
    device: str = runtime("auto", "auto (cuda, then mps, then cpu) or a torch device")
    device_map: Literal["none", "auto"] = runtime(
        "none",
        "none: the whole model on `device`; auto: by accelerate over all GPUs and, where they are full, the memory of "
        "the CPU and the disk",
    )
    max_memory: dict[int | str, str] | None = runtime(
        None, "of device_map=auto: what each device may hold, as {0: 20GiB, cpu: 60GiB}; null: what is free"
    )

    def __post_init__(self) -> None:
        if self.device_map == "auto" and self.device != "auto":
            raise ValueError("device_map=auto chooses among all devices: leave device=auto")
        if self.max_memory is not None and self.device_map != "auto":
            raise ValueError("max_memory is of device_map=auto")
        try:
            datetime.date.fromisoformat(self.template_date)
        except ValueError:
            raise ValueError(f"template_date is a date, YYYY-MM-DD (given: {self.template_date!r})") from None
        if self.thinking not in {"auto", "none"} and len(set(self.thinking.split())) != 2:
            raise ValueError(f"thinking is auto, none, or two marks with a blank between (given: {self.thinking!r})")


@dataclass(frozen=True, kw_only=True)
class GenSpec:
    """How texts are generated. A suite's file sets what its protocol says; any field can be overridden."""

    max_new_tokens: int = knob(20, "new tokens at the most", ge=1)
    do_sample: bool = knob(False, "sample (keyed noise) or take the most probable token")
    temperature: float = knob(1.0, "sampling temperature; at the least, logits do not overflow", ge=1e-6)
    top_p: float = knob(1.0, "nucleus: smallest set of tokens with this probability", gt=0, le=1)
    top_k: int = knob(0, "the k most probable tokens only; 0 is no limit", ge=0)
    n: int = knob(1, "samples a prompt", ge=1)
    tie_tolerance: float = knob(
        1e-3,
        "a token whose lead is smaller (in logits) is decided on its row computed alone, which makes fp32 results "
        "independent of the batch; 0 turns it off",
        ge=0,
    )
    batch_tokens: int = runtime(16384, "tokens (prompt and new) held in one batch", ge=1)
    edits_mb: int = runtime(
        2048, "megabytes of changes in force at once where each record has its own (on a model, as many again)", ge=1
    )


LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks that vLLM can be told of."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What makes the forward passes while texts are generated and read. Methods are always fitted with transformers."""

    name: Literal["transformers", "vllm"] = knob("transformers", "transformers, or vllm (docs/scale.md)")
    gpu_memory_utilization: float = runtime(
        0.5, "vllm: the share of a GPU's memory that it takes; the model that methods are fitted on lies beside it"
    )
    max_model_len: int | None = runtime(
        None, "vllm: most tokens of prompt and text together; null: the model's context", ge=2
    )
    max_lora_rank: int = runtime(64, "vllm: low-rank changes up to this rank are LoRAs, others merged weights", ge=8)
    max_loras: int = runtime(8, "vllm: LoRAs in one batch, where each record has its own", ge=1)

    def __post_init__(self) -> None:
        if self.max_lora_rank not in LORA_RANKS:
            raise ValueError(f"max_lora_rank is one of {', '.join(map(str, LORA_RANKS))} (given: {self.max_lora_rank})")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization is a share, above 0 and up to 1 (given: {self.gpu_memory_utilization})"
            )


@dataclass(frozen=True, kw_only=True)
class TrackerSpec:
    """Where runs are reported in addition to the runs folder."""

    name: Literal["none", "wandb", "trackio"] = runtime("none", "none, wandb or trackio")
    mode: Literal["offline", "online"] = runtime(
        "offline", "offline: written below runs_dir, to be sent later; online: sent as well"
    )
    project: str = runtime("detoxbench", "project at the tracker")
    entity: str | None = runtime(None, "account or team at W&B")
    group: str | None = runtime(None, "group of the run; null: one group for each leaderboard table")
    samples: int = runtime(200, "rows of the table of samples, evenly spread over the run", ge=0)
    artifact_mb: float = runtime(100.0, "send the fitted intervention along up to this size; 0: never", ge=0)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One cell: a model under a method, asked a suite, judged by a scorer, with one seed."""

    model: ModelSpec
    method: Any
    method_name: str
    suite: Any
    suite_name: str
    scorer: Any
    scorer_name: str
    gen: GenSpec
    fit: Any
    """The settings of fit data by role (`data.roles.fit_spec`)."""
    tracker: TrackerSpec
    engine: EngineSpec = EngineSpec()
    seed: int = knob(0, "seed of fitting and sampling", ge=0)
    low_rank: Literal["auto", "merged", "side_path"] = runtime(
        "auto",
        "low-rank changes of weights: merged, or side_path with float32 factors, which rounds nothing away; auto: "
        "merged in float32, else side_path. What it comes to is part of the method's identity",
    )
    runs_dir: str = runtime("runs", "folder of the results")
    runs_lock: Literal["file", "lease"] = runtime(
        "file",
        "how processes keep off each other's runs: by locks of the file system, or where those do not hold between "
        "machines by a lease, which is then kept to in that runs folder",
    )
    with_base: bool = runtime(
        True, "also run the base model (method=none) and the method's controls, once for all, to compare against"
    )
    cells_per_job: int = runtime(
        1, "cells of one model that a job of a multirun runs one after the other, with the model loaded once", ge=1
    )


def unescaped(text: str) -> str:
    """Typed text as it is meant: backslash and n, t, r or another backslash are a line break, a tab, and so on."""
    signs = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(r"\\([ntr\\])", lambda match: signs[match[1]], text)


def texts(cls: type[DataclassInstance]) -> set[str]:
    """The fields of a configuration that are marked as `text`."""
    return {f.name for f in dataclasses.fields(cls) if f.metadata.get("text")}


def identity(config: DataclassInstance) -> dict[str, Any]:
    """The fields of `config` that can change a number, by name; without those that came `later`, at their default."""
    fields = [f for f in dataclasses.fields(config) if f.metadata["identity"]]
    values = {f.name: getattr(config, f.name) for f in fields}
    unsaid = {f.name for f in fields if f.metadata.get("later") and values[f.name] == f.default}
    return {name: value for name, value in values.items() if name not in unsaid}


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of `value` as canonical JSON.

    Raises DetoxbenchError for what could not be stored and read back: a number that is not finite, half a character.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        near = ascii(error.object[max(0, error.start - 20) : error.end + 20])
        raise DetoxbenchError(f"a text holds half a character (a lone surrogate), near {near}: mend the data") from None
    except ValueError as error:
        raise DetoxbenchError(f"a number that is not finite cannot be part of a run: {error}") from None
    return hashlib.sha256(text).hexdigest()[:16]


def build(cls: type[D], values: Mapping[str, Any], where: str, *, owner: str = "") -> D:
    """`values` as a `cls`, every key known, every value of its field's type and in its range.

    `where` is the configuration path shown in errors, e.g. "method", and `owner` whose settings these are, e.g.
    "method 'destein'". Raises UsageError.
    """
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = get_type_hints(cls)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in known:
            paths = [f"{where}.{name}" if where else name for name in known]
            owned, listed = f" of {owner}" if owner else "", ", ".join(paths) or "none"
            raise UsageError(f"unknown key '{path}'{owned}{did_you_mean(path, paths)}; known: {listed}")
        checked[key] = _checked(value, known[key].metadata, hints[key], path)
    try:
        return cls(**checked)
    except (TypeError, ValueError) as error:
        raise UsageError(f"wrong configuration of '{where}': {error}") from None


def _checked(value: Any, metadata: Mapping[str, Any], hint: Any, path: str) -> Any:
    """`value` as the type `hint` of its field, within the bounds of the field's `metadata`. Raises UsageError, which
    names the configuration path `path`."""
    if value == "None" and type(None) in get_args(hint):  # how Python, and so the W&B agent, writes null
        value = None
    if isinstance(value, str) and value == "???":
        raise UsageError(f"'{path}' must be given: {metadata.get('help', '')}".rstrip(": "))
    try:
        converted = _rounded(msgspec.convert(_whole(value, path), hint))
    except msgspec.ValidationError as error:
        choices = choices_of(hint)
        reason = f"it is one of {', '.join(choices)}" if choices else str(error).replace("`", "")
        near = did_you_mean(str(value), choices)
        raise UsageError(f"wrong value for '{path}': {reason} (given: {value!r}){near}") from None
    bounds = metadata.get("bounds", {})
    if isinstance(converted, float) and not bounds.keys() & {"le", "lt"}:
        bounds = {**bounds, "le": LARGEST_SETTING}
    for sign, bound in bounds.items():
        if converted is not None and not _within(converted, sign, bound):
            raise UsageError(f"'{path}' is out of range: {value!r} must be {_SIGNS[sign]} {bound:g}")
    return converted


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values that a field of this type may have, where the type lists them (x, or x | None)."""
    literals = [h for h in (hint, *get_args(hint)) if get_origin(h) is Literal]
    return get_args(literals[0]) if literals else ()


def normalised(spec: RunSpec) -> RunSpec:
    """`spec` as `build` makes its parts: what was made by hand is checked, and its numbers are those of its identity.

    Raises UsageError.
    """
    parts = {
        key: _fields(spec, key) for key in ("model", "method", "suite", "scorer", "gen", "fit", "tracker", "engine")
    }
    built = {key: build(type(getattr(spec, key)), values, key) for key, values in parts.items()}
    return dataclasses.replace(spec, **built)


def _fields(spec: RunSpec, key: str) -> dict[str, Any]:
    config = getattr(spec, key)
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}


DIGITS = 12
"""Significant digits of a number in a configuration. What differs by less is one setting: 0.1 + 0.2 is 0.3."""


def _whole(value: Any, where: str) -> Any:
    """`value` with whole floats as integers, lists and maps part by part, so that 1, 1.0 and 1e0 are one number of
    whatever type the field has. Raises UsageError for a number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _whole(inner, f"{where}.{key}") for key, inner in value.items()}
    if type(value) in _PLAIN:
        return type(value)(_whole(inner, where) for inner in value)
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise UsageError(f"'{where}' is {'' if math.isnan(value) else 'out of range: '}{value}: give a number")
    nearest = value if value.is_integer() else _rounded(value)
    return int(nearest) if nearest.is_integer() else nearest


def _rounded(value: Any) -> Any:
    """`value` with every float at `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") + 0.0  # -0.0 is 0.0
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if type(value) in _PLAIN:
        return type(value)(_rounded(inner) for inner in value)
    return value


_PLAIN = (list, tuple, set, frozenset)

_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _within(value: float, sign: str, bound: float) -> bool:
    return {"ge": value >= bound, "gt": value > bound, "le": value <= bound, "lt": value < bound}[sign]
