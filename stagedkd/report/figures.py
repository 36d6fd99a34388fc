"""Figures as SVG text."""

from __future__ import annotations

import io
from typing import Any

from stagedkd.report.collect import Results

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#b8860b", "#6a4c93", "#4a4a4a")


def loss_curves(results: Results) -> str:
    """One panel per trained network: the losses by epoch, phases side by side. "" where no event file is here."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = {name: rows for name, rows in results.curves.items() if rows}
    if not shown:
        return ""
    figure: Any = Figure(figsize=(10, 2.5 * ((len(shown) + 1) // 2)), layout="constrained")
    FigureCanvasSVG(figure)
    axes: Any = figure.subplots((len(shown) + 1) // 2, 2 if len(shown) > 1 else 1, squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (name, rows) in zip(axes.flat, shown.items(), strict=False):
        names = list(dict.fromkeys(loss for row in rows for loss in row["losses"] if loss != "total"))
        for i, loss in enumerate(names):
            at = [x + 1 for x, row in enumerate(rows) if loss in row["losses"]]
            axis.plot(at, [rows[x - 1]["losses"][loss] for x in at], ".-", color=COLOURS[i % 6], label=loss, lw=1.2)
        for x in range(1, len(rows)):
            if rows[x]["phase"] != rows[x - 1]["phase"]:
                axis.axvline(x + 0.5, color="#bbbbbb", lw=0.8)
        axis.set_yscale("log")
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_xlabel("epoch", fontsize=8)
        axis.set_ylabel("loss, unweighted", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
