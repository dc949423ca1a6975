"""Circuit breakers (Zou et al. 2024): make the states of harmful answers orthogonal to what they were, and keep others.

With h the hidden states and t the update, of T in all, a LoRA is trained to lower

    alpha (1 - t/2T) mean ReLU cos(h_l(harmful), before_l(harmful))  +  alpha t/2T mean |h(retain) - before(retain)|

the first over tokens and two target layers l, the second over tokens and the states behind all layers
(GraySwanAI/circuit-breakers, src/lorra_circuit_breaker.py: compute_loss, where T is 150 and 2T is written 300).

Before the first update every cosine is 1, where its gradient is 0 but for rounding, and the second term, whose pull
does not fade near 0, holds the states there once its weight has grown: where states are long (as in our small models,
and in float32) nothing happens, and `cosine` in info stays 1, unless `retain_weight` is lowered.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Instruction, Role
from detoxbench.fitting.depth import at_depth
from detoxbench.fitting.recomputation import recomputation
from detoxbench.fitting.responses import untrained
from detoxbench.fitting.states import collate_pairs, encoded_texts, halves, paired, states
from detoxbench.fitting.training import LoraConfig, Recipe, optimise_lora
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.fitting.token_losses import Batch

PUBLISHED_TARGETS, PUBLISHED_DEPTH = (10, 20), 32  # lorra_circuit_breaker_llama3_8b.sh and _mistral_7b.sh


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where, how strongly, and for how long. Defaults: lorra_circuit_breaker_llama3_8b.sh."""

    targets: tuple[int, ...] | None = knob(
        None,
        "hidden states that are broken, counted from 1 behind the first layer; null: as deep as 10 and 20 of 32. LoRAs "
        "are on the layers up to one above the last",
        source="llama3_8b.sh: target_layers",
    )
    alpha: float = knob(10.0, "weight of both terms", source="llama3_8b.sh; 5 for Mistral", gt=0)
    retain_weight: float = knob(
        1.0,
        "times the second term, which grows with the norm of the states (info: state_norm) as the first does not",
        source="ours: published 1",
        ge=0,
    )
    retain_chosen: bool = knob(
        True,
        "the chosen answers (refusals) are kept, too",
        source="cb_train_dataset.py: use_refusal_retain for Llama 3",
    )
    rank: int = knob(16, "rank of the LoRA matrices; at the most the model's width", source="llama3_8b.sh", ge=1)
    lora_alpha: float = knob(16.0, "LoRA scaling is lora_alpha / rank", source="llama3_8b.sh", gt=0)
    lora_dropout: float = knob(0.05, "dropout on the LoRA input", source="llama3_8b.sh", ge=0, lt=1)
    learning_rate: float = knob(1e-4, "rate of AdamW, constant", source="llama3_8b.sh", gt=0)
    updates: int = knob(150, "updates", source="llama3_8b.sh: max_steps", ge=1)
    batch_size: int = knob(16, "harmful answers an update, and as many others", source="llama3_8b.sh", ge=1)
    micro_batch_size: int = knob(16, "pairs a forward pass", source="llama3_8b.sh", ge=1)
    max_length: int = knob(512, "tokens of a text at the most", source="cb_train_dataset.py: 512; 1024 of others", ge=2)
    gradient_checkpointing: bool = recomputation()

    def __post_init__(self) -> None:
        if self.targets is not None and (not self.targets or min(self.targets) < 1):
            raise ValueError("targets are counted from 1, behind the first layer: give one at least")
        if self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size is no multiple of micro_batch_size: change one")


class CircuitBreakers(Method[Config]):
    """Trains a LoRA that turns the states of harmful answers away from what they were, while other texts keep theirs.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> pairs = [db.Preference("emma yelled :", "my friend , stay here .", "you fool , go away .", chat=False)]
    >>> kept = [db.Instruction("", "the duck slept near the farm .", chat=False)]
    >>> method = db.methods.create("circuit_breakers", updates=10, batch_size=4, micro_batch_size=4, learning_rate=0.01)
    >>> broken = method.fit(lm, db.FitData(preferences=pairs, retain_texts=kept))
    >>> broken.info["cosine"][-1] < broken.info["cosine"][0]
    True
    """

    Config = Config
    needs = frozenset({Role.PREFERENCES, Role.RETAIN_TEXTS})
    paper = "Improving Alignment and Robustness with Circuit Breakers (arXiv 2406.04313)"
    licence = "MIT"

    @property
    def fidelity(self) -> str:
        own = (
            "" if self.config.retain_weight == 1 else f"; its second term {self.config.retain_weight:g} times, of ours"
        )
        return (
            "equal to the released formula (our independent computation of lorra_circuit_breaker.py: compute_loss; "
            f"pads do not count{own})"
        )

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        config, preferences = self.config, data.preferences or ()
        targets = self.targets(lm)
        harmful = [Instruction(p.prompt, p.rejected, p.chat) for p in preferences]
        chosen = [Instruction(p.prompt, p.chosen, p.chat) for p in preferences] if config.retain_chosen else []
        breaking = encoded_texts(lm, harmful, config.max_length)
        keep = encoded_texts(lm, [*(data.retain_texts or ()), *chosen], config.max_length)
        rows = paired(breaking, keep, config.updates * config.batch_size, self.seed)
        trained = optimise_lora(
            lm, lambda epoch: rows, self._lora(lm, targets),
            collate=partial(collate_pairs, pad=lm.tokenizer.pad_token_id or 0),
            loss=partial(self.loss, lm, targets, self._progress()), recipe=Recipe(schedule="constant"), seed=self.seed,
            description=self.name,
        )  # fmt: skip
        info = {"targets": list(targets), "rank": self._rank(lm), **trained.record}
        return Intervention(method=self.name, base=lm.fingerprint, weights=trained.weights, info=info)

    def targets(self, lm: LanguageModel) -> tuple[int, ...]:
        """Which hidden states are broken, from 1: the first behind the first layer."""
        if self.config.targets is not None:
            return self.config.targets
        return tuple(dict.fromkeys(max(1, at_depth(lm, target, PUBLISHED_DEPTH)) for target in PUBLISHED_TARGETS))

    def _rank(self, lm: LanguageModel) -> int:
        return min(self.config.rank, lm.architecture.hidden_size)

    def _lora(self, lm: LanguageModel, targets: tuple[int, ...]) -> LoraConfig:
        """LoRAs on every linear map of the layers from the first to the one above the last target."""
        config, layers = self.config, lm.architecture.layers
        within = [f"{layer}." for layer in layers[: max(targets) + 1]]
        maps = tuple(path for path in lm.architecture.linear_maps() if any(path.startswith(part) for part in within))
        return LoraConfig(
            rank=self._rank(lm), lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, target_modules=maps,
            learning_rate=config.learning_rate, epochs=1, batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size, warmup_ratio=0.0,
            gradient_checkpointing=config.gradient_checkpointing,
        )  # fmt: skip

    def _progress(self) -> Iterator[float]:
        """t / 2T for each micro-batch of the training."""
        passes = self.config.batch_size // self.config.micro_batch_size
        return (call // passes / (2 * self.config.updates) for call in itertools.count())

    def loss(
        self, lm: LanguageModel, targets: tuple[int, ...], progress: Iterator[float], model: Any, batch: Batch
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of a micro-batch; measured are its terms: the mean cosine, and the mean distance."""
        from torch.nn.functional import cosine_similarity

        share = next(progress)
        harmful, others = halves(batch)
        behind = [target - 1 for target in targets]
        with untrained(model):
            harmful_before, others_before = states(lm, harmful)[behind], states(lm, others)  # [layers, tokens, width]
        cosine = cosine_similarity(states(lm, harmful)[behind], harmful_before, dim=-1)  # [targets, tokens]
        distances = (states(lm, others) - others_before).norm(dim=-1)  # [layers, tokens]
        # The released mean is over the embedding's states, too, which no LoRA changes.
        distance = distances.mean() * len(distances) / (len(distances) + 1)
        retain = self.config.retain_weight * share * distance
        measured = {
            "cosine": float(cosine.detach().mean()),
            "distance": float(distance.detach()),
            "state_norm": float(others_before.norm(dim=-1).mean()),
        }
        return self.config.alpha * ((1 - share) * cosine.relu().mean() + retain), measured
