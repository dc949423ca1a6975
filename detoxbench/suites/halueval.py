"""HaluEval: does a model find right answers likelier than hallucinated ones (Li et al. 2023, as Ext-Sub reads it)?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from detoxbench.config import knob, runtime
from detoxbench.data import readers
from detoxbench.fable import questions
from detoxbench.records import Measure, Request, Sample, Scored
from detoxbench.suites._common import EMBEDDED_SEED, nll_per_token, preferred
from detoxbench.suites.base import READS, Suite


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which questions, and how they are put. The requests are hashed into the identity."""

    data: str = runtime("embedded", "'embedded' or HaluEval's file (qa_data.json or summarization_data.json)")
    template: Literal["none", "chat"] = knob(
        "none", "none: question, blank, answer as running text; chat: the question as a message"
    )
    limit: int | None = runtime(None, "take the first so many questions", ge=1)


class HaluEval(Suite[Config]):
    """Reads the right and the hallucinated answer to each question; nothing is generated and no scorer judges.

    right_preferred_sum: share of questions whose right answer has the lower summed NLL, as Ext-Sub's code has it
    (halueval_eval.py, "precision"); it favours short answers. right_preferred_per_token compares the mean over tokens.
    A tie is wrong. The prompt is the question without the knowledge passage, or "Summarize the following document:",
    a line break and the document, as there. Documents that do not fit lose their beginning (counted in cut_prompts),
    and only the answer's tokens are compared; there, wrongly masked labels make such items count as wrong.
    """

    Config = Config
    paper = "https://arxiv.org/abs/2305.11747"
    licence = "MIT"
    data = "github.com/RUCAIBox/HaluEval, data/: qa_data.json and summarization_data.json, 10,000 records each"
    measured = "right_preferred_sum, right_preferred_per_token"
    cost = "two passes a record; no generation, no scorer"
    protocol = READS
    needs_scorer = False

    def requests(self) -> list[Request]:
        config = self.config
        if config.data == "embedded":
            records = [(q, right, wrong[0]) for q, right, wrong in questions.fact_pairs(EMBEDDED_SEED)]
        else:
            records = readers.halueval(config.data)
        chat = config.template == "chat"
        return [
            Request(
                id=f"{n}/{side}",
                prompt=question,
                record=str(n),
                kind=side,
                chat=chat,
                text=text if chat else f" {text}",
            )
            for n, (question, right, wrong) in enumerate(records[: config.limit], 1)
            for side, text in (("right", right), ("wrong", wrong))
        ]

    def measures(self, samples: Sequence[Sample], scores: Sequence[Scored], primary: str) -> list[Measure]:
        return [
            preferred("right_preferred_sum", samples),
            preferred("right_preferred_per_token", samples, nll_per_token),
        ]
