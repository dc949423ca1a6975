"""`detoxbench plan`: what a run would do: which stages are cached, to do or missing."""

from __future__ import annotations

from detoxbench.cli.common import OK, Parser, config_dir, console, table


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(prog="detoxbench plan", description="What a run would do. Loads no weights, asks no network.")
    parser.add_argument("-m", "--multirun", action="store_true", help="several values of a key are several cells")
    parser.add_argument("--config-dir", metavar="DIR", help="a further folder of configuration groups")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for run")
    args = parser.parse_intermixed_args(argv)

    from detoxbench.runner import composition
    from detoxbench.runner.plan import plan

    cells = composition.cells(args.overrides + config_dir(args.config_dir), multirun=args.multirun)
    show = console().print
    for number, (overrides, spec) in enumerate(cells, 1):
        planned = plan(spec)
        names = {"model": spec.model.name, "method": spec.method_name, "suite": spec.suite_name}
        names |= {"scorer": spec.scorer_name, "seed": str(spec.seed)}
        other_overrides = [override for override in overrides if override.partition("=")[0] not in names]
        title = " ".join([*(f"{key}={value}" for key, value in names.items()), *other_overrides])
        show(f"[{number}/{len(cells)}] {title}  {planned.run_id or ''}".rstrip())
        show(table([(f"  {c.stage}", c.state, c.remark) for c in planned.cells]))
    return OK
