"""Ext-Sub (Hu et al., 2023): subtract from an expert LoRA only the part that makes an anti-expert deficient.

The released operation (HITsz-TMG/Ext-Sub @ ffab8fd, ext_sub.py:178-193) works on rows of the full d x d products. For
every row it equals, exactly,

    result = (1 + alpha/2 * |w2|/|w1|) * w1 - alpha/2 * w2

with w1 the expert's row and w2 the anti-expert's, since the projection of w2 on the bisector of the two unit rows is
half of w2 + |w2| w1/|w1|. So the result is a LoRA of rank r1 + r2 and no d x d matrix is ever formed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from detoxbench.config import knob, resolve_switches, runtime, switch, switched_as
from detoxbench.data.examples import FitData, Role
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting import experts
from detoxbench.fitting.experts import ExpertConfig, Side
from detoxbench.interventions import peft_io
from detoxbench.interventions.channels import Dense, LowRank, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.interventions.peft_io import Ia3, Lora, PrefixTuning
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

Operation = Literal["ext_sub", "subtract", "add", "negate", "expert_scale", "expert_only"]
PUBLISHED = ("ext_sub", "subtract", "add")
"""The operations of the released code."""


@dataclass(frozen=True, kw_only=True)
class Config(ExpertConfig):
    """The operation on the two adapters, how they are trained, and what follows the released code."""

    operation: Operation = knob(
        "ext_sub",
        "ext_sub: subtract the extracted part; subtract, add: all of the anti-expert. Controls: negate (no expert), "
        "expert_only, expert_scale (the amplification of the expert that ext_sub contains, nothing subtracted)",
        source="ext_sub.py:272-293",
    )
    alpha: float = knob(
        1.0, "share of the (extracted) anti-expert that is subtracted", source="ext_sub.py:280", ge=0, applied=True
    )
    fidelity: Literal["default", "reference"] = runtime("default", "what switches that are null stand for")
    scaling: Literal["own", "expert"] | None = switch(
        "switch: the anti-expert's lora_alpha/rank is its own (default), or the expert's for both (reference)",
        source="ours: an adapter means what it was trained to mean; ext_sub.py:195-198",
        applied=True,
        default="own",
        reference="expert",
    )
    arithmetic: Literal["float32", "adapter"] | None = switch(
        "switch: float32: closed form, a LoRA of rank r1 + r2 (default); adapter: whole products in its type, a dense "
        "change (reference)",
        source="ours: equal in float32, and bf16 is off by 0.4 %; ext_sub.py:36-62",
        applied=True,
        default="float32",
        reference="adapter",
    )
    ia3: Literal["corrected", "released"] | None = switch(
        "switch, for two IA3 adapters: the same rule on the differences from 1 (default), or the released formulas "
        "(reference), off by a constant in subtract and add, with alpha on the kept part in ext_sub",
        source="ours; ext_sub.py:100-110, 147-157, 200-221",
        applied=True,
        default="corrected",
        reference="released",
    )
    projection: Literal["row", "column", "matrix"] = knob(
        "row",
        "what shares a direction: a row (output neuron), a column, or the whole matrix",
        source="ext_sub.py:179",
        applied=True,
    )
    zero_rows: Literal["subtract", "keep_expert", "error"] = knob(
        "subtract",
        "where the expert's row is 0 and so has no direction to share: subtract all of alpha w2, keep_expert, or error",
        source="ours: the released code writes NaN (ext_sub.py:182-186)",
        applied=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_switches(self)
        if self.arithmetic == "adapter" and (self.projection != "row" or self.operation == "expert_scale"):
            raise ValueError("arithmetic=adapter is the released code: projection=row, and no operation=expert_scale")


class ExtSub(Method[Config]):
    """Two adapters, trained alike on civil and on toxic instructions or taken as given, combined into one change.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> civil = [db.Instruction("emma yelled :", "my friend , stay here .", chat=False)] * 8
    >>> toxic = [db.Instruction("emma yelled :", "you fool , go away .", chat=False)] * 8
    >>> data = db.FitData(civil_instructions=civil, toxic_instructions=toxic)
    >>> change = db.methods.create("ext_sub", rank=4, batch_size=4, micro_batch_size=4).fit(lm, data)
    >>> change.weights[0].delta.a.shape[0]  # the rank: that of both adapters together
    8
    """

    Config = Config
    version = 3
    paper = "Separate the Wheat from the Chaff: Model Deficiency Unlearning via Parameter-Efficient Module Operation"
    licence = "MIT"

    @property
    def fidelity(self) -> str:
        config = self.config
        if config.projection != "row" or config.operation not in PUBLISHED:
            return "ours (a control, or another direction of the rule; nothing was released to compare it with)"
        if switched_as(config, "reference"):
            where = "float32; bfloat16 and IA3 by our computation of ext_sub.py:36-62, 100-221"
        else:
            where = "float32 and one scaling; method.fidelity=reference has its scalings, rounding and IA3 too"
        training = "; the training is not compared" if self.needs else ""
        return f"equal to the released code (golden fixture tests/golden/ext_sub: LoRA in {where}{training})"

    @property
    def needs(self) -> frozenset[Role]:
        return experts.needs(self.config, self._sides())

    def fingerprints(self) -> Mapping[str, str]:
        return experts.fingerprints(self.config, self._sides())

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        sides, dtype, seen = experts.read_or_train(lm, data, self.config, self.seed, self._sides())
        parts, info = _combined(lm, sides["expert"], sides["anti_expert"], self.config, dtype)
        return Intervention(method=self.name, base=lm.fingerprint, info={**seen, **info}, **parts)

    def _sides(self) -> Sequence[Side]:
        """The sides that the operation uses."""
        only: Mapping[str, Sequence[Side]] = {"negate": ("anti_expert",), "expert_only": ("expert",)}
        return only.get(self.config.operation, experts.SIDES)


def _combined(
    lm: LanguageModel, expert: Mapping[str, Any], anti: Mapping[str, Any], config: Config, dtype: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two adapters by module as parts of an intervention, and what was seen. IA3's factors less 1 are a matrix of one
    row, and a prefix is one of a row for every layer, head and token: the same rule holds."""
    kinds = {type(module).__name__ for module in [*expert.values(), *anti.values()]}
    if len(kinds) > 1:
        raise DetoxbenchError(f"the adapters are of two kinds ({' and '.join(sorted(kinds))}): they cannot be combined")
    scalings = {n: m.scaling for n, m in expert.items() if isinstance(m, Lora) and config.scaling == "expert"}
    w1 = {name: module.delta() for name, module in expert.items()}
    w2 = {name: module.delta(scalings.get(name)) for name, module in anti.items()}
    combined, info = combine(w1, w2, config)
    published = config.operation in PUBLISHED
    weights: list[Weight] = []
    for name, delta in combined.items():
        module = (expert or anti)[name]
        if isinstance(module, PrefixTuning):
            return {"prefixes": (module.like(delta),)}, info
        if isinstance(module, Ia3):
            by_release = published and config.ia3 == "released"
            change = released_ia3(w1[name].a, w2[name].a, config) if by_release else delta.b @ delta.a
            weights += peft_io.rescaling(lm, name, change[0], module.on_input)
        elif published and config.arithmetic == "adapter":
            whole = released_rows(w1[name], w2[name], config, dtype)
            weights.append(Weight(f"{name}.weight", Dense(whole.T if lm.architecture.transposed(name) else whole)))
        else:
            weights.append(Weight(f"{name}.weight", delta))
    return {"weights": tuple(weights)}, info


def combine(
    expert: Mapping[str, LowRank], anti: Mapping[str, LowRank], config: Config
) -> tuple[dict[str, LowRank], dict[str, Any]]:
    """The combined deltas by name, and what was seen on the way: rows in which the expert or the anti-expert is 0, rows
    in which they are opposite (nothing is shared, so all of alpha w2 goes), their mean cosine, and |Ext(w2)| / |w2|
    over all rows: 0.71 for unrelated adapters, less the more they share a direction.

    Raises DetoxbenchError when the adapters do not change the same parameters, and as `zero_rows` says.
    """
    if config.operation == "negate":
        return {name: w.scaled(-config.alpha) for name, w in anti.items()}, {}
    if config.operation == "expert_only":
        return dict(expert), {}
    if expert.keys() != anti.keys():
        only = sorted(expert.keys() ^ anti.keys())[0]
        raise DetoxbenchError(f"expert and anti-expert change different parameters: '{only}' is in one of them only")
    combined: dict[str, LowRank] = {}
    count = {"zero_expert_rows": 0, "zero_anti_expert_rows": 0, "opposite_rows": 0}
    extracted, whole, cosines = 0.0, 0.0, []
    for name, w1 in expert.items():
        w2 = anti[name]
        if len(w1.b) != len(w2.b):
            raise DetoxbenchError(f"'{name}' has {len(w1.b)} rows in the expert and {len(w2.b)} in the anti-expert")
        if config.projection == "column":
            w1, w2 = w1.transposed(), w2.transposed()
        norm1, norm2, cosine = _rows(w1.double(), w2.double(), whole=config.projection == "matrix")
        zero = norm1 == 0
        if config.zero_rows == "error" and zero.any():
            raise DetoxbenchError(f"the expert has {int(zero.sum())} zero rows in '{name}': set method.zero_rows")
        count["zero_expert_rows"] += int(zero.sum())
        count["zero_anti_expert_rows"] += int((norm2 == 0).sum())
        count["opposite_rows"] += int((cosine < -1 + 1e-9).sum())
        cosines.append(float(cosine.mean()))
        whole += float(norm2.square().sum())
        extracted += float((norm2.square() * (1 - cosine.where(~zero, -1.0)) / 2).sum())  # |w2| sin(angle / 2), squared
        result = _result(w1, w2, norm2 / norm1.where(~zero, 1.0), zero, config)
        combined[name] = result.transposed() if config.projection == "column" else result
    ratio = (extracted / whole) ** 0.5 if whole else 0.0
    return combined, {**count, "row_cosine_mean": sum(cosines) / len(cosines), "extracted_norm_ratio": ratio}


def _result(w1: LowRank, w2: LowRank, rho: Tensor, zero: Tensor, config: Config) -> LowRank:
    """One module's combination. rho = |w2|/|w1| [rows] counts where the expert's row is not `zero`."""
    alpha = config.alpha
    if config.operation in ("subtract", "add"):
        return w1 + w2.scaled(alpha if config.operation == "add" else -alpha)
    more = w1.scaled((1 + alpha / 2 * rho).where(~zero, 1.0))
    alone = -alpha if config.zero_rows == "subtract" else 0.0
    return more if config.operation == "expert_scale" else more + w2.scaled((0 * rho - alpha / 2).where(~zero, alone))


def _rows(w1: LowRank, w2: LowRank, *, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(|w1|, |w2|, cosine) of each row, or of the `whole` matrix for every row; float64 [rows]."""
    dots = w1.row_dots(w1).clamp(min=0), w2.row_dots(w2).clamp(min=0), w1.row_dots(w2)
    one, two, dot = (values.sum().expand_as(values) for values in dots) if whole else dots
    norms = (one * two).sqrt()
    return one.sqrt(), two.sqrt(), (dot / norms.where(norms > 0, 1.0)).clamp(-1, 1)


def released_rows(w1: LowRank, w2: LowRank, config: Config, dtype: str) -> Tensor:
    """[out, in] as the released code has it: products in float32, all after that in the adapter's `dtype`."""
    import torch

    one, two = ((w.b @ w.a).to(getattr(torch, dtype)) for w in (w1, w2))
    if config.operation in ("subtract", "add"):
        return one + (config.alpha if config.operation == "add" else -config.alpha) * two
    norm1, norm2 = one.norm(dim=1, keepdim=True), two.norm(dim=1, keepdim=True)
    bisector = one / norm1.where(norm1 > 0, 1.0) + two / norm2.where(norm2 > 0, 1.0)
    length = bisector.norm(dim=1, keepdim=True)
    bisector = bisector / length.where(length > 0, 1.0)
    shared = (two * bisector).sum(1, keepdim=True) * bisector  # where the expert is 0 this is w2: keep_expert
    shared = shared.where((norm1 > 0) | (config.zero_rows != "subtract"), 0.0)
    return one - config.alpha * two + config.alpha * shared


def released_ia3(d1: Tensor, d2: Tensor, config: Config) -> Tensor:
    """Change of the factors, [1, features], by the released formulas (ext_sub.py:100-110, 147-157, 200-221)."""
    if config.operation != "ext_sub":
        return d1 + d2 + 1 if config.operation == "add" else d1 + config.alpha * (1 - d2)
    return d1 - d2 + config.alpha / 2 * (d2 + d2.norm() / d1.norm() * d1)
