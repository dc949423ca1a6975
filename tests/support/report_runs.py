"""Runs to report on: a sweep, categories, layers, a missing value, and texts and names that attack the page."""

from __future__ import annotations

from detoxbench.files.lines import encode_lines
from detoxbench.records import Measure, Sample, Scored
from tests.support.stored import write

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    '"\'><img src=x onerror="window.hacked = 1">',
    "<!-- <script>",
    "{{ 7 * 7 }} ${7 * 7} &lt;b&gt;",
    "turned \u202eround\u2066 and \u2028 broken",
    "nul \x00 and bell \x07",
]
NAME = "<img src=x onerror='window.hacked=1'>\u202e"
"""Of a method, a metric and a model: such names can only come from a plugin."""
PROMPTS = [f"r{i}" for i in range(24)]


def share(name, value, better="higher", **more):
    """A yes-or-no metric that is yes for the first `value` of the prompts."""
    return Measure(
        name, better, {p: float(i < value * len(PROMPTS)) for i, p in enumerate(PROMPTS)}, dict.fromkeys(PROMPTS, 1.0),
        unit="share", binary=True, **more,
    )  # fmt: skip


def level(name, value, better="lower", **more):
    return Measure(
        name,
        better,
        {p: value * (1 + 0.1 * (i % 5)) for i, p in enumerate(PROMPTS)},
        dict.fromkeys(PROMPTS, 1.0),
        **more,
    )


def texts(folder, toxicity, said=None, prompts=PROMPTS, samples=2, voice=""):
    """Write a run's samples: prompt i is judged toxic where i / len(prompts) < `toxicity`, sample 1 is judged so never.

    The first prompts are answered by the `said`, which nobody could judge where there is a NUL.
    """
    rows, scores = [], []
    for i, record in enumerate(prompts):
        for n in range(samples):
            toxic = n == 0 and i < toxicity * len(prompts)
            text = (
                said[i]
                if said and i < len(said) and n == 0
                else f" answer {n} to {record} is {'rude' if toxic else 'kind'}" + voice
            )
            rows.append(
                Sample(
                    id=record,
                    record=record,
                    kind="harsh" if i % 2 else "mild",
                    sample=n,
                    prompt=f"prompt {i} <b>{record}</b>",
                    text=text,
                    stop="eos",
                    tokens=5,
                )
            )
            judged = None if "\x00" in text else {"toxicity": 0.9 if toxic else 0.01 * n + i / 1000, "degenerate": 0.0}
            scores.append(
                Scored(
                    id=record,
                    sample=n,
                    scores={"main": judged, "fluency": {"nll": 5.0, "tokens": 4, "degenerate": 0.0}},
                )
            )
    (folder / "samples.jsonl").write_bytes(encode_lines(rows))
    (folder / "scores.jsonl").write_bytes(encode_lines(scores))


def build(runs):
    """Write all of them into the folder `runs`."""
    runs.mkdir()

    def one(defended, toxicity, perplexity, method, config=None, said=None, **changes):
        measures = [
            share("DS", defended),
            level("EMT", toxicity),
            level("perplexity", perplexity),
            level("EMT_on_harsh", toxicity * 1.2, headline=False),
            level("EMT_on_mild", toxicity * 0.8, headline=False),
        ]
        texts(write(runs, measures, method, config=config, suite="rtp", **changes), toxicity, said)

    one(0.2, 0.8, 5.0, "none")
    steps = {"losses": [3.0, 2.0, 1.5, 1.2], "probe_accuracy": [0.6, 0.9], "pairs": 20}
    for alpha, defended, toxicity, perplexity in ((0.2, 0.5, 0.5, 6.0), (0.4, 0.8, 0.3, 9.0), (0.6, 1.0, 0.1, 40.0)):
        cost = {"fit_seconds": 1.5, "artifact_bytes": 2048, "relative_speed": 0.9, "fit_peak_mb": None}
        one(defended, toxicity, perplexity, "destein", {"alpha": alpha, "layers": [1]}, diagnostics=steps, cost=cost)
    one(0.9, 0.4, 7.0, NAME, said=HOSTILE, fidelity=f"ours ({HOSTILE[2]})")
    for method, value in (("none", 0.4), ("destein", 0.2)):
        layers = [level(f"cosine_layer_{i}", value + i / 10, headline=False) for i in range(3)]
        measures = [level("cosine", value), *layers, level(NAME, value)]
        if method == "destein":
            measures[-1] = Measure(NAME, "lower", {}, {}, missing=24)  # not a single value
        config = {"alpha": 0.4, "layers": [1]} if method == "destein" else None
        texts(write(runs, measures, method, config=config, suite="mechanism"), 0.5)
    return runs
