"""Loading with transformers: one function for every model, so that none is used that differs from its files."""

from __future__ import annotations

import atexit
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from detoxbench.config import Quantization
from detoxbench.errors import DetoxbenchError
from detoxbench.model import checkpoint
from detoxbench.model.devices import no_room, offloaded, out_of_memory, pick_device
from detoxbench.model.finite import require_finite_model
from detoxbench.model.quantization import loading_arguments, require_bitsandbytes
from detoxbench.text import first_line

CAUSAL = "AutoModelForCausalLM"
_CONSTANTS = r"(^|\.)(position_ids|inv_freq|masked_bias|attn\.bias|attention\.bias)$"
"""Buffers that older versions of transformers saved; every version computes them."""
_OTHER_HEADS = {
    "AutoModelForSequenceClassification": r"(^|\.)pooler\.",
    "AutoModel": r"(^|\.)(pooler|cls|lm_head|classifier|score|vocab_\w+)\.",
}
"""Parts of a checkpoint that these classes do not compute with: they may be in it or not."""
_SHOWN = 3
_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class Spread(NamedTuple):
    """A model over several devices, by accelerate: as much as fits on the first GPU, and so on."""

    max_memory: Mapping[int | str, str] | None = None
    """What each may hold, by the number of a GPU, cpu, or disk, as "20GiB"; None: what is free."""


def load(
    auto: str,
    folder: Path,
    dtype: str,
    thing: str,
    device: str = "cpu",
    spread: Spread | None = None,
    quantization: Quantization = "none",
) -> tuple[Any, Any]:
    """The model, read by the class `auto` of transformers with weights of `dtype`, and the tokenizer in `folder`.

    Weights go straight to the `device` (as `pick_device` has it), one tensor after the other, and are never all in the
    memory of the CPU; with `spread` to several. They are safetensors, and code of the checkpoint is never run. Raises
    DetoxbenchError, which begins with `thing` ("the model in 'FOLDER'"), for what cannot be loaded, for a model some of
    whose parameters are not in the checkpoint or the other way round, for tokens beyond the embedding, and for a device
    with too little memory; NonFiniteError for weights that are NaN or infinite.
    """
    import torch
    from transformers.utils import logging

    # transformers would show its own bar, and warn of what is refused below or never read.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    checkpoint.check_model(folder)
    require_bitsandbytes("quantization", quantization)
    device = "the devices" if spread else pick_device(device)
    plain = device == "cpu" and quantization == "none"
    where = _over_devices(spread) if spread else {"device_map": None if plain else {"": device}}
    with _told_of(thing):
        tokenizer = _tokenizer(auto, folder, thing)
        try:
            model, report = _read(auto, folder, dtype, quantization, where)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise no_room(thing, device, checkpoint.numbers(folder) * getattr(torch, dtype).itemsize) from None
    _check_complete(report, _OTHER_HEADS.get(auto), thing)
    if offloaded(model) is not None:
        model.requires_grad_(False)  # what comes and goes under inference mode could not have it set again
    require_finite_model(model, f"{thing}, read as {dtype}")
    return model, tokenizer


def _read(
    auto: str, folder: Path, dtype: str, quantization: Quantization, where: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """The model, and transformers' report of what was and was not in the checkpoint."""
    import torch
    import transformers

    return getattr(transformers, auto).from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        output_loading_info=True,
        **where,
        **loading_arguments(quantization, getattr(torch, dtype)),
        **_OFFLINE,
    )


@contextmanager
def _told_of(thing: str) -> Iterator[None]:
    """What goes wrong meanwhile, of whatever kind (a missing file, an unknown architecture, a broken tensor file), is a
    DetoxbenchError that begins with `thing`."""
    try:
        yield
    except DetoxbenchError:
        raise
    except Exception as error:
        raise DetoxbenchError(f"{thing} cannot be loaded: {first_line(error)}") from error


def _over_devices(spread: Spread) -> dict[str, Any]:
    """Arguments of `from_pretrained`. What is offloaded to the disk is read from the checkpoint's own files; the folder
    is for weights that are stored in another form than they are used in, and lasts as long as the process."""
    limits = {int(place) if str(place).isdecimal() else place: m for place, m in (spread.max_memory or {}).items()}
    folder = tempfile.mkdtemp(prefix="detoxbench-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"device_map": "auto", "max_memory": limits or None, "offload_folder": folder}


def described(folder: Path, thing: str) -> tuple[Any, Any]:
    """The configuration and the tokenizer of the model in `folder`; no weights. Raises as `load`."""
    import transformers

    with _told_of(thing):
        return transformers.AutoConfig.from_pretrained(folder, **_OFFLINE), _tokenizer(CAUSAL, folder, thing)


def _tokenizer(auto: str, folder: Path, thing: str) -> Any:
    """The tokenizer in `folder`. Raises DetoxbenchError for a token that the model's embedding has no row for."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **_OFFLINE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_OFFLINE)
    parts = [config.get_text_config(), config]
    if (folder / "generation_config.json").is_file():
        parts.append(transformers.GenerationConfig.from_pretrained(folder, local_files_only=True))
    token_names = ("pad_token_id", "bos_token_id", "eos_token_id") if auto == CAUSAL else ("pad_token_id",)
    _check_tokens(parts, token_names, tokenizer, f"{thing} cannot be used")
    return tokenizer


def _check_complete(report: Any, other_heads: str | None, thing: str) -> None:
    """Raises DetoxbenchError where model and checkpoint do not hold the same."""

    def left(names: Iterable[str]) -> list[str]:
        return sorted(n for n in names if not other_heads or not re.search(other_heads, n))

    missing = left(report["missing_keys"])
    if missing:
        raise DetoxbenchError(
            f"{thing} is not complete: it has no weights for {_listed(missing)}, which would be random; name the "
            "checkpoint that was trained for this"
        )
    unused = [name for name in left(report["unexpected_keys"]) if not re.search(_CONSTANTS, name)]
    if unused:
        raise DetoxbenchError(
            f"{thing} holds weights that its config.json has no place for: {_listed(unused)}; correct config.json, or "
            "take them out"
        )
    unfit = sorted(str(key) for key in report["mismatched_keys"]) + list(report["error_msgs"])
    if unfit:
        raise DetoxbenchError(f"{thing} does not fit its config.json: {_listed(unfit)}")


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _check_tokens(parts: Sequence[Any], token_names: Sequence[str], tokenizer: Any, refusal: str) -> None:
    """Raises DetoxbenchError for a token that the embedding has no row for: of the tokenizer, and those
    that the configurations in `parts` have under `token_names`; the first part says how many rows there are."""
    rows = getattr(parts[0], "vocab_size", None)
    if rows is None:
        return
    last, token = max((i, token) for token, i in tokenizer.get_vocab().items())
    if last >= rows:
        raise DetoxbenchError(
            f"{refusal}: its tokenizer goes up to token {last} ('{token}'), its embedding has {rows} rows; take the "
            "tokenizer that belongs to it, or enlarge the embedding (resize_token_embeddings)"
        )
    for part, name in itertools.product(parts, token_names):
        value = getattr(part, name, None)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not (isinstance(one, int) and -1 <= one < rows):  # -1 is an older sign for none
                file = "generation_config.json" if type(part).__name__ == "GenerationConfig" else "config.json"
                raise DetoxbenchError(
                    f"{refusal}: the {name} in its {file} is {one}, its embedding has {rows} rows; correct it there"
                )
