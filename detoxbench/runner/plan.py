"""One run before anything is loaded: its components, the identity of each stage, and what is done already.

A stage's key is the digest of everything that can change its result. Stages lie in RUNS/.stages and are shared: one fit
serves every suite, one generation every scorer, and the base model's run every method's comparison.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from filelock import FileLock, Timeout

from detoxbench import methods, scorers, suites
from detoxbench.config import BASE, SCHEMA_VERSION, ModelSpec, RunSpec, build, digest, identity, normalised
from detoxbench.data.examples import FitData, Role
from detoxbench.data.fit import fit_data, fit_names, place_name, require_chosen
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.files.sealing import PARTIAL, Damaged, whole
from detoxbench.methods.base import Method, Scope
from detoxbench.model import chat, checkpoint
from detoxbench.model.model import LowRankForm, find, low_rank_form
from detoxbench.records import Request
from detoxbench.results import broken_text
from detoxbench.results.store import Run
from detoxbench.scorers.base import Scorer
from detoxbench.suites.base import Suite

log = logging.getLogger("detoxbench")


class PlannedStage(NamedTuple):
    """What a run would do for one stage."""

    stage: Literal["base", "control", "model", "fit", "generate", "score"]
    key: str
    state: Literal["cached", "to do", "missing"]
    remark: str


@dataclass(frozen=True)
class Plan:
    """What a run would do; `run_id` is None while the model's files are not there to be identified."""

    run_id: str | None
    cells: list[PlannedStage]

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        return all(cell.state == "cached" for cell in self.cells)


class Cell:
    """A run with its components and keys. Making one reads and checks everything that needs no weights.

    Raises DetoxbenchError (or UsageError): data that do not fit, a scorer that cannot work.
    """

    def __init__(self, spec: RunSpec, checkpoint_folder: Path | None) -> None:
        """Without a folder everything but the model is checked, and the keys are nobody's."""
        spec = self.spec = normalised(spec)
        self.suite: Suite[Any] = suites.get(spec.suite_name)(spec.suite, name=spec.suite_name)
        self.method: Method[Any] = methods.get(spec.method_name)(spec.method, name=spec.method_name, seed=spec.seed)
        self.requests: list[Request] = self.suite.requests()
        if checkpoint_folder:
            _check_template(spec.model, checkpoint_folder, self.requests)
        self.scorers: dict[str, Scorer[Any]] = {
            "main": scorers.get(spec.scorer_name)(spec.scorer, name=spec.scorer_name)
        }
        for slot, given in self.suite.auxiliary().items():
            cls = scorers.get(given["name"])
            config = {key: value for key, value in given.items() if key != "name"}
            self.scorers[slot] = cls(build(cls.Config, config, f"the suite's scorer '{slot}'"), name=given["name"])
        self.suite.check_scorers(self.scorers)
        self.data: FitData
        self.per_record = self.method.scope is Scope.PER_RECORD
        asked_for = self.method.needs - ({Role.EDIT_RECORDS} if self.per_record else set())  # those are the suite's
        require_chosen(spec.fit, asked_for, spec.model.path, self.method.name)
        self.data, data_digest = fit_data(spec.fit, asked_for)
        self.records: dict[str, FitData] = {}
        """Under PER_RECORD, what is fitted on for each of the suite's records, in their order."""
        if self.per_record:
            if self.suite.observer is not None:
                raise UsageError(
                    f"suite '{self.suite.name}' looks inside one model, so nothing can be fitted for each of its "
                    "records: set method.protocol=once"
                )
            records = self.suite.edit_records()
            if missing := {r.record for r in self.requests} - records.keys():
                raise DetoxbenchError(f"suite '{self.suite.name}' has no edit record for record '{min(missing)}'")
            self.data = dataclasses.replace(self.data, edit_records=tuple(records.values()))
            self.records = {k: dataclasses.replace(self.data, edit_records=(r,)) for k, r in records.items()}
            data_digest = digest([data_digest, records])
        judges = {slot: scorer.identity() for slot, scorer in self.scorers.items()}
        # without what is not set, so that a field that comes later changes no other suite's runs
        asked = digest([{k: v for k, v in msgspec.to_builtins(r).items() if v is not None} for r in self.requests])
        self.identity: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "model": {
                "fingerprint": checkpoint.fingerprint(checkpoint_folder) if checkpoint_folder else None,
                **identity(spec.model),
            },
            "method": {
                "name": self.method.name,
                "version": self.method.version,
                "config": identity(spec.method),
                "fit_data": data_digest,
                **({} if self.method.name == BASE else {"low_rank": self.low_rank}),
                **self.method.fingerprints(),
            },
            "suite": {
                "name": self.suite.name,
                "version": self.suite.version,
                "config": identity(spec.suite),
                "requests": asked,
                "scorers": {slot: judge for slot, judge in judges.items() if slot != "main"},
                "broken_text": broken_text.VERSION,
            },
            "scorer": judges["main"],
            "gen": identity(spec.gen),
            "seed": spec.seed,
        }
        fit_key = digest([self.identity[key] for key in ("schema", "model", "method", "seed")])
        made_of = [fit_key, asked, self.identity["gen"], broken_text.VERSION]
        if self.suite.observer is not None:  # answers depend on what is asked alone, looks on who looks
            made_of.append(self.identity["suite"])
        generation_key = digest(made_of)
        run_id = digest(self.identity)
        self.folder = Path(spec.runs_dir) / run_id
        self._stages = Path(spec.runs_dir) / ".stages"
        self.fit_folder = self._stages / f"fit-{fit_key}"
        self.generation_folder = self._stages / f"generate-{generation_key}"
        self.score_folder = self._stages / f"score-{run_id}"

    @property
    def low_rank(self) -> LowRankForm:
        """How the method's low-rank changes of weights take effect."""
        return low_rank_form(self.spec.low_rank, self.spec.model.dtype)

    @property
    def finished(self) -> bool:
        """Whether the run is there, every file as it was written; one that lacks scores because a scorer broke is not,
        so that it is asked again."""
        there, _ = _state(self.folder)
        return there and not Run(self.folder).record().counts.get("failed_scores")

    def data_names(self) -> dict[str, str]:
        """What the data are called that were fitted on and asked, by setting."""
        names = fit_names(self.spec.fit, self.data, self.per_record)
        found = {f"fit.{role}": name for role, name in names.items()}
        if hasattr(self.spec.suite, "data"):
            found["suite.data"] = f"{place_name(self.spec.suite.data)}, {len(self.requests)} requests"
        return found

    def plan(self) -> list[PlannedStage]:
        """The stages with their state, from the files that are there."""
        spec, count = self.spec, len(self.requests)
        judges = ", ".join(scorer.name for scorer in self.scorers.values())
        given = sum(r.text is not None for r in self.requests)
        work = [f"{given} texts to read"] if given else []
        if self.suite.observer is not None:
            work = [f"{count} looks inside the model, without and with the method"]
        elif given < count:
            work.append(f"{count - given} prompts x {spec.gen.n}, up to {spec.gen.max_new_tokens} new tokens each")
        texts = given + (count - given) * spec.gen.n
        names = self.data_names()
        asked = f" of {names.pop('suite.data')}" if "suite.data" in names else ""
        learned = "; ".join(f"{key.removeprefix('fit.')}: {name}" for key, name in names.items())
        fitted = f", a fit for each of {len(self.records)} records" if self.per_record else ""
        judged = f"{texts} texts by {judges}" if self.suite.judged else "no scorer is asked"
        finished = self.finished
        stages = [
            _planned(
                "fit",
                self.fit_folder,
                f"{self.method.examples(self.data)} examples" + (f" ({learned})" if learned else ""),
                finished,
            ),
            _planned("generate", self.generation_folder, ", ".join(work) + asked + fitted, finished),
            _planned("score", self.score_folder, judged, finished),
        ]
        return stages[1:] if self.per_record or self.method.name == BASE else stages

    @contextmanager
    def locked(self, folder: Path) -> Iterator[None]:
        """One process at a time works on a stage or a run; the lock goes with its process, however that ends."""
        self._stages.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._stages / f"{folder.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("waiting for another process that works on %s", folder)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _planned(stage: Literal["fit", "generate", "score"], folder: Path, remark: str, finished: bool) -> PlannedStage:
    done, why = (True, "") if finished else _state(folder)
    why = why or ("begun" if not done and (folder / PARTIAL).is_file() else "")
    return PlannedStage(stage, folder.name, "cached" if done else "to do", remark + (f", {why}" if why else ""))


def _state(folder: Path) -> tuple[bool, str]:
    """Whether a finished stage or run is there, and that it is damaged if it is."""
    try:
        return whole(folder), ""
    except Damaged as error:
        return False, f"damaged ({error.reason}), to be done again"


def _check_template(model: ModelSpec, folder: Path, requests: Sequence[Request]) -> None:
    """Raises DetoxbenchError where the chat template refuses a question or leaves it out, before weights are loaded."""
    templates, tokens = chat.in_folder(folder)
    template = chat.in_use(
        templates, model.chat_template, model=model.name or model.path, special_tokens=tokens,
        date=model.template_date, args=model.template_args,
    )  # fmt: skip
    if template is not None:
        for prompt in dict.fromkeys(r.prompt for r in requests if r.chat):
            template.prompt(prompt)


def plan(spec: RunSpec) -> Plan:
    """What a run would do, from files alone: reads data, loads no weights, asks no network. Raises like `Cell`."""
    folder, missing = None, []
    try:
        folder = checkpoint_folder(spec, download=False)
    except DetoxbenchError as error:
        missing = [PlannedStage("model", spec.model.path, "missing", str(error))]
    cell = Cell(spec, folder)
    if folder is None:
        return Plan(None, missing)
    stages = cell.plan()
    beside = []
    for companion in companions(spec):
        other = Cell(companion, folder)
        name: Literal["base", "control"] = "base" if companion.method_name == BASE else "control"
        remark = "the run of method=none to compare with" if name == "base" else f"a control of {spec.method_name}"
        beside.append(PlannedStage(name, other.folder.name, "cached" if other.finished else "to do", remark))
    return Plan(cell.folder.name, beside + stages)


def checkpoint_folder(spec: RunSpec, *, download: bool) -> Path:
    """Where the model's files lie. Raises DetoxbenchError when they are not there and may not or cannot be fetched."""
    model = spec.model
    if not download and model.path != "fable" and not Path(model.path).expanduser().is_dir():
        cached = checkpoint.cached_snapshot(model.path, model.revision)
        if cached is None:
            raise DetoxbenchError(f"model '{model.path}' is not in the local cache: a run would download it")
        return cached
    return find(model.path, revision=model.revision, seed=model.seed)


def companions(spec: RunSpec) -> list[RunSpec]:
    """The runs that belong beside this one: the base model's first, then the method's controls."""
    if not spec.with_base or spec.method_name == BASE:
        return []
    controls = methods.get(spec.method_name)(spec.method, name=spec.method_name, seed=spec.seed).controls()
    return [
        dataclasses.replace(spec, method=methods.get(BASE).Config(), method_name=BASE),
        *(dataclasses.replace(spec, method=control, with_base=False) for control in controls),
    ]
