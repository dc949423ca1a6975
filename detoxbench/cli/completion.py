"""`detoxbench completion`: completion scripts for shells, and the candidates that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detoxbench.cli.common import OK, Parser
from detoxbench.cli.list import KINDS, names
from detoxbench.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(prog="detoxbench completion", description="Print a completion script for a shell.")
    parser.add_argument("shell", choices=SHELLS, nargs="?")
    parser.add_argument("--query", metavar="LINE", help=argparse.SUPPRESS)  # asked by the scripts
    args = parser.parse_args(argv)
    if args.query is not None:
        print("\n".join(_candidates(args.query)))
    elif args.shell:
        print(_SCRIPTS[args.shell], end="")
    else:
        raise UsageError(f"which shell? detoxbench completion {'|'.join(SHELLS)}")
    return OK


def _candidates(line: str) -> list[str]:
    """What the last word of a command line may become."""
    from detoxbench.cli import VERBS, check, data, new, scorer

    *words, last = [*line.split()[1:], *([""] if line[-1:].isspace() else [])]
    position = len(words)
    if words[:1] in (["run"], ["plan"], ["tune"]):
        return _override_candidates(line)
    known: Sequence[str] = ()
    if position == 0:
        known = tuple(VERBS)
    elif position == 1:
        known = {
            "list": KINDS,
            "describe": [kind[:-1] for kind in KINDS],
            "new": new.KINDS,
            "check": check.KINDS,
            "scorer": scorer.ACTIONS,
            "data": data.ACTIONS,
            "fable": ["build"],
            "completion": SHELLS,
        }.get(words[0], ())
    elif position == 2 and words[0] in ("describe", "check") and f"{words[1]}s" in KINDS:
        known = [row["name"] for row in names(f"{words[1]}s")]
    elif position == 2 and words == ["scorer", "check"]:
        known = [row["name"] for row in names("scorers")]
    elif position == 2 and words[0] == "data" and words[1] in ("fetch", "verify"):
        from detoxbench.data.manifest import manifests

        known = list(manifests())
    return [word for word in known if word.startswith(last)]


def _override_candidates(line: str) -> list[str]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from detoxbench.runner import composition

    composition.register_search_path()
    with initialize_config_dir(str(composition.conf_dir()), version_base=composition.VERSION_BASE):
        plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
        _, _, rest = line.lstrip().split(maxsplit=2) if len(line.split()) > 2 else ("", "", "")
        return plugin._query("config", rest)


_SCRIPTS = {
    # The last word is what follows the last blank; bash itself breaks words at "=" too and replaces the part after it.
    "bash": """\
# put this into ~/.bashrc:  source <(detoxbench completion bash)
_detoxbench() {
    local line=${COMP_LINE:0:COMP_POINT} word kept="" candidate
    word=${line##*[[:space:]]}
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then kept=${word%"${word##*=}"}; fi
    COMPREPLY=()
    while IFS= read -r candidate; do
        if [[ -n $candidate ]]; then COMPREPLY+=("${candidate#"$kept"}"); fi
    done < <(detoxbench completion --query "$line" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]]; then compopt -o nospace; fi
}
complete -F _detoxbench detoxbench
""",
    "zsh": """\
# put this into ~/.zshrc after compinit:  source <(detoxbench completion zsh)
_detoxbench() {
    local -a found
    found=("${(@f)$(detoxbench completion --query "$LBUFFER" 2>/dev/null)}")
    compadd -Q -S '' -- $found
}
compdef _detoxbench detoxbench
""",
    "fish": """\
# put this into ~/.config/fish/config.fish:  detoxbench completion fish | source
complete -c detoxbench -f -a '(detoxbench completion --query (commandline -cp) 2>/dev/null)'
""",
}
