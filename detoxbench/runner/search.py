"""Search for the setting that is best in one metric while others stay within bounds, by Optuna.

Hydra's own Optuna plugin needs Optuna 2 (hydra-optuna-sweeper 1.3.0), so this asks Optuna itself. Every trial is a run
like any other, under its run id: a finished one is not run again, and since the search is seeded, the same command
resumes where a killed one stopped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean
from detoxbench.runner.composition import compose_run, swept

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from detoxbench.results.store import RunRecord

DIGITS = 4
"""Significant digits of a tried number."""


@dataclass(frozen=True)
class Bounds:
    """The objective, a metric, and what other metrics may be at most and at least."""

    objective: str
    at_most: Mapping[str, float]
    at_least: Mapping[str, float]

    def excess(self, values: Mapping[str, float]) -> dict[str, float]:
        """By how much each bound is broken; 0 or less where it is kept."""
        above = {f"{name} at most": values[name] - bound for name, bound in self.at_most.items()}
        return above | {f"{name} at least": bound - values[name] for name, bound in self.at_least.items()}


@dataclass(frozen=True)
class Trial:
    """A setting that was tried: its overrides and its results; without values where it failed."""

    number: int
    overrides: list[str]
    setting: dict[str, str]
    """The values of the keys that are searched over."""
    run_id: str | None
    values: dict[str, float]
    kept: bool
    """Whether all bounds are kept."""
    loss: float = math.inf
    """The objective, or minus it where higher is better."""
    error: str = ""


def search(overrides: Sequence[str], bounds: Bounds, *, trials: int, seed: int = 0) -> Iterator[Trial]:
    """Try settings of the keys that name several values, one run after the other (tree-structured Parzen estimator,
    with constraints).

    Shares are given and returned as shares (0.3), not per cent. Raises UsageError without such a key and for a metric
    that the suite does not have, DetoxbenchError without Optuna.
    """
    try:
        import optuna
    except ImportError:
        raise DetoxbenchError("tuning needs Optuna: pip install 'detoxbench[optuna]'") from None
    fixed, space = swept(overrides)
    if not space:
        raise UsageError("nothing to tune: give a key several values, such as 'method.alpha=interval(0.05,0.5)'")
    distributions = {key: _distribution(key, override) for key, override in space.items()}
    _check(fixed, space)
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for number in range(1, trials + 1):
        optuna_trial = study.ask(distributions)
        setting = {key: _written(value) for key, value in optuna_trial.params.items()}
        trial = _tried(number, fixed, setting, bounds)
        if trial.run_id is None:
            study.tell(optuna_trial, state=optuna.trial.TrialState.FAIL)
        else:
            for name, excess in bounds.excess(trial.values).items():
                optuna_trial.set_constraint(name, excess)
            study.tell(optuna_trial, trial.loss)
        yield trial


def _tried(number: int, fixed: Sequence[str], setting: dict[str, str], bounds: Bounds) -> Trial:
    """Run one setting. A run that fails is a trial without values. Raises UsageError for a mistake in all of them."""
    from detoxbench.runner.stages import run

    overrides = [*fixed, *(f"{key}={value}" for key, value in setting.items())]
    try:
        record = run(compose_run(overrides)).record
        values = _values(record, bounds)
    except UsageError:
        raise
    except DetoxbenchError as error:
        return Trial(number, overrides, setting, None, {}, False, error=str(error))
    within_bounds = all(excess <= 0 for excess in bounds.excess(values).values())
    sign = -1 if record.metrics[bounds.objective].better == "higher" else 1
    return Trial(number, overrides, setting, record.run_id, values, within_bounds, sign * values[bounds.objective])


def _check(fixed: Sequence[str], space: Mapping[str, Override]) -> None:
    """Raises UsageError or DetoxbenchError, before anything is loaded, for a value that is wrong in any way that can be
    seen without weights: settings, data, scorers."""
    from detoxbench.runner.plan import plan

    first = {key: _ends(override)[0] for key, override in space.items()}
    settings = [first | {key: value} for key, override in space.items() for value in _ends(override)]
    for setting in {tuple(setting.items()): setting for setting in settings}.values():
        plan(compose_run([*fixed, *(f"{key}={value}" for key, value in setting.items())]))


def best(tried: Sequence[Trial]) -> Trial | None:
    """The best of those that keep the bounds; None if none does."""
    return min((trial for trial in tried if trial.kept), key=lambda trial: trial.loss, default=None)


def _values(record: RunRecord, bounds: Bounds) -> dict[str, float]:
    """The metrics of the bounds. Raises UsageError for an unknown one, DetoxbenchError for one without a value."""
    by_metric = {}
    for name in (bounds.objective, *bounds.at_most, *bounds.at_least):
        metric = record.metrics.get(name)
        if metric is None:
            near = did_you_mean(name, record.metrics)
            raise UsageError(
                f"suite '{record.suite}' has no metric '{name}'{near}; it has: {', '.join(record.metrics)}"
            )
        if name == bounds.objective and metric.better == "neither":
            raise UsageError(f"'{name}' is neither better when higher nor when lower: it can be a bound, no objective")
        if metric.value is None:
            raise DetoxbenchError(f"run {record.run_id} has no value of '{name}'")
        by_metric[name] = metric.value
    return by_metric


def _distribution(key: str, override: Override) -> Any:
    """Optuna's distribution of an override's values."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        return (IntDistribution if whole else FloatDistribution)(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep):
        numbers = list(value.range())
        whole = all(isinstance(number, int) for number in numbers)
        return (IntDistribution if whole else FloatDistribution)(min(numbers), max(numbers), step=abs(value.step))
    raise UsageError(f"'{key}' is given as a glob: write choice(...), range(...) or interval(...)")


def _ends(override: Override) -> list[str]:
    """The values of a choice, and the least and the greatest of an interval or a range."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    values = [str(text) for text in override.sweep_string_iterator()]
    return values if isinstance(value, ChoiceSweep) else [values[0], values[-1]]


def _written(value: Any) -> str:
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)
