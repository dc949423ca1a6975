"""Contrastive perplexity (Klein & Nabi, ACL 2025): a LoRA that holds civil paraphrases at one perplexity and drives
toxic paraphrases of the same content away from it.

With s(x) the mean NLL of a text's tokens and c the mean of s over the positives, a text is as near as exp(-|s(x) - c|).
Released code (SAP-samples/acl2025-contrastive-perplexity @ be8b4fd, train_mistral.py:648-740), `objective=script`: the
nearness over tau, plus alpha for negatives, are logits, and the loss is their cross entropy with every positive a right
answer. Paper (arXiv 2401.08491v3, Eq. 1-6), `objective=paper`: s is exponentiated, nearness itself is the weight in the
ratio, alpha multiplies it, and tau cancels. The two are different losses.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from detoxbench.config import Quantization, knob
from detoxbench.data.examples import FitData, Role
from detoxbench.fitting.paraphrases import NEGATIVE, POSITIVE, Drawn, Pools, compared
from detoxbench.fitting.quantization import require_quantization
from detoxbench.fitting.token_losses import plain_head, sequence_nll
from detoxbench.fitting.training import Adapter, LoraConfig, optimise_lora
from detoxbench.interventions.channels import LowRank, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method
from detoxbench.progress import track

if TYPE_CHECKING:
    from torch import Tensor

Score = Callable[[Any, Mapping[str, "Tensor"]], "Tensor"]
"""score(model, batch): s of every row of the batch, [rows]."""

COMPARED = 100
"""Anchors whose texts are measured before and after training."""
COLLAPSE = 0.5
"""Rise of the positives' NLL (nats a token) that is warned of; the paper's own is 0.17 (Table 7: 3.03 to 3.59)."""


@dataclass(frozen=True, kw_only=True)
class Config(LoraConfig):
    """The loss, and how the LoRA is trained."""

    objective: Literal["script", "paper"] = knob(
        "script",
        "script: cross entropy with nearness as logits (released code); paper: ratio of weighted nearness",
        source="train_mistral.py:648-740; arXiv 2401.08491v3 Eq. 1-6",
    )
    centroid: Literal["anchor", "batch"] = knob(
        "anchor",
        "mean over the positives of each anchor (paper) or of the whole micro-batch (released code)",
        source="Eq. 5; train_mistral.py:693",
    )
    terms: Literal["both", "positives", "negatives"] = knob(
        "both",
        "ablation: positives: the numerator of Eq. 6 alone; negatives: alone what they add to its denominator",
        source="paper's ablation, which does not say what it left out of which loss",
    )
    distance: Literal["abs", "hinge"] = knob(
        "abs",
        "abs: as published; hinge: a negative below the centroid is left alone instead of being made likelier still",
        source="Eq. 4; hinge is an extension of this project",
    )
    positives: int = knob(5, "civil paraphrases of an anchor in a step", source="paper: |P| = 5", ge=1)
    negatives: int = knob(5, "toxic paraphrases of an anchor in a step", source="paper: |N| = 5", ge=1)
    random_negatives: int = knob(
        0, "toxic texts of other anchors in a step", source="paper: none; train_mistral.py:88 has 6", ge=0
    )
    alpha: float = knob(
        1.0,
        "weight of the negatives: added to the logit (script; e^alpha as a weight) or multiplied (paper)",
        source="paper: 1.0-1.1; train_mistral.py: 100",
        ge=0,
    )
    tau: float = knob(
        0.1, "temperature of the logits; no effect in the paper's objective", source="paper: 0.1-0.2", gt=0
    )
    beta: float = knob(1.0, "weight of the loss", source="train_mistral.py:740", gt=0)
    smoothing: float = knob(
        0.0, "label smoothing of the script's cross entropy", source="train_mistral.py:735", ge=0, lt=1
    )
    count_pads: bool = knob(
        False, "score pads as the released code does, whose numbers then depend on the library", source="README, 2.4"
    )
    quantization: Quantization = knob(
        "none", "bits of the frozen layers while training; nf4 and int8 need bitsandbytes", source="paper: 4-bit"
    )
    rank: int = knob(64, "rank of the LoRA matrices", source="paper, Table 9", ge=1)
    lora_alpha: float = knob(16.0, "LoRA scaling is lora_alpha / rank", source="paper, Table 9", gt=0)
    lora_dropout: float = knob(0.1, "dropout on the LoRA input", source="train_mistral.py", ge=0, lt=1)
    target_modules: tuple[str, ...] | None = knob(
        ("all-linear",),
        "module names that get a LoRA; the paper has lm_head too, which a model with tied embeddings cannot have",
        source="paper, Table 9, without lm_head",
    )
    learning_rate: float = knob(2.2e-5, "peak learning rate of AdamW", source="paper; train_example.sh", gt=0)
    epochs: int = knob(1, "passes over the anchors", source="paper", ge=1)
    batch_size: int = knob(6, "anchors an update", source="paper: 2 x 3", ge=1)
    micro_batch_size: int = knob(2, "anchors a forward pass", source="paper: 2", ge=1)
    warmup_ratio: float = knob(0.0, "share of the updates with a rising rate", source="train_mistral.py", ge=0, le=1)
    max_length: int = knob(256, "tokens of a text at the most", source="train_mistral.py: cutoff_len", ge=2)


class ContrastivePerplexity(Method[Config]):
    """LoRA fine-tuning on sets of civil and toxic paraphrases: no prompt, no reference model, no generation.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> sets = [
    ...     db.ParaphraseSet(thing, (f"please bring the {thing} .",) * 2, (f"bring the {thing} , you fool .",) * 2)
    ...     for thing in ("cake", "kite", "map")
    ... ]
    >>> method = db.methods.create("contrastive_perplexity", positives=2, negatives=2, rank=4, learning_rate=0.01)
    >>> tuned = method.fit(lm, db.FitData(paraphrase_sets=sets))
    >>> tuned.info["toxic_mass_after"] < tuned.info["toxic_mass_before"]
    True
    """

    Config = Config
    version = 2
    needs = frozenset({Role.PARAPHRASE_SETS})
    paper = "Contrastive Perplexity for Controlled Generation: An Application in Detoxifying Large Language Models"
    licence = "Apache-2.0"

    @property
    def fidelity(self) -> str:
        config, fixture = self.config, "golden fixture tests/golden/contrastive_perplexity"
        if config.terms != "both" or config.distance != "abs":
            return "ours (half of the loss, or a hinge: a loss that was not published)"
        if config.objective == "paper":
            return f"close to the paper (loss and gradients are its Eq. 1-6 to 1e-12, {fixture}; its texts are missing)"
        if config.centroid == "batch":
            return f"equal to the released code ({fixture}: losses, gradients, three steps; the texts are other ones)"
        return f"equal to the released formula ({fixture} at centroid=batch; a centroid for each anchor is Eq. 5)"

    def fingerprints(self) -> Mapping[str, str]:
        require_quantization(self.config.quantization)  # asked before anything is loaded
        return {}

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        import torch

        data.require(self.needs, self.name)
        config = self.config
        numbers = config.positives, config.negatives, config.random_negatives
        pools = Pools(lm, data.paraphrase_sets or (), numbers, max_length=config.max_length, seed=self.seed)
        score = partial(sequence_nll, count_pads=config.count_pads, through_head=plain_head(lm))
        # 1. What the first epoch draws of some anchors, before training: s of the positives, then of the negatives.
        compare = [self._collate(pools, [pools.draw(0, anchor)]) for anchor in range(min(len(pools), COMPARED))]
        before = self._scores(lm, score, compare)  # [anchors, texts]
        # 2. Training.
        trained = self._trained(lm, score, pools)
        intervention = Intervention(
            method=self.name,
            base=lm.fingerprint,
            weights=tuple(Weight(parameter, delta) for parameter, delta in trained.deltas.items()),
        )
        # 3. The same texts after it.
        with lm.applied(intervention):
            after = self._scores(lm, score, compare)
        texts = before.shape[1]
        tokens = torch.stack([batch["attention_mask"].sum(1)[:texts] - 1 for batch in compare])  # [anchors, texts]
        info = _diagnostics(pools, trained, compared(before, after, tokens, config.positives))
        _warn(info, config)
        return dataclasses.replace(intervention, info=info)

    def _collate(self, pools: Pools, anchors: Sequence[Drawn]) -> dict[str, Tensor]:
        """A micro-batch of these anchors (`Pools.collate`)."""
        return pools.collate(anchors, as_released=self.config.count_pads)

    def _scores(self, lm: LanguageModel, score: Score, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """s of the positives, then of the negatives of each batch, which holds one anchor: [anchors, texts]."""
        import torch

        texts = self.config.positives + self.config.negatives
        scores = []
        with torch.inference_mode():
            for batch in track(batches, f"{self.name}: measuring"):
                s = score(lm.model, {k: v.to(lm.device) for k, v in batch.items()})
                scores.append(s[:texts].cpu().double())
        return torch.stack(scores)

    def _trained(self, lm: LanguageModel, score: Score, pools: Pools) -> Adapter[LowRank]:
        """A LoRA that lowers `cp_loss` of the anchors of `pools`."""
        config = self.config

        def loss(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
            s = score(model, batch)
            return cp_loss(s, batch["group"], batch["role"], config), _measured(s, batch, config)

        return optimise_lora(
            lm, pools.epoch, config, collate=partial(self._collate, pools), loss=loss,
            quantization=config.quantization, seed=self.seed, description=self.name,
        )  # fmt: skip


def _diagnostics(pools: Pools, trained: Adapter[LowRank], comparison: Mapping[str, float]) -> dict[str, Any]:
    """What is recorded of a fit; `comparison` is of the same texts before and after training."""
    return {
        "anchors": len(pools),
        "anchors_dropped": pools.dropped,
        "cut_texts": pools.cut,
        **comparison,
        "losses": list(trained.losses),
        "gradient_norms": list(trained.gradient_norms),
        **{measure: list(values) for measure, values in trained.measures.items()},
    }


def _warn(info: Mapping[str, Any], config: Config) -> None:
    share, gap = info["anchors_with_likelier_negatives"], info["nll_gap_before"]
    mass = info["toxic_mass_before"], info["toxic_mass_after"]
    rise = info["nll_positives_after"] - info["nll_positives_before"]
    messages = []
    if mass[1] > mass[0]:
        messages.append(
            f"training has made the toxic texts likelier against the civil ones ({mass[0]:.1%} to {mass[1]:.1%} of "
            "their probability): set method.distance=hinge or lower method.learning_rate"
        )
    elif config.distance == "abs" and (share >= 0.5 or gap < 0):
        messages.append(
            f"before training, the toxic texts of {share:.0%} of the anchors are likelier than the civil ones (mean "
            f"gap {gap:+.2f} nats a token), and this loss makes such texts likelier still: set method.distance=hinge"
        )
    if rise > COLLAPSE:
        messages.append(
            f"training has raised the NLL of the civil texts by {rise:.2f} nats a token, a sign of collapse: lower "
            "method.learning_rate"
        )
    for message in messages:
        warnings.warn(message, stacklevel=3)


def cp_loss(seq_nll: Tensor, group: Tensor, role: Tensor, config: Config) -> Tensor:
    """The loss of the rows of a micro-batch, mean over its anchors; in the precision of `seq_nll`.

    seq_nll [rows] as of `sequence_nll`; group [rows]: the anchor of each, 0 to n-1; role [rows]. An anchor's loss is

        script   -beta/(P+1+R) sum_i y_i log softmax(z)_i,   z = exp(-d)/tau + alpha [negative],   y_i = [positive]
        paper    -beta log( sum_P e^-d / (sum_P e^-d + alpha sum_N e^-d + sum_R e^-d) )
    """
    d, member = _distances(seq_nll, group, role, config), _members(group)
    if config.terms != "both":  # under either objective: log softmax cannot be split into the two
        side, sign = (POSITIVE, -1) if config.terms == "positives" else (NEGATIVE, 1)
        on_side = (-d).expand(len(member), -1).masked_fill(~(member & (role == side)), -math.inf)
        return config.beta * sign * on_side.logsumexp(1).mean()
    if config.objective == "paper":
        nearness = (-d).where(role != NEGATIVE, -d + (math.log(config.alpha) if config.alpha else -math.inf))
        every = nearness.expand(len(member), -1).masked_fill(~member, -math.inf)
        right = every.masked_fill(role != POSITIVE, -math.inf)
        return config.beta * (every.logsumexp(1) - right.logsumexp(1)).mean()
    nearness = (-d).exp() / config.tau
    logits = nearness.where(role != NEGATIVE, nearness + config.alpha)
    every = logits.expand(len(member), -1).masked_fill(~member, -math.inf)
    smooth = config.smoothing
    wanted = (role == POSITIVE).to(d.dtype) * (1 - smooth) + smooth / member.to(d.dtype).sum(1, keepdim=True)
    losses = ((every.logsumexp(1, keepdim=True) - logits) * wanted * member).sum(1)
    return config.beta * (losses / (member & (role != NEGATIVE)).sum(1).add(1)).mean()


def _members(group: Tensor) -> Tensor:
    """[anchors, rows]: whether the row is of the anchor."""
    import torch

    return torch.arange(int(group.max()) + 1, device=group.device)[:, None] == group


def _centroids(score: Tensor, group: Tensor, role: Tensor, config: Config) -> Tensor:
    """Of each row's anchor, or of the micro-batch: [rows]."""
    positive = role == POSITIVE
    if config.centroid == "batch":
        return score[positive].mean().expand(len(score))
    members = _members(group) & positive  # [anchors, rows]
    return ((score * members).sum(1) / members.sum(1))[group]


def _distances(seq_nll: Tensor, group: Tensor, role: Tensor, config: Config) -> Tensor:
    score = seq_nll.exp() if config.objective == "paper" else seq_nll
    above = score - _centroids(score, group, role, config)
    if config.distance == "hinge":
        return above.abs().where(role == POSITIVE, above.clamp(min=0))
    return above.abs()


def _measured(seq_nll: Tensor, batch: Mapping[str, Tensor], config: Config) -> dict[str, float]:
    s, group, role, mask = seq_nll.detach(), batch["group"], batch["role"], batch["attention_mask"]
    below = (s < _centroids(s, group, role, config))[role == NEGATIVE]
    positive, negative = float(s[role == POSITIVE].mean()), float(s[role == NEGATIVE].mean())
    return {
        "s_pos": positive,
        "s_neg": negative,
        "margin": negative - positive,
        "neg_below_centroid": float(below.float().mean()),
        "pads_share": 1 - float(mask.float().mean()),
    }
