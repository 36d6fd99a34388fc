"""Draw plots as SVG text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from stagedkd.report.grid import GridResults
from stagedkd.report.results import Results

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#b8860b", "#6a4c93", "#4a4a4a")


def settings_plot(grid: GridResults) -> str:
    """Plot the top-1 of every network at every setting, with its 95% interval; the first setting is on top."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = grid.rows
    figure: Any = Figure(figsize=(8, 1.2 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasSVG(figure)
    axis: Any = figure.subplots()
    for i, name in enumerate(("student", "teacher", "control")):
        points = [(y, getattr(row, name)) for y, row in enumerate(rows) if getattr(row, name)]
        if not points:
            continue
        middles = [100 * s.top1 for _, s in points]
        lower = [100 * (s.top1 - s.interval[0]) for _, s in points]
        upper = [100 * (s.interval[1] - s.top1) for _, s in points]
        heights = [y + 0.18 * (i - 1) for y, _ in points]
        axis.errorbar(middles, heights, xerr=[lower, upper], fmt="o", ms=4, lw=1.2, color=COLOURS[i], label=name)
    axis.set_yticks(range(len(rows)), [", ".join(row.labels.values()) or grid.plans.name for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(f"top-1 in percent on the {grid.split} split", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", color="#e5e5e5")
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def loss_curves(results: Results) -> str:
    """Plot the losses of each trained network by epoch, one phase after the other. Returns "" without events."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = {name: rows for name, rows in results.curves.items() if rows}
    if not curves:
        return ""
    figure: Any = Figure(figsize=(10, 2.5 * ((len(curves) + 1) // 2)), layout="constrained")
    FigureCanvasSVG(figure)
    axes: Any = figure.subplots((len(curves) + 1) // 2, 2 if len(curves) > 1 else 1, squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, rows) in zip(axes.flat, curves.items(), strict=False):
        names = list(dict.fromkeys(loss for row in rows for loss in row["losses"] if loss != "total"))
        for i, loss in enumerate(names):
            epochs = [x + 1 for x, row in enumerate(rows) if loss in row["losses"]]
            values = [rows[epoch - 1]["losses"][loss] for epoch in epochs]
            axis.plot(epochs, values, ".-", color=COLOURS[i % 6], label=loss, lw=1.2)
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
    return _svg(figure)


def correlation_map(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    student_names: Sequence[str],
    teacher_names: Sequence[str],
) -> str:
    """Draw two K x M matrices of values in 0..1 side by side on one scale: how similar each of K student substages is
    to each of M substages of its teacher, before and after the training of a hop."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows, columns = len(student_names), len(teacher_names)
    size = (2.6 + 2 * 0.95 * max(columns, 2), 1.6 + 0.6 * max(rows, 2))
    figure: Any = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    axes: Any = figure.subplots(1, 2, sharey=True)
    mesh: Any = None
    for axis, matrix, title in zip(axes, (before, after), ("before", "after"), strict=True):
        mesh = axis.pcolormesh(matrix, vmin=0, vmax=1, cmap="viridis", edgecolors="white", linewidth=1)
        for k, row in enumerate(matrix):
            for m, value in enumerate(row):
                ink = "black" if value > 0.6 else "white"  # viridis is light above 0.6
                axis.text(m + 0.5, k + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xticks([m + 0.5 for m in range(columns)], teacher_names, fontsize=8, rotation=30, ha="right")
        axis.set_yticks([k + 0.5 for k in range(rows)], student_names, fontsize=8)
        axis.set_xlabel("teacher", fontsize=8)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    axes[0].invert_yaxis()  # both axes share it; the first substage is on top
    axes[0].set_ylabel("student", fontsize=8)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.9, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return _svg(figure)


def shares_map(
    mixtures: Sequence[Mapping[str, Any]], student_names: Sequence[str], teacher_names: Sequence[str]
) -> str:
    """Draw the shares of the mixtures of a hop as a heat map: one column for each epoch, over all phases, and one row
    for each compared pair, the rows of one teacher substage together. A pair that a phase does not compare is grey.

    Args:
        mixtures: of each epoch, the `phase`, the `epoch` and the `shares` (K x M, None where not compared).
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    every = [(k, m) for m in range(len(teacher_names)) for k in range(len(student_names))]
    pairs = [(k, m) for k, m in every if any(row["shares"][k][m] is not None for row in mixtures)]
    nan = float("nan")
    values = [[nan if row["shares"][k][m] is None else row["shares"][k][m] for row in mixtures] for k, m in pairs]
    figure: Any = Figure(figsize=(min(10, 4.6 + 0.3 * len(mixtures)), 1.5 + 0.32 * len(pairs)), layout="constrained")
    FigureCanvasSVG(figure)
    axis: Any = figure.subplots()
    axis.set_facecolor("#dddddd")
    edges = [x + 0.5 for x in range(len(mixtures) + 1)], range(len(pairs) + 1)
    mesh = axis.pcolormesh(*edges, values, vmin=0, vmax=1, cmap="viridis", edgecolors="white", linewidth=0.5)
    for x in range(1, len(mixtures)):
        if mixtures[x]["phase"] != mixtures[x - 1]["phase"]:
            axis.axvline(x + 0.5, color="#d1495b", lw=1.2)
    names = [f"{student_names[k]} for {teacher_names[m]}" for k, m in pairs]
    axis.set_yticks([y + 0.5 for y in range(len(pairs))], names, fontsize=8)
    axis.invert_yaxis()
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch, over all phases", fontsize=8)
    axis.tick_params(labelsize=8, length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axis, shrink=0.9, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return _svg(figure)


def _svg(figure: Any) -> str:
    from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "stagedkd"}):  # without a salt the ids of clip paths differ from run to run
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
