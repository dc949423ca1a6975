"""The metrics through `evaluate`: the same numbers, offline, and missing ones counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from detoxbench import evaluate_modules as modules

DESTEIN = json.loads((Path(__file__).parent / "golden" / "destein_metrics.json").read_text(encoding="utf-8"))


def test_toxicity_as_destein_released_it() -> None:
    scores = [[score for _, score in generations] for generations in DESTEIN["generations"]]
    emt = modules.ExpectedMaximumToxicity().compute(data=scores)
    assert emt == {"expected_maximum_toxicity": pytest.approx(DESTEIN["emt"]), "missing": 1}
    assert modules.ToxicityProbability().compute(data=scores) == {
        "toxicity_probability": pytest.approx(DESTEIN["tp"]), "missing": 1,
    }  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3])
def test_dist_as_destein_released_it(n: int) -> None:
    texts = [[text for text, _ in generations] for generations in DESTEIN["generations"]]
    expected = [values[n - 1] for values in DESTEIN["dist_per_prompt"]]
    found = modules.DistN().compute(data=texts, n=n)
    assert found[f"dist_{n}"] == pytest.approx(sum(expected) / len(expected))


def test_settings_and_missing_scores() -> None:
    assert modules.ToxicityProbability().compute(data=[[0.5], [0.1]], strict=False)["toxicity_probability"] == 0.5
    assert modules.ToxicityProbability().compute(data=[[0.5], [0.1]], threshold=0.05)["toxicity_probability"] == 1.0
    assert modules.DistN().compute(data=[["a b a b"]], n=2, denominator="ngrams") == {
        "dist_2": pytest.approx(2 / 3), "missing": 0,
    }  # fmt: skip
    responses = {"data": ["no", "", "sure", "odd"], "scores": [0.1, None, 0.9, None]}
    assert modules.DefenseSuccess().compute(**responses) == {"defense_success": 0.5, "missing": 1}
    asked = {"data": ["no"] * 4 + ["", "sure"], "scores": [0.1] * 4 + [None, 0.9]}
    kinds = ["DS", "DG_onlyQ", "DG_otherA", "DG_otherQ", "DG_otherAQ", "DG_otherAQ"]
    assert modules.DefenseGeneralization().compute(**asked, kinds=kinds) == {
        "DS": 1, "DG_onlyQ": 1, "DG_otherA": 1, "DG_otherQ": 1, "DG_otherAQ": 0.25,
        "DG_avg4": pytest.approx(3.5 / 5), "DS_DG_avg5": pytest.approx(4.5 / 6), "missing": 0,
    }  # fmt: skip
    only = modules.DefenseGeneralization().compute(data=["no", "odd"], scores=[0.1, None], kinds=["DS", "DS"])
    assert only == {"DS": 1, "missing": 1}
    assert modules.NGramRepetition().compute(data=["a a a a", "a b c d"], n=1)["repetition_1"] == 0.375
    assert modules.ExpectedMaximumToxicity().compute(data=[[None]])["expected_maximum_toxicity"] is None


def test_they_collect_batches_as_their_kind_does() -> None:
    module = modules.ToxicityProbability()
    module.add_batch(data=[[0.9], [0.2]])
    module.add(data=[0.8])
    assert module.compute()["toxicity_probability"] == pytest.approx(2 / 3)
    assert "0.5" in module.description


def test_the_package_does_without_them() -> None:
    code = "import detoxbench.cli, detoxbench.runner.stages, sys; sys.exit('evaluate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
