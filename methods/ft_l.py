"""FT-L (Meng et al. 2022; EasyEdit's FT): tune the down-projection of one layer until the model gives one safe answer.

DINM's baseline: no constraint, no suffix, a layer that is not located. Checked against zjunlp/EasyEdit @ 06dca99, whose
files the sources below name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from detoxbench.config import knob
from detoxbench.data.examples import EditRecord, FitData, Role
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.activations import CachedPrefixForward
from detoxbench.fitting.depth import at_depth
from detoxbench.fitting.edit_records import edit_text, fitted_in_batches
from detoxbench.fitting.recomputation import recomputation
from detoxbench.fitting.row_optimiser import Losses, Tuned, tune
from detoxbench.interventions.channels import Dense, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method, Scope

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED_LAYER, PUBLISHED_DEPTH = 21, 32  # hparams/FT/llama-7b.yaml and mistral-7b.yaml
STOP_LOSS = 1e-2
"""There is no update once the loss is below this (ft_main.py:199, 214)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is tuned, towards what, and how far."""

    protocol: Literal["once", "per_record"] = knob(
        "once",
        "once: one edited model for the suite; per_record: one for each SafeEdit record, by its own safe response",
        source="as DINM's: arXiv 2403.14472, Tables 3 and 1",
    )
    instance: int = knob(0, "once: which edit record", source="arXiv 2403.14472, Table 14", ge=0)
    edit_batch: int = knob(4, "per_record: records edited at once (24 bytes a weight)", source="our choice", ge=1)
    layer: int | None = knob(None, "layer to tune; null: as deep as 21 of 32", source="hparams/FT/llama-7b.yaml: [21]")
    objective: Literal["target_new", "prompt_last"] = knob(
        "target_new",
        "target_new: each token of the answer by those before it; prompt_last: all by the prompt's last position",
        source="ft_main.py:186-194; prompt_last: objective_optimization of older versions and of gpt2-xl.yaml",
    )
    num_steps: int = knob(25, "updates at the most", source="llama-7b.yaml", ge=1)
    learning_rate: float = knob(5e-4, "rate of Adam", source="llama-7b.yaml", gt=0)
    weight_decay: float = knob(0.0, "times the weight, added to its gradient", source="llama-7b.yaml", ge=0)
    norm_constraint: float | None = knob(
        None, "furthest a weight moves; null: anywhere", source="llama-7b.yaml: false; gpt2-xl.yaml has 5e-4", gt=0
    )
    tune_bias: bool = knob(False, "tune the bias too, if there is one", source="llama-7b.yaml; gpt2-xl.yaml does")
    gradient_checkpointing: bool = recomputation()

    def __post_init__(self) -> None:
        if self.protocol == "per_record" and self.instance:
            raise ValueError("instance is for protocol=once: per_record edits with each record by itself")


class FTL(Method[Config]):
    """Tunes one MLP down-projection by Adam towards one safe answer: L = -1/T sum_t log p(y_t | x, y_<t).

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> record = db.EditRecord(
    ...     prompt="write an insult about the river elf .", safe="i am sorry , i can not .", unsafe="you are a toad ."
    ... )
    >>> edit = db.methods.create("ft_l", learning_rate=0.01).fit(lm, db.FitData(edit_records=[record]))
    >>> edit.weights[0].parameter
    'model.layers.2.mlp.down_proj.weight'
    >>> edit.info["loss"][-1] < edit.info["loss"][0]
    True
    """

    Config = Config
    fidelity = "equal to the released formula (zjunlp/EasyEdit, models/ft/ft_main.py:82-214; prompt_last: gpt2-xl.yaml)"
    paper = "Locating and Editing Factual Associations in GPT (arXiv 2202.05262), as a baseline of arXiv 2403.14472"
    licence = "MIT"

    @property
    def scope(self) -> Scope:
        return Scope(self.config.protocol)

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({Role.EDIT_RECORDS})

    def examples(self, data: FitData) -> int:
        return 1 if self.scope is Scope.ONCE else len(data.edit_records or ())

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return self._fitted(lm, [data])[0]

    def fit_many(self, lm: LanguageModel, records: Sequence[FitData], wanted: Sequence[int]) -> Iterator[Intervention]:
        yield from fitted_in_batches(records, wanted, self.config.edit_batch, lambda batch: self._fitted(lm, batch))

    def _fitted(self, lm: LanguageModel, data: Sequence[FitData]) -> list[Intervention]:
        """An intervention for each of `data`, all edited in one batch."""
        config = self.config
        records = [self._record(each) for each in data]
        layer = at_depth(lm, PUBLISHED_LAYER, PUBLISHED_DEPTH) if config.layer is None else config.layer
        module = lm.architecture.mlp_down(layer)
        parameters = dict(lm.model.named_parameters())
        names = [n for leaf in ("weight", "bias")[: 1 + config.tune_bias] if (n := f"{module}.{leaf}") in parameters]
        losses, cut = self._losses(lm, records, module)
        tuned = tune(
            lm, [names] * len(records), [{} for _ in records], losses, steps=config.num_steps,
            learning_rate=config.learning_rate, weight_decay=config.weight_decay, stop=STOP_LOSS,
            norm_constraint=config.norm_constraint, gradient_checkpointing=config.gradient_checkpointing,
            description="FT-L: updates",
        )  # fmt: skip
        return [self._intervention(lm, row, layer, cut_tokens) for row, cut_tokens in zip(tuned, cut, strict=True)]

    def _record(self, data: FitData) -> EditRecord:
        """The record that is edited towards."""
        data.require(self.needs, self.name)
        records = data.edit_records or ()
        if self.config.instance >= len(records):
            raise DetoxbenchError(f"method.instance exceeds the {len(records)} records of fit.edit_records")
        return records[self.config.instance]

    def _losses(self, lm: LanguageModel, records: Sequence[EditRecord], module: str) -> tuple[Losses, list[int]]:
        """The mean NLL of each record's safe answer, [records], with the parameters as they are; tokens that were cut.

        The answer stands behind a blank (ft_main.py:67-69); at prompt_last its ids are those of the blank and the
        answer by themselves, start token and all.
        """
        import torch
        from torch.nn.functional import cross_entropy

        at_prompt = self.config.objective == "prompt_last"
        texts = [edit_text(lm, r.prompt, " ", r.safe, " " if at_prompt else None) for r in records]
        labels = [torch.tensor(text.answer, device=lm.device) for text in texts]
        # The logits of a position predict the next token, so an answer's begin one position before it.
        read: list[tuple[list[int], range]] = []
        for record, text in zip(records, texts, strict=True):
            if at_prompt:
                ids = edit_text(lm, record.prompt, " ", "", None).ids
                read.append((ids, range(len(ids) - 1, len(ids))))
            else:
                read.append((text.ids, range(len(text.ids) - 1 - len(text.answer), len(text.ids) - 1)))
        forward = CachedPrefixForward(lm, read, {module})

        def losses() -> tuple[Tensor, dict[str, Tensor]]:
            rows = zip(forward.logits(), labels, strict=True)  # [T or 1, vocabulary], [T]
            loss = torch.stack([cross_entropy(logits.expand(len(y), -1), y) for logits, y in rows])
            return loss, {"loss": loss}

        return losses, [text.cut for text in texts]

    def _intervention(self, lm: LanguageModel, row: Tuned, layer: int, cut: int) -> Intervention:
        """The change that makes the model's parameters the tuned ones."""
        parameters = lm.model.get_parameter
        return Intervention(
            method=self.name,
            base=lm.fingerprint,
            weights=tuple(Weight(n, Dense(w - parameters(n).detach().float()).cpu()) for n, w in row.values.items()),
            info={**row.curves, "layer": layer, "delta_norm": row.moved, "cut_tokens": cut},
        )
