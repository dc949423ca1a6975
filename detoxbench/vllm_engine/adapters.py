"""Changes of weights as vLLM can load them: LoRA folders, and merged checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detoxbench.interventions import peft_io
from detoxbench.interventions.intervention import Intervention

if TYPE_CHECKING:
    from detoxbench.interventions.channels import Weight
    from detoxbench.model.model import Model


def write_lora(lm: Model, weights: Sequence[Weight], folder: Path) -> Path:
    """Low-rank changes as a LoRA, whose scaling is 1."""
    peft_io.save(weights, folder, lm, owner="an intervention")
    return folder


def write_merged(base: Path, weights: Sequence[Weight], dtype: str, folder: Path) -> Path:
    """The base model with changed weights, as a checkpoint. The base is read anew, and let go."""
    from detoxbench.lm import LanguageModel

    lm = LanguageModel.load(str(base), dtype=dtype, device="cpu")
    lm.low_rank = "merged"
    with lm.applied(Intervention(method="merged", base=lm.fingerprint, weights=tuple(weights))):
        lm.model.save_pretrained(folder)
    return folder
