"""RMU (Li et al. 2024, WMDP): push the states of toxic texts at one layer towards a random direction, and keep those of
other texts.

    loss = |h(toxic) - c u|^2 + alpha |h(retain) - h_before(retain)|^2      (each the mean over tokens and dimensions)

with h the states behind layer l, and u a random vector of norm 1 with positive entries. The MLP down-projections of
layers l-2, l-1 and l are trained (centerforaisafety/wmdp, rmu/unlearn.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Instruction, Role
from detoxbench.fitting.activations import recorded
from detoxbench.fitting.depth import at_depth
from detoxbench.fitting.recomputation import recomputation
from detoxbench.fitting.responses import untrained
from detoxbench.fitting.states import collate_pairs, encoded_texts, halves, paired
from detoxbench.fitting.training import TrainingConfig, optimise
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.fitting.token_losses import Batch

PUBLISHED_LAYER, PUBLISHED_DEPTH = 7, 32  # of zephyr-7b-beta
TRAINED_LAYERS = 3  # layer_ids 5, 6, 7


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where, how far, and for how long. Defaults: those of unlearn.py; the command for Zephyr is an experiment."""

    layer: int | None = knob(
        None, "layer behind which states are changed; null: as deep as 7 of 32", source="unlearn.py: layer_id"
    )
    coefficient: float = knob(
        20.0, "norm of the states that toxic texts are pushed to; compare state_norm in info", source="unlearn.py", gt=0
    )
    alpha: float = knob(100.0, "weight of what is kept", source="unlearn.py", ge=0)
    updates: int = knob(80, "updates", source="unlearn.py: max_num_batches", ge=1)
    batch_size: int = knob(4, "toxic texts an update, and as many others", source="unlearn.py", ge=1)
    learning_rate: float = knob(5e-5, "rate of AdamW, constant", source="unlearn.py", gt=0)
    max_length: int = knob(512, "tokens of a text at the most", source="unlearn.py", ge=1)
    gradient_checkpointing: bool = recomputation()


class RMU(Method[Config]):
    """Makes the states of toxic texts at one layer useless to the layers above, while other texts keep theirs.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> toxic = [db.LabelledText("you are a silly fool .", True)]
    >>> kept = [db.Instruction("", "the duck slept near the farm .", chat=False)]
    >>> method = db.methods.create("rmu", updates=10, learning_rate=0.001, layer=2)
    >>> unlearnt = method.fit(lm, db.FitData(labelled_texts=toxic, retain_texts=kept))
    >>> unlearnt.info["forget_loss"][-1] < unlearnt.info["forget_loss"][0]
    True
    """

    Config = Config
    needs = frozenset({Role.LABELLED_TEXTS, Role.RETAIN_TEXTS})
    paper = "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning (arXiv 2403.03218)"
    licence = "MIT"
    fidelity = (
        "equal to the released formula (our independent computation of rmu/unlearn.py: run_rmu; pads do not count, and "
        "gradients are clipped to norm 1)"
    )

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        config = self.config
        layer = at_depth(lm, PUBLISHED_LAYER, PUBLISHED_DEPTH) if config.layer is None else config.layer
        site = lm.architecture.layer(layer)
        layer %= len(lm.architecture.layers)
        layers = range(max(0, layer + 1 - TRAINED_LAYERS), layer + 1)
        toxic = [Instruction("", text, chat=False) for text, is_toxic in data.labelled_texts or () if is_toxic]
        forget = encoded_texts(lm, toxic, config.max_length)
        keep = encoded_texts(lm, data.retain_texts or (), config.max_length)
        rows = paired(forget, keep, config.updates * config.batch_size, self.seed)
        training = TrainingConfig(
            parameters=tuple(f"{lm.architecture.mlp_down(i)}.weight" for i in layers), schedule="constant",
            warmup_ratio=0.0, epochs=1, learning_rate=config.learning_rate, batch_size=config.batch_size,
            micro_batch_size=config.batch_size, gradient_checkpointing=config.gradient_checkpointing,
        )  # fmt: skip
        trained = optimise(
            lm, lambda epoch: rows, training, collate=partial(collate_pairs, pad=lm.tokenizer.pad_token_id or 0),
            loss=partial(self.loss, lm, site, self.target(lm)), seed=self.seed, description=self.name,
        )  # fmt: skip
        info = {"layer": layer, "trained_layers": list(layers), **trained.record}
        return Intervention(method=self.name, base=lm.fingerprint, weights=trained.weights, info=info)

    def target(self, lm: LanguageModel) -> Tensor:
        """c u, [width]."""
        import torch

        drawn = torch.rand(lm.architecture.hidden_size, generator=torch.Generator().manual_seed(self.seed))
        return (self.config.coefficient * drawn / drawn.norm()).to(lm.device)

    def loss(
        self, lm: LanguageModel, site: str, target: Tensor, model: Any, batch: Batch
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of a micro-batch, and its parts; `state_norm` is the mean norm of a toxic text's states."""

        def read(texts: Batch) -> Tensor:  # [real tokens, width]
            with recorded(lm, [site]) as seen:
                lm.architecture.decoder(**texts, use_cache=False)
            return seen[site][texts["attention_mask"].bool()].float()

        toxic, others = halves(batch)
        with untrained(model):
            before = read(others)
        toxic_states = read(toxic)
        forget = (toxic_states - target).square().mean()
        retain = (read(others) - before).square().mean()
        measured = {
            "forget_loss": float(forget.detach()),
            "retain_loss": float(retain.detach()),
            "state_norm": float(toxic_states.detach().norm(dim=-1).mean()),
        }
        return forget + self.config.alpha * retain, measured
