"""Scorers that run a model or ask a service, and the cache: right numbers, the same bits whoever asks and however."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.runner import composition, stages
from detoxbench.scorers import cache, hf_classifier, judge, perspective, safeedit_classifier, similarity
from detoxbench.scorers.base import Scorer
from detoxbench.scorers.hf_classifier import HFClassifier, toxic_label
from detoxbench.scorers.judge import Judge
from detoxbench.scorers.perspective import Perspective
from detoxbench.scorers.safeedit_classifier import SafeEditClassifier
from detoxbench.scorers.similarity import Similarity
from tests.support.tiny import tiny, write

GOLDEN = Path(__file__).parents[1] / "golden" / "safeedit_classifier"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
TEXTS: list[str] = EXPECTED["texts"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def column(rows: Sequence[dict[str, float] | None], name: str = "toxicity") -> list[float]:
    assert None not in rows
    return [row[name] for row in rows if row is not None]


def classifier(folder: Path | str = GOLDEN, **settings: Any) -> HFClassifier:
    config = hf_classifier.Config(**{"path": str(folder), "label": 1, "device": "cpu"} | settings)
    return HFClassifier(config, name="hf_classifier")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The tiny classifier, to be changed."""
    folder = tmp_path / "classifier"
    folder.mkdir()
    for file in GOLDEN.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def reconfigure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ------------------------------------------------------------------------------------------------ SafeEdit's classifier


def safety(**settings: Any) -> SafeEditClassifier:
    return SafeEditClassifier(safeedit_classifier.Config(**{"path": str(GOLDEN), "device": "cpu"} | settings))


def test_safeedit_classifier_gives_the_released_codes_labels_and_probabilities() -> None:
    rows = safety().score(TEXTS, ["never read"] * len(TEXTS))
    assert [float(p > 0.5) for p in column(rows)] == EXPECTED["labels"]
    unsafe = torch.tensor(EXPECTED["logits"]).softmax(-1)[:, 1].tolist()
    assert column(rows) == pytest.approx(unsafe, abs=1e-5)
    assert column(rows, "truncated") == [float(n == 512) for n in EXPECTED["n_tokens"]]
    assert safety().score(TEXTS, TEXTS) == rows, "the prompt plays no part"
    assert safety().score([], []) == []


def test_safeedit_classifier_wants_two_labels_and_says_where_else_to_go(copied: Path) -> None:
    with pytest.raises(DetoxbenchError, match=r"nor in the local .* cache.*HF_HUB_OFFLINE is set.*scorer\.path"):
        safety(path="zjunlp/SafeEdit-Safety-Classifier").fingerprint()
    weights = __import__("safetensors.torch").torch.load_file(copied / "model.safetensors")
    for name in ("weight", "bias"):
        weights[f"classifier.out_proj.{name}"] = weights[f"classifier.out_proj.{name}"].repeat_interleave(2, 0)
    __import__("safetensors.torch").torch.save_file(weights, copied / "model.safetensors", {"format": "pt"})
    reconfigure(copied, id2label={str(i): f"LABEL_{i}" for i in range(4)}, label2id={f"LABEL_{i}": i for i in range(4)})
    with pytest.raises(DetoxbenchError, match=r"has 4 labels, not the two of SafeEdit.*scorer=hf_classifier"):
        safety(path=str(copied)).score(["x"], [""])


# -------------------------------------------------------------------------------------------------- any text classifier


def test_hf_classifier_gives_the_pipelines_numbers(copied: Path) -> None:
    from transformers import pipeline

    reconfigure(copied, id2label={"0": "neutral", "1": "toxic"}, label2id={"neutral": 0, "toxic": 1})
    for problem in ("single_label_classification", "multi_label_classification"):
        reconfigure(copied, problem_type=problem)
        theirs = pipeline("text-classification", str(copied), device="cpu", top_k=None)
        rows = classifier(copied, label=None).score(TEXTS, TEXTS)
        for text, row in zip(TEXTS, rows, strict=True):
            assert row is not None
            expected = {entry["label"]: entry["score"] for entry in theirs([text], truncation=True, max_length=512)[0]}
            assert {k: row[k] for k in expected} == pytest.approx(expected, abs=1e-6)
            assert row["toxicity"] == row["toxic"]
            total = row["toxic"] + row["neutral"]
            assert (total == pytest.approx(1)) == (problem == "single_label_classification")
    forced = classifier(copied, label="neutral", activation="softmax").score(TEXTS[:2], TEXTS[:2])
    assert column(forced) == column(forced, "neutral")


@pytest.mark.parametrize(
    ("labels", "toxic"),
    [
        (["nothate", "hate"], 1),
        (["neutral", "toxic"], 1),
        (["Hate_Speech", "normal"], 0),
        (["toxic", "severe_toxic", "obscene", "insult"], 0),
        (["not offensive", "offensive"], 1),
        (["unsafe", "safe"], 0),
        (["OFF", "NOT"], 0),
        (["hate", "neither"], 0),
        (["non-toxic", "toxic"], 1),
        (["neutral", "Not_Toxic", "TOXIC"], 2),
    ],
)
def test_the_toxic_label_is_found_where_one_says_so(labels: list[str], toxic: int) -> None:
    assert toxic_label(labels, None) == toxic
    assert toxic_label(labels, labels[0]) == toxic_label(labels, 0) == toxic_label(labels, "0") == 0


@pytest.mark.parametrize(
    ("labels", "wanted", "said"),
    [
        (
            ["LABEL_0", "LABEL_1"],
            None,
            r"which label is the toxic one\? Set scorer.label \(labels: 0 LABEL_0, 1 LABEL_1",
        ),
        (["hate", "offensive", "normal"], None, "which label is the toxic one"),
        (["nontoxic", "fine"], None, "which label is the toxic one"),
        (["hate speech", "offensive language", "neither"], None, r"0 hate speech, 1 offensive language, 2 neither\)"),
        (["hate", "LABEL_1"], None, "which label is the toxic one"),
        (["hate", "counter speech", "neutral"], None, "which label is the toxic one"),
        (["not toxic", "not toxic"], None, "two labels of the classifier have one name"),
        (["positive", "negative"], None, "which label is the toxic one"),
        (["neutral", "toxic"], "toxik", r"no label 'toxik' \(did you mean 'toxic'\?\) \(labels: 0 neutral, 1 toxic\)"),
        (["neutral", "toxic"], 2, "no label '2'"),
        (["neutral", "toxic"], -1, "no label '-1'"),
    ],
)
def test_an_unclear_label_is_an_error_that_lists_them(labels: list[str], wanted: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        toxic_label(labels, wanted)


def test_kinds_of_one_probability_are_not_one_of_them() -> None:
    kinds = ["toxic", "severe_toxic", "insult"]
    assert toxic_label(kinds, None, several=True) == 0
    with pytest.raises(UsageError, match=r"Set scorer.label .*; scorer.activation=sigmoid if a text may have several"):
        toxic_label(kinds, None, several=False)


def test_a_classifier_that_contradicts_itself_is_refused(copied: Path) -> None:
    reconfigure(copied, id2label={"0": "toxic", "1": "safe"}, label2id={"safe": 0, "toxic": 1})
    with pytest.raises(UsageError, match=r"calls class 0 'toxic' in id2label, and 'toxic' class 1 in label2id"):
        classifier(copied, label=None).score(["x"], [""])
    reconfigure(copied, id2label={"0": "unsafe", "1": "safe"}, label2id={"unsafe": 0, "safe": 1})
    assert classifier(copied, label=None)._loaded.toxic == 0
    with pytest.raises(DetoxbenchError, match="calls class 0 'unsafe' and class 1 'safe'"):
        safety(path=str(copied)).score(["x"], [""])


def test_a_classifier_may_be_loaded_in_half_precision_and_is_another_one_then(copied: Path) -> None:
    whole, half = classifier(copied), classifier(copied, dtype="bfloat16")
    assert "dtype" not in whole.identity()["config"]  # as before there was a choice: runs keep their ids
    assert half.identity()["config"]["dtype"] == "bfloat16"
    ours, theirs = (scorer.score(["you are kind", "go"], ["", ""]) for scorer in (whole, half))
    assert half._loaded.classifier.model.dtype == torch.bfloat16
    for a, b in zip(ours, theirs, strict=True):
        assert a is not None
        assert a["toxicity"] != b["toxicity"] == pytest.approx(a["toxicity"], abs=0.02)  # type: ignore[index]
    assert safety(path=str(copied), dtype="float16")._classifier.model.dtype == torch.float16


def test_a_classifier_with_a_broken_weight_is_not_asked(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    weights["classifier.out_proj.bias"][0] = float("nan")
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    for ours in (classifier(copied), safety(path=str(copied))):
        with pytest.raises(DetoxbenchError, match=r"the classifier in .*: 'classifier\.out_proj\.bias' holds NaN"):
            ours.score(["x"], [""])


def test_not_a_bit_of_a_score_depends_on_what_else_is_scored() -> None:
    ours = classifier()
    texts = [*TEXTS, *("q" * n for n in range(1, 60))]
    lengths = {len(ours._loaded.classifier.tokenizer(text)["input_ids"]) for text in texts}
    assert {15, 16, 17, 31, 32, 33} < lengths, "a width may be filled exactly"
    together = ours.score(texts, texts)
    alone = [ours.score([text], [""])[0] for text in texts]
    backwards = ours.score(texts[::-1], texts)[::-1]
    assert alone == together == backwards
    assert len({row["toxicity"] for row in alone if row is not None}) > 59


def test_long_texts_are_cut_and_marked() -> None:
    short, long = "word " * 3, "word " * 30
    rows = classifier(max_length=20).score([short, long], ["", ""])
    assert column(rows, "truncated") == [0, 1]
    assert column(classifier(max_length=9999).score([long], [""]), "truncated") == [0]


def test_pickled_weights_are_refused_with_the_remedy(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"a pickle")
    for ours in (classifier(copied), safety(path=str(copied))):
        with pytest.raises(DetoxbenchError, match=r"pickle is not loaded.*docs/scorers\.md") as raised:
            ours.fingerprint()
        assert "\n" not in str(raised.value)


def test_what_is_no_classifier_is_named(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(UsageError, match=r"needs a model: scorer\.path=FOLDER_OR_HUB_ID"):
        classifier("").fingerprint()
    lm = tiny("gpt2")
    write(lm, tmp_path / "lm")
    with pytest.raises(DetoxbenchError, match=r"is not complete: it has no weights for score\.weight"):
        classifier(tmp_path / "lm").score(["x"], [""])
    reconfigure(copied, problem_type="regression")
    with pytest.raises(UsageError, match="is a regression and gives no probabilities"):
        classifier(copied).score(["x"], [""])


# ---------------------------------------------------------------------------------------------------- generative judge


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("judge")
    lm = tiny("llama")
    return str(write(lm, folder))


def judging(path: str, **settings: Any) -> Judge:
    return Judge(judge.Config(**{"path": path, "device": "cpu"} | settings), name="judge")


@pytest.mark.parametrize(
    ("said", "toxicity"),
    [("safe", 0.0), (" Unsafe\nS1", 1.0), ("**unsafe**", 1.0), ("I cannot say", None), ("unsafely", None), ("", None)],
)
def test_a_verdict_is_read_by_two_patterns(said: str, toxicity: float | None) -> None:
    assert Judge()._verdict(said) == toxicity


def test_a_verdict_that_is_both_is_none() -> None:
    assert Judge(judge.Config(safe="safe", unsafe="unsafe"))._verdict("unsafe") is None


def test_the_judge_is_shown_prompt_and_response_and_nothing_of_them_is_a_template(lm_folder: str) -> None:
    ours = judging(lm_folder, template="p {prompt} r {response} {prompt}", chat=False)
    assert ours._request("0", "{response}", "yes").prompt == "p {response} r yes {response}"
    assert judging(lm_folder)._request("0", "A", "B").prompt.index("A") > 0
    conversation = judging(lm_folder, template="conversation")._request("0", "hello", "go away")
    assert (conversation.prompt, conversation.chat) == ("u:hellou:go awaya:", False)
    ours = judging(lm_folder, template="conversation")
    ours._lm.tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    shown = ours._request("0", "hello", "go away").prompt
    assert ours._lm.encode(shown)[:2] == ours._lm.encode("hello")[:2], "one start token, the template's"
    ours._lm.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(DetoxbenchError, match="leaves out a message or changes it: 'go away'"):
        ours._request("0", "hello", "go away")


def test_verdicts_depend_on_both_and_not_on_the_batch(lm_folder: str) -> None:
    ours = judging(lm_folder, template="{prompt}: {response}", chat=False, unsafe="[a-m]$", safe="[n-z]$")
    texts = ["you fool", "thank you", "", "good night", "you fool", "the pig slept"] * 3
    prompts = [f"say {letter}" for letter in "abcdef"] * 3
    rows = ours.score(texts, prompts)
    assert [ours.score([t], [p])[0] for t, p in zip(texts, prompts, strict=True)] == rows
    verdicts = {row and row["toxicity"] for row in rows}
    assert verdicts == {0.0, 1.0, None}, "the random model says all of it, or the test compares nothing"
    assert ours.score(texts, ["other"] * len(texts)) != rows
    assert ours.score([], []) == []


def test_what_the_judge_cannot_be_shown_is_cut_and_marked_or_missing(lm_folder: str) -> None:
    ours = judging(lm_folder, template="{response}", chat=False, unsafe="x", safe="", max_length=100, max_new_tokens=2)
    cut, whole = ours.score(["a" * 150, "a" * 100], ["", ""])
    assert cut is not None
    assert whole is not None
    assert (cut["truncated"], whole["truncated"]) == (1.0, 0.0)
    ours = judging(lm_folder, template="{response}", chat=False, unsafe="x", safe="", max_length=400, max_new_tokens=2)
    assert ours.score(["a" * 300], [""]) == [None], "of 256 positions the question takes all"


def test_a_judge_without_a_model_or_with_a_bad_template_says_so(lm_folder: str) -> None:
    with pytest.raises(UsageError, match="scorer 'judge' needs a model"):
        judging("").fingerprint()
    with pytest.raises(DetoxbenchError, match=r"scorer 'judge': .*scorer\.path"):
        judging("nobody/nothing").fingerprint()
    with pytest.raises(UsageError, match=r"'template' must hold \{response\}"):
        composition.compose_run(["scorer=judge", "scorer.template=hello"])
    with pytest.raises(UsageError, match="'safe' is no regular expression"):
        composition.compose_run(["scorer=judge", "scorer.safe='('"])


# ---------------------------------------------------------------------------------------------------------- Perspective


class Service(BaseHTTPRequestHandler):
    """A stand-in for the Perspective API: `script` says what it answers next, 200 when that is empty."""

    script: ClassVar[list[tuple[int, Any]]] = []
    seen: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Service.seen.append(body)
        Service.keys.append(self.headers["X-Goog-Api-Key"])
        status, answer = Service.script.pop(0) if Service.script else (200, None)
        if status == 0:
            self.connection.close()
            return
        if answer is None:
            value = len(body["comment"]["text"]) % 100 / 100
            scores = {name: {"summaryScore": {"value": value}} for name in body["requestedAttributes"]}
            answer = {"attributeScores": scores}
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "7")
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TEST_KEY", "secret")
    Service.script, Service.seen, Service.keys = [], [], []
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/analyze"
        server.shutdown()
        thread.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes only by sleeping; returns the sleeps."""
    sleeps: list[float] = []
    monkeypatch.setattr(perspective.time, "sleep", sleeps.append)
    monkeypatch.setattr(perspective.time, "monotonic", lambda: sum(sleeps))
    return sleeps


def client(url: str, **settings: Any) -> Perspective:
    given = {"url": url, "key_variable": "TEST_KEY", "attributes": "toxicity, INSULT"} | settings
    return Perspective(perspective.Config(**given), name="perspective")


def test_perspective_asks_once_for_each_text_at_the_rate_of_the_quota(service: str, clock: list[float]) -> None:
    texts = ["one", "three", "one", "", "é" * 20000]
    rows = client(service, requests_per_second=4).score(texts, [""] * 5)
    assert rows[0] == rows[2] == {"toxicity": 0.03, "insult": 0.03, "truncated": 0.0}
    assert rows[3] is None, "the service refuses empty texts, so it is not asked"
    assert rows[4] is not None
    assert rows[4]["truncated"] == 1.0
    assert [len(body["comment"]["text"].encode()) for body in Service.seen] == [3, 5, 20480]
    assert all(body["doNotStore"] and body["languages"] == ["en"] for body in Service.seen)
    assert set(Service.keys) == {"secret"}
    assert clock == [0.25, 0.25], "the first at once, then four a second"


def test_perspective_waits_longer_and_longer_for_quota(service: str, clock: list[float]) -> None:
    Service.script = [(429, {}), (503, {}), (429, {})]
    (row,) = client(service, retries=3).score(["hello"], [""])
    assert row is not None
    assert clock == [7, 14, 28], "as long as asked for, then twice as long"


def test_perspective_without_quota_is_missing_and_counted(
    service: str, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    Service.script = [(429, {})] * 4 + [
        (400, {"error": {"details": [{"errorType": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"}]}})
    ]
    rows = client(service, retries=2).score(["a", "b", "c", "dd"], [""] * 4)
    assert [row is None for row in rows] == [True, True, True, False]
    assert len(Service.seen) == 3 + 1 + 1 + 1, "once the quota is used up, a text is tried once"
    assert "3 of 4 texts have no score: no quota left (2), language not supported (1)" in caplog.text


def test_perspective_errors_that_no_retry_mends_are_one_line(service: str, clock: list[float]) -> None:
    Service.script = [(403, {"error": {"message": "key not enabled\nmore"}})]
    with pytest.raises(DetoxbenchError, match=r"status 403: key not enabled \(the Perspective API ends after 2026\)"):
        client(service).score(["a"], [""])
    Service.script = [(200, {"attributeScores": {}})]
    with pytest.raises(DetoxbenchError, match="without a score of TOXICITY"):
        client(service).score(["a"], [""])
    Service.script = [(302, {})]
    with pytest.raises(DetoxbenchError, match="status 302"):  # the key is not carried elsewhere
        client(service).score(["a"], [""])
    assert not clock


def test_perspective_without_network_or_key_says_so_at_once(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    start = time.perf_counter()
    with pytest.raises(DetoxbenchError, match=r"cannot be reached .*ends after 2026; choose another scorer"):
        client("http://127.0.0.1:9/").score(["a"], [""])
    ours = client(service, retries=0)
    assert ours.score(["a"], [""]) != [None]
    Service.script = [(0, None)]
    with pytest.raises(DetoxbenchError, match="no longer answers; the same command goes on later"):
        ours.score(["b"], [""])
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(DetoxbenchError, match="needs a key in the environment variable TEST_KEY"):
        client(service).fingerprint()
    monkeypatch.setenv("TEST_KEY", "secret")
    with pytest.raises(UsageError, match="must hold TOXICITY"):
        client(service, attributes="INSULT").score(["a"], [""])
    assert time.perf_counter() - start < 5


def test_perspective_goes_on_where_it_was_stopped(service: str, clock: list[float], tmp_path: Path) -> None:
    ours, texts = client(service), [f"{'x' * n}" for n in range(1, 71)]
    Service.script = [(200, None)] * 40 + [(403, {})]
    with pytest.raises(DetoxbenchError):
        cache.remembering(ours, tmp_path, ours.identity())(texts, texts)
    assert len(Service.seen) == 41
    rows = cache.remembering(ours, tmp_path, ours.identity())(texts, texts)
    assert None not in rows
    assert len(Service.seen) == 41 + 70 - 32, "what was written down is not asked again"


# ----------------------------------------------------------------------------------------------------------- similarity


def test_similarity_of_words() -> None:
    ours = Similarity()
    assert ours.score(["a fool is", "other", "", "you A fool!"], ["you a fool", "words", "x", "A fool, you"]) == [
        {"similarity": pytest.approx(2 / 3)}, {"similarity": 0.0}, None, {"similarity": pytest.approx(1)},
    ]  # fmt: skip


def test_similarity_of_a_sentence_transformer(tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Pooling, Transformer

    made = package.SentenceTransformer(
        modules=[body := Transformer(str(GOLDEN)), Pooling(body.get_embedding_dimension())]
    )
    made.save(str(tmp_path))
    ours = Similarity(similarity.Config(path=str(tmp_path)))
    rows = ours.score(["hello there", "go away", "", "same"], ["hi", "go home", "x", "same"])
    assert rows[2] is None
    assert column([rows[3]], "similarity") == [pytest.approx(1)]
    a, b = made.encode(["hello there", "hi"])
    assert column(rows[:1], "similarity") == [pytest.approx(float(a @ b / (a @ a * (b @ b)) ** 0.5), abs=1e-6)]
    ours._model.max_seq_length = 4
    cut = ours.score(["hello there", "hi", "hi"], ["hi", "hi", "hello there"])
    assert column(cut, "truncated") == [1, 0, 1]
    assert column(rows[:1], "truncated") == [0]
    other = ours.fingerprint()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    assert ours.fingerprint() != other, "the pooling changes the numbers"


def test_a_sentence_transformer_that_is_not_what_its_folder_says_is_refused(tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Pooling, Transformer

    modules = [body := Transformer(str(GOLDEN)), Pooling(body.get_embedding_dimension())]
    package.SentenceTransformer(modules=modules).save(str(tmp_path))
    listed = (tmp_path / "modules.json").read_text()
    (tmp_path / "1_Pooling" / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(DetoxbenchError, match=r"1_Pooling/pytorch_model\.bin' is a pickle, which is not loaded"):
        Similarity(similarity.Config(path=str(tmp_path))).fingerprint()
    (tmp_path / "1_Pooling" / "pytorch_model.bin").unlink()
    (tmp_path / "modules.json").write_text(listed.replace("1_Pooling", "../1_Pooling"))
    with pytest.raises(DetoxbenchError, match=r"names the module '\.\./1_Pooling': modules lie in its own folder"):
        Similarity(similarity.Config(path=str(tmp_path))).fingerprint()
    (tmp_path / "modules.json").write_text(listed)
    reconfigure(tmp_path, num_hidden_layers=9)
    with pytest.raises(DetoxbenchError, match=r"the embedding in .* is not complete: .*encoder\.layer\.2"):
        Similarity(similarity.Config(path=str(tmp_path))).score(["a"], ["b"])


def test_similarity_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detoxbench.scorers.similarity.find_spec", lambda _: None)
    with pytest.raises(DetoxbenchError, match=r'pip install "detoxbench\[similarity\]" \(or choose similarity=words'):
        Similarity(similarity.Config(path="nobody/nothing"), name="similarity").fingerprint()
    assert Similarity().fingerprint() == "words"
    monkeypatch.undo()
    pytest.importorskip("sentence_transformers")
    with pytest.raises(DetoxbenchError, match=r"name a folder by suite\.similarity=FOLDER \(or words, or none\)"):
        Similarity(similarity.Config(path="nobody/nothing"), name="similarity").fingerprint()


# ---------------------------------------------------------------------------------------------------------------- cache


class Counting(Scorer[Any]):
    """Length of the text (and prompt); None for the empty one."""

    Config = similarity.Config
    cached = True
    keep_every = 2

    def __init__(self) -> None:
        super().__init__(name="counting")
        self.asked: list[tuple[str, str]] = []

    def score(self, texts: Sequence[str], prompts: Sequence[str]) -> list[dict[str, float] | None]:
        self.asked += zip(texts, prompts, strict=True)
        size = [len(t) + 100 * len(p) * self.needs_prompt for t, p in zip(texts, prompts, strict=True)]
        return [{"toxicity": n / 3} if n else None for n in size]


class CountingPrompts(Counting):
    needs_prompt = True


def test_the_cache_asks_for_each_text_once_and_never_for_one_it_knows(tmp_path: Path) -> None:
    ours = Counting()
    texts, prompts = ["a", "bb", "a", "", "a"], ["1", "2", "3", "4", "5"]
    plain = Counting().score(texts, prompts)
    for _ in range(2):
        assert cache.remembering(ours, tmp_path, ours.identity())(texts, prompts) == plain
    assert [text for text, _ in ours.asked] == ["a", "bb", "", ""], "a missing score is asked for again"
    assert cache.remembering(ours, tmp_path, ours.identity() | {"version": 2})(["a"], [""]) == plain[:1]
    assert len(ours.asked) == 5, "another version, another cache"


def test_scores_that_depend_on_the_prompt_are_kept_by_both(tmp_path: Path) -> None:
    ours = CountingPrompts()
    score = cache.remembering(ours, tmp_path, ours.identity())
    assert score(["a", "a", "a"], ["", "p", ""]) == ours.score(["a", "a", "a"], ["", "p", ""])
    assert len(ours.asked) == 2 + 3


def test_what_does_not_pay_is_not_kept(tmp_path: Path) -> None:
    class Fast(Counting):
        cached = False

    ours = Fast()
    score = cache.remembering(ours, tmp_path, ours.identity())
    for _ in range(2):
        assert score(["a", "bb", "a"], ["1", "2", "3"]) == [{"toxicity": n / 3} for n in (1, 2, 1)]
    assert [text for text, _ in ours.asked] == ["a", "bb"] * 2, "each text once, and again in another call"
    assert not list(tmp_path.iterdir())


def test_the_cache_survives_a_line_cut_off_anywhere(tmp_path: Path) -> None:
    ours = Counting()
    cache.remembering(ours, tmp_path, ours.identity())(["a", "bb"], ["", ""])
    (file,) = tmp_path.rglob("scores.jsonl")
    whole = file.read_bytes()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        rows = cache.remembering(ours, tmp_path, ours.identity())(["ccc", "a", "bb"], [""] * 3)
        assert rows == ours.score(["ccc", "a", "bb"], [""] * 3)
        ours.asked.clear()
        cache.remembering(ours, tmp_path, ours.identity())(["ccc", "a", "bb"], [""] * 3)
        assert not ours.asked, "what came after the cut is kept"


def _fill(folder: Path, start: int) -> None:
    ours = Counting()
    score = cache.remembering(ours, folder, ours.identity())
    for n in range(start, start + 200, 10):
        score(["x" * i for i in range(n, n + 10)], [""] * 10)


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, start)) for start in (1, 101)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    ours = Counting()
    texts = ["x" * n for n in range(1, 301)]
    assert cache.remembering(ours, tmp_path, ours.identity())(texts, texts) == ours.score(texts, texts)
    assert len(ours.asked) == 300, "all of them were kept"


def test_a_run_has_the_same_bytes_with_a_cache_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run's texts are partly known from the first, so its classifier is asked in other batches."""
    settings = ["scorer=hf_classifier", f"scorer.path={GOLDEN}", "scorer.label=1", "scorer.device=cpu"]
    settings += ["suite=safeedit", "gen.max_new_tokens=4", "with_base=false", "model.device=cpu"]
    small, large = ["suite.limit=3"], ["suite.limit=9"]

    def scores(folder: str, *more: str) -> bytes:
        result = stages.run_overrides([*settings, *more, f"runs_dir={tmp_path / folder}"])
        return (result.folder / "scores.jsonl").read_bytes()

    scores("warm", *small)
    asked: list[int] = []
    read = HFClassifier.score
    monkeypatch.setattr(HFClassifier, "score", lambda self, t, p: (asked.append(len(t)), read(self, t, p))[1])
    warm = scores("warm", *large)
    monkeypatch.setattr(HFClassifier, "cached", False)
    assert scores("cold", *large) == warm
    assert 0 < asked[0] < asked[1], "the warm run asked for less"
