"""How similar a text and its prompt are: whether a paraphrase still says the same."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from detoxbench.config import digest, knob, runtime
from detoxbench.errors import DetoxbenchError
from detoxbench.files.hashing import sha256_of_files
from detoxbench.model import checkpoint, pretrained
from detoxbench.model.finite import require_finite_model
from detoxbench.scorers._common import locate
from detoxbench.scorers.base import Scorer
from detoxbench.text import first_line

WORDS = "words"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which embedding. A model enters the identity by its fingerprint."""

    path: str = runtime(WORDS, "'words', or folder or hub id of a sentence-transformers model")
    revision: str | None = runtime(None, "hub revision (branch, tag or commit)")
    device: str = runtime("auto", "auto (cuda, then mps, then cpu) or a torch device")
    before: str = knob("", "beginning of every prompt that is not compared (the words of a template)", text=True)
    after: str = knob("", "end of every prompt that is not compared", text=True)


class Similarity(Scorer[Config]):
    """`similarity`: cosine of the embeddings of prompt and text, 1 for a copy; None where one of them has no words.
    With a model also `truncated`: 1 where only the beginning of either was read.

    `words` counts words and needs nothing; a sentence-transformers model (an extra) recognises the same meaning in
    other words, as in contrastive perplexity (arXiv 2401.08491), whose checkpoint is not named. Numbers of the two do
    not compare.
    """

    Config = Config
    primary = "similarity"
    meaning = "similar"
    needs_prompt = True

    def fingerprint(self) -> str:
        if self.config.path == WORDS:
            return WORDS
        if find_spec("sentence_transformers") is None:
            raise DetoxbenchError(
                f"scorer '{self.name}' needs the package sentence-transformers: pip install \"detoxbench[similarity]\" "
                "(or choose similarity=words or none)"
            )
        folder = self._folder()
        # Beside the transformer: pooling, normalising and dense layers, each in a folder that modules.json names.
        modules = [f for part in _modules(folder) for f in sorted((folder / part).rglob("*")) if f.is_file()]
        hashes = dict(zip([f.relative_to(folder).as_posix() for f in modules], sha256_of_files(modules), strict=True))
        return f"{checkpoint.fingerprint(folder)} {digest(hashes)}"

    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
        prompts = [prompt.removeprefix(self.config.before).removesuffix(self.config.after) for prompt in prompts]
        if self.config.path == WORDS:
            cosines = [_cosine(_words(prompt), _words(text)) for text, prompt in zip(texts, prompts, strict=True)]
            return [None if value is None else {"similarity": value} for value in cosines]
        return self._embedded(texts, prompts)

    def _embedded(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
        distinct = [text for text in dict.fromkeys([*texts, *prompts]) if text.strip()]
        vectors = self._model.encode(
            distinct, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        vector_of = dict(zip(distinct, vectors.astype("float64"), strict=True))
        limit = self._model.max_seq_length
        ids = self._model.tokenizer(distinct, verbose=False)["input_ids"] if distinct else []
        cut = {text for text, tokens in zip(distinct, ids, strict=True) if limit is not None and len(tokens) > limit}
        return [
            {
                "similarity": float(vector_of[text] @ vector_of[prompt]),
                "truncated": float(not cut.isdisjoint((text, prompt))),
            }
            if text in vector_of and prompt in vector_of
            else None
            for text, prompt in zip(texts, prompts, strict=True)
        ]

    def _folder(self) -> Path:
        try:
            return locate(self.name, self.config.path, self.config.revision)
        except DetoxbenchError as error:  # a suite brings this scorer, so it is set there
            remedy = "suite.similarity=FOLDER (or words, or none)"
            raise DetoxbenchError(str(error).replace("scorer.path", remedy)) from error

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer

        from detoxbench.model.devices import placed

        folder = self._folder()
        thing = f"scorer '{self.name}': the embedding in '{folder}'"
        _modules(folder)
        pretrained.load("AutoModel", folder, "float32", thing)  # for its checks, which the package does not make
        try:
            model = SentenceTransformer(
                str(folder),
                device="cpu",  # left alone, the package takes any device that it finds
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except Exception as error:  # of every kind: missing module, broken file
            raise DetoxbenchError(f"{thing} cannot be loaded: {first_line(error)}") from error
        require_finite_model(model, thing)
        return placed(model, self.config.device, thing)


def _modules(folder: Path) -> list[str]:
    """The subfolders of a sentence-transformers model's modules. Raises DetoxbenchError where they cannot be read, lie
    elsewhere, or hold pickled weights."""
    try:
        paths = [module["path"] for module in json.loads((folder / "modules.json").read_bytes()) if module["path"]]
        outside = [path for path in paths if Path(path).is_absolute() or ".." in Path(path).parts]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DetoxbenchError(f"'{folder / 'modules.json'}' does not list modules: {error!r}") from None
    if outside:
        raise DetoxbenchError(
            f"'{folder / 'modules.json'}' names the module '{outside[0]}': modules lie in its own folder"
        )
    for pickled in (file for path in paths for file in (folder / path).rglob("*.bin")):
        if not any(pickled.parent.glob("*.safetensors")):
            raise DetoxbenchError(f"'{pickled}' is a pickle, which is not loaded: convert it to model.safetensors")
    return paths


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def _cosine(a: Counter[str], b: Counter[str]) -> float | None:
    lengths = math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    return min(1.0, sum(n * b[word] for word, n in a.items()) / lengths) if lengths else None
