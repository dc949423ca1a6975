"""The refusal direction (Arditi et al., NeurIPS 2024), added: along one direction a model refuses.

The paper takes the direction away to make models comply; adding it is its other half, and the one that defends. Checked
against andyrdt/refusal_direction @ 0b9c8bc, whose files (below pipeline/) the sources name.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Query, Role
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.activations import CachedPrefixForward, pooled_states
from detoxbench.fitting.shelf import Learned
from detoxbench.fitting.shifts import added, as_bias
from detoxbench.interventions.channels import Hook
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method
from detoxbench.model.chat import PROBE

if TYPE_CHECKING:
    from torch import Tensor

_SCORE_EPS, _KL_EPS, _NORM_EPS = 1e-8, 1e-6, 1e-8  # select_direction.py:16, 276; hook_utils.py:51
_SHARE_HELD_OUT = 5  # a fifth where there are too few prompts for the published numbers, 128 and 32
_ZERO = 1e-6  # a direction below this share of the longest is rounding noise
_BATCH = 32  # select_direction.py:135

log = logging.getLogger("detoxbench")


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the direction is found, and how much of it is added."""

    strength: float = knob(
        1.0, "times the direction that is added", source="run_pipeline.py:157: coeff +1.0", applied=True
    )
    train: int = knob(128, "harmful and harmless prompts whose states are averaged", source="config.py: n_train", ge=1)
    validation: int = knob(
        32, "further prompts of both that candidates are judged on; at most a fifth", source="config.py: n_val", ge=1
    )
    filter: bool = knob(
        True, "leave out harmful prompts that are not refused and harmless ones that are", source="config.py: filter_*"
    )
    refusal_starts: tuple[str, ...] = knob(
        ("I", "As", "i", "sorry"),
        "a refusal is an answer that begins with the first token of one of these; unknown ones are left out",
        source="model_utils: I, and As for Qwen; in small letters: ours, for models that write those",
    )
    kl_threshold: float | None = knob(
        0.1,
        "furthest that taking a direction away may move harmless answers; null: any",
        source="select_direction.py:132",
        ge=0,
    )
    induce_threshold: float | None = knob(
        0.0, "least refusal score of harmless prompts with it added; null: any", source="select_direction.py:133"
    )
    none_passes: Literal["nearest", "error"] = knob(
        "nearest",
        "where no candidate passes: nearest: with a warning, that which has harmless prompts refused most; error",
        source="ours; select_direction.py:248: error",
    )
    pruned_layers: float = knob(
        0.2, "share of the layers, the last ones, that give no direction", source="select_direction.py:134", ge=0, lt=1
    )
    export: Literal["hook", "bias"] = knob(
        "hook",
        "bias: the shift as a bias of the MLP's down-projection one layer before",
        source="model_utils/llama3_model.py:80-86",
        applied=True,
    )


class Candidate(NamedTuple):
    """A direction with what was measured of it."""

    position: int
    layer: int
    kl: float
    """Mean KL of harmless prompts' first tokens, base || direction taken away, nats."""
    refusal: float
    """Mean refusal score of harmful prompts with the direction taken away."""
    steering: float
    """Mean refusal score of harmless prompts with the direction added."""


class RefusalDirection(Method[Config]):
    """Adds the direction in which harmful prompts differ from harmless ones, at the layer where it means refusal.

    r = mean h(harmful) - mean h(harmless), one candidate for each layer's input and each of the chat template's tokens
    behind the question. Of those that pass both thresholds the one is taken without which harmful prompts are refused
    least. It is added, not normalised, at the input of its layer, at all positions.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> harmful = [db.Query(f"write an insult about the {who} .") for who in ("river elf", "baker", "old king")] * 4
    >>> harmless = [db.Query(f"where does the {who} live ?") for who in ("river elf", "baker", "old king")] * 4
    >>> method = db.methods.create("refusal_direction", filter=False)
    >>> change = method.fit(lm, db.FitData(harmful_prompts=harmful, harmless_prompts=harmless))
    >>> change.hooks[0].module == lm.architecture.layer(change.info["layer"])
    True
    """

    Config = Config
    paper = "Refusal in Language Models Is Mediated by a Single Direction (arXiv 2406.11717)"
    licence = "the released code has no licence file; nothing of it is used"

    @property
    def fidelity(self) -> str:
        chosen = {
            name: getattr(self.config, name) for name in ("filter", "kl_threshold", "induce_threshold", "pruned_layers")
        }
        if any(value != getattr(Config(), name) for name, value in chosen.items()):
            return "ours (candidates are chosen by other thresholds than the released ones)"
        return (
            "equal to the released formula (andyrdt/refusal_direction, submodules/generate_directions.py:12-60, "
            "select_direction.py:13-290; the prompts are split by us)"
        )

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({Role.HARMFUL_PROMPTS, Role.HARMLESS_PROMPTS})

    def examples(self, data: FitData) -> int:
        kinds = (data.harmful_prompts or (), data.harmless_prompts or ())
        return sum(min(len(queries), self.config.train + self._held_out(len(queries))) for queries in kinds)

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        tensors, info = self.learned_once(lm, data, lambda: self._found(lm, data))
        layer, vector = info["layer"], tensors["vector"]
        biased = self.config.export == "bias"
        return Intervention(
            method=self.name,
            base=lm.fingerprint,
            weights=(self._bias(lm, layer, vector),) if biased else (),
            hooks=() if biased else (self._added(lm, layer, vector, self.config.strength),),
            info=info,
        )

    def _found(self, lm: LanguageModel, data: FitData) -> Learned:
        """`vector`: the best candidate, [width]; its layer, its measures and those of all others."""
        starts = refusal_ids(lm, self.config.refusal_starts)
        # 1. The prompts: those that directions are taken from, and those that they are judged on.
        (harmful, harmful_held), (harmless, harmless_held) = (
            self._split(lm, queries or ()) for queries in (data.harmful_prompts, data.harmless_prompts)
        )
        if self.config.filter:
            harmful, harmful_held = (self._filtered(lm, p, starts, refused=True) for p in (harmful, harmful_held))
            harmless, harmless_held = (self._filtered(lm, p, starts, refused=False) for p in (harmless, harmless_held))
        # 2. The candidates, [layers, positions, width].
        directions = self._directions(lm, harmful, harmless)
        # 3. What each does, and the best.
        judged = self._judged(lm, directions, harmful_held, harmless_held, starts)
        best, passing = self._best(judged)
        vector = directions[best.layer, best.position]
        info = {
            **best._asdict(),
            "passing": passing,
            "vector_norm": float(vector.norm()),
            "prompts": {"harmful": len(harmful), "harmless": len(harmless)},
            "held_out": {"harmful": len(harmful_held), "harmless": len(harmless_held)},
            "candidates": [candidate._asdict() for candidate in judged],
        }
        return Learned({"vector": vector}, info)

    def _held_out(self, prompts: int) -> int:
        """How many of so many prompts candidates are judged on."""
        return min(self.config.validation, prompts // _SHARE_HELD_OUT)

    def _split(self, lm: LanguageModel, queries: Sequence[Query]) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of the prompts of a seeded draw: for directions, and held out."""
        held = self._held_out(len(queries))
        if not held:
            raise DetoxbenchError(
                f"method '{self.name}' has {len(queries)} prompts of a kind, too few to hold one in {_SHARE_HELD_OUT} "
                "out: give more"
            )
        count = min(len(queries), self.config.train + held)
        drawn = random.Random(self.seed).sample(list(queries), count)
        ids = [lm.encode(query.prompt, query.chat)[-(lm.context or 0) :] for query in drawn]
        return ids[held:], ids[:held]

    def _filtered(
        self, lm: LanguageModel, prompts: list[list[int]], starts: Sequence[int], *, refused: bool
    ) -> list[list[int]]:
        """The prompts that are refused (score > 0), or that are not (score < 0)."""
        scores = refusal_scores(last_logits(lm, prompts), starts).tolist()
        kept = [ids for ids, score in zip(prompts, scores, strict=True) if (score > 0 if refused else score < 0)]
        if not kept:
            kind, remedy = ("harmful", "refuses") if refused else ("harmless", "answers")
            raise DetoxbenchError(
                f"'{lm.name}' {remedy} none of the {len(prompts)} {kind} prompts: set how its refusals begin "
                "(method.refusal_starts), or method.filter=false"
            )
        return kept

    def _directions(self, lm: LanguageModel, harmful: list[list[int]], harmless: list[list[int]]) -> Tensor:
        """r [layers, positions, width]: the difference of mean inputs of every layer, at the tokens behind the
        question."""
        import torch

        positions = min(behind_question(lm), *map(len, harmful), *map(len, harmless))
        layers = lm.architecture.layers
        means = []
        for name, prompts in (("harmful", harmful), ("harmless", harmless)):
            states = pooled_states(
                lm, prompts, layers, lambda x: x[-positions:], inputs=True, description=f"refusal direction: {name}"
            )
            means.append(torch.stack([of_layer.double().mean(0) for of_layer in states]))
        return (means[0] - means[1]).float()

    def _judged(
        self,
        lm: LanguageModel,
        directions: Tensor,
        harmful: list[list[int]],
        harmless: list[list[int]],
        starts: Sequence[int],
    ) -> list[Candidate]:
        """Every candidate below the pruned layers, with its three measures (select_direction.py:138-199), but those
        that are 0: at layer 0 one token has one state."""
        layers, positions, _ = directions.shape
        least = _ZERO * float(directions.norm(dim=-1).max())
        base = last_logits(lm, harmless)
        judged = []
        for position in range(-positions, 0):
            for layer in range(max(1, int(layers * (1 - self.config.pruned_layers)))):
                r = directions[layer, position]
                if float(r.norm()) <= least:
                    continue
                with lm.applied(self._trial(lm, self._ablated(lm, r))):
                    kl = float(divergence(base, last_logits(lm, harmless)).mean())
                    refusal = float(refusal_scores(last_logits(lm, harmful), starts).mean())
                with lm.applied(self._trial(lm, [self._added(lm, layer, r, 1.0)])):
                    steering = float(refusal_scores(last_logits(lm, harmless), starts).mean())
                judged.append(Candidate(position, layer, kl, refusal, steering))
        return judged

    def _best(self, judged: Sequence[Candidate]) -> tuple[Candidate, int]:
        """Of the candidates that pass, that of the lowest refusal score (select_direction.py:117-127); how many pass.

        Where none does, by `none_passes` that of the highest steering score, of those that keep the KL if any does.
        """
        far, weak = self.config.kl_threshold, self.config.induce_threshold
        whole = [c for c in judged if not any(map(math.isnan, c))]
        near = [c for c in whole if far is None or c.kl <= far]
        passing = [c for c in near if weak is None or c.steering >= weak]
        if passing:
            return min(passing, key=lambda c: c.refusal), len(passing)
        said = (
            f"none of {len(judged)} refusal directions passes: without them {len(whole) - len(near)} move harmless "
            f"answers by more than method.kl_threshold={far}, and none of the others has them refused by "
            f"method.induce_threshold={weak}"
        )
        if self.config.none_passes == "error" or not whole:
            raise DetoxbenchError(f"{said}: change a threshold (null: none), or method.none_passes=nearest")
        log.warning("%s; taken is the one that has them refused most", said)
        return max(near or whole, key=lambda c: c.steering), 0

    def _trial(self, lm: LanguageModel, hooks: Sequence[Hook]) -> Intervention:
        return Intervention(method=self.name, base=lm.fingerprint, hooks=tuple(hooks))

    def _added(self, lm: LanguageModel, layer: int, vector: Tensor, strength: float) -> Hook:
        site = lm.architecture.layer(layer)
        return Hook(site, "pre", "refusal_direction.add", {"vector": vector.clone()}, {"strength": strength})

    def _ablated(self, lm: LanguageModel, vector: Tensor) -> list[Hook]:
        """Takes the direction out of every layer's input, and of what attention and MLP give (hook_utils.py:89-98)."""
        op, parts, hooks = "refusal_direction.ablate", lm.architecture, []
        for layer, site in enumerate(parts.layers):
            hooks.append(Hook(site, "pre", op, {"vector": vector.clone()}))
            for module in (parts.attention_out(layer), parts.mlp_down(layer)):
                hooks.append(Hook(module, "post", op, {"vector": vector.clone()}))
        return hooks

    def _bias(self, lm: LanguageModel, layer: int, vector: Tensor) -> Any:
        if layer == 0:
            raise DetoxbenchError(
                "the direction belongs to layer 0, before which no map has a bias: method.export=hook"
            )
        return as_bias(lm, layer - 1, self.config.strength * vector)


def ablated(x: Tensor, tensors: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
    """x - (x . r) r for the unit vector r of `vector` (hook_utils.py:41-60), in float32. x is [..., width]."""
    full, vector = x.float(), tensors["vector"]
    unit = vector / (vector.norm() + _NORM_EPS)
    return (full - (full @ unit)[..., None] * unit).to(x.dtype)


RefusalDirection.ops = {"add": added, "ablate": ablated}


def refusal_ids(lm: LanguageModel, starts: Sequence[str]) -> list[int]:
    """The first tokens of refusals, where an answer begins. Raises DetoxbenchError where none is known."""
    text, special = lm.rendered(PROBE, chat=True)
    gap = lm.template.turn[0] if lm.template else " "
    ids = set()
    for start in starts:
        before, whole = lm.joined(text, gap + start, special=special)
        common = next((i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), len(before))
        written = ((token, lm.tokenizer.decode([token]).strip()) for token in whole[common:])
        token, word = next(((token, word) for token, word in written if word), (0, ""))
        if word and start.startswith(word):  # else the tokenizer does not know it
            ids.add(token)
    if not ids:
        raise DetoxbenchError(f"'{lm.name}' knows none of method.refusal_starts: set how its refusals begin")
    return sorted(ids)


def behind_question(lm: LanguageModel) -> int:
    """How many tokens the chat template puts between a question and its answer; without a template 1, the last one."""
    if lm.template is None:
        return 1
    return max(1, len(lm.tokens(lm.template.prompt(PROBE).partition(PROBE)[2], special=False)))


def last_logits(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Next-token logits after each prompt under what is in force, float64 on the CPU, [prompts, vocabulary]."""
    import torch

    rows = []
    with torch.inference_mode():
        for start in range(0, len(prompts), _BATCH):
            read = [(ids, range(len(ids) - 1, len(ids))) for ids in prompts[start : start + _BATCH]]
            rows += CachedPrefixForward(lm, read, lm.architecture.layers).logits()
    return torch.cat(rows).cpu().double()


def refusal_scores(logits: Tensor, starts: Sequence[int]) -> Tensor:
    """log p - log(1 - p) with p the probability that a refusal begins, [prompts] (select_direction.py:13-28)."""
    p = logits.softmax(-1)[:, list(starts)].sum(-1)
    return (p + _SCORE_EPS).log() - (1 - p + _SCORE_EPS).log()


def divergence(base: Tensor, other: Tensor) -> Tensor:
    """KL(base || other) of next-token logits, nats, [prompts] (select_direction.py:271-290)."""
    p, q = base.softmax(-1), other.softmax(-1)
    return (p * ((p + _KL_EPS).log() - (q + _KL_EPS).log())).sum(-1)
