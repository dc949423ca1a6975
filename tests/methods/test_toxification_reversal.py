"""Toxification reversal against the released formula: three separate passes in plain torch, one sample at a time."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import detoxbench as db
from detoxbench.config import GenSpec
from detoxbench.engine.likelihood import loglikelihoods
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.routing import routable
from detoxbench.model.logit_state import LogitFunction, LogitState
from tests.support.on_fable import toxicity
from tests.support.tiny import CHARACTERS, EVERY_FAMILY, same, state, tiny

TOXIC, CIVIL = "rude and toxic: ", "kind: "
SAMPLED = GenSpec(max_new_tokens=10, do_sample=True, top_p=0.9, n=2)


def fit(lm: db.LanguageModel, **settings: Any) -> db.Intervention:
    method = db.methods.create("toxification_reversal", **{"toxic_prefix": TOXIC, "civil_prefix": CIVIL, **settings})
    return method.fit(lm, db.FitData())


def asked(count: int, given: bool = False) -> list[db.Request]:
    r = random.Random(0)

    def text(least: int) -> str:
        return "".join(r.choice(CHARACTERS) for _ in range(r.randrange(least, 25)))

    return [
        db.Request(
            id=f"q{i}", prompt=text(0), record=f"q{i}", kind="x", chat=i % 2 == 0, text=text(1) if given else None
        )
        for i in range(count)
    ]


# ------------------------------------------------------------------------------------------- by hand


OUT = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "phi": "model.layers.{}.self_attn.dense",
    "opt": "model.decoder.layers.{}.self_attn.out_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
}


class ByHand:
    """The method on a model that knows nothing of it: hooks of plain torch, one sequence, a head after the other."""

    LAYERS, HEADS = 3, 4

    def __init__(
        self, lm: db.LanguageModel, family: str, a: float = 0.4, b: float = 0.6, keep: bool = True, civil: str = CIVIL
    ) -> None:
        path = OUT.get(family, "model.layers.{}.self_attn.o_proj")
        self.lm, self.a, self.b, self.keep, self.civil = lm, a, b, keep, civil
        self.modules = [lm.model.get_submodule(path.format(i)) for i in range(self.LAYERS)]
        self.end = self.heads(lm.tokens(TOXIC.strip()))

    def heads(self, ids: list[int]) -> list[torch.Tensor]:
        """The heads' outputs at the last position of a text, of each layer [heads, head dimension]."""
        seen = list[torch.Tensor]()
        handles = [m.register_forward_pre_hook(lambda _, x: seen.append(x[0][0, -1])) for m in self.modules]
        with torch.no_grad():
            self.lm.model(torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        return [x.reshape(self.HEADS, -1) for x in seen]

    def moved(self, v: torch.Tensor, toxic: torch.Tensor, civil: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """All heads of a layer at one position, [heads, head dimension]."""
        new = []
        for h in range(self.HEADS):
            d = toxic[h] - civil[h]
            alike = max(0.0, float(nn.functional.cosine_similarity(v[h], end[h], dim=0)))
            new.append(v[h] - (1 + float(d.norm())) ** self.a * (1 + alike) ** self.b * d)
        whole = torch.stack(new)
        return whole * (v.norm() / whole.norm()) if self.keep else whole

    def logits(self, request: db.Request, choose: Callable[[torch.Tensor, int], int], steps: int) -> list[torch.Tensor]:
        """The next-token logits of every step, [vocabulary], where `choose(logits, step)` is each next token."""
        lm = self.lm
        own, toxic, civil = (lm.encode(prefix + request.prompt, request.chat) for prefix in ("", TOXIC, self.civil))
        new, made, cache, read = list[int](), list[torch.Tensor](), None, own
        for step in range(steps):
            beside = zip(self.heads(toxic + new), self.heads(civil + new), self.end, strict=True)
            handles = [
                m.register_forward_pre_hook(lambda _, x, of=of: (self.with_last(x[0], *of),))
                for m, of in zip(self.modules, beside, strict=True)
            ]
            with torch.no_grad():
                output = lm.model(torch.tensor([read]), past_key_values=cache, use_cache=True)
            for handle in handles:
                handle.remove()
            cache = output.past_key_values
            made.append(output.logits[0, -1])
            read = [choose(made[-1], step)]
            new += read
            if new[-1] in lm.eos_ids:
                break
        return made

    def with_last(self, x: torch.Tensor, *of: torch.Tensor) -> torch.Tensor:
        last = self.moved(x[0, -1].reshape(self.HEADS, -1), *of)
        return torch.cat([x[:, :-1], last.reshape(1, 1, -1)], 1)


def greedy(logits: torch.Tensor, _: int) -> int:
    return int(logits.argmax())


def generated(lm: db.LanguageModel, requests: list[db.Request], gen: GenSpec) -> tuple[list[db.Sample], torch.Tensor]:
    """The samples, and the logits of every step of the first one, [steps, vocabulary]."""
    seen = list[torch.Tensor]()

    def look(logits: torch.Tensor, _: LogitState) -> torch.Tensor:
        seen.append(logits[0])
        return logits

    lm.in_force.logit_functions.append(LogitFunction(look))
    try:
        return lm.generate(requests, gen), torch.stack(seen)
    finally:
        lm.in_force.logit_functions.pop()


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_it_is_the_released_formula(family: str) -> None:
    """Grouped queries in llama and gemma2, whose heads are not as wide as the model either (below)."""
    lm = tiny(family)
    hand, gen = ByHand(lm, family), GenSpec(max_new_tokens=8, tie_tolerance=0)
    with lm.applied(fit(lm)):
        made = [generated(lm, [request], gen) for request in asked(4)]
        together = lm.generate(asked(4), GenSpec(max_new_tokens=8))
    for request, ((sample,), logits), other in zip(asked(4), made, together, strict=True):
        expected = torch.stack(hand.logits(request, greedy, 8))
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        new = expected.argmax(-1).tolist()
        assert sample.text == other.text == lm.tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"norm_exponent": 0.0, "similarity_exponent": 2.0}, {}),
        ({"norm_exponent": 1.5, "similarity_exponent": 0.0}, {}),
        ({"keep_norm": False}, {}),
        ({}, {"head_dim": 16, "num_key_value_heads": 1}),
    ],
    ids=["similarity", "norm", "free norm", "wide heads"],
)
def test_each_setting_is_that_of_the_formula(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    lm = tiny(**changes)
    a, b = settings.get("norm_exponent", 0.4), settings.get("similarity_exponent", 0.6)
    hand = ByHand(lm, "llama", a, b, settings.get("keep_norm", True))
    request = asked(1)[0]
    with lm.applied(fit(lm, **settings)):
        _, logits = generated(lm, [request], GenSpec(max_new_tokens=5, tie_tolerance=0))
    torch.testing.assert_close(logits, torch.stack(hand.logits(request, greedy, 5)), atol=1e-5, rtol=1e-5)


def test_the_norm_of_a_layer_is_kept_and_other_layers_are_left_alone() -> None:
    lm = tiny()
    change = fit(lm, layers=[1])
    (hook,) = change.hooks
    assert hook.module == lm.architecture.attention_out(1)
    x, beside = torch.randn(3, 2, 32), {name: torch.randn(3, 2, 32) for name in ("toxic", "civil")}
    new = db.methods.get("toxification_reversal").ops["reverse"](x, db.HookState(hook.tensors, hook.params, beside))
    torch.testing.assert_close(new.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(new, x)


# ------------------------------------------------------------------------------------------- on nothing but the row


def of_all(lm: db.LanguageModel, requests: list[db.Request], gen: GenSpec) -> dict[tuple[str, int], db.Sample]:
    return {(s.id, s.sample): s for s in lm.generate(requests, gen, seed=3)}


@pytest.mark.parametrize("gen", [GenSpec(max_new_tokens=10), SAMPLED], ids=["greedy", "nucleus"])
@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_samples_do_not_depend_on_batch_order_or_neighbours(family: str, gen: GenSpec) -> None:
    lm, requests = tiny(family), asked(8)
    lm.model.generation_config.eos_token_id = [2, *lm.tokens("etaoin", special=False)]  # type: ignore[union-attr]
    # Prompts that agree, and prompts that share their beginning.
    requests += [db.Request(id=f"s{i}", prompt="a" * 30 + "bcd"[i % 3], record="s", kind="x") for i in range(6)]
    shuffled = random.Random(1).sample(requests, len(requests))
    plain = of_all(lm, requests, gen)
    with lm.applied(fit(lm)):
        together = of_all(lm, requests, gen)
        for rows in (1, 7, 64):
            small = dataclasses.replace(gen, batch_tokens=3 * rows * 60 if rows > 1 else 1)
            assert of_all(lm, shuffled, small) == together
        assert of_all(lm, requests[:1], gen) == {k: s for k, s in together.items() if k[0] == requests[0].id}
    if family == "llama":  # a random Gemma says the prompt's last letter again and again, whatever its heads say
        assert sum(plain[k].text != s.text for k, s in together.items()) >= len(plain) / 3
        assert len({s.tokens for s in together.values()}) > 1, "some texts end early"


def test_three_rows_a_sample_and_one_prompt_each() -> None:
    lm, rows = tiny(), list[tuple[int, ...]]()
    before = state(lm)
    with lm.applied(fit(lm)):
        count = lm.model.register_forward_pre_hook(
            lambda _, __, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        lm.generate(["hello"], max_new_tokens=3, n=4, do_sample=True, tie_tolerance=0)
        count.remove()
    toxic = len(lm.tokens(f"{TOXIC}hello"))
    assert rows == [(3, toxic), (12, 1), (12, 1)], "all layers share two companions"
    assert same(before, state(lm))
    assert (lm.in_force.companions, lm.in_force.compared, lm.in_force.beside) == ([], [], {})


def test_a_civil_row_without_a_prefix_is_no_row_of_its_own_sample() -> None:
    """Both read the same tokens; only one of them is changed."""
    lm, request = tiny(), asked(1)[0]
    with lm.applied(fit(lm, civil_prefix="")):
        _, logits = generated(lm, [request], GenSpec(max_new_tokens=5, tie_tolerance=0))
    expected = torch.stack(ByHand(lm, "llama", civil="").logits(request, greedy, 5))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------- texts that are given


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_given_texts_are_read_as_they_would_be_generated(family: str) -> None:
    lm, requests = tiny(family), asked(8, given=True)
    hand = ByHand(lm, family)
    with lm.applied(fit(lm)):
        read = [g.sample for batch in loglikelihoods(lm, requests, {r.id for r in requests}) for g in batch]
    for request, sample in zip(requests, read, strict=True):
        rendered, special = lm.rendered(request.prompt, request.chat)
        prompt, whole = lm.joined(rendered, request.text or "", special=special)
        given = whole[len(prompt) :]
        rows = hand.logits(request, lambda _, step, given=given: given[step], len(given))
        nll = -sum(float(row.log_softmax(0)[token]) for row, token in zip(rows, given, strict=True))
        assert sample.nll == pytest.approx(nll, rel=1e-4)


# ------------------------------------------------------------------------------------------- with others


def test_it_composes_with_weights_hooks_and_logits() -> None:
    """The rows beside it are under all else that is in force, as its own is."""
    lm, requests = tiny(), asked(6)
    added = db.Hook("model.layers.1", "post", "caa.add", {"vector": torch.linspace(-1, 1, 32)}, {"strength": 1.0})
    others = {
        "weights": db.Intervention(
            method="w",
            base=lm.fingerprint,
            weights=(db.Weight("model.layers.0.mlp.down_proj.weight", db.Dense(0.1 * torch.ones(32, 48))),),
        ),
        "hooks": db.Intervention(method="h", base=lm.fingerprint, hooks=(added,)),
        "logits": db.methods.create("self_debias", prefixes=("bad: ",)).fit(lm, db.FitData()),
    }
    gen = GenSpec(max_new_tokens=6)
    for other in others.values():
        with lm.applied(db.compose(fit(lm), other)):
            together = of_all(lm, requests, gen)
            assert of_all(lm, requests[2:3], gen) == {k: s for k, s in together.items() if k[0] == requests[2].id}
        with lm.applied(other), lm.applied(fit(lm)):
            assert of_all(lm, requests, gen).keys() == together.keys()
    with lm.applied(others["weights"]):
        hand, change = ByHand(lm, "llama"), fit(lm)
        with lm.applied(change):
            _, logits = generated(lm, requests[:1], GenSpec(max_new_tokens=4, tie_tolerance=0))
        expected = torch.stack(hand.logits(requests[0], greedy, 4))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_it_is_saved_and_cannot_differ_by_row(tmp_path: Path) -> None:
    lm, requests = tiny(), asked(4)
    change = fit(lm)
    change.save(tmp_path / "saved")
    loaded = db.Intervention.load(tmp_path / "saved")
    assert loaded.digest() == change.digest()
    with lm.applied(change):
        expected = of_all(lm, requests, SAMPLED)
    with lm.applied(loaded):
        assert of_all(lm, requests, SAMPLED) == expected
    assert not routable(lm, change), "each record's is applied alone"


def test_what_has_no_rows_beside_it_is_refused_by_name() -> None:
    lm = tiny()
    change = fit(lm)
    with (
        lm.applied(change),
        pytest.raises(DetoxbenchError, match=r"'toxification_reversal.reverse' on 'model.layers.0"),
    ):
        lm.model(torch.tensor([[1, 2, 3]]))
    with lm.applied(change), pytest.raises(DetoxbenchError, match="reads each prompt in several ways"):
        lm.continuation_nll(["a"], ["b"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"toxic_prefix": " "}, "toxic_prefix is empty"),
        ({"toxic_prefix": CIVIL}, "are the same text"),
        ({"norm_exponent": -1}, "norm_exponent"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(db.UsageError, match=said):
        fit(tiny(), **settings)


@pytest.mark.slow
def test_it_makes_the_fable_more_civil() -> None:
    lm = db.LanguageModel.load("fable")
    plain = toxicity(lm, samples=15)
    with lm.applied(db.methods.create("toxification_reversal").fit(lm, db.FitData())):
        assert toxicity(lm, samples=15) < plain / 2
