"""Where a model's files lie, and a fingerprint of them: no weight is loaded."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import urlparse

from detoxbench.config import Dtype, digest
from detoxbench.errors import DetoxbenchError
from detoxbench.files.hashing import sha256_of_files
from detoxbench.text import first_line

HEADER_BYTES = 100_000_000
"""Of a safetensors file, at the most; as the format has it."""
_NEEDED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.spm", "*.bpe", "*.vocab"]


class _Kind(NamedTuple):
    """What a folder has to hold."""

    noun: str
    config: str
    weights: str
    needed: list[str]
    key: str


_MODEL = _Kind("model", "config.json", "*.safetensors", _NEEDED, "model.path")
_ADAPTER = _Kind(
    "adapter",
    "adapter_config.json",
    "adapter_model.safetensors",
    ["adapter_config.json", "adapter_model.safetensors"],
    "the adapter's folder",
)


def locate(path: str, revision: str | None = None, *, download: bool = True) -> Path:
    """The local folder of a model: `path` itself, or the hub's snapshot of that id, downloaded if `download`.

    Raises DetoxbenchError, at once, for a folder without weights, a name that is neither a folder nor a hub id, and a
    hub id that is not in the local cache while the hub cannot be reached.
    """
    return _locate(path, revision, _MODEL, download)


def locate_adapter(path: str) -> Path:
    """The local folder of a PEFT adapter, found as `locate` finds a model; raises alike."""
    return _locate(path, None, _ADAPTER, True)


def _locate(path: str, revision: str | None, kind: _Kind, download: bool) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        _check(folder, kind)
        return folder
    cached = cached_snapshot(path, revision, kind)
    if cached is not None:
        return cached
    if not _may_be_hub_id(path):
        raise DetoxbenchError(
            f"no {kind.noun} folder '{path}', and it is no hub id (OWNER/NAME) either: correct {kind.key}"
        )
    if not download:
        raise DetoxbenchError(f"{kind.noun} '{path}' is not in the local cache: a run would download it")
    unreachable = hub_unreachable()
    if unreachable:
        raise DetoxbenchError(
            f"{kind.noun} '{path}' is neither a folder nor in the local Hugging Face cache, and {unreachable}: "
            f"download it where there is network (hf download {path}), or name a folder by {kind.key}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        snapshot = Path(snapshot_download(path, revision=revision, allow_patterns=kind.needed))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DetoxbenchError(
            f"{kind.noun} '{path}' could not be downloaded from the hub: {str(error).strip().splitlines()[0]}"
        ) from error
    _check(snapshot, kind)
    return snapshot


def cached_snapshot(path: str, revision: str | None = None, kind: _Kind = _MODEL) -> Path | None:
    """The folder of hub model (or adapter) `path` in the local cache, or None."""
    if not _may_be_hub_id(path):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(path, revision=revision, local_files_only=True))
        _check(snapshot, kind)
    except (LocalEntryNotFoundError, ValueError, _Incomplete):
        return None
    return snapshot


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits that stand for all bytes of all files that loading the model in `folder` reads: weights,
    configurations, tokenizer, chat templates. Raises DetoxbenchError for a file that cannot be read.
    """
    return _digest_of(folder, files_read(folder))


def adapter_fingerprint(folder: Path) -> str:
    """`fingerprint` of a PEFT adapter, of which two files are read."""
    return _digest_of(folder, [folder / name for name in _ADAPTER.needed])


def _digest_of(folder: Path, files: Sequence[Path]) -> str:
    names = [file.relative_to(folder).as_posix() for file in files]
    return digest(dict(zip(names, sha256_of_files(files), strict=True)))


def files_read(folder: Path) -> list[Path]:
    """The files of a model's folder that loading model or tokenizer may read, sorted.

    Tokenizers read files of many names, so every file counts that is not known to be left unread. Of the weights, those
    count that transformers chooses; of the subfolders, only the one with further chat templates.
    """
    files = [file for file in folder.iterdir() if file.is_file() and not _never_read(file.name.casefold())]
    weights = _weights(folder)
    files = [file for file in files if file.suffix != ".safetensors" or file.name in weights]
    return sorted([*files, *(folder / "additional_chat_templates").glob("*.jinja")])


def _weights(folder: Path) -> set[str]:
    """Names of the safetensors that transformers loads: the one that config.json names, or model.safetensors, or else
    the shards of its index; and those of an adapter that lies there too, which it applies."""
    first = str(_json_in(folder / "config.json").get("transformers_weights") or "model.safetensors")
    index = first if first.endswith(".json") else f"{first}.index.json"
    if first != index and (folder / first).is_file():
        names = {first}
    else:
        shards = _json_in(folder / index).get("weight_map")
        names = {str(shard) for shard in shards.values()} if isinstance(shards, dict) else set()
    if not any((folder / name).is_file() for name in names):  # nothing that can be loaded: every file that is there
        names = {file.name for file in folder.glob("*.safetensors")}
    return names | ({"adapter_model.safetensors"} if (folder / "adapter_config.json").is_file() else set())


def _json_in(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none (a broken file is refused when it is loaded)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


_NOT_READ = (
    # hidden files, texts for people, pictures
    ".*", "readme*", "licen[cs]e*", "notice*", "use_policy*", "*.md", "*.pdf", "*.png", "*.jp*g", "*.gif", "*.svg",
    "*.webp", "*.ipynb", "*.log", "*.lock",
    # code, and weights in other forms: no code of a checkpoint runs, and only safetensors are loaded
    "*.py", "*.pyc", "*.sh", "*.bin", "*.bin.index.json", "*.h5", "*.h5.index.json", "*.msgpack",
    "*.msgpack.index.json", "*.onnx", "*.onnx_data", "*.gguf", "*.pt", "*.pth", "*.ckpt", "*.ot", "*.tflite", "*.npz",
    "*.npy", "*.pkl", "*.pickle",
    # what training left, and how the embedded model was built
    "trainer_state.json", "training_args.json", "*_results.json", "fable.json",
)  # fmt: skip
"""Names, in lower case, that neither transformers' models nor its tokenizers read from a folder."""


def _never_read(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _NOT_READ)


class _Incomplete(DetoxbenchError):
    """Files are missing that a download brings."""


def _check(folder: Path, kind: _Kind) -> None:
    if not (folder / kind.config).is_file():
        raise _Incomplete(f"'{folder}' is no {kind.noun} folder: it has no {kind.config}")
    if kind is _MODEL:
        check_model(folder)
    elif not any(folder.glob(kind.weights)):
        raise _without_weights(folder, kind)


def check_model(folder: Path) -> None:
    """Raises DetoxbenchError for a model folder that would be loaded as something else than it says, naming the file:
    pickled or missing weights, shards elsewhere, an adapter that transformers would put on, packed weights."""
    files = _weight_files(folder)
    for file in files:
        _check_types(file)
    if (folder / "adapter_config.json").exists():
        raise DetoxbenchError(
            f"the model folder '{folder}' has an adapter_config.json beside its config.json, and transformers would "
            "put that adapter on: take the adapter's files out if it is merged already, else merge it first"
        )
    config = _json(folder / "config.json")
    if config.get("transformers_weights"):
        raise DetoxbenchError(
            f"'{folder / 'config.json'}' names weights of its own (transformers_weights): take that entry out"
        )
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    packed = next((q for part in parts if (q := part.get("quantization_config"))), None)
    if packed:
        how = packed.get("quant_method") if isinstance(packed, dict) else None
        raise DetoxbenchError(
            f"the model in '{folder}' is quantised ({how or 'quantization_config'}): packed weights cannot be changed "
            "exactly; name the checkpoint it was made from, or save one from model.dequantize()"
        )


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights from: one, or the shards that the index names."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise _without_weights(folder, _MODEL)
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise DetoxbenchError(f"'{index}' has no weight_map: download it again")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if not re.fullmatch(r"[^/\\]+\.safetensors", name):
            raise DetoxbenchError(
                f"'{index}' names the shard '{name}': shards are safetensors files in its own folder "
                "(pickle is not loaded); convert or move it there"
            )
        if not (folder / name).is_file():
            raise _Incomplete(f"the model folder '{folder}' lacks the shard '{name}' that its index names: download it")
        target, inside = (folder / name).resolve(), folder.resolve()
        # The hub's cache keeps what a snapshot shows in a folder beside it.
        if target.parent != inside and target.parent != inside.parents[1] / "blobs":
            raise DetoxbenchError(
                f"the shard '{folder / name}' is a link out of its folder, to '{target}': name the folder it lies in"
            )
    return [folder / name for name in names]


def _check_types(file: Path) -> None:
    """Raises DetoxbenchError for weights of whole numbers, which would be taken for the weights themselves."""
    for name, tensor in header(file).items():
        if name.endswith("weight") and re.match(r"[IU]\d|BOOL", str(tensor.get("dtype"))):
            raise DetoxbenchError(
                f"'{file}' holds '{name}' as {tensor['dtype']}: packed weights cannot be changed exactly; name the "
                "checkpoint they were made from"
            )


def resolved_dtype(dtype: str, folder: Path) -> str:
    """The type that `dtype` stands for: auto is the one that config.json names or, where it names none, the one of most
    numbers in the files. Raises DetoxbenchError for a checkpoint of another type than models are loaded in."""
    if dtype != "auto":
        return dtype
    config = _json(folder / "config.json")
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    named = (part.get("dtype") or part.get("torch_dtype") for part in parts)
    own = next((str(name).removeprefix("torch.") for name in named if name), None) or _most_common_type(folder)
    if own not in get_args(Dtype):
        choices = " or ".join(get_args(Dtype))
        raise DetoxbenchError(
            f"the model in '{folder}' is of type {own}, which auto does not load: choose dtype={choices}"
        )
    return own


_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def _most_common_type(folder: Path) -> str:
    counts = Counter[str]()
    for file in _weight_files(folder):
        for tensor in header(file).values():
            counts[tensor["dtype"]] += math.prod(tensor["shape"])
    most = counts.most_common(1)[0][0]
    return _TYPES.get(most, most)


def numbers(folder: Path) -> int:
    """How many numbers the weights of the model in `folder` are."""
    headers = [header(file) for file in _weight_files(folder)]
    return sum(math.prod(tensor["shape"]) for tensors in headers for tensor in tensors.values())


def header(file: Path) -> dict[str, Any]:
    """Names, types, shapes and places of the tensors in a safetensors file. Raises DetoxbenchError where it is none."""
    try:
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            tensors: dict[str, Any] = json.loads(opened.read(length) if length < HEADER_BYTES else b"")
            tensors.pop("__metadata__", None)
            last = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise DetoxbenchError(f"'{file}' cannot be loaded, it is no safetensors file: {error}") from None
    if file.stat().st_size != 8 + length + last:
        raise DetoxbenchError(
            f"'{file}' cannot be loaded: it has {file.stat().st_size} bytes, its header says {8 + length + last}; "
            "download it again"
        )
    return tensors


def _without_weights(folder: Path, kind: _Kind) -> _Incomplete:
    pickled = any(folder.glob("*.bin"))
    remedy = "convert its .bin (pickle is not loaded)" if pickled else "download them, or name another folder"
    return _Incomplete(f"the {kind.noun} folder '{folder}' has no weights ({kind.weights}): {remedy}")


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DetoxbenchError(f"'{file}' cannot be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise DetoxbenchError(f"'{file}' cannot be read: it is no JSON object")
    return content


def _may_be_hub_id(path: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None


def hub_unreachable() -> str:
    """Why the hub cannot be reached, or an empty string; one quick attempt, so that a missing network costs no time."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return ""
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "huggingface.co"
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return f"the hub ({host}) cannot be reached"
    return ""
