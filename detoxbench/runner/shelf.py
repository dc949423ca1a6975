"""LoRAs that several fits train alike are trained once: an expert serves Ext-Sub, DExperts and SFT, and every alpha."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from detoxbench.files.lines import encode
from detoxbench.files.sealing import seal, whole_or_aside
from detoxbench.files.writing import write_atomic, write_folder
from detoxbench.fitting.training import Adapter
from detoxbench.interventions.channels import LowRank
from detoxbench.runner.cell import RunCell
from detoxbench.runner.cost import Meter
from detoxbench.runner.loaded import language_model

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("detoxbench")


class _Kept(msgspec.Struct):
    """adapter.json: what a training recorded and cost, beside its tensors."""

    parameters: Sequence[str]
    """In the order in which the training gave them, which an intervention keeps."""
    losses: Sequence[float]
    gradient_norms: Sequence[float]
    measures: dict[str, Sequence[float]]
    cut_texts: int
    seconds: float
    peak_mb: float | None


class AdapterShelf:
    """The LoRAs among a cell's stages. `seconds` and `peaks_mb` are what those cost that were taken from it: a fit's
    cost is that of all its training, whoever did it first."""

    def __init__(self, cell: RunCell) -> None:
        self._cell = cell
        self.seconds = 0.0
        self.peaks_mb: list[float | None] = []

    def adapter(self, key: str, train: Callable[[], Adapter[LowRank]]) -> Adapter[LowRank]:
        """The LoRA of that key, trained if it is not there."""
        folder = self._cell.stage("lora", key)
        with self._cell.locked(folder):
            if not whole_or_aside(folder):
                with Meter(language_model(self._cell).device) as meter:
                    trained = train()
                _keep(folder, trained, meter)
                return trained
        adapter, kept = _read(folder)
        self.seconds += kept.seconds
        self.peaks_mb.append(kept.peak_mb)
        log.info("a LoRA that was trained alike before is taken (%.1f s)", kept.seconds)
        return adapter


def _keep(folder: Path, adapter: Adapter[LowRank], meter: Meter) -> None:
    from safetensors.torch import save_file

    kept = _Kept(
        list(adapter.deltas), adapter.losses, adapter.gradient_norms, dict(adapter.measures), adapter.cut_texts,
        meter.seconds, meter.peak_mb,
    )  # fmt: skip
    tensors = {f"{name}.{key}": t for name, delta in adapter.deltas.items() for key, t in delta.tensors().items()}

    def fill(new: Path) -> None:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, str(new / "tensors.safetensors")
        )
        write_atomic(new / "adapter.json", encode(kept))
        seal(new)

    write_folder(folder, fill)


def _read(folder: Path) -> tuple[Adapter[LowRank], _Kept]:
    from safetensors.torch import load_file

    kept = msgspec.json.decode((folder / "adapter.json").read_bytes(), type=_Kept)
    tensors = load_file(str(folder / "tensors.safetensors"))
    deltas = {name: LowRank(tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in kept.parameters}
    return Adapter(deltas, kept.losses, kept.gradient_norms, kept.measures, kept.cut_texts), kept
