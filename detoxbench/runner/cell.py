"""One run before anything is loaded: its components, the identity of each stage, and where each stage lies.

A stage's key is the digest of everything that can change its result. Stages lie in RUNS/.stages and are shared: one fit
serves every suite, one generation every scorer, and the base model's run every method's comparison.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from detoxbench import methods, scorers, suites
from detoxbench.config import (
    BASE,
    IDENTITY_VERSION,
    EngineSpec,
    ModelSpec,
    RunSpec,
    build,
    digest,
    identity,
    normalised,
)
from detoxbench.data.examples import FitData, Role
from detoxbench.data.fit import EMBEDDED, fit_data, fit_names, place_name, require_chosen
from detoxbench.errors import DetoxbenchError, UsageError
from detoxbench.files.locking import Held, by_lease, locked
from detoxbench.files.sealing import Damaged, whole
from detoxbench.methods.base import Method, Scope
from detoxbench.model import chat, checkpoint
from detoxbench.model.model import LowRankForm, find, low_rank_form
from detoxbench.model.quantization import require_bitsandbytes
from detoxbench.records import Request
from detoxbench.results import broken_text
from detoxbench.results.store import Run
from detoxbench.scorers.base import Scorer
from detoxbench.suites.base import Suite

log = logging.getLogger("detoxbench")


class StageKeys(NamedTuple):
    """The keys that the folders of a run and its stages are named after."""

    run: str
    fit: str
    generation: str


@dataclass(frozen=True)
class RunCell:
    """A run with its components and keys; `prepare` makes it."""

    spec: RunSpec
    suite: Suite[Any]
    method: Method[Any]
    scorers: Mapping[str, Scorer[Any]]
    """By slot: "main" is the run's, the others are the suite's."""
    requests: Sequence[Request]
    data: FitData
    """What is fitted on; under PER_RECORD all of it together."""
    records: Mapping[str, FitData]
    """Under PER_RECORD, the fit data of each of the suite's records, in their order."""
    texts: Mapping[str, Sequence[str]] | None
    """Of a method that delivers texts instead of a change: by request id (`Method.texts`)."""
    identity: Mapping[str, Any]
    """Everything that can change a number, as it stands in run.json."""
    keys: StageKeys

    @property
    def folder(self) -> Path:
        """The folder of the run's results."""
        return Path(self.spec.runs_dir) / self.keys.run

    @property
    def _stages(self) -> Path:
        return Path(self.spec.runs_dir) / ".stages"

    def stage(self, kind: str, key: str) -> Path:
        """The folder of a stage, shared by all cells that have the same key for it."""
        return self._stages / f"{kind}-{key}"

    @property
    def fit_folder(self) -> Path:
        """The folder of the stage that fits."""
        return self.stage("fit", self.keys.fit)

    @property
    def generation_folder(self) -> Path:
        """The folder of the stage that generates and reads."""
        return self.stage("generate", self.keys.generation)

    @property
    def score_folder(self) -> Path:
        """The folder of the stage that scores."""
        return self.stage("score", self.keys.run)

    @property
    def per_record(self) -> bool:
        """Whether each record of the suite has a fit of its own."""
        return self.method.scope is Scope.PER_RECORD

    @property
    def low_rank(self) -> LowRankForm:
        """How the method's low-rank changes of weights take effect."""
        return _low_rank(self.spec)

    @property
    def finished(self) -> bool:
        """Whether the run is stored, every file as it was written. A run that lacks scores because a scorer failed is
        not finished, so that the scorer is asked again."""
        is_whole, _ = state_of(self.folder)
        return is_whole and not Run(self.folder).record().counts.get("failed_scores")

    def data_names(self) -> dict[str, str]:
        """The names of the data for the fit, of what the method takes from files, and of the prompts, by setting."""
        names = fit_names(self.spec.fit, self.data, self.per_record)
        by_setting = {f"fit.{role}": name for role, name in names.items()}
        by_setting |= {f"method.{key}": place_name(place) for key, place in self.method.places().items()}
        if hasattr(self.spec.suite, "data"):
            by_setting["suite.data"] = f"{self._asked_data}, {len(self.requests)} requests"
        return by_setting

    @property
    def _asked_data(self) -> str:
        """What the questions are called; those that a suite of another package holds are no embedded world."""
        place: str | None = self.spec.suite.data
        outside = not type(self.suite).__module__.startswith("detoxbench.")
        return f"{self.suite.name}'s own" if outside and place in (None, EMBEDDED) else place_name(place)

    @contextmanager
    def locked(self, folder: Path) -> Iterator[Held]:
        """One process at a time works on a stage or a run. What is given is to be called before it is sealed: it raises
        LeaseLost where another process works on it by now."""
        if self.spec.runs_lock == "lease":
            by_lease(self._stages)

        def waiting() -> None:
            log.warning("waiting for another process that works on %s", folder)

        with locked(self._stages / f"{folder.name}.lock", waiting=waiting) as held:
            yield held


def state_of(folder: Path) -> tuple[bool, str]:
    """Whether `folder` holds a finished stage or run, and a remark where it is damaged."""
    try:
        return whole(folder), ""
    except Damaged as error:
        return False, f"damaged ({error.reason}), to be done again"


# ------------------------------------------------------------------------------------------------------------ prepared


def prepare(spec: RunSpec, checkpoint_folder: Path | None) -> RunCell:
    """Read and check everything of a run that needs no weights.

    Without a folder everything but the model is checked, and the keys stand for no run. Raises DetoxbenchError (or
    UsageError) for data that do not fit and for a scorer that cannot work.
    """
    spec = _with_dtype(normalised(spec), checkpoint_folder)
    require_bitsandbytes("model.quantization", spec.model.quantization)
    suite: Suite[Any] = suites.get(spec.suite_name)(spec.suite, name=spec.suite_name)
    method = _method(spec)
    requests = suite.requests()
    _require_distinct(suite.name, requests)
    if checkpoint_folder:
        _check_template(spec.model, checkpoint_folder, requests)
    judges = _scorers(spec, suite)
    _check_engine(spec, suite)
    data, records, data_digest = _data(spec, suite, method, requests)
    model_fingerprint = checkpoint.fingerprint(checkpoint_folder) if checkpoint_folder else None
    judged_by = {slot: scorer.identity() for slot, scorer in judges.items()}
    whole_identity: dict[str, Any] = {
        "schema": IDENTITY_VERSION,
        "model": {"fingerprint": model_fingerprint, **identity(spec.model)},
        "method": _method_identity(spec, method, data_digest),
        "suite": {
            **suite.identity(),
            "requests": _requests_digest(requests),
            "scorers": {slot: judge for slot, judge in judged_by.items() if slot != "main"},
            "broken_text": broken_text.VERSION,
        },
        "scorer": judged_by["main"],
        "gen": identity(spec.gen),
        "seed": spec.seed,
        **({} if spec.engine.name == EngineSpec.name else {"engine": identity(spec.engine)}),
    }
    keys = stage_keys(whole_identity, probed=suite.probe is not None)
    texts = _texts(spec, suite, method, requests)
    return RunCell(spec, suite, method, judges, requests, data, records, texts, whole_identity, keys)


def _with_dtype(spec: RunSpec, folder: Path | None) -> RunSpec:
    """The run with the type that model.dtype=auto stands for, where the model's files are there."""
    if folder is None:
        return spec
    dtype: Any = checkpoint.resolved_dtype(spec.model.dtype, folder)
    return dataclasses.replace(spec, model=dataclasses.replace(spec.model, dtype=dtype))


def stage_keys(identity: Mapping[str, Any], *, probed: bool) -> StageKeys:
    """The keys of a run and its stages. Answers depend on the requests alone; what is `probed` depends on the whole
    suite. Another engine than transformers is part of what it generates, and of no fit."""
    fit = digest([identity[key] for key in ("schema", "model", "method", "seed")])
    suite = identity["suite"]
    made_of = [fit, suite["requests"], identity["gen"], suite["broken_text"], *([suite] if probed else [])]
    made_of += [identity["engine"]] if "engine" in identity else []
    return StageKeys(run=digest(identity), fit=fit, generation=digest(made_of))


def _require_distinct(suite: str, requests: Sequence[Request]) -> None:
    """Raises DetoxbenchError where a suite asks nothing, or two requests under one id, which keys noise and scores."""
    if not requests:
        raise DetoxbenchError(f"suite '{suite}' asks nothing: its requests() are empty")
    ids = [request.id for request in requests]
    if wrong := [id for id in ids if not isinstance(id, str)]:
        raise DetoxbenchError(f"suite '{suite}' asks a request with id {wrong[0]!r}: an id is a text")
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise DetoxbenchError(f"suite '{suite}' asks two requests with id '{twice}': give each an id of its own")


def _method(spec: RunSpec) -> Method[Any]:
    return methods.get(spec.method_name)(spec.method, name=spec.method_name, seed=spec.seed)


def _scorers(spec: RunSpec, suite: Suite[Any]) -> dict[str, Scorer[Any]]:
    """The run's scorer and the suite's, by slot. Raises UsageError where a score does not mean what the suite needs."""
    by_slot: dict[str, Scorer[Any]] = {"main": scorers.get(spec.scorer_name)(spec.scorer, name=spec.scorer_name)}
    for slot, settings in suite.auxiliary().items():
        cls = scorers.get(settings["name"])
        config = {key: value for key, value in settings.items() if key != "name"}
        by_slot[slot] = cls(build(cls.Config, config, f"the suite's scorer '{slot}'"), name=settings["name"])
    suite.check_scorers(by_slot)
    return by_slot


def _data(
    spec: RunSpec, suite: Suite[Any], method: Method[Any], requests: Sequence[Request]
) -> tuple[FitData, dict[str, FitData], str]:
    """(fit data, fit data of each record, digest of both); the second is empty where there is one fit for all."""
    per_record = method.scope is Scope.PER_RECORD
    needs = method.needs - ({Role.EDIT_RECORDS} if per_record else set())  # the suite provides those
    require_chosen(spec.fit, needs, spec.model.path, method.name)
    data, data_digest = fit_data(spec.fit, needs)
    if not per_record:
        return data, {}, data_digest
    if suite.probe is not None:
        raise UsageError(
            f"suite '{suite.name}' looks inside one model, so nothing can be fitted for each of its "
            "records: set method.protocol=once"
        )
    edits = suite.edit_records()
    if missing := {r.record for r in requests} - edits.keys():
        raise DetoxbenchError(f"suite '{suite.name}' has no edit record for record '{min(missing)}'")
    data = data.replace(edit_records=tuple(edits.values()))
    records = {key: data.replace(edit_records=(edit,)) for key, edit in edits.items()}
    return data, records, digest([data_digest, edits])


def _texts(
    spec: RunSpec, suite: Suite[Any], method: Method[Any], requests: Sequence[Request]
) -> Mapping[str, Sequence[str]] | None:
    """What a method delivers instead of a change. Raises UsageError for a suite that needs a model."""
    looks_inside = suite.probe is not None or any(request.text is not None for request in requests)
    if looks_inside and not method.reads_texts:
        raise UsageError(
            f"method '{method.name}' acts only while texts are generated, and suite '{suite.name}' reads texts that it "
            "brings itself or looks inside the model: its numbers would be those of the base; choose a suite that has "
            "prompts answered"
        )
    if not method.delivers_texts:
        return None
    if looks_inside:
        raise UsageError(
            f"method '{method.name}' has texts and no model: suite '{suite.name}' reads texts that it brings itself or "
            "looks inside the model; choose a suite that has prompts answered"
        )
    return method.texts(requests, spec.gen.n)


def _method_identity(spec: RunSpec, method: Method[Any], data_digest: str) -> dict[str, Any]:
    method_identity = method.identity()
    first = {key: method_identity[key] for key in ("name", "version", "config")}
    low_rank = _low_rank(spec)
    return {
        **first,
        "fit_data": data_digest,
        **({} if method.name == BASE else {"low_rank": low_rank}),
        **method_identity,
    }


def _low_rank(spec: RunSpec) -> LowRankForm:
    return low_rank_form(spec.low_rank, spec.model.dtype, packed=spec.model.quantization != "none")


def _check_engine(spec: RunSpec, suite: Suite[Any]) -> None:
    """Raises UsageError where the engine is not installed, or cannot do what the suite or the model's settings ask."""
    if spec.engine.name == EngineSpec.name:
        return
    from detoxbench.vllm_engine.carried import require_installed

    require_installed()
    if suite.probe is not None:
        raise UsageError(
            f"suite '{suite.name}' looks inside the model, which engine={spec.engine.name} does not show: choose "
            f"engine={EngineSpec.name}"
        )
    if spec.model.device not in ("auto", "cuda", "cpu"):
        raise UsageError(
            f"engine={spec.engine.name} runs on the first device that it sees, and not on "
            f"model.device={spec.model.device}: set CUDA_VISIBLE_DEVICES, and leave model.device out"
        )
    if spec.model.quantization != "none":
        raise UsageError(
            f"engine={spec.engine.name} holds weights in model.dtype, and model.quantization="
            f"{spec.model.quantization} was asked for: leave it out, or choose engine={EngineSpec.name}"
        )


def _requests_digest(requests: Sequence[Request]) -> str:
    # without fields that are not set, so that a new field changes the run ids of no other suite
    return digest([{k: v for k, v in msgspec.to_builtins(r).items() if v not in (None, {})} for r in requests])


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


def checkpoint_folder(spec: RunSpec, *, download: bool) -> Path:
    """The folder of the model's files. Raises DetoxbenchError where they are missing and cannot or may not be
    fetched."""
    return find(spec.model.path, revision=spec.model.revision, seed=spec.model.seed, download=download)


def comparison_runs(spec: RunSpec) -> list[RunSpec]:
    """The runs that belong beside this one: the base model's first, then the method's controls."""
    if not spec.with_base or spec.method_name == BASE:
        return []
    controls = _method(spec).controls()
    return [
        dataclasses.replace(spec, method=methods.get(BASE).Config(), method_name=BASE),
        *(dataclasses.replace(spec, method=control, with_base=False) for control in controls),
    ]
