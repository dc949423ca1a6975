"""`detoxbench data paraphrase`: civil and toxic paraphrases of sentences, written by a model."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detoxbench.cli.common import OK, Parser, console, foreign, print_json, scorer_of, table
from detoxbench.errors import UsageError

if TYPE_CHECKING:
    from detoxbench.fitting.paraphrase_generation import Generated, GenerationConfig
    from detoxbench.scorers.base import Scorer


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    args = _parser().parse_intermixed_args(argv)

    from detoxbench.fitting import paraphrase_generation as generation
    from detoxbench.lm import LanguageModel
    from detoxbench.model import checkpoint
    from detoxbench.model.devices import pick_device
    from detoxbench.model.model import find

    # 1. All that can be wrong without a model.
    config = _config(args)
    _check(args)
    out = generation.check_out(args.out, source=args.sentences)
    sentences = generation.sentences(args.sentences, text=args.text)[: args.limit]
    scorer = _scorer(args)
    # 2. The work.
    fingerprint = checkpoint.fingerprint(find(args.model, revision=args.revision))
    device = pick_device(args.device)
    lm = LanguageModel.load(args.model, revision=args.revision, dtype=args.dtype, device=device)
    generated = generation.generate_sets(lm, sentences, config, scorer=scorer, seed=args.seed)
    generation.write(out, generated.sets)
    # 3. What came of it.
    if args.json:
        print_json(_summary(args, out, config, scorer, fingerprint, generated))
    else:
        _show(out, generated, len(sentences), scorer)
    return OK


def _parser() -> Parser:
    from detoxbench.fitting import paraphrase_generation as generation

    parser = Parser(
        prog="detoxbench data paraphrase",
        description="Civil and toxic paraphrases of sentences by a model, filtered, for fit.paraphrase_sets=FILE.",
    )
    parser.add_argument("sentences", metavar="SENTENCES", help=".txt (one a line), .csv, .tsv, .json or .jsonl")
    parser.add_argument("overrides", nargs="*", metavar="scorer.KEY=VALUE", help="settings of the scorer")
    parser.add_argument("--model", required=True, metavar="NAME-OR-FOLDER", help="folder, hub id or 'fable'")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="is replaced where it is there")
    parser.add_argument("--scorer", metavar="NAME", help="filters by toxicity; not the one that judges your runs")
    parser.add_argument("--text", metavar="COLUMN", help=f"default: {', '.join(generation.TEXT)}")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N sentences")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--device", default="auto", help="auto (cuda, then mps, then cpu) or a torch device")
    parser.add_argument("--revision", help="hub revision of the model")
    parser.add_argument("--json", action="store_true", help="counts, and what the file depends on, for programs")
    _add_settings(parser, generation.GenerationConfig)
    return parser


def _add_settings(parser: Parser, config: type[GenerationConfig]) -> None:
    """An option for each of its fields, by the same name."""
    for field in fields(config):
        flag: dict[str, Any] = {"type": type(field.default), "metavar": "X"}
        if isinstance(field.default, bool):
            flag = {"action": argparse.BooleanOptionalAction}
        default = repr(field.default).replace("%", "%%")
        shown = f"{field.metadata['help']} (default {default})"
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, help=shown, **flag)


def _config(args: argparse.Namespace) -> GenerationConfig:
    """What the options say. Raises UsageError for a value that is out of bounds."""
    from detoxbench.config import build, texts, unescaped
    from detoxbench.fitting.paraphrase_generation import GenerationConfig

    settings = {field.name: getattr(args, field.name) for field in fields(GenerationConfig)}
    # Defaults hold no backslash, so only typed texts change.
    settings |= {name: unescaped(settings[name]) for name in texts(GenerationConfig)}
    return build(GenerationConfig, settings, "paraphrase")


def _check(args: argparse.Namespace) -> None:
    wrong = foreign(args.overrides, "scorer")
    if wrong or (args.overrides and not args.scorer):
        raise UsageError(f"'{(wrong or args.overrides)[0]}': settings are scorer.KEY=VALUE, and belong to a --scorer")
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit must be >= 1 (given: {args.limit})")


def _scorer(args: argparse.Namespace) -> Scorer[Any] | None:
    """What filters the texts, if anything does; its number has to mean harm."""
    from detoxbench.scorers.base import HARM, require_meaning

    if not args.scorer:
        return None
    scorer = scorer_of(args.scorer, args.overrides)
    require_meaning(scorer, HARM, "paraphrase generation")
    return scorer


def _summary(
    args: argparse.Namespace,
    out: Path,
    config: GenerationConfig,
    scorer: Scorer[Any] | None,
    fingerprint: str,
    generated: Generated,
) -> dict[str, Any]:
    """Counts, and what the file depends on."""
    import msgspec

    from detoxbench.config import identity

    return {
        "file": str(out),
        "sets": len(generated.sets),
        "left_out": generated.left_out,
        "counts": msgspec.to_builtins(generated.counts),
        "model": {"name": args.model, "fingerprint": fingerprint, "dtype": args.dtype},
        "config": identity(config),
        "scorer": scorer.identity() if scorer else None,
        "seed": args.seed,
    }


def _show(out: Path, generated: Generated, sentences: int, scorer: Scorer[Any] | None) -> None:
    from detoxbench.fitting.paraphrase_generation import rows

    show = console().print
    show(f"{out}: {len(generated.sets)} of {sentences} sentences have texts of both sides")
    show(table([tuple(f"  {cell}" for cell in row) for row in rows(generated)]))
    if scorer is None:
        show("no scorer was named: nothing has checked that positives are civil and negatives toxic")
