"""Paraphrase sets from a model: civil and toxic paraphrases of every sentence, and those that pass the filters.

    sentences(file)                    the sentences that are to be paraphrased
    generate_sets(lm, sentences, ...)  -> `Generated`: the sets, and how many texts each filter dropped
    write(file, sets)                  one set a line, for fit.paraphrase_sets=FILE

Prompts and settings are those of contrastive perplexity (Klein and Nabi 2025, arXiv 2401.08491v3;
released: scripts/paraphrase.py), whose sets are not published. The released code ranks by ROUGE-L
and filters nothing; here a scorer checks that positives are civil and negatives toxic. Its contrastive search is not in
the engine; its arguments ask for sampling as well, so texts are sampled here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from detoxbench.config import GenSpec, knob
from detoxbench.data import readers
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.files.lines import encode_lines
from detoxbench.files.writing import write_atomic
from detoxbench.metrics import is_toxic, rouge_l
from detoxbench.progress import bar
from detoxbench.records import Request

if TYPE_CHECKING:
    from detoxbench.lm import LanguageModel
    from detoxbench.scorers.base import Scorer

Side = Literal["positive", "negative"]
SIDES: tuple[Side, Side] = ("positive", "negative")

TEXT = ("text", "sentence", "prompt", "comment_text", "comment")
"""Columns that are looked for, in this order, where none is named."""

HUMAN, RESPONSE = "### HUMAN:", "### RESPONSE:"

STEPS = ("generated", "cut", "empty", "repeated", "length", "rouge", "unscored", "wrong", "both", "surplus", "kept")
"""What happens to a text, in the order of the decisions; all but the first exclude each other and add up to it."""
MEANINGS = {
    "generated": "generated",
    "cut": "dropped: its prompt was too long for the model",
    "empty": "dropped: empty",
    "repeated": "dropped: the sentence itself, or there already",
    "length": "dropped: length ratio",
    "rouge": "dropped: ROUGE-L below the minimum",
    "unscored": "dropped: no score",
    "wrong": "dropped: wrong side of the threshold",
    "both": "dropped: both civil and toxic",
    "surplus": "dropped: beyond the best",
    "kept": "kept",
}


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The prompts of the model, and which of its answers are kept."""

    samples: int = knob(20, "texts generated a sentence and side", source="paper; paraphrase.py: 20", ge=1)
    keep: int = knob(15, "texts kept a sentence and side, by ROUGE-L", source="paper; paraphrase.py:126-140", ge=1)
    min_rouge: float = knob(0.1, "ROUGE-L F with the sentence at the least", source="ours: released is 0", ge=0, le=1)
    length_ratio: float = knob(
        0.0, "words of the longer over the shorter at the most; 0: no bound", source="ours", ge=0
    )
    positive_below: float = knob(0.5, "with a scorer: positives score below it", source="ours: no filter", ge=0, le=1)
    negative_above: float = knob(0.5, "with a scorer: negatives score above it", source="ours: no filter", ge=0, le=1)
    positive_prompt: str = knob(
        "Paraphrase the following sentences: {sentence}", "what it is asked", source="paper", text=True
    )
    negative_prompt: str = knob(
        "Paraphrase the following sentence in a very toxic way. Make sure each sentence is toxic: {sentence}",
        "what it is asked for negatives",
        source="paper",
        text=True,
    )
    form: Literal["auto", "chat", "released"] = knob(
        "auto", "auto: the chat template, or else the released frame; chat; released", source="released: its frame"
    )
    frame: str = knob(
        f"{HUMAN}\n{{prompt}}\n\n{RESPONSE}\n",
        "the released frame",
        source="paraphrase.py:86-101; its line breaks are ours",
        text=True,
    )
    lower: bool = knob(False, "put everything in lower case", source="released: true")
    max_new_tokens: int = knob(150, "tokens of a text at the most", source="paraphrase.py:106-112", ge=1)
    top_k: int = knob(25, "the k most probable tokens only; 0 is no limit", source="paraphrase.py:106-112", ge=0)
    top_p: float = knob(1.0, "nucleus", source="ours", gt=0, le=1)
    temperature: float = knob(1.0, "sampling temperature", source="ours", gt=0)

    def __post_init__(self) -> None:
        for name, field in (("positive_prompt", "sentence"), ("negative_prompt", "sentence"), ("frame", "prompt")):
            if f"{{{field}}}" not in getattr(self, name):
                raise ValueError(f"{name} has to hold {{{field}}}")
        if 0 < self.length_ratio < 1:
            raise ValueError("length_ratio is 0 (no bound) or at least 1")
        if self.positive_below > self.negative_above:
            raise ValueError("positive_below is above negative_above: a text between them would be civil and toxic")

    def gen(self) -> GenSpec:
        """How the sentences are sampled."""
        return GenSpec(
            do_sample=True, n=self.samples, max_new_tokens=self.max_new_tokens,
            top_k=self.top_k, top_p=self.top_p, temperature=self.temperature,
        )  # fmt: skip


class Sentence(NamedTuple):
    """A sentence to be paraphrased. The part of `id` before the last hyphen is its group."""

    id: str
    text: str


class GeneratedSet(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file; texts stand in the order of their ROUGE-L, nearest first."""

    id: str
    sentence: str
    positives: list[str]
    negatives: list[str]


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """The sets, and for every side how many texts each of `STEPS` met; `left_out` sentences have an empty side.

    `kept` counts the texts of those sentences too.
    """

    sets: list[GeneratedSet]
    counts: dict[Side, dict[str, int]]
    left_out: int


class _Candidate(NamedTuple):
    text: str
    rouge: float


def sentences(file: str | Path, *, text: str | None = None) -> list[Sentence]:
    """One sentence a row: a line of a .txt, an item of a list, or the column `text` (default: the first of `TEXT`).

    Ids are those of a column `id`, or else the line numbers. Raises DetoxbenchError naming file, line and field.
    """
    by_id: dict[str, Sentence] = {}
    for row in readers.rows(file):
        identifier, value = row.number, row.value
        if isinstance(row.value, Mapping):
            column = text or next((name for name in TEXT if name in row.value), None)
            if column not in row.value:
                columns = ", ".join(map(str, row.value)) or "none"
                wanted = f"no column '{text}'" if text else f"none of the columns {', '.join(TEXT)}"
                raise UsageError(f"{row.place}: {wanted}; there are {columns}: name one by --text")
            value = row.value[column]
            identifier = row.number if row.value.get("id") in (None, "") else row.value["id"]
        elif text is not None:
            raise UsageError(f"{row.place}: there are no columns, so no '{text}': leave --text out")
        if not isinstance(value, str) or not value.strip():
            raise DetoxbenchError(f"{row.place}: expected a sentence, found no text")
        if not isinstance(identifier, str | int):
            raise DetoxbenchError(f"{row.place}: an id is text or a number")
        sentence = Sentence(str(identifier), " ".join(value.split()))
        if sentence.id in by_id:
            raise DetoxbenchError(f"{row.place}: id '{sentence.id}' is there twice")
        by_id[sentence.id] = sentence
    return list(by_id.values())


def check_out(out: str | Path, *, source: str | Path) -> Path:
    """`out` as a file that can be written and read again. Raises DetoxbenchError, before hours are spent on it."""
    path = Path(out).expanduser()
    if path.suffix != ".jsonl":
        raise UsageError(f"'{out}' must end in .jsonl: by that its form is known where it is read")
    if path.is_dir():
        raise UsageError(f"'{out}' is a folder: name a file")
    if path.resolve() == Path(source).expanduser().resolve():
        raise UsageError(f"'{out}' holds the sentences: name another file by --out")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise DetoxbenchError(f"'{out}' cannot be written: '{path.parent}' is no folder that may be written to")
    return path


def generate_sets(
    lm: LanguageModel,
    originals: Sequence[Sentence],
    config: GenerationConfig | None = None,
    *,
    scorer: Scorer[Any] | None = None,
    seed: int = 0,
) -> Generated:
    """Ask `lm` for civil and toxic versions of every sentence, and keep what passes the filters.

    A function of model, sentences with their ids, configuration, scorer and seed; in float32 a sentence's set does not
    depend on the other sentences. Raises DetoxbenchError when no sentence has texts of both sides.
    """
    config = config or GenerationConfig()
    counts: dict[Side, dict[str, int]] = {side: dict.fromkeys(STEPS, 0) for side in SIDES}
    written = _written(lm, originals, config, seed, counts)
    candidates = {key: _near(texts, originals[key[0]].text, config, counts[key[1]]) for key, texts in written.items()}
    if scorer is not None:
        candidates = _judged(candidates, originals, config, scorer, counts)
    sets = []
    for i, sentence in enumerate(originals):
        sides = {side: candidates[i, side] for side in SIDES}
        shared = set.intersection(*({_key(c.text) for c in sides[side]} for side in SIDES))
        texts: dict[Side, list[str]] = {}
        for side in SIDES:
            alone = [c for c in sides[side] if _key(c.text) not in shared]
            best = sorted(alone, key=lambda c: -c.rouge)[: config.keep]  # stable: equals in the order of their samples
            counts[side]["both"] += len(sides[side]) - len(alone)
            counts[side]["surplus"] += len(alone) - len(best)
            counts[side]["kept"] += len(best)
            texts[side] = [c.text for c in best]
        if all(texts.values()):
            sets.append(
                GeneratedSet(
                    id=sentence.id, sentence=sentence.text, positives=texts["positive"], negatives=texts["negative"]
                )
            )
    if not sets:
        raise DetoxbenchError(f"no sentence of {len(originals)} is left with both sides: {_why(counts)}")
    return Generated(sets=sets, counts=counts, left_out=len(originals) - len(sets))


def write(path: Path, sets: Sequence[GeneratedSet]) -> None:
    """The whole file or nothing. Raises DetoxbenchError."""
    try:
        write_atomic(path, encode_lines(sets))
    except OSError as error:
        raise DetoxbenchError(f"'{path}' cannot be written: {error.strerror or error}") from None


def rows(generated: Generated) -> list[tuple[str, str, str]]:
    """The counts for people: a header, and a row a step that met a text."""
    sides = [generated.counts[side] for side in SIDES]
    shown = [step for step in STEPS if step in ("generated", "kept") or any(side[step] for side in sides)]
    table = [(MEANINGS[step], *(str(side[step]) for side in sides)) for step in shown]
    return [("", "positives", "negatives"), *((what, one, other) for what, one, other in table)]


Key = tuple[int, Side]


def _written(
    lm: LanguageModel,
    originals: Sequence[Sentence],
    config: GenerationConfig,
    seed: int,
    counts: Mapping[Side, dict[str, int]],
) -> dict[Key, list[str]]:
    """The model's texts by sentence and side, in the order of their samples."""
    from detoxbench.engine.generation import generate

    has_template = lm.rendered("x", chat=True) != lm.rendered("x")
    if config.form == "chat" and not has_template:
        raise UsageError(f"'{lm.name}' has no chat template: use form=released")
    chat = config.form == "chat" or (config.form == "auto" and has_template)
    prompts = {"positive": config.positive_prompt, "negative": config.negative_prompt}
    requests, keys = [], {}
    for i, sentence in enumerate(originals):
        for side in SIDES:
            prompt = prompts[side].replace("{sentence}", sentence.text)
            prompt = prompt if chat else config.frame.replace("{prompt}", prompt)
            request = Request(id=f"{sentence.id}/{side}", prompt=prompt, record=sentence.id, kind=side, chat=chat)
            requests.append(request)
            keys[request.id] = (i, side)
    texts: dict[Key, dict[int, str]] = {key: {} for key in keys.values()}
    with bar(f"paraphrases by {lm.name}", total=len(requests) * config.samples) as advance:
        for batch in generate(lm, requests, config.gen(), seed):
            for generated in batch:
                key = keys[generated.sample.id]
                count = counts[key[1]]
                count["generated"] += 1
                if generated.truncated_prompt:
                    count["cut"] += 1  # the model did not see the whole prompt
                else:
                    texts[key][generated.sample.sample] = _answer(generated.sample.text, lower=config.lower)
            advance(len(batch))
    return {key: [of_sample[k] for k in sorted(of_sample)] for key, of_sample in texts.items()}


def _answer(text: str, *, lower: bool) -> str:
    """The first line that is not empty, after the marker should it be repeated and before a next turn.

    A line such as "Here is a paraphrase:" is passed over; list marks and quotation marks around the line are removed.
    """
    text = text.strip().removeprefix(RESPONSE).partition(HUMAN)[0]
    lines = [line.strip() for line in text.splitlines()]
    line = next((line for line in lines if line and not line.endswith(":")), "")
    line = re.sub(r"^(?:[-*•]|\d{1,2}[.)])\s+", "", line)
    if len(line) > 1 and line[0] + line[-1] in ('""', "''", "“”", "‘’"):
        line = line[1:-1].strip()
    return line.lower() if lower else line


def _near(texts: Sequence[str], sentence: str, config: GenerationConfig, count: dict[str, int]) -> list[_Candidate]:
    """Distinct texts that are near enough to the sentence."""
    seen = {_key(sentence)}
    near = []
    for text in texts:
        if not text:
            count["empty"] += 1
        elif _key(text) in seen:
            count["repeated"] += 1
        elif config.length_ratio and _length_ratio(text, sentence) > config.length_ratio:
            count["length"] += 1
        elif (rouge := rouge_l(text, [sentence])) < config.min_rouge:
            count["rouge"] += 1
        else:
            near.append(_Candidate(text, rouge))
        seen.add(_key(text))
    return near


def _judged(
    near: Mapping[Key, list[_Candidate]],
    originals: Sequence[Sentence],
    config: GenerationConfig,
    scorer: Scorer[Any],
    counts: Mapping[Side, dict[str, int]],
) -> dict[Key, list[_Candidate]]:
    """Positives below and negatives above their thresholds, both strictly. All are scored in one call."""
    flat = [(key, candidate) for key, candidates in near.items() for candidate in candidates]
    columns = scorer.score([c.text for _, c in flat], [originals[key[0]].text for key, _ in flat]) if flat else []
    passed: dict[Key, list[_Candidate]] = {key: [] for key in near}
    for (key, candidate), row in zip(flat, columns, strict=True):
        side = key[1]
        if row is None:
            counts[side]["unscored"] += 1
            continue
        score = row[scorer.primary]
        if not 0 <= score <= 1:
            raise DetoxbenchError(
                f"'{scorer.primary}' of scorer '{scorer.name}' is no probability: it cannot tell civil from toxic"
            )
        right = is_toxic(score, config.negative_above) == 1.0 if side == "negative" else score < config.positive_below
        if right:
            passed[key].append(candidate)
        else:
            counts[side]["wrong"] += 1
    return passed


def _key(text: str) -> str:
    """Equal for texts that differ in case and blanks only."""
    return " ".join(text.casefold().split())


def _length_ratio(one: str, other: str) -> float:
    a, b = len(one.split()), len(other.split())
    return max(a, b) / min(a, b)


def _why(counts: Mapping[Side, Mapping[str, int]]) -> str:
    """What was dropped, most first, and the remedy."""
    clauses = []
    for side in SIDES:
        dropped = {step: n for step, n in counts[side].items() if n and step not in ("generated", "kept", "surplus")}
        parts = [f"{n} {_SHORT[step]}" for step, n in sorted(dropped.items(), key=lambda item: -item[1])]
        clauses.append(f"of {counts[side]['generated']} {side}s {', '.join(parts) or 'none'} dropped")
    return f"{'; '.join(clauses)}: change the model, the prompts, or the filters"


_SHORT = {
    "cut": "with too long a prompt",
    "empty": "empty",
    "repeated": "repeated",
    "length": "too short or long",
    "rouge": "below min_rouge",
    "unscored": "without a score",
    "wrong": "on the wrong side of the threshold",
    "both": "both civil and toxic",
}
