"""`python -m benchmarks [NAMES] [--device cuda] [--json FILE]`; the exit code says whether all targets are reached."""

from __future__ import annotations

import argparse
import json
import pkgutil
import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

import benchmarks
from benchmarks.harness import Row
from detoxbench.cli.common import FAILURE, OK, USAGE, console, table

HEAD = ("what", "against", "target", "reached", "spread", "seconds", "theirs", "peak MB", "theirs", "")


def names() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    others = {"broken_text", "gpu", "gpu_speed", "harness", "models", "on_paper", "__main__"}
    return sorted(name for name in found if name not in others)


def devices(name: str) -> tuple[str, ...]:
    """What a benchmark has rows for."""
    return getattr(import_module(f"benchmarks.{name}"), "DEVICES", ("cpu",)) if name in names() else ()


def cells(row: Row) -> tuple[str, ...]:
    """What the table shows of a row, in the order of HEAD."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"

    sign = ">=" if row.better == "higher" else "<="
    spread = f"{number(row.low)} to {number(row.high)}" if row.repeats > 1 else "-"
    verdict = "-" if row.target is None else "yes" if row.holds else "NO"
    return (
        row.name,
        row.against,
        "-" if row.target is None else f"{sign} {number(row.target)} {row.unit}",
        f"{number(row.reached)} {row.unit}",
        spread,
        number(row.seconds),
        number(row.against_seconds),
        number(row.peak_mb),
        number(row.against_peak_mb),
        verdict,
    )


def machine(device: str) -> dict[str, Any]:
    """What it ran on: versions, hardware, date and commit."""
    import torch

    from detoxbench.runner.provenance import now, provenance

    return {"date": now(), "cpu": _cpu(), "memory_gb": _memory_gb(), **provenance(torch.device(device))}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gb() -> float | None:
    try:
        first = Path("/proc/meminfo").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return round(int(first[1]) / 2**20, 1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(names())}")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", metavar="FILE", help="write the rows and what they ran on")
    args = parser.parse_args(argv)
    chosen = [name for name in args.names or names() if args.device in devices(name)]
    wrong = [name for name in args.names if name not in chosen]
    if wrong:
        there = [name for name in names() if args.device in devices(name)]
        print(f"no benchmark '{wrong[0]}' for {args.device}; there are: {', '.join(there) or 'none'}", file=sys.stderr)
        return USAGE
    rows: list[Row] = []
    failed = False
    for name in chosen:
        module = import_module(f"benchmarks.{name}")
        try:
            for row in module.rows(args.device):
                rows.append(row)
                print(f"{row.name}: {cells(row)[3]}", file=sys.stderr, flush=True)
        except Exception as error:  # one that breaks, or whose sides differ, must not hide the others
            failed = True
            print(f"benchmark '{name}' failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    out = console()
    out.print(table([HEAD, *map(cells, rows)]))
    where = machine(args.device)
    git = where["git"] or {"commit": "no git checkout", "dirty": False}
    out.print(
        f"\n{where['date']}  {where['cpu']}, {where['cpus']} cores, {where['threads']} threads, {where['device']}; "
        f"torch {where['packages']['torch']}, transformers {where['packages']['transformers']}; "
        f"commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}"
    )
    for row in rows:
        if row.note:
            out.print(f"{row.name}: {row.note}")
    if args.json:
        file = Path(args.json)
        file.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": where, "failed": failed, "rows": [msgspec.to_builtins(row) for row in rows]}
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return FAILURE if failed or not all(row.holds for row in rows) else OK


if __name__ == "__main__":
    sys.exit(main())
