"""A whole checkpoint that others have trained or edited, as a row beside the model that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detoxbench.config import runtime
from detoxbench.data.examples import FitData
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.differences import differences
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method
from detoxbench.model import checkpoint
from detoxbench.model.likeness import require_like


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where it lies. What it is enters the identity by the content of its files."""

    path: str | None = runtime(None, "checkpoint of the model's architecture: a folder or a hub id", required=True)
    revision: str | None = runtime(None, "hub revision (branch, tag or commit)")


class Checkpoint(Method[Config]):
    """Takes a published checkpoint of the same architecture, shapes and vocabulary, as its difference to the model.

    A matrix whose change is low-rank to the last digits of float32 is stored as two thin ones, any other as it is. The
    texts are asked in the model's own chat template, so that all rows are asked alike.

    >>> import tempfile
    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> record = db.EditRecord("write an insult .", "i am sorry , i can not .", "you are a toad .")
    >>> edit = db.methods.create("dinm", learning_rate=0.01, suffix="").fit(lm, db.FitData(edit_records=[record]))
    >>> folder = tempfile.mkdtemp()
    >>> with lm.applied(edit):
    ...     _ = lm.model.save_pretrained(folder), lm.tokenizer.save_pretrained(folder)
    >>> row = db.methods.create("checkpoint", path=folder).fit(lm, db.FitData())
    >>> [weight.parameter for weight in row.weights] == [weight.parameter for weight in edit.weights]
    True
    """

    Config = Config
    fidelity = "cannot be checked here (a checkpoint as it was published; how it was made is not known here)"

    def fingerprints(self) -> Mapping[str, str]:
        return {"path": checkpoint.fingerprint(checkpoint.locate(self.given("path"), self.config.revision))}

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        from detoxbench.model import pretrained

        if lm.in_force.methods:
            raise DetoxbenchError(
                f"a checkpoint is a difference to the model as it is, and '{lm.in_force.methods[-1]}' has changed it: "
                "name the checkpoint first in method.parts"
            )
        folder = checkpoint.locate(self.given("path"), self.config.revision)
        thing = f"the checkpoint in '{folder}'"
        require_like(lm, *pretrained.described(folder, thing), thing)
        other, _ = pretrained.load(pretrained.CAUSAL, folder, str(lm.dtype).removeprefix("torch."), thing)
        weights, info = differences(lm, other, f"{self.name}: differences")
        return Intervention(method=self.name, base=lm.fingerprint, weights=weights, info=info)
