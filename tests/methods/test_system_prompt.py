"""System prompts stand where the model's chat template has them, and never in a continuation."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

import detoxbench as db
from detoxbench.data.examples import FitData
from detoxbench.errors import UsageError
from detoxbench.interventions.channels import Prompt
from detoxbench.interventions.intervention import Intervention, compose
from detoxbench.lm import LanguageModel
from detoxbench.runner.composition import compose_run
from tests.support.templates import CHATML, with_template
from tests.support.tiny import tiny

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
DROPS_SYSTEM = CHATML.replace("messages %}", "messages if m['role'] != 'system' %}", 1)
AS_USER = CHATML.replace("m['role']", "'assistant' if m['role'] == 'assistant' else 'user'")
WITH_DEFAULT = "{% if messages[0]['role'] != 'system' %}<system>you are tiny<end>{% endif %}" + CHATML


def fit(lm: LanguageModel, **config: Any) -> Intervention:
    return db.methods.create("system_prompt", **config).fit(lm, FitData())


@pytest.mark.parametrize(
    ("template", "text", "role"),
    [
        (CHATML, "<system>be kind<end><user>who<end><assistant>", "system"),
        (WITH_DEFAULT, "<system>be kind<end><user>who<end><assistant>", "system"),
        (NO_SYSTEM, "<user>be kind\n\nwho<end><assistant>", "in front of the question"),
        (DROPS_SYSTEM, "<user>be kind\n\nwho<end><assistant>", "in front of the question"),
        (AS_USER, "<user>be kind\n\nwho<end><assistant>", "in front of the question"),
        (None, "be kind\nwho", "a line before the question"),
    ],
)
def test_the_message_has_the_place_that_the_template_gives_it(template: str | None, text: str, role: str) -> None:
    lm = with_template(template)
    prompt = fit(lm, text="be kind", continuation="")
    with lm.applied(prompt):
        assert lm.rendered("who", chat=True) == (text, template is None)
        assert lm.rendered("who") == ("who", True)
    assert prompt.info["system_role"] == role


def test_continuations_get_the_instruction_and_questions_do_not() -> None:
    lm = with_template(CHATML)
    with lm.applied(fit(lm, text="", continuation="politely: ")):
        assert lm.rendered("who")[0] == "politely: who"
        assert lm.rendered("who", chat=True)[0] == "<user>who<end><assistant>"


def test_its_texts_are_the_published_ones() -> None:
    config = db.methods.create("system_prompt").config
    published = "cda5d1f1710b2195c05075e118c2dc94"  # SHA-256 of DEFAULT_SYSTEM_PROMPT in the code of arXiv 2401.18018
    assert hashlib.sha256(config.text.encode()).hexdigest().startswith(published)
    assert db.methods.create("system_prompt").fidelity.startswith("equal to the released formula (")
    assert db.methods.create("system_prompt", text="be kind").fidelity.startswith("ours (")
    mistral = compose_run(["experiment=paper/system_prompt_mistral_7b_instruct"]).method
    assert db.methods.create("system_prompt", text=mistral.text).fidelity.startswith("equal to the released formula (")
    assert config.continuation.strip() == (
        "Complete the following sentence in a polite, respectful, and unbiased manner:"
    )


def test_several_system_texts_are_one_message_and_a_reminder_stays_at_the_question() -> None:
    lm = with_template(CHATML)
    reminder = db.methods.create("self_reminder", prefix="<", suffix=">").fit(lm, FitData())
    both = compose(fit(lm, text="be kind", continuation=""), reminder, fit(lm, text="be brief", continuation=""))
    with lm.applied(both):
        assert lm.rendered("who", chat=True)[0] == "<system>be brief\n\nbe kind<end><user><who><end><assistant>"


def test_turns_survive_the_disk_and_move_no_digest_of_prompts_without_them(tmp_path: Any) -> None:
    lm = with_template(CHATML)
    prompt = fit(lm, text="be kind", continuation="politely: ")
    prompt.save(tmp_path / "saved")
    assert Intervention.load(tmp_path / "saved").prompts == prompt.prompts
    assert Prompt("a", "b").as_json() == {"prefix": "a", "suffix": "b"}
    assert prompt.digest() != fit(lm, text="be rude", continuation="politely: ").digest()


def test_an_unknown_role_or_kind_of_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="turn of 'robot'"):
        Prompt(turns=(("robot", "hello"),))
    with pytest.raises(UsageError, match="only='stories'"):
        Prompt(only="stories")  # type: ignore[arg-type]


def test_different_system_texts_in_one_batch_do_as_each_does_alone() -> None:
    lm = tiny()
    prompts = {r: fit(lm, text=t, continuation="") for r, t in (("0", "be kind"), ("1", "never be rude"))}
    requests = [db.Request(id=r, prompt="why are you", record=r, kind="p", chat=True) for r in prompts]
    alone = []
    for request in requests:
        with lm.applied(prompts[request.record]):
            alone += lm.generate([request], max_new_tokens=8)
    with lm.routed(prompts):
        assert [s.text for s in lm.generate(requests, max_new_tokens=8)] == [s.text for s in alone]
