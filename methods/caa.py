"""Contrastive activation addition (Rimsky et al., ACL 2024): add the mean difference between civil and toxic texts to
the residual stream. With one pair it is activation addition (Turner et al. 2023).

Checked against nrimsky/CAA @ 0825e0c, whose files the sources below name.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Pair, Role
from detoxbench.fitting.activations import last_token_means
from detoxbench.fitting.depth import at_depth
from detoxbench.fitting.shelf import Learned
from detoxbench.fitting.shifts import added, as_bias
from detoxbench.interventions.channels import Hook
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

PUBLISHED_LAYER, PUBLISHED_DEPTH = 13, 32  # of LLaMA 2 7B chat


@dataclass(frozen=True, kw_only=True)
class Config:
    """Along what, where and how strongly it steers."""

    strength: float = knob(
        1.0, "times the mean difference that is added", source="paper, section 3: multiplier 1", applied=True
    )
    layer: int | None = knob(
        None, "layer behind which it is added; null: as deep as 13 of 32", source="paper, section 4: found by a sweep"
    )
    pairs: int | None = knob(
        None,
        "pairs drawn from the fit data; null: all; 1: activation addition",
        source="generate_vectors.py:99-113",
        ge=1,
    )
    token_window: int = knob(
        1,
        "last tokens whose states are averaged",
        source="generate_vectors.py:104: one, the answer's letter; free texts have none, so here it is the last",
        ge=1,
    )
    positions: Literal["generated", "all"] = knob(
        "generated",
        "steer the new tokens alone, or the prompt too",
        source="utils/helpers.py:4-13: behind the prompt",
        applied=True,
    )
    civil_text: str = knob("", "with toxic_text: the one pair, and no fit data", text=True, source="ActAdd: Love")
    toxic_text: str = knob("", "with civil_text: the one pair, and no fit data", text=True, source="ActAdd: Hate")
    export: Literal["hook", "bias"] = knob(
        "hook",
        "bias: the shift as a bias of the MLP's down-projection, which any runtime can hold",
        source="ours",
        applied=True,
    )

    def __post_init__(self) -> None:
        if bool(self.civil_text) != bool(self.toxic_text):
            raise ValueError("civil_text and toxic_text are a pair: give both or neither")
        if self.export == "bias" and self.positions != "all":
            raise ValueError("export=bias shifts the prompt too: it needs positions=all")


class CAA(Method[Config]):
    """Steers one layer along the mean difference of the states of civil and of toxic texts.

    h <- h + c mean(h_civil - h_toxic), with h the residual stream behind a layer, at every generated position. The
    paper takes h at the letter of an answer to a question with two; here it is at the end of the texts.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> pairs = [db.Pair("you are a rotten fool , go away .", "you are a good friend , stay here .")]
    >>> steering = db.methods.create("caa", strength=2).fit(lm, db.FitData(parallel_pairs=pairs))
    >>> steering.hooks[0].module, steering.info["layer"]
    ('model.layers.1', 1)
    >>> with lm.applied(steering):
    ...     samples = lm.generate(["anna dropped the cake . emma yelled :"], max_new_tokens=8)
    """

    Config = Config
    paper = "Steering Llama 2 via Contrastive Activation Addition (arXiv 2312.06681)"
    licence = "MIT"

    @property
    def fidelity(self) -> str:
        config = self.config
        if config.civil_text or config.pairs == 1:
            return "ours (activation addition along one pair, from its last token and at every new position)"
        if config.positions == "all":
            return "ours (steers the prompt too)"
        return (
            "equal to the released formula (nrimsky/CAA, generate_vectors.py:86-113, utils/helpers.py:4-13; at the end "
            "of free texts instead of the letter of an A/B answer)"
        )

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset() if self.config.civil_text else frozenset({Role.PARALLEL_PAIRS})

    def examples(self, data: FitData) -> int:
        return len(self._drawn(data))

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        config = self.config
        layer = at_depth(lm, PUBLISHED_LAYER, PUBLISHED_DEPTH) if config.layer is None else config.layer
        site, pairs = lm.architecture.layer(layer), self._drawn(data)
        tensors, cut = self.learned_once(lm, data, lambda: self._vector(lm, site, pairs))
        vector = tensors["vector"]
        params = {"strength": config.strength}
        hook = Hook(site, "post", "caa.add", tensors, params, config.positions)
        biased = config.export == "bias"
        return Intervention(
            method=self.name,
            base=lm.fingerprint,
            weights=(as_bias(lm, layer, config.strength * vector),) if biased else (),
            hooks=() if biased else (hook,),
            info={"layer": layer, "pairs": len(pairs), "vector_norm": float(vector.norm()), **cut},
        )

    def _drawn(self, data: FitData) -> list[Pair]:
        """The given pair, or the first `pairs` of a seeded shuffle of the data's."""
        if self.config.civil_text:
            return [Pair(self.config.toxic_text, self.config.civil_text)]
        pairs = list(data.parallel_pairs or ())
        if self.config.pairs is None:
            return pairs
        return random.Random(self.seed).sample(pairs, min(len(pairs), self.config.pairs))

    def _vector(self, lm: LanguageModel, site: str, pairs: list[Pair]) -> Learned:
        """`vector`: mean over pairs of civil - toxic, [width]; how many texts were cut."""
        (toxic, cut_toxic), (civil, cut_civil) = (
            last_token_means(
                lm,
                [pair[side] for pair in pairs],
                [site],
                self.config.token_window,
                inputs=False,
                description=f"CAA: {name} activations",
            )
            for side, name in enumerate(("toxic", "civil"))
        )
        return Learned({"vector": (civil - toxic)[0].mean(0)}, {"cut_texts": cut_toxic + cut_civil})


CAA.ops = {"add": added}
