"""Different edits for different rows of one batch: each row must be what it is with its edit on the model alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from detoxbench.config import GenSpec
from detoxbench.data.examples import FitData
from detoxbench.engine.share import ALONE, Share
from detoxbench.errors import DetoxbenchError
from detoxbench.files.lines import gathered, unfinished_lines
from detoxbench.interventions.channels import Dense, Hook, LowRank, Prompt, Weight
from detoxbench.interventions.intervention import Intervention
from detoxbench.interventions.per_row import per_row_weights
from detoxbench.interventions.routing import routable
from detoxbench.lm import LanguageModel
from detoxbench.records import Request
from detoxbench.runner.fits import RecordFit, fitted_groups
from tests.support.tiny import EVERY_FAMILY, METHOD_FAMILIES, same, state, tiny

PROMPTS = ["tell me", "why is the cat so rude", "a", "what do you say to that", "tell me"]


def edit(lm: LanguageModel, seed: int, *layers: int, suffix: str = "", bias: bool = False) -> Intervention:
    """A dense change of the down-projections of `layers`, low-rank of the last one, as large as the weights."""
    noise = torch.Generator().manual_seed(seed)
    weights = []
    for layer in layers:
        path = lm.architecture.mlp_down(layer)
        weight = lm.architecture.module(path).weight
        out, into = reversed(weight.shape) if lm.architecture.transposed(path) else weight.shape
        if layer == 2:
            a, b = torch.randn(4, into, generator=noise), torch.randn(out, 4, generator=noise)
            weights.append(Weight(f"{path}.weight", LowRank(a * 0.1, b)))
        else:
            weights.append(Weight(f"{path}.weight", Dense(torch.randn(weight.shape, generator=noise) * 0.2)))
        if bias:
            weights.append(Weight(f"{path}.bias", Dense(torch.randn(out, generator=noise))))
    prompts = (Prompt(suffix=suffix),) if suffix else ()
    return Intervention(method="t", base=lm.fingerprint, weights=tuple(weights), prompts=prompts)


def edits(lm: LanguageModel) -> dict[str, Intervention]:
    """Other layers, several layers, a bias (created where there is none), a suffix, the same for two, and no change."""
    shared = edit(lm, 4, 1)
    return {
        "a": edit(lm, 1, 1),
        "b": edit(lm, 2, 1, 2, suffix=" be kind"),
        "c": edit(lm, 3, 0, bias=True),
        "d": shared,
        "e": shared,
        "f": edit(lm, 0),
    }


def requests(lm: LanguageModel) -> list[Request]:
    return [
        Request(id=f"{record}{i}", prompt=prompt, record=record, kind="k", chat=i % 2 == 0)
        for i, prompt in enumerate(PROMPTS)
        for record in edits(lm)
    ]


@contextmanager
def untouched(lm: LanguageModel) -> Iterator[None]:
    """Nothing of the model may be another thing afterwards."""
    before = state(lm)
    yield
    assert same(before, state(lm))
    assert not any("forward" in vars(m) or m._forward_pre_hooks or m._forward_hooks for m in lm.model.modules())
    assert lm.in_force.route is None


GENS = {"greedy": GenSpec(max_new_tokens=10), "sampled": GenSpec(max_new_tokens=10, do_sample=True, top_p=0.9, n=2)}


@pytest.mark.parametrize("family", METHOD_FAMILIES)
@pytest.mark.parametrize("gen", GENS)
def test_routed_samples_are_those_of_each_edit_applied_alone(family: str, gen: str) -> None:
    lm, spec = tiny(family), GENS[gen]
    asked, on = requests(lm), edits(lm)
    with untouched(lm):
        with lm.routed(on):
            together = lm.generate(asked, spec)
        for record, intervention in on.items():
            with lm.applied(intervention):
                alone = lm.generate([r for r in asked if r.record == record], spec)
            assert [s for s in together if s.record == record] == alone
    if family == "llama":  # the edits are felt, each its own; a tiny Gemma says one letter whatever is done to it
        assert len({s.text for s in together if s.id.endswith("1")}) >= 5


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_routed_logits_are_those_of_each_edit_applied_alone(family: str, dtype: torch.dtype) -> None:
    lm = tiny(family, dtype=dtype)
    on = edits(lm)
    ids = torch.randint(3, 30, (12, 9), generator=torch.Generator().manual_seed(0))
    order = "abcdef" + "fadbec"
    with torch.no_grad(), untouched(lm):
        plain = lm.model(input_ids=ids).logits
        with lm.routed(on), lm.reading(order, 9):
            together = lm.model(input_ids=ids).logits
        for record, intervention in on.items():
            mine = [i for i, other in enumerate(order) if other == record]
            with lm.applied(intervention):
                alone = lm.model(input_ids=ids[mine]).logits
            # The same weights, rounded once; what is left is the order of sums in another batch shape.
            tolerance = 2e-5 if dtype == torch.float32 else 0.04
            torch.testing.assert_close(together[mine], alone, atol=tolerance * float(alone.abs().max()), rtol=0)
            assert torch.allclose(alone, plain[mine], atol=0.1) == (record == "f")


def test_a_row_alone_is_bit_for_bit_what_applied_gives() -> None:
    lm = tiny("opt", dtype=torch.bfloat16)
    on = edits(lm)
    ids = torch.randint(3, 30, (1, 9))
    with torch.no_grad():
        for record, intervention in on.items():
            with lm.applied(intervention):
                expected = lm.model(input_ids=ids).logits
            with lm.routed(on), lm.reading([record], 9):
                assert torch.equal(lm.model(input_ids=ids).logits, expected)


def test_a_row_does_not_see_its_neighbours_edits() -> None:
    lm = tiny()
    ids = torch.randint(3, 30, (3, 9))
    with torch.no_grad():
        found = []
        for seed in (5, 6):
            with lm.routed({"a": edit(lm, 1, 1), "b": edit(lm, seed, 1)}), lm.reading("aba", 9):
                found.append(lm.model(input_ids=ids).logits)
    assert torch.equal(found[0][[0, 2]], found[1][[0, 2]])
    assert not torch.allclose(found[0][1], found[1][1], atol=0.1)


def test_equal_prompts_under_different_edits_share_no_cache_and_under_one_edit_do() -> None:
    lm, sizes = tiny(), []
    asked = [Request(id=r, prompt="tell me", record=r, kind="k") for r in "adef"]
    with lm.routed(edits(lm)):
        handle = lm.model.register_forward_pre_hook(
            lambda _, __, given: sizes.append(len(given["input_ids"])), with_kwargs=True
        )
        lm.generate(asked, max_new_tokens=1, tie_tolerance=0)
        handle.remove()
    assert sizes == [3]  # a, d with e, f


def test_given_texts_are_read_under_the_edit_of_their_record() -> None:
    from detoxbench.engine.likelihood import loglikelihoods

    lm = tiny()
    on = edits(lm)
    given = [Request(id=r, prompt="tell me", record=r, kind="k", chat=True, text=" no") for r in on]
    with lm.routed(on):
        (together,) = loglikelihoods(lm, given, {r.id for r in given})
    for request, made in zip(given, together, strict=True):
        with lm.applied(on[request.record]):
            ((alone,),) = loglikelihoods(lm, [request], {request.id})
        assert made.sample.nll == pytest.approx(alone.sample.nll, rel=1e-5)
        assert made.sample.prompt == alone.sample.prompt
    assert len({round(g.sample.nll or 0, 3) for g in together}) == 5


def test_what_all_rows_share_is_applied_below() -> None:
    lm = tiny()
    below, on = edit(lm, 9, 1, suffix=" please"), edit(lm, 1, 1, suffix=" now")
    with untouched(lm):
        with lm.applied(below), lm.applied(on):
            expected = lm.generate(PROMPTS)
            assert lm.rendered("x", chat=True)[0] == "u:x please nowa:"
        with lm.applied(below), lm.routed({str(i): on for i in range(5)}):
            assert lm.rendered("x", True, "0")[0] == "u:x please nowa:"
            assert [s.text for s in lm.generate(PROMPTS)] == [s.text for s in expected]


def test_what_cannot_differ_by_row_is_told_beforehand_and_refused() -> None:
    lm = tiny()
    norm = Intervention(method="t", base=lm.fingerprint, weights=(Weight("model.norm.weight", Dense(torch.ones(32))),))
    hooked = Intervention(method="t", base=lm.fingerprint, hooks=(Hook("model.norm", "post", "destein.sphere"),))
    assert [routable(lm, i) for i in (edit(lm, 1, 1), norm, hooked)] == [True, False, False]
    for wrong in (norm, hooked):
        with untouched(lm), pytest.raises(DetoxbenchError, match="apply it alone"), lm.routed({"a": wrong}):
            pass
    with pytest.raises(DetoxbenchError, match="fit it again on this model"), lm.routed({"a": edit(tiny(seed=3), 1, 1)}):
        pass
    missing = Intervention(
        method="t", base=lm.fingerprint, weights=(Weight("model.layers.0.mlp.down_proj.x", Dense(torch.ones(1))),)
    )
    on = {"a": edit(lm, 1, 1), "b": missing}
    with untouched(lm), pytest.raises(DetoxbenchError, match=r"no parameter .*down_proj\.x"), lm.routed(on):
        pass
    norm = {"model.norm.weight": torch.ones(32)}
    with pytest.raises(DetoxbenchError, match="is no linear map"), per_row_weights(lm, [norm]):
        pass


def test_the_runner_puts_together_what_fits_and_leaves_alone_what_cannot_be_routed(tmp_path: Path) -> None:
    lm = tiny()
    hooked = Intervention(method="t", base=lm.fingerprint, hooks=(Hook("model.norm", "post", "destein.sphere"),))
    fits = [edit(lm, i, 1) for i in range(3)] + [hooked] + [edit(lm, i, 1) for i in range(5)]
    records = {str(i): FitData() for i in range(len(fits))}
    asked = {r: [Request(id=f"{r}{i}", prompt="x", record=r, kind="k") for i in range(5)] for r in records}

    def grouped(made: str = "", share: Share = ALONE, **gen: int) -> list[str]:
        """The groups that are left where the records in `made` have their samples."""
        method = SimpleNamespace(fit_many=lambda lm, records, wanted: (fits[i] for i in wanted))
        cell = SimpleNamespace(
            spec=SimpleNamespace(gen=GenSpec(max_new_tokens=10, **gen)), records=records, method=method,
            generation_folder=tmp_path,
        )  # fmt: skip
        there = {(r.id, 0) for record in made for r in asked[record]}
        return ["".join(group) for group in fitted_groups(cast(Any, cell), lm, asked, there, share)]

    assert grouped(batch_tokens=1) == list("012345678")
    assert grouped() == ["012", "3", "45678"]
    assert grouped("0123") == ["45678"]
    assert grouped("01") == ["012", "3", "45678"]  # a group that was begun comes whole, so that batches are the same
    lines = (tmp_path / "fits.jsonl").read_text().splitlines()
    assert len(lines) == 9 + 9 + 5 + 9  # what is fitted is on disk whatever becomes of it
    (tmp_path / "fits.jsonl").unlink()
    assert grouped(batch_tokens=100) == ["01", "2", "3", "45", "67", "8"]  # two records of five rows of ten tokens
    fits[3] = fits[2]
    groups = grouped(batch_tokens=100)
    assert groups == ["01", "23", "45", "67", "8"]
    for made, left in (("", groups), ("0145", ["23", "67", "8"])):
        two, one = (grouped(made, Share(rank, 2), batch_tokens=100) for rank in (0, 1))
        assert (two + one, len(two)) == (left, len(left) // 2)
    assert len(unfinished_lines(tmp_path / "fits.1.jsonl", RecordFit)) == 5 + 3
    assert {fit.record for fit in gathered(tmp_path / "fits.jsonl", RecordFit)} == set("012345678")
    assert not (tmp_path / "fits.1.jsonl").exists()
    fits[3] = hooked
    big = fits[0].artifact_bytes()
    fits[4:] = [Intervention(method="t", base=lm.fingerprint, weights=i.weights * (2**19 // big)) for i in fits[4:]]
    assert grouped(edits_mb=1) == ["012", "3", "45", "67", "8"]  # half a megabyte each


def test_rows_that_were_not_announced_are_refused() -> None:
    lm = tiny()
    ids = torch.ones(2, 4, dtype=torch.long)
    with untouched(lm), lm.routed(edits(lm)):
        with pytest.raises(DetoxbenchError, match="a batch of 2 rows where 0 were announced"):
            lm.model(input_ids=ids)
        with pytest.raises(DetoxbenchError, match="no intervention is routed to record 'z'; routed are 6"):
            lm.generate([Request(id="z", prompt="x", record="z", kind="k")])
        with pytest.raises(DetoxbenchError, match="no intervention is routed to record 'None'"):
            lm.encode("x")
        with pytest.raises(DetoxbenchError, match="routed already"), lm.routed(edits(lm)):
            pass
        with pytest.raises(DetoxbenchError, match="apply what all rows share before"), lm.applied(edit(lm, 1, 1)):
            pass
        down = lm.architecture.module(lm.architecture.mlp_down(1))
        with lm.reading("ab", 4), pytest.raises(DetoxbenchError, match="not given every row whole"):
            down(torch.ones(3, 48))


def test_an_error_inside_the_block_takes_everything_off() -> None:
    lm = tiny("gpt2")
    with untouched(lm), pytest.raises(KeyError), lm.routed(edits(lm)):
        raise KeyError("in the block")


def test_gradients_reach_each_rows_own_leaf_only() -> None:
    lm = tiny(dtype=torch.bfloat16)
    name = f"{lm.architecture.mlp_down(1)}.weight"
    leaves = [lm.model.get_parameter(name).detach().float().clone().requires_grad_() for _ in range(2)]
    ids = torch.randint(3, 30, (3, 9))
    with per_row_weights(lm, [{name: leaf} for leaf in leaves]) as set_rows:
        set_rows([1, 0, 1])
        lm.model(input_ids=ids).logits[[0, 2]].float().square().sum().backward()
    assert leaves[1].grad is not None
    assert leaves[1].grad.dtype == torch.float32
    assert leaves[1].grad.abs().max() > 0
    assert leaves[0].grad is not None
    assert not leaves[0].grad.any()
