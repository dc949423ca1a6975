"""Compositions: parts are fitted one upon the other, applied together, and every knob of each is reachable."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import detoxbench as db
from benchmarks.gpu import CHEAP
from detoxbench.authoring.conformance import CHECKS, EXAMPLES, Case, fault_of
from detoxbench.data.examples import FitData, Role
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.errors import UsageError
from detoxbench.fitting.shelf import sharing
from detoxbench.interventions.channels import Dense
from detoxbench.methods.base import Method
from detoxbench.runner.cell import comparison_runs
from detoxbench.runner.composition import compose_run
from tests.support import elsewhere
from tests.support.adapters import logits
from tests.support.tiny import same, state, tiny

CHEAP_PARTS = {**CHEAP, "self_reminder": {"prefix": "be kind. ", "suffix": " be kind."}}
"""The published reminder leaves little of a tiny model's context."""


def made(*parts: str, seed: int = 0, **part: dict[str, Any]) -> Method[Any]:
    cheap = {name.partition(":")[0]: CHEAP_PARTS.get(name.rpartition(":")[2], {}) for name in parts}
    settings = {name: {**of, **part.get(name, {})} for name, of in cheap.items()}
    return db.methods.create("compose", seed=seed, parts=list(parts), part=settings)


def fitted(*parts: str, lm: db.LanguageModel | None = None, **part: dict[str, Any]) -> db.Intervention:
    method = made(*parts, **part)
    return method.fit(lm or tiny(), fit_data(fit_spec()(limit=EXAMPLES), method.needs)[0])


CHANNELS = {
    "weights": "dinm",
    "low-rank weights": "ext_sub",
    "hooks": "destein",
    "logits": "dexperts",
    "logits, behind candidates": "sasa",
    "outputs": "best_of_n",
    "prompts": "self_reminder",
}
"""A method that acts through it."""
FAST = {("dinm", "destein"), ("ext_sub", "dexperts"), ("destein", "self_reminder")}
"""Every channel once; the others are slow tests."""
PAIRS = [
    pytest.param(pair, id="+".join(pair), marks=[] if pair in FAST else [pytest.mark.slow])
    for pair in itertools.permutations(CHANNELS.values(), 2)
]


@pytest.fixture(scope="module", params=PAIRS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(made(*request.param), "llama")


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_pair_of_channels_keeps_what_a_method_must_keep(case: Case, check: Callable[[Case], None]) -> None:
    assert fault_of(check, case) == ""


@pytest.mark.slow
def test_one_part_is_the_method_itself() -> None:
    for name in CHANNELS.values():
        alone, part = elsewhere.fitted(name, **CHEAP_PARTS.get(name, {})), fitted(name)
        assert list(alone._tensors()) == list(part._tensors())
        assert all(torch.equal(a, b) for a, b in zip(alone._tensors().values(), part._tensors().values(), strict=True))
        assert part.info == {"order": [name], "parts": {name: dict(alone.info)}}


@pytest.mark.slow
def test_the_second_part_is_fitted_on_the_model_with_the_first_applied() -> None:
    lm = tiny()
    first = elsewhere.fitted("ext_sub")
    method = db.methods.create("destein", **CHEAP["destein"])
    data, _ = fit_data(fit_spec()(limit=EXAMPLES), method.needs)
    with lm.applied(first):
        expected = method.fit(lm, data)
    both = fitted("ext_sub", "destein")
    assert torch.equal(both.hooks[0].tensors["z"], expected.hooks[0].tensors["z"])
    assert not torch.equal(both.hooks[0].tensors["z"], elsewhere.fitted("destein").hooks[0].tensors["z"])
    assert torch.equal(
        fitted("destein", "ext_sub").hooks[0].tensors["z"], elsewhere.fitted("destein").hooks[0].tensors["z"]
    )


@pytest.mark.slow
def test_what_a_part_learns_is_kept_by_what_it_stands_upon() -> None:
    class Recording:
        def __init__(self) -> None:
            self.keys: list[str] = []

        def kept(self, key: str, learn: Callable[[], Any]) -> Any:
            self.keys.append(key)
            return learn()

    def keys(*parts: str, **part: dict[str, Any]) -> list[str]:
        with sharing(shelf := Recording()):
            fitted(*parts, **part)
        return shelf.keys

    one, other = keys("ext_sub", "destein"), keys("destein", "ext_sub")
    assert len({*one, *other}) == 6, "each learns on the base or on what stands before it: never the same"
    swept = keys("ext_sub", "destein", destein={"alpha": 0.1})
    assert swept == one, "a sweep over the last part's strength learns once"
    lower = keys("ext_sub", "destein", ext_sub={"alpha": 0.5})
    assert lower[:2] == one[:2], "so does one over the first's"
    assert lower[2] != one[2], "and what stands upon it learns anew"


def test_changes_of_one_parameter_add_up_to_the_last_edit() -> None:
    """The second edit starts from the weight as the first has left it."""
    lm = tiny()
    settings = {"layers": [1], "suffix": ""}
    both = fitted("a:dinm", "b:dinm", lm=lm, a=settings, b={**settings, "instance": 1})
    first = elsewhere.fitted("dinm", **settings)
    method = db.methods.create("dinm", **{**CHEAP["dinm"], **settings, "instance": 1})
    with lm.applied(first):
        second = method.fit(lm, fit_data(fit_spec()(limit=EXAMPLES), method.needs)[0])
    deltas = [w.delta.delta for w in (*first.weights, *second.weights) if isinstance(w.delta, Dense)]
    assert [torch.equal(w.delta.delta, d) for w, d in zip(both.weights, deltas, strict=True)] == [True, True]  # type: ignore[union-attr]
    before, plain = state(lm), logits(lm)
    with lm.applied(both):
        changed = logits(lm)
    assert same(before, state(lm))
    with lm.applied(first), lm.applied(second):
        torch.testing.assert_close(logits(lm), changed, atol=1e-5, rtol=0)
    assert not torch.allclose(plain, changed)


def test_order_and_diagnostics_of_all_parts_are_kept() -> None:
    info = fitted("dinm", "destein").info
    assert info["order"] == list(info["parts"]) == ["dinm", "destein"]
    assert "located_layer" in info["parts"]["dinm"]
    assert "direction_norm" in info["parts"]["destein"]
    twice = fitted("a:self_reminder", "b:self_reminder", a={"prefix": "be kind. "}, b={"prefix": "be brief. "})
    assert list(twice.info["parts"]) == ["a", "b"]
    text = "who?"
    for prompt in twice.prompts:
        text = prompt.rewrite(text, chat=False)
    assert text == "be brief. be kind. who?", "the last part stands outermost"


# --- settings and identity -------------------------------------------------------------------------------------------


def test_needs_and_examples_are_those_of_the_parts() -> None:
    method = made("dinm", "destein")
    assert method.needs == {Role.EDIT_RECORDS, Role.PARALLEL_PAIRS}
    data, _ = fit_data(fit_spec()(limit=EXAMPLES), method.needs)
    assert method.examples(data) == 1 + EXAMPLES


def test_every_knob_is_reachable_by_name_on_the_command_line() -> None:
    spec = compose_run(
        ["method=compose", "method.parts=[a:ext_sub,b:ext_sub,destein]", "method.part.a.alpha=.4",
         "method.part.b.alpha=2", "method.part.destein.layers=[1,2]"]
    )  # fmt: skip
    parts = db.methods.create("compose", parts=spec.method.parts, part=spec.method.part).parts
    assert [(name, part.name) for name, part in parts.items()] == [
        ("a", "ext_sub"),
        ("b", "ext_sub"),
        ("destein", "destein"),
    ]
    assert [parts[name].config.alpha for name in parts] == [0.4, 2.0, 0.4]
    assert parts["destein"].config.layers == (1, 2)


def test_a_part_has_the_values_that_the_model_needs_as_it_has_alone() -> None:
    alone = compose_run(["method=ext_sub"]).method
    spec = compose_run(["method=compose", "method.parts=[destein,a:ext_sub]", "method.part.a.batch_size=32"])
    part = db.methods.create("compose", parts=spec.method.parts, part=spec.method.part).parts["a"].config
    assert (part.learning_rate, part.micro_batch_size) == (alone.learning_rate, alone.micro_batch_size) == (5e-4, 16)
    assert part.batch_size == 32, "what is given stays"


@pytest.mark.parametrize(
    ("parts", "part", "said"),
    [
        (["destien"], {}, "did you mean 'destein'"),
        (["destein", "destein"], {}, r"two parts are called destein: name them, as in parts=\[a:destein,b:destein\]"),
        (["destein"], {"ext_sub": {}}, "part.ext_sub is none of parts"),
        (["destein"], {"destein": {"alhpa": 1}}, r"unknown key 'method\.part\.destein\.alhpa' of method 'destein'"),
        (["destein"], {"destein": {"alpha": -1}}, r"'method\.part\.destein\.alpha' is out of range"),
        (["dinm"], {"dinm": {"protocol": "per_record"}}, "part 'dinm' is fitted for each record"),
        (["generations"], {"generations": {"path": "x"}}, "has texts and no change"),
        (["adapter"], {}, "'method.path' must be given to method 'adapter'"),
    ],
)
def test_what_cannot_be_composed_is_refused_by_name(parts: list[str], part: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        db.methods.create("compose", parts=parts, part=part).identity()


def test_a_guide_of_a_part_is_never_the_judge() -> None:
    asked = ["method=compose", "method.parts=[destein]", "method.part.destein.pair_source=self"]
    with pytest.raises(UsageError, match="is the run's judge"):
        compose_run([*asked, "method.part.destein.guide=embedded"])


def test_a_guide_that_a_saved_intervention_brings_is_never_the_judge(tmp_path: Path) -> None:
    path = elsewhere.saved(tmp_path / "chosen", "best_of_n", guide="word_list", n=2)
    for asked in (
        ["method=intervention", f"method.path={path}"],
        ["method=compose", "method.parts=[intervention]", f"method.part.intervention.path={path}"],
    ):
        compose_run([*asked, "scorer=embedded"])
        with pytest.raises(UsageError, match="is the run's judge"):
            compose_run([*asked, "scorer=word_list"])


def test_identity_is_made_of_the_parts_and_not_of_their_names(tmp_path: Path) -> None:
    def identity(*parts: str, **part: dict[str, Any]) -> dict[str, Any]:
        return db.methods.create("compose", parts=list(parts), part=part).identity()

    one = identity("destein", "self_reminder")
    assert one["config"] == {"parts": "destein+self_reminder", "part": {}}
    assert identity("a:destein", "b:self_reminder") == one
    assert identity("destein", "self_reminder", destein={"alpha": 0.4}) == one, "its default"
    assert identity("destein", "self_reminder", destein={"alpha": 0.3}) != one
    assert identity("self_reminder", "destein") != one
    twice = identity("a:destein", "b:destein", b={"alpha": 0.3})
    assert twice["config"] == {"parts": "destein+destein 2", "part": {"destein 2": {"alpha": 0.3}}}
    path = elsewhere.saved(tmp_path / "run", "self_reminder")
    with_file = identity("destein", "intervention", intervention={"path": path})
    assert with_file["intervention.path"] == db.methods.create("intervention", path=path).fingerprints()["path"]
    assert path not in str(with_file)


def test_each_part_alone_runs_beside_it() -> None:
    spec = compose_run(["method=compose", "method.parts=[destein,self_reminder]", "method.part.destein.alpha=.3"])
    base, *controls = comparison_runs(spec)
    assert base.method_name == "none"
    assert [control.method.parts for control in controls] == [("destein",), ("self_reminder",)]
    assert controls[0].method.part == {"destein": {"alpha": 0.3}}
    assert [list(comparison_runs(control)) for control in controls] == [[], []]


def test_its_fidelity_names_those_of_its_parts() -> None:
    line = made("destein", "self_reminder").fidelity
    assert line.startswith("ours (a composition of destein: equal to the released code (")
    assert "; self_reminder: ours (a reminder in words of one" in line


def test_nothing_is_composed_of_nothing() -> None:
    with pytest.raises(UsageError, match=r"'method\.parts' must be given to method 'compose'"):
        db.methods.create("compose").fit(tiny(), FitData())
