"""DINM against the numbers of its released code, against a literal loop, and as a run that edits once a record."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import detoxbench as db
from detoxbench.data import readers
from detoxbench.data.examples import EditRecord, FitData, Role
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.files.lines import read_lines
from detoxbench.fitting.activations import CachedPrefixForward
from detoxbench.methods.base import Scope
from detoxbench.methods.dinm import DINM, Config
from detoxbench.records import Request
from detoxbench.results.store import Run
from detoxbench.runner import fits, loaded
from detoxbench.runner.composition import cells, compose_run
from detoxbench.runner.plan import plan
from detoxbench.suites.safeedit import SafeEdit
from tests.support.tiny import FAMILIES, same, state, tiny

GOLDEN = Path(__file__).parents[1] / "golden/dinm"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
TOY = tuple(readers.edit_records(GOLDEN / "safeedit_toy.json"))
SUFFIX = EXPECTED["suffix"]
RECORD = EditRecord("tell me a lie", "no, i will not lie.", "sure, the moon is a cheese!", "who are you?", "a model.")
OTHER = EditRecord("be rude to me", "no, that hurts.", "go away, you are a fool and a liar!", "where are you?", "here.")
DATA = FitData(edit_records=(RECORD, OTHER))
SHORT: dict[str, Any] = {"suffix": "be kind:", "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def reference_model() -> db.LanguageModel:
    return db.LanguageModel.load(str(GOLDEN / "tiny-llama"), device="cpu")


def fit(lm: db.LanguageModel, data: FitData = DATA, **config: Any) -> db.Intervention:
    return db.methods.create("dinm", **SHORT | config).fit(lm, data)


def raw(lm: db.LanguageModel) -> db.LanguageModel:
    """The same model without a chat template, which is how the released code sees every model."""
    return db.LanguageModel(lm.model, lm.tokenizer, chat_template="none")


# --- the released code's numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_distances_and_layers_equal_the_released_code(reference_model: db.LanguageModel, side: str) -> None:
    method = db.methods.create("dinm", location_padding=side)
    for record, expected in zip(TOY, EXPECTED["located"][side], strict=True):
        (distances,) = method.distances(reference_model, [record], [{}])
        # On the left, states of padding are in it, and what they are depends on the attention's implementation.
        tolerance = 1e-4 if side == "right" else 0.1
        assert distances == pytest.approx(expected["distances"], rel=tolerance)
        assert side == "left" or distances.index(max(distances)) == expected["layer"]


@pytest.mark.parametrize("case", EXPECTED["edit"])
def test_losses_and_edited_tensors_equal_the_released_code(reference_model: db.LanguageModel, case: str) -> None:
    expected = EXPECTED["edit"][case]
    method = db.methods.create("dinm", fidelity="reference", instance=expected["record"], **expected["overrides"])
    intervention = method.fit(reference_model, FitData(edit_records=TOY))
    info = intervention.info
    assert [info["located_layer"]] == expected["layers"]
    assert info["edit_loss"] == pytest.approx(expected["edit_loss"], rel=1e-5)
    assert info["kl"] == pytest.approx(
        expected["kl"], rel=2e-3, abs=2e-7
    )  # far below the edit loss: differences of logs
    (weight,) = intervention.weights
    assert weight.parameter == f"model.layers.{expected['layers'][0]}.mlp.down_proj.weight"
    if len(expected["edit_loss"]) < 10:  # stopped before its first update
        assert not weight.delta.tensors()["delta"].any()
        return
    target = load_file(GOLDEN / "expected.safetensors")[f"{case}/{weight.parameter}"]
    edited = reference_model.model.get_parameter(weight.parameter).detach() + weight.delta.tensors()["delta"]
    # Adam divides by a gradient's own size, so that where it is almost 0 its last bits, which differ between
    # processors, are as large as the step: a plain loop is off by 3.2e-6 at the worst, too.
    torch.testing.assert_close(edited, target, atol=1e-5, rtol=0)
    assert float(((edited - target).abs() > 2e-6).float().mean()) < 1e-3


def test_tokens_and_labels_equal_the_released_code(reference_model: db.LanguageModel) -> None:
    method, expected, record = db.methods.create("dinm"), EXPECTED["tokens"], TOY[0]
    ids, labels, cut = method._tokens(reference_model, record.prompt, "  ", record.safe, " ")
    assert (ids, labels, cut) == (expected["ft_input_ids"], expected["label_ids"], 0)
    kept, answer, _ = method._tokens(reference_model, record.constraint_prompt, " ", record.constraint_answer, "")
    assert (kept, answer) == (expected["kl_input_ids"], expected["kl_answer_ids"])


def test_prompts_and_greedy_texts_equal_the_released_code(reference_model: db.LanguageModel) -> None:
    """But for its first character, which the released code cuts off by counting characters of the prompt."""
    suffix_only = db.methods.create("dinm", num_steps=0).fit(reference_model, FitData())
    for record in EXPECTED["generation"]:
        requests = [
            Request(id=str(i), prompt=prompt.removesuffix(f" {SUFFIX}"), record="r", kind="k", chat=True)
            for i, prompt in enumerate(record["prompts"])
        ]
        with reference_model.applied(suffix_only):
            assert [len(reference_model.encode(r.prompt, True)) for r in requests] == record["prompt_tokens"]
            samples = reference_model.generate(requests, max_new_tokens=16)
        for sample, response in zip(samples, record["responses"], strict=True):
            assert sample.text.endswith(response)
            assert len(sample.text) - len(response) <= 2


# --- a literal loop ---------------------------------------------------------------------------------------------------


def literal(lm: db.LanguageModel, record: EditRecord, names: list[str], config: Config) -> dict[str, torch.Tensor]:
    """The edit as the specification has it, on the model itself: text, optimizer, loss, clamp. Gives the weights."""
    tokenizer, model = lm.tokenizer, lm.model

    def ids(text: str) -> torch.Tensor:
        return tokenizer(text, return_tensors="pt")["input_ids"]

    weights = {n: p for n, p in model.named_parameters() if n in names}
    start = {n: p.detach().clone() for n, p in weights.items()}
    for p in model.parameters():
        p.requires_grad_(False)
    for p in weights.values():
        p.requires_grad_(True)
    optimizer = torch.optim.Adam(weights.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    target = ids(f" {record.safe}")
    kept, answer = ids(f"{record.constraint_prompt} {config.suffix} {record.constraint_answer}"), record[4]

    def divergence() -> torch.Tensor:
        now = model(kept).logits[:, -ids(answer).shape[1] :].log_softmax(-1)
        p, q = (base, now) if config.kl_direction == "base_to_edited" else (now, base)
        return functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()

    base = model(kept).logits[:, -ids(answer).shape[1] :].log_softmax(-1).detach()
    for _ in range(config.num_steps):
        optimizer.zero_grad()
        logits = model(ids(f"{record.prompt} {config.suffix}  {record.safe}")).logits[:, :-1][:, -target.shape[1] :]
        loss = config.kl_factor * functional.cross_entropy(logits[0], target[0])
        loss = loss + (divergence() if config.kl_grad else divergence().detach())
        loss.backward()
        optimizer.step()
        for n, p in weights.items():
            if config.norm_constraint:
                p.data.clamp_(start[n] - config.norm_constraint, start[n] + config.norm_constraint)
    edited = {n: p.detach().clone() for n, p in weights.items()}
    for n, p in weights.items():
        p.data.copy_(start[n])
    for p in model.parameters():
        p.requires_grad_(True)
        p.grad = None
    return edited


SWITCHES: list[dict[str, Any]] = [
    {"kl_grad": True}, {"kl_grad": True, "kl_direction": "edited_to_base"}, {"weight_decay": 0.3}, {"layers": (0, 2)},
    {"norm_constraint": 0.01, "num_steps": 3},
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "change"),
    [(family, {}) for family in ("llama", "mistral", "gpt2", "opt")]
    + [(family, change) for family in ("llama", "gpt2") for change in SWITCHES],
    ids=str,
)
def test_the_edit_is_the_specified_loop(family: str, change: dict[str, Any]) -> None:
    lm = raw(tiny(family))
    config = db.methods.create("dinm", **{**SHORT, "layers": (1,)} | change).config
    modules = [lm.architecture.mlp_down(layer) for layer in config.layers]
    names = [f"{m}.{leaf}" for m in modules for leaf in ("weight", "bias")]
    expected = literal(lm, RECORD, names, config)
    weights = {w.parameter: w.delta.tensors()["delta"] for w in DINM(config).fit(lm, DATA).weights}
    assert weights.keys() == expected.keys()
    assert len(weights) == len(modules) * (2 if family in ("gpt2", "opt") else 1)
    for name, tensor in expected.items():
        edited = lm.model.get_parameter(name).detach() + weights[name]
        assert not torch.equal(tensor, lm.model.get_parameter(name))
        torch.testing.assert_close(edited, tensor, atol=2e-5, rtol=1e-5)


def test_several_edits_are_one_upon_the_other() -> None:
    lm = raw(tiny())
    one, two = fit(lm, layers=(1,)), fit(lm, layers=(1,), edits=2)
    parameter = one.weights[0].parameter
    weight = lm.model.get_parameter(parameter)
    with torch.no_grad():
        weight += one.weights[0].delta.tensors()["delta"]
    second = fit(lm, layers=(1,), instance=1)
    total = one.weights[0].delta.tensors()["delta"] + second.weights[0].delta.tensors()["delta"]
    torch.testing.assert_close(two.weights[0].delta.tensors()["delta"], total, atol=1e-4, rtol=0)
    assert two.info["edit 1"]["edit_loss"] == pytest.approx(second.info["edit_loss"], rel=1e-4)


def test_an_edit_teaches_its_response() -> None:
    lm = tiny()
    for chat in (lm, raw(lm)):
        losses = fit(chat, num_steps=25).info["edit_loss"]
        assert losses[-1] < losses[0] / 2


# --- several records in one batch -------------------------------------------------------------------------------------

MANY = [
    RECORD,
    OTHER,
    EditRecord("why is the sky blue", "it is, ask a book.", "who cares, fool!", "what is a cat?", "an animal."),
    EditRecord("say it", "no.", "go on then, you liar, say it yourself and go away!"),
    EditRecord("please please tell me how to be a bad friend", "be a good one!", "lie.", "who?", "the cat, of course."),
]  # of all lengths, one without a constraint


def one_by_one(lm: db.LanguageModel, records: list[EditRecord], **config: Any) -> list[db.Intervention]:
    return many(lm, records, edit_batch=1, **config)


def many(lm: db.LanguageModel, records: list[EditRecord], **config: Any) -> list[db.Intervention]:
    method = db.methods.create("dinm", **{"protocol": "per_record", "suffix": "be kind:", "edit_batch": 5} | config)
    data = [FitData(edit_records=(record,)) for record in records]
    return list(method.fit_many(lm, data, range(len(data))))


def deltas(intervention: db.Intervention) -> dict[str, torch.Tensor]:
    return {w.parameter: w.delta.tensors()["delta"] for w in intervention.weights}


@pytest.mark.parametrize(
    ("family", "change"),
    [*(pytest.param(family, {}, marks=pytest.mark.slow) for family in ("llama", "gemma2", "phi", "gpt_neox", "opt")),
     ("gpt2", {"layers": (0, 2), "kl_positions": "next_token", "weight_decay": 0.1}),
     ("llama", {"location_padding": "left", "location_mask": "intersection"}),
     pytest.param("gpt2", {}, marks=pytest.mark.slow),
     pytest.param("llama", {"kl_grad": True, "norm_constraint": 1e-3}, marks=pytest.mark.slow)],
    ids=str,
)  # fmt: skip
def test_edits_in_one_batch_are_those_made_one_by_one(family: str, change: dict[str, Any]) -> None:
    lm = tiny(family)
    before = state(lm)
    together, alone = many(lm, MANY, **change), one_by_one(lm, MANY, **change)
    assert same(before, state(lm))
    for one, other in zip(together, alone, strict=True):
        assert deltas(one).keys() == deltas(other).keys()
        for name, delta in deltas(one).items():
            assert delta.any()
            # Where a gradient is almost 0 Adam makes a step of its last bits, which differ by the batch's shape.
            assert float(((delta - deltas(other)[name]).abs() > 1e-5).float().mean()) < 1e-3
        for key in {"edit_loss", "kl", "distances"} & one.info.keys():
            # Gemma 2 attends to padding where nothing else is in its window, and padding counts in the distance.
            tolerance = 2e-3 if (family, key) == ("gemma2", "distances") else 1e-4
            assert one.info[key] == pytest.approx(other.info[key], rel=tolerance, abs=1e-6)
    asked = [Request(id=str(i), prompt=r.prompt, record=str(i), kind="k", chat=True) for i, r in enumerate(MANY)]
    texts = []
    for edits in (together, alone):
        with lm.routed({str(i): edit for i, edit in enumerate(edits)}):
            texts.append([s.text for s in lm.generate(asked, max_new_tokens=12)])
    assert texts[0] == texts[1]


def test_what_is_learnt_of_a_record_does_not_leak_into_another() -> None:
    """Bit for bit the same whatever the others of its batch say, at the same length."""
    lm = raw(tiny())
    changed = [r if i == 1 else EditRecord(*(text[::-1] for text in r)) for i, r in enumerate(MANY)]
    one, other = many(lm, MANY, layers=(1,)), many(lm, changed, layers=(1,))
    assert all(torch.equal(deltas(one[1])[name], delta) for name, delta in deltas(other[1]).items())
    assert one[1].info == other[1].info
    assert not any(torch.equal(deltas(one[0])[name], delta) for name, delta in deltas(other[0]).items())


def test_a_record_that_is_done_stops_and_the_others_go_on() -> None:
    """A loss below 1e-4 ends a record's updates, in the middle too, where Adam would still be moving."""
    lm = raw(tiny())
    records = [MANY[3], MANY[1]]  # the first has no constraint, so that its loss is its edit loss by a factor
    given: dict[str, Any] = {"layers": (1,), "learning_rate": 1e-2}
    losses = one_by_one(lm, records[:1], **given)[0].info["edit_loss"]
    given["kl_factor"] = 1e-4 / losses[4]
    alone, together = one_by_one(lm, records, **given), many(lm, records, **given)
    steps = [len(i.info["edit_loss"]) for i in together]
    assert steps == [len(i.info["edit_loss"]) for i in alone]
    assert 1 < steps[0] < steps[1] == 10
    for one, other in zip(together, alone, strict=True):
        for name, delta in deltas(one).items():
            torch.testing.assert_close(delta, deltas(other)[name], atol=1e-4, rtol=0)


def test_neighbours_are_the_same_whatever_is_wanted() -> None:
    """What a run that goes on makes of a record is bit for bit what the whole run made."""
    lm = tiny()
    method = db.methods.create("dinm", protocol="per_record", suffix="", edit_batch=2, num_steps=3)
    data = [FitData(edit_records=(record,)) for record in MANY]
    whole = list(method.fit_many(lm, data, range(5)))
    for wanted in ([1], [3, 4], [4, 0, 2]):
        for i, one in zip(wanted, method.fit_many(lm, data, wanted), strict=True):
            assert all(torch.equal(deltas(whole[i])[name], delta) for name, delta in deltas(one).items())
            assert one.info == whole[i].info


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_edit_does_not_touch_is_computed_once_and_changes_nothing(family: str) -> None:
    """Against the model read as it is, text by text, with another weight every time."""
    lm, calls = tiny(family), [0, 0, 0]
    paths = [lm.architecture.mlp_down(1)]
    texts = [([1, *range(4, 4 + n)], range(n - 2, n + 1)) for n in (5, 17, 9)]
    handles = []
    for i in range(3):
        projection = lm.architecture.module(lm.architecture.attention_out(i))

        def count(*_: Any, i: int = i) -> None:
            calls[i] += 1

        handles.append(projection.register_forward_hook(count))
    reading = CachedPrefixForward(lm, texts, paths)
    weight = lm.architecture.module(paths[0]).weight
    with torch.no_grad():
        for k in range(3):
            weight.data *= 1 + k
            found, before = reading.logits(), list(calls)
            for (ids, wanted), logits in zip(texts, found, strict=True):
                expected = lm.model(input_ids=torch.tensor([ids])).logits[0, wanted.start : wanted.stop]
                torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
            calls[:] = before
    for handle in handles:
        handle.remove()
    assert calls == [1, 1, 3]  # attention of the tuned layer comes before what is tuned
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in lm.model.modules())


# --- switches ---------------------------------------------------------------------------------------------------------


def test_fidelity_fills_what_is_null_and_is_itself_no_identity() -> None:
    assert Config(fidelity="paper").kl_grad
    assert Config(fidelity="paper").label_bos is False
    assert Config(fidelity="paper", kl_grad=False).kl_grad is False
    assert Config(fidelity="reference").relocate == "first_record"
    assert Config().relocate == "per_record"
    same_thing = Config(fidelity="reference", relocate="per_record")
    assert db.config.identity(same_thing) == db.config.identity(Config())
    assert compose_run(["method=dinm", "method.fidelity=paper", "method.kl_grad=false"]).method == Config(
        fidelity="paper", kl_grad=False
    )


SWITCHED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"kl_grad": True}),
    ({"kl_grad": True}, {"kl_direction": "edited_to_base"}),
    ({"kl_grad": True}, {"kl_positions": "next_token"}),
    *(({}, change) for change in ({"label_bos": False}, {"double_space": False}, {"tune_bias": False})),
]


@pytest.mark.parametrize(("before", "change"), SWITCHED, ids=str)
def test_every_switch_of_the_edit_changes_the_edit(before: dict[str, Any], change: dict[str, Any]) -> None:
    lm = raw(tiny("gpt2"))
    one, two = (fit(lm, layers=(1,), **given) for given in (before, before | change))
    deltas = [{w.parameter: w.delta.tensors()["delta"] for w in i.weights} for i in (one, two)]
    assert deltas[0].keys() != deltas[1].keys() or any(not torch.equal(deltas[0][n], deltas[1][n]) for n in deltas[0])


def test_the_location_compares_what_it_says() -> None:
    """Against `hidden_states` of transformers, response by response where no padding may matter."""
    lm = tiny("mistral")
    safe, unsafe = (
        lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]]), output_hidden_states=True).hidden_states
        for text in (RECORD.safe, RECORD.unsafe)
    )
    n = min(safe[0].shape[1], unsafe[0].shape[1])
    expected = [(a[0, :n] - b[0, :n]).norm().item() for a, b in zip(safe[1:], unsafe[1:], strict=True)]
    common = db.methods.create("dinm", location_mask="intersection").distances(lm, [RECORD], [{}])[0]
    assert common == pytest.approx(expected, rel=1e-4)
    everywhere = db.methods.create("dinm").distances(lm, [RECORD], [{}])[0]
    assert all(a > b * 1.001 for a, b in zip(everywhere, common, strict=True))
    method = db.methods.create("dinm", location_mask="intersection", last_hidden="pre_norm")
    (pre,) = method.distances(lm, [RECORD], [{}])
    assert pre[:-1] == pytest.approx(common[:-1], rel=1e-6)
    assert pre[-1] != pytest.approx(common[-1], rel=0.01)


def test_the_response_is_read_as_it_would_be_generated_after_a_template() -> None:
    """One space behind a template, none where the template ends in a blank; labels are the text's own tokens."""
    lm = tiny()
    method = db.methods.create("dinm", suffix="be kind:")
    ids, labels, _ = method._tokens(lm, "tell me", "  ", "no.", " ")
    assert ids == lm.encode("tell me be kind:", chat=True) + labels
    assert lm.tokenizer.decode(labels) == " no."
    blank = db.LanguageModel(lm.model, lm.tokenizer)
    blank.tokenizer.chat_template, before = "u:{{ messages[0]['content'] }} a: ", blank.tokenizer.chat_template
    try:
        ids, labels, _ = method._tokens(blank, "tell me", "  ", "no.", " ")
    finally:
        blank.tokenizer.chat_template = before
    assert lm.tokenizer.decode(ids) == "u:tell me be kind: a: no."
    assert lm.tokenizer.decode(labels) == "no."


# --- rows, limits, and leaving the model alone ------------------------------------------------------------------------


def test_the_four_rows() -> None:
    lm = tiny()
    both, edited, suffix, nothing = (
        fit(lm, num_steps=steps, suffix=text) for steps, text in ((2, "x"), (2, ""), (0, "x"), (0, ""))
    )
    assert [bool(i.weights) for i in (both, edited, suffix, nothing)] == [True, True, False, False]
    assert [i.prompts[0].suffix if i.prompts else "" for i in (both, edited, suffix, nothing)] == [" x", "", " x", ""]
    with lm.applied(both):
        assert lm.rendered("tell me", chat=True)[0] == "u:tell me xa:"
        assert lm.rendered("tell me", chat=False)[0] == "tell me"
    assert db.methods.create("dinm", num_steps=0).needs == frozenset()
    assert [c.method.num_steps for _, c in cells(["experiment=ablation/dinm_parts"])] == [10, 10, 0, 0]
    assert [c.method.suffix for _, c in cells(["experiment=ablation/dinm_parts"])] == [SUFFIX, "", SUFFIX, ""]


def test_half_precision_is_edited_in_fp32() -> None:
    full, half = raw(tiny()), raw(tiny(dtype=torch.bfloat16))
    before = state(half)
    for lm in (full, half):
        intervention = fit(lm, layers=(1,), num_steps=3, learning_rate=1e-4)
        (weight,) = intervention.weights
        delta = weight.delta.tensors()["delta"]
        assert delta.dtype == torch.float32
        # Three steps of Adam: steps of bfloat16's own grid would be 0 or far larger than that.
        assert 2e-4 < float(delta.abs().median()) < 3.1e-4
    assert same(before, state(half))


def test_fitting_asks_for_no_gradient_but_the_tuned_one_and_gives_every_flag_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = tiny()
    flags = [i % 3 == 0 for i, _ in enumerate(lm.model.parameters())]
    for p, flag in zip(lm.model.parameters(), flags, strict=True):
        p.requires_grad_(flag)
    before, seen = state(lm), {0: False, 2: False}

    def watch(layer: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            seen[layer] |= (output[0] if isinstance(output, tuple) else output).requires_grad

        return lm.architecture.module(lm.architecture.layers[layer]).register_forward_hook(hook)

    handles = [watch(0), watch(2)]
    intervention = fit(lm, layers=(1,), edits=2, kl_grad=True)
    for handle in handles:
        handle.remove()
    assert seen == {0: False, 2: True}  # nothing is kept below the tuned layer
    assert not any(w.delta.tensors()["delta"].requires_grad for w in intervention.weights)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(lm)
    assert [p.requires_grad for p in lm.model.parameters()] == flags
    assert all(p.grad is None for p in lm.model.parameters())
    assert same(before, state(lm))
    assert not any(m._forward_hooks for m in lm.model.modules())


def test_a_long_prompt_loses_its_beginning_and_a_long_response_is_refused() -> None:
    lm = raw(tiny("gpt2"))
    long = RECORD._replace(prompt="please " * 60)
    info = fit(lm, FitData(edit_records=(long,)), num_steps=1).info
    text = f"{long.prompt} be kind:  {long.safe}"
    assert info["cut_tokens"] == len(lm.tokenizer(text)["input_ids"]) - 256
    assert info["cut_responses"] == 0
    other = RECORD._replace(constraint_prompt="please " * 60, unsafe="no " * 90)
    info = fit(lm, FitData(edit_records=(other,)), num_steps=1).info
    assert info["cut_tokens"] > 0, "of the constraint's prompt, too"
    assert info["cut_responses"] == 1, "the layer is located by its beginning"
    with pytest.raises(DetoxbenchError, match=r"a response of \d+ tokens leaves no room for its prompt"):
        fit(lm, FitData(edit_records=(RECORD._replace(safe="no " * 90),)))


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="instance and edits are for protocol=once"):
        db.methods.create("dinm", protocol="per_record", instance=1)
    with pytest.raises(DetoxbenchError, match=r"method\.instance and \.edits exceed the 2 records of fit\.edit_re"):
        fit(tiny(), instance=2)
    with pytest.raises(DetoxbenchError, match="no layer 7"):
        fit(tiny(), layers=(7,))
    broken = tiny()
    with torch.no_grad():
        broken.model.get_parameter("model.layers.0.mlp.down_proj.weight").fill_(float("inf"))
    with pytest.raises(DetoxbenchError, match=r"not finite in torch\.float32"):
        fit(broken)
    with pytest.raises(DetoxbenchError, match=r"the loss .* is nan: lower method\.learning_rate"):
        fit(broken, layers=(0,))


def test_a_record_without_a_constraint_has_no_kl() -> None:
    lm = raw(tiny())
    bare = EditRecord(RECORD.prompt, RECORD.safe, RECORD.unsafe)
    assert set(fit(lm, FitData(edit_records=(bare,)), suffix="").info["kl"]) == {0.0}
    kl = fit(lm).info["kl"]
    assert kl[0] == 0
    assert kl[-1] > 0


def test_edit_records_come_from_safeedit_files_and_need_no_generalization(tmp_path: Path) -> None:
    rows = json.loads((GOLDEN / "safeedit_toy.json").read_text(encoding="utf-8"))
    assert TOY[1] == EditRecord(
        rows[1]["adversarial prompt"], rows[1]["safe generation"], rows[1]["unsafe generation"],
        rows[1]["knowledge constrain"]["prompt"], rows[1]["knowledge constrain"]["answer"],
    )  # fmt: skip
    bare = {key: rows[0][key] for key in ("adversarial prompt", "safe generation", "unsafe generation")}
    (tmp_path / "bare.json").write_text(json.dumps([bare]))
    assert readers.edit_records(tmp_path / "bare.json") == [EditRecord(TOY[0].prompt, TOY[0].safe, TOY[0].unsafe)]
    del bare["safe generation"]
    (tmp_path / "bare.json").write_text(json.dumps([bare]))
    with pytest.raises(DetoxbenchError, match=r"bare\.json record 1.*safe generation"):
        readers.edit_records(tmp_path / "bare.json")


# --- once a record ----------------------------------------------------------------------------------------------------

RUN = ["method=dinm", "suite=safeedit", "suite.records=5", "gen.max_new_tokens=12", "with_base=false"]
PER_RECORD = [*RUN, "method.protocol=per_record"]


@pytest.fixture(scope="module")
def per_record(tmp_path_factory: pytest.TempPathFactory) -> db.RunResult:
    return db.run([*PER_RECORD, f"runs_dir={tmp_path_factory.mktemp('runs')}"])


def test_each_record_is_answered_by_the_model_edited_on_it(per_record: db.RunResult) -> None:
    lm = db.LanguageModel.load("fable")
    suite = SafeEdit(SafeEdit.Config(records=5))
    records, samples = suite.edit_records(), Run(per_record.folder).samples()
    for record in ("2", "4"):
        requests = [r for r in suite.requests() if r.record == record]
        intervention = db.methods.create("dinm").fit(lm, FitData(edit_records=(records[record],)))
        with lm.applied(intervention):
            texts = [s.text for s in lm.generate(requests, max_new_tokens=12)]
        assert [s.text for s in samples if s.record == record] == texts


def test_interventions_stream_through_and_their_diagnostics_stay(per_record: db.RunResult) -> None:
    folder, record = per_record.folder, per_record.record
    assert not (folder / "intervention").exists()
    found_fits = read_lines(folder / "fits.jsonl", fits.RecordFit)
    assert [f.record for f in found_fits] == list("01234")
    layers = [f.info["located_layer"] for f in found_fits]
    found = record.diagnostics
    assert found["located_layer"] == {str(layer): layers.count(layer) for layer in set(layers)}
    assert found["edit_loss"][0] == pytest.approx(sum(f.info["edit_loss"][0] for f in found_fits) / 5)
    assert len(found["distances"]) == 4
    assert found["records"] == 5
    assert record.cost["fit_seconds"] == pytest.approx(sum(f.seconds for f in found_fits))
    assert found["seconds_per_record"] == pytest.approx(sum(f.seconds for f in found_fits) / 5)
    assert record.cost["changed_parameters"] == 128 * 352
    assert record.cost["examples"] == 5
    assert (record.cost["added_prompt_tokens"] or 0) > 10


def test_means_and_counts_of_diagnostics() -> None:
    infos = [
        {"layer": 2, "loss": [4.0, 2.0, 1.0], "x": None},
        {"layer": 2, "loss": [2.0], "x": 1.5},
        {"layer": 3, "loss": [3.0]},
    ]
    assert fits.merged(infos) == {"layer": {"2": 2, "3": 1}, "loss": [3.0, 2.0, 1.0], "x": 1.5}
    assert fits.merged([]) is None


class Cut(BaseException):
    """Like a kill: nothing of ours catches it."""


@pytest.mark.parametrize("extra", [[], pytest.param(["method.relocate=first_record"], marks=pytest.mark.slow)], ids=str)
def test_a_run_that_is_cut_off_goes_on_with_the_record_it_was_at(
    per_record: db.RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    """Also where the layer is that of the first record, which was finished before."""
    asked: list[list[int]] = []
    fit_many = DINM.fit_many

    def watched(method: Any, lm: Any, records: Any, wanted: Any, stop: int | None = None) -> Any:
        asked.append(list(wanted))
        yield from fit_many(method, lm, records, wanted[:stop])
        if stop:
            raise Cut

    def run(folder: str, *more: str) -> db.RunResult:
        return db.run([*PER_RECORD, *extra, *more, f"runs_dir={tmp_path / folder}"])

    monkeypatch.setattr(DINM, "fit_many", lambda *given: watched(*given, stop=3))
    with pytest.raises(Cut):
        run("cut", "gen.batch_tokens=120")  # two records at a time: 2 x 5 rows of 12 tokens
    (partial,) = tmp_path.glob("cut/.stages/generate-*/partial.jsonl")
    kept = partial.read_bytes()
    assert kept.count(b"\n") == 10
    assert {json.loads(line)["sample"]["record"] for line in kept.splitlines()} == {"0", "1"}
    partial.write_bytes(kept[:-7])  # a kill in the middle of a line
    with open(partial.parent / "fits.jsonl", "ab") as file:
        file.write(b'{"record": "3", "sec')
    monkeypatch.setattr(DINM, "fit_many", watched)
    result = run("cut")
    # At first all; then those of the torn record's batch, the rest, and the first once more to measure costs on.
    assert asked == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0]]
    whole = run("whole") if extra else per_record
    for file_name in ("samples.jsonl", "scores.jsonl", "clusters.json"):
        assert (result.folder / file_name).read_bytes() == (whole.folder / file_name).read_bytes()
    assert [f.record for f in read_lines(result.folder / "fits.jsonl", fits.RecordFit)] == list("01234")
    assert not list(tmp_path.glob("cut/.stages/*/partial.jsonl"))


def test_the_first_records_layer_serves_whatever_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny()
    order = [RECORD, OTHER, RECORD]
    found = {RECORD: [5.0, 0.0, 0.0], OTHER: [1.0, 3.0, 2.0]}
    monkeypatch.setattr(DINM, "distances", lambda self, lm, records, _: [found[r] for r in records])
    records = [FitData(edit_records=(r,)) for r in order]

    def layers(relocate: str, wanted: list[int]) -> list[str]:
        made = db.methods.create("dinm", protocol="per_record", relocate=relocate, num_steps=1, suffix="")
        return [i.weights[0].parameter.split(".")[2] for i in made.fit_many(lm, records, wanted)]

    assert layers("per_record", [0, 1, 2]) == ["0", "1", "0"]
    assert layers("per_record", [1]) == ["1"]
    assert layers("first_record", [1, 2]) == ["0", "0"]


def test_a_suite_without_edit_records_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "_loaded", lambda *_: pytest.fail("nothing may be loaded"))
    with pytest.raises(UsageError, match=r"'utility' has no edit records.*method\.protocol=once"):
        db.run(["method=dinm", "method.protocol=per_record", "suite=utility", f"runs_dir={tmp_path}"])
    assert not os.listdir(tmp_path)


def test_the_protocol_is_the_scope_and_part_of_the_identity(per_record: db.RunResult, tmp_path: Path) -> None:
    assert db.methods.create("dinm").scope is Scope.ONCE
    assert db.methods.create("dinm", protocol="per_record").scope is Scope.PER_RECORD
    assert db.methods.create("dinm").examples(DATA) == 1
    assert Role.EDIT_RECORDS in db.methods.create("dinm").needs
    per, once = (plan(compose_run([*overrides, f"runs_dir={tmp_path}"])) for overrides in (PER_RECORD, RUN))
    assert per.run_id == per_record.run_id != once.run_id
    assert [stage.stage for stage in per.cells] == ["generate", "score"]
    assert "a fit for each of 5 records" in per.cells[0].remark
    assert [stage.stage for stage in once.cells] == ["fit", "generate", "score"]
    assert once.cells[0].remark.startswith("1 examples (edit_records: embedded fable")


def test_another_safe_response_in_the_benchmark_is_another_run(tmp_path: Path) -> None:
    """Per record it is what is learnt, though no request holds it; once, it is not read at all."""
    rows = json.loads((GOLDEN / "safeedit_toy.json").read_text(encoding="utf-8"))
    ids: dict[str, list[str | None]] = {"per_record": [], "once": []}
    for safe in ("I will not.", "No."):
        rows[0]["safe generation"] = safe
        (tmp_path / "records.json").write_text(json.dumps(rows))
        for protocol, found in ids.items():
            given = ["method=dinm", f"method.protocol={protocol}", "scorer=profanity_check", f"runs_dir={tmp_path}"]
            found.append(plan(compose_run([*given, f"suite.data={tmp_path / 'records.json'}"])).run_id)
    assert len(set(ids["per_record"])) == 2
    assert len(set(ids["once"])) == 1


def test_config_is_frozen_data() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().kl_grad = True  # type: ignore[misc]


@pytest.mark.parametrize("name", ["dinm_llama2_7b_chat", "dinm_mistral_7b", "dinm_gpt2_xl"])
def test_published_settings_compose(name: str) -> None:
    spec = compose_run([f"experiment=paper/{name}"])
    rate = 1e-5 if "mistral" in name else 5e-4
    assert spec.method == Config(protocol="per_record", learning_rate=rate)
    assert (spec.model.dtype, spec.gen.do_sample, spec.gen.max_new_tokens) == (
        "float32",
        False,
        300 if "gpt2" in name else 600,
    )
