"""What every figure for print is drawn with: colours, marks, style, small charts side by side (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError
from detoxbench.results.words import ARROWS
from detoxbench.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#c4500c", "#00805d", "#a8487e", "#8a6a00", "#4b57a8", "#2f8794", "#a0342b")
MARKS = ("o", "s", "^", "D", "v", "P", "h", "*")
GREY = "#57534c"
"""Of the base model. Colours and marks are those of the page (style.css, script/marks.js), which a test compares."""
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#9b958a",
    "axes.grid.axis": "both",
    "grid.color": "#e4e0d6",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # names are data: a dollar sign begins no formula
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "detoxbench",  # the same figure gives the same file
    "savefig.dpi": 300,
}
PANEL, ACROSS = 2.4, 3
"""Inches a small chart is wide, and how many stand side by side: three fill a text width of 7 inches."""


def require_matplotlib() -> None:
    """Raises DetoxbenchError naming the extra where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise DetoxbenchError("figures need matplotlib: pip install 'detoxbench[plots]'") from None


@contextmanager
def style() -> Iterator[None]:
    """Draw in `STYLE`; the reader's own settings of matplotlib have no effect."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def multiples(count: int, height: float, draw: Callable[[Axes, int], None], *, share_y: bool = False) -> Figure:
    """`count` small charts in rows of `ACROSS`, each drawn by `draw(axes, its number)`; `height` in inches."""
    from matplotlib.figure import Figure

    columns = min(ACROSS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(PANEL * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    for i, axes in enumerate(grid.flat):
        if i < count:
            draw(axes, i)
        else:
            axes.remove()
    return figure


def heading(name: str, better: str, unit: str) -> str:
    """A metric or cost above a chart: its name, per cent where it is a share, and which way is better."""
    return f"{clean(name)}{' (%)' if unit == 'share' else ''}{ARROWS[better]}"
