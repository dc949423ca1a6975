"""What methods that take something from elsewhere are given: files made for a tiny model of a family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import detoxbench as db
from benchmarks.gpu import CHEAP
from detoxbench.authoring.conformance import EXAMPLES, PROMPTS
from detoxbench.config import required_fields
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.interventions.intervention import Intervention
from tests.support.adapters import adapter_folder
from tests.support.tiny import tiny, write


def fitted(name: str, family: str = "llama", **settings: Any) -> Intervention:
    """A method's cheap fit on the embedded data."""
    method = db.methods.create(name, **{**CHEAP.get(name, {}), **settings})
    return method.fit(tiny(family), fit_data(fit_spec()(limit=EXAMPLES), method.needs)[0])


def saved(folder: Path, name: str, family: str = "llama", **settings: Any) -> str:
    """The folder of a method's saved intervention."""
    fitted(name, family, **settings).save(folder)
    return str(folder)


def edited_checkpoint(folder: Path, family: str = "llama", seed: int = 3, spread: float = 0.05) -> str:
    """A tiny model with noise on every weight, tied ones too, saved with its tokenizer."""
    lm, generator = tiny(family), torch.Generator().manual_seed(seed)
    for parameter in lm.model.parameters():
        parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return str(write(lm, folder))


def stored_texts(file: Path, texts: int = 2) -> str:
    """A file of texts for the prompts of the conformance suite."""
    rows = [
        {"prompt": prompt, "generations": [f" answer {i} to {prompt} ." for i in range(texts)]} for prompt in PROMPTS
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(file)


def settings(name: str, family: str, folder: Path) -> dict[str, Any]:
    """Cheap settings of any method, with the files that it must be given, made in `folder`."""
    place = folder / f"{name}-{family}"
    targets = {"gpt2": ["c_attn"]}.get(family, ["q_proj", "v_proj"])
    made = {
        "adapter": lambda: {
            "path": str(adapter_folder(tiny(family), place, target_modules=targets, seed=1, spread=0.4))
        },
        "checkpoint": lambda: {"path": edited_checkpoint(place, family)},
        "intervention": lambda: {"path": saved(place, "destein", family)},
        "random_direction": lambda: {"path": saved(place, "destein", family)},
        "random_delta": lambda: {"path": saved(place, "dinm", family)},
        "generations": lambda: {"path": stored_texts(folder / "texts.jsonl")},
        "compose": lambda: {"parts": ["destein", "self_reminder"], "part": {"destein": CHEAP["destein"]}},
    }
    cheap = CHEAP.get(name, {})
    return cheap if not required_fields(db.methods.get(name).Config) else {**cheap, **made[name]()}
