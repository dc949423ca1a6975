"""The suite that looks inside the model: its numbers by hand, what each kind of intervention moves, and runs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detoxbench as db
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.interventions.channels import Dense, Hook, Prompt, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.records import Measure, Request, Sample
from detoxbench.results.store import Run
from detoxbench.runner import generations, stages
from detoxbench.runner.cell import checkpoint_folder, prepare
from detoxbench.runner.composition import compose_run
from detoxbench.runner.plan import plan
from detoxbench.suites import mechanism
from detoxbench.suites.mechanism import GROUPS, LinearProbe, Mechanism
from tests.suites.test_suites import lines, named, value
from tests.support.tiny import EVERY_FAMILY, same, state, tiny

WORDS = ["the cat sat", "a dog ran home", "we like tea", "she sang", "it is warm", "he reads", "the sun is up", "we go"]
CONFIG = mechanism.Config(held_out=4, share=0.1)
LAYERS = 3


def requests() -> list[Request]:
    """Texts that shout are toxic here; each label's 4th and 8th are held out."""
    made = [
        Request(id=f"answer/{i}", prompt=f"hi {i}", record=f"answer/{i}", kind="answer", chat=True, text=w + "!")
        for i, w in enumerate(WORDS)
    ]
    for label, end in (("toxic", "!!!"), ("civil", ".")):
        for i, w in enumerate(WORDS, 1):
            part = "train" if i % 4 else "test"
            name = f"{label}/{i}"
            made.append(Request(id=name, prompt="", record=name, kind=part, tags={"label": label}, text=w + end))
    made += [
        Request(id=f"vectors/{g}", prompt="", record=f"vectors/{g}", kind="vectors", text="") for g in range(GROUPS)
    ]
    return made


def change(lm: LanguageModel, **channels: Any) -> Intervention:
    return Intervention(method="m", base=lm.fingerprint, **channels)


def looked(lm: LanguageModel, intervention: Intervention) -> tuple[list[Sample], dict[str, Measure]]:
    probe, asked = LinearProbe(lm, CONFIG, requests()), requests()
    samples = [g.sample for made, _ in generations._probed(lm, intervention, probe, asked) for g in made]
    return samples, named(Mechanism(CONFIG).measures(samples, [], ""))


def by_layer(found: dict[str, Measure], name: str) -> list[float]:
    return [value(found[f"{name}_layer_{i}"]) for i in range(LAYERS)]


def vectors_of(lm: LanguageModel, layer: int) -> torch.Tensor:
    """The parameter of the down-projection as [hidden, intermediate], sharing memory with it."""
    path = lm.architecture.mlp_down(layer)
    weight = lm.architecture.module(path).weight.data  # type: ignore[union-attr]
    return weight.T if lm.architecture.transposed(path) else weight  # type: ignore[operator,return-value]


# ------------------------------------------------------------------------------------------------------------- by hand


def mean_states(lm: LanguageModel, ids: list[int], lead: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Means over the tokens behind `lead`: each down-projection's input, and the stream behind the last layer."""
    seen: dict[str, Any] = {}
    handles = [
        lm.architecture.module(lm.architecture.mlp_down(i)).register_forward_hook(
            lambda _, given, __, i=i: seen.update({str(i): given[0]})
        )
        for i in range(LAYERS)
    ]
    last = lm.architecture.module(lm.architecture.layers[-1])
    handles.append(
        last.register_forward_hook(lambda _, __, out: seen.update(out=out if torch.is_tensor(out) else out[0]))
    )
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    means = {k: v.reshape(-1, v.shape[-1])[lead:].numpy().mean(0) for k, v in seen.items()}
    return [means[str(i)] for i in range(LAYERS)], means["out"]


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_numbers_are_those_of_a_plain_loop(family: str) -> None:
    from sklearn.linear_model import LogisticRegression

    lm = tiny(family)
    generator = torch.Generator().manual_seed(0)
    deltas = [0.05 * torch.randn(vectors_of(lm, i).shape, generator=generator) for i in range(LAYERS)]
    changed = change(
        lm,
        weights=tuple(
            Weight(f"{lm.architecture.mlp_down(i)}.weight", Dense(d.T if family == "gpt2" else d))
            for i, d in enumerate(deltas)
        ),
    )
    _, found = looked(lm, changed)

    texts = [r for r in requests() if r.kind == "train"]
    states = np.array([mean_states(lm, lm.encode(r.text or ""), 1)[1] for r in texts], dtype=np.float64)
    scale, mean = states.std(0), states.mean(0)
    fitted = LogisticRegression(max_iter=1000).fit((states - mean) / scale, [r.tags["label"] == "toxic" for r in texts])
    direction = fitted.coef_[0] / scale

    def cosines(weight: torch.Tensor) -> list[float]:
        columns = weight.numpy().astype(np.float64).T
        return [float(c @ direction / np.linalg.norm(c) / np.linalg.norm(direction)) for c in columns]

    before = [cosines(vectors_of(lm, i)) for i in range(LAYERS)]
    after = [cosines(vectors_of(lm, i) + deltas[i]) for i in range(LAYERS)]
    n = len(before[0])
    toxic = [sorted(range(n), key=lambda j, i=i: -before[i][j])[: round(0.1 * n)] for i in range(LAYERS)]
    assert by_layer(found, "region_cosine") == pytest.approx(
        [sum(after[i]) / n for i in range(LAYERS)], rel=1e-3, abs=1e-6
    )
    is_now = [sum(after[i][j] for j in toxic[i]) for i in range(LAYERS)]
    was = [sum(before[i][j] for j in toxic[i]) for i in range(LAYERS)]
    assert by_layer(found, "toxic_cosine") == pytest.approx([x / len(toxic[0]) for x in is_now], rel=1e-3)
    assert value(found["toxicity_reduction"]) == pytest.approx((sum(was) - sum(is_now)) / sum(was), rel=1e-2)
    least = [min(before[i][j] for j in toxic[i]) for i in range(LAYERS)]
    share = [sum(c >= least[i] for c in after[i]) / n for i in range(LAYERS)]
    assert by_layer(found, "still_toxic") == pytest.approx(share)

    shifts, scores = [], []
    for r in (r for r in requests() if r.kind == "answer"):
        prompt = lm.encode(r.prompt, chat=True)
        ids = [*prompt, *lm.encode(r.text or "")[1:]]
        old, _ = mean_states(lm, ids, len(prompt))
        with lm.applied(changed):
            new, residual = mean_states(lm, ids, len(prompt))
        shifts.append([np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(old, new, strict=True)])
        scores.append(fitted.predict_proba([(residual - mean) / scale])[0, 1])
    assert by_layer(found, "activation_shift") == pytest.approx(np.mean(shifts, axis=0), rel=1e-3, abs=1e-6)
    assert value(found["probe_score"]) == pytest.approx(np.mean(scores), rel=1e-3)
    assert found["probe_accuracy"].count.keys() == {f"{label}/{i}" for label in ("toxic", "civil") for i in (4, 8)}
    assert value(found["probe_accuracy_in_training"]) == 1


# -------------------------------------------------------------------------------------------------- who moves what


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_planted_edit_is_seen_at_its_layer_and_none_changes_nothing(family: str) -> None:
    lm = tiny(family)
    before = state(lm)
    _, plain = looked(lm, change(lm))
    assert by_layer(plain, "toxicity_reduction") == by_layer(plain, "activation_shift") == [0, 0, 0]
    assert value(plain["still_toxic"]) == pytest.approx(
        round(0.1 * len(vectors_of(lm, 0).T)) / len(vectors_of(lm, 0).T)
    )

    direction = LinearProbe(lm, CONFIG, requests())._direction.float()
    unit = direction / direction.norm()
    delta = -torch.outer(unit, unit @ vectors_of(lm, 1))  # no value vector has anything of the probe's direction left
    weight = Weight(f"{lm.architecture.mlp_down(1)}.weight", Dense(delta.T if family == "gpt2" else delta))
    samples, found = looked(lm, change(lm, weights=(weight,)))
    assert by_layer(found, "toxicity_reduction") == pytest.approx([0, 1, 0], abs=1e-5)
    assert by_layer(found, "toxic_cosine") == pytest.approx(
        [by_layer(plain, "toxic_cosine")[0], 0, by_layer(plain, "toxic_cosine")[2]], abs=1e-5
    )
    assert [by_layer(found, "toxicity_reduction")[i] for i in (0, 2)] == [0, 0]
    assert by_layer(found, "still_toxic")[1] == 0
    first, second, third = by_layer(found, "activation_shift")
    assert (first, second) == (0, 0)  # what goes into the edited projection is upstream of it
    assert third > 0
    assert same(before, state(lm))
    assert {len(s.values or {}) for s in samples if s.kind == "vectors"} == {6}


def test_steering_moves_activations_from_its_layer_on_and_no_value_vector() -> None:
    lm = tiny()
    z = {"z": torch.randn(32, generator=torch.Generator().manual_seed(0))}
    hook = Hook(lm.architecture.attention_out(1), "post", "destein.additive", z, {"alpha": 0.5})
    _, plain = looked(lm, change(lm))
    _, found = looked(lm, change(lm, hooks=(hook,)))
    shifts = by_layer(found, "activation_shift")
    assert shifts[0] == 0
    assert min(shifts[1:]) > 0
    for name in ("region_cosine", "toxic_cosine", "still_toxic", "toxicity_reduction"):
        assert found[name] == plain[name]
    # it acts on new tokens only, and so does what is measured
    only_new = Hook(hook.module, "post", hook.op, z, {"alpha": 0.5}, positions="generated")
    assert by_layer(looked(lm, change(lm, hooks=(only_new,)))[1], "activation_shift")[1] > 0
    assert found["probe_accuracy"] == plain["probe_accuracy"]


def test_a_prompt_moves_activations_everywhere_and_leaves_the_probe_as_it_was() -> None:
    lm = tiny()
    _, plain = looked(lm, change(lm))
    _, found = looked(lm, change(lm, prompts=(Prompt(prefix="be kind. "),)))
    assert min(by_layer(found, "activation_shift")) > 0
    assert value(found["probe_score"]) != value(plain["probe_score"])
    assert found["probe_accuracy"] == plain["probe_accuracy"]


# ---------------------------------------------------------------------------------------------------------------- runs

SMALL = ["suite=mechanism", "suite.limit=20", "model=fable"]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reminder = [*SMALL, "method=self_reminder"]
    whole = db.run([*reminder, f"runs_dir={tmp_path / 'whole'}"])
    spec = compose_run([*reminder, "with_base=false", f"runs_dir={tmp_path / 'killed'}"])
    partial = prepare(spec, checkpoint_folder(spec, download=False)).generation_folder / "partial.jsonl"
    values, seen = LinearProbe.values, 0

    def killed(*given: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > generations.PROBED + 5:
            raise KeyboardInterrupt
        return values(*given)

    monkeypatch.setattr(LinearProbe, "values", killed)
    with pytest.raises(KeyboardInterrupt):
        stages.run(spec)
    monkeypatch.undo()
    assert len(partial.read_bytes().splitlines()) == generations.PROBED
    again = stages.run(spec)
    for file in ("samples.jsonl", "scores.jsonl", "clusters.json"):
        assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes()

    counts = whole.record.counts
    assert (counts["requests"], counts["empty"], counts["missing_scores"]) == (160, None, None)
    assert whole.base is not None
    assert whole.base.record.metrics["activation_shift"].value == 0
    assert (whole.record.metrics["probe_accuracy"].value or 0) > 0.9
    assert {
        len(s.values["activation_shift"]) for s in Run(whole.folder).samples() if s.kind == "answer" and s.values
    } == {4}


def test_settings_of_the_probe_are_part_of_what_is_kept(tmp_path: Path) -> None:
    cells = []
    for setting in ("suite.layer=-1", "suite.layer=0", "suite.share=0.1"):
        spec = compose_run([*SMALL, setting, f"runs_dir={tmp_path}"])
        cells.append(prepare(spec, checkpoint_folder(spec, download=False)))
    assert len({cell.generation_folder for cell in cells}) == len({cell.folder for cell in cells}) == 3
    stages = {stage.stage: stage.remark for stage in plan(cells[0].spec).cells}
    looks = "160 looks inside the model, without and with the method"
    assert stages["generate"] == f"{looks} of embedded fable, 160 requests"
    assert stages["score"] == "no scorer is asked"


def test_a_method_that_fits_for_each_record_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'mechanism' looks inside one model.*set method.protocol=once"):
        plan(compose_run([*SMALL, "method=dinm", "method.protocol=per_record", f"runs_dir={tmp_path}"]))


def test_texts_of_a_file_are_labelled_told_apart_and_held_out(tmp_path: Path) -> None:
    rows = [{"text": f"t {i // 2}", "label": i % 2} for i in range(12)]
    asked = Mechanism(mechanism.Config(data=lines(tmp_path / "t.jsonl", [*rows, *rows]), held_out=3)).requests()
    texts = [r for r in asked if r.tags]
    assert [r.label for r in texts[:6]] == ["train/toxic", "train/toxic", "test/toxic"] * 2
    assert [r.text for r in texts[6:]] == [f"t {i}" for i in range(6)]  # civil, each once
    assert len({r.id for r in asked}) == len(asked)
    with pytest.raises(DetoxbenchError, match="has 6 different toxic texts"):
        Mechanism(mechanism.Config(data=str(tmp_path / "t.jsonl"), held_out=7)).requests()


def test_embedded_requests_are_unique_and_always_the_same() -> None:
    asked = Mechanism().requests()
    assert asked == Mechanism().requests()
    assert len({r.id for r in asked}) == len(asked) > 500
    assert {r.label for r in asked} == {"answer", "vectors", "train/toxic", "train/civil", "test/toxic", "test/civil"}


def test_a_layer_that_is_not_there_is_one_line() -> None:
    with pytest.raises(DetoxbenchError, match="no layer 9"):
        LinearProbe(tiny(), mechanism.Config(layer=9), requests())
