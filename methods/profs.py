"""ProFS (Uppaal et al., ICLR 2025): project the toxic subspace out of what the upper MLPs write.

Checked against Uppaal/detox-edit @ 3cba2e8, whose files the sources below name.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from detoxbench.config import knob
from detoxbench.data.examples import FitData, Pair, Role
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.activations import pooled_states
from detoxbench.fitting.depth import at_depth
from detoxbench.fitting.labelled import beginnings
from detoxbench.interventions.channels import LowRank, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED_LAYER, PUBLISHED_DEPTH = 10, 24  # configs/gpt2-medium.ini
_TINY = 1e-6  # a singular value below this share of the largest is rounding noise


@dataclass(frozen=True, kw_only=True)
class Config:
    """Of what pairs, in which layers, how many directions."""

    pair_source: Literal["preferences", "parallel_pairs"] = knob(
        "preferences", "the role that unsafe and safe texts come from", source="detox.py:41-80: pairs of responses"
    )
    with_prompt: bool = knob(
        False, "preferences: read each response behind its prompt", source="detox.py:61-64: responses alone"
    )
    pairs: int = knob(500, "pairs drawn", source="configs/gpt2-medium.ini: pref_data_dps", ge=1)
    max_tokens: int = knob(128, "tokens of a text at the most, the first ones", source="detox.py:77", ge=1)
    centre: bool = knob(
        True,
        "first take out the corpus direction, the first singular vector of the safe states",
        source="detox.py:146-158",
    )
    rank: int = knob(2, "directions of the subspace", source="gpt2-medium.ini; mistral-7b.ini has 10", ge=1)
    first_layer: int | None = knob(
        None, "lowest layer that is edited; null: as deep as 10 of 24", source="gpt2-medium.ini: lowest_layer_to_edit"
    )
    last_layer: int | None = knob(None, "highest one, itself edited; null: the last", source="gpt2-medium.ini")


class ProFS(Method[Config]):
    """Takes a few directions, in which unsafe texts differ from safe ones, out of the output of MLPs.

    For each layer h+ and h- are the mean states behind it of the unsafe and the safe text of a pair, and H+, H- hold a
    row for each pair. The first right singular vector of H- (not centred: about its mean) is projected out of
    D = H+ - H-. With v_1 ... v_k the first right singular vectors of what is left,

        W_down <- (I - P) W_down,  P = sum_i v_i v_i^T,

    which is a change of rank k, and is stored as one: -V (V^T W). Nothing is trained.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> pairs = [db.Pair(f"you {who} , go away .", f"my {who} , stay here .") for who in ("fool", "toad", "king")]
    >>> method = db.methods.create("profs", pair_source="parallel_pairs")
    >>> edit = method.fit(lm, db.FitData(parallel_pairs=pairs))
    >>> [(weight.parameter, weight.delta.a.shape[0]) for weight in edit.weights][:1]  # the rank
    [('model.layers.1.mlp.down_proj.weight', 2)]
    """

    Config = Config
    paper = "Model Editing as a Robust and Denoised variant of DPO: A Case Study on Toxicity (arXiv 2405.13967)"
    licence = "MIT"

    @property
    def fidelity(self) -> str:
        if not self.config.centre:
            return "ours (the corpus direction is left in)"
        return "equal to the released formula (Uppaal/detox-edit, detox.py:113-258; but pads take no part in means)"

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({Role(self.config.pair_source)})

    def examples(self, data: FitData) -> int:
        return len(self._drawn(data))

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        pairs, layers = self._drawn(data), self._layers(lm)
        # 1. The mean states of unsafe and of safe texts, for each layer [pairs, width].
        sites = [lm.architecture.layer(layer) for layer in layers]
        unsafe, safe = (
            pooled_states(
                lm,
                beginnings(lm, (pair[side] for pair in pairs), self.config.max_tokens),
                sites,
                lambda states: states.mean(0),
                inputs=False,
                description=f"ProFS: {name} texts",
            )
            for side, name in enumerate(("unsafe", "safe"))
        )
        # 2. The edit of each layer, and what is seen of it.
        weights, info = [], dict[str, Any]()
        for layer, h_unsafe, h_safe in zip(layers, unsafe, safe, strict=True):
            directions, share = toxic_subspace(h_unsafe, h_safe, self.config.rank, centre=self.config.centre)
            weights.append(projected_out(lm, lm.architecture.mlp_down(layer), directions))
            info.setdefault("ranks", []).append(len(directions))
            info.setdefault("explained_share", []).append(share)
        info |= {"layers": layers, "pairs": len(pairs)}
        return Intervention(method=self.name, base=lm.fingerprint, weights=tuple(weights), info=info)

    def _drawn(self, data: FitData) -> list[Pair]:
        """The first `pairs` of a seeded shuffle, as (unsafe, safe) texts."""
        config = self.config
        if config.pair_source == "parallel_pairs":
            pairs = list(data.parallel_pairs or ())
        else:
            pairs = [
                Pair(self._text(p.prompt, p.rejected), self._text(p.prompt, p.chosen)) for p in data.preferences or ()
            ]
        return random.Random(self.seed).sample(pairs, min(len(pairs), config.pairs))

    def _text(self, prompt: str, response: str) -> str:
        return f"{prompt} {response}" if self.config.with_prompt and prompt else response

    def _layers(self, lm: LanguageModel) -> list[int]:
        """The edited layers. Raises DetoxbenchError where there are none."""
        depth, config = len(lm.architecture.layers), self.config
        first = at_depth(lm, PUBLISHED_LAYER, PUBLISHED_DEPTH) if config.first_layer is None else config.first_layer
        last = depth - 1 if config.last_layer is None else config.last_layer
        if not 0 <= first <= last < depth:
            raise DetoxbenchError(
                f"method.first_layer={first} and .last_layer={last} are no range of the layers 0 to {depth - 1} of "
                f"'{lm.name}'"
            )
        return list(range(first, last + 1))


def toxic_subspace(unsafe: Tensor, safe: Tensor, rank: int, *, centre: bool) -> tuple[Tensor, float]:
    """(orthonormal rows that span the subspace, [rank or as many as there are, width]; their share of |D|^2).

    `unsafe` and `safe` are mean states, [pairs, width].
    """
    import torch

    h_unsafe, h_safe = unsafe.double(), safe.double()
    d = h_unsafe - h_safe
    if centre:
        corpus = torch.linalg.svd(h_safe, full_matrices=False)[2][0]  # [width]
        d = d - (d @ corpus)[:, None] * corpus
    _, sizes, directions = torch.linalg.svd(d, full_matrices=False)
    kept = min(rank, max(1, int((sizes > _TINY * sizes[0]).sum())))
    energy = sizes.square()
    return directions[:kept].float(), float(energy[:kept].sum() / energy.sum().clamp(min=1e-300))


def projected_out(lm: LanguageModel, module: str, directions: Tensor) -> Weight:
    """The change -V (V^T W) of a linear map that takes the `directions` V^T [rank, out] out of its output, but not out
    of its bias (detox.py:235-258)."""
    weight = lm.weight(module).cpu()
    weight = weight.T if lm.architecture.transposed(module) else weight  # [out, in]
    return Weight(f"{module}.weight", LowRank((directions @ weight).contiguous(), -directions.T.contiguous()))
