"""Scores kept by text, so that a slow scorer scores no text twice, whichever runs need it.

RUNS/.stages/scores-<digest of the scorer's identity>/scores.jsonl holds a line {"key", "scores", "check"} a text;
scorers that read the prompt are keyed by both, and `check` is the digest of the rest. Lines are only ever appended, one
that is damaged or that a kill cut off is passed over, and of two processes that score the same text both write the same
line. A missing score is not kept: the next run asks again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from detoxbench.config import digest
from detoxbench.files.lines import encode
from detoxbench.files.locking import locked
from detoxbench.scorers.asking import Columns, Score
from detoxbench.scorers.base import Scorer

log = logging.getLogger("detoxbench")


class _Line(msgspec.Struct):
    key: str
    scores: dict[str, float]
    check: str

    @classmethod
    def of(cls, key: str, scores: dict[str, float]) -> _Line:
        numbers = {name: float(value) for name, value in scores.items()}  # as they are read back
        return cls(key, numbers, digest([key, numbers]))


def remembering(scorer: Scorer[Any], stages: Path, identity: Mapping[str, Any], ask: Score | None = None) -> Score:
    """`ask` (by default `scorer.score`), called for each text only once, and not for texts that another run under
    `stages` has scored.

    `identity` is the scorer's (`Scorer.identity`). One that is not `cached` remembers nothing beyond a call.
    """
    file = stages / f"scores-{digest(dict(identity))}" / "scores.jsonl"
    known: dict[str, dict[str, float]] = {line.key: line.scores for line in _read(file)} if scorer.cached else {}

    def score(texts: Sequence[str], prompts: Sequence[str]) -> list[Columns]:
        pairs = [(t, p) if scorer.needs_prompt else (t,) for t, p in zip(texts, prompts, strict=True)]
        scored: dict[tuple[str, ...], Columns] = {}
        unknown: dict[tuple[str, ...], str] = {}  # -> the prompt of its first text
        for pair, prompt in zip(pairs, prompts, strict=True):
            if pair not in scored and pair not in unknown:
                if (scores := known.get(_key(pair))) is not None:
                    scored[pair] = scores
                else:
                    unknown[pair] = prompt
        left = list(unknown.items())
        for start in range(0, len(left), scorer.keep_every):
            part = left[start : start + scorer.keep_every]
            rows = (ask or scorer.score)([pair[0] for pair, _ in part], [prompt for _, prompt in part])
            if scorer.cached:
                new = [_Line.of(_key(p), row) for (p, _), row in zip(part, rows, strict=True) if row is not None]
                _append(file, new)
                known.update((line.key, line.scores) for line in new)
            scored.update((pair, row) for (pair, _), row in zip(part, rows, strict=True))
        return [None if (row := scored[pair]) is None else dict(row) for pair in pairs]

    return score


def _key(pair: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(pair).encode()).hexdigest()[:32]


def _read(file: Path) -> list[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    lines = []
    for line in file.read_bytes().split(b"\n") if file.is_file() else []:
        try:
            lines.append(decoder.decode(line))
        except msgspec.DecodeError:  # empty, or cut off
            continue
    sound = [line for line in lines if line.check == digest([line.key, line.scores])]
    if lost := len(lines) - len(sound):
        log.warning("'%s': %d lines are damaged, and their texts are scored again", file, lost)
    return sound


def _append(file: Path, lines: Sequence[_Line]) -> None:
    if not lines:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    # The newline in front ends a line that a kill cut off.
    data = b"".join(b"\n" + encode(line) for line in lines) + b"\n"
    with locked(file.with_suffix(".lock")), open(file, "ab") as out:
        out.write(data)
