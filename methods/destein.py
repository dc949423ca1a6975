"""DeStein (Li, Jiang, Gong, Wei; COLM 2024): steer every attention output away from a toxic direction.

Directions are differences of activations between a rude and a civil version of the same content; probes weigh the
heads. Checked against LizLizLi/DeStein @ f1cad0a, whose files the sources below name.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from detoxbench.config import knob, resolve_switches, runtime, switch, switched_as
from detoxbench.data.examples import FitData, Pair, Role
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting import self_induced
from detoxbench.fitting.activations import head_probes, last_token_means
from detoxbench.fitting.shelf import Learned
from detoxbench.interventions.channels import Dense, Hook, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 1e-12  # of F.normalize, as in the released code
_PUBLISHED_ROWS = 8  # validation rows of a probe at the published 20 pairs

log = logging.getLogger("detoxbench")


@dataclass(frozen=True, kw_only=True)
class Config(self_induced.PairConfig):
    """Where, how strongly and along what it steers."""

    alpha: float = knob(
        0.4, "strength of the shift", source="run_toxicity_experiment.py: --alpha 0.4", ge=0, applied=True
    )
    pairs: int = knob(20, "steering pairs drawn from the source", source="run_toxicity_experiment.py: --count 20", ge=1)
    token_window: int = knob(8, "last tokens whose activations are averaged", source="act_utils.py:168-174", ge=1)
    fidelity: Literal["default", "reference", "paper"] = runtime("default", "what switches that are null stand for")
    fusion: Literal["sphere", "head_sphere", "additive"] | None = switch(
        "switch: sphere: subtract on the unit sphere and restore the norm (released code); head_sphere: on the sphere "
        "of each head (its unreachable branch); additive: h - alpha z (paper)",
        source="lss_utils.py:79-84, 37-78; paper, section 3.3",
        applied=True,
        default="sphere",
        reference="sphere",
        paper="additive",
    )
    head_weight: Literal["none", "acc", "one_plus_acc", "topk"] | None = switch(
        "switch: weight of a head's slice by its probe's accuracy: 1 + acc (released code), acc (paper), or 1 for the "
        "best heads of all layers and 0 for the others",
        source="gpt2_act_generation.py:231; paper, section 3.3; probs.py:82-100",
        default="one_plus_acc",
        reference="one_plus_acc",
        paper="acc",
    )
    top_heads: int = knob(360, "heads that topk keeps", source="head_matrix_360.pkl (saved, not used)", ge=1)
    site: Literal["post_proj", "pre_proj", "mlp", "residual"] = knob(
        "post_proj",
        "output or input (the heads themselves) of the attention's output projection, the MLP's output, or the layer's",
        source="modeling_gpt2.py:411-415: behind the projection",
    )
    layers: tuple[int, ...] | None = knob(None, "layers to steer; null is all", source="lss_utils.py:142-175")
    positions: Literal["all", "generated"] = knob(
        "all",
        "steer prompt and new tokens, or only the positions behind the prompt",
        source="lss_utils.py:79-84: all",
        applied=True,
    )
    gate: Literal["none", "cosine"] = knob(
        "none", "cosine: strength times 1 + max(0, cos(h, z))", source="lss_utils.py:50-57 (unreachable)", applied=True
    )
    eps: float = knob(
        1e-6,
        "where what is left on the sphere is shorter, it is rounding noise and the result is 0 (released: 0/0)",
        source="ours",
        gt=0,
        applied=True,
    )
    export: Literal["hook", "bias"] = knob(
        "hook",
        "bias: an additive shift as a bias of the linear map, which any runtime can hold",
        source="ours",
        applied=True,
    )
    toxic_prefix: str = knob(
        "The following text is abusive, harmful, negative, obscene, racist, rude and toxic: ",
        "put before the toxic member of a pair",
        source="data_utils.py:52-59",
        text=True,
    )
    civil_prefix: str = knob(
        "The following text is kind, polite, positive, respectful and supportive: ",
        "put before the civil member of a pair",
        source="data_utils.py:52-59",
        text=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_switches(self)
        constant = self.fusion == "additive" and self.gate == "none" and self.positions == "all"
        if self.export == "bias" and not (constant and self.site != "residual"):
            raise ValueError("export=bias: needs fusion=additive, gate=none, positions=all, and a site of a linear map")


class DeStein(Method[Config]):
    """Activation steering, as published at the attention output of every layer and with a constant strength.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> pairs = [db.Pair("you are a rotten fool , go away .", "you are a good friend , stay here .")] * 10
    >>> steering = db.methods.create("destein", alpha=0.4).fit(lm, db.FitData(parallel_pairs=pairs))
    >>> len(steering.hooks) == len(lm.architecture.layers)  # one at the attention output of every layer
    True
    >>> with lm.applied(steering):
    ...     samples = lm.generate(["anna dropped the cake . emma yelled :"], max_new_tokens=8)
    """

    Config = Config
    version = 3
    paper = "DESTEIN: Navigating Detoxification of Language Models via Universal Steering Pairs (arXiv 2404.10464)"
    licence = "the released code has no licence file; nothing of it is used"

    @property
    def fidelity(self) -> str:
        config = self.config
        if config.pair_source == "self":
            return "ours (the model writes its own pairs; the prompts of the paper's are not released)"
        as_published = (config.site, config.layers, config.positions) == ("post_proj", None, "all")
        if as_published and config.gate == "none" and switched_as(config, "reference"):
            return "equal to the released code (golden fixture tests/golden/destein: probes, directions, logits, texts)"
        if as_published and config.gate == "none" and switched_as(config, "paper"):
            return "cannot be checked here (the paper's equations, section 3.3; no released code computes them)"
        return "ours (steers in a way, at a place or at a time that neither paper nor released code does)"

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({Role.PARALLEL_PAIRS} if self.config.pair_source == "data" else ())

    def fingerprints(self) -> Mapping[str, str]:
        return self_induced.fingerprints(self.config)

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        sites = self._sites(lm)
        found, info = self.learned_once(lm, data, lambda: self._learned(lm, data, sites))
        z = found["z"]
        if self.config.fusion != "additive":
            z = z / z.norm(dim=-1, keepdim=True).clamp(min=_EPS)
        steered = list(zip(sites, z.float(), strict=True))
        return Intervention(
            method=self.name,
            base=lm.fingerprint,
            weights=tuple(self._biases(lm, steered)) if self.config.export == "bias" else (),
            hooks=tuple(self._hooks(lm, steered)) if self.config.export == "hook" else (),
            info=info,
        )

    def _learned(self, lm: LanguageModel, data: FitData, sites: list[str]) -> Learned:
        """`z`: the direction of each site, [sites, width], that the shift runs against, of any length."""
        info: dict[str, Any] = {}
        # 1. The pairs.
        pairs: Sequence[Pair] = data.parallel_pairs or ()
        if self.config.pair_source == "self":
            pairs, info["self_induced"] = self_induced.induce(lm, self.config, self.seed)
        # 2. The activations of their members, each [sites, pairs, width].
        toxic, civil, cut_texts = self._activations(lm, sites, self._draw(pairs))
        info |= {"pairs": toxic.shape[1], "cut_texts": cut_texts}
        # 3. The directions.
        z, diagnostics = self._directions(lm, toxic, civil)
        return Learned({"z": z}, {**info, **diagnostics})

    def _activations(self, lm: LanguageModel, sites: list[str], pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, int]:
        """Those of the toxic and of the civil members, each [sites, pairs, width]; how many texts were cut."""
        (toxic, cut_toxic), (civil, cut_civil) = (
            last_token_means(
                lm,
                [pair[side] for pair in pairs],
                sites,
                self.config.token_window,
                inputs=self.config.site == "pre_proj",
                description=f"DeStein: {name} activations",
            )
            for side, name in enumerate(("toxic", "civil"))
        )
        return toxic, civil, cut_toxic + cut_civil

    def _directions(self, lm: LanguageModel, toxic: Tensor, civil: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """z [sites, width] = mean over pairs of toxic - civil, times the weights of the heads; and diagnostics. `toxic`
        and `civil` are [sites, pairs, width]."""
        z = (toxic - civil).mean(1)  # released: the sum, which is one after normalising
        diagnostics: dict[str, Any] = {"direction_norm": z.norm(dim=-1).tolist()}
        if self.config.head_weight != "none":
            weight, probed = self._head_weights(lm, toxic, civil)  # [sites, heads]
            diagnostics |= probed
            z = z.double() * weight.repeat_interleave(z.shape[1] // weight.shape[1], dim=1)
        return z, diagnostics

    def _biases(self, lm: LanguageModel, steered: Sequence[tuple[str, Tensor]]) -> list[Weight]:
        """The constant shift of each site as a bias of its linear map."""
        alpha = self.config.alpha
        return [Weight(f"{site}.bias", Dense(-alpha * self._through(lm, site, z))) for site, z in steered]

    def _hooks(self, lm: LanguageModel, steered: Sequence[tuple[str, Tensor]]) -> list[Hook]:
        """The shift of each site as a hook behind it, or at pre_proj before it."""
        config = self.config
        op = "destein.additive" if config.fusion == "additive" else "destein.sphere"
        heads = lm.architecture.heads if config.fusion == "head_sphere" else 1
        params: dict[str, Any] = {"alpha": config.alpha, "gate": config.gate, "eps": config.eps, "heads": heads}
        when: Literal["pre", "post"] = "pre" if config.site == "pre_proj" else "post"
        return [Hook(site, when, op, {"z": z}, params, config.positions) for site, z in steered]

    def _sites(self, lm: LanguageModel) -> list[str]:
        """Module paths, layer by layer. Raises DetoxbenchError for a layer that is not there."""
        every = range(len(lm.architecture.layers))
        layers = every if self.config.layers is None else self.config.layers
        if self.config.site == "residual":
            return [lm.architecture.layer(layer) for layer in layers]
        if self.config.site == "mlp":
            return [lm.architecture.mlp_down(layer) for layer in layers]
        return [lm.architecture.attention_out(layer) for layer in layers]

    def _draw(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The first `pairs` of a seeded shuffle, prefixed and without the final stop (lss_utils.py:200-211)."""
        drawn = random.Random(self.seed).sample(list(pairs), min(len(pairs), self.config.pairs))

        def clean(text: str) -> str:
            return text.strip(" .").strip(".")

        return [Pair(clean(self.config.toxic_prefix + t), clean(self.config.civil_prefix + c)) for t, c in drawn]

    def _head_weights(self, lm: LanguageModel, toxic: Tensor, civil: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Weights [sites, heads] by the heads' probes, and diagnostics of the probes.

        At post_proj, as in the released code, a head's slice is of the projected vector and not the head itself.
        """
        import torch

        pairs = toxic.shape[1]
        train = int(0.8 * pairs)  # probs.py:49-54
        rows = 2 * (pairs - train)
        if pairs - train < 2:
            raise DetoxbenchError(
                f"method '{self.name}' has {pairs} pairs, too few to train probes and validate them on two: "
                "give 6, raise method.pairs or set method.head_weight=none"
            )
        if rows < _PUBLISHED_ROWS:
            log.warning("probe accuracies are coarse: %d validation rows, steps of %.3g", rows, 1 / rows)
        heads = lm.architecture.heads
        accuracy = head_probes(toxic, civil, heads, train=train, seed=self.seed, description="DeStein: probes")
        diagnostics = {"probe_accuracy_mean": accuracy.mean(1).tolist(), "probe_validation_rows": rows}
        if self.config.head_weight == "topk":
            # Of equal heads the first ones; the released order (probs.py:82-84) is that of an unstable sort.
            best = accuracy.flatten().argsort(descending=True, stable=True)[: self.config.top_heads]
            return torch.zeros(accuracy.numel()).double().index_fill(0, best, 1).reshape(accuracy.shape), diagnostics
        return accuracy + (self.config.head_weight == "one_plus_acc"), diagnostics

    def _through(self, lm: LanguageModel, site: str, z: Tensor) -> Tensor:
        """What a shift z of the site becomes behind its linear map, [out]."""
        if self.config.site != "pre_proj":
            return z
        weight = lm.weight(site).cpu()
        return z @ weight if lm.architecture.transposed(site) else weight @ z


def sphere(x: Tensor, tensors: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
    """|x| u / |u| with u = x/|x| - alpha z/|z| (lss_utils.py:79-84), in fp32; x = 0 stays 0.

    With `heads` > 1 the same on the slice of each head, whose results are joined and rescaled to |x| (lines 37-78).
    Where |u| is below `eps`, the released code divides 0 by 0; here the result is 0.
    """
    heads = int(params.get("heads", 1))
    full, away = x.float().reshape(*x.shape[:-1], heads, -1), _normalised(tensors["z"].reshape(heads, -1))
    norms = full.norm(dim=-1, keepdim=True)
    unit = full / norms.clamp(min=_EPS)
    u = unit - params["alpha"] * _gate(unit, away, params) * away
    # Each remaining slice becomes a unit vector, so their number gives the length of all together.
    lengths = u.norm(dim=-1, keepdim=True)
    turned = lengths > params.get("eps", _EPS)
    whole = norms.norm(dim=-2, keepdim=True) / turned.sum(-2, keepdim=True).clamp(min=1).sqrt()
    return (u * (whole * turned / lengths.clamp(min=_EPS))).flatten(-2).to(x.dtype)


def additive(x: Tensor, tensors: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
    """x - alpha z (the paper's equation: the shift goes from toxic to civil)."""
    full, z = x.float(), tensors["z"]
    return (full - params["alpha"] * _gate(_normalised(full), _normalised(z), params) * z).to(x.dtype)


def _gate(unit: Tensor, away: Tensor, params: Mapping[str, Any]) -> Tensor | float:
    if params.get("gate", "none") == "none":
        return 1.0
    return 1 + (unit * away).sum(-1, keepdim=True).clamp(min=0)


def _normalised(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=_EPS)


DeStein.ops = {"sphere": sphere, "additive": additive}
