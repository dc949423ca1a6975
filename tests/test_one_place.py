"""What there may be more of is one place: a channel, a role, a cost that somebody adds works everywhere at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from detoxbench import Channel, FitData, Intervention, Role, UsageError, Weight, compose
from detoxbench.config import resolve_switches, runtime, switch
from detoxbench.data import roles
from detoxbench.data.fit import fit_data, fit_names
from detoxbench.data.readers import rows
from detoxbench.errors import DetoxbenchError, NonFiniteError
from detoxbench.interventions.channels import LowRank
from detoxbench.interventions.intervention import channel
from detoxbench.results.costs import COSTS, Cost
from detoxbench.results.rendering.grids import extra_columns
from detoxbench.results.tables import Row, Table
from detoxbench.runner.composition import compose_run
from tests.support.tiny import same, state, tiny


@dataclass(frozen=True)
class Shift(Channel):
    """A vector that is added to the final norm's bias-free output."""

    vector: torch.Tensor
    times: float = 1.0

    @property
    def place(self) -> str:
        return "the final norm"

    def named_tensors(self) -> Mapping[str, torch.Tensor]:
        return {"vector": self.vector}

    def as_json(self) -> dict[str, Any]:
        return {"times": self.times}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Shift:
        return cls(tensors["vector"], document["times"])

    def settings(self) -> dict[str, Any]:
        return {"times": self.times}

    @classmethod
    def put_on(cls, lm: Any, parts: Sequence[Shift], undo: ExitStack) -> None:
        norm = lm.architecture.module(lm.architecture.final_norm)
        for part in parts:
            hook = norm.register_forward_hook(lambda _, __, y, part=part: y + part.times * part.vector)
            undo.callback(hook.remove)


@dataclass(frozen=True, kw_only=True)
class Shifted(Intervention):
    shifts: tuple[Shift, ...] = channel(Shift)


def test_a_new_channel_is_applied_saved_counted_composed_checked_and_refused(tmp_path: Path) -> None:
    lm = tiny()
    before, plain = state(lm), lm.generate(["hello"], max_new_tokens=8)
    shift = Shifted(method="m", base=lm.fingerprint, shifts=(Shift(torch.linspace(-3, 3, 32), 2.0),))
    with lm.applied(shift):
        moved = lm.generate(["hello"], max_new_tokens=8)
    assert moved != plain
    assert same(before, state(lm))
    assert lm.generate(["hello"], max_new_tokens=8) == plain
    shift.save(tmp_path / "saved")
    loaded = Shifted.load(tmp_path / "saved")
    assert loaded.digest() == shift.digest()
    assert (loaded.added_parameters(), loaded.artifact_bytes()) == (32, 128)
    with pytest.raises(DetoxbenchError, match="acts through 'shifts', a channel that is not known here"):
        Intervention.load(tmp_path / "saved")
    twice = compose(shift, loaded)
    assert isinstance(twice, Shifted)
    assert len(twice.shifts) == 2
    low = Weight("lm_head.weight", LowRank(torch.ones(1, 32), torch.ones(len(lm.tokenizer), 1)))
    with pytest.raises(DetoxbenchError, match=r"cannot become a LoRA: it has shifts \(the final norm\)"):
        Shifted(method="m", base=lm.fingerprint, weights=(low,), shifts=shift.shifts).to_peft(tmp_path / "x", lm)
    with pytest.raises(NonFiniteError, match="times"):
        Shifted(method="m", base=lm.fingerprint, shifts=(Shift(torch.ones(32), float("nan")),)).require_finite()


def test_a_new_role_is_read_limited_named_hashed_and_given_to_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = Role("insults")
    row = roles.RoleRow("single insults", lambda path: [(r.value["text"],) for r in rows(path)], lambda: [("fool",)])
    monkeypatch.setitem(roles.ROLES, role, row)
    file = tmp_path / "insults.jsonl"
    file.write_text('{"text": "rotten"}\n{"text": "stupid"}\n')
    spec = compose_run([f"fit.insults={file}", "fit.limit=1"]).fit
    data, digest = fit_data(spec, frozenset({role}))
    assert data.insults == (("rotten",),)
    assert FitData(insults=[("x",)]).examples() == 1
    assert fit_names(spec, data, per_record=False) == {"insults": "insults.jsonl, 1 examples"}
    embedded, other = fit_data(compose_run([]).fit, frozenset({role}))
    assert (embedded.insults, other != digest) == ((("fool",),), True)
    with pytest.raises(UsageError, match=r"unknown key 'fit.insolts'.*did you mean 'fit.insults'"):
        compose_run(["fit.insolts=x"])


def test_a_role_that_is_not_known_is_no_silent_none() -> None:
    with pytest.raises(AttributeError, match=r"no role 'paralel_pairs'.*did you mean 'parallel_pairs'"):
        _ = FitData().paralel_pairs
    with pytest.raises(TypeError, match="no role 'paralel_pairs'"):
        FitData(paralel_pairs=())
    assert FitData().parallel_pairs is None


def test_a_new_cost_is_a_column_with_its_heading_and_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COSTS, "joules", Cost("fit.joules", "energy", "energy", "J", "lower", "{:.0f} J".format))
    row = Row("m", {"name": "m"}, [0], ["1"], {}, {"joules": 12.3}, {})
    table = Table("model", "suite", "scorer", {}, [], [row], [], beside=["cost.joules"])
    assert extra_columns(table) == [("energy", ["12 J"])]


def test_a_switch_is_what_its_configuration_is_true_to() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Config:
        fidelity: str = runtime("default", "what switches that are null stand for")
        mean: str | None = switch("which mean", default="a", reference="b", paper="c")

        def __post_init__(self) -> None:
            resolve_switches(self)

    assert [Config(fidelity=f).mean for f in ("default", "reference", "paper")] == ["a", "b", "c"]
    assert Config(fidelity="paper", mean="a").mean == "a"
