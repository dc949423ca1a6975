"""What every registered method must keep, whatever it does: one conformance suite over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import detoxbench as db
from benchmarks.gpu import CHEAP, OWN_HEAD
from detoxbench.authoring.conformance import CHECKS, FAMILIES, PROMPTS, Case, fault_of
from detoxbench.config import digest, identity, required_fields
from detoxbench.data.examples import FitData
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.methods.base import Method
from tests.support import elsewhere
from tests.support.tiny import tiny

NAMES = db.methods.names()


READY = [name for name in NAMES if not required_fields(db.methods.get(name).Config)]
"""Methods that work without a setting."""


def made(name: str, **changed: Any) -> Method[Any]:
    return db.methods.create(name, **CHEAP.get(name, {}), **changed)


FAST = {
    "none", "self_reminder", "few_shot", "destein", "dinm", "ext_sub", "contrastive_perplexity", "profs", "dexperts",
    "best_of_n", "guard_filter",
}  # fmt: skip
"""One or two of every channel and way of fitting; `make test-slow` has all methods on all families."""
CASES = [
    pytest.param((name, family), id=f"{name}-{family}", marks=[] if fast else pytest.mark.slow)
    for family in FAMILIES
    for name in NAMES
    for fast in (name in FAST and family == FAMILIES[0],)
    if not (name in OWN_HEAD and family == "gpt2")
]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, family = request.param
    settings = elsewhere.settings(name, family, tmp_path_factory.mktemp(name))
    return Case(db.methods.create(name, **settings), family)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_what_every_method_must_keep(case: Case, check: Callable[[Case], None]) -> None:
    assert fault_of(check, case) == ""


def test_it_changes_texts_unless_it_is_the_base_model(case: Case) -> None:
    lm = case.model()

    def texts() -> list[str]:
        return [s.text for s in lm.generate(PROMPTS, max_new_tokens=12, do_sample=True, n=2)]

    plain = texts()
    with lm.applied(case.intervention):
        assert (texts() == plain) == (case.method.name == "none" or case.method.delivers_texts)


@pytest.fixture(scope="module")
def each_record() -> Case:
    return Case(made("dinm", protocol="per_record"), "llama")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_one_that_fits_each_record_keeps_it_too(each_record: Case, check: Callable[[Case], None]) -> None:
    assert fault_of(check, each_record) == ""


@pytest.mark.parametrize("name", [name for name in READY if made(name).needs])
def test_missing_data_is_named_with_the_remedy(name: str) -> None:
    role = sorted(r.value for r in made(name).needs)[0]
    with pytest.raises(DetoxbenchError, match=rf"'{name}' needs fit data in the role '{role}'.*fit\.{role}=FILE"):
        made(name).fit(tiny(), FitData())


@pytest.mark.parametrize("name", NAMES)
def test_its_configuration_is_its_identity(name: str) -> None:
    cls = db.methods.get(name)
    assert digest(identity(cls.Config())) == digest(identity(made(name).Config()))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in READY])
def test_what_must_be_given_is_asked_for_before_anything_is_loaded(name: str) -> None:
    method, (setting, *_) = db.methods.create(name), required_fields(db.methods.get(name).Config)
    for ask in (method.identity, lambda: method.fit(tiny(), FitData())):
        if name == "generations" and ask is not method.identity:
            continue  # it fits nothing
        with pytest.raises(UsageError, match=f"'method.{setting}' must be given to method '{name}': "):
            ask()
