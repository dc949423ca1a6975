"""Toxification reversal (Leong et al., EMNLP 2023): what a toxic prefix adds to the attention heads is taken off them.

At every step the prompt is read three times: as it is, behind a toxic prefix and behind a civil one. With v the output
of a head at the last position of each, before the output projection (cooperleong00/ToxificationReversal,
models/gpt2/innerdetox_hook.py:18-69),

    d  = v_toxic - v_civil
    v' = v - (1 + |d|)^a (1 + max(0, cos(v, e)))^b d

where e is the head's output at the end of the toxic prefix alone; then all heads of the layer together get back the
norm that they had. Only the last position of the prompt and the new ones are changed, and what later positions attend
to is the changed one. The two others are read as they are: two more rows of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from detoxbench.config import knob
from detoxbench.data.examples import FitData
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.activations import last_token_means
from detoxbench.interventions.channels import Carried, Hook, HookState, Prompt
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 1e-12
"""Lengths below this are taken for it, where the released code divides by 0."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The two prefixes, and how strongly their difference is taken off."""

    toxic_prefix: str = knob(
        "The following text is abusive, harmful, negative, obscene, racist, rude and toxic: ",
        "stands directly before the prompt in the toxic row",
        source="configs/_base_/common.py:12",
        text=True,
    )
    civil_prefix: str = knob(
        "The following text is kind, polite, positive, respectful and supportive: ",
        "stands directly before the prompt in the civil row; empty: the prompt as it is",
        source="configs/_base_/common.py:16",
        text=True,
    )
    norm_exponent: float = knob(
        0.4, "a: how much more a head is moved where the prefixes differ more", source="the config's ne0.4", ge=0
    )
    similarity_exponent: float = knob(
        0.6, "b: how much more a head is moved that looks like the toxic prefix", source="the config's nse0.6", ge=0
    )
    keep_norm: bool = knob(True, "give all heads of a layer back their norm", source="the config's renorm")
    layers: tuple[int, ...] | None = knob(
        None, "layers that are changed; null is all", source="innerdetox_hook.py: BaseInnerDetoxHook: all"
    )

    def __post_init__(self) -> None:
        if not self.toxic_prefix.strip():
            raise ValueError("toxic_prefix is empty: give the text whose direction is reversed")
        if self.toxic_prefix == self.civil_prefix:
            raise ValueError("toxic_prefix and civil_prefix are the same text: nothing lies between them")


def reverse(x: Tensor, state: HookState) -> Tensor:
    """v' of the heads' outputs side by side, x [rows, positions, width]."""
    # 1. Head by head in float32, [rows, positions, heads, head dimension], and the end, [heads, head dimension].
    v, toxic, civil, end = (
        each.float().reshape(*each.shape[:-1], state.params["heads"], -1)
        for each in (x, state.beside("toxic"), state.beside("civil"), state.tensors["end"])
    )
    # 2. How far each head is moved, [rows, positions, heads, 1], and along what.
    d = toxic - civil
    lengths = v.norm(dim=-1, keepdim=True) * end.norm(dim=-1, keepdim=True)
    cosine = (v * end).sum(-1, keepdim=True) / lengths.clamp(min=_EPS)
    scale = (1 + d.norm(dim=-1, keepdim=True)) ** state.params["norm_exponent"]
    scale = scale * (1 + cosine.clamp(min=0)) ** state.params["similarity_exponent"]
    new = v - scale * d
    # 3. The norm of all heads together, [rows, positions, 1, 1].
    if state.params["keep_norm"]:
        new = new * (v.norm(dim=(-2, -1), keepdim=True) / new.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS))
    return new.flatten(-2)


class ToxificationReversal(Method[Config]):
    """Takes off the attention heads what a toxic prefix would add to them, step by step. Needs no data and no training;
    costs two more rows for every sample.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> change = db.methods.create("toxification_reversal", norm_exponent=0.4).fit(lm, db.FitData())
    >>> len(change.hooks) == len(lm.architecture.layers), sorted(change.hooks[0].under)
    (True, ['civil', 'toxic'])
    >>> with lm.applied(change):
    ...     samples = lm.generate(["anna dropped the cake . emma yelled :"], max_new_tokens=8)
    """

    Config = Config
    paper = "Self-Detoxifying Language Models via Toxification Reversal (arXiv 2310.09573)"
    licence = "the released code has no licence file; nothing of it is used"
    fidelity = (
        "equal to the released formula (tests/methods/test_toxification_reversal.py computes it with three separate "
        "passes, one sample at a time; cooperleong00/ToxificationReversal, models/gpt2/innerdetox_hook.py:18-69)"
    )
    ops: ClassVar = {"reverse": reverse}

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        config, heads = self.config, lm.architecture.heads
        every = range(len(lm.architecture.layers))
        sites = [lm.architecture.attention_out(i) for i in (every if config.layers is None else config.layers)]
        # Released: at the first token that equals the prefix's last one, which is that one with the released prefix.
        prefix = config.toxic_prefix.strip()
        ends, cut = last_token_means(lm, [prefix], sites, 1, inputs=True, description="the toxic prefix")
        if ends.shape[-1] % heads:
            raise DetoxbenchError(
                f"'{sites[0]}' is given {ends.shape[-1]} numbers a token, no multiple of {heads} heads: "
                f"'{self.name}' cannot tell the heads of '{lm.name}' apart"
            )
        under = {
            "toxic": Carried(prompts=(Prompt(prefix=config.toxic_prefix),)),
            "civil": Carried(prompts=(Prompt(prefix=config.civil_prefix),)),
        }
        params = {
            "heads": heads,
            "norm_exponent": config.norm_exponent,
            "similarity_exponent": config.similarity_exponent,
            "keep_norm": config.keep_norm,
        }
        hooks = tuple(
            Hook(site, "pre", f"{self.name}.reverse", {"end": end[0]}, params, "predicting", under)
            for site, end in zip(sites, ends, strict=True)
        )
        return Intervention(method=self.name, base=lm.fingerprint, hooks=hooks, info={"cut_texts": cut})
