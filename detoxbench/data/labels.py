"""What the name of a label or of a column means: toxic, civil, or neither for certain.

Data and classifiers name their classes as they like. Only the words listed here are taken as certain; for all other
names the user is asked.
"""

from __future__ import annotations

import re
from typing import Literal

Side = Literal["toxic", "civil"]

_BAD = frozenset({
    "toxic", "toxicity", "hate", "hateful", "hatespeech", "hater", "offensive", "offense", "off", "abusive",
    "abuse", "harmful", "harm", "unsafe", "insult", "insulting", "obscene", "profane", "profanity", "threat",
    "threatening", "severe", "vulgar", "racist", "racism", "sexist", "sexism", "misogynistic", "misogyny",
    "harassment", "harassing", "derogatory", "rude", "hof", "bully", "bullying", "cyberbullying", "dangerous",
    "violent", "violence", "disrespectful", "inappropriate", "unacceptable", "impolite", "uncivil", "attack",
    "aggressive", "bigoted",
})  # fmt: skip
_GOOD = frozenset({
    "safe", "civil", "neutral", "normal", "clean", "benign", "harmless", "acceptable", "appropriate", "polite",
    "respectful", "friendly", "fine", "ok", "okay", "none", "neither", "nothing", "inoffensive",
})  # fmt: skip
_NO = r"(?:not|non|no|un|never|isnt|isn't)"
_FILL = frozenset({
    "is", "a", "the", "speech", "language", "content", "text", "comment", "label", "very", "identity", "sexual",
    "explicit", "severely",
})  # fmt: skip
_TURNING = frozenset({
    "free", "without", "anti", "counter", "against", "less", "low", "lower", "little", "zero", "absence", "lack",
    "minimal", "hardly", "crime", "crimes", "victim", "reported",
})  # fmt: skip
"""Words beside which a bad or good word is not certain: "hate-free", "low toxicity", "non-violent crimes"."""
UMBRELLA = frozenset({"toxic", "toxicity", "unsafe", "harmful"})
"""Names of a class that stands for all kinds of it, where a classifier gives each kind a probability of its own."""


def words(label: object) -> str:
    """Lower case, with blanks between words: "Hate_Speech", "hateSpeech" and "hate-speech" are one."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(label))
    return re.sub(r"[\W_]+", " ", spaced.replace("'", "")).strip().lower()


def side(label: object) -> Side | None:
    """Which side a label is on; None where its words do not say so, or say both ("toxic or not")."""
    text = words(label)
    if text == "not":  # beside OFF, HOF or HATE (OLID, HASOC)
        return "civil"
    if not _TURNING.isdisjoint(text.split()):
        return None
    sides = {_side_of(word) for word in _joined(text).split()} - {None}
    return sides.pop() if len(sides) == 1 else None


def _joined(text: str) -> str:
    """`text` with negations joined to the word that they deny, and without words that decide nothing."""
    telling = " ".join(word for word in text.split() if word not in _FILL)
    return re.sub(rf"\b({_NO}) (?=\w)", r"\1", telling)


def _side_of(word: str) -> Side | None:
    if word in _BAD:
        return "toxic"
    if word in _GOOD:
        return "civil"
    if match := re.fullmatch(rf"{_NO}(\w+)", word):
        denied = match[1]
        return "civil" if denied in _BAD else "toxic" if denied in _GOOD else None
    return None


def says_toxic(value: object, column_side: Side | None) -> bool | None:
    """Whether a label says toxic, in a column whose name means `column_side`; None where that is not certain."""
    text = words(value)
    if isinstance(value, bool) or text in {"true", "yes", "false", "no"}:
        yes: bool | None = text in {"true", "yes"}
    else:
        try:
            number = float(str(value))
        except (TypeError, ValueError):
            return {"toxic": True, "civil": False, None: None}[side(value)]
        yes = number >= 0.5 if 0 <= number <= 1 else None
    return None if yes is None or column_side is None else yes == (column_side == "toxic")
