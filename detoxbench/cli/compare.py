"""`detoxbench compare`: what distinguishes one run from another, and whether a test supports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from detoxbench.cli.common import OK, Parser, console, print_json, table
from detoxbench.errors import UsageError

if TYPE_CHECKING:
    from detoxbench.results.comparison import Changed, Compared, Comparison, Disagreement

TEXT = 300
"""Characters of a text that are shown."""


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    args = _parser().parse_args(argv)
    if args.samples < 0:
        raise UsageError(f"--samples must be >= 0 (given: {args.samples})")

    import msgspec

    from detoxbench.results.comparison import compare
    from detoxbench.results.store import find_run

    runs = [find_run(name, args.runs_dir) for name in (args.a, args.b)]
    comparison = compare(*runs, all_metrics=args.all_metrics, shown=args.samples)
    if args.json:
        print_json(msgspec.to_builtins(comparison if args.show_text else _without_texts(comparison)))
        return OK
    out = console()
    for block in _blocks(comparison, args.show_text):
        out.print(block)
    return OK


def _parser() -> Parser:
    parser = Parser(
        prog="detoxbench compare",
        description="What distinguishes run B from run A: numbers with a paired test, settings, cost, and the samples "
        "in which they disagree most. Runs that differ in more than method and seed are refused.",
    )
    parser.add_argument("a", metavar="RUN_A", help="a run's folder, or the beginning of its id")
    parser.add_argument("b", metavar="RUN_B", help="differences are B minus A")
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="where ids are looked up (default: runs)")
    parser.add_argument("--all-metrics", action="store_true", help="not the headline metrics only")
    parser.add_argument("--samples", type=int, default=10, metavar="N", help="how many samples (default 10)")
    parser.add_argument("--show-text", action="store_true", help="prompts and answers too, which may be offensive")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def _without_texts(comparison: Comparison) -> Comparison:
    most = [
        replace(d, prompt=None, a=replace(d.a, text=None), b=replace(d.b, text=None)) for d in comparison.samples.most
    ]
    return replace(comparison, samples=replace(comparison.samples, most=most))


def _blocks(comparison: Comparison, show_text: bool) -> list[Any]:
    """What rich prints, one block under another."""
    from detoxbench.text import clean

    a, b = comparison.a, comparison.b
    blocks: list[Any] = [f"{a.model} · {a.suite} · scored by {a.scorer}"]
    blocks.append(table([(f"{k}  {s.method}", f"seed {s.seed}", s.run_id, s.folder) for k, s in (("A", a), ("B", b))]))
    rows = [METRIC_HEADINGS, *(_metric_row(metric) for metric in comparison.metrics)]
    blocks += ["", table([tuple(map(clean, row)) for row in rows]), _legend(comparison)]
    for title, changes in (
        ("what can change a number and differs", comparison.identity),
        ("settings that cannot, and differ", comparison.settings),
        ("environment that differs", comparison.environment),
        ("cost", comparison.cost),
        ("counts", comparison.counts),
    ):
        if changes:
            blocks += ["", f"{title}:", table([("  ", "A", "B"), *(_changed(change) for change in changes)])]
    return [*blocks, "", *_samples(comparison, show_text), *(clean(note) for note in comparison.notes)]


METRIC_HEADINGS = ("metric", "A", "B", "B minus A", "p (Holm)", "effect", "detectable", "B higher / lower")


def _metric_row(m: Compared) -> tuple[str, ...]:
    """A metric under `METRIC_HEADINGS`."""
    from detoxbench.results.words import bounded, delta

    d = m.difference
    values = [bounded(r.value, r.low, r.high, m.unit, r.value) if r.value is not None else "–" for r in (m.a, m.b)]
    name = f"{m.name}{' %' if m.unit == 'share' else ''}"
    if d is None:
        return (name, *values, "nothing in common", "", "", "", "")
    p = "–" if d.p_holm is None else f"{d.p_holm:.2g}"
    effect = "–" if d.effect is None else f"{d.effect:+.2f}"
    least = "–" if d.detectable is None else bounded(d.detectable, None, None, m.unit, m.b.value or d.value)
    return (name, *values, delta(d, m.unit, m.b.value), p, effect, least, f"{d.above} / {d.below} of {d.n}")


def _legend(comparison: Comparison) -> str:
    from detoxbench.results.tables import LEVEL

    tests = sum(m.difference is not None and m.difference.p is not None for m in comparison.metrics)
    return (
        f"✓ B is better, ✗ worse, ≠ differs (p < {LEVEL} after Holm over {tests} tests); n.s.: not supported\n"
        "effect: the difference over the SD of the prompts' (or records') differences; detectable: what a test at 0.05 "
        "finds with a power of 80 %"
    )


def _changed(change: Changed) -> tuple[str, ...]:
    from detoxbench.text import clean, short

    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return "–" if value is None else _line(short(value, 60))

    return f"  {clean(change.key)}", shown(change.a), shown(change.b)


def _samples(comparison: Comparison, show_text: bool) -> Sequence[Any]:
    from detoxbench.text import clean, short

    samples = comparison.samples
    if samples.score is None:
        return [f"samples: {clean(samples.note)}"]
    total = samples.higher + samples.lower + samples.equal
    lines: list[Any] = [
        f"samples by {samples.score}: of {total} B is higher in {samples.higher}, lower in {samples.lower}, equal in "
        f"{samples.equal}; {samples.unscored} without a score in both",
        *([clean(samples.note)] if samples.note else []),
    ]
    if not samples.most:
        return lines
    hidden = "" if show_text else " (texts are hidden, they may be offensive: --show-text)"
    lines.append(f"the {len(samples.most)} in which they disagree most{hidden}:")
    if not show_text:
        return [*lines, table([_scores(d) for d in samples.most])]
    for d in samples.most:
        texts = [("  prompt", d.prompt), ("  A", d.a.text), ("  B", d.b.text)]
        lines += [
            "",
            table([_scores(d)]),
            table([(f"  {name}", _line(short(text or "", TEXT))) for name, text in texts]),
        ]
    return lines


def _scores(d: Disagreement) -> tuple[str, ...]:
    from detoxbench.text import clean

    return f"  {clean(d.id)}", f"sample {d.sample}", clean(d.kind), f"{d.a.score:.3g} → {d.b.score:.3g}"


def _line(text: str) -> str:
    """An untrusted text on one line, without control characters."""
    from detoxbench.text import clean

    return clean(text.replace("\n", " ⏎ "))
