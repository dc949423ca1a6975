"""Every method says how near it is to what was published, and says another thing where its settings make it one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

import detoxbench as db
from detoxbench import cli
from detoxbench.methods.base import FIDELITY, Method

ROOT = Path(__file__).parents[2]
CODE, FORMULA, CLOSE, OURS, UNCHECKED = FIDELITY


def said(name: str, **settings: Any) -> str:
    return db.methods.create(name, **settings).fidelity


@pytest.mark.parametrize(
    ("name", "settings", "form"),
    [
        ("none", {}, OURS),
        ("self_reminder", {}, FORMULA),
        ("self_reminder", {"prefix": ""}, OURS),
        ("destein", {}, CODE),
        ("destein", {"fidelity": "reference"}, CODE),
        ("destein", {"fidelity": "paper"}, UNCHECKED),
        ("destein", {"fusion": "additive"}, OURS),
        ("destein", {"site": "mlp"}, OURS),
        ("destein", {"pair_source": "self", "guide": "embedded_trigram"}, OURS),
        ("dinm", {}, CODE),
        ("dinm", {"num_steps": 0}, OURS),
        ("dinm", {"edits": 2}, OURS),
        ("dinm", {"fidelity": "paper"}, UNCHECKED),
        ("dinm", {"kl_grad": True}, OURS),
        ("ext_sub", {}, CODE),
        ("ext_sub", {"fidelity": "reference", "operation": "subtract"}, CODE),
        ("ext_sub", {"operation": "negate"}, OURS),
        ("ext_sub", {"projection": "column"}, OURS),
        ("contrastive_perplexity", {}, FORMULA),
        ("contrastive_perplexity", {"centroid": "batch"}, CODE),
        ("contrastive_perplexity", {"objective": "paper"}, CLOSE),
        ("contrastive_perplexity", {"distance": "hinge"}, OURS),
    ],
)
def test_each_setting_says_its_own(name: str, settings: dict[str, Any], form: str) -> None:
    line = said(name, **settings)
    assert line.startswith(f"{form} (")
    assert line.endswith(")")


def test_what_differs_between_two_states_is_said() -> None:
    assert "located for every record" in said("dinm", protocol="per_record")
    assert "located for every record" not in said("dinm", protocol="per_record", fidelity="reference")
    assert "fidelity=reference has its scalings, rounding and IA3 too" in said("ext_sub")
    assert "bfloat16 and IA3 by our computation" in said("ext_sub", fidelity="reference")
    assert "training is not compared" in said("ext_sub")
    assert "training is not compared" not in said("ext_sub", expert="a", anti_expert="b")


def test_the_fixtures_that_are_named_are_there() -> None:
    lines = [said(name) for name in db.methods.names()]
    named = {word.strip(":,;()") for line in lines for word in line.split() if word.startswith("tests/")}
    assert named
    assert [place for place in named if not (ROOT / place).exists()] == []


def test_the_command_line_shows_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cli.main(["list", "methods"])
    assert said("dinm") in capsys.readouterr().out
    cli.main(["describe", "method", "dinm"])
    assert said("dinm") in capsys.readouterr().out

    class Silent(db.methods.get("none")):  # type: ignore[misc]
        fidelity = ""

    monkeypatch.setitem(db.methods.registry._loaded, "none", Silent)
    cli.main(["list", "methods", "--json"])
    shown = {row["name"]: row["fidelity"] for row in msgspec.json.decode(capsys.readouterr().out)["methods"]}
    assert (shown["none"], shown["dinm"]) == ("not said", said("dinm"))


def test_a_run_keeps_the_line_and_its_id_does_not_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["method=self_reminder", "suite=utility", "suite.limit=2", "gen.max_new_tokens=2", "with_base=false"]
    first = db.run([*asked, f"runs_dir={tmp_path / 'a'}"])
    assert first.record.fidelity == said("self_reminder", prefix="")
    monkeypatch.setattr(db.methods.get("self_reminder"), "fidelity", "")
    second = db.run([*asked, f"runs_dir={tmp_path / 'b'}"])
    assert second.record.fidelity is None
    assert second.run_id == first.run_id


def test_by_itself_a_method_says_nothing() -> None:
    assert Method.fidelity.fget(object()) == ""  # type: ignore[attr-defined]
