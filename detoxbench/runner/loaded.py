"""What a run has in memory: the model, shared by the runs of a process, and the fitted intervention."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import msgspec

from detoxbench.runner.cell import RunCell

if TYPE_CHECKING:
    from detoxbench.interventions.intervention import Intervention
    from detoxbench.lm import LanguageModel

_HOW = ("dtype", "device", "chat_template", "template_args", "template_date", "thinking")
"""How a model is loaded: keywords of `LanguageModel.load`."""


def language_model(cell: RunCell) -> LanguageModel:
    """The cell's model in memory."""
    model = cell.spec.model
    lm = _loaded(
        (model.path, model.revision, model.seed),
        msgspec.json.encode({key: getattr(model, key) for key in _HOW}),
        cell.identity["model"]["fingerprint"],
    )
    lm.low_rank = cell.low_rank  # set here, so that both forms share what is loaded
    return lm


@functools.lru_cache(maxsize=1)
def _loaded(where: tuple[str, str | None, int], how: bytes, fingerprint: str) -> LanguageModel:
    """The model in memory, shared by the runs of this process; `fingerprint` notices files that have changed."""
    from detoxbench.lm import LanguageModel

    path, revision, seed = where
    return LanguageModel.load(path, revision=revision, seed=seed, **msgspec.json.decode(how))


def fitted_intervention(cell: RunCell) -> Intervention:
    """What the stage that fits has saved."""
    from detoxbench.interventions.intervention import Intervention

    return Intervention.load(cell.fit_folder / "intervention")
