"""LM-Steer (Han et al., ACL 2024): a learned linear map of the last hidden state that makes texts more civil.

With h the state before the language-model head and s_k the value of steer k, the head gets

    h + epsilon sum_k s_k (h P1_k) P2_k^T

P1 and P2 are learned by the likelihood of labelled texts, at s = 1 for civil and s = -1 for toxic ones, while the model
is frozen. A second steer, the dummy, has the value 1 for every text, also when texts are generated: it takes what all
of them share. Checked against Glaciohound/LM-Steer @ 3cd7897, whose files the sources below name.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Instruction, LabelledText, Role
from detoxbench.fitting.labelled import toxic_labels
from detoxbench.fitting.responses import IGNORED, Response, collate, encode
from detoxbench.fitting.shelf import Learned
from detoxbench.fitting.token_losses import Batch, plain_head, token_nlls
from detoxbench.fitting.training import TrainingConfig, optimise_tensors
from detoxbench.interventions.channels import Hook
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config:
    """How strongly it steers, and how the steers are learned. Defaults: the README's command for detoxification."""

    strength: float = knob(
        5.0,
        "steer value when the model is used; in training civil texts have 1",
        source="README: --steer_values 5 1",
        applied=True,
    )
    rank: int = knob(1000, "columns of P1 and of P2; at most the width", source="README: --rank 1000", ge=1)
    epsilon: float = knob(1e-3, "what P1 P2^T is multiplied by", source="arguments.py: --epsilon", gt=0)
    initial_std: float = knob(
        0.01, "standard deviation of P1 and P2 before training", source="arguments.py: --init_var", gt=0
    )
    dummy: bool = knob(True, "learn the second steer, too", source="README: --dummy_steer 1")
    updates: int = knob(1000, "updates", source="README: --n_steps 1000", ge=1)
    batch_size: int = knob(32, "texts an update", source="README: --batch_size 32", ge=1)
    learning_rate: float = knob(1e-2, "rate of Adam, constant", source="README: --lr 1e-2", gt=0)
    max_length: int = knob(256, "tokens of a text at the most, the first ones", source="README: --max_length 256", ge=2)


class Row(NamedTuple):
    """A text as it is trained on, with its steer value."""

    text: Response
    value: float


def moved(h: Tensor, p1: Tensor, p2: Tensor, values: Sequence[float | Tensor], epsilon: float) -> Tensor:
    """h + epsilon sum_k s_k (h P1_k) P2_k^T (steers.py:49-57). h is [..., width], P1 and P2 are [steers, width, rank],
    and of `values` each is a number or [..., 1]; what is beyond the steers is not used."""
    steers = zip(p1, p2, values, strict=False)
    return h + epsilon * sum(value * (h @ one) @ two.T for one, two, value in steers)


def steer(x: Tensor, tensors: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
    """The states that the head gets, x [..., width], moved by the steers p1 and p2 at `values`; in float32."""
    return moved(x.float(), tensors["p1"], tensors["p2"], params["values"], params["epsilon"]).to(x.dtype)


class LMSteer(Method[Config]):
    """Steers by a linear map before the language-model head, learned from civil and toxic texts; the model is frozen.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> texts = [db.LabelledText("my friend , stay here .", toxic=False), db.LabelledText("you fool .", toxic=True)] * 4
    >>> method = db.methods.create("lm_steer", updates=20, batch_size=8)
    >>> steering = method.fit(lm, db.FitData(labelled_texts=texts))
    >>> steering.hooks[0].module, steering.info["rank"] == lm.architecture.hidden_size
    ('lm_head', True)
    >>> with lm.applied(steering):
    ...     samples = lm.generate(["anna dropped the cake . emma yelled :"], max_new_tokens=8)
    """

    Config = Config
    needs = frozenset({Role.LABELLED_TEXTS})
    paper = "Word Embeddings Are Steers for Language Models (arXiv 2305.12798)"
    licence = "MIT"
    fidelity = (
        "equal to the released formula (tests/methods/test_lm_steer.py; lm_steer/models/steers.py:49-61, "
        "experiments/training/train.py:46-85; but pads carry no loss, and gradients are clipped to norm 1)"
    )
    ops: ClassVar = {"steer": steer}

    def examples(self, data: FitData) -> int:
        return min(super().examples(data), self.config.updates * self.config.batch_size)

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        steers, info = self.learned_once(lm, data, lambda: self._trained(lm, data.labelled_texts or ()))
        values = [self.config.strength, 1.0][: len(steers["p1"])]
        params = {"values": values, "epsilon": self.config.epsilon}
        hook = Hook(lm.architecture.head, "pre", f"{self.name}.steer", steers, params)
        return Intervention(method=self.name, base=lm.fingerprint, hooks=(hook,), info=info)

    def _trained(self, lm: LanguageModel, texts: Sequence[LabelledText]) -> Learned:
        """P1 and P2, each [steers, width, rank], by the names p1 and p2."""
        import torch

        config, head = self.config, cast(Any, lm.architecture.module(lm.architecture.head))
        # 1. The texts with their values, so often as they are read.
        rows, cut = self._rows(lm, texts)
        # 2. The steers before training, [steers, width, rank].
        width = int(head.weight.shape[1])
        shape = (2 if config.dummy else 1, width, min(config.rank, width))
        generator = torch.Generator().manual_seed(self.seed)
        start = {name: torch.randn(shape, generator=generator) * config.initial_std for name in ("p1", "p2")}
        # 3. The training.
        training = TrainingConfig(
            schedule="constant", warmup_ratio=0.0, epochs=1, learning_rate=config.learning_rate,
            batch_size=config.batch_size, micro_batch_size=config.batch_size,
        )  # fmt: skip
        trained = optimise_tensors(
            lm, start, lambda epoch: rows, training, collate=partial(collated, pad=lm.tokenizer.pad_token_id or 0),
            loss=partial(self.loss, lm, plain_head(lm)), seed=self.seed, description=self.name,
        )  # fmt: skip
        steers = {name: tensor.delta.cpu() for name, tensor in trained.deltas.items()}
        return Learned(steers, {"rank": shape[-1], **trained.record, "cut_texts": cut})

    def _rows(self, lm: LanguageModel, texts: Sequence[LabelledText]) -> tuple[list[Row], int]:
        """(a seeded draw of the texts, taken in turn again where there are fewer than are read; how many were cut)."""
        toxic_labels(texts, self.name)  # there are some of either
        count = self.config.updates * self.config.batch_size
        drawn = random.Random(self.seed).sample(list(texts), min(len(texts), count))
        plain = [Instruction("", text.text, chat=False) for text in drawn]
        encoded = [encode(lm, text, self.config.max_length, end=False) for text in plain]
        rows = [Row(e, -1.0 if text.toxic else 1.0) for e, text in zip(encoded, drawn, strict=True) if len(e.ids) > 1]
        return list(islice(cycle(rows), count)), sum(e.cut for e in encoded)

    def loss(
        self, lm: LanguageModel, through_head: bool, trained: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The mean NLL of a token of a batch, each text steered by its value."""

        def before_head(states: Tensor, rows: Tensor) -> Tensor:  # [n, width], [n]
            values: list[float | Tensor] = [batch["values"][rows, None], 1.0]
            return moved(states.float(), trained["p1"], trained["p2"], values, self.config.epsilon).to(states.dtype)

        targets = batch["labels"][:, 1:] != IGNORED
        nlls, _ = token_nlls(lm.model, batch, targets, through_head=through_head, before_head=before_head)
        return nlls.mean(), {}


def collated(rows: Sequence[Row], pad: int) -> Batch:
    """The texts as `responses.collate` makes them, and their `values`, [rows]."""
    import torch

    return {**collate([row.text for row in rows], pad), "values": torch.tensor([row.value for row in rows])}
