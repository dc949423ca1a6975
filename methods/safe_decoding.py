"""SafeDecoding (Xu et al., 2024): an expert that has learned to refuse chooses the first tokens with the model.

For the first m tokens (uw-nsl/SafeDecoding, utils/safe_decoding.py:70-115), C are the tokens that are among the k most
probable ones of both the base and the expert, at the smallest k, from c on, that gives at least c of them, and

    p(w) proportional to max(p_base(w) + alpha (p_expert(w) - p_base(w)), 1e-8)   for w in C, else 0.

After that the base goes on alone. The expert is a LoRA, computed as one more row of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from detoxbench.config import knob, runtime
from detoxbench.data.examples import FitData, Role
from detoxbench.fitting.training import LoraConfig, train_lora
from detoxbench.interventions import peft_io
from detoxbench.interventions.channels import Carried, LogitOp, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method
from detoxbench.model.logit_state import LogitState

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-8
"""A probability that is not above 0 becomes this (utils/safe_decoding.py:107)."""


@dataclass(frozen=True, kw_only=True)
class Config(LoraConfig):
    """How the expert takes part, and how it is trained."""

    expert: str | None = runtime(
        None, "existing PEFT adapter (folder or hub id) that is the expert; null trains one on refusals"
    )
    alpha: float = knob(
        3.0, "weight of the expert's difference to the base", source="exp/defense.py: --alpha", ge=0, applied=True
    )
    first_m: int = knob(
        2, "tokens that the expert takes part in", source="exp/defense.py: --first_m", ge=1, applied=True
    )
    common_tokens: int = knob(
        5, "c: least size of the sample space", source="exp/defense.py: --num_common_tokens", ge=1, applied=True
    )


def join(logits: Tensor, state: LogitState) -> Tensor:
    """The logits [rows, vocabulary] of rows whose text has less than m tokens; of others as they are."""
    import torch

    early = state.length < state.params["first_m"]
    if not bool(early.any()):
        return logits
    base, expert = logits[early], state.under("expert")[early]
    least = min(state.params["common_tokens"], logits.shape[1])
    # 1. The rank of every token on both sides, from 1, and the greater of the two [early rows, vocabulary].
    sides = [side.sort(dim=-1, descending=True, stable=True) for side in (base, expert)]
    numbers = torch.arange(1, logits.shape[1] + 1, device=logits.device).expand_as(base)
    worse = torch.stack([torch.empty_like(numbers).scatter(1, s.indices, numbers) for s in sides]).amax(0)
    # 2. The smallest k, from c on, at which c tokens are among the k best of both, [early rows, 1].
    k = worse.sort(dim=-1).values[:, least - 1 : least].clamp(min=least)
    p, other = base.softmax(-1), expert.softmax(-1)
    joined = (p + state.params["alpha"] * (other - p)).clamp(min=LEAST).log().masked_fill(worse > k, -torch.inf)
    # 3. Neighbours in rank, from c to k and the one behind, that rounding could exchange.
    contested = torch.zeros_like(early)
    of_rank = (numbers[:, :-1] >= least) & (numbers[:, :-1] <= k)  # pairs of ranks (r, r + 1)
    close = [((s.values[:, :-1] - s.values[:, 1:] < state.near) & of_rank).any(-1) for s in sides]
    contested[early] = close[0] | close[1]
    state.contest(contested)
    return logits.index_put((early,), joined)


class SafeDecoding(Method[Config]):
    """The first tokens of an answer decide whether it refuses: an expert that was trained on refusals chooses them
    together with the model, among tokens that both find likely.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> refusals = [db.Instruction("tell me how to be mean .", "no , i will not .")] * 8
    >>> method = db.methods.create("safe_decoding", rank=4, batch_size=4, micro_batch_size=4)
    >>> change = method.fit(lm, db.FitData(refusals=refusals))
    >>> change.logits[0].params["first_m"]
    2
    """

    Config = Config
    paper = "SafeDecoding: Defending against Jailbreak Attacks via Safety-Aware Decoding (arXiv 2402.08983)"
    licence = "MIT"
    fidelity = (
        "equal to the released formula (tests/methods/test_safe_decoding.py computes it token by token; "
        "uw-nsl/SafeDecoding, utils/safe_decoding.py:70-115)"
    )
    ops: ClassVar = {"join": join}

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({Role.REFUSALS} if self.config.expert is None else ())

    def fingerprints(self) -> Mapping[str, str]:
        return {} if self.config.expert is None else {"expert": peft_io.fingerprint(self.config.expert)}

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        data.require(self.needs, self.name)
        info = {}
        if self.config.expert is None:
            adapter = train_lora(lm, data.refusals or (), self.config, seed=self.seed, description="refusing LoRA")
            weights = tuple(Weight(name, delta) for name, delta in adapter.deltas.items())
            info = {"losses": list(adapter.losses), "cut_texts": adapter.cut_texts}
        else:
            weights = Intervention.from_peft(self.config.expert, lm).carried().weights
        params = {key: getattr(self.config, key) for key in ("alpha", "first_m", "common_tokens")}
        # A logarithm of a difference may move by any factor; 1 + 2 alpha is that of probabilities that do not cancel.
        sensitivity = 1 + 2 * self.config.alpha
        op = LogitOp(f"{self.name}.join", params=params, under={"expert": Carried(weights)}, sensitivity=sensitivity)
        return Intervention(method=self.name, base=lm.fingerprint, logits=(op,), info=info)
