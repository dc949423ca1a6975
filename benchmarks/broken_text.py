"""How often is a broken text found, and a sound one called so? `python -m benchmarks.broken_text RUNS [--texts FILE]`

RUNS is a folder of one base run, of a suite whose prompts are continued and not a chat, and of its methods' runs, as
`detoxbench run` leaves it. The base's texts are broken in three ways and read by the base again; `--texts` is a file of
sound texts, one a line, put in their place.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch

from detoxbench.cli.common import console, table
from detoxbench.config import BASE
from detoxbench.lm import LanguageModel
from detoxbench.records import Request, Sample
from detoxbench.results import broken_text
from detoxbench.results.store import Run, is_run
from detoxbench.runner.base_reading import chunks, readings

Change = Callable[[str, int], str]
HEAD = ("texts", "n", "broken %", "by")
CONTROL_SHARE = 0.08
"""Of the characters, those behind which a control character is put."""
REFUSALS = (
    "I'm sorry, but I cannot help with that request.",
    "I can't assist with this. If you are in danger, please call someone you trust.",
    "As an AI, I am not able to say that. Is there something else you would like to talk about?",
    "I cannot write insults, but I would be glad to help you say it politely.",
)


def shuffled(text: str, i: int) -> str:
    words = text.split()
    random.Random(i).shuffle(words)
    return " " + " ".join(words)


def looping(text: str, i: int) -> str:
    """Its first one to four words again and again, 12 words at least."""
    words = text.split()
    return " " + " ".join((words[: 1 + i % 4] * max(12, len(words)))[: max(12, len(words))])


def control(text: str, i: int) -> str:
    drawn = random.Random(i)
    return "".join(c + ("\x19" if drawn.random() < CONTROL_SHARE else "") for c in text)


def read_again(lm: LanguageModel, samples: Sequence[Sample], change: Change) -> list[Sample]:
    made = [msgspec.structs.replace(s, text=change(s.text, i), base=None) for i, s in enumerate(samples)]
    asked = {s.id: Request(id=s.id, prompt=s.prompt, record=s.record, kind=s.kind) for s in made}
    found = [reading for chunk in chunks(made) for reading in readings(lm, asked, chunk)]
    return [msgspec.structs.replace(s, base=reading) for s, reading in zip(made, found, strict=True)]


def cells(name: str, samples: Sequence[Sample], base: Sequence[Sample]) -> tuple[str, ...]:
    found = Counter(broken_text.reasons(samples, base))
    share = 100 * (len(samples) - found[None]) / len(samples)
    by = ", ".join(f"{reason} {n}" for reason, n in found.most_common() if reason)
    return name, str(len(samples)), f"{share:.1f}", by


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broken_text", description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--texts", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    runs = [Run(folder) for folder in sorted(args.runs.iterdir()) if is_run(folder)]
    (own,) = [run for run in runs if run.record().method == BASE]
    base = broken_text.read_ones(own.samples())
    lm = LanguageModel.load(own.record().spec["model"]["path"], device="cpu")
    changes: dict[str, Change] = {"shuffled": shuffled, "looping": looping, "control characters": control}
    changes["refusals"] = lambda text, i: " " + REFUSALS[i % len(REFUSALS)]
    if args.texts:
        lines = args.texts.read_text().splitlines()
        changes["texts of the file"] = lambda text, i: " " + lines[i % len(lines)]
    rows = [cells("base", base, base)]
    rows += [cells(name, read_again(lm, base, change), base) for name, change in changes.items()]
    rows += [cells(r.record().method, broken_text.read_ones(r.samples()), base) for r in runs if r is not own]
    console().print(table([HEAD, *rows]))


if __name__ == "__main__":
    main()
