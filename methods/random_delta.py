"""A control of changed weights: deltas of a run's norms in random directions."""

from __future__ import annotations

import dataclasses

from detoxbench.data.examples import FitData
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.random_controls import random_weight
from detoxbench.interventions import saved
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.intervention import FromIntervention


class RandomDelta(FromIntervention):
    """Changes of the parameters that a run changes, with its norms, in random directions: is it more than the size?

    A dense change becomes a Gaussian one of the same Frobenius norm, a low-rank one a product of two Gaussian
    factors of its rank and norm; what is no change of weights (a suffix, say) stays. Another seed draws others.

    >>> import tempfile
    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> record = db.EditRecord("write an insult .", "i am sorry , i can not .", "you are a toad .")
    >>> edit = db.methods.create("dinm", learning_rate=0.01).fit(lm, db.FitData(edit_records=[record]))
    >>> folder = tempfile.mkdtemp() + "/edit"
    >>> edit.save(folder)
    >>> control = db.methods.create("random_delta", path=folder).fit(lm, db.FitData())
    >>> norms = [float(i.weights[0].delta.delta.norm()) for i in (edit, control)]
    >>> (round(norms[0] / norms[1], 4), edit.prompts == control.prompts)
    (1.0, True)
    """

    fidelity = "ours (control: the norms of a run's changes of weights, without their directions)"

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        import torch

        found = saved.load(self.given("path"), lm)
        if not found.weights:
            raise DetoxbenchError(
                f"'{self.config.path}' ({found.method}) changes no weight: random_delta is a control of changed "
                "weights; of steering it is random_direction"
            )
        generator = torch.Generator().manual_seed(self.seed)
        weights = tuple(random_weight(weight, generator) for weight in found.weights)
        return dataclasses.replace(found, method=self.name, weights=weights, info={"norms_of": found.method})
