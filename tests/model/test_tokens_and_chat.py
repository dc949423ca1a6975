"""Text that is joined is the text that the model saw: decoding, special tokens, chat templates, thinking."""

from __future__ import annotations

import datetime
import locale
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import detoxbench as db
from detoxbench.config import ModelSpec, build
from detoxbench.data.examples import Instruction, ParaphraseSet
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.fitting.activations import last_token_means
from detoxbench.fitting.paraphrases import Pools
from detoxbench.fitting.responses import IGNORED, encode
from detoxbench.fitting.training import LoraConfig, train_lora
from detoxbench.model.chat import ChatTemplate, chosen, in_folder, strftime
from detoxbench.model.tokens import Marks, answers, encoded, thinking_marks, without_thinking, written
from detoxbench.records import Request, Sample
from detoxbench.runner.composition import compose_run
from detoxbench.runner.plan import plan
from tests.support.tiny import tiny, write

WORDS = ["▁", "▁a", "▁b", "a", "b", "c", ".", "▁hello", "▁world", "<", ">", "\n", "[", "]", "/", "I", "N", "S", "T"]
LETTERS = [c for c in "dehlorwi!?:" if c not in WORDS]
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentencepiece(*, metaspace: bool = False, end: bool = False, special: tuple[str, ...] = ()) -> Any:
    """As Llama 2's tokenizer is in tokenizer.json (or in the newer form, with Metaspace): `▁` for blanks, bytes for
    what is not in the vocabulary, and a decoder that takes the first blank away. `end` appends an end token."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *WORDS, *LETTERS]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "a"), ("▁", "b")]
    for word in ("hello", "world"):
        for n in range(1, len(word)):
            vocabulary.setdefault(f"▁{word[:n]}", len(vocabulary))
        merges += [(f"▁{word[:n]}", word[n]) for n in range(len(word))]
    merges = list(dict.fromkeys(merges))
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tail = [decoders.ByteFallback(), decoders.Fuse()]
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
        made.decoder = decoders.Sequence([*tail[:1], decoders.Metaspace("▁", "first", split=False)])
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), *tail, decoders.Strip(" ", 1, 0)])
    single = "<s> $A </s>" if end else "<s> $A"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_tokens([AddedToken(token, normalized=False) for token in special])
    return fast


def bytelevel(*, prefix_space: bool = False) -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(["<|end|>", *letters])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def wordpiece() -> Any:
    pieces = ["[UNK]", "[CLS]", "[SEP]", "do", "n", "'", "t", "i", "hello", "##s", ".", ","]
    made = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


TOKENIZERS = {
    "sentencepiece": sentencepiece(),
    "metaspace": sentencepiece(metaspace=True),
    "with an end token": sentencepiece(end=True),
    "bytes": bytelevel(),
    "bytes behind a blank": bytelevel(prefix_space=True),
}


def model(tokenizer: Any, template: str | None = None, **changes: Any) -> db.LanguageModel:
    """A tiny random model with that tokenizer."""
    made = tiny(vocab_size=len(tokenizer), **changes)
    tokenizer.chat_template = template
    return db.LanguageModel(made.model, tokenizer, name="tiny")


# ------------------------------------------------------------------------------------------------------- joined text


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text("ab hello.é€\n", max_size=12), st.text("ab hello.é€\n", min_size=1, max_size=12))
def test_prompt_and_written_text_are_the_text_of_their_tokens(name: str, before: str, after: str) -> None:
    tokenizer = TOKENIZERS[name]
    prompt, whole = encoded(tokenizer, before), encoded(tokenizer, before + after)
    for new in (whole[len(prompt) :], whole[len(prompt) : -1]):
        told = tokenizer.decode([*prompt, *new], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        (text,) = written(tokenizer, [(prompt, new)])
        kept = tokenizer.decode(prompt, skip_special_tokens=True)
        assert told.endswith(text)
        assert told.startswith(kept) == (kept + text == told)
    if before.strip() and whole[: len(prompt)] == prompt:  # a blank alone is decoded as nothing
        (text,) = written(tokenizer, [(prompt, whole[len(prompt) :])])
        assert encoded(tokenizer, before + text) == whole


@pytest.mark.parametrize("metaspace", [False, True])
def test_a_text_keeps_its_first_blank(metaspace: bool) -> None:
    tokenizer = sentencepiece(metaspace=metaspace)
    prompt, whole = encoded(tokenizer, "a"), encoded(tokenizer, "a hello world")
    assert tokenizer.decode(whole[len(prompt) :]) == "hello world", "which is what is wrong with decoding it alone"
    assert written(tokenizer, [(prompt, whole[len(prompt) :])] * 2) == [" hello world"] * 2


def test_a_character_that_the_prompt_began_is_the_text_s() -> None:
    for tokenizer in (sentencepiece(), bytelevel()):
        whole = encoded(tokenizer, "a é")
        assert written(tokenizer, [(whole[:-1], whole[-1:])]) == ["é"]


def test_words_are_not_cleaned_up_across_the_seam() -> None:
    tokenizer = wordpiece()
    prompt, new = encoded(tokenizer, "hello"), encoded(tokenizer, "hello s.")[2:]
    assert (
        tokenizer.decode([*prompt, *new], skip_special_tokens=True) == "hello" + written(tokenizer, [(prompt, new)])[0]
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_generated_texts_read_again_are_the_tokens_that_were_made(name: str) -> None:
    lm = model(TOKENIZERS[name])
    for sample in lm.generate(["a b", "hello", ""], n=4, do_sample=True, max_new_tokens=6):
        prompt = lm.encode(sample.prompt)
        whole = lm.tokenizer.decode(lm.tokens(sample.prompt + sample.text), skip_special_tokens=True)
        assert whole == lm.tokenizer.decode(prompt, skip_special_tokens=True) + sample.text or "\ufffd" in sample.text


def test_perplexity_reads_what_was_generated() -> None:
    """Texts without their first blank were read as other tokens: 4.09 for 1.36 on a real model."""
    lm = model(sentencepiece())
    prompt, new = lm.encode("a hello"), lm.tokens("a hello hello world")
    ids = torch.tensor([new])
    logits = lm.model(ids).logits[0].log_softmax(-1)
    true = -sum(float(logits[i - 1, new[i]]) for i in range(len(prompt), len(new)))
    (text,) = written(lm.tokenizer, [(prompt, new[len(prompt) :])])
    ((nll, tokens),) = lm.continuation_nll(["a hello"], [text])  # type: ignore[misc]
    assert (nll, tokens) == (pytest.approx(true, rel=1e-4), len(new) - len(prompt))


# ----------------------------------------------------------------------------------------------------- special tokens


def test_nothing_that_is_to_be_continued_ends_in_an_end_token() -> None:
    plain, ended = model(sentencepiece()), model(sentencepiece(end=True))
    assert ended.tokenizer("a")["input_ids"][-1] == 2
    assert ended.encode("a hello") == plain.encode("a hello")
    assert ended.encode("") == [1]
    assert encoded(wordpiece(), "hello") == [1, 8]
    asked = [("a hello", " world"), ("", "hello world")]
    assert [ended.continuation_nll([p], [t]) for p, t in asked] == [plain.continuation_nll([p], [t]) for p, t in asked]
    request = Request(id="0", prompt="a", record="0", kind="x", text=" hello")
    from detoxbench.engine.likelihood import continuation

    assert continuation(ended, request) == continuation(plain, request)
    example = Instruction("a", "hello", False)
    assert encode(ended, example, 64) == encode(plain, example, 64)
    sets = [ParaphraseSet("x-1", ("a hello",), ("hello b",))]
    pools = [Pools(lm, sets, (1, 1, 0), max_length=64, seed=0).draw(0, 0) for lm in (plain, ended)]
    assert pools[0] == pools[1]
    assert pools[0].positives[0].count(2) == 1


def test_an_end_token_behind_texts_empties_no_answer() -> None:
    lm = model(sentencepiece(end=True))
    assert lm.generate(["a hello"]) == model(sentencepiece()).generate(["a hello"])


@pytest.mark.parametrize("prompt", ["<s>a hello", "a hello"])
def test_the_start_token_stands_once(prompt: str) -> None:
    assert model(sentencepiece()).encode(prompt).count(1) == 1


def test_a_template_s_own_start_token_stands_once() -> None:
    ids = model(sentencepiece(), LLAMA_2).encode("a", chat=True)
    assert ids[0] == 1
    assert ids.count(1) == 1


# ----------------------------------------------------------------------------------------------------- training texts


def test_training_texts_are_what_the_template_writes() -> None:
    tokenizer = sentencepiece()
    lm = model(tokenizer, LLAMA_2)
    ids, labels, cut = encode(lm, Instruction("a", "hello world", True), 64)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "hello world"}]
    told = tokenizer.apply_chat_template(turns, tokenize=False)
    assert (
        tokenizer.decode(ids, skip_special_tokens=True)
        == tokenizer.decode(tokenizer(told, add_special_tokens=False)["input_ids"], skip_special_tokens=True).rstrip()
    )
    assert [i for i in labels if i != IGNORED] == [*encoded(tokenizer, "hello world")[1:], 2], "one blank, not two"
    assert not cut


def test_no_blank_follows_a_line_break_and_the_turn_ends_as_the_template_ends_it() -> None:
    """Llama 3 and Qwen: several end tokens, of which the lowest ends documents and another one ends turns."""
    tokenizer = sentencepiece(special=("<|im_start|>", "<|im_end|>"))
    lm = model(tokenizer, CHATML)
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    lm.model.generation_config.eos_token_id = [2, turn_end]
    ids = encode(lm, Instruction("a", "hello", True), 64).ids
    assert ids[-1] == turn_end
    assert tokenizer.decode(ids).endswith("assistant\nhello<|im_end|>")
    assert (lm.end_of(), lm.end_of(chat=True)) == ([2], [turn_end])
    ids = encode(lm, Instruction("<|user|>\na\n<|assistant|>\n", "hello", False), 64).ids
    assert tokenizer.decode(ids).endswith("\nhello</s>")
    lm.tokenizer.eos_token = "<|im_end|>"
    assert lm.end_of() == [turn_end], "a text ends in the tokenizer's end token"


def test_a_template_that_opens_the_answer_opens_the_answer_that_is_trained() -> None:
    """Qwen 3 writes empty thinking before an answer without any."""
    template = CHATML.replace(
        "\n{{ m['content'] }}", "\n{% if m['role'] == 'assistant' %}<>\n{% endif %}{{ m['content'] }}"
    )
    lm = model(sentencepiece(special=("<|im_start|>", "<|im_end|>")), template)
    assert lm.tokenizer.decode(lm.answered("a", "hello", chat=True)[1]).endswith("assistant\n<>\nhello")


# ------------------------------------------------------------------------------------------------------- the positions


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_texts_beyond_the_positions_are_cut_and_counted(family: str) -> None:
    sizes = {"n_positions": 32} if family == "gpt2" else {"max_position_embeddings": 32}
    lm = tiny(family, **sizes)
    long, short = "a" * 50, "hello"
    site = [lm.architecture.attention_out(0)]
    means, cut = last_token_means(lm, [long, short], site, 4, inputs=False, description="x")
    assert (cut, bool(means.isfinite().all())) == (1, True)
    config = LoraConfig(
        rank=2, epochs=2, batch_size=2, micro_batch_size=1, max_length=64, target_modules=("all-linear",)
    )
    examples = [Instruction("hi", long, False), Instruction("hi", short, False), Instruction(long, short, False)]
    assert train_lora(lm, examples, config, seed=0, description="x").cut_texts == 2
    pools = Pools(lm, [ParaphraseSet("x-1", (long,), (short,))], (1, 1, 0), max_length=64, seed=0)
    assert (pools.cut, len(pools.draw(0, 0).positives[0])) == (1, 32)


def test_a_training_that_would_change_nothing_is_refused() -> None:
    examples = [Instruction("hi", "hello", False)] * 3
    config = LoraConfig(rank=2, epochs=1, batch_size=4, micro_batch_size=1, target_modules=("all-linear",))
    with pytest.raises(
        DetoxbenchError, match=r"is one update \(3 examples\), which the warm-up gives the rate 0.*warmup"
    ):
        train_lora(tiny(), examples, config, seed=0, description="x")
    import dataclasses

    made = train_lora(tiny(), examples, dataclasses.replace(config, warmup_ratio=0.0), seed=0, description="x")
    assert any(delta.b.abs().max() > 0 for delta in made.deltas.values())


# ---------------------------------------------------------------------------------------------------- chat templates


def template(source: str, **args: Any) -> ChatTemplate:
    return ChatTemplate(source, "m", {"bos_token": "<s>"}, "2024-07-26", args)


@pytest.mark.parametrize(
    "source",
    [
        LLAMA_2,
        CHATML,
        "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if ns.n > 5 %}{% break %}"
        "{% endif %}{{ ns.n }} {{ m | tojson(indent=2) }}{{ m.content.upper() }}\n  {% endfor %}\n{{ tools is none }}",
        "{% for m in messages %}{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}{% endfor %}",
    ],
)
def test_templates_are_rendered_as_transformers_renders_them(source: str) -> None:
    tokenizer = sentencepiece()
    tokenizer.chat_template = source
    messages = [{"role": "user", "content": 'say <"é">'}, {"role": "assistant", "content": " hello\n"}]
    for ask in (True, False):
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        ours = ChatTemplate(source, "m", tokenizer.special_tokens_map, "2024-07-26", {})
        assert ours.render(messages, ask=ask) == theirs


def test_the_date_is_stated_and_never_the_clock_s(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = "{{ strftime_now('%d %b %Y') }}|{{ date_string }}|{{ messages[0]['content'] }}"
    assert template(clock).prompt("q") == "26 Jul 2024|26 Jul 2024|q"
    assert ChatTemplate(clock, "m", {}, "2031-03-01", {}).prompt("q").startswith("01 Mar 2031|01 Mar 2031")
    lm = model(sentencepiece(), clock)
    assert lm.rendered("q", chat=True)[0] == "26 Jul 2024|26 Jul 2024|q"
    with pytest.raises(UsageError, match="template_date is a date, YYYY-MM-DD"):
        build(ModelSpec, {"template_date": "today"}, "model")


def test_dates_are_english_whatever_the_locale() -> None:
    date, now = datetime.date(2024, 7, 26), locale.setlocale(locale.LC_TIME)
    forms = "%a %A %b %B %h %d %-d %m %Y %y %H:%M:%S %p %j %%"
    plain = strftime(date, forms)
    assert plain == "Fri Friday Jul July Jul 26 26 07 2024 24 00:00:00 AM 208 %"
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C.UTF-8", "C"):
        try:
            locale.setlocale(locale.LC_TIME, name)
        except locale.Error:
            continue
        try:
            assert strftime(date, forms) == plain
        finally:
            locale.setlocale(locale.LC_TIME, now)


def test_variables_reach_the_template_and_unknown_ones_are_refused() -> None:
    source = "{{ messages[0]['content'] }}{% if enable_thinking is defined and not enable_thinking %}<off>{% endif %}"
    assert template(source).prompt("q") == "q"
    assert template(source, enable_thinking=False).prompt("q") == "q<off>"
    with pytest.raises(UsageError, match=r"no variable 'enable_thinkin' .did you mean 'enable_thinking'"):
        template(source, enable_thinkin=False)
    with pytest.raises(UsageError, match="'messages' is set by the harness"):
        template(source, messages=[])
    with pytest.raises(UsageError, match="'tiny' has none in use"):
        db.LanguageModel(tiny().model, sentencepiece(), name="tiny", template_args={"x": 1})


def test_content_is_given_as_parts_where_the_template_wants_a_list() -> None:
    parts = (
        "{% for m in messages %}USER: {% for p in m['content'] if p.type == 'text' %}{{ p.text }}{% endfor %}"
        "{% endfor %}"
    )
    assert template(parts + " ASSISTANT:").prompt("why?") == "USER: why? ASSISTANT:"
    assert template(parts).conversation("why?", "so") == "USER: why?USER: so"
    with pytest.raises(DetoxbenchError, match="the chat template of 'm' leaves the question out"):
        template("USER: ASSISTANT:").prompt("USER")
    choosy = "{% if 'question' in messages[0]['content'] %}{{ messages[0]['content'] }}{% endif %}"
    with pytest.raises(DetoxbenchError, match=r"leaves out a message or changes it: 'why\?'"):
        template(choosy).prompt("why?")


def test_a_template_that_raises_is_one_line() -> None:
    for source in ("{{ raise_exception('no\nsystem') }}", "{{ messages.x.y }}", "{% if %}"):
        with pytest.raises(
            DetoxbenchError, match=r"the chat template of 'm' .*: set model\.chat_template=none"
        ) as error:
            template(source).prompt("q")
        assert "\n" not in str(error.value)


def test_a_template_cannot_reach_the_interpreter() -> None:
    for source in (
        "{{ ''.__class__.__mro__ }}{{ messages.__class__.__init__.__globals__ }}",
        "{% set x = namespace() %}{% set x.__class__ = 1 %}",
    ):
        with pytest.raises(DetoxbenchError):
            template("{{ messages[0]['content'] }}" + source).prompt("q")


def test_a_folder_s_templates_are_those_that_transformers_reads(tmp_path: Any) -> None:
    tokenizer = sentencepiece()
    for templates in (LLAMA_2, {"default": CHATML, "tool_use": LLAMA_2}):
        tokenizer.chat_template = templates
        folder = tmp_path / str(len(templates))
        tokenizer.save_pretrained(folder)
        again = PreTrainedTokenizerFast.from_pretrained(folder)
        found, special = in_folder(folder)
        assert found == again.chat_template == templates
        assert {k: v for k, v in special.items() if v} == again.special_tokens_map
    assert chosen(found, "auto") == CHATML
    assert chosen(found, "tool_use") == LLAMA_2
    assert chosen(found, "none") is None
    assert chosen(LLAMA_2, "tool_use") is None


# ------------------------------------------------------------------------------------------------------------ thinking

THINK = Marks("<think>", "</think>")


@pytest.mark.parametrize(
    ("text", "opened", "answer"),
    [
        (" plain", False, None),
        ("<think>bad</think>\n\ngood", False, "good"),
        ("bad</think>good", True, "good"),
        ("bad</think>good", False, "good"),
        ("<think>a</think>x<think>b</think>y", False, "xy"),
        ("<think>never ends", False, ""),
        ("never ends", True, ""),
        ("yes <think>never ends", False, "yes "),
        ("", True, ""),
    ],
)
def test_answers_are_without_their_thinking(text: str, opened: bool, answer: str | None) -> None:
    assert without_thinking(text, THINK, opened=opened) == answer


@pytest.mark.parametrize(
    ("tokens", "source", "marks"),
    [
        (("<think>", "</think>"), None, ("<think>", "</think>")),
        (("[THINK]", "[/THINK]"), None, ("[THINK]", "[/THINK]")),
        (("<|START_THINKING|>", "<|END_THINKING|>"), None, ("<|START_THINKING|>", "<|END_THINKING|>")),
        (("<|begin_of_thought|>", "<|end_of_thought|>"), None, ("<|begin_of_thought|>", "<|end_of_thought|>")),
        (("<seed:think>", "</seed:think>"), None, ("<seed:think>", "</seed:think>")),
        ((), "{{ '<reasoning>\n</reasoning>' }}", ("<reasoning>", "</reasoning>")),
        (("<think>",), None, None),
        (("<tool>", "</tool>"), CHATML, None),
    ],
)
def test_the_marks_of_thinking_are_found(tokens: tuple[str, ...], source: str | None, marks: Any) -> None:
    assert thinking_marks("auto", sentencepiece(special=tokens), source) == marks
    assert thinking_marks("none", sentencepiece(special=tokens), source) is None
    assert thinking_marks("<a> <b>", sentencepiece(), None) == ("<a>", "<b>")


@pytest.mark.parametrize("special", [False, True])
def test_both_texts_are_kept_also_where_the_marks_are_special_tokens(special: bool) -> None:
    tokenizer = sentencepiece(special=() if special else ("[THINK]", "[/THINK]"))
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    marks = thinking_marks("auto", tokenizer, None)
    prompt = encoded(tokenizer, "a")
    for text, opened in (("[THINK]b[/THINK] hello</s>", ""), ("b[/THINK] hello</s>", "[THINK]")):
        before = [*prompt, *encoded(tokenizer, opened, special=False)] if opened else prompt
        new = encoded(tokenizer, text, special=False)
        (found,) = answers(tokenizer, [(before, new)], marks)
        assert found.text == "hello"
        assert found.full is not None
        assert "".join(found.full.split()) == "".join(text.removesuffix("</s>").split())


def test_samples_hold_answer_and_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = sentencepiece(special=("<think>", "</think>"))
    lm = model(tokenizer)
    new = [*encoded(tokenizer, "<think>b</think> hello", special=False), 2]
    monkeypatch.setattr("detoxbench.engine.generation._run", lambda lm, rows, *_: [row.new.extend(new) for row in rows])
    (sample,) = lm.generate(["a"])
    assert (sample.text, sample.tokens, sample.stop) == ("hello", len(new), "eos")
    assert sample.full_text is not None
    assert "<think>" in sample.full_text
    off = db.LanguageModel(lm.model, tokenizer, thinking="none")
    assert off.generate(["a"])[0].full_text is None


# ---------------------------------------------------------------------------------------------------------- whole runs


def test_a_plan_refuses_what_the_template_refuses(tmp_path: Any) -> None:
    lm = model(sentencepiece(), "{{ raise_exception('no users here') }}")
    write(lm, tmp_path)
    overrides = ["model=hf", f"model.path={tmp_path}", "suite=utility", "suite.limit=2", f"runs_dir={tmp_path}/runs"]
    with pytest.raises(
        DetoxbenchError, match=r"the chat template of '.*' refuses the conversation: no users here: set"
    ):
        plan(compose_run(overrides))
    assert plan(compose_run([*overrides, "model.chat_template=none"])).run_id
    lm.tokenizer.chat_template = "USER: ASSISTANT:"
    lm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DetoxbenchError, match="leaves the question out"):
        plan(compose_run(overrides))


def test_a_chat_prompt_is_a_turn_to_what_reads_on() -> None:
    from detoxbench.runner.scoring import _before

    def before(prompt: str, text: str, on: bool = True) -> str:
        sample = Sample(id="0", record="0", kind="x", sample=0, prompt=prompt, text=text, stop="eos", tokens=1)
        return _before(sample, {"0"}, reads_on=on)

    assert before("why?", "so") == "why?\n"
    assert before("why?", " so") == before("why?", "so", on=False) == "why?"
    assert before("why?\n", "so") == "why?\n"
