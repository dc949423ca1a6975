"""What fits learn alike lies among a runs folder's stages: an expert serves Ext-Sub, DExperts and SFT, and every alpha;
directions serve every strength."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from detoxbench.config import digest
from detoxbench.files.lines import encode
from detoxbench.files.sealing import seal, whole_or_aside
from detoxbench.files.writing import write_atomic, write_folder
from detoxbench.fitting.shelf import Learned
from detoxbench.runner.cell import RunCell
from detoxbench.runner.cost import Meter
from detoxbench.runner.loaded import language_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

log = logging.getLogger("detoxbench")


class _Kept(msgspec.Struct):
    """learned.json: what was recorded and what it cost, beside the tensors."""

    info: dict[str, Any]
    seconds: float
    peak_mb: float | None


class RunShelf:
    """What has been learned, among a cell's stages. `seconds` and `peaks_mb` are what that cost which was taken: a
    fit's cost is that of all its learning, whoever did it first."""

    def __init__(self, cell: RunCell) -> None:
        self._cell = cell
        self.seconds = 0.0
        self.peaks_mb: list[float | None] = []

    def kept(self, key: str, learn: Callable[[], Learned]) -> Learned:
        """What is kept under the key and for this model as it is loaded, learned if it is not there."""
        folder = self._cell.stage("learned", digest([self._cell.identity["model"], key]))
        with self._cell.locked(folder) as held:
            if not whole_or_aside(folder):
                with Meter(*language_model(self._cell).devices) as meter:
                    learned = learn()
                held()
                _keep(folder, learned, meter)
                return learned
        tensors, kept = _read(folder)
        self.seconds += kept.seconds
        self.peaks_mb.append(kept.peak_mb)
        log.info("what an earlier fit learned alike is taken (%.1f s)", kept.seconds)
        return Learned(tensors, kept.info)


def _keep(folder: Path, learned: Learned, meter: Meter) -> None:
    from safetensors.torch import save_file

    kept = _Kept(dict(learned.info), meter.seconds, meter.peak_mb)

    def fill(new: Path) -> None:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in learned.tensors.items()}
        save_file(tensors, str(new / "tensors.safetensors"))
        write_atomic(new / "learned.json", encode(kept))
        seal(new)

    write_folder(folder, fill)


def _read(folder: Path) -> tuple[dict[str, Tensor], _Kept]:
    from safetensors.torch import load_file

    kept = msgspec.json.decode((folder / "learned.json").read_bytes(), type=_Kept)
    return load_file(str(folder / "tensors.safetensors")), kept
