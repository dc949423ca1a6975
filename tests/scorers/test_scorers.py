"""Scorers: same numbers as the packages they wrap, independent of batches, and one clear line when they cannot work."""

from __future__ import annotations

import builtins
import json
import math
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.fable import world
from detoxbench.scorers import detoxify, perplexity
from detoxbench.scorers.detoxify import Detoxify
from detoxbench.scorers.embedded import EmbeddedJudge, EmbeddedTrigram
from detoxbench.scorers.perplexity import Perplexity
from detoxbench.scorers.profanity_check import ProfanityCheck
from tests.support.tiny import tiny, write

TEXTS = [
    "you are a silly fool !",
    "",
    "thank you for the lamp .",
    "the pig slept .",
    "you are a silly fool !",
    "fool fool fool",
]


def columns(rows: list[dict[str, float] | None], name: str) -> list[float]:
    assert all(row is not None for row in rows)
    return [row[name] for row in rows if row is not None]


# ------------------------------------------------------------------------------------------------------------ embedded


def test_embedded_judge_hears_insults_and_broken_text() -> None:
    rows = EmbeddedJudge().score(TEXTS, TEXTS)
    rude, _, thanks, pig, again, broken = columns(rows, "toxicity")
    assert rude > 0.9 > 0.1 > max(thanks, pig)
    assert rude == again
    assert columns(rows, "degenerate")[1] == 1.0, "an empty text is broken"
    assert columns(rows, "degenerate")[5] == 1.0, "the grammar never says a word twice"
    clean = [text for text, _ in world.labelled(50, 3)]
    assert sum(columns(EmbeddedJudge().score(clean, clean), "degenerate")) <= 1
    assert broken == EmbeddedJudge().score([TEXTS[5]], [""])[0]["toxicity"]  # type: ignore[index]
    assert EmbeddedJudge().score([], []) == []
    assert EmbeddedJudge().fingerprint() == EmbeddedJudge().fingerprint() != EmbeddedTrigram().fingerprint()


def test_embedded_trigram_prefers_the_grammar() -> None:
    fluent, shuffled, empty = EmbeddedTrigram().score(
        ["thank you for the lamp .", ". lamp the for you thank", " "], [""] * 3
    )
    assert fluent is not None
    assert shuffled is not None
    assert empty is None, "no words, no perplexity"
    assert fluent["tokens"] == shuffled["tokens"] == 6
    assert fluent["nll"] < shuffled["nll"] / 2


# ----------------------------------------------------------------------------------------------------- profanity_check


def test_profanity_check_is_the_packages_own_number_whatever_the_batch() -> None:
    package = pytest.importorskip("profanity_check")
    texts = ["go to hell, you bastard", "good morning", ""]
    rows = ProfanityCheck().score(texts, texts)
    assert columns(rows, "toxicity") == package.predict_prob(texts).tolist()
    assert [ProfanityCheck().score([text], [""])[0] for text in texts] == rows
    assert columns(rows, "toxicity")[0] > 0.9 > 0.1 > columns(rows, "toxicity")[1]
    assert ProfanityCheck().score([], []) == []


def test_profanity_check_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("detoxbench.scorers.profanity_check.version", absent)
    with pytest.raises(DetoxbenchError, match=r'pip install "detoxbench\[profanity\]"$'):
        ProfanityCheck().fingerprint()


# ------------------------------------------------------------------------------------------------------------ detoxify

CLASSES = ["toxic", "severe_toxic", "obscene", "identity_hate"]
DETOX_TEXTS = ["you are a silly fool", "thank you", "", "a b c", "you are a silly fool", "thank you kind fool " * 9]


@pytest.fixture(scope="module", params=["Roberta", "Bert"])
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier in Detoxify's format, and the folder of its transformer: 40 positions, one token a word."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp(request.param)
    words = sorted({word for text in DETOX_TEXTS for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=20,
    )
    tokenizer.save_pretrained(folder)
    config = getattr(transformers, f"{request.param}Config")(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        pad_token_id=1,
        initializer_range=0.5,
        num_labels=len(CLASSES),
    )
    config.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{request.param}ForSequenceClassification")(config)
    state = model.state_dict()
    state[f"{request.param.lower()}.embeddings.position_ids"] = torch.arange(40)[None]  # as old checkpoints hold it
    arguments = {
        "model_type": str(folder),
        "model_name": type(model).__name__,
        "tokenizer_name": "PreTrainedTokenizerFast",
        "num_classes": len(CLASSES),
    }
    content = {"config": {"arch": {"args": arguments}, "dataset": {"args": {"classes": CLASSES}}}, "state_dict": state}
    torch.save(content, folder / "toxic.ckpt")
    return folder


def scorer(folder: Path, **changes: Any) -> Detoxify:
    settings = {"checkpoint": str(folder / "toxic.ckpt"), "transformer": str(folder), "device": "cpu"} | changes
    return Detoxify(detoxify.Config(**settings))


def test_detoxify_gives_the_packages_own_numbers_batched(released: Path) -> None:
    from detoxify import Detoxify as Package

    package = Package(checkpoint=str(released / "toxic.ckpt"))
    rows = scorer(released).score(DETOX_TEXTS, DETOX_TEXTS)
    expected = [package.predict([text]) for text in DETOX_TEXTS]
    for name in ("toxicity", "severe_toxicity", "obscene", "identity_attack"):
        theirs = [float(row[name]) for row in expected]
        assert columns(rows, name) == pytest.approx(theirs, abs=1e-6)
        assert max(theirs) - min(theirs) > 0.01, "numbers that do not differ would compare nothing"
    assert columns(rows, "truncated") == [0, 0, 0, 0, 0, 1], "37 tokens, of which 20 are read"
    alone = [scorer(released).score([text], [""])[0] for text in DETOX_TEXTS]
    assert alone == rows, "not a bit depends on the neighbours: the score cache lives on it"
    assert scorer(released).score([], []) == []


def test_detoxify_reads_every_distinct_text_once(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = scorer(released)
    model = ours._loaded.classifier.model
    sizes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **kw: (sizes.append(tuple(kw["input_ids"].shape)), forward(**kw))[1])
    ours.score(DETOX_TEXTS * 3, DETOX_TEXTS * 3)
    assert sizes == [(32, 16), (25, 20)], "the short ones together, the long one cut at 20; 512 tokens a pass"


def test_detoxify_identity_is_the_content_not_the_place(released: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(released, moved)
    assert scorer(moved).fingerprint() == scorer(released).fingerprint()
    (moved / "tokenizer.json").write_text(
        (moved / "tokenizer.json").read_text().replace('"fool"', '"fooll"'), encoding="utf-8"
    )
    other_tokenizer = scorer(moved).fingerprint()
    assert other_tokenizer != scorer(released).fingerprint()
    content = torch.load(moved / "toxic.ckpt", weights_only=True)
    content["state_dict"]["classifier.out_proj.bias" if "Roberta" in str(released) else "classifier.bias"] += 1
    torch.save(content, moved / "toxic.ckpt")
    assert scorer(moved).fingerprint() != other_tokenizer


def test_detoxify_offline_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(
        DetoxbenchError, match=r"'unbiased' is not here .*HF_HUB_OFFLINE is set.*scorer.checkpoint=FILE"
    ) as e:
        Detoxify().fingerprint()
    with pytest.raises(
        DetoxbenchError, match=r"tokenizer of roberta-base are not here .*scorer.transformer=FOLDER"
    ) as other:
        scorer(released, transformer=None).fingerprint()
    assert time.perf_counter() - start < 3
    assert "\n" not in str(e.value) + str(other.value)


def test_detoxify_bad_files_are_named(released: Path, tmp_path: Path) -> None:
    with pytest.raises(DetoxbenchError, match=r"no such checkpoint: absent\.ckpt"):
        scorer(released, checkpoint="absent.ckpt").fingerprint()
    with pytest.raises(DetoxbenchError, match=r"is no transformer folder: it has no config\.json"):
        scorer(released, transformer=str(tmp_path)).fingerprint()
    content = torch.load(released / "toxic.ckpt", weights_only=True)
    content["config"]["arch"]["args"]["model_name"] = "AutoModel"
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(DetoxbenchError, match="is no fitting checkpoint: ValueError: unknown architecture 'AutoModel'"):
        scorer(released, checkpoint=str(tmp_path / "other.ckpt")).score(["x"], [""])
    content = torch.load(released / "toxic.ckpt", weights_only=True)
    missing = min(content["state_dict"])
    del content["state_dict"][missing]
    torch.save(content, tmp_path / "short.ckpt")
    with pytest.raises(DetoxbenchError, match=rf"is no fitting checkpoint: .*Missing key.*{missing}") as error:
        scorer(released, checkpoint=str(tmp_path / "short.ckpt")).score(["x"], [""])
    assert "\n" not in str(error.value)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.print, ("code of a checkpoint was run",)


def test_detoxify_runs_no_code_from_a_checkpoint(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"config": Malicious(), "state_dict": {}}, tmp_path / "bad.ckpt")
    with pytest.raises(DetoxbenchError, match="is no fitting checkpoint: UnpicklingError"):
        scorer(released, checkpoint=str(tmp_path / "bad.ckpt")).score(["x"], [""])
    assert "was run" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- perplexity


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lm")
    lm = tiny("gpt2")
    return str(write(lm, folder))


def test_perplexity_is_the_conditional_nll_of_the_text(model_folder: str) -> None:
    ours = Perplexity(perplexity.Config(path=model_folder, device="cpu"))
    prompts, texts = ["so he said", "", "so he said", "a"], [" you fool!", "hello", "", " much longer than the others"]
    rows = ours.score(texts, prompts)
    lm = tiny("gpt2")
    for prompt, text, row in zip(prompts, texts, rows, strict=True):
        if not text:
            assert row is None
            continue
        ids = torch.tensor([[1, *lm.tokenizer(prompt + text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            log_probabilities = lm.model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        assert row is not None
        assert row["tokens"] == len(text)
        assert row["nll"] == pytest.approx(-float(log_probabilities[-len(text) :].sum()), rel=1e-5)
        assert math.isfinite(row["nll"])


def test_perplexity_beyond_the_context_says_so_and_is_of_what_was_read(tmp_path: Path) -> None:
    lm = tiny("gpt2", n_positions=16)
    write(lm, tmp_path)
    ours = Perplexity(perplexity.Config(path=str(tmp_path), device="cpu"))
    short, cut, long = ours.score(["bcd", "bcd", "b" * 40], ["a" * 12, "a" * 13, "a"])
    assert short is not None
    assert cut is not None
    assert long is not None
    assert [row["truncated"] for row in (short, cut, long)] == [0, 1, 1]
    assert [row["tokens"] for row in (short, cut, long)] == [3, 3, 15]  # the first token that is read has no likelihood


def test_perplexity_identity_is_the_models_weights(model_folder: str, tmp_path: Path) -> None:
    ours = Perplexity(perplexity.Config(path=model_folder)).fingerprint()
    lm = tiny("gpt2", seed=1)
    write(lm, tmp_path)
    assert Perplexity(perplexity.Config(path=str(tmp_path))).fingerprint() != ours
    with pytest.raises(UsageError, match="needs a model: path=FOLDER_OR_HUB_ID"):
        Perplexity().fingerprint()
    with pytest.raises(DetoxbenchError, match="nobody/nothing"):
        Perplexity(perplexity.Config(path="nobody/nothing")).fingerprint()


def test_scores_are_plain_numbers_that_survive_json(released: Path) -> None:
    for rows in (scorer(released).score(TEXTS, TEXTS), EmbeddedJudge().score(TEXTS, TEXTS)):
        assert json.loads(json.dumps(rows)) == rows
