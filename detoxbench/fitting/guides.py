"""Guides: what a method asks whether a text is bad. Never the run's judge, which would make the method right by itself.

A guide is a registered scorer, or a linear classifier of the tokens in texts that are labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detoxbench.config import knob
from detoxbench.data.examples import FitData, LabelledText, Role
from detoxbench.fitting.labelled import toxic_labels
from detoxbench.lm import LanguageModel
from detoxbench.registry import SCORERS
from detoxbench.scorers.base import HARM, Scorer, require_meaning

if TYPE_CHECKING:
    from torch import Tensor

LINEAR = "linear"


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """Which guide is asked."""

    guide: str | None = knob(
        None,
        "scorer that is asked, never the run's own; null is a linear classifier of the tokens in fit.labelled_texts",
        source="ours",
    )


def needs(config: GuideConfig) -> frozenset[Role]:
    """Labelled texts, where the guide is learned."""
    return frozenset() if config.guide else frozenset({Role.LABELLED_TEXTS})


def fingerprints(guide: str | None) -> dict[str, str]:
    """What the scorer depends on. Raises DetoxbenchError where it cannot work, UsageError where it tells no harm."""
    if not guide:
        return {}
    scorer: Scorer[object] = SCORERS.get(guide)(name=guide)
    require_meaning(scorer, HARM, "method.guide")
    return {"guide": f"{guide} {scorer.version} {scorer.fingerprint()}"}


def fitted(lm: LanguageModel, data: FitData, config: GuideConfig, method: str) -> tuple[str, dict[str, Tensor]]:
    """(name of the guide, its tensors), as `Output` has them. Raises DetoxbenchError, naming the method, where texts of
    one label are missing."""
    if config.guide:
        return config.guide, {}
    return LINEAR, _linear(lm, data.labelled_texts or (), method)


def _linear(lm: LanguageModel, examples: Sequence[LabelledText], method: str) -> dict[str, Tensor]:
    """Logistic regression on which tokens a text holds: weights [vocabulary] and bias [1]; a token that no text holds
    weighs 0."""
    import torch
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    labels = toxic_labels(examples, method)
    held = [sorted(set(lm.tokens(example.text, special=False))) for example in examples]
    starts = [0, *torch.tensor([len(ids) for ids in held]).cumsum(0).tolist()]
    columns = [i for ids in held for i in ids]
    texts = csr_matrix(([1.0] * len(columns), columns, starts), shape=(len(held), lm.architecture.vocabulary))
    model = LogisticRegression(max_iter=1000).fit(texts, labels.numpy())
    return {"weights": torch.tensor(model.coef_[0]).float(), "bias": torch.tensor(model.intercept_).float()}
