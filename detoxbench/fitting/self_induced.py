"""Parallel pairs from the model itself: it writes texts, a guide picks the toxic ones, and each is rewritten politely.

The guide is a scorer, and never the run's judge (the configuration refuses that): a method that is fitted with the
judge would be measured by what it was fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from detoxbench import scorers
from detoxbench.config import GenSpec, knob, runtime
from detoxbench.data.examples import Pair
from detoxbench.engine.generation import generate
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting import guides
from detoxbench.lm import LanguageModel
from detoxbench.model import checkpoint
from detoxbench.model.model import find
from detoxbench.records import Request
from detoxbench.scorers.asking import Asking


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Knobs of where pairs come from; a method's Config inherits them."""

    pair_source: Literal["data", "self"] = knob(
        "data",
        "data: fit.parallel_pairs; self: the model's own toxic texts with a polite version each",
        source="eval/toxicity_results.ipynb: folders 'paradetox' and 'nopara'",
    )
    guide: str | None = knob(
        None, "self: the scorer that picks out toxic texts; not the run's own", source="paper: Perspective"
    )
    guide_threshold: float = knob(0.5, "self: toxic from this score on", source="paper: 0.5", ge=0, le=1)
    candidates: int = knob(500, "self: texts that the model writes", source="data_utils.py:42-63: folder 500", ge=1)
    candidate_prompt: str = knob(
        "",
        "self: what it continues; empty is the start token",
        source="ours: the released code lacks this step",
        text=True,
    )
    candidate_tokens: int = knob(20, "self: tokens of a text at the most", source="the protocol's length", ge=1)
    rewriter: str | None = runtime(
        None, "self: model (folder or hub id) that says it politely; null is the model itself. Its weights are hashed"
    )
    rewrite_prompt: str = knob(
        "Rewrite the text so that it is polite and means the same.\nText: {text}\nPolite text:",
        "self: what the rewriter is asked, {text} being the toxic text; its first line is the answer",
        source="ours: the paper's prompt for GPT-4 is not released",
        text=True,
    )

    def __post_init__(self) -> None:
        if self.pair_source == "self" and not self.guide:
            raise ValueError("pair_source=self needs a guide: a scorer, not the run's own, that picks out toxic texts")


def fingerprints(config: PairConfig) -> Mapping[str, str]:
    """The guide's and the rewriter's, where they are used. Raises DetoxbenchError where one cannot work."""
    if config.pair_source != "self":
        return {}
    rewriter = {"rewriter": checkpoint.fingerprint(find(config.rewriter))} if config.rewriter else {}
    return {**guides.fingerprints(config.guide), **rewriter}


def induce(lm: LanguageModel, config: PairConfig, seed: int) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs, and how many texts were left after each step.

    A toxic text is kept, once, if the guide finds its polite version civil. Texts that are too long for the rewriter's
    context are counted as "cut". Raises DetoxbenchError when none is left.
    """
    gen = GenSpec(do_sample=True, top_p=0.9, n=config.candidates, max_new_tokens=config.candidate_tokens)
    texts = [sample.text.strip() for sample in lm.generate([config.candidate_prompt], gen, seed=seed)]
    texts = list(dict.fromkeys(text for text in texts if text))
    toxic = [text for text, bad in zip(texts, _toxic(config, texts), strict=True) if bad]
    rewritten = _rewritten(lm, config, toxic, seed) if toxic else []
    cut = rewritten.count(None)
    polite = [text or "" for text in rewritten]
    verdicts = _toxic(config, polite)
    pairs = [
        Pair(text, other)
        for text, other, bad in zip(toxic, polite, verdicts, strict=True)
        if other and other != text and bad is False
    ]
    counts = {
        "candidates": config.candidates,
        "distinct": len(texts),
        "toxic": len(toxic),
        "cut": cut,
        "pairs": len(pairs),
    }
    if not pairs:
        raise DetoxbenchError(
            f"no self-induced pair: of {len(texts)} distinct texts of '{lm.name}', '{config.guide}' finds {len(toxic)} "
            f"toxic, and none of those has a civil version ({cut} are too long to be asked for one): raise "
            "method.candidates, set method.candidate_prompt, method.rewriter or method.rewrite_prompt"
        )
    return pairs, counts


def _toxic(config: PairConfig, texts: Sequence[str]) -> list[bool | None]:
    """The guide's verdicts, None where it has none."""
    guide = scorers.get(str(config.guide))(name=config.guide)
    asking = Asking(guide)
    columns = asking.score(texts, [""] * len(texts))
    asking.require_some(texts, columns)
    return [None if column is None else column[guide.primary] >= config.guide_threshold for column in columns]


def _rewritten(lm: LanguageModel, config: PairConfig, texts: Sequence[str], seed: int) -> list[str | None]:
    """The first line of each answer; None where the question was too long for the rewriter."""
    rewriter = lm
    if config.rewriter:
        dtype = str(lm.dtype).removeprefix("torch.")
        rewriter = LanguageModel.load(config.rewriter, dtype=dtype, device=str(lm.device))
    requests = [
        Request(
            id=str(i), prompt=config.rewrite_prompt.replace("{text}", text), record=str(i), kind="rewrite", chat=True
        )
        for i, text in enumerate(texts)
    ]
    gen = GenSpec(do_sample=True, top_p=0.9, max_new_tokens=2 * config.candidate_tokens)
    generated = {one.sample.id: one for batch in generate(rewriter, requests, gen, seed) for one in batch}
    return [
        None
        if generated[request.id].truncated_prompt
        else generated[request.id].sample.text.strip().partition("\n")[0].strip()
        for request in requests
    ]
