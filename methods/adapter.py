"""A PEFT adapter that others have trained, as a row of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detoxbench.config import runtime
from detoxbench.data.examples import FitData
from detoxbench.interventions import peft_io
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where it lies. What it is enters the identity by the content of its files."""

    path: str | None = runtime(None, "PEFT adapter (LoRA, IA3 or prefix tuning): a folder or a hub id", required=True)


class Adapter(Method[Config]):
    """Takes a published PEFT adapter as it is: nothing is trained. What is more than LoRA, IA3 or a prefix is refused.

    >>> import tempfile
    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> civil = [db.Instruction("emma yelled :", "my friend , stay here .", chat=False)] * 8
    >>> expert = db.methods.create("ext_sub", operation="expert_only", rank=4, batch_size=4, micro_batch_size=4)
    >>> folder = tempfile.mkdtemp() + "/civil"
    >>> expert.fit(lm, db.FitData(civil_instructions=civil)).to_peft(folder, lm)
    >>> row = db.methods.create("adapter", path=folder).fit(lm, db.FitData())
    >>> (row.weights[0].delta.a.shape[0], row.info["adapter_base"])  # its rank
    (4, 'fable')
    """

    Config = Config
    fidelity = "cannot be checked here (an adapter as it was published; how it was trained is not known here)"

    def fingerprints(self) -> Mapping[str, str]:
        return {"path": peft_io.fingerprint(self.given("path"))}

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        weights, prefixes, base = peft_io.load(self.given("path"), lm)
        peft_io.warn_of_other_bases([base], lm)
        info = {"adapter_base": base}
        return Intervention(method=self.name, base=lm.fingerprint, weights=weights, prefixes=prefixes, info=info)
