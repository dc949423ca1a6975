"""`detoxbench demo`: the whole job on the embedded model, in a few minutes, with nothing downloaded."""

from __future__ import annotations

import sys
import time

from detoxbench.config import BASE
from detoxbench.results.leaderboard import leaderboard
from detoxbench.runner.composition import compose_run
from detoxbench.runner.stages import run

RUNS_DIR = "runs/demo"
SUITES = ("safeedit", "real_toxicity_prompts", "utility")
METHODS = (BASE, "contrastive_perplexity", "destein", "dinm", "ext_sub", "self_reminder")
"""A choice, so that the demo takes no longer for every method that there is."""


def main() -> None:
    """Run the base model and a choice of methods on the embedded suites, then print the leaderboard."""
    cells = [
        (suite, name, compose_run([f"method={name}", f"suite={suite}", f"runs_dir={RUNS_DIR}"]))
        for suite in SUITES
        for name in METHODS
    ]
    start = time.perf_counter()
    for i, (suite, name, spec) in enumerate(cells, 1):
        began = time.perf_counter()
        result = run(spec)
        took = "there already" if result.cached else f"{time.perf_counter() - began:.1f} s"
        print(f"[{i}/{len(cells)}] {suite}: {name} ({took})", file=sys.stderr, flush=True)
    print(f"{len(cells)} runs in {time.perf_counter() - start:.0f} s\n", file=sys.stderr, flush=True)
    print(leaderboard(RUNS_DIR))
    print(_NEXT)


_NEXT = f"""
The runs lie in {RUNS_DIR}: run.json (metrics, intervals, cost), samples.jsonl (every text), scores.jsonl.
What to try next:
  detoxbench report {RUNS_DIR} -o report.html                every table, chart and text on one page
  detoxbench leaderboard {RUNS_DIR} --all-metrics            every metric
  detoxbench run -m method=destein method.alpha=0.2,0.4,0.6   an ablation, then: detoxbench leaderboard
  detoxbench describe method ext_sub                          what can be set, and where its default is from
  detoxbench run model=gpt2 method=destein fit.parallel_pairs=PAIRS suite=real_toxicity_prompts suite.data=PROMPTS \\
      scorer=profanity_check                                  a real model on real pairs and prompts"""
