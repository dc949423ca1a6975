"""Random PEFT adapters on tiny models, and what PEFT itself makes of a folder."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from detoxbench.lm import LanguageModel

TEXT = "hello there, you."


def adapter_folder(
    lm: LanguageModel,
    folder: Path,
    *,
    kind: str = "lora",
    seed: int = 0,
    spread: float = 0.1,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """A saved adapter with random values everywhere; the model is left as it was."""
    from peft import IA3Config, LoraConfig, get_peft_model

    targets = {"target_modules": None if kind == "ia3" else ["q_proj", "v_proj"]}
    settings = targets | ({} if kind == "ia3" else {"r": 4, "lora_alpha": 8}) | config
    made = (IA3Config if kind == "ia3" else LoraConfig)(task_type="CAUSAL_LM", **settings)
    before = set(vars(lm.model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D
        model = get_peft_model(lm.model, made)
    model.peft_config["default"].base_model_name_or_path = lm.name
    g = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name or "ia3_l" in name:
            noise = torch.randn(parameter.shape, generator=g) * spread
            parameter.data = (noise + 1 if kind == "ia3" else noise).to(dtype)
    shutil.rmtree(folder, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # and on models that were made in memory
        model.save_pretrained(str(folder))
    model.unload()
    for name in set(vars(lm.model)) - before:
        delattr(lm.model, name)
    return folder


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        return lm.model(torch.tensor([lm.encode(TEXT)])).logits


def peft_logits(lm: LanguageModel, folder: Path) -> torch.Tensor:
    """Of the model with the adapter in `folder` as PEFT loads it."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(lm.model, str(folder)).eval()
    with torch.inference_mode():
        return model(torch.tensor([lm.encode(TEXT)])).logits
