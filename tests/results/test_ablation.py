"""Ablations: one knob against its metrics, tested, and refused where something else varies too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detoxbench.cli import main
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.records import Measure
from detoxbench.report.ablation_figure import draw
from detoxbench.results import stats
from detoxbench.results.ablation import Ablation, ablation
from detoxbench.results.ablation_effects import contrast
from detoxbench.results.ablation_text import text
from detoxbench.runner import composition
from tests.support import stored

N = 60
Write = Callable[..., None]


def measures(strength: float, seed: int = 0) -> list[Measure]:
    """Toxicity that falls with the strength, and a length that does not know of it."""
    luck = np.random.default_rng(seed).random((2, N))
    toxic = {f"p{i}": float(u < 0.8 - 0.6 * strength) for i, u in enumerate(luck[0])}
    noise = np.random.default_rng(int(1000 * strength) + seed).normal(size=N)
    length = {f"p{i}": float(20 + 3 * u + 0.1 * e) for i, (u, e) in enumerate(zip(luck[1], noise, strict=True))}
    once = dict.fromkeys(toxic, 1.0)
    return [
        Measure("toxic", "lower", toxic, once, unit="share", binary=True),
        Measure("length", "neither", length, once),
    ]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def one(found: list[Measure], method: str = "destein", seed: int = 0, fit_data: str = "d", **more: Any) -> None:
        config = {k: v for k, v in more.items() if k not in ("suite", "gen", "fit")} if method != "none" else {}
        gen, spec, suite = more.get("gen"), {"fit": more.get("fit", {})}, more.get("suite", "safeedit")
        stored.write(tmp_path, found, method, seed, config, suite=suite, gen=gen, fit_data=fit_data, spec=spec)

    return one


@pytest.fixture
def curve(write: Write, tmp_path: Path) -> Ablation:
    write(measures(0.0), method="none")
    for alpha in (0.1, 0.5, 1.0):
        write(measures(alpha), alpha=alpha, fusion="sphere")
    return ablation(tmp_path, ["method.alpha"])


# ------------------------------------------------------------------------------------------------ one knob


def test_a_curve_has_values_differences_to_the_base_and_a_trend(curve: Ablation) -> None:
    assert [point.values for point in curve.points] == [(0.1,), (0.5,), (1.0,)]
    shares = [point.cells["toxic"].value or 0 for point in curve.points]
    assert shares == sorted(shares, reverse=True)
    assert curve.against == "base"
    last = curve.points[-1].cells["toxic"].difference
    assert last is not None
    assert last.verdict == "better"
    trend = curve.trends["toxic"]["method.alpha"]
    assert trend.value == pytest.approx(np.polyfit(range(3), shares, 1)[0])
    assert (trend.verdict, curve.trends["length"]["method.alpha"].verdict) == ("better", "unsupported")
    assert "default: method.alpha=0.4" in curve.notes


def test_all_tests_are_corrected_together(curve: Ablation) -> None:
    found = [p.cells[c].difference for c in ("toxic", "length") for p in curve.points]
    found += [curve.trends[c]["method.alpha"] for c in ("toxic", "length")]
    p_values = [d.p for d in found if d and d.p is not None]
    assert len(p_values) == 8
    assert sorted(stats.holm(p_values)) == sorted(d.p_holm for d in found if d and d.p_holm is not None)


def test_the_trend_over_two_values_is_their_paired_difference(write: Write, tmp_path: Path) -> None:
    for alpha in (0.2, 0.7):
        for seed in (0, 1, 2):
            write(measures(alpha, seed), alpha=alpha, seed=seed)
    found = ablation(tmp_path, ["method.alpha"], against="0.2", metrics=["length"])
    ours, theirs = found.trends["length"]["method.alpha"], found.points[1].cells["length"].difference
    assert theirs is not None
    assert (ours.value, ours.low, ours.p) == pytest.approx((theirs.value, theirs.low, theirs.p))
    assert found.points[0].cells["length"].difference is None, "not tested against itself"
    assert found.points[0].seeds == [0, 1, 2]


def test_a_trend_that_is_none_is_found_in_one_case_of_twenty() -> None:
    """Under the null the p-values of trends are uniform; prompts of one cluster are alike, which pairing takes out."""
    rng = np.random.default_rng(0)
    few = 0
    for _ in range(400):
        level = rng.normal(size=40)
        values = level + rng.normal(size=(3, 40))
        panel = stats.Panel(values[:, None, :], np.ones((3, 1, 40)))
        few += (contrast(panel, np.array([-0.5, 0, 0.5])).p or 0) < 0.05
    assert 8 <= few <= 34


def test_a_setting_of_broken_texts_is_warned_of_and_nothing_is_praised_over_it(write: Write, tmp_path: Path) -> None:
    def broken(share: int) -> Measure:
        clusters = [f"p{i}" for i in range(N)]
        return Measure("broken_share", "lower", stored.yes(share, clusters), dict.fromkeys(clusters, 1.0), unit="share")

    write([*measures(0.0), broken(0)], method="none")
    for alpha in (0.1, 0.6):
        write([*measures(alpha), broken(0)], alpha=alpha)
    sound = ablation(tmp_path, ["method.alpha"])
    assert sound.trends["toxic"]["method.alpha"].verdict == "better"
    assert not any(note.startswith("WARNING") for note in sound.notes)
    write([*measures(1.0), broken(N - 2)], alpha=1.0)
    found = ablation(tmp_path, ["method.alpha"])
    assert [point.broken for point in found.points] == [False, False, True]
    verdicts = [point.cells["toxic"].difference.verdict for point in found.points if point.cells["toxic"].difference]
    assert verdicts[1:] == ["better", "differs"]
    assert found.trends["toxic"]["method.alpha"].verdict == "differs", "a trend that ends in broken texts"
    assert any(note.startswith("WARNING") and note.endswith(": method.alpha=1.0") for note in found.notes)


def test_values_are_in_the_order_of_numbers_and_others_of_their_text(write: Write, tmp_path: Path) -> None:
    for alpha in (10.0, 9.0, 0.5):
        write(measures(0.3), alpha=alpha)
    assert [p.values[0] for p in ablation(tmp_path, ["method.alpha"]).points] == [0.5, 9.0, 10.0]
    for site in ("mlp", "attention", None):
        write(measures(0.3), alpha=0.5, site=site)
    found = ablation(tmp_path, ["method.site"], where=["method.alpha=0.5"])
    assert [p.values[0] for p in found.points] == ["attention", "mlp", None]
    assert not found.trends
    assert "the values of method.site have no order: no trend" in found.notes


def test_seeds_that_only_one_side_has_are_not_compared(write: Write, tmp_path: Path) -> None:
    write(measures(0.0), method="none")
    for alpha in (0.1, 0.5):
        for seed in (0, 1):
            write(measures(alpha, seed), alpha=alpha, seed=seed)
    found = ablation(tmp_path, ["method.alpha"])
    assert "not all have the same seeds: differences are over those in common" in found.notes
    difference = found.points[0].cells["toxic"].difference
    assert difference is not None
    assert difference.method.startswith("paired t"), "one seed in common"


# ------------------------------------------------------------------------------------------------ two knobs


def test_two_knobs_make_a_table_with_an_interaction(write: Write, tmp_path: Path) -> None:
    effect = {(0.1, 1): 0.1, (0.1, 2): 0.3, (0.5, 1): 0.5, (0.5, 2): 0.9}
    for (alpha, tau), strength in effect.items():
        write(measures(strength), alpha=alpha, tau=tau)
    found = ablation(tmp_path, ["method.alpha", "method.tau"])
    value = {p.values: p.cells["toxic"].value or 0 for p in found.points}
    expected = value[0.5, 2] - value[0.5, 1] - value[0.1, 2] + value[0.1, 1]
    assert found.interactions["toxic"].value == pytest.approx(expected)
    over_alpha = (value[0.5, 1] + value[0.5, 2] - value[0.1, 1] - value[0.1, 2]) / 2
    assert found.trends["toxic"]["method.alpha"].value == pytest.approx(over_alpha)
    shown = text(found)
    assert "method.alpha \\ method.tau" in shown
    assert "interaction: " in shown
    (rest,) = [p for p in found.points if p.values == (0.5, 2)]
    (tmp_path / rest.run_ids[0] / "run.json").unlink()
    partial = ablation(tmp_path, ["method.alpha", "method.tau"])
    assert not partial.interactions
    assert "not every combination of values is there: no trends and no interaction" in partial.notes
    assert "–" in text(partial)
    write(measures(0.2), alpha=0.1, tau=0.5)
    write(measures(0.2), alpha=9.0, tau=5)
    assert ablation(tmp_path, ["method.alpha", "method.tau"]).levels(1) == [0.5, 1, 2, 5]


# ------------------------------------------------------------------------------------------------ refusals


def test_what_is_no_ablation_is_refused(write: Write, tmp_path: Path) -> None:
    write(measures(0.1), alpha=0.1, fusion="sphere")

    def refusal(over: str, **more: Any) -> str:
        with pytest.raises(UsageError) as raised:
            ablation(tmp_path, over.split(","), **more)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "'method.alpha' never varies" in refusal("method.alpha")
    assert "it is 0.1 in all 1 runs" in refusal("method.alpha")
    assert "has a knob 'method.alhpa' (did you mean 'method.alpha'?)" in refusal("method.alhpa")
    assert "one knob or two" in refusal("method.alpha,method.alpha")
    write(measures(0.3), alpha=0.3, fusion="additive")
    told = refusal("method.alpha")
    assert "'method.fusion' varies too (" in told
    assert "--where method.fusion=" in told
    assert "never varies" in refusal("method.alpha", where=["method.fusion=sphere"])
    assert "with a key that a run has (did you mean 'method.fusion'?)" in refusal(
        "method.alpha", where=["method.fuson=x"]
    )
    assert "unknown metric 'toxi'" in refusal("method.alpha", along=["method.fusion"], metrics=["toxi"])
    assert "there is no run of method=none" in refusal("method.alpha", along=["method.fusion"], against="base")
    assert "no such value; there are: base, 0.1, 0.3" in refusal("method.alpha", along=["method.fusion"], against="7")
    write(measures(0.3), method="ext_sub", alpha=0.3, rank=8)
    assert refusal("method.alpha").startswith("'method' varies too (")
    write(measures(0.3), alpha=0.4, fusion="sphere", suite="other")
    assert "'suite' varies too" in refusal("method.alpha", where=["method=destein", "method.fusion=sphere"])
    with pytest.raises(DetoxbenchError, match="no runs folder"):
        ablation(tmp_path / "none", ["method.alpha"])


def test_what_varies_along_is_said(write: Write, tmp_path: Path) -> None:
    for n in (1, 3):
        write(measures(n / 10), positives=n, negatives=n)
    found = ablation(tmp_path, ["method.positives"], along=["method.negatives"])
    assert "method.negatives: varies along, so what is seen may be owed to it" in found.notes
    write(measures(0.9), positives=3, negatives=1)
    with pytest.raises(UsageError, match=r"2 runs of method.positives=3 seed=0: 'method.negatives' varies too \("):
        ablation(tmp_path, ["method.positives"], along=["method.negatives"])


def test_what_cannot_be_read_is_left_out_and_named(curve: Ablation, tmp_path: Path) -> None:
    newer, bare, damaged = (tmp_path / point.run_ids[0] for point in curve.points)
    record = json.loads((newer / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps(record | {"schema": 99}))
    (bare / "clusters.json").unlink()
    found = ablation(tmp_path, ["method.alpha"])
    assert [p.values for p in found.points] == [(0.5,), (1.0,)]
    for folder, said in ((newer, "newer detoxbench"), (bare, "clusters.json")):
        assert any(folder.name in note and said in note for note in found.notes), found.notes
    assert [p.cells["toxic"].difference is None for p in found.points] == [True, False]
    (damaged / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="never varies"):
        ablation(tmp_path, ["method.alpha"])


def test_data_that_a_knob_asks_for_may_differ_and_other_data_not(write: Write, tmp_path: Path) -> None:
    write(measures(0.1), fit_data="none read", steps=0, fit={"limit": None})
    write(measures(0.4), fit_data="read", steps=10, fit={"limit": None})
    assert len(ablation(tmp_path, ["method.steps"]).points) == 2
    write(measures(0.5), fit_data="others", steps=20, fit={"limit": 5})
    with pytest.raises(UsageError, match=r"'method.fit_data' varies too"):
        ablation(tmp_path, ["method.steps"])


def test_runtime_settings_are_knobs_too(write: Write, tmp_path: Path) -> None:
    for limit in (10, 20):
        write(measures(limit / 50), fit_data=str(limit), alpha=0.1, fit={"limit": limit})
    assert [p.values[0] for p in ablation(tmp_path, ["fit.limit"]).points] == [10, 20]


def test_the_base_of_another_setting_is_no_base(write: Write, tmp_path: Path) -> None:
    write(measures(0.0), method="none", gen={"top_p": 0.5})
    for alpha in (0.1, 0.4):
        write(measures(alpha), alpha=alpha)
    found = ablation(tmp_path, ["method.alpha"])
    assert found.base is None
    assert found.against == "0.4", "destein's default"


# ------------------------------------------------------------------------------------------------ shown


def test_the_text_shows_the_curve(curve: Ablation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = text(curve, 100).splitlines()
    assert lines[0] == "destein over method.alpha · tiny · safeedit · scored by embedded"
    places = [line.index("●") for line in lines if line.startswith(("  base", "  0.1", "  0.5", "  1.0"))][:4]
    assert places == sorted(places, reverse=True)
    assert len(set(places)) == 4
    assert any(line.startswith("  trend over method.alpha: falls; a step Δ -") for line in lines)
    assert main(["ablate", str(tmp_path), "--over", "method.alpha", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["points"][0]["values"] == [0.1]


def test_names_stay_text(write: Write, tmp_path: Path) -> None:
    for site in ("$\\frac{", "\x1b[31m"):
        write(measures(0.3), site=site)
    found = ablation(tmp_path, ["method.site"])
    assert "\x1b" not in text(found)
    pytest.importorskip("matplotlib")
    draw(found, tmp_path / "odd.svg")


def test_it_is_drawn_the_same_each_time(curve: Ablation, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg", "c.png"):
        draw(curve, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"\.png, \.svg or \.pdf"):
        draw(curve, tmp_path / "c.exe")


def test_without_matplotlib_the_extra_is_named(
    curve: Ablation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(DetoxbenchError, match=r"detoxbench\[plots\]"):
        draw(curve, tmp_path / "a.png")


# ------------------------------------------------------------------------------------------------ presets

CELLS = {
    "destein_alpha": 5, "destein_head_weight": 4, "destein_pairs": 5,
    "dinm_parts": 4, "dinm_constraint": 2, "dinm_location": 5, "dinm_tuning": 5, "dinm_instances": 3,
    "ext_sub_alpha": 4, "ext_sub_controls": 10,
    "cp_terms": 3, "cp_alpha_tau": 9, "cp_texts": 4,
    "caa_layer": 12, "caa_one_pair": 4, "refusal_direction_strength": 4, "few_shot_shots": 4,
    "profs_rank": 8, "aura_maps": 3,
}  # fmt: skip


def test_every_preset_is_known_here_and_in_the_docs() -> None:
    assert set(composition.options("experiment/ablation")) == set(CELLS)
    page = (composition.conf_dir().parent / "docs" / "ablations.md").read_text()
    for name in CELLS:
        assert f"experiment=ablation/{name}" in page


FAST = ("destein_alpha", "cp_texts", "profs_rank")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CELLS])
def test_a_preset_expands_to_cells_that_differ_in_its_knobs_alone(name: str) -> None:
    cells = composition.cells([f"experiment=ablation/{name}"])
    assert len(cells) == CELLS[name]
    swept = {override.partition("=")[0].removeprefix("method.") for override in cells[0][0]} - {"experiment"}
    specs = [spec for _, spec in cells]
    configs = [vars(spec.method) for spec in specs]
    differing = {key for key in configs[0] if len({repr(config[key]) for config in configs}) > 1}
    assert differing - {"negatives"} == swept, "cp_texts takes as many negatives as positives"
    assert len({(spec.method_name, spec.suite_name) for spec in specs}) == 1


# ------------------------------------------------------------------------------------------------ compositions


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., None]:
    """A run of a composition of `parts` of two, each with a setting of its own, or of the base."""

    def one(found: list[Measure], *parts: str, seed: int = 0, alpha: float = 0.4) -> None:
        settings = {"a": {"alpha": alpha}, "b": {"beta": 2}}
        of_parts = {f"{part}.config": settings[part] for part in parts} | {f"{part}.version": 1 for part in parts}
        folder = stored.write(tmp_path, found, "compose" if parts else "none", seed, {"parts": "+".join(parts)})
        document = json.loads((folder / "run.json").read_text())
        method = {"name": "none", "version": 1} if not parts else document["identity"]["method"] | of_parts
        document["identity"]["method"] = method | {"fit_data": "+".join(parts)}
        document["run_id"] = f"{'+'.join(parts)} {seed} {alpha}"
        document["spec"]["fit"] = {"limit": None}
        (folder / "run.json").write_text(json.dumps(document))
        folder.rename(folder.with_name(document["run_id"].replace("+", "_")))

    return one


def shares(share: float) -> list[Measure]:
    values = {f"p{i}": float(i < share * N) for i in range(N)}
    return [Measure("toxic", "lower", values, dict.fromkeys(values, 1.0), unit="share", binary=True)]


def test_whether_parts_add_up_is_the_interaction_with_its_test(composed: Any, tmp_path: Path) -> None:
    for parts, share in (((), 0.8), (("a",), 0.6), (("b",), 0.5), (("a", "b"), 0.2)):
        composed(shares(share), *parts)
    found = ablation(tmp_path, ["with.a", "with.b"])
    assert [point.values for point in found.points] == [(False, False), (False, True), (True, False), (True, True)]
    assert (found.base, found.against) == (None, "base")
    assert found.points[3].cells["toxic"].difference.value == pytest.approx(-0.6)  # type: ignore[union-attr]
    interaction = found.interactions["toxic"]
    assert interaction.value == pytest.approx(0.2 - 0.6 - 0.5 + 0.8)
    assert interaction.verdict == "differs" if interaction.p_holm < 0.05 else "unsupported"  # type: ignore[operator]
    assert found.title.startswith("compose over with.a and with.b")
    assert "beyond the sum of what each does alone" in text(found)


def test_parts_that_add_up_have_no_interaction(composed: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base, a, b = (rng.normal(size=200) for _ in range(3))
    for parts, effect in (((), 0 * a), (("a",), a - 1), (("b",), b - 1), (("a", "b"), a + b - 2)):
        values = {f"p{i}": float(v) for i, v in enumerate(base + effect)}
        composed([Measure("toxicity", "lower", values, dict.fromkeys(values, 1.0))], *parts)
    found = ablation(tmp_path, ["with.a", "with.b"])
    assert found.interactions["toxicity"].value == pytest.approx(0, abs=1e-9)
    assert found.interactions["toxicity"].verdict == "unsupported"
    assert found.trends["toxicity"]["with.a"].verdict == "better"


def test_the_order_of_the_parts_is_that_of_the_knobs(composed: Any, tmp_path: Path) -> None:
    for parts in ((), ("a",), ("b",), ("b", "a")):
        composed(shares(0.5), *parts)
    assert not ablation(tmp_path, ["with.a", "with.b"]).interactions, "the composition is of another order"
    assert ablation(tmp_path, ["with.b", "with.a"]).interactions


def test_a_part_with_other_settings_is_another_part(composed: Any, tmp_path: Path) -> None:
    for parts in ((), ("a",), ("b",), ("a", "b")):
        composed(shares(0.5), *parts)
    composed(shares(0.5), "a", alpha=1.0)
    with pytest.raises(UsageError, match=r"not of the same 'a': choose by --where method\.a\.config\.alpha="):
        ablation(tmp_path, ["with.a", "with.b"])
    found = ablation(tmp_path, ["with.a", "with.b"], where=["method.a.config.alpha=0.4"])
    assert len(found.points) == 4, "those without the part stay"


def test_another_knob_beside_parts_is_refused(composed: Any, tmp_path: Path) -> None:
    composed(shares(0.5), "a")
    with pytest.raises(UsageError, match=r"'method\.alpha' is no part: give one part or two, with\.METHOD"):
        ablation(tmp_path, ["with.a", "method.alpha"])
