"""A control of activation steering: the hooks of a run with random directions of the same norms."""

from __future__ import annotations

import dataclasses

from detoxbench.data.examples import FitData
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.random_controls import random_hook
from detoxbench.interventions import saved
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.intervention import FromIntervention


class RandomDirection(FromIntervention):
    """Hooks at the places and with the norms of a run's, in random directions: does its direction matter, or its size?

    Each tensor of each hook becomes a Gaussian one of the same shape and norm; the hooks' functions and strengths, and
    all that is no hook, stay as they are. Another seed draws other directions.

    >>> import tempfile
    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> pairs = [db.Pair("you are a rotten fool , go away .", "you are a good friend , stay here .")] * 10
    >>> steering = db.methods.create("destein").fit(lm, db.FitData(parallel_pairs=pairs))
    >>> folder = tempfile.mkdtemp() + "/steering"
    >>> steering.save(folder)
    >>> control = db.methods.create("random_direction", path=folder).fit(lm, db.FitData())
    >>> [round(float(s.hooks[0].tensors["z"].norm()), 3) for s in (steering, control)]
    [1.0, 1.0]
    """

    fidelity = "ours (control: the norms of a run's hooks, without their directions)"

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        import torch

        found = saved.load(self.given("path"), lm)
        if not any(tensor.dtype.is_floating_point for hook in found.hooks for tensor in hook.tensors.values()):
            raise DetoxbenchError(
                f"'{self.config.path}' ({found.method}) has no hook with a direction: random_direction is a control of "
                "steering; of changed weights it is random_delta"
            )
        generator = torch.Generator().manual_seed(self.seed)
        hooks = tuple(random_hook(hook, generator) for hook in found.hooks)
        return dataclasses.replace(found, method=self.name, hooks=hooks, info={"norms_of": found.method})
