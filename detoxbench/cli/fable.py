"""`detoxbench fable`: the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from detoxbench.cli.common import OK, Parser
from detoxbench.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from detoxbench.fable.build import Size


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(prog="detoxbench fable", description="The embedded model.")
    build_parser = parser.add_subparsers(metavar="VERB", required=True).add_parser(
        "build", help="train it from nothing (about 80 s on one core)"
    )
    build_parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="model.seed=N (0 is shipped, others go to the user's cache), size=tiny (10 s, for tests), out=FOLDER",
    )
    args = parser.parse_args(argv)

    from detoxbench.fable import build
    from detoxbench.progress import bar

    seed, size, out = _settings(args.settings)
    shipped = Path(build.__file__).parent / "seed0"
    folder = out or (build.cache_folder(seed) if seed else shipped)
    with bar(f"training fable, seed {seed}", total=1) as advance:
        build.build(seed, folder, size, lambda step, total, loss: advance(1 / total))
    print(folder)
    return OK


def _settings(words: Sequence[str]) -> tuple[int, Size, str]:
    """Seed, size and folder. Raises UsageError for an unknown key and for an impossible value."""
    from detoxbench.fable.build import RECIPES

    settings = {"model.seed": "0", "size": "default", "out": ""}
    for word in words:
        key, _, value = word.partition("=")
        if key not in settings:
            raise UsageError(f"unknown key '{key}'{did_you_mean(key, settings)}; known: {', '.join(settings)}")
        settings[key] = value
    if not settings["model.seed"].isdecimal():
        raise UsageError(f"wrong value for 'model.seed': not a number >= 0 (given: '{settings['model.seed']}')")
    if settings["size"] not in RECIPES:
        raise UsageError(f"wrong value for 'size': {' or '.join(RECIPES)} (given: '{settings['size']}')")
    return int(settings["model.seed"]), cast("Size", settings["size"]), settings["out"]
