"""Heat maps: correlation of substages, shares of a pairing, confusion of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagedkd.report.plots.figure import DIM, MARK, WIDTH, Plot, drawing, new_figure, short, whole_ticks
from stagedkd.report.results import Correlation

MAP, GREY = "viridis", "#8c8c8c"
WRITTEN = 9  # columns up to which a cell has room for its value


def correlation_maps(network: str, correlation: Correlation) -> list[Plot]:
    """Draw two K x M matrices of values in 0..1 on one scale: how similar each of K student substages is to each of M
    substages of its teacher, before and after the training of a hop."""
    pairs = {"before": correlation.before, "after": correlation.after}
    return [_correlation(network, when, matrix, correlation) for when, matrix in pairs.items()]


def _correlation(network: str, when: str, matrix: Sequence[Sequence[float]], correlation: Correlation) -> Plot:
    rows, columns = len(correlation.student), len(correlation.teacher)
    with drawing():
        figure, axis = new_figure(1.3 + 0.34 * max(rows, 2))
        mesh = axis.pcolormesh(matrix, vmin=0, vmax=1, cmap=MAP, edgecolors="#ffffff", linewidth=0.8)
        if columns <= WRITTEN:
            for k, row in enumerate(matrix):
                for m, value in enumerate(row):
                    _write(axis, m, k, f"{value:.2f}", light=value > 0.6)
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if columns > 2 else {}
        axis.set_xticks([m + 0.5 for m in range(columns)], [short(name) for name in correlation.teacher], **turned)
        axis.set_yticks([k + 0.5 for k in range(rows)], [short(name) for name in correlation.student])
        axis.set_xlabel("substages of the teacher")
        axis.set_ylabel("of the student")
        _plain(axis)
        axis.invert_yaxis()  # the first substage is on top
        _scale(figure, axis, mesh)
    about = f"A heat map of {rows} substages of the student by {columns} of the teacher, from 0 to 1, {when} training."
    return Plot(f"correlation-{network}-{when}", f"Correlation of the {network}, {when} training", about, figure)


def shares_map(
    network: str, mixtures: Sequence[Mapping[str, Any]], student: Sequence[str], teacher: Sequence[str]
) -> Plot:
    """Draw the shares of the mixtures of a hop as a heat map: one column for each epoch, over all phases, and one row
    for each compared pair, the rows of one teacher substage together. A pair that a phase does not compare is grey.

    Args:
        mixtures: of each epoch, the `phase`, the `epoch` and the `shares` (K x M, None where not compared).
        student, teacher: the names of the K and the M substages.
    """
    every = [(k, m) for m in range(len(teacher)) for k in range(len(student))]
    pairs = [(k, m) for k, m in every if any(row["shares"][k][m] is not None for row in mixtures)]
    nan = float("nan")
    values = [[nan if row["shares"][k][m] is None else row["shares"][k][m] for row in mixtures] for k, m in pairs]
    with drawing():
        figure, axis = new_figure(1.2 + 0.24 * len(pairs))
        axis.set_facecolor(GREY)
        edges = [x + 0.5 for x in range(len(mixtures) + 1)], range(len(pairs) + 1)
        mesh = axis.pcolormesh(*edges, values, vmin=0, vmax=1, cmap=MAP, edgecolors="#ffffff", linewidth=0.3)
        for x in range(1, len(mixtures)):
            if mixtures[x]["phase"] != mixtures[x - 1]["phase"]:
                axis.axvline(x + 0.5, color=MARK, lw=1.2)
        names = [f"{short(student[k], 12)} for {short(teacher[m], 12)}" for k, m in pairs]
        axis.set_yticks([y + 0.5 for y in range(len(pairs))], names, fontsize=7.5)
        axis.invert_yaxis()
        whole_ticks(axis.xaxis)
        axis.set_xlabel("epoch, over all phases")
        _plain(axis)
        _scale(figure, axis, mesh)
    about = f"A heat map of {len(pairs)} pairs of substages over {len(mixtures)} epochs, from 0 to 1."
    return Plot(f"pairing-{network}", f"Shares of the pairing of the {network}", about, figure)


def confusion_map(network: str, counts: Mapping[tuple[int, int], int], classes: Sequence[str]) -> Plot:
    """Draw a confusion matrix: of the clips of each class (a row), the fraction that was taken for each class.

    Args:
        counts: clips by their class and the predicted class. classes: the names of the classes.
    """
    size = range(len(classes))
    totals = [sum(counts.get((row, column), 0) for column in size) for row in size]
    values = [[counts.get((row, column), 0) / max(1, totals[row]) for column in size] for row in size]
    with drawing():
        figure, axis = new_figure(WIDTH - 0.2)
        mesh = axis.pcolormesh(values, vmin=0, vmax=1, cmap=MAP, edgecolors="#ffffff", linewidth=0.4)
        if len(classes) <= WRITTEN:
            for (row, column), count in counts.items():
                _write(axis, column, row, f"{count}", light=values[row][column] > 0.6)
        longest, small = (14, {"fontsize": 8 if len(classes) <= WRITTEN else 7})
        names = [short(name, longest) for name in classes]
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks([i + 0.5 for i in size], names, **turned, **small)
        axis.set_yticks([i + 0.5 for i in size], names, **small)
        axis.set_xlabel("predicted")
        axis.set_ylabel("class of the clip")
        _plain(axis)
        axis.invert_yaxis()
        if len(classes) > WRITTEN:
            _scale(figure, axis, mesh)
    right = sum(counts.get((i, i), 0) for i in size)
    about = f"A matrix of {len(classes)} classes; {right} of {sum(totals)} clips are on its diagonal, that is right."
    return Plot(f"confusion-{network}", f"Confusion of the {network}", about, figure)


def _write(axis: Any, x: int, y: int, text: str, *, light: bool) -> None:
    """Write a value into a cell, in black where the cell is light."""
    ink = "#010101" if light else "#ffffff"  # viridis is light above 0.6; plain black would be left to the page
    axis.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7.5, color=ink)


def _plain(axis: Any) -> None:
    """Leave out ticks and frame."""
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _scale(figure: Any, axis: Any, mesh: Any) -> None:
    """Draw the scale of the colours beside the axes."""
    bar = figure.colorbar(mesh, ax=axis, shrink=0.9, pad=0.02, aspect=25)
    bar.ax.tick_params(labelsize=7.5, color=DIM)
    bar.outline.set_visible(False)
