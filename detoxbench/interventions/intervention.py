"""What a method delivers: a small, reversible, serialisable change of a model.

An intervention is tensors and names, never code. It acts through channels (`channels`): changes of weights, hooks on
modules, processors of the logits, a prefix of keys and values, rewritings of the prompt, and choices among whole
texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.files.writing import write_folder
from detoxbench.interventions import peft_io
from detoxbench.interventions.channels import Carried, Channel, Hook, LogitOp, Output, Prefix, Prompt, Weight
from detoxbench.interventions.channels.base import below
from detoxbench.model.finite import LARGEST, require_finite, require_finite_values

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from detoxbench.model.model import Model

SCHEMA_VERSION = 1


def channel(cls: type[Channel]) -> Any:
    """A field of `Intervention`: the parts that act through one channel."""
    return field(default=(), metadata={"channel": cls})


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """The fitted change, bound to the base model it was fitted on by that model's fingerprint.

    Each channel is one field, in the order in which channels are put on.
    """

    method: str
    base: str
    weights: tuple[Weight, ...] = channel(Weight)
    hooks: tuple[Hook, ...] = channel(Hook)
    logits: tuple[LogitOp, ...] = channel(LogitOp)
    prefixes: tuple[Prefix, ...] = channel(Prefix)
    prompts: tuple[Prompt, ...] = channel(Prompt)
    outputs: tuple[Output, ...] = channel(Output)
    info: Mapping[str, Any] = field(default_factory=dict)
    """Diagnostics of the fit, as JSON values."""

    @classmethod
    def channels(cls) -> dict[str, type[Channel]]:
        """Field name -> channel."""
        return {f.name: f.metadata["channel"] for f in fields(cls) if "channel" in f.metadata}

    def parts(self) -> Iterator[tuple[str, Channel]]:
        """(name in the saved tensors, part) of every part: ("weights.0", Weight(...)), ..."""
        for name in self.channels():
            yield from ((f"{name}.{i}", part) for i, part in enumerate(getattr(self, name)))

    def require_finite(self, where: str | None = None) -> None:
        """Raises NonFiniteError, naming method and tensor (or setting), for a number that is NaN, infinite, or so large
        that it overflows when it is used. `where` is the place that is named instead of the method."""
        where = where or f"the intervention of '{self.method}'"
        remedy = "nothing is done with it: fit it again with smaller settings, or get its file again"
        for _, part in self.parts():
            tensors = ((f"{part.place}: {name}", tensor) for name, tensor in part.named_tensors().items())
            require_finite(tensors, where, remedy)
        for _, part in self.parts():
            require_finite_values(part.settings(), where, remedy, largest=LARGEST)
        require_finite_values(self.info, where, remedy)

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
        """16 hexadecimal digits of its content: the same for two fits that give the same change, even where their
        diagnostics (`info`) differ."""
        import torch

        sha = hashlib.sha256(json.dumps(self._document(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return sha.hexdigest()[:16]

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors by the name that they are saved under, on the CPU."""
        return {
            f"{place}.{name}": tensor.detach().cpu().contiguous()
            for place, part in self.parts()
            for name, tensor in part.named_tensors().items()
        }

    def _document(self) -> dict[str, Any]:
        """All that is no tensor, without `info`, as JSON values. Of a channel that has tensors only, the number of its
        parts."""
        document: dict[str, Any] = {"schema": SCHEMA_VERSION, "method": self.method, "base": self.base}
        for name, kind in self.channels().items():
            parts = getattr(self, name)
            if kind.optional and not parts:
                continue
            document[name] = [part.as_json() for part in parts] if kind.described else len(parts)
        return document

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote. Raises DetoxbenchError for a folder that holds no intervention of a known schema or
        one with a channel that is not known here, and as `require_finite`."""
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
        if unknown := document.keys() - {"schema", "method", "base", "info"} - cls.channels().keys():
            raise DetoxbenchError(f"'{folder}' acts through '{min(unknown)}', a channel that is not known here")

        parts: dict[str, Any] = {}
        for name, kind in cls.channels().items():
            described = document.get(name, [])
            described = [{}] * described if isinstance(described, int) else described
            parts[name] = tuple(kind.of(d, below(tensors, f"{name}.{i}")) for i, d in enumerate(described))
        loaded = cls(method=document["method"], base=document["base"], info=document["info"], **parts)
        loaded.require_finite(f"the intervention of '{loaded.method}' in '{folder}'")
        return loaded

    def to_peft(self, folder: str | Path, lm: Model) -> None:
        """Write the low-rank deltas as a LoRA into a new folder, see `peft_io.save`; `lm` is the base model.

        Raises DetoxbenchError for every part that a LoRA cannot carry, by its name.
        """
        self.require_finite()
        for place, part in self.parts():
            if not isinstance(part, Weight):
                name = place.partition(".")[0]
                raise DetoxbenchError(f"'{self.method}' cannot become a LoRA: it has {name} ({part.place})")
        peft_io.save(self.weights, folder, lm, owner=self.method)

    @classmethod
    def from_peft(cls, path: str | Path, lm: Model) -> Self:
        """A LoRA, IA3 or prefix-tuning adapter (folder or hub id) as an intervention on `lm`, see `peft_io.load`."""
        weights, prefixes, base = peft_io.load(str(path), lm)
        return cls(method="peft", base=lm.fingerprint, weights=weights, prefixes=prefixes, info={"adapter_base": base})

    def carried(self) -> Carried:
        """The same as a hook or an operation on the logits carries it (`Hook.under`, `LogitOp.under`).

        Raises DetoxbenchError where it acts through another channel than weights, hooks and prompts, or carries more.
        """
        for place, part in self.parts():
            name = place.partition(".")[0]
            if name not in Carried.channels():
                raise DetoxbenchError(
                    f"a hook or an operation on the logits cannot carry '{self.method}': it has {name} ({part.place})"
                )
        return Carried(self.weights, self.hooks, self.prompts)

    def added_parameters(self) -> int:
        """Numbers that come on top of the model's own (steering vectors and the like)."""
        added = (part for _, part in self.parts() if part.adds)
        return sum(tensor.numel() for part in added for tensor in part.named_tensors().values())

    def artifact_bytes(self) -> int:
        """Bytes of all tensors as saved."""
        held = (part.named_tensors().values() for _, part in self.parts())
        return sum(tensor.numel() * tensor.element_size() for tensors in held for tensor in tensors)


def compose(*interventions: Intervention) -> Intervention:
    """One intervention that does what all do: deltas add up, hooks and processors run in order, prompts are wrapped
    from the first (innermost) to the last. Raises DetoxbenchError when they belong to different base models."""
    bases = sorted({i.base for i in interventions})
    if len(bases) != 1:
        raise DetoxbenchError(f"cannot compose interventions fitted on different base models: {', '.join(bases)}")
    kind = type(interventions[0])
    parts: dict[str, Any] = {
        name: tuple(part for i in interventions for part in getattr(i, name)) for name in kind.channels()
    }
    info: dict[str, Any] = {}
    for i in interventions:
        same = sum(other.partition(" ")[0] == i.method for other in info)
        info[i.method if not same else f"{i.method} {same + 1}"] = dict(i.info)
    return kind(method="+".join(i.method for i in interventions), base=bases[0], info=info, **parts)
