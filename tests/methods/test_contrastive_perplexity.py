"""Contrastive perplexity against the numbers of its released code and of the paper, its traps, and the shared loop."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from safetensors.torch import load_file

import detoxbench as db
from detoxbench.data import readers
from detoxbench.data.examples import FitData, ParaphraseSet, Role
from detoxbench.data.fit import fit_data
from detoxbench.data.roles import fit_spec
from detoxbench.errors import DetoxbenchError
from detoxbench.fable import world
from detoxbench.fitting import token_losses
from detoxbench.fitting.paraphrases import NEGATIVE, POSITIVE, RANDOM, Pools
from detoxbench.fitting.token_losses import finite, plain_head, sequence_nll, token_nlls
from detoxbench.fitting.training import optimise_lora
from detoxbench.methods import contrastive_perplexity as cp
from tests.support import tiny as families
from tests.support.tiny import tiny

GOLDEN = Path(__file__).parents[1] / "golden/contrastive_perplexity"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
LEVEL: dict[str, Any] = json.loads((GOLDEN / "loss_level.json").read_text())
SCRIPT = [case for case in LEVEL["cases"] if case["objective"].startswith("script")]


def roles(anchors: int, positives: int, negatives: int, randoms: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(group, role) of the rows, anchor by anchor."""
    role = [POSITIVE] * positives + [NEGATIVE] * negatives + [RANDOM] * randoms
    return torch.arange(anchors).repeat_interleave(len(role)), torch.tensor(role * anchors)


@cache
def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SCRIPT, ids=lambda case: case["id"])
def test_the_script_objective_equals_the_released_code(case: dict[str, Any]) -> None:
    """Six shapes by six settings, and the case of NLLs that are not finite; losses and gradients in float64."""
    tensors = golden("loss_level")
    s = finite(tensors[f"{case['id'].split('.')[0]}.token_nll"]).mean(1).requires_grad_()
    config = cp.Config(centroid="batch", **{k: case[k] for k in ("alpha", "tau", "beta", "smoothing")})
    group, role = roles(case["batch"], case["num_pos"], case["num_neg"], case["num_rnd"])
    loss = cp.cp_loss(s, group, role, config)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12, abs=1e-12)
    loss.backward()
    if (name := f"{case['id']}.grad_seq_nll") in tensors:
        torch.testing.assert_close(s.grad, tensors[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", LEVEL["paper_equations"], ids=lambda case: case["id"])
def test_the_paper_objective_equals_the_papers_equations(case: dict[str, Any]) -> None:
    tensors = golden("loss_level")
    s = tensors[case["token_nll"]].mean(1).requires_grad_()
    group, role = roles(case["batch"], case["num_pos"], case["num_neg"])
    losses = []
    for tau in (0.1, 1.0):  # tau cancels
        loss = cp.cp_loss(s, group, role, cp.Config(objective="paper", alpha=case["alpha"], tau=tau))
        losses.append(loss.item())
    assert losses == pytest.approx([case["loss_mean"]] * 2, rel=1e-12, abs=1e-12)
    (loss * case["batch"]).backward()
    torch.testing.assert_close(s.grad, tensors[f"{case['id']}.grad_seq_nll"], rtol=1e-10, atol=1e-12)


def reference(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The fixture's model, fresh, and a batch with the groups and roles of its rows."""
    from transformers import AutoModelForCausalLM

    given = EXPECTED["batches"][name]
    numbers = given["num_pos"], given["num_neg"], given["num_rnd"]
    ids, mask = torch.tensor(given["input_ids"]), torch.tensor(given["attention_mask"])
    group, role = roles(len(ids) // sum(numbers), *numbers)
    batch = {"input_ids": ids, "attention_mask": mask, "group": group, "role": role}
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "tiny-llama"), batch


def published(name: str) -> cp.Config:
    return cp.Config(centroid="batch", **EXPECTED["configs"][name])


@pytest.mark.parametrize("case", EXPECTED["model_level"])
@pytest.mark.parametrize("through_head", [True, False])
def test_losses_and_gradients_of_a_model_equal_the_released_code(case: str, through_head: bool) -> None:
    _, name, _, config = case.split("/")
    model, batch = reference(name)
    s = sequence_nll(model, batch, through_head=through_head)
    assert s.tolist() == pytest.approx(EXPECTED["seq_mean_nll"][case.rpartition("/")[0]], rel=1e-5)
    loss = cp.cp_loss(s, batch["group"], batch["role"], published(config))
    loss.backward()
    expected = EXPECTED["model_level"][case]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    for parameter, norm in expected["grad_norms"].items():
        gradient = model.get_parameter(parameter).grad
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-4)
        if (key := f"grad|{case}|{parameter}") in golden("expected"):
            exact = golden("expected")[key]
            torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("run", EXPECTED["sgd"])
def test_three_steps_of_gradient_descent_equal_the_released_code(run: str) -> None:
    case = EXPECTED["sgd"][run]
    model, batch = reference(case["batches"][0])
    optimiser = torch.optim.SGD(model.parameters(), lr=case["lr"])
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = cp.cp_loss(sequence_nll(model, batch), batch["group"], batch["role"], published(case["config"]))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses == pytest.approx(case["losses"], rel=1e-5)
    for key, expected in golden("expected").items():
        if key.startswith(f"param_after_3_sgd|{run}|"):
            torch.testing.assert_close(model.get_parameter(key.split("|")[2]), expected, rtol=0, atol=1e-5)


# --- the loss itself -------------------------------------------------------------------------------------------------


def scores(seed: int = 0, rows: int = 16) -> torch.Tensor:
    return (torch.randn(rows, generator=torch.Generator().manual_seed(seed)).double() + 3).requires_grad_()


@pytest.mark.parametrize("centroid", ["anchor", "batch"])
def test_the_loss_knows_no_level_and_so_never_lowers_the_positives_themselves(centroid: str) -> None:
    group, role = roles(2, 3, 3, 2)
    s, config = scores(), cp.Config(centroid=centroid)
    loss = cp.cp_loss(s, group, role, config)
    torch.testing.assert_close(cp.cp_loss(s + 1.5, group, role, config), loss)
    loss.backward()
    assert float(s.grad.sum()) == pytest.approx(0, abs=1e-12)


def test_abs_makes_a_negative_below_the_centroid_likelier_and_hinge_leaves_it_alone() -> None:
    group, role = roles(2, 3, 3, 2)
    gradients = {}
    for distance in ("abs", "hinge"):
        s = scores()
        cp.cp_loss(s, group, role, cp.Config(distance=distance)).backward()
        gradients[distance] = s.grad
    means = torch.stack([scores()[(group == g) & (role == POSITIVE)].mean() for g in (0, 1)])[group]
    negative = role != POSITIVE
    below, above = negative & (scores() < means), negative & (scores() > means)
    assert below.any()
    assert above.any()
    assert bool((gradients["abs"][below] > 0).all())
    assert bool((gradients["hinge"][below] == 0).all())
    for distance in gradients:
        assert bool((gradients[distance][above] < 0).all())


def test_random_negatives_get_no_gradient_at_the_released_alpha() -> None:
    """alpha = 100 leaves the softmax nothing for them: six of eighteen rows of the released default do nothing."""
    group, role = roles(2, 3, 3, 2)
    for alpha, nothing in ((100.0, True), (1.0, False)):
        s = scores().detach().float().requires_grad_()
        cp.cp_loss(s, group, role, cp.Config(alpha=alpha, tau=1.0, centroid="batch")).backward()
        assert (float(s.grad[role == RANDOM].abs().max()) < 1e-40) == nothing


def test_a_centroid_for_each_anchor_keeps_anchors_apart() -> None:
    group, role = roles(2, 2, 2)
    s = scores(rows=8)
    one = [cp.cp_loss(s[group == g], group[group == g] * 0, role[group == g], cp.Config()) for g in (0, 1)]
    torch.testing.assert_close(cp.cp_loss(s, group, role, cp.Config()), torch.stack(one).mean())
    mixed = cp.cp_loss(s, group, role, cp.Config(centroid="batch"))
    assert abs((mixed - torch.stack(one).mean()).item()) > 1e-3


def test_without_negatives_weight_the_paper_objective_is_zero() -> None:
    group, role = roles(2, 2, 2)
    s = scores(rows=8)
    loss = cp.cp_loss(s, group, role, cp.Config(objective="paper", alpha=0.0))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert bool(torch.isfinite(s.grad).all())


# --- sequence NLL ----------------------------------------------------------------------------------------------------


def batch_of(texts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, texts))
    return {
        "input_ids": torch.tensor([t + [0] * (width - len(t)) for t in texts]),
        "attention_mask": torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts]),
    }


TEXTS = [[1, 5, 9, 12, 7, 2], [1, 8, 2], [1, 20, 21, 22, 23, 24, 25, 26, 2]]


@pytest.mark.parametrize("family", list(families.FAMILIES))
def test_each_row_is_scored_as_if_alone_in_every_family(family: str) -> None:
    lm = tiny(family)
    assert plain_head(lm)
    together = sequence_nll(lm.model, batch_of(TEXTS))
    for s, text in zip(together, TEXTS, strict=True):
        ids = torch.tensor([text])
        logits = lm.model(input_ids=ids).logits[0, :-1]
        torch.testing.assert_close(s, torch.nn.functional.cross_entropy(logits, ids[0, 1:]), rtol=1e-4, atol=1e-4)


def test_a_model_that_scales_its_logits_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "granite", {**families.FAMILIES["llama"], "logits_scaling": 4.0})
    assert not plain_head(tiny("granite"))


def test_in_chunks_and_at_once_are_the_same_and_a_lora_on_the_head_gets_its_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_losses, "CHUNK", 3)
    lm = tiny()
    model = get_peft_model(lm.model, PeftConfig(r=4, target_modules=["q_proj", "lm_head"], lora_dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch, gradients = batch_of(TEXTS), []
    for through_head in (True, False):
        model.zero_grad()
        sequence_nll(model, batch, through_head=through_head).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert any("lm_head" in name for name in gradients[0])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


def test_counted_pads_change_the_score() -> None:
    lm, batch = tiny(), batch_of(TEXTS)
    plain, counted = (sequence_nll(lm.model, batch, count_pads=count) for count in (False, True))
    assert (plain - counted)[1].abs().item() > 1e-2
    torch.testing.assert_close(plain[2], counted[2])  # the longest has none


# --- what is drawn ---------------------------------------------------------------------------------------------------

SETS = tuple(
    ParaphraseSet(
        f"{group}-{i}",
        tuple(f"{thing} {how} fine here" for how in ("is", "looks", "seems")),
        tuple(f"what a {word} {thing}" for word in ("bad", "dull", "poor")),
    )
    for group, things in (("fruit", ["pear", "plum"]), ("tool", ["saw", "axe"]))
    for i, thing in enumerate(things)
)


def pools(sets: tuple[ParaphraseSet, ...] = SETS, seed: int = 0, **changes: int) -> Pools:
    numbers = changes.get("positives", 2), 2, changes.get("random_negatives", 3)
    return Pools(tiny(), sets, numbers, max_length=changes.get("max_length", 64), seed=seed)


def test_draws_are_a_function_of_seed_epoch_and_anchor() -> None:
    assert pools().epoch(0) == pools().epoch(0)
    assert pools().epoch(0) != pools().epoch(1)
    assert pools().epoch(0) != pools(seed=1).epoch(0)
    assert pools().draw(1, 2) == pools().epoch(1)[2]


def test_draws_are_without_replacement_and_random_negatives_of_another_group() -> None:
    lm = tiny()
    for epoch in range(20):
        for anchor, drawn in enumerate(pools().epoch(epoch)):
            texts = [[lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in part] for part in drawn]
            assert [len(set(part)) for part in texts] == [2, 2, 3]
            assert set(texts[0]) <= set(SETS[anchor].positives)
            assert set(texts[1]) <= set(SETS[anchor].negatives)
            foreign = {t for s in SETS if s.anchor.split("-")[0] != SETS[anchor].anchor.split("-")[0] for t in s[2]}
            assert set(texts[2]) <= foreign


def test_texts_end_and_are_cut() -> None:
    end = tiny().tokenizer.eos_token_id
    drawn = pools().draw(0, 0)
    assert all(ids[-1] == end for part in drawn for ids in part)
    assert all(len(ids) == 8 for part in pools(max_length=8).draw(0, 0) for ids in part)


def test_pads_stand_on_the_right_or_as_released() -> None:
    drawn = pools().epoch(0)[:2]
    right = pools().collate(drawn)
    left = pools().collate(drawn, as_released=True)
    assert right["group"].tolist() == [0] * 7 + [1] * 7
    assert right["role"].tolist() == [0, 0, 1, 1, 2, 2, 2] * 2
    assert left["input_ids"].shape[1] % 8 == 0
    assert bool((left["input_ids"][left["attention_mask"] == 0] == 2).all())
    for row in range(14):
        one, other = (b["input_ids"][row][b["attention_mask"][row].bool()].tolist() for b in (right, left))
        assert one == other
    assert bool(right["attention_mask"][:, 0].all())
    assert bool(left["attention_mask"][:, -1].all())


def test_anchors_with_too_few_texts_are_counted_or_named() -> None:
    short = ParaphraseSet("x", ("a b",), ("c d",))
    assert (len(pools((*SETS, short))), pools((*SETS, short)).dropped) == (4, 1)
    with pytest.raises(DetoxbenchError, match=r"no anchor has 5 positives, 2 negatives .*\(the most are 3 and 3\)"):
        pools(positives=5)
    with pytest.raises(DetoxbenchError, match="7 negatives of other groups"):
        pools(random_negatives=7)


# --- the shared loop -------------------------------------------------------------------------------------------------

FAST = {"rank": 4, "positives": 2, "negatives": 2, "learning_rate": 1e-2, "lora_dropout": 0.0, "epochs": 2}
DATA = FitData(paraphrase_sets=SETS)


def fit(lm: db.LanguageModel | None = None, data: FitData = DATA, **changes: Any) -> db.Intervention:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return db.methods.create("contrastive_perplexity", **FAST | changes).fit(lm or tiny(), data)


def deltas(intervention: db.Intervention) -> dict[str, torch.Tensor]:
    return {w.parameter: w.delta.b @ w.delta.a for w in intervention.weights}


@pytest.mark.slow
def test_accumulation_equals_a_larger_batch_with_a_centroid_for_each_anchor() -> None:
    fitted = [fit(batch_size=4, micro_batch_size=size) for size in (4, 1)]
    for key in ("losses", "gradient_norms"):  # AdamW would hide a gradient that is too large
        assert fitted[0].info[key] == pytest.approx(fitted[1].info[key], rel=1e-3)
    whole, parts = map(deltas, fitted)
    mixed = [deltas(fit(batch_size=4, micro_batch_size=size, centroid="batch")) for size in (4, 1)]
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=0, atol=2e-3)
    assert max(float((mixed[0][name] - mixed[1][name]).abs().max()) for name in whole) > 1e-2


def test_all_linear_layers_get_a_lora_and_the_head_when_asked() -> None:
    lm = tiny()
    names = set(deltas(fit(lm)))
    assert len(names) == 7 * 3
    assert "lm_head.weight" not in names
    with_head = deltas(fit(lm, target_modules=("q_proj", "lm_head")))
    assert len(with_head) == 3 + 1
    assert float(with_head["lm_head.weight"].abs().max()) > 0


@pytest.mark.parametrize(
    ("family", "changes", "targets", "message"),
    [
        ("llama", {"tie_word_embeddings": True}, ("all-linear", "lm_head"), "would change both: leave 'lm_head' out"),
        ("llama", {}, ("embed_tokens",), "'model.embed_tokens' is no linear layer"),
        ("gpt2", {}, ("q_proj",), "GPT2LMHeadModel has no module 'q_proj': set method.target_modules"),
    ],
)
def test_targets_that_cannot_work_are_refused_by_name(
    family: str, changes: dict[str, Any], targets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DetoxbenchError, match=message):
        fit(tiny(family, **changes), target_modules=targets)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_layers_in_few_bits_train_and_are_put_back(quantization: str) -> None:
    pytest.importorskip("bitsandbytes")
    lm = tiny(hidden_size=64, intermediate_size=128, head_dim=16)
    before, structure = families.state(lm), [(n, type(m)) for n, m in lm.model.named_modules()]
    quantized, plain = fit(lm, quantization=quantization), fit(lm)
    assert families.same(before, families.state(lm))
    assert structure == [(n, type(m)) for n, m in lm.model.named_modules()]
    assert deltas(quantized).keys() == deltas(plain).keys()
    assert quantized.info["losses"] != plain.info["losses"]
    assert quantized.info["losses"] == pytest.approx(plain.info["losses"], abs=0.5)


def test_few_bits_without_bitsandbytes_are_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = r"method\.quantization=nf4 needs bitsandbytes: pip install 'detoxbench\[bitsandbytes\]'"
    with pytest.raises(DetoxbenchError, match=said):
        db.methods.create("contrastive_perplexity", quantization="nf4").fingerprints()


def test_every_epoch_is_drawn_anew_and_every_row_seen_once() -> None:
    lm, asked, seen = tiny(), [], []

    def rows(epoch: int) -> list[tuple[int, int]]:
        asked.append(epoch)
        return [(epoch, i) for i in range(5)]

    def collate(batch: Any) -> dict[str, torch.Tensor]:
        seen.extend(batch)
        return batch_of(TEXTS) | {"labels": torch.tensor([[1]])}  # by which the Trainer would scale, were it asked

    def loss(model: Any, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        value = sequence_nll(model, batch).mean()
        return value, {"twice": 2 * value.item()}

    config = cp.Config(epochs=3, batch_size=2, micro_batch_size=1, rank=2)
    trained = optimise_lora(lm, rows, config, collate=collate, loss=loss, seed=0, description="x")
    assert sorted(seen) == [(epoch, i) for epoch in range(3) for i in range(5)]
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)
    assert len(trained.losses) == len(trained.gradient_norms) == 9
    assert trained.measures["twice"] == pytest.approx([2 * loss for loss in trained.losses], rel=1e-4)


def test_a_training_that_diverges_is_an_error() -> None:
    def loss(model: Any, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        return sequence_nll(model, batch).mean() * float("nan"), {}

    with pytest.raises(DetoxbenchError, match=r"'x' diverged: lower method\.learning_rate"):
        optimise_lora(
            tiny(),
            lambda epoch: [0],
            cp.Config(),
            collate=lambda b: batch_of(TEXTS),
            loss=loss,
            seed=0,
            description="x",
        )


def test_token_nlls_need_no_labels_and_take_any_positions() -> None:
    lm, batch = tiny(), batch_of(TEXTS)
    targets = torch.zeros(3, 8, dtype=torch.bool)
    targets[2, 4:6] = True
    nlls, rows = token_nlls(lm.model, batch, targets)
    logits = lm.model(input_ids=torch.tensor(TEXTS[2:])).logits[0, 4:6]
    torch.testing.assert_close(
        nlls, torch.nn.functional.cross_entropy(logits, torch.tensor([24, 25]), reduction="none")
    )
    assert rows.tolist() == [2, 2]


# --- effect and traps ------------------------------------------------------------------------------------------------


def sided(likelier_toxic: bool) -> FitData:
    """Sets of random texts, cut by the model itself into likely and unlikely ones."""
    lm, generator = tiny(), torch.Generator().manual_seed(1)
    sets = []
    for i in range(12):
        texts = [
            "".join(families.CHARACTERS[k] for k in torch.randint(0, 26, (8,), generator=generator)) for _ in "12345678"
        ]
        texts.sort(key=lambda text: lm.continuation_nll([""], [text])[0])  # type: ignore[arg-type, return-value]
        likely, unlikely = tuple(texts[:4]), tuple(texts[4:])
        civil, toxic = (unlikely, likely) if likelier_toxic else (likely, unlikely)
        sets.append(ParaphraseSet(str(i), civil, toxic))
    return FitData(paraphrase_sets=tuple(sets))


@pytest.mark.slow
def test_it_drives_toxic_texts_away_where_they_are_less_likely_to_begin_with() -> None:
    info = fit(data=sided(likelier_toxic=False), epochs=6, micro_batch_size=6).info
    assert info["anchors_with_likelier_negatives"] == info["negatives_below_centroid_before"] == 0
    assert info["nll_negatives_after"] > info["nll_negatives_before"] + 0.1
    assert info["losses"][-1] < info["losses"][0]
    assert all(len(info[k]) == 12 for k in ("losses", "gradient_norms", "s_pos", "s_neg", "margin", "pads_share"))
    json.dumps(dict(info), allow_nan=False)


@pytest.mark.slow
def test_the_sign_trap_is_measured_and_warned_of_and_the_hinge_is_out_of_it() -> None:
    """Toxic texts that are likelier than civil ones become likelier still (abs); the hinge has no pull on them."""
    data = sided(likelier_toxic=True)
    method = db.methods.create("contrastive_perplexity", **FAST | {"micro_batch_size": 6})
    with pytest.warns(UserWarning, match=r"set method\.distance=hinge"):
        trapped = method.fit(tiny(), data).info
    assert trapped["anchors_with_likelier_negatives"] == 1
    assert trapped["neg_below_centroid"][0] > 0.9
    assert trapped["nll_negatives_after"] - trapped["nll_positives_after"] < trapped["nll_gap_before"] - 0.05
    hinged = fit(data=data, micro_batch_size=6, distance="hinge").info
    assert hinged["nll_negatives_after"] - hinged["nll_positives_after"] > trapped["nll_gap_before"] - 0.02


@pytest.mark.slow
def test_on_the_fable_civil_texts_win_probability_over_rude_ones() -> None:
    data, _ = fit_data(fit_spec()(limit=60), frozenset({Role.PARAPHRASE_SETS}))
    recipe = {"learning_rate": 2e-3, "positives": 3, "negatives": 3, "micro_batch_size": 6, "distance": "hinge"}
    method = db.methods.create("contrastive_perplexity", **recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        info = method.fit(db.LanguageModel.load("fable"), data).info
    assert info["toxic_mass_after"] < 0.5 * info["toxic_mass_before"]


def test_more_probability_for_toxic_texts_is_warned_of() -> None:
    info = {
        "anchors_with_likelier_negatives": 0.2,
        "nll_gap_before": 0.1,
        "nll_positives_before": 1.0,
        "nll_positives_after": 1.0,
        "toxic_mass_before": 0.04,
    }
    with pytest.warns(UserWarning, match=r"likelier against the civil ones \(4.0% to 32.0% of their probability\)"):
        cp._warn(info | {"toxic_mass_after": 0.32}, cp.Config())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cp._warn(info | {"toxic_mass_after": 0.03}, cp.Config())


def test_a_collapse_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "COLLAPSE", -1.0)
    with pytest.warns(UserWarning, match="a sign of collapse: lower method.learning_rate"):
        db.methods.create("contrastive_perplexity", **FAST).fit(tiny(), DATA)


# --- data ------------------------------------------------------------------------------------------------------------


def test_embedded_sets_share_an_opening_and_hold_seen_insults_only() -> None:
    data, _ = fit_data(fit_spec()(), frozenset({Role.PARAPHRASE_SETS}))
    sets = data.paraphrase_sets or ()
    assert len(sets) == 240
    for found in sets:
        texts = (*found.positives, *found.negatives)
        assert len(set(texts)) == 12
        assert len({text.split(" : ")[0] for text in texts}) == 1
        assert not any(world.truth(text) for text in found.positives)
        assert all(world.truth(text) for text in found.negatives)
        assert not set(" ".join(texts).split()) & set(world.HELD_NOUNS + world.HELD_ADJECTIVES)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "released.json",
            '[{"id": "women-3", "paraphrases": ["a", "b", "a"], "paraphrases_toxic": ["c"], "input": "z"}]',
            ParaphraseSet("women-3", ("a", "b"), ("c",)),
        ),
        ("plain.jsonl", '{"positives": ["a"], "negatives": ["c", "d"]}', ParaphraseSet("1", ("a",), ("c", "d"))),
        (
            "paradetox.tsv",
            "toxic\tneutral1\tneutral2\tneutral3\nt\ta\tb\t\n",
            ParaphraseSet("2", ("a", "b"), ("t",)),
        ),
    ],
)
def test_published_and_plain_files_are_read(tmp_path: Path, name: str, content: str, expected: ParaphraseSet) -> None:
    (tmp_path / name).write_text(content)
    assert readers.paraphrase_sets(tmp_path / name) == [expected]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"positives": ["a"], "negatives": ["b"]}\n{"positives": []}', r"line 2: .*'positives'"),
        ("x.jsonl", '{"paraphrases": ["a"]}', "line 1: missing field 'paraphrases_toxic'"),
        ("x.jsonl", '{"positives": ["a"], "negatives": [""]}', r"line 1: .*'negatives"),
        (
            "x.tsv",
            "toxic\tneutral1\nt\ta\nu\t\n",
            "line 3: expected text that is not empty, got nothing, in 'neutral1'",
        ),
    ],
)
def test_a_set_that_does_not_fit_is_named_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DetoxbenchError, match=message) as caught:
        readers.paraphrase_sets(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("objective", ["script", "paper"])
def test_half_of_the_loss_pulls_or_pushes_alone(objective: Any) -> None:
    """Positives alone: -log sum_P e^-d; negatives alone: log sum_N e^-d, mean over the anchors."""
    scores = torch.tensor([1.0, 3.0, 2.5, 0.5, 2.0, 2.0], dtype=torch.float64)
    group, role = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([POSITIVE, POSITIVE, NEGATIVE] * 2)
    level = scores.exp() if objective == "paper" else scores
    expected = {"positives": 0.0, "negatives": 0.0}
    for a in (0, 3):
        centre = (level[a] + level[a + 1]) / 2
        near = (-(level[a : a + 3] - centre).abs()).exp()
        expected["positives"] -= float(near[:2].sum().log()) / 2
        expected["negatives"] += float(near[2].log()) / 2
    for terms in ("positives", "negatives"):
        found = cp.cp_loss(scores, group, role, cp.Config(objective=objective, terms=terms))
        assert float(found) == pytest.approx(expected[terms], rel=1e-12)
