"""`detoxbench check`: what every method must keep, tried on a registered one."""

from __future__ import annotations

from detoxbench.cli.common import FAILURE, OK, Parser, console, print_json

KINDS = ("method",)

DESCRIPTION = """\
Try a method on tiny random models: whether it is seeded, changes what it says and nothing else, is taken off bit for
bit, and survives the disk. A line a check; exit code 1 where one finds a fault. Needs no data and no download.
"""


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(prog="detoxbench check", description=DESCRIPTION)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("name", metavar="NAME", help="a method (detoxbench list methods), also of another package")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the method, as in alpha=0.3")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_intermixed_args(argv)

    from detoxbench import methods
    from detoxbench.runner import composition

    methods.get(args.name)  # an unknown or broken method is an error before its file is looked for
    overrides = [f"method={args.name}", *(f"method.{s.removeprefix('method.')}" for s in args.settings)]
    spec = composition.compose_run([*_ANY_MODEL, *overrides])
    method = methods.get(spec.method_name)(spec.method, name=spec.method_name, seed=spec.seed)

    from detoxbench.authoring.conformance import CHECKS, check_method

    verdicts = check_method(method)
    if args.json:
        print_json([verdict._asdict() for verdict in verdicts])
    else:
        show = console().print
        for verdict in verdicts:
            show(f"fault  {verdict.check}: {verdict.fault}" if verdict.fault else f"ok     {verdict.check}")
        if left := len(CHECKS) - len(verdicts):
            show(f"not checked: {left} more, which need an intervention")
    faults = [verdict for verdict in verdicts if verdict.fault]
    return FAILURE if faults else OK


_ANY_MODEL = ("model=hf", "model.path=tiny")
"""A model that no file in conf/tuned/ is for: the method's own defaults are checked."""
