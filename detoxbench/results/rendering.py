"""Boards as text: for a terminal, Markdown, LaTeX, CSV and JSON. Names in them are untrusted and are escaped."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from detoxbench.results.costs import COSTS, USUAL
from detoxbench.results.tables import EMBEDDED, LEVEL, Board, Cell, Column, Difference, Pairwise, Row, Table, Verdict
from detoxbench.results.words import delta, heading_of, value_of
from detoxbench.text import clean, short

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def _delta(cell: Cell, column: Column) -> str:
    return delta(cell.difference, column.unit, cell.value)


NOT_SHOWN = ("requests", "contested_tokens")


class Grid(NamedTuple):
    """A block of text: a title, and columns of a heading and a text for each of `labels`."""

    title: str
    labels: list[str]
    columns: list[tuple[str, list[str]]]


def _beside(table: Table) -> list[str]:
    """What stands beside the metrics, as "cost.KEY" and "counts.KEY"."""
    if table.beside is not None:
        return table.beside
    counted = dict.fromkeys(k for row in table.rows for k in row.counts if k not in NOT_SHOWN)
    # What never happened is said in a note.
    happened = [k for k in counted if any(row.counts.get(k) for row in table.rows)]
    return [*(f"cost.{k}" for k in USUAL), *(f"counts.{k}" for k in happened)]


def rest_of(table: Table) -> list[tuple[str, list[str]]]:
    """The columns beside the metrics: (heading, a text for each row)."""
    found = []
    for name in _beside(table):
        kind, _, key = name.partition(".")
        if kind == "counts":
            found.append(
                (key.replace("_", " "), ["–" if (n := row.counts.get(key)) is None else str(n) for row in table.rows])
            )
            continue
        cost = COSTS.get(key)
        shown = cost.shown if cost else "{:.3g}".format
        values = [row.cost.get(key) for row in table.rows]
        found.append((cost.heading if cost else key, ["–" if v is None else shown(v) for v in values]))
    return found


def _more(table: Table) -> list[Grid]:
    """What was asked for beside the table itself: all pairs of rows, and ranks."""
    units = {column.name: column.unit for column in table.columns}
    grids = [_pairs(pairs, units[pairs.metric]) for pairs in table.pairwise]
    if table.standings:
        found = table.standings
        columns = [
            ("rank", [str(s.rank) for s in found]),
            ("95 % of ranks", ["–" if s.low is None else f"{s.low} to {s.high}" for s in found]),
            ("first", ["–" if s.first is None else f"{100 * s.first:.0f} %" for s in found]),
            ("Borda points", [f"{s.points:.2f}" for s in found]),
            ("front", ["yes" if s.front else "–" for s in found]),
        ]
        title = f"Ranks over all metrics with a direction; Pareto front over {', '.join(table.front)}"
        grids.append(Grid(title, [s.label for s in found], columns))
    return grids


def _pairs(pairs: Pairwise, unit: str) -> Grid:
    tests = sum(d is not None and d.p is not None for row in pairs.differences for d in row) // 2
    numbered = [f"({i}) {label}" for i, label in enumerate(pairs.labels, 1)]
    columns = [
        (f"minus ({j + 1})", [delta(row[j], unit).removeprefix("Δ ") or "–" for row in pairs.differences])
        for j in range(len(numbered))
    ]
    return Grid(
        f"{pairs.metric}: the row minus the column (p < {LEVEL} after Holm over {tests} tests)", numbered, columns
    )


def setting(table: Table) -> str:
    """What its rows share, for people; `shared` has the rest."""
    shown = {k: v for k, v in table.shared.items() if k.startswith(("model.", "gen.")) or k in table.apart}
    return ", ".join(f"{k.removeprefix('gen.')}={short(v)}" for k, v in shown.items())


# ------------------------------------------------------------------------------------------------------- terminal


def plain(board: Board, width: int) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(board)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def rich_blocks(board: Board, width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    for table in board.tables:
        yield Text(clean(table.title), style="bold")
        yield Text(clean(setting(table)), style="dim")
        seeds = len({len(row.seeds) for row in table.rows}) > 1 or len(table.rows[0].seeds) > 1
        labels = [row.shown + (f" ({len(row.seeds)} seeds)" if seeds else "") for row in table.rows]
        metrics = [(heading_of(c), [_coloured(row, c) for row in table.rows]) for c in table.columns]
        yield from _fitted(labels, metrics, width)
        yield from _fitted(labels, rest_of(table), width)
        for grid in _more(table):
            yield Text(clean(grid.title))
            yield from _fitted(grid.labels, grid.columns, width)
        for note in table.notes:
            yield Text(f"  {clean(note)}", style="yellow" if note == EMBEDDED else "dim")
        yield Text("")
    for note in board.notes:
        yield Text(clean(note), style="yellow")


def _coloured(row: Row, column: Column) -> Text:
    from rich.text import Text

    colours: dict[Verdict, str] = {"better": "green", "worse": "red", "differs": "cyan", "unsupported": "dim"}
    cell = row.cells[column.name]
    text = Text(value_of(cell, column), style="bold" if column.best == row.label else "")
    if cell.difference is not None:
        text.append(f"\n{_delta(cell, column)}", style=colours[cell.difference.verdict])
    return text


def _fitted(
    labels: Sequence[str], columns: Sequence[tuple[str, Sequence[str | Text]]], width: int
) -> Iterator[RenderableType]:
    """One block in as many tables as it takes to stay inside `width`, one under another."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as Grille
    from rich.text import Text

    names = [clean(label) for label in labels]
    label_width = min(max(cell_len(text) for text in [*names, "method"]), max(16, width // 4))
    left = [
        (clean(heading), [t if isinstance(t, Text) else Text(clean(t)) for t in texts]) for heading, texts in columns
    ]
    while left:
        grid = Grille(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        grid.add_column("method", width=label_width, overflow="fold")
        used = label_width
        shown: list[list[Text]] = []
        while left:
            heading, texts = left[0]
            needed = max(cell_len(line) for t in [heading, *map(str, texts)] for line in t.split("\n")) + 3
            if shown and used + needed > width:
                break
            used += needed
            shown.append(texts)
            grid.add_column(Text(heading), justify="right", no_wrap=True)
            left.pop(0)
        for i, name in enumerate(names):
            grid.add_row(Text(name, style="bold" if i == 0 else ""), *(texts[i] for texts in shown))
        yield grid
        yield Text("")


# ------------------------------------------------------------------------------------------- Markdown and LaTeX


def markdown(board: Board) -> str:
    def escaped(text: str) -> str:
        text = clean(text).replace("&", "&amp;").replace("<", "&lt;")
        return "".join(f"\\{c}" if c in "\\`*_[]|#~$" else c for c in text)

    def lines_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        shown = [f"| {' | '.join(map(escaped, texts))} |" for texts in (headings, *rows)]
        return [shown[0], f"|---|{'---:|' * (len(headings) - 1)}", *shown[1:], ""]

    lines = []
    for table in board.tables:
        lines += [f"### {escaped(table.title)}", "", escaped(setting(table)), ""]
        rest = rest_of(table)
        rows = []
        for i, row in enumerate(table.rows):
            values = [
                f"{value_of(row.cells[c.name], c)} {_delta(row.cells[c.name], c)}".rstrip() for c in table.columns
            ]
            rows.append([row.shown, str(len(row.seeds)), *values, *(texts[i] for _, texts in rest)])
        lines += lines_of(["method", "seeds", *map(heading_of, table.columns), *(heading for heading, _ in rest)], rows)
        for grid in _more(table):
            lines += [escaped(grid.title), ""]
            lines += lines_of(["method", *(h for h, _ in grid.columns)], _lines(grid))
        lines += [*(f"- {escaped(note)}" for note in table.notes), ""]
    lines += [f"- {escaped(note)}" for note in board.notes]
    return "\n".join(lines).rstrip("\n") + "\n"


def _lines(grid: Grid) -> list[list[str]]:
    return [[label, *(texts[i] for _, texts in grid.columns)] for i, label in enumerate(grid.labels)]


_TEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': r"{\char34}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "…": r"\ldots{}", "–": "--", "·": r"$\cdot$"}
    | {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$", "Δ": r"$\Delta$", "≠": r"$\neq$"}
    | {"✓": r"$\checkmark$", "✗": r"$\times$", "�": "?"}
)
_TEX_NEGATIVE = re.compile(r"(?<![\w.])-(?=\d)")


def latex(board: Board) -> str:
    """A `table` of booktabs each: values, intervals in small print, * where a difference to the reference is supported.

    Bold is a row that is better than each other one by a test.
    """

    def escaped(text: str) -> str:
        return _TEX_NEGATIVE.sub("$-$", clean(text).translate(_TEX))

    def tabular(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        # An empty group first: behind a line's end LaTeX reads * and [ as options.
        shown = [f"{'{}' * texts[0].startswith(('*', '['))}{' & '.join(texts)} \\\\" for texts in (headings, *rows)]
        return [
            rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            *(r"\toprule", shown[0], r"\midrule", *shown[1:], r"\bottomrule"),
            r"\end{tabular}",
        ]

    def cell(row: Row, column: Column) -> str:
        found = row.cells[column.name]
        value, _, bounds = escaped(value_of(found, column)).partition(" ")
        if column.best == row.label:
            value = rf"\textbf{{{value}}}"
        if found.difference is not None and found.difference.verdict != "unsupported":
            value += "$^{*}$"
        return rf"{value} {{\scriptsize {bounds}}}" if bounds else value

    lines = ["% needs \\usepackage{booktabs} and \\usepackage{amssymb}"]
    for table in board.tables:
        rest = rest_of(table)
        headings = ["method", *map(heading_of, table.columns), *(heading for heading, _ in rest)]
        rows = [
            [escaped(row.shown), *(cell(row, c) for c in table.columns), *(escaped(texts[i]) for _, texts in rest)]
            for i, row in enumerate(table.rows)
        ]
        caption = f"{table.title}. In brackets: 95 % intervals."
        if table.against is not None:
            caption += f" *: differs from {table.against} (p < {LEVEL}, paired, Holm)."
        if any(column.best for column in table.columns):
            caption += " Bold: better than each other row by a test."
        if EMBEDDED in table.notes:
            caption += f" Note: {EMBEDDED}."
        lines += ["", r"\begin{table}", r"\centering", rf"\caption{{{escaped(caption)}}}"]
        lines += tabular([escaped(h) for h in headings], rows)
        for grid in _more(table):
            lines += [r"\par\medskip", rf"{escaped(grid.title)}\par\smallskip"]
            names = ["method", *(heading for heading, _ in grid.columns)]
            lines += tabular([escaped(n) for n in names], [[escaped(t) for t in line] for line in _lines(grid)])
        lines.append(r"\end{table}")
    lines += ["", *(f"% {clean(note)}" for note in board.notes)]
    return "\n".join(lines).rstrip("\n") + "\n"


# ----------------------------------------------------------------------------------------------------- CSV and JSON

_FORMULA = tuple("=+-@＝＋－＠")
_DIFFERENCE = ("difference", "difference_low", "difference_high", "p", "p_holm", "verdict")
_MORE = ("against", "effect", "detectable", "above", "below")


def comma_separated(board: Board) -> str:
    """A line a value: metrics, then costs (metric "cost.NAME"), counts ("counts.NAME") and ranks ("rank.NAME").

    Differences between all pairs, where they were asked for, are lines without a value, of the row to `against`.
    """

    def safe(value: Any) -> Any:
        # A spreadsheet runs what starts like a formula.
        if isinstance(value, str):
            value = clean(value)
            return f"'{value}" if value.lstrip().startswith(_FORMULA) else value
        return "" if value is None else value

    def compared(d: Difference | None, against: str | None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        if d is None:
            return ("",) * 6, ("",) * 5
        first = (d.value, d.low, d.high, d.p, d.p_holm, d.verdict)
        return first, (against, d.effect, d.detectable, d.above, d.below)

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    place = ("table", "model", "suite", "scorer", "row", "seeds", "metric")
    values = ("better", "unit", "value", "low", "high", "interval", "n", "missing")
    writer.writerow((*place, *values, *_DIFFERENCE, *_MORE))

    def line(start: tuple[Any, ...], *rest: Any) -> None:
        whole = (*start, *rest)
        writer.writerow(map(safe, (*whole, *("",) * (len(place) + len(values) + 11 - len(whole)))))

    for number, table in enumerate(board.tables, 1):
        starts = {}
        for row in table.rows:
            start = (number, table.model, table.suite, table.scorer, row.label, " ".join(map(str, row.seeds)))
            starts[row.label] = start
            for c in table.columns:
                cell = row.cells[c.name]
                first, second = compared(cell.difference, table.against)
                found = (cell.value, cell.low, cell.high, cell.interval, cell.n, cell.missing)
                line(start, c.name, c.better, c.unit, *found, *first, *second)
            others = {f"{k}.{name}": v for k in ("cost", "counts") for name, v in getattr(row, k).items()}
            for name in others if table.beside is None else table.beside:
                line(start, name, "", "", others.get(name))
        units = {c.name: (c.better, c.unit) for c in table.columns}
        for pairs in table.pairwise:
            for label, differences in zip(pairs.labels, pairs.differences, strict=True):
                for against, d in zip(pairs.labels, differences, strict=True):
                    if d is not None:
                        first, second = compared(d, against)
                        line(
                            starts[label],
                            pairs.metric,
                            *units[pairs.metric],
                            "",
                            "",
                            "",
                            d.method,
                            d.n,
                            "",
                            *first,
                            *second,
                        )
        for s in table.standings:
            line(starts[s.label], "rank.borda", "lower", "number", s.rank, s.low, s.high)
            line(starts[s.label], "rank.points", "higher", "share", s.points)
            line(starts[s.label], "rank.first", "higher", "share", s.first)
            line(starts[s.label], "rank.front", "", "", int(s.front))
    return out.getvalue()


def as_json(board: Board) -> str:
    return json.dumps(msgspec.to_builtins(board), indent=1, ensure_ascii=False) + "\n"
