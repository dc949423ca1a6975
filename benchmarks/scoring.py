"""Scoring completions with a transformer classifier: unique texts in batches by length, beside two plain ways."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.harness import Row, compare, measured, peak_mb
from detoxbench.runner.scoring import SCORE_CHUNK
from detoxbench.scorers.cache import remembering
from detoxbench.scorers.hf_classifier import Config, HFClassifier

TRIED, MANY = 1_000, 8_000
"""Completions that both sides read; and how many more show that memory does not grow with them. 1,000 prompts of
RealToxicityPrompts give 25,000, which scale from these."""
WORDS = 8_000
"""Of the vocabulary."""
CLOSE = 1e-5
"""How far probabilities may differ."""


def save_classifier(folder: Path) -> None:
    """A BERT of 4 layers and width 256 with random weights, as large as the smallest distilled classifiers."""
    torch.manual_seed(0)
    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i + 2 for i in range(WORDS)}}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    config = BertConfig(
        vocab_size=WORDS + 2, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
        num_labels=2, id2label={0: "civil", 1: "toxic"}, pad_token_id=0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)


def completions(n: int) -> list[str]:
    """3 to 20 words, as completions of at most 20 tokens have; one in eight says what another says already."""
    drawn = random.Random(0)
    texts = [" ".join(f"w{drawn.randrange(WORDS)}" for _ in range(drawn.randint(3, 20))) for _ in range(n)]
    return [texts[drawn.randrange(i)] if i and drawn.random() < 1 / 8 else text for i, text in enumerate(texts)]


def rows(device: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_classifier(folder / "model")
        scorer = HFClassifier(Config(path=str(folder / "model"), device=device), name="hf_classifier")
        inner: Any = scorer._loaded.classifier
        tokenizer, model = inner.tokenizer, inner.model

        def ours(texts: list[str]) -> list[float]:
            """As a run does it, with a cache that knows nothing yet."""
            with tempfile.TemporaryDirectory(dir=folder) as stages:
                score = remembering(scorer, Path(stages), scorer.identity())
                found = []
                for i in range(0, len(texts), SCORE_CHUNK):
                    part = texts[i : i + SCORE_CHUNK]
                    found += [row["toxicity"] for row in score(part, [""] * len(part)) if row]
                return found

        def at_once(texts: list[str]) -> list[float]:
            """All in one forward pass, padded to the longest."""
            inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True).to(device)
            with torch.no_grad():
                return model(**inputs).logits.softmax(-1)[:, 1].tolist()

        def one_by_one(texts: list[str]) -> list[float]:
            return [at_once([text])[0] for text in texts]

        def check(a: list[float], b: list[float]) -> None:
            off = max(abs(x - y) for x, y in zip(a, b, strict=True))
            if off > CLOSE:
                raise AssertionError(f"scores differ by {off:.1e}")

        texts = completions(TRIED)
        note = (
            f"{TRIED:,} completions of 3 to 20 words, {len(set(texts)):,} different; random BERT, 4 layers, width 256"
        )
        yield compare(
            "scoring completions",
            lambda: ours(texts),
            lambda: one_by_one(texts),
            target=5,
            against="one text after another",
            check=check,
            device=device,
            note=note,
        )
        yield compare(
            "the same completions",
            lambda: ours(texts),
            lambda: at_once(texts),
            target=None,
            against="the whole list in one pass",
            check=check,
            device=device,
            note="faster here, but its memory grows with the list",
        )
        many = completions(MANY)
        few_mb, many_mb = peak_mb(lambda: ours(texts), device), peak_mb(lambda: ours(many), device)
        if few_mb is not None and many_mb is not None:
            yield measured(
                f"memory for {MANY:,} texts",
                [many_mb / max(few_mb, 1.0)],
                "x the memory",
                target=1.5,
                against=f"for {TRIED:,} texts",
                note=f"{many_mb:.0f} MB against {few_mb:.0f} MB; the rest are the texts and their scores",
            )
