"""Where a run was made: versions, hardware, command, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detoxbench.model import precision
from detoxbench.model.devices import of_inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PACKAGES = (
    "detoxbench", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "numpy", "scikit-learn",
    "lm_eval",
)  # fmt: skip


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, hardware, command and, in a git checkout, the commit and whether the tree was dirty."""
    import torch

    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda,
        "driver": _driver() if device.type == "cuda" else None,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git(),
    }


def arithmetic(model: PreTrainedModel) -> dict[str, Any]:
    """What the last bits of a model's outputs depend on besides hardware and versions: the engine, the kernels of its
    attention, the type that its products are really made in, and torch's setting of it."""
    import torch

    return {
        "engine": "transformers",
        "attention": getattr(model.config, "_attn_implementation", None),
        "products": precision.NAMES[precision.products(of_inputs(model))],
        "float32_matmul_precision": {
            name: getattr(backend.matmul, "fp32_precision", None)
            for name, backend in (("cuda", torch.backends.cuda), ("mkldnn", torch.backends.mkldnn))
        },
    }


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        versions = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return versions[0] if versions else None


def _git() -> dict[str, Any] | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def ask(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": ask("rev-parse", "HEAD").strip(), "dirty": bool(ask("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return None
