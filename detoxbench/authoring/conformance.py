"""What every method must guarantee, tested on tiny random models.

A check is a function of a `Case` that returns nothing where all is well, and else raises `Fault` with what is wrong.
The first line of its docstring is its name in a report. `check_method` runs them all.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from detoxbench.authoring.tiny_models import tiny
from detoxbench.config import digest
from detoxbench.data.examples import FitData, Role
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.errors import DetoxbenchError
from detoxbench.fitting.random_state import unchanged_random_state
from detoxbench.interventions.intervention import Intervention
from detoxbench.methods.base import FIDELITY, Method, Scope
from detoxbench.text import first_line

if TYPE_CHECKING:
    from torch import nn

    from detoxbench.lm import LanguageModel

FAMILIES = ("llama", "gpt2", "mistral")
"""Models that a method is tried on: rotary positions, learned positions with transposed weights, a sliding window."""
EXAMPLES = 12
"""Examples of each role that a fit is given, of the embedded data."""
RECORDS = 3
"""Records of a method that fits once a record."""
PROMPTS = ("the cat", "why are you", "please tell me", "at the park", "who")


class Fault(DetoxbenchError):
    """What is wrong with a method, in one line."""


class Verdict(NamedTuple):
    """The result of one check; `fault` is empty where all is well."""

    check: str
    fault: str


class Case:
    """One method on a tiny model of one family, fitted when a check first asks for it."""

    def __init__(self, method: Method[Any], family: str) -> None:
        self.method = method
        self.family = family

    def model(self, *, seed: int = 0) -> LanguageModel:
        """A new copy of the untouched model; another model with another `seed`."""
        return tiny(self.family, seed=seed)

    def made_again(self) -> Method[Any]:
        """The same method of the same configuration and seed."""
        return type(self.method)(self.method.config, name=self.method.name, seed=self.method.seed)

    def records(self, data: FitData) -> list[FitData]:
        """What `fit_many` is given: each record as the runner gives it, beside the other roles."""
        edits, _ = fit_data(fit_spec()(limit=RECORDS), frozenset({Role.EDIT_RECORDS}))
        return [data.replace(edit_records=(record,)) for record in edits.edit_records or ()]

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        """A fit as the runner does it; of a method that fits once a record, that of the first one."""
        if self.method.scope is Scope.PER_RECORD:
            return next(iter(self.made_again().fit_many(lm, self.records(data), [0])))
        return self.made_again().fit(lm, data)

    @cached_property
    def data(self) -> FitData:
        """The roles that the method says it needs, and no other."""
        return fit_data(fit_spec()(limit=EXAMPLES), self.method.needs)[0]

    @cached_property
    def first(self) -> Fitted:
        """The method fitted once."""
        return self._fitted()

    @cached_property
    def second(self) -> Fitted:
        """Fitted again on an equal model, with other states of the global random generators."""
        import random

        import numpy as np
        import torch

        with unchanged_random_state():
            torch.manual_seed(1234)
            random.seed(1234)
            np.random.seed(1234)
            return self._fitted()

    def _fitted(self) -> Fitted:
        lm = self.model()
        model, generators = state_of(lm), random_states()
        intervention = self.fit(lm, self.data)
        return Fitted(intervention, changes(model, state_of(lm)), changes(generators, random_states()))

    @property
    def intervention(self) -> Intervention:
        """The intervention of the first fit."""
        return self.first.intervention


class Fitted(NamedTuple):
    """An intervention, and what its fit left changed: in the model, and of the global random generators."""

    intervention: Intervention
    model: list[str]
    generators: list[str]


# ------------------------------------------------------------------------------------------- the checks


def declares_its_settings(case: Case) -> None:
    """Its class says what it does and how near that is to what was published, and each of its settings its meaning."""
    cls = type(case.method)
    if not (cls.__doc__ or "").strip():
        raise Fault(f"class {cls.__name__} has no docstring: `detoxbench list` shows its first line")
    if not re.fullmatch(rf"({'|'.join(FIDELITY)}) \(.+\)", case.method.fidelity):
        said = f"says {case.method.fidelity!r} of its fidelity" if case.method.fidelity else "does not say its fidelity"
        raise Fault(
            f'class {cls.__name__} {said}: write fidelity = "ours (why)", or another of {", ".join(FIDELITY)}, with '
            "the evidence in brackets; it stands beside its rows"
        )
    if cls.version < 1:
        raise Fault(f"version is {cls.version}: versions begin with 1")
    config = type(case.method.config)
    if not (dataclasses.is_dataclass(config) and getattr(config, "__dataclass_params__").frozen):  # noqa: B009
        raise Fault(f"{config.__name__} is no frozen dataclass: write @dataclass(frozen=True, kw_only=True)")
    for field in dataclasses.fields(config):
        if not field.metadata.get("help"):
            raise Fault(
                f"{config.__name__}.{field.name} is a plain field: make it knob(default, meaning, source=...) if it "
                "can change a number, and runtime(default, meaning) if it cannot"
            )
    if digest(case.method.identity()) != digest(case.made_again().identity()):
        raise Fault("two methods of one configuration have two identities: it must not change between two runs")


def names_missing_data(case: Case) -> None:
    """Without the data that it needs, it says which role is missing."""
    for role in sorted(case.method.needs):
        incomplete = case.data.replace(**{role: None})
        try:
            method = case.made_again()
            if method.scope is Scope.PER_RECORD:
                next(iter(method.fit_many(case.model(), [incomplete], [0])))
            else:
                method.fit(case.model(), incomplete)
        except DetoxbenchError as error:
            if f"fit.{role}" in str(error):
                continue
            raise Fault(f"without fit.{role} it says: {first_line(error)}") from None
        except Exception as error:
            raise Fault(
                f"without fit.{role} it breaks ({_described(error)}): begin fit with "
                "`data.require(self.needs, self.name)`"
            ) from None
        raise Fault(f"it needs the role {role} and fits without it: leave it out of `needs`")


def delivers_an_intervention(case: Case) -> None:
    """Fitting gives an intervention of this method for this model, and for no other one."""
    intervention: Any = case.intervention
    if not isinstance(intervention, Intervention):
        raise Fault(f"fit returned {type(intervention).__name__}")
    if intervention.method != case.method.name:
        raise Fault(f"the intervention is of method '{intervention.method}': write Intervention(method=self.name, ...)")
    if intervention.base != case.model().fingerprint:
        raise Fault(f"the intervention is for base '{intervention.base}': write Intervention(base=lm.fingerprint, ...)")
    intervention.require_finite()
    try:
        with case.model(seed=9).applied(intervention):
            pass
    except DetoxbenchError:
        return
    raise Fault("the intervention goes onto another model than the one it was fitted on")


def leaves_the_model_as_found(case: Case) -> None:
    """Fitting leaves weights, gradients, flags, modules and hooks of the model as found."""
    if case.first.model:
        raise Fault(f"fit changed {_listed(case.first.model)}")


def leaves_the_random_state(case: Case) -> None:
    """Fitting leaves the global random generators as found."""
    if case.second.generators:  # not of the first fit, which may import packages that draw while they are imported
        raise Fault(
            f"fit changed {_listed(case.second.generators)}: draw from random.Random(self.seed) or "
            "torch.Generator().manual_seed(self.seed)"
        )


def is_seeded(case: Case) -> None:
    """Equal seeds give equal interventions, whatever state the global random generators are in."""
    once, again = case.first.intervention, case.second.intervention
    if once.digest() != again.digest():
        differing = changes(_tensors(once), _tensors(again)) or ["what is no tensor"]
        raise Fault(f"two fits with seed {case.method.seed} differ in {_listed(differing)}")


def fits_each_record_by_itself(case: Case) -> None:
    """What is fitted for a record does not depend on which other records are wanted."""
    if case.method.scope is not Scope.PER_RECORD:
        return
    records = case.records(case.data)
    last = len(records) - 1
    every = list(case.made_again().fit_many(case.model(), records, range(len(records))))
    (alone,) = case.made_again().fit_many(case.model(), records, [last])
    if len(every) != len(records):
        raise Fault(f"fit_many gave {len(every)} interventions for {len(records)} records")
    if alone.digest() != every[last].digest():
        raise Fault(f"record {last} is fitted in one way alone and in another beside records 0 to {last - 1}")


def changes_what_it_says(case: Case) -> None:
    """The intervention changes what the model says exactly if it has parts."""
    lm = case.model()
    plain = answers(lm)
    with lm.applied(case.intervention):
        changed = answers(lm) != plain
    parts = [f"{place} ({part.place})" for place, part in case.intervention.parts()]
    if parts and not changed:
        raise Fault(f"it has {_listed(parts)}, and moves no text and no likelihood")
    if changed and not parts:
        raise Fault("it has no part, and still changes what the model says")


def is_removed_exactly(case: Case) -> None:
    """Taking the intervention off leaves the model as found, bit for bit."""
    lm = case.model()
    before, plain = state_of(lm), answers(lm)
    with lm.applied(case.intervention):
        answers(lm)
    if left := changes(before, state_of(lm)):
        raise Fault(f"it left {_listed(left)}")
    if answers(lm) != plain:
        raise Fault("the model says something else than before it was put on")


def survives_the_disk(case: Case) -> None:
    """The intervention is the same after it was saved and loaded."""
    lm, intervention = case.model(), case.intervention
    with TemporaryDirectory() as folder:
        intervention.save(Path(folder) / "saved")
        loaded = Intervention.load(Path(folder) / "saved")
    if loaded.digest() != intervention.digest() or loaded.artifact_bytes() != intervention.artifact_bytes():
        raise Fault("what is loaded has other parts or tensors than what was saved")
    if loaded.info != json.loads(json.dumps(dict(intervention.info))):
        raise Fault("what is loaded has another info than what was saved")
    with lm.applied(intervention):
        expected = answers(lm)
    try:
        with lm.applied(loaded):
            actual = answers(lm)
    except Exception as error:
        raise Fault(
            f"what is loaded cannot be applied ({_described(error)}): its settings must be JSON values"
        ) from None
    if actual != expected:
        raise Fault("the model says something else under what is loaded than under what was saved")


CHECKS: tuple[Callable[[Case], None], ...] = (
    declares_its_settings,
    names_missing_data,
    delivers_an_intervention,
    leaves_the_model_as_found,
    leaves_the_random_state,
    is_seeded,
    fits_each_record_by_itself,
    changes_what_it_says,
    is_removed_exactly,
    survives_the_disk,
)


def check_method(method: Method[Any], families: Sequence[str] = FAMILIES) -> list[Verdict]:
    """Run every check on `method` with a tiny model of each family: a verdict a check, in the order of `CHECKS`.

    A method that cannot be fitted gets no verdict of the checks behind `delivers_an_intervention`.
    """
    cases = [Case(method, family) for family in families]
    verdicts = []
    for check in CHECKS:
        faults = {case.family: fault for case in cases if (fault := fault_of(check, case))}
        verdicts.append(Verdict(name_of(check), _joined(faults, len(cases))))
        cases = [case for case in cases if check is not delivers_an_intervention or case.family not in faults]
        if not cases:
            break
    return verdicts


def name_of(check: Callable[[Case], None]) -> str:
    """What a check is called in a report."""
    return (check.__doc__ or "").partition("\n")[0].rstrip(".")


def fault_of(check: Callable[[Case], None], case: Case) -> str:
    """What is wrong, in one line, or an empty string. What a method warns of is about a tiny model, and not shown."""
    try:
        with warnings.catch_warnings(), _without_logging():
            warnings.simplefilter("ignore")
            check(case)
    except DetoxbenchError as error:
        return first_line(error)
    except Exception as error:
        return _described(error)
    return ""


@contextmanager
def _without_logging() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _joined(faults: Mapping[str, str], cases: int) -> str:
    """The faults of one check by family as one text: a fault that all families share is named once."""
    distinct = dict.fromkeys(faults.values())
    if len(faults) == cases and len(distinct) == 1:
        return next(iter(distinct))
    return "; ".join(f"{' and '.join(f for f in faults if faults[f] == fault)}: {fault}" for fault in distinct)


# ------------------------------------------------------------------------------------------- what is compared


def answers(lm: LanguageModel) -> list[Any]:
    """What the model says now: sampled texts of running and of chat prompts, and likelihoods, which move with less."""
    from detoxbench.engine.likelihood import loglikelihoods
    from detoxbench.records import Request

    requests = [
        Request(id=f"{chat}{i}", prompt=prompt, record=str(i), kind="prompt", chat=chat)
        for chat in (False, True)
        for i, prompt in enumerate(PROMPTS)
    ]
    texts = [sample.text for sample in lm.generate(requests, max_new_tokens=12, do_sample=True, n=2)]
    given = [
        msgspec.structs.replace(r, text=f" {text}")
        for r, text in zip(requests, reversed([*PROMPTS, *PROMPTS]), strict=True)
    ]
    if not lm.in_force.reads_texts:
        return [texts]
    read = [g.sample.nll for batch in loglikelihoods(lm, given, {r.id for r in given}) for g in batch]
    return [texts, read]


def state_of(lm: LanguageModel) -> dict[str, Any]:
    """Everything that a fit and an intervention must leave as it was: its name -> a copy of it."""
    model = lm.model
    state: dict[str, Any] = {"what is in force": repr(lm.in_force)}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[f"the weight {name}"] = tensor.detach().clone()
        state[f"requires_grad of {name}"] = tensor.requires_grad
        state[f"the gradient of {name}"] = None if tensor.grad is None else tensor.grad.clone()
    for name, module in model.named_modules():
        of = name or "the model"
        state[f"the type of {of}"] = type(module)
        state[f"the training mode of {of}"] = module.training
        state[f"the hooks on {of}"] = _hooks(module)
        state[f"the attributes of {of}"] = sorted(vars(module))
    return state


def _hooks(module: nn.Module) -> list[int]:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return [number for kind in kinds for number in getattr(module, kind)]


def random_states() -> dict[str, Any]:
    """The state of every global random generator: its name -> a copy of it."""
    import random

    import numpy as np
    import torch

    numpy: Any = np.random.get_state()
    return {
        "the random state of torch": torch.get_rng_state(),
        "the random state of Python": random.getstate(),
        "the random state of numpy": [numpy[0], numpy[1].tolist(), *numpy[2:]],
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What two states differ in, by what it is called."""
    return [key for key in {**before, **after} if not _equal(before.get(key, ...), after.get(key, ...))]


def _tensors(intervention: Intervention) -> dict[str, Any]:
    """Every tensor by what it acts on and its own name."""
    parts = [part for _, part in intervention.parts()]
    return {f"{part.place}: {name}": tensor for part in parts for name, tensor in part.named_tensors().items()}


def _equal(a: Any, b: Any) -> bool:
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _listed(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
