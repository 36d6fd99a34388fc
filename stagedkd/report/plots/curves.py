"""Curves over a training: losses, their shares, and validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagedkd.report.plots.figure import (
    DIM,
    LINE,
    SERIES,
    Plot,
    drawing,
    legend,
    listed,
    log_scale,
    new_figure,
    series,
    short,
    whole_ticks,
)
from stagedkd.report.results import Results, Validation

Rows = Sequence[Mapping[str, Any]]


def loss_curves(curves: Mapping[str, Rows]) -> list[Plot]:
    """Plot the unweighted losses of each trained network by epoch, one phase after the other."""
    return [_losses(name, rows) for name, rows in curves.items() if rows]


def _losses(network: str, rows: Rows) -> Plot:
    names = list(dict.fromkeys(loss for row in rows for loss in row["losses"] if loss != "total"))
    with drawing():
        figure, axis = new_figure(2.3 + 0.17 * ((len(names) - 1) // 3))
        positive = False
        for i, loss in enumerate(names):
            epochs = [x + 1 for x, row in enumerate(rows) if loss in row["losses"]]
            values = [rows[epoch - 1]["losses"][loss] for epoch in epochs]
            positive |= any(value > 0 for value in values)
            axis.plot(epochs, values, **series(i), label=short(loss), markersize=3)
        _mark_phases(axis, rows)
        if positive:
            log_scale(axis, "y")
        axis.set_xlabel("epoch, over all phases")
        axis.set_ylabel("loss, unweighted")
        whole_ticks(axis.xaxis)
        legend(axis, len(names))
    about = f"Curves of {listed(names)} over {len(rows)} epochs."
    return Plot(f"losses-{network}", f"Losses of the {network}", about, figure)


def term_shares(curves: Mapping[str, Rows]) -> list[Plot]:
    """Plot the share of each weighted loss in the total by epoch, for each network with several losses."""
    counted = {name: [row for row in rows if row.get("terms")] for name, rows in curves.items()}
    return [_terms(name, rows) for name, rows in counted.items() if any(len(row["terms"]) > 1 for row in rows)]


def _terms(network: str, rows: Rows) -> Plot:
    names = list(dict.fromkeys(loss for row in rows for loss in row["terms"]))
    with drawing():
        figure, axis = new_figure(2.1 + 0.17 * ((len(names) - 1) // 3))
        floor = [0.0] * len(rows)
        for i, loss in enumerate(names):
            shares = [100 * row["terms"].get(loss, {"share": 0.0})["share"] for row in rows]
            hatch = ("", "//", ".", "\\\\", "xx", "++")[i % 6]
            bars = {"color": SERIES[i % 6], "edgecolor": "#ffffff", "linewidth": 0.4, "hatch": hatch, "width": 1.0}
            axis.bar(range(1, len(rows) + 1), shares, bottom=floor, label=short(loss), **bars)
            floor = [low + share for low, share in zip(floor, shares, strict=True)]
        axis.set_ylim(0, 100)
        axis.set_xlim(0.5, len(rows) + 0.5)
        axis.set_xlabel("epoch, over all phases")
        axis.set_ylabel("share in percent")
        whole_ticks(axis.xaxis)
        legend(axis, len(names))
    about = f"Stacked bars for each of {len(rows)} epochs: the shares of {listed(names)}, which add up to 100%."
    return Plot(f"shares-{network}", f"Shares of the losses of the {network}", about, figure)


def _mark_phases(axis: Any, rows: Rows) -> None:
    """Draw a line between two phases."""
    for x in range(1, len(rows)):
        if rows[x]["phase"] != rows[x - 1]["phase"]:
            axis.axvline(x + 0.5, color=DIM, lw=0.8, ls=":")


def validation_curves(results: Results) -> list[Plot]:
    """Plot the accuracy and the loss on validation clips during training by step, with a curve for each network."""
    if not results.validation:
        return []
    return [
        _validation(results.validation, "top1", "accuracy in percent", 100.0),
        _validation(results.validation, "loss", "loss", 1.0),
    ]


def _validation(curves: Mapping[str, Sequence[Validation]], value: str, words: str, scale: float) -> Plot:
    with drawing():
        figure, axis = new_figure(2.4 + 0.17 * ((len(curves) - 1) // 3))
        for i, (name, rows) in enumerate(curves.items()):
            heights = [scale * getattr(row, value) for row in rows]
            axis.plot([row.step for row in rows], heights, **series(i), label=short(name), markersize=3)
            if value == "top1":
                best = best_validation(rows)
                ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgecolor": SERIES[i % 6]}
                axis.plot([best.step], [scale * best.top1], linestyle="none", **ring)
        axis.grid(visible=True, color=LINE)
        axis.set_xlabel("step, over all phases")
        axis.set_ylabel(f"{words}, validation")
        legend(axis, len(curves))
    about = f"Curves of the {words.partition(' in')[0]} on validation clips by step, of {listed(list(curves))}."
    about += " A ring marks the best epoch of each." * (value == "top1")
    name = "accuracy" if value == "top1" else value
    return Plot(f"validation-{name}", f"Validation while training: {name}", about, figure)


def best_validation(rows: Sequence[Validation]) -> Validation:
    """Return the validation with the highest accuracy; the earliest of several."""
    return max(rows, key=lambda row: (row.top1, -row.step))
