"""What a whole checkpoint changes of a model, as deltas: low-rank where they are that, else dense."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.low_rank import low_rank
from detoxbench.interventions.channels import Dense, LowRank, Weight
from detoxbench.interventions.channels.weights import full, require_plain
from detoxbench.progress import track

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.lm import LanguageModel

EXACT = 2.0**-23
"""A change is low-rank if its factors restore each weight to this share of its matrix's largest: a unit in the last
place of float32 there, which is as much as merging a LoRA in float32 rounds away."""


class Difference(NamedTuple):
    """The change of one parameter, and the furthest that a restored weight is off, as a share of the largest one."""

    weight: Weight
    off: float


def differences(lm: LanguageModel, other: Any, description: str) -> tuple[tuple[Weight, ...], dict[str, Any]]:
    """The changes that make `lm`'s weights those of `other`, a model of the same class and shapes, and what was seen.

    A parameter that is tied to another is changed with it. Raises DetoxbenchError where the parameters do not agree in
    names and shapes.
    """
    mine, theirs = (dict(model.named_parameters()) for model in (lm.model, other))
    shapes = [{name: tuple(p.shape) for name, p in parameters.items()} for parameters in (mine, theirs)]
    if odd := sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()}):
        here, there = (of.get(odd[0], "not there") for of in shapes)
        raise DetoxbenchError(f"'{odd[0]}' is {there} in the checkpoint and {here} in '{lm.name}': they are two shapes")
    for name, parameter in mine.items():
        require_plain(lm, name, parameter)
    found = list(_differing(lm, mine, theirs, description))
    ranks = [len(d.weight.delta.a) for d in found if isinstance(d.weight.delta, LowRank)]
    info = {
        "changed_tensors": len(found),
        "unchanged_tensors": len(mine) - len(found),
        "low_rank_tensors": len(ranks),
        "largest_rank": max(ranks, default=None),
        "furthest_off": max((d.off for d in found), default=0.0),
    }
    return tuple(d.weight for d in found), info


def _differing(
    lm: LanguageModel, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], description: str
) -> Iterator[Difference]:
    import torch

    shared = _shared(lm)
    for name in track(list(mine), description):
        before, after = mine[name].detach(), theirs[name].detach().to(mine[name].device)
        if torch.equal(before, after):
            continue
        before, after = before.float(), after.float()
        largest = float(after.abs().max()) or 1.0
        module = name.rpartition(".")[0]
        transposed = lm.architecture.transposed(module)
        delta: Dense | LowRank | None = None
        if name not in shared and _linear(lm, name):
            change = after - before
            delta = low_rank(change.T if transposed else change, EXACT * largest)
        if delta is None:
            change = after - before
            # Where a difference is larger than both weights its last digit is lost: the change that restores more.
            delta = Dense((change + (after - (before + change))).cpu())
        off = float((before + full(delta, transposed, before.device) - after).abs().max()) / largest
        yield Difference(Weight(name, delta, tied=name in shared), off)


def _shared(lm: LanguageModel) -> set[str]:
    """Names of the parameters that are tied to others."""
    names: dict[int, list[str]] = {}
    for name, parameter in lm.model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter.data_ptr(), []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}


def _linear(lm: LanguageModel, name: str) -> bool:
    """Whether a parameter is the weight of a linear map."""
    from torch import nn

    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and (
        isinstance(lm.architecture.module(module), nn.Linear) or lm.architecture.transposed(module)
    )
