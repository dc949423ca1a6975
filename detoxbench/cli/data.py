"""`detoxbench data`: published data sets, and paraphrase sets from a model."""

from __future__ import annotations

import argparse
from typing import Any

from detoxbench.cli.common import FAILURE, OK, Parser, console, print_json, table
from detoxbench.errors import UsageError

ACTIONS = ("list", "fetch", "verify", "paraphrase")


def main(argv: list[str]) -> int:
    if argv[:1] == ["paraphrase"]:
        return _paraphrase(argv[1:])
    parser = Parser(
        prog="detoxbench data", description="Published data sets: list, fetch, verify; paraphrase sets from a model."
    )
    parser.add_argument(
        "action", choices=ACTIONS, help="list; fetch NAME from the hub; verify NAME FILE; paraphrase SENTENCES"
    )
    parser.add_argument("name", nargs="?")
    parser.add_argument("file", nargs="?")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)

    import msgspec

    from detoxbench.data import manifest

    wanted = {"list": 0, "fetch": 1, "verify": 2}.get(args.action)
    if sum(value is not None for value in (args.name, args.file)) != wanted:
        raise UsageError(
            "write: detoxbench data list, data fetch NAME, data verify NAME FILE, or data paraphrase SENTENCES ..."
        )
    if args.action == "list":
        found = list(manifest.manifests().values())
        if args.json:
            print_json(msgspec.to_builtins(found))
        else:
            console().print(table([(m.name, m.title, ", ".join(m.serves), m.licence, m.source) for m in found]))
    elif args.action == "fetch":
        print("\n".join(map(str, manifest.fetch(args.name))))
    else:
        verdict = manifest.verify(args.name, args.file)
        if args.json:
            print_json(verdict._asdict())
        else:
            print(verdict.message)
        return OK if verdict.ok else FAILURE
    return OK


def _paraphrase(argv: list[str]) -> int:
    from dataclasses import fields

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
    for field in fields(generation.GenerationConfig):
        flag: dict[str, Any] = {"type": type(field.default), "metavar": "X"}
        if isinstance(field.default, bool):
            flag = {"action": argparse.BooleanOptionalAction}
        default = repr(field.default).replace("%", "%%")
        shown = f"{field.metadata['help']} (default {default})"
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, help=shown, **flag)
    args = parser.parse_intermixed_args(argv)

    import msgspec

    from detoxbench import scorers
    from detoxbench.config import build, identity, texts, unescaped
    from detoxbench.lm import LanguageModel
    from detoxbench.model import checkpoint
    from detoxbench.model.model import find, pick_device
    from detoxbench.runner import composition
    from detoxbench.scorers.base import HARM, require_meaning

    given = {field.name: getattr(args, field.name) for field in fields(generation.GenerationConfig)}
    # A default is no typed text, and holds no backslash.
    given |= {name: unescaped(given[name]) for name in texts(generation.GenerationConfig)}
    config = build(generation.GenerationConfig, given, "paraphrase")
    foreign = [o for o in args.overrides if not o.startswith("scorer.")]
    if foreign or (args.overrides and not args.scorer):
        raise UsageError(f"'{(foreign or args.overrides)[0]}': settings are scorer.KEY=VALUE, and belong to a --scorer")
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit must be >= 1 (given: {args.limit})")
    out = generation.check_out(args.out, source=args.sentences)
    sentences = generation.sentences(args.sentences, text=args.text)[: args.limit]
    scorer, made_with = None, None
    if args.scorer:
        spec = composition.compose([f"scorer={args.scorer}", *args.overrides])
        scorer = scorers.get(spec.scorer_name)(spec.scorer, name=spec.scorer_name)
        require_meaning(scorer, HARM, "paraphrase generation")
        made_with = scorer.identity()
    fingerprint = checkpoint.fingerprint(find(args.model, revision=args.revision))
    device = pick_device(args.device)
    lm = LanguageModel.load(args.model, revision=args.revision, dtype=args.dtype, device=device)
    found = generation.generate_sets(lm, sentences, config, scorer=scorer, seed=args.seed)
    generation.write(out, found.sets)
    if args.json:
        print_json(
            {
                "file": str(out),
                "sets": len(found.sets),
                "left_out": found.left_out,
                "counts": msgspec.to_builtins(found.counts),
                "model": {"name": args.model, "fingerprint": fingerprint, "dtype": args.dtype},
                "config": identity(config),
                "scorer": made_with,
                "seed": args.seed,
            }
        )
        return OK
    show = console().print
    show(f"{out}: {len(found.sets)} of {len(sentences)} sentences have texts of both sides")
    show(table([tuple(f"  {cell}" for cell in row) for row in generation.rows(found)]))
    if scorer is None:
        show("no scorer was named: nothing has checked that positives are civil and negatives toxic")
    return OK
