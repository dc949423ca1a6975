"""Different interventions for the requests of different records, in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.apply import Applied, require_base
from detoxbench.interventions.channels import LowRank, Prompt, Weight
from detoxbench.interventions.channels.logits import put_on
from detoxbench.interventions.channels.weights import edits, require_eager
from detoxbench.interventions.intervention import Intervention
from detoxbench.interventions.per_row import is_linear, per_row_weights

if TYPE_CHECKING:
    from detoxbench.model.model import Model


def routable(lm: Model, intervention: Intervention) -> bool:
    """Whether it can differ from row to row: it acts through weights of linear maps, prompts and logits only, and what
    operations on the logits carry changes weights by low-rank side paths alone. Others are applied alone."""
    carried = _carried(intervention)
    changed = (*intervention.weights, *carried)
    return (
        all(part.by_row for _, part in intervention.parts())
        and all(is_linear(lm, w.parameter.rpartition(".")[0]) and not w.tied for w in changed)
        and all(isinstance(w.delta, LowRank) for w in carried)
    )


def _carried(intervention: Intervention) -> list[Weight]:
    """The changes of weights that its operations on the logits carry."""
    return [w for op in intervention.logits for carried in op.under.values() for w in carried.weights]


@dataclass(frozen=True)
class Route:
    """Which intervention is in force for the rows of a record."""

    interventions: Mapping[str, Intervention]
    variants: Mapping[str, int]
    _set_rows: Callable[[Sequence[int]], None]

    def variant(self, record: str | None) -> int:
        """A number that is equal for two records exactly if the same change is in force for both."""
        if record is None or record not in self.variants:
            raise DetoxbenchError(f"no intervention is routed to record '{record}'; routed are {len(self.variants)}")
        return self.variants[record]

    def method(self, record: str) -> str:
        """The method of the record's intervention."""
        return self.interventions[record].method

    def prompts(self, record: str | None) -> tuple[Prompt, ...]:
        """The record's rewritings of prompts, innermost first."""
        self.variant(record)
        return self.interventions[str(record)].prompts

    def set_rows(self, records: Sequence[str]) -> None:
        """Say of which record each row of the coming forward passes is."""
        self._set_rows([self.variant(record) for record in records])


def routed(lm: Model, interventions: Mapping[str, Intervention]) -> Applied:
    """Put on each record's intervention for the rows of that record, all at once (a context); the engine tells rows
    apart by `Request.record`. What is on already (`applied`) is below all of them; nothing can be put on top.

    Every row is computed with the very tensors and side paths that `applied` would put there. Entering raises
    DetoxbenchError like `applied`, and for an intervention that is not `routable`.
    """
    methods = sorted({i.method for i in interventions.values()})
    return Applied(lm.model, ", ".join(methods), lambda undo: _route(lm, interventions, undo))


def _route(lm: Model, interventions: Mapping[str, Intervention], undo: ExitStack) -> None:
    if lm.in_force.route is not None:
        raise DetoxbenchError("interventions are routed already: leave that block first")
    if lm.in_force.companions:
        raise DetoxbenchError(
            f"'{'+'.join(lm.in_force.methods)}' carries interventions, and nothing that differs by record can stand on "
            "top of it: compose both into each record's intervention"
        )
    require_eager(lm)
    distinct = {id(i): i for i in interventions.values()}
    for intervention in distinct.values():
        require_base(lm, intervention)
        intervention.require_finite()
        if not routable(lm, intervention):
            raise DetoxbenchError(
                f"an intervention of '{intervention.method}' changes more than prompts, logits and linear maps: it "
                "cannot differ by row, apply it alone"
            )
    place = {key: i for i, key in enumerate(distinct)}
    edited = [list(edits(lm, i.weights)) for i in distinct.values()]
    values = [{e.parameter: e.value for e in changes if e.value is not None} for changes in edited]
    side_paths = [{e.parameter: e.side_path for e in changes if e.side_path is not None} for changes in edited]
    for weight in (w for i in distinct.values() for w in _carried(i)):  # found out by a pass of the model as it is
        lm.architecture.called_for_text(weight.parameter.rpartition(".")[0])
    set_rows = undo.enter_context(per_row_weights(lm, values, side_paths))
    for variant, intervention in enumerate(distinct.values()):
        for op in intervention.logits:
            put_on(lm, op, undo, variant)
    undo.callback(setattr, lm.in_force, "route", None)
    lm.in_force.route = Route(interventions, {record: place[id(i)] for record, i in interventions.items()}, set_rows)
