"""DINM (Wang et al., ACL 2024): find the layer where a safe and an unsafe response differ most, and tune the
down-projection of its MLP, for a few steps, until the model gives the safe response to one attacked prompt.
Checked against zjunlp/EasyEdit @ 14cea82, whose files the sources below name. docs/dinm.md has a table of the switches.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from detoxbench.config import knob, resolve_switches, runtime, switch, switched_as
from detoxbench.data.examples import EditRecord, FitData, Role
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.activations import CachedPrefixForward, recorded
from detoxbench.fitting.edit_records import EditText, edit_text, fitted_in_batches
from detoxbench.fitting.recomputation import recomputation
from detoxbench.fitting.responses import IGNORED
from detoxbench.fitting.row_optimiser import Losses, tune
from detoxbench.interventions.channels import Dense, Prompt, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.interventions.per_row import per_row_weights
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method, Scope

if TYPE_CHECKING:
    from torch import Tensor

_Parameters = dict[str, "Tensor"]
"""Name -> value in fp32."""
EARLY_STOP_LOSS = 1e-4
"""There is no update once the total loss is below this (dinm_main.py:151)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is edited, towards what, and how far."""

    protocol: Literal["once", "per_record"] = knob(
        "once",
        "once: one edited model for the suite; per_record: one for each SafeEdit record, by its own safe response",
        source="once: paper Table 3; per_record: Table 1, safety_editor.py:186-217",
    )
    instance: int = knob(0, "once: which edit record", source="paper Table 14: three instances", ge=0)
    edits: int = knob(1, "once: records edited into the model, one upon the other", source="paper C.4: one", ge=1)
    suffix: str = knob(
        "If the user's request is reasonable, give the correct answer. Please give the right response:",
        "put behind every chat prompt and a space; may be empty",
        source="hparams/DINM/*.yaml (SyPrompt1)", text=True,
    )  # fmt: skip
    edit_batch: int = knob(4, "per_record: records edited at once (24 bytes a weight)", source="our choice", ge=1)
    num_steps: int = knob(10, "updates at the most; 0 is the suffix alone", source="llama-7b.yaml", ge=0)
    learning_rate: float = knob(5e-4, "rate of Adam", source="llama-7b.yaml; mistral-7b.yaml has 1e-5", gt=0)
    weight_decay: float = knob(0.0, "times the weight, added to its gradient", source="llama-7b.yaml", ge=0)
    kl_factor: float = knob(0.1, "weight of the edit loss (the KL has 1)", source="llama-7b.yaml; paper c_edit", ge=0)
    norm_constraint: float | None = knob(None, "furthest a weight moves; null: anywhere", source="llama-7b.yaml", gt=0)
    layers: tuple[int, ...] = knob((), "layers to tune; empty: locate one", source="llama-7b.yaml: []")
    location_padding: Literal["right", "left"] = knob("right", "pads of the shorter response", source="paper C.2")
    location_mask: Literal["none", "intersection"] = knob(
        "none", "compare all positions, pads too, or those that both responses have", source="safety_editor.py:99-126"
    )
    last_hidden: Literal["post_norm", "pre_norm"] = knob(
        "post_norm", "the last layer's state: behind or before the final norm", source="safety_editor.py:99-126"
    )
    gradient_checkpointing: bool = recomputation()
    fidelity: Literal["default", "reference", "paper"] = runtime("default", "what switches that are null stand for")
    relocate: Literal["per_record", "first_record"] | None = switch(
        "switch: locate for every record, or keep the first one's layer",
        source="safety_editor.py:189-190",
        default="per_record",
        reference="first_record",
        paper="per_record",
    )
    kl_grad: bool | None = switch(
        "switch: the KL has a gradient",
        source="dinm_main.py:141-142; eq. 10",
        default=False,
        reference=False,
        paper=True,
    )
    kl_direction: Literal["base_to_edited", "edited_to_base"] | None = switch(
        "switch: KL(base || edited) or KL(edited || base)",
        source="losses.py:20-26; eq. 9",
        default="base_to_edited",
        reference="base_to_edited",
        paper="edited_to_base",
    )
    kl_positions: Literal["answer", "next_token"] | None = switch(
        "switch: KL along the harmless answer, or where it begins",
        source="dinm_main.py:108-123; eq. 9",
        default="answer",
        reference="answer",
        paper="next_token",
    )
    label_bos: bool | None = switch(
        "switch: labels are the target tokenised alone, start token and all",
        source="dinm_main.py:129",
        default=True,
        reference=True,
        paper=False,
    )
    double_space: bool | None = switch(
        "switch: two spaces before the target",
        source="dinm_main.py:75-78,128",
        default=True,
        reference=True,
        paper=False,
    )
    tune_bias: bool | None = switch(
        "switch: tune the bias too, if there is one",
        source="gpt2-xl.yaml: no .weight",
        default=True,
        reference=True,
        paper=False,
    )

    def __post_init__(self) -> None:
        resolve_switches(self)
        if self.protocol == "per_record" and (self.instance or self.edits > 1):
            raise ValueError("instance and edits are for protocol=once: per_record edits with each record by itself")


class DINM(Method[Config]):
    """Edits one MLP down-projection towards a safe response, and puts a suffix behind every chat prompt.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> record = db.EditRecord(
    ...     prompt="write an insult about the river elf .", safe="i am sorry , i can not .", unsafe="you are a toad ."
    ... )
    >>> edit = db.methods.create("dinm", learning_rate=0.01).fit(lm, db.FitData(edit_records=[record]))
    >>> edit.weights[0].parameter == f"model.layers.{edit.info['located_layer']}.mlp.down_proj.weight"
    True
    >>> edit.info["edit_loss"][-1] < edit.info["edit_loss"][0]
    True
    """

    Config = Config
    paper = "Detoxifying Large Language Models via Knowledge Editing (arXiv 2403.14472)"
    licence = "MIT"

    @property
    def fidelity(self) -> str:
        config = self.config
        if not config.num_steps:
            return "ours (control: the published suffix without the edit)"
        if config.edits > 1:
            return "ours (edits one upon the other; the released loss mixes several requests up)"
        if switched_as(config, "reference", but=("relocate",)):
            anew = config.protocol == "per_record" and config.relocate == "per_record"
            more = "; the layer is located for every record, as in the paper" if anew else ""
            return (
                f"equal to the released code (golden fixture tests/golden/dinm: layers, losses, weights, texts{more})"
            )
        if switched_as(config, "paper"):
            return "cannot be checked here (the paper's equations 8 to 11; no released code computes them)"
        return "ours (switches of the paper and of the released code mixed)"

    @property
    def scope(self) -> Scope:
        return Scope(self.config.protocol)

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({Role.EDIT_RECORDS}) if self.config.num_steps else frozenset()

    def controls(self) -> Sequence[Any]:  # much of DINM's gain is its suffix
        suffix_only = Config(num_steps=0, suffix=self.config.suffix)
        return (suffix_only,) if self.config.num_steps and self.config.suffix else ()

    def examples(self, data: FitData) -> int:
        edits = self.config.edits if self.scope is Scope.ONCE else len(data.edit_records or ())
        return edits if self.config.num_steps else 0

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return self._fitted(lm, [data], self.config.layers)[0]

    def fit_many(self, lm: LanguageModel, records: Sequence[FitData], wanted: Sequence[int]) -> Iterator[Intervention]:
        layers, size = self.config.layers, self.config.edit_batch
        if self.config.relocate == "first_record" and self.config.num_steps and not layers:
            (distances,) = self.distances(lm, (records[0].edit_records or ())[:1], [{}])
            layers = (distances.index(max(distances)),)
        yield from fitted_in_batches(records, wanted, size, lambda batch: self._fitted(lm, batch, layers))

    def _fitted(self, lm: LanguageModel, data: Sequence[FitData], layers: tuple[int, ...]) -> list[Intervention]:
        """An intervention for each of `data`, all edited in one batch, at the same or each at its located layer."""
        config = self.config
        for each in data:
            each.require(self.needs, self.name)
            if config.num_steps and config.instance + config.edits > (available := len(each.edit_records or ())):
                raise DetoxbenchError(f"method.instance and .edits exceed the {available} records of fit.edit_records")
        edited: list[_Parameters] = [{} for _ in data]
        logs: list[list[dict[str, Any]]] = [[] for _ in data]
        for k in range(config.edits if config.num_steps else 0):
            records = [(each.edit_records or ())[config.instance + k] for each in data]
            located: list[dict[str, Any]] = [{} for _ in data]
            if not layers:
                first = [log[0]["distances"] for log in logs] if k and config.relocate == "first_record" else None
                located = _located(lm, records, first or self.distances(lm, records, edited))
            tuned_layers = [layers or (where["located_layer"],) for where in located]
            for log, where, edit in zip(logs, located, self._edit(lm, records, tuned_layers, edited), strict=True):
                log.append(where | edit)
        return [self._intervention(lm, parameters, log) for parameters, log in zip(edited, logs, strict=True)]

    def _intervention(self, lm: LanguageModel, edited: _Parameters, log: list[dict[str, Any]]) -> Intervention:
        """The change that makes the model's parameters the `edited` ones, and the suffix."""
        suffix, parameters = self.config.suffix, lm.model.get_parameter
        return Intervention(
            method=self.name,
            base=lm.fingerprint,
            weights=tuple(Weight(n, Dense(w - parameters(n).detach().float()).cpu()) for n, w in edited.items()),
            prompts=(Prompt(suffix=f" {suffix}"),) if suffix else (),
            info=log[0] if len(log) == 1 else {f"edit {i}": edit for i, edit in enumerate(log)},
        )

    def distances(
        self, lm: LanguageModel, records: Sequence[EditRecord], edited: Sequence[_Parameters]
    ) -> list[list[float]]:
        """For each record and layer the Frobenius norm of the difference between its states for both responses, which
        are read alone, without prompt and suffix, position by position (safety_editor.py:99-126). `edited` replaces
        parameters. Raises DetoxbenchError where a state is not finite."""
        import torch

        # 1. One batch: row 2i is record i's safe response, row 2i + 1 its unsafe one.
        responses = [lm.tokens(text)[: lm.context] for r in records for text in (r.safe, r.unsafe)]
        widths = [max(len(responses[i]), len(responses[i ^ 1])) for i in range(len(responses))]  # of the pair
        ids = torch.full((len(responses), max(widths)), _end(lm), device=lm.device)  # [2 records, tokens]
        mask = torch.zeros_like(ids)
        for i, response in enumerate(responses):
            begin = widths[i] - len(response) if self.config.location_padding == "left" else 0
            filled = slice(begin, begin + len(response))
            ids[i, filled], mask[i, filled] = torch.tensor(response), 1
        # 2. The positions that are compared.
        pairs = mask.view(len(records), 2, -1)
        compared = pairs.all(1) if self.config.location_mask == "intersection" else pairs.any(1)  # [records, tokens]
        # 3. The states behind every layer, [2 records, tokens, hidden].
        sites = list(lm.architecture.layers)
        if self.config.last_hidden == "post_norm":  # as in `hidden_states` of transformers
            sites[-1] = lm.architecture.final_norm
        with torch.no_grad(), per_row_weights(lm, edited) as set_rows, recorded(lm, sites) as seen:
            set_rows([i // 2 for i in range(len(responses))])
            lm.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        states = [seen[site].float() for site in sites]
        # 4. Their distance.
        norms = [[float((s[2 * i] - s[2 * i + 1])[c].norm()) for s in states] for i, c in enumerate(compared)]
        if not all(math.isfinite(norm) for of_record in norms for norm in of_record):
            raise DetoxbenchError(f"the hidden states of '{lm.name}' are not finite in {lm.dtype}: change model.dtype")
        return norms

    def _edit(
        self,
        lm: LanguageModel,
        records: Sequence[EditRecord],
        layers: Sequence[Sequence[int]],
        edited: list[_Parameters],
    ) -> list[dict[str, Any]]:
        """Tune each record's layers towards its safe response (dinm_main.py:60-175), and put the parameters, in fp32,
        into its place in `edited`. Gives what was measured of each record: losses are those before each update."""
        config = self.config
        # 1. What is tuned: the down-projections of each record's layers.
        down_projections = [[lm.architecture.mlp_down(layer) for layer in of_record] for of_record in layers]
        modules = {path for paths in down_projections for path in paths}
        parameters = dict(lm.model.named_parameters())
        leaf_names = ("weight", "bias") if config.tune_bias else ("weight",)
        names = [
            [n for p in paths for leaf in leaf_names if (n := f"{p}.{leaf}") in parameters]
            for paths in down_projections
        ]
        # 2. What is read before every update.
        edit_batch = self._edit_batch(lm, records, modules)
        constraint_batch = self._constraint_batch(lm, records, modules)
        # 3. The updates.
        tuned = tune(
            lm, names, edited, self._losses(edit_batch, constraint_batch), steps=config.num_steps,
            learning_rate=config.learning_rate, weight_decay=config.weight_decay, stop=EARLY_STOP_LOSS,
            norm_constraint=config.norm_constraint, gradient_checkpointing=config.gradient_checkpointing,
            description="DINM: updates",
        )  # fmt: skip
        for values, row in zip(edited, tuned, strict=True):
            values.update(row.values)
        cut = [float(a + b) for a, b in zip(edit_batch.cut, constraint_batch.cut, strict=True)]
        return [t.curves | {"delta_norm": t.moved, "cut_tokens": n} for t, n in zip(tuned, cut, strict=True)]

    def _edit_batch(self, lm: LanguageModel, records: Sequence[EditRecord], modules: Collection[str]) -> _EditBatch:
        """The attacked prompts with their safe responses (dinm_main.py:75-78, 128-130)."""
        import torch

        space = "  " if self.config.double_space else " "
        texts = [self._tokens(lm, record.prompt, space, record.safe, " ") for record in records]
        labels = [[IGNORED if token == _end(lm) else token for token in text.answer] for text in texts]
        # The logits of a position predict the next token, so a response's begin one position before it.
        wanted = [range(len(t.ids) - 1 - len(t.answer), len(t.ids) - 1) for t in texts]
        forward = CachedPrefixForward(lm, [(t.ids, w) for t, w in zip(texts, wanted, strict=True)], modules)
        return _EditBatch(forward, [torch.tensor(y, device=lm.device) for y in labels], [t.cut for t in texts])

    def _constraint_batch(
        self, lm: LanguageModel, records: Sequence[EditRecord], modules: Collection[str]
    ) -> _ConstraintBatch:
        """The harmless prompts with their answers, or alone where the KL is taken of the next token (lines 108-123)."""
        import torch

        with_answer = self.config.kl_positions == "answer"
        pairs = [(r.constraint_prompt or r.prompt, r.constraint_answer if with_answer else "") for r in records]
        texts = [self._tokens(lm, prompt, " ", answer, "") for prompt, answer in pairs]
        wanted = [range(len(t.ids) - (len(t.answer) or 1), len(t.ids)) for t in texts]  # as many last positions
        forward = CachedPrefixForward(lm, [(t.ids, w) for t, w in zip(texts, wanted, strict=True)], modules)
        present = torch.tensor([float(r.constraint_prompt != "") for r in records], device=lm.device)
        return _ConstraintBatch(forward, present, [t.cut for t in texts])

    def _losses(self, edit_batch: _EditBatch, constraint_batch: _ConstraintBatch) -> Losses:
        """c_edit L_e + L_c [records] (dinm_main.py:147; paper, eq. 10), and both, with the parameters as they are."""
        import torch

        config = self.config
        base: list[Tensor] = []  # log-probabilities before the first update, for each record [T, vocabulary]

        def losses() -> tuple[Tensor, dict[str, Tensor]]:
            edit_loss = _edit_loss(edit_batch.forward.logits(), edit_batch.labels)
            with torch.set_grad_enabled(bool(config.kl_grad)):
                edited = [logits.log_softmax(-1) for logits in constraint_batch.forward.logits()]
                base.extend(p.detach() for p in edited[len(base) :])
                sides = (base, edited) if config.kl_direction == "base_to_edited" else (edited, base)
                kl = constraint_batch.present * _constraint_loss(*sides)
            return config.kl_factor * edit_loss + kl, {"edit_loss": edit_loss, "kl": kl}

        return losses

    def _tokens(self, lm: LanguageModel, prompt: str, space: str, answer: str, before_label: str) -> EditText:
        """Prompt, suffix and answer (`edit_text`); with `label_bos`, raw text's labels are tokenised by themselves."""
        asked = f"{prompt} {self.config.suffix}" if self.config.suffix else prompt
        return edit_text(lm, asked, space, answer, before_label if self.config.label_bos else None)


class _EditBatch(NamedTuple):
    """For each record its attacked prompt and safe response."""

    forward: CachedPrefixForward
    labels: list[Tensor]
    """Token ids of each response, [tokens], `IGNORED` where one carries no loss."""
    cut: list[int]


class _ConstraintBatch(NamedTuple):
    """For each record a harmless prompt, on whose answer the model shall stay as it is."""

    forward: CachedPrefixForward
    present: Tensor
    """[records]: 1; 0 for a record that has none, whose attacked prompt stands in its place."""
    cut: list[int]


def _edit_loss(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """L_e = -1/T sum_t log P_edited(y_t | X, S, y_<t), the mean NLL of the safe response y (losses.py:60-65, 112-116).

    For each record logits [T, vocabulary] and labels [T]; tokens that are `IGNORED` do not count in T. Gives [records].
    """
    import torch
    from torch.nn.functional import cross_entropy

    return torch.stack(
        [cross_entropy(row_logits, y, ignore_index=IGNORED) for row_logits, y in zip(logits, labels, strict=True)]
    )


def _constraint_loss(log_p: Sequence[Tensor], log_q: Sequence[Tensor]) -> Tensor:
    """L_c = 1/T sum_t KL(P_t || Q_t), KL(P || Q) = sum_v P(v) (log P(v) - log Q(v)) (losses.py:20-26; paper, eq. 9).

    For each record both are log-probabilities [T, vocabulary]. Gives [records].
    """
    import torch

    return torch.stack([(p.exp() * (p - q)).sum(-1).mean() for p, q in zip(log_p, log_q, strict=True)])


def _located(
    lm: LanguageModel, records: Sequence[EditRecord], distances: Sequence[list[float]]
) -> list[dict[str, Any]]:
    """For each record the layer where its responses differ most (of equal ones the first), with what is recorded."""
    return [
        {"located_layer": d.index(max(d)), "distances": d, "cut_responses": float(_cut_responses(lm, record))}
        for record, d in zip(records, distances, strict=True)
    ]


def _cut_responses(lm: LanguageModel, record: EditRecord) -> int:
    """How many of both responses are longer than the context, so that layers are located by their beginnings."""
    limit = lm.context
    return 0 if limit is None else sum(len(lm.tokens(text)) > limit for text in (record.safe, record.unsafe))


def _end(lm: LanguageModel) -> int:  # the released code pads with it
    return lm.start_id if lm.tokenizer.eos_token_id is None else int(lm.tokenizer.eos_token_id)
