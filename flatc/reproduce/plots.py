"""Plots of a study as SVG, by Matplotlib: `pip install 'flatc[plot]'`.

The same study gives the same bytes: ids come from a fixed salt, and no date is written.
"""

from __future__ import annotations

import io
from typing import Any

from flatc.dialects.diagnostics import FlatcError
from flatc.reproduce.model import Plot, Study

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "flatc",
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def files(study: Study) -> dict[str, str]:
    """The pictures of a study by file name. Raises `FlatcError` where Matplotlib is missing."""
    try:
        import matplotlib
    except ImportError as error:
        help = "pip install 'flatc[plot]', or ask for --no-plots"
        raise FlatcError("plots need Matplotlib, which is not installed", help=help) from error
    library: Any = matplotlib
    with library.rc_context(SETTINGS):
        return {f"{study.name}-{plot.name}.svg": _draw(plot) for plot in study.plots}


def _draw(plot: Plot) -> str:
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes: Any = figure.subplots()
    for line, marker in zip(plot.lines, "os^vDPX*" * len(plot.lines), strict=False):
        axes.plot(*zip(*line.points, strict=True), marker=marker, markersize=3.5, linewidth=1.2, label=line.label)
    if plot.log_x:
        axes.set_xscale("log", base=2)
    if plot.log_y:
        axes.set_yscale("log")
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    axes.legend(frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
