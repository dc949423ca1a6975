"""What a run has in memory: the model, shared by the runs of a process, and the fitted intervention."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from detoxbench.config import EngineSpec, ModelSpec
from detoxbench.model.devices import empty_caches
from detoxbench.runner.cell import RunCell, checkpoint_folder

if TYPE_CHECKING:
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel
    from detoxbench.vllm_engine.model import VllmModel

log = logging.getLogger("detoxbench")

_HOW = (
    "dtype", "device", "device_map", "max_memory", "quantization", "chat_template", "template_args", "template_date",
    "thinking",
)  # fmt: skip
"""How a model is loaded: keywords of `LanguageModel.load`."""
_HOW_WRITTEN = ("dtype", "chat_template", "template_args", "template_date", "thinking")
"""Those of them that are no matter of where its weights are."""
_held: dict[tuple[tuple[str, str | None, int], bytes, str], LanguageModel] = {}
"""The model in memory: one at the most."""


def language_model(cell: RunCell) -> LanguageModel:
    """The cell's model in memory."""
    lm = _loaded(*loaded_as(cell.spec.model), cell.identity["model"]["fingerprint"])
    lm.low_rank = cell.low_rank  # set here, so that both forms share what is loaded
    return lm


def loaded_as(model: ModelSpec) -> tuple[tuple[str, str | None, int], bytes]:
    """Where a model is loaded from and how: of two models with the same, what is in memory is shared."""
    how = msgspec.json.encode({key: getattr(model, key) for key in _HOW})
    return (model.path, model.revision, model.seed), how


def _loaded(where: tuple[str, str | None, int], how: bytes, fingerprint: str) -> LanguageModel:
    """The model in memory, shared by the runs of this process; `fingerprint` notices files that have changed. Another
    one that is there is let go first: two do not fit on most devices."""
    from detoxbench.lm import LanguageModel

    key = where, how, fingerprint
    if key not in _held:
        if any(served != fingerprint for _, _, _, served in _served):
            _let_vllm_go()
        _empty()
        path, revision, seed = where
        _held[key] = LanguageModel.load(path, revision=revision, seed=seed, **msgspec.json.decode(how))
        _advise(_held[key])
    return _held[key]


def _advise(lm: LanguageModel) -> None:
    if lm.device.type != "cpu" and str(lm.dtype) == "torch.float32":
        log.info(
            "model.dtype=float32 on %s takes twice the memory of bfloat16, and more time: model.dtype=bfloat16 or auto "
            "for the checkpoint's own type, is another run, and the usual one there",
            lm.device,
        )


def generating_model(cell: RunCell) -> LanguageModel:
    """The cell's model as its engine has it, which generates texts and reads them."""
    if cell.spec.engine.name == EngineSpec.name:
        return language_model(cell)
    model = cell.spec.model
    settings = {key: getattr(model, key) for key in _HOW_WRITTEN}
    lm = _served_by_vllm(
        str(checkpoint_folder(cell.spec, download=False)),
        model.name or model.path,
        msgspec.json.encode(settings),
        cell.spec.engine,
        cell.identity["model"]["fingerprint"],
    )
    lm.low_rank = cell.low_rank
    return lm


def _served_by_vllm(folder: str, name: str, how: bytes, engine: EngineSpec, fingerprint: str) -> VllmModel:
    """A model in vLLM, shared by the runs of this process, one at a time. What was loaded for fitting is let go, so
    that vLLM finds room; where each record has a fit, it is loaded again beside it."""
    from detoxbench.vllm_engine.model import VllmModel

    key = folder, how, engine, fingerprint
    if key not in _served:
        _let_vllm_go()
        _empty()
        _served[key] = VllmModel(Path(folder), engine, name=name, **msgspec.json.decode(how))
    return _served[key]


_served: dict[tuple[str, bytes, EngineSpec, str], VllmModel] = {}
"""The model in vLLM: one at the most."""


def vllm_in_memory() -> bool:
    """Whether vLLM is loaded in this process."""
    return any(served.in_memory for served in _served.values())


def _let_vllm_go() -> None:
    for served in _served.values():
        served.close()
    _served.clear()


def _empty() -> None:
    """Let go of the model that transformers has loaded."""
    _held.clear()
    gc.collect()  # hooks and wrappers hold a model in circles
    empty_caches()


def fitted_intervention(cell: RunCell) -> Intervention:
    """What the stage that fits has saved."""
    from detoxbench.interventions.intervention import Intervention

    return Intervention.load(cell.fit_folder / "intervention")
