"""Content and samples into one HTML file: template.html with style.css and the scripts inside, data as JSON."""

from __future__ import annotations

import base64
import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from detoxbench import __version__
from detoxbench.config import BASE
from detoxbench.errors import DetoxbenchError
from detoxbench.files.writing import write_atomic
from detoxbench.report import samples as texts
from detoxbench.report.content import Content, Section, axes, default_axes, names, read_content
from detoxbench.results.costs import COSTS
from detoxbench.results.rendering.grids import extra_columns, setting
from detoxbench.results.selection import EVERYTHING, Selection
from detoxbench.results.table_notes import made_by
from detoxbench.results.tables import EMBEDDED, LEVEL, Cell, Column, Row, Verdict
from detoxbench.results.words import MARKS, number
from detoxbench.text import clean

if TYPE_CHECKING:
    from jinja2 import Template

HERE = Path(__file__).parent
SCRIPTS = ("elements", "numbers", "marks", "charts", "tradeoff", "sections", "fits", "samples", "page")
"""The files in script/, in the order in which they build on one another."""
TOXIC = 0.5
"""A text whose score is above counts as toxic in the sample browser, as in the metrics (`metrics.is_toxic`)."""
LOOKS = 8
"""How many colours and marks tell methods apart (style.css, script/marks.js); after so many they repeat."""
WORDS: dict[Verdict, str] = {
    "better": "better than the base",
    "worse": "worse than the base",
    "differs": "differs from the base",
    "unsupported": "difference not supported",
}


@dataclass(frozen=True)
class Written:
    """What `report` wrote: the page, and the side files of the samples that it has no room for."""

    page: Path
    side_files: list[Path]


def report(
    folder: str | Path = "runs",
    output: str | Path = "report.html",
    only: Selection = EVERYTHING,
    *,
    paper: bool = False,
    inside: int = texts.INSIDE,
    beside: int = texts.BESIDE,
) -> Written:
    """Write the runs under `folder` as one page that needs no network and no other file.

    At most `inside` bytes of samples are in the page; the others go to OUTPUT-STEM.samples-N.js beside it, `beside`
    bytes each, which the page loads on request. The same runs give the same bytes. With `paper`, the tables also hold
    the numbers that papers report. Raises DetoxbenchError where there are no finished runs, a run's samples cannot be
    read or `output` cannot be written.
    """
    output = Path(output)
    if output.is_dir():
        raise DetoxbenchError(f"'{output}' is a folder: name a file for the report (-o report.html)")
    content = read_content(folder, only, paper=paper)
    chosen = texts.samples(content, inside=inside, beside=beside)
    side = {
        i: output.with_name(f"{output.stem}.samples-{i + 1}.js") for i, c in enumerate(chosen) if c.beside is not None
    }
    data = _data(content, chosen, {i: path.name for i, path in side.items()})
    page = _page(content, data).encode()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for old in output.parent.glob(f"{glob.escape(output.stem)}.samples-*.js"):
            if old not in side.values():
                old.unlink()
        for i, path in side.items():
            block = texts.for_script(chosen[i].beside)
            write_atomic(path, f"detoxbenchSamples({i}, {json.dumps(data['digest'])}, {block});\n".encode())
        write_atomic(output, page)
    except OSError as error:
        raise DetoxbenchError(f"cannot write the report to '{output}': {error.strerror or error}") from None
    return Written(output, list(side.values()))


def _data(content: Content, chosen: list[texts.Chosen], side: dict[int, str]) -> dict[str, Any]:
    """What the page's script reads; `side`: the name of a section's side file, where it has one."""
    sections = zip(names(content), content.sections, chosen, strict=True)
    tradeoffs = [
        {"model": model, "axes": axes(content, model), "chosen": default_axes(content, model)}
        for model in content.models
    ]
    data: dict[str, Any] = {
        "sections": [
            _section(name, section, samples, side.get(i)) for i, (name, section, samples) in enumerate(sections)
        ],
        "methods": content.methods,
        "base": BASE,
        "toxic": TOXIC,
        "labels": content.labels,
        "marks": MARKS,
        "costs": {key: {"words": cost.words, "better": cost.better, "unit": cost.unit} for key, cost in COSTS.items()},
        "tradeoffs": tradeoffs,
        "curves": content.curves,
        "diagnostics": content.diagnostics,
    }
    data = msgspec.to_builtins(data)
    data["digest"] = hashlib.sha256(msgspec.json.encode(data)).hexdigest()[:16]
    return data


def _section(name: str, section: Section, samples: texts.Chosen, side: str | None) -> dict[str, Any]:
    table = section.table
    return {
        "model": table.model,
        "suite": table.suite,
        "name": name,
        "columns": table.columns,
        "rows": [_row(row, key) for row, key in zip(table.rows, section.keys, strict=True)],
        "measured": section.measured,
        "groups": section.groups,
        "sweeps": section.sweeps,
        "samples": samples.inside,
        "side": side,
        "side_records": len({r[1] for r in samples.beside.requests}) if samples.beside else 0,
        "side_bytes": samples.beside.size if samples.beside else 0,
        "records": samples.records,
    }


def _row(row: Row, key: str) -> dict[str, Any]:
    return {
        "label": row.shown,
        "method": row.method["name"],
        "key": key,
        "seeds": row.seeds,
        "cells": row.cells,
        "cost": row.cost,
    }


def _page(content: Content, data: dict[str, Any]) -> str:
    from markupsafe import Markup

    style, script = (HERE / "style.css").read_text(encoding="utf-8"), _script()
    page = _template().render(
        content=content,
        names=names(content),
        summary=_summary(content),
        verdicts=[_verdicts(content, model) for model in content.models],
        looks=_looks(content.methods),
        embedded=EMBEDDED,
        level=LEVEL,
        base=BASE,
        marks=MARKS,
        words=WORDS,
        shown=_shown,
        rest=extra_columns,
        setting=setting,
        toxic=TOXIC,
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        data=Markup(texts.for_script(data)),
        policy=_policy(style, script, side=any(s["side"] for s in data["sections"])),
    )
    return str(page)


def _script() -> str:
    """All scripts as one, whose names are private to it."""
    parts = [(HERE / "script" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return "\n".join(['"use strict";', "(() => {", *parts, "})();", ""])


def _template() -> Template:
    """template.html, with every text escaped; its filter `words` lets long names break at underscores."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["clean"] = clean
    environment.filters["words"] = lambda name: Markup("_<wbr>").join(clean(name).split("_"))
    return environment.get_template("template.html")


def _looks(methods: Sequence[str]) -> dict[str, int | str]:
    """The colour and mark of each method: the base has its own, the others have one by number."""
    other_methods = [name for name in methods if name != BASE]
    return {name: "base" if name == BASE else other_methods.index(name) % LOOKS for name in methods}


def _policy(style: str, script: str, *, side: bool) -> str:
    """Content Security Policy: this style and this script by their hashes, side files of the page's own folder."""

    def sha(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    own_folder = " 'self'" if side else ""
    allowed = f"style-src {sha(style)}; script-src {sha(script)}{own_folder}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _shown(cell: Cell, column: Column) -> dict[str, str]:
    """A cell of the leaderboard in parts, as texts."""

    def shown(value: float, like: float, sign: str = "") -> str:
        return number(value, column.unit, like, sign).replace("-", "−")

    def between(low: float | None, high: float | None, like: float, sign: str = "") -> str:
        if low is None or high is None:
            return ""
        return f"[{shown(low, like, sign)}, {shown(high, like, sign)}]"

    if cell.value is None:
        return {"value": "–", "interval": "", "delta": "", "delta_interval": "", "verdict": ""}
    parts = {"value": shown(cell.value, cell.value), "interval": between(cell.low, cell.high, cell.value)}
    d = cell.difference
    if d is None:
        return {**parts, "delta": "", "delta_interval": "", "verdict": ""}
    like = cell.value or d.value
    return {
        **parts,
        "delta": shown(d.value, like, "+"),
        "delta_interval": between(d.low, d.high, like, "+"),
        "verdict": d.verdict,
    }


def _summary(content: Content) -> dict[str, Any]:
    """The figures that the page opens with."""
    differences = [
        cell.difference
        for section in content.sections
        for row in section.table.rows
        for cell in row.cells.values()
        if cell.difference is not None
    ]
    verdicts = [d.verdict for d in differences]
    created = sorted(record.created for _, record in content.records.values())
    return {
        "runs": len(content.records),
        "suites": len({section.table.suite for section in content.sections}),
        "configurations": len(content.labels),
        "tested": sum(d.p is not None for d in differences),
        **{verdict: verdicts.count(verdict) for verdict in WORDS},
        "first": created[0][:10] if created else "",
        "last": created[-1][:10] if created else "",
        "made_by": made_by(record for _, record in content.records.values()),
        "embedded": any(EMBEDDED in section.table.notes for section in content.sections),
    }


def _verdicts(content: Content, model: str) -> dict[str, Any]:
    """The verdicts of all differences to the base: a line a metric, a column a configuration."""
    sections = [(name, s) for name, s in zip(names(content), content.sections, strict=True) if s.table.model == model]
    by_key = {s.keys[i]: str(s.table.rows[i].method["name"]) for _, s in sections for i in s.measured}
    keys = [key for key in content.labels if by_key.get(key, BASE) != BASE]
    blocks = []
    for name, section in sections:
        cells = {section.keys[i]: section.table.rows[i].cells for i in section.measured}
        lines = [
            (column, [cells[key][column.name].difference if key in cells else None for key in keys])
            for column in section.table.columns
        ]
        if any(d for _, differences in lines for d in differences):
            blocks.append((name, lines))
    columns = [(by_key[key], content.labels[key]) for key in keys]
    return {"model": model, "columns": columns, "blocks": blocks}
