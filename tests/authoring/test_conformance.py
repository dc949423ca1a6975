"""The conformance suite finds what a method does wrong, and says it in a line that tells what to mend."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from detoxbench import (
    Channel,
    Dense,
    FitData,
    Intervention,
    LanguageModel,
    LogitOp,
    LogitState,
    Method,
    Prompt,
    Role,
    Scope,
    Weight,
    cli,
    knob,
    methods,
)
from detoxbench.authoring import conformance
from detoxbench.authoring.conformance import Case, check_method, fault_of
from detoxbench.interventions.intervention import channel
from tests.support import processes, third_party

PARAMETER = "model.layers.0.mlp.down_proj.weight"


@dataclass(frozen=True, kw_only=True)
class Config:
    strength: float = knob(0.1, "size of the change", source="invented for a test")


class Good(Method[Config]):
    """Moves one matrix at random, by its seed."""

    Config = Config
    fidelity = "ours (invented for a test)"

    def delta(self, lm: LanguageModel, generator: torch.Generator | None) -> Tensor:
        shape = lm.model.get_parameter(PARAMETER).shape
        return self.config.strength * torch.randn(shape, generator=generator)

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        delta = self.delta(lm, torch.Generator().manual_seed(self.seed))
        return Intervention(method=self.name, base=lm.fingerprint, weights=(Weight(PARAMETER, Dense(delta)),))


class LeavesWeights(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        lm.model.get_parameter(PARAMETER).data.add_(1e-3)
        return super().fit(lm, data)


class LeavesAHook(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        lm.architecture.module("model.layers.1").register_forward_hook(lambda *_: None)
        return super().fit(lm, data)


class LeavesFlags(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        lm.model.train().requires_grad_(False)
        return super().fit(lm, data)


class LeavesItsOwnForward(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        module = lm.architecture.module("model.layers.1")
        module.forward = module.forward
        return super().fit(lm, data)


class LeavesAnInterventionOn(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        lm.applied(Intervention(method="kind", base=lm.fingerprint, prompts=(Prompt("be kind. "),))).__enter__()
        return super().fit(lm, data)


class SeedsEverybody(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        torch.manual_seed(self.seed)
        random.seed(self.seed)
        return super().fit(lm, data)


class Unseeded(Good):
    def delta(self, lm: LanguageModel, generator: torch.Generator | None) -> Tensor:
        return super().delta(lm, None)


class DoesNothing(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return Intervention(method=self.name, base=lm.fingerprint, prompts=(Prompt(), Prompt("", "")))


class OfAnotherBase(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return dataclasses.replace(super().fit(lm, data), base="0" * 16)


class OfAnotherMethod(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return dataclasses.replace(super().fit(lm, data), method="none")


class NoIntervention(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Any:
        return {"weights": 1}


def scaled(logits: Tensor, state: LogitState) -> Tensor:
    return logits * state.params["scale"][3] + state.tensors["bias"]


class CannotBeLoaded(Good):
    """JSON has no keys that are numbers."""

    ops: ClassVar = {"scaled": scaled}

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        op = LogitOp(f"{self.name}.scaled", {"bias": torch.ones(1)}, {"scale": {3: 2.0}})
        return Intervention(method=self.name, base=lm.fingerprint, logits=(op,))


class CannotBeSaved(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return dataclasses.replace(super().fit(lm, data), info={"when": torch.ones(1)})


@dataclass(frozen=True)
class Sticky(Channel):
    """A change that nothing takes back."""

    place: ClassVar[str] = PARAMETER  # type: ignore[misc, assignment]
    described: ClassVar[bool] = False

    def named_tensors(self) -> Mapping[str, Tensor]:
        return {}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Sticky:
        return cls()

    @classmethod
    def put_on(cls, lm: Any, parts: Sequence[Sticky], undo: ExitStack) -> None:
        for _ in parts:
            lm.model.get_parameter(PARAMETER).data.add_(0.1)


@dataclass(frozen=True, kw_only=True)
class StickyIntervention(Intervention):
    sticky: tuple[Sticky, ...] = channel(Sticky)


class NotRemoved(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return StickyIntervention(method=self.name, base=lm.fingerprint, sticky=(Sticky(),))


class DoesNotSayWhatItNeeds(Good):
    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        assert len(data.parallel_pairs) > 0  # type: ignore[arg-type]
        return super().fit(lm, data)


class DoesNotLookForItsData(DoesNotSayWhatItNeeds):
    needs = frozenset({Role.PARALLEL_PAIRS})


class NeedsWhatItDoesNotUse(Good):
    needs = frozenset({Role.PARALLEL_PAIRS})


@dataclass(frozen=True, kw_only=True)
class PlainConfig(Config):
    size: int = 3


class PlainField(Good):
    """Has a field that is no knob."""

    Config = PlainConfig


class Unexplained(Good):
    pass


class SaysNotHowNear(Good):
    """Does not say how near it is to what was published."""

    fidelity = ""


class SaysItInItsOwnWords(Good):
    """Says that it is faithful, without one of the forms and without evidence."""

    fidelity = "faithful"


class CountsTheWanted(Good):
    scope = Scope.PER_RECORD

    def fit_many(self, lm: LanguageModel, records: Sequence[FitData], wanted: Sequence[int]) -> Iterator[Intervention]:
        for place, i in enumerate(wanted):
            yield dataclasses.replace(self.fit(lm, records[i]), prompts=(Prompt(f"{place}: "),))


Check = Callable[[Case], None]
BROKEN: list[tuple[type[Good], Check, str]] = [
    (LeavesWeights, conformance.leaves_the_model_as_found, f"fit changed the weight {PARAMETER}"),
    (LeavesAHook, conformance.leaves_the_model_as_found, "fit changed the hooks on model.layers.1"),
    (LeavesFlags, conformance.leaves_the_model_as_found, "requires_grad of model.embed_tokens.weight"),
    (LeavesItsOwnForward, conformance.leaves_the_model_as_found, "fit changed the attributes of model.layers.1"),
    (LeavesAnInterventionOn, conformance.leaves_the_model_as_found, "fit changed what is in force"),
    (
        SeedsEverybody,
        conformance.leaves_the_random_state,
        "the random state of torch, the random state of Python: draw",
    ),
    (Unseeded, conformance.is_seeded, f"two fits with seed 0 differ in {PARAMETER}: delta"),
    (DoesNothing, conformance.changes_what_it_says, "it has prompts.0 ('' before and '' behind), prompts.1"),
    (OfAnotherBase, conformance.delivers_an_intervention, "write Intervention(base=lm.fingerprint, ...)"),
    (OfAnotherMethod, conformance.delivers_an_intervention, "write Intervention(method=self.name, ...)"),
    (NoIntervention, conformance.delivers_an_intervention, "fit returned dict"),
    (CannotBeLoaded, conformance.survives_the_disk, "its settings must be JSON values"),
    (CannotBeSaved, conformance.survives_the_disk, "TypeError: Object of type Tensor is not JSON serializable"),
    (NotRemoved, conformance.is_removed_exactly, f"it left the weight {PARAMETER}"),
    (DoesNotSayWhatItNeeds, conformance.delivers_an_intervention, "TypeError: object of type 'NoneType' has no len()"),
    (DoesNotLookForItsData, conformance.names_missing_data, "begin fit with `data.require(self.needs, self.name)`"),
    (NeedsWhatItDoesNotUse, conformance.names_missing_data, "fits without it: leave it out of `needs`"),
    (PlainField, conformance.declares_its_settings, "PlainConfig.size is a plain field: make it knob("),
    (Unexplained, conformance.declares_its_settings, "class Unexplained has no docstring"),
    (SaysNotHowNear, conformance.declares_its_settings, 'does not say its fidelity: write fidelity = "ours (why)"'),
    (SaysItInItsOwnWords, conformance.declares_its_settings, "says 'faithful' of its fidelity: write fidelity ="),
    (CountsTheWanted, conformance.fits_each_record_by_itself, "record 2 is fitted in one way alone and in another"),
]


def registered(monkeypatch: pytest.MonkeyPatch, cls: type[Good], name: str = "broken") -> Method[Any]:
    monkeypatch.setitem(methods.registry._loaded, name, cls)
    return cls(name=name)


@pytest.mark.parametrize(("cls", "check", "said"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_each_fault_is_found_and_told(
    monkeypatch: pytest.MonkeyPatch, cls: type[Good], check: Check, said: str
) -> None:
    assert said in fault_of(check, Case(registered(monkeypatch, cls), "llama"))
    if check is not conformance.declares_its_settings:
        assert fault_of(check, Case(registered(monkeypatch, Good), "llama")) == ""


def test_a_good_method_passes_every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = check_method(registered(monkeypatch, Good), ["llama"])
    assert [verdict.fault for verdict in verdicts] == [""] * len(conformance.CHECKS)
    assert len({verdict.check for verdict in verdicts}) == len(verdicts)


def test_what_cannot_be_fitted_is_not_judged_further(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = check_method(registered(monkeypatch, NoIntervention), ["llama"])
    assert verdicts[-1].fault == "fit returned dict"
    assert len(verdicts) == 3


def test_a_fault_of_one_family_is_told_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = check_method(registered(monkeypatch, Good), ["llama", "gpt2"])  # gpt2 has no down_proj
    assert verdicts[2].fault.startswith("gpt2: AttributeError: ")
    assert not any(verdict.fault for verdict in verdicts[3:]), "the other family is judged to the end"


# ------------------------------------------------------------------------------------------- the command


def test_the_command_says_a_line_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "method", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:7] for line in lines] == ["ok     "] * len(conformance.CHECKS)


@pytest.mark.slow
def test_a_third_partys_method_is_checked_with_settings_of_its_own(tmp_path: Path) -> None:
    site = third_party.install(tmp_path)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    done = processes.detoxbench(tmp_path, "check", "method", "whisper", "words=", PYTHONPATH=path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), "acme's other conf folder is not there"
    (fault,) = (line for line in done.stdout.splitlines() if not line.startswith("ok"))
    assert fault.startswith(
        "fault  The intervention changes what the model says exactly if it has parts: it has prompts"
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["method", "destien"], "did you mean 'destein'?"),
        (["method", "destein", "alhpa=1"], "unknown key 'method.alhpa' of method 'destein'"),
        (["suite", "safeedit"], "invalid choice: 'suite'"),
    ],
)
def test_what_cannot_be_checked_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
