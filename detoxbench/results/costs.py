"""What a run costs: every cost that is measured, in words, and how its numbers are shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple


class Cost(NamedTuple):
    """One cost. A new one is a line in `COSTS`, and a field of the stage that measures it."""

    measured: str
    """Where it is measured: STAGE.FIELD of `runner.fits.Fit` (fit) or `runner.generations.Generation` (generation)."""
    words: str
    """What it is called in figures."""
    heading: str
    """What it is called above a column."""
    unit: str
    better: Literal["higher", "lower"]
    shown: Callable[[float], str]
    usual: bool = False
    """Shown in a table unless columns are named."""


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


COSTS: dict[str, Cost] = {
    "fit_seconds": Cost("fit.seconds", "time to fit", "fit", "s", "lower", "{:.1f} s".format, usual=True),
    "relative_speed": Cost(
        "generation.relative_speed", "speed against the base", "speed", "×", "higher", "{:.2f}×".format, usual=True
    ),
    "added_prompt_tokens": Cost(
        "generation.added_prompt_tokens", "added prompt tokens", "prompt", "", "lower", "+{:.3g}".format, usual=True
    ),
    "artifact_bytes": Cost("fit.artifact_bytes", "artifact", "artifact", "B", "lower", _bytes, usual=True),
    "fit_peak_mb": Cost("fit.peak_mb", "peak memory of the fit", "peak", "MB", "lower", "{:.0f} MB".format),
    "changed_parameters": Cost(
        "fit.changed_parameters", "changed parameters", "changed parameters", "", "lower", "{:,.0f}".format
    ),
    "added_parameters": Cost(
        "fit.added_parameters", "added parameters", "added parameters", "", "lower", "{:,.0f}".format
    ),
    "examples": Cost("fit.examples", "fit examples", "examples", "", "lower", "{:,.0f}".format),
    "forward_passes_per_token": Cost(
        "generation.forward_passes_per_token", "forward passes a token", "passes", "×", "lower", "{:.2f}".format
    ),
    "generation_peak_mb": Cost(
        "generation.peak_mb", "peak memory of generating", "peak, generating", "MB", "lower", "{:.0f} MB".format
    ),
    "guide_seconds": Cost("generation.guide_seconds", "guide's time a text", "guide", "s", "lower", "{:.2g} s".format),
    "tokens_per_second": Cost(
        "generation.tokens_per_second", "tokens a second", "tokens/s", "", "higher", "{:.0f}".format
    ),
}
"""By the key in run.json, in the order in which they are shown. Speed is relative to the base model."""
USUAL = [key for key, cost in COSTS.items() if cost.usual]
