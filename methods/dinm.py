"""DINM (Wang et al., ACL 2024): find the layer where a safe and an unsafe response differ most, and tune the
down-projection of its MLP, for a few steps, until the model gives the safe response to one attacked prompt.
Checked against zjunlp/EasyEdit @ 14cea82, whose files the sources below name. docs/dinm.md has a table of the switches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from detoxbench.config import knob, resolve_switches, runtime, switch
from detoxbench.data.examples import EditRecord, FitData, Role
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.activations import CachedPrefixForward, recorded
from detoxbench.fitting.row_optimiser import tune
from detoxbench.interventions.channels import Dense, Prompt, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.interventions.routing import per_row_weights
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method, Scope

if TYPE_CHECKING:
    from torch import Tensor

_Weights = dict[str, "Tensor"]
_Tokens = tuple[list[int], list[int], int]
_STOP = 1e-4  # no update once the total loss is below this (dinm_main.py:151)


@dataclass(frozen=True, kw_only=True)
class Config:
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
    """Edits one MLP down-projection towards a safe response, and puts a suffix behind every chat prompt."""

    Config = Config
    paper = "Detoxifying Large Language Models via Knowledge Editing (arXiv 2403.14472)"
    licence = "MIT"

    @property
    def scope(self) -> Scope:
        return Scope(self.config.protocol)

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({Role.EDIT_RECORDS}) if self.config.num_steps else frozenset()

    def controls(self) -> Sequence[Any]:  # much of DINM's gain is its suffix
        alone = Config(num_steps=0, suffix=self.config.suffix)
        return (alone,) if self.config.num_steps and self.config.suffix else ()

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
        made: dict[int, list[Intervention]] = {}
        for i in wanted:  # batches are cut from all records: who is in one does not depend on who is wanted
            if i // size not in made:
                made = {i // size: self._fitted(lm, records[i // size * size :][:size], layers)}
            yield made[i // size][i % size]

    def _fitted(self, lm: LanguageModel, data: Sequence[FitData], layers: tuple[int, ...]) -> list[Intervention]:
        """An intervention for each of `data`, all edited in one batch, at the same or each at its located layer."""
        config = self.config
        for each in data:
            each.require(self.needs, self.name)
            if config.num_steps and config.instance + config.edits > (there := len(each.edit_records or ())):
                raise DetoxbenchError(f"method.instance and .edits exceed the {there} records of fit.edit_records")
        edited: list[_Weights] = [{} for _ in data]
        logs: list[list[dict[str, Any]]] = [[] for _ in data]
        for k in range(config.edits if config.num_steps else 0):
            records = [(each.edit_records or ())[config.instance + k] for each in data]
            found: list[dict[str, Any]] = [{} for _ in data]
            if not layers:
                first = [log[0]["distances"] for log in logs] if k and config.relocate == "first_record" else None
                distances = first or self.distances(lm, records, edited)
                cut = [float(_cut_responses(lm, record)) for record in records]
                found = [
                    {"located_layer": d.index(max(d)), "distances": d, "cut_responses": n}
                    for d, n in zip(distances, cut, strict=True)
                ]
            here = [layers or (each["located_layer"],) for each in found]
            for log, located, edit in zip(logs, found, self._edit(lm, records, here, edited), strict=True):
                log.append(located | edit)
        return [
            Intervention(
                method=self.name,
                base=lm.fingerprint,
                weights=tuple(Weight(n, Dense(w - lm.model.get_parameter(n).detach().float())) for n, w in new.items()),
                prompts=(Prompt(suffix=f" {config.suffix}"),) if config.suffix else (),
                info=log[0] if len(log) == 1 else {f"edit {i}": edit for i, edit in enumerate(log)},
            )
            for new, log in zip(edited, logs, strict=True)
        ]

    def distances(
        self, lm: LanguageModel, records: Sequence[EditRecord], edited: Sequence[_Weights]
    ) -> list[list[float]]:
        """For each record and layer the Frobenius norm of the difference between its states for both responses, which
        are read alone, without prompt and suffix, position by position (safety_editor.py:99-126). `edited` replaces
        parameters. Raises DetoxbenchError where a state is not finite."""
        import torch

        rows = [lm.tokens(t)[: lm.context] for r in records for t in (r.safe, r.unsafe)]
        widths = [max(len(rows[i]), len(rows[i ^ 1])) for i in range(len(rows))]  # a pair's; the rest does not count
        ids = torch.full((len(rows), max(widths)), _end(lm), device=lm.device)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            begin = widths[i] - len(row) if self.config.location_padding == "left" else 0
            here = slice(begin, begin + len(row))
            ids[i, here], mask[i, here] = torch.tensor(row), 1
        pairs = mask.view(len(records), 2, -1)
        compared = pairs.all(1) if self.config.location_mask == "intersection" else pairs.any(1)
        sites = list(lm.architecture.layers)
        if self.config.last_hidden == "post_norm":  # as in `hidden_states` of transformers
            sites[-1] = lm.architecture.final_norm
        with torch.no_grad(), per_row_weights(lm, edited) as set_rows, recorded(lm, sites) as seen:
            set_rows([i // 2 for i in range(len(rows))])
            lm.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        states = [seen[site].float() for site in sites]
        found = [[float((s[2 * i] - s[2 * i + 1])[c].norm()) for s in states] for i, c in enumerate(compared)]
        if not all(math.isfinite(distance) for distances in found for distance in distances):
            raise DetoxbenchError(f"the hidden states of '{lm.name}' are not finite in {lm.dtype}: change model.dtype")
        return found

    def _edit(
        self, lm: LanguageModel, records: Sequence[EditRecord], layers: Sequence[Sequence[int]], edited: list[_Weights]
    ) -> list[dict[str, Any]]:
        """Tune each record's layers towards its safe response (dinm_main.py:60-175), in fp32 copies that `edited` then
        holds. The losses are those before each update."""
        import torch
        from torch.nn.functional import cross_entropy

        config, space = self.config, "  " if self.config.double_space else " "
        asked = [self._tokens(lm, r.prompt, space, r.safe, " ") for r in records]
        labels = [torch.tensor([-100 if i == _end(lm) else i for i in own], device=lm.device) for _, own, _ in asked]
        pairs = [(r.constraint_prompt or r.prompt, r.constraint_answer) for r in records]
        harmless = [self._tokens(lm, q, " ", a if config.kl_positions == "answer" else "", "") for q, a in pairs]
        with_kl = torch.tensor([float(r.constraint_prompt != "") for r in records], device=lm.device)
        there, leaves = dict(lm.model.named_parameters()), ("weight", "bias") if config.tune_bias else ("weight",)
        downs = [[lm.architecture.mlp_down(layer) for layer in own] for own in layers]
        names = [[n for path in own for leaf in leaves if (n := f"{path}.{leaf}") in there] for own in downs]
        tuning = {path for own in downs for path in own}
        # The logits of a position tell the next token, so the last ones tell none.
        towards = CachedPrefixForward(
            lm, [(i, range(len(i) - 1 - len(own), len(i) - 1)) for i, own, _ in asked], tuning
        )
        kept = CachedPrefixForward(lm, [(i, range(len(i) - (len(own) or 1), len(i))) for i, own, _ in harmless], tuning)
        base: list[Tensor] = []

        def losses() -> tuple[Tensor, dict[str, Tensor]]:
            parts = zip(towards.logits(), labels, strict=True)
            edit_loss = torch.stack([cross_entropy(logits, own) for logits, own in parts])
            with torch.set_grad_enabled(bool(config.kl_grad)):
                now = [logits.log_softmax(-1) for logits in kept.logits()]
                base.extend(p.detach() for p in now[len(base) :])  # before the first update
                of, to = (base, now) if config.kl_direction == "base_to_edited" else (now, base)
                kl = with_kl * torch.stack([(p.exp() * (p - q)).sum(-1).mean() for p, q in zip(of, to, strict=True)])
            return config.kl_factor * edit_loss + kl, {"edit_loss": edit_loss, "kl": kl}

        tuned = tune(
            lm, names, edited, losses, steps=config.num_steps, learning_rate=config.learning_rate, stop=_STOP,
            weight_decay=config.weight_decay, reach=config.norm_constraint, description="DINM: updates",
        )  # fmt: skip
        for now, own in zip(edited, tuned, strict=True):
            now.update(own.values)
        cuts = [float(cut + other) for (*_, cut), (*_, other) in zip(asked, harmless, strict=True)]
        return [t.curves | {"delta_norm": t.moved, "cut_tokens": cut} for t, cut in zip(tuned, cuts, strict=True)]

    def _tokens(self, lm: LanguageModel, prompt: str, space: str, answer: str, lead: str) -> _Tokens:
        """Ids of prompt, suffix and answer; the answer's; how many were cut in front to fit the context.
        In raw text `space` stands before the answer, whose ids are with `label_bos` those of `lead` + answer alone, and
        otherwise those behind the prompt's. Behind a chat template stands what the template puts there.
        """
        text, raw = lm.rendered(f"{prompt} {self.config.suffix}" if self.config.suffix else prompt, chat=True)
        gap = space if lm.template is None else lm.template.turn[0]
        before, ids = lm.joined(text, gap + answer if answer else "", special=raw)
        if raw and self.config.label_bos:
            own = lm.tokens(lead + answer)
        else:
            own = ids[next((i for i, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), len(before)) :]
        cut = max(0, len(ids) - (lm.context or len(ids)))
        if len(own) >= len(ids) - cut:
            raise DetoxbenchError(f"a response of {len(own)} tokens leaves no room for its prompt in '{lm.name}'")
        return ids[cut:], own, cut


def _cut_responses(lm: LanguageModel, record: EditRecord) -> int:
    """How many of both responses are longer than the context, so that layers are located by their beginnings."""
    limit = lm.context
    return 0 if limit is None else sum(len(lm.tokens(text)) > limit for text in (record.safe, record.unsafe))


def _end(lm: LanguageModel) -> int:  # the released code pads with it
    return lm.start_id if lm.tokenizer.eos_token_id is None else int(lm.tokenizer.eos_token_id)
