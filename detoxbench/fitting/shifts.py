"""A constant shift of the residual stream behind a layer: as a hook, or as a bias where that is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.activations import recorded
from detoxbench.interventions.channels import Dense, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.model.architecture import PASS_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from detoxbench.lm import LanguageModel

TOLERANCE = 0.05
"""How far, as a share of its length, a shift may be missed by its bias: rounding, in bfloat16."""


def added(x: Tensor, tensors: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
    """x + strength * vector, in float32: an operation of hooks. x is [..., width], the vector [width]."""
    return (x.float() + params["strength"] * tensors["vector"]).to(x.dtype)


def as_bias(lm: LanguageModel, layer: int, shift: Tensor) -> Weight:
    """The shift [width] of all states behind `layer` as a bias of its MLP's down-projection, for any runtime.

    Raises DetoxbenchError where the layer does more to the map's output than add it to the stream (Gemma 2 normalises
    it), so that a bias would do something else: tried on a few tokens.
    """
    import torch

    weight = Weight(f"{lm.architecture.mlp_down(layer)}.bias", Dense(shift))
    site = lm.architecture.layer(layer)
    ids = torch.arange(PASS_TOKENS, device=lm.device)[None] % lm.architecture.vocabulary
    states = []
    with torch.inference_mode(), recorded(lm, [site]) as seen:
        for weights in ((), (weight,)):
            with lm.applied(Intervention(method="as_bias", base=lm.fingerprint, weights=weights)):
                lm.model(input_ids=ids, use_cache=False)
            states.append(seen[site].float().reshape(-1, len(shift)))
    moved = (states[1] - states[0]).mean(0).cpu()
    if float((moved - shift).norm()) > TOLERANCE * float(shift.norm()):
        raise DetoxbenchError(
            f"a bias of '{weight.parameter}' is no shift behind its layer in '{lm.name}', which does more to the map's "
            "output than add it: use method.export=hook"
        )
    return weight
