"""Texts that others have generated and published, as a row: judged like any other, and not generated again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from detoxbench.config import digest, knob, runtime
from detoxbench.data import readers
from detoxbench.data.examples import FitData
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from detoxbench.records import Request

log = logging.getLogger("detoxbench")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where the texts lie, and what they hold. The texts enter the identity, and not their place."""

    path: str | None = runtime(
        None, "file of prompts with their texts (.jsonl, .json, .csv, .tsv, .parquet), such as a run's samples.jsonl",
        required=True,
    )  # fmt: skip
    holds: Literal["answer", "whole"] = knob(
        "answer", "answer: what follows the prompt; whole: the prompt too, which is taken off", source="ours"
    )
    missing: float = knob(0.05, "share of the prompts that may have too few texts", source="ours", ge=0, lt=1)


class Generations(Method[Config]):
    """Takes stored texts, found by their prompts: nothing is generated, fitted or applied, and no cost is measured.

    A prompt that has fewer texts than the suite asks for is missing: it is counted, shown, and in no metric. Where more
    than the share `missing` of the prompts is, the run is refused.

    >>> import json, pathlib, tempfile
    >>> import detoxbench as db
    >>> file = pathlib.Path(tempfile.mkdtemp(), "texts.jsonl")
    >>> _ = file.write_text(json.dumps({"prompt": "emma yelled :", "generations": [" stay here .", " go away ."]}))
    >>> row = db.methods.create("generations", path=str(file))
    >>> row.texts([db.Request(id="1", prompt="emma yelled :", record="1", kind="prompt")], 1)
    {'1': [' stay here .']}
    """

    Config = Config
    delivers_texts = True
    fidelity = "cannot be checked here (texts as they were published; how they were generated is not known here)"

    def fingerprints(self) -> Mapping[str, str]:
        return {"path": digest(self._stored)}

    def texts(self, requests: Sequence[Request], n: int) -> Mapping[str, Sequence[str]]:
        stored, found = self._stored, {}
        for request in requests:
            of_prompt = stored.get(request.prompt.strip(), [])
            if len(of_prompt) >= n:
                found[request.id] = [self._answer(text, request) for text in of_prompt[:n]]
        self._require_answers(requests, found)
        lacking = [request.prompt for request in requests if request.id not in found]
        if len(lacking) > self.config.missing * len(requests):
            raise DetoxbenchError(
                f"'{self.config.path}' has {n} texts for {len(found)} of the {len(requests)} prompts (none for "
                f"{lacking[0][:40]!r}), and {self.config.missing:.0%} may be missing: give the file that answers these "
                "prompts, or raise method.missing"
            )
        if lacking:
            log.warning("no %d texts for %d of %d prompts: they are left out", n, len(lacking), len(requests))
        return found

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return Intervention(method=self.name, base=lm.fingerprint)

    @cached_property
    def _stored(self) -> dict[str, list[str]]:
        """Prompt, without the blanks around it -> its texts."""
        stored: dict[str, list[str]] = {}
        for prompt, texts in readers.stored_texts(self.given("path")).items():
            stored.setdefault(prompt.strip(), []).extend(texts)
        return stored

    def _answer(self, text: str, request: Request) -> str:
        """What follows the prompt. Raises UsageError for a text that should begin with its prompt and does not."""
        if self.config.holds == "answer":
            return text
        before, found, after = text.partition(request.prompt.strip())
        if before.strip() or not found:
            raise UsageError(f"method.holds=whole: a text does not begin with its prompt {request.prompt[:40]!r}")
        return after

    def _require_answers(self, requests: Sequence[Request], found: Mapping[str, Sequence[str]]) -> None:
        """Raises UsageError where most texts begin with their prompts, which would then be judged with them."""
        prompts = {request.id: request.prompt.strip() for request in requests}
        begun = [text.lstrip().startswith(prompts[id]) for id, texts in found.items() for text in texts if prompts[id]]
        if self.config.holds == "answer" and 2 * sum(begun) > len(begun):
            raise UsageError(
                f"of the texts in '{self.config.path}', {sum(begun)} of {len(begun)} begin with their prompts, which "
                "would be judged with them: set method.holds=whole"
            )
