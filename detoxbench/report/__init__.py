"""`report`: finished runs as one HTML file that needs nothing else, and as figures for print.

content.py      runs to what is shown (no HTML, no drawing)
samples.py      runs to the texts of the sample browser, within a size
build.py        both into template.html with style.css and the files in script/: the page
plots.py        the same content as PNG and SVG files; ablation_figure.py: an ablation
drawing.py      what all figures for print are drawn with (matplotlib)
"""

from detoxbench.report.build import Written, report
from detoxbench.results.selection import Selection

__all__ = ["Selection", "Written", "report"]
