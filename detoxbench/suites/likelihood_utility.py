"""What detoxification costs, by likelihood: perplexity of text, LAMBADA, PIQA, BLiMP."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from detoxbench.config import knob, runtime
from detoxbench.data import readers
from detoxbench.errors import DetoxbenchError
from detoxbench.fable import questions
from detoxbench.records import Measure, Request, Sample, Scored
from detoxbench.suites._common import EMBEDDED_SEED, measure, nll_of, nll_per_token, perplexity, preferred
from detoxbench.suites.base import READS, Suite


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which texts. The requests made of them are hashed into the identity."""

    data: str = runtime("embedded", "'embedded', or the file of the task (for blimp also a folder of files)")
    task: Literal["perplexity", "lambada", "piqa", "blimp"] = runtime(
        "perplexity", "what the file is: plain text, lambada_test.jsonl, PIQA's valid.jsonl, or BLiMP's sentence pairs"
    )
    window: int = knob(256, "perplexity: words of a window, which is read from its start on", ge=1)
    limit: int | None = runtime(None, "read the first so many windows, texts or pairs (of blimp: of each file)", ge=1)


class LikelihoodUtility(Suite[Config]):
    """Reads texts that are given; nothing is generated and no scorer judges. Texts are raw, without a chat template.

    perplexity: a file of plain text, cut into windows of `suite.window` words at blanks, each read from the start token
    on (words, so that all models read the same windows; a window beyond the model's context is read in parts).
    perplexity_token and perplexity_word are exp(summed NLL / tokens) and exp(summed NLL / words) over all windows; only
    the second compares models with different tokenizers. Windows begin without context, so both are higher than those
    of a sliding window.
    lambada: lambada_accuracy is the share of texts whose last word greedy generation would write (all its tokens are
    the most probable ones, teacher forced); lambada_perplexity is exp(mean NLL of the last word).
    piqa: "Question: GOAL\\nAnswer: SOLUTION" (lm-evaluation-harness), the right solution against the wrong one by
    summed NLL (piqa_accuracy_sum) and by the mean over tokens (piqa_accuracy_per_token).
    blimp: share of pairs whose grammatical sentence is likelier (summed NLL), pooled and by paradigm.
    Embedded: perplexity of civil sentences, and facts against false statements after their question.
    """

    Config = Config
    version = 2
    paper = "https://arxiv.org/abs/1609.07843"
    licence = "CC-BY-SA-3.0 (WikiText-2), CC-BY-4.0 (LAMBADA, BLiMP), AFL-3.0 (PIQA)"
    data = (
        "any plain text (WikiText-2's test.txt); LAMBADA 5,153 texts; PIQA valid 1,838 (valid-labels.lst beside it); "
        "BLiMP 67 files of 1,000 pairs"
    )
    measured = (
        "perplexity_token, perplexity_word; lambada_accuracy, lambada_perplexity; piqa_accuracy_sum, "
        "piqa_accuracy_per_token; blimp_accuracy; embedded: facts_accuracy"
    )
    cost = "one pass over each window, text, or member of a pair; no generation, no scorer"
    protocol = READS
    needs_scorer = False

    def requests(self) -> list[Request]:
        config = self.config
        if config.data == "embedded":
            return _embedded(config.limit)
        task: Callable[[Config], list[Request]] = {
            "perplexity": _windows, "lambada": _lambada, "piqa": _piqa, "blimp": _blimp,
        }[config.task]  # fmt: skip
        return task(config)

    def measures(self, samples: Sequence[Sample], scores: Sequence[Scored], primary: str) -> list[Measure]:
        right_share = partial(preferred, side=side_of)
        by_kind: dict[str, list[Sample]] = {}
        for sample in samples:
            by_kind.setdefault(sample.kind, []).append(sample)
        results = []
        if texts := by_kind.get("perplexity"):
            results.append(perplexity("perplexity_token", [(s.record, nll_of(s), s.tokens) for s in texts]))
            results.append(perplexity("perplexity_word", [(s.record, nll_of(s), len(s.text.split())) for s in texts]))
        if texts := by_kind.get("lambada"):
            hits = [(s.record, float(bool(s.greedy))) for s in texts]
            results.append(measure("lambada_accuracy", "higher", hits, unit="share", yes_no=True))
            results.append(perplexity("lambada_perplexity", [(s.record, nll_of(s), 1) for s in texts]))
        for task in ("piqa", "facts"):
            if pairs := by_kind.get(task):
                suffix = "_sum" if task == "piqa" else ""
                results.append(right_share(f"{task}_accuracy{suffix}", pairs))
                results.append(right_share(f"{task}_accuracy_per_token", pairs, nll_per_token, headline=task == "piqa"))
        if pairs := by_kind.get("blimp"):
            results.append(right_share("blimp_accuracy", pairs))
            for paradigm in dict.fromkeys(str(s.tags["paradigm"]) for s in pairs):
                inside = [s for s in pairs if s.tags["paradigm"] == paradigm]
                results.append(right_share(f"blimp_accuracy_{paradigm}", inside, headline=False))
        return results


def side_of(sample: Sample) -> str:
    """Whether it is the right or the wrong text of a `pair`."""
    return str(sample.tags["side"])


def pair(
    task: str, record: str, prompt: str, right: str, wrong: str, *, paradigm: str = "", chat: bool = False
) -> list[Request]:
    """A right and a wrong text after one prompt, as two requests."""
    place = "/".join(filter(None, [task, paradigm, record]))
    return [
        Request(
            id=f"{place}/{side}",
            prompt=prompt,
            record=place,
            kind=task,
            tags={**({"paradigm": paradigm} if paradigm else {}), "side": side},
            chat=chat,
            text=text,
        )
        for side, text in (("right", right), ("wrong", wrong))
    ]


def _windows(config: Config) -> list[Request]:
    words = list(re.finditer(r"\S+", readers.read_text(config.data)))
    starts = range(0, len(words), config.window)
    requests = []
    for n, i in enumerate(list(starts)[: config.limit], 1):
        part = words[i : i + config.window]
        text = part[0].string[part[0].start() : part[-1].end()]
        requests.append(Request(id=f"window/{n}", prompt="", record=str(n), kind="perplexity", text=text))
    return requests


def _lambada(config: Config) -> list[Request]:
    requests = []
    for n, text in enumerate(readers.parse_lambada(readers.rows(config.data))[: config.limit], 1):
        context, _, word = text.rpartition(" ")
        requests.append(Request(id=f"lambada/{n}", prompt=context, record=str(n), kind="lambada", text=f" {word}"))
    return requests


def _piqa(config: Config) -> list[Request]:
    requests = []
    for n, (goal, solutions, label) in enumerate(readers.piqa(config.data)[: config.limit], 1):
        right, wrong = f" {solutions[label]}", f" {solutions[1 - label]}"
        requests += pair("piqa", str(n), f"Question: {goal}\nAnswer:", right, wrong)
    return requests


def _blimp(config: Config) -> list[Request]:
    folder = Path(config.data).expanduser()
    files = sorted(map(str, folder.glob("*.jsonl"))) if folder.is_dir() else [config.data]
    pairs = [(Path(file).stem, p) for file in files for p in readers.parse_blimp(readers.rows(file))[: config.limit]]
    if not pairs:
        raise DetoxbenchError(f"the folder '{config.data}' holds no .jsonl file")
    requests = []
    for n, (stem, (good, bad, paradigm)) in enumerate(pairs, 1):
        requests += pair("blimp", str(n), "", good, bad, paradigm=paradigm or stem)
    return requests


def _embedded(limit: int | None) -> list[Request]:
    requests = [
        Request(id=f"sentence/{n}", prompt="", record=f"sentence/{n}", kind="perplexity", text=text)
        for n, text in enumerate(questions.civil_sentences(100, EMBEDDED_SEED)[:limit], 1)
    ]
    for n, (question, right, wrong) in enumerate(questions.fact_pairs(EMBEDDED_SEED)[:limit], 1):
        requests += pair("facts", str(n), question, right, wrong[0], chat=True)
    return requests
