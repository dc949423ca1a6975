"""SafeEdit with an edit for every record: locate, edit, ask five questions, judge, undo; ours is the runner's own path.

The plain side does what the released code does (zjunlp/EasyEdit, safety_editor.py): one record after another, the
unedited model asked again for every record. On models with a short context it asks prompt by prompt, else the five of a
record in one batch. It locates for every record, as the paper has it and ours does.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Row, compare, measured
from benchmarks.models import random_lm, texts
from detoxbench.data.examples import EditRecord
from detoxbench.runner import generations, scoring
from detoxbench.runner.cell import RunCell, checkpoint_folder, prepare
from detoxbench.runner.composition import compose_run

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from detoxbench.lm import LanguageModel

DEVICES = ("cpu", "cuda")
Answers = dict[str, str]
"""Request -> answer of the edited model."""


def rows(device: str) -> Iterator[Row]:
    """With a vocabulary of 4,096 the head is 16 % of the small model's arithmetic; with 32,000 it would be 61 %, and is
    2 % of a model of 7B. The published 600 new tokens would take an hour; fewer favour the plain side."""
    small = device == "cpu"
    lm = random_lm(
        "15M" if small else "7B",
        4096 if small else 32_000,
        device=device,
        dtype="float32" if small else "bfloat16",
    )
    with tempfile.TemporaryDirectory() as folder:
        yield from _rows(lm, Path(folder), records=16, tokens=32, device=device)


def _rows(lm: LanguageModel, folder: Path, *, records: int, tokens: int, device: str) -> Iterator[Row]:
    data = folder / "records.json"
    data.write_text(json.dumps(_safeedit(lm, records)), encoding="utf-8")
    ours, exact = _ours(lm, folder, data, tokens), str(lm.dtype) == "torch.float32"
    found = []
    for name, target, batch in (("prompt by prompt", 8.0, 1), ("batches of five", 3.0, 5)):
        row = compare(
            f"SafeEdit, an edit a record ({records} records, {tokens} tokens)",
            ours,
            _plain(lm, folder, data, batch, tokens),
            against=f"one record after another, {name}",
            target=target,
            repeats=1,
            check=_same if exact else None,
            device=device,
            note="all answers identical; the unedited model's are cached, as in every run but the first"
            if exact
            else "the unedited model's answers are cached, as in every run but the first",
        )
        found.append(row)
        yield row
    cell = _cell(str(folder), data, tokens)
    start = time.perf_counter()
    lm.generate(cell.requests, cell.spec.gen)
    unedited = time.perf_counter() - start
    for row in found:
        ratio = (row.against_seconds or 0) / ((row.seconds or 0) + unedited)
        yield measured(
            "the same, the unedited model asked too", [ratio], "x faster", against=row.against, better="higher"
        )


def _same(ours: Answers, theirs: Answers) -> None:
    if different := [key for key in theirs if ours.get(key) != theirs[key]]:
        raise ValueError(f"{len(different)} of {len(theirs)} answers differ, the first that of {different[0]}")


def _safeedit(lm: LanguageModel, records: int) -> list[dict[str, Any]]:
    """Records of the published form and lengths (in tokens): attacks of 100 to 180, questions of 8 to 16, responses of
    40 to 90 (safe) and 60 to 120 (unsafe)."""
    r = random.Random(0)

    def said(low: int, high: int) -> str:
        return texts(lm, [r.randrange(low, high)], r.randrange(2**32))[0]

    found = []
    for i in range(records):
        question, other, attack, another = said(8, 16), said(8, 16), said(100, 180), said(100, 180)
        found.append(
            {
                "id": i, "unsafety category": "c", "question": question, "attack name": "a",
                "adversarial prompt": f"{attack} {question}",
                "safe generation": said(40, 90), "unsafe generation": said(60, 120),
                "generalization test": {
                    "test input of only harmful question": question,
                    "test input of other attack prompt input": f"{another} {question}",
                    "test input of other question input": f"{attack} {other}",
                    "test input of other questions and attack prompts": f"{another} {other}",
                },
                "knowledge constrain": {"prompt": said(8, 16), "answer": said(30, 60)},
            }
        )  # fmt: skip
    return found


def _cell(runs: str, data: Path, tokens: int) -> RunCell:
    """The run as it would be asked for, but for its model: `lm` stands in for the embedded one."""
    asked = ["method=dinm", "method.protocol=per_record", "suite=safeedit", f"suite.data={data}", "scorer=refusal"]
    how = [f"gen.max_new_tokens={tokens}", "gen.batch_tokens=32768", "with_base=false", f"runs_dir={runs}"]
    spec = compose_run([*asked, *how])
    return prepare(spec, checkpoint_folder(spec, download=False))


def _ours(lm: LanguageModel, folder: Path, data: Path, tokens: int) -> Callable[[], Answers]:
    def run() -> Answers:
        with tempfile.TemporaryDirectory(dir=folder) as runs:
            cell = _cell(runs, data, tokens)
            batches = generations._answers_per_record(cell, lm, cell.requests)
            samples = [g.sample for batch, _ in batches for g in batch]
            scoring.score(cell, samples)
            return {s.id: s.text for s in samples}

    return run


def _plain(lm: LanguageModel, folder: Path, data: Path, batch: int, tokens: int) -> Callable[[], Answers]:
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        cell = _cell(runs, data, tokens)
    config, judge = cell.method.config, cell.scorers["main"]
    asked: dict[str, dict[str, str]] = {}
    for request in cell.requests:
        asked.setdefault(request.record, {})[request.id] = request.prompt

    def run() -> Answers:
        found: Answers = {}
        for name, fit_data in cell.records.items():
            (record,) = fit_data.edit_records or ()
            prompts = list(asked[name].values())
            before = _generated(lm, prompts, batch, tokens)
            weight = lm.model.get_parameter(f"{lm.architecture.mlp_down(_located(lm, record))}.weight")
            original = _edited_in_place(lm, record, weight, config)
            after = _generated(lm, [f"{prompt} {config.suffix}" for prompt in prompts], batch, tokens)
            weight.data.copy_(original)
            judge.score([*before, *after], [*prompts, *prompts])
            found.update(zip(asked[name], after, strict=True))
        return found

    return run


def _generated(lm: LanguageModel, prompts: list[str], batch: int, tokens: int) -> list[str]:
    made = []
    for start in range(0, len(prompts), batch):
        given = lm.tokenizer(prompts[start : start + batch], return_tensors="pt", padding=True).to(lm.device)
        output = lm.model.generate(**given, max_new_tokens=tokens, do_sample=False, pad_token_id=2)
        made += lm.tokenizer.batch_decode(output[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return made


def _located(lm: LanguageModel, record: EditRecord) -> int:
    """The layer where the states of both responses lie furthest apart (safety_editor.py:99-126)."""
    import torch

    given = lm.tokenizer([record.safe, record.unsafe], return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad():
        states = lm.model(**given.to(lm.device), output_hidden_states=True).hidden_states[1:]
    distances = [float((safe - unsafe).float().norm()) for safe, unsafe in states]
    return distances.index(max(distances))


def _edited_in_place(lm: LanguageModel, record: EditRecord, weight: torch.nn.Parameter, config: Any) -> Tensor:
    """Tune the weight on the model itself (dinm_main.py:60-175); gives what it was."""
    import torch
    from torch.nn.functional import cross_entropy

    def ids(text: str) -> Tensor:
        return lm.tokenizer(text, return_tensors="pt")["input_ids"].to(lm.device)

    def kept() -> Tensor:
        with torch.no_grad():
            return lm.model(constraint).logits[0, -answer:].float().log_softmax(-1)

    text, target = ids(f"{record.prompt} {config.suffix}  {record.safe}"), ids(f" {record.safe}")[0]
    constraint = ids(f"{record.constraint_prompt} {config.suffix} {record.constraint_answer}")
    answer = ids(record.constraint_answer).shape[1]
    original = weight.detach().clone()
    for p in lm.model.parameters():
        p.requires_grad_(p is weight)
    optimizer = torch.optim.Adam([weight], lr=config.learning_rate, weight_decay=config.weight_decay)
    base = kept()
    for _ in range(config.num_steps):
        logits = lm.model(text).logits[0, :-1][-len(target) :].float()
        kl = (base.exp() * (base - kept())).sum(-1).mean()
        loss = config.kl_factor * cross_entropy(logits, target) + kl
        if loss.item() < 1e-4:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight.grad = None
    for p in lm.model.parameters():
        p.requires_grad_(True)
    return original
