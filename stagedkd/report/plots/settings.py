"""Plots of a grid: its settings, their differences from the baseline, and accuracy against what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagedkd.report.comparison import Comparison
from stagedkd.report.grid import GridResults, Row
from stagedkd.report.plots.figure import (
    DIM,
    INK,
    LINE,
    MARKERS,
    SERIES,
    Plot,
    drawing,
    legend,
    log_scale,
    new_figure,
    short,
)

APART = 1.05  # costs that differ by less are one


@dataclass(frozen=True)
class Cost:
    """A cost of the settings: its name, its unit, the value of each row that has one, by the row's number."""

    name: str
    unit: str
    values: Mapping[int, float]

    @property
    def tells(self) -> bool:
        """Whether the settings differ in it."""
        known = [value for value in self.values.values() if value > 0]
        return len(known) > 1 and max(known) / min(known) > APART


def costs(grid: GridResults) -> list[Cost]:
    """Return the costs in which the settings differ: compute, parameters, latency."""
    rows = {number: row for number, row in enumerate(grid.rows) if row.student}
    flops = {number: row.train_flops / 1e12 for number, row in rows.items() if row.train_flops}
    latency = {number: 1000 * row.latency for number, row in rows.items() if row.latency}
    every = (
        Cost("compute", "training compute of all hops in TFLOPs", flops),
        Cost(
            "parameters", "parameters of the student", {n: float(row.params) for n, row in rows.items() if row.params}
        ),
        Cost("latency", "latency of a clip in ms", latency),
    )
    return [cost for cost in every if cost.tells]


def front(grid: GridResults, cost: Cost) -> list[int]:
    """Return the numbers of the rows that no other row beats, cheapest first: none is at least as accurate for at most
    the same cost, and better in one of both."""
    best, numbers = -math.inf, list[int]()
    tops = {number: row.student.top1 for number, row in enumerate(grid.rows) if row.student}
    for number in sorted(cost.values, key=lambda n: (cost.values[n], -tops[n])):
        if tops[number] > best:
            best = tops[number]
            numbers.append(number)
    return numbers


def pareto_plot(grid: GridResults, cost: Cost) -> Plot:
    """Plot accuracy against a cost, with the Pareto front. Points have the numbers of their rows."""
    on_front = front(grid, cost)
    students = {number: grid.rows[number].student for number in cost.values}
    points = {number: (cost.values[number], 100 * s.top1) for number, s in students.items() if s}
    with drawing():
        figure, axis = new_figure(2.7)
        line = [points[number] for number in on_front]
        axis.step(*zip(*line, strict=True), where="post", color=DIM, lw=1.2, ls="--", label="Pareto front")
        for number, (x, y) in points.items():
            is_base = grid.is_baseline(grid.rows[number])
            shape = {"marker": "D" if is_base else "o", "color": SERIES[1] if is_base else SERIES[0]}
            hollow = {} if number in on_front or is_base else {"markerfacecolor": "none"}
            axis.plot([x], [y], linestyle="none", markersize=6, **shape, **hollow)
        axis.plot([], [], marker="D", linestyle="none", color=SERIES[1], label="baseline")
        axis.margins(0.12)
        if max(cost.values.values()) / min(cost.values.values()) > 5:
            log_scale(axis, "x")
        _number_points(axis, points)
        axis.grid(visible=True, color=LINE)
        axis.set_xlabel(cost.unit)
        axis.set_ylabel("mean top-1 in percent")
        legend(axis, 2)
    names = ", ".join(f"{number + 1} ({grid.rows[number].name or 'student'})" for number in on_front)
    about = f"Mean top-1 of {len(points)} settings against {cost.unit}. On the Pareto front, cheapest first: {names}."
    return Plot(f"pareto-{cost.name}", f"Accuracy against {cost.name}", about, figure)


def _number_points(axis: Any, points: Mapping[int, tuple[float, float]]) -> None:
    """Write the numbers of the rows at their points; points that (nearly) hide each other have them in one list."""
    from matplotlib.transforms import Bbox

    axis.autoscale_view()
    groups: list[tuple[Bbox, list[int]]] = []
    for number, point in points.items():
        x, y = axis.transAxes.inverted().transform(axis.transData.transform(point))
        near = next((numbers for box, numbers in groups if box.contains(x, y)), None)
        if near is None:
            groups.append((Bbox.from_extents(x - 0.05, y - 0.04, x + 0.05, y + 0.04), [number]))
        else:
            near.append(number)
    for _, numbers in groups:
        text = ", ".join(f"{number + 1}" for number in numbers)
        axis.annotate(text, points[numbers[-1]], (4, 4), textcoords="offset points", fontsize=8, color=INK)


def settings_plot(grid: GridResults) -> Plot:
    """Plot the top-1 of every network at every setting, with its 95% interval; the first setting is on top."""
    rows = grid.rows
    networks = [name for name in ("student", "teacher", "control") if any(getattr(row, name) for row in rows)]
    with drawing():
        figure, axis = new_figure(0.9 + 0.5 * len(rows))
        for i, name in enumerate(networks):
            points = [(y + 0.15 * i, getattr(row, name)) for y, row in enumerate(rows) if getattr(row, name)]
            middles = [100 * s.top1 for _, s in points]
            lower = [max(0.0, 100 * (s.top1 - s.interval[0])) for _, s in points]
            upper = [max(0.0, 100 * (s.interval[1] - s.top1)) for _, s in points]
            style = {"fmt": MARKERS[i], "ms": 4, "lw": 1.3, "color": SERIES[i], "label": name}
            axis.errorbar(middles, [y for y, _ in points], xerr=[lower, upper], **style)
        _name_rows(axis, [_label(grid, title, row) for title, row in grid.titled[: len(rows)]])
        axis.set_xlabel(f"top-1 in percent, {grid.split} split, 95% intervals")
        legend(axis, len(networks))
    about = f"Top-1 with 95% intervals at {len(rows)} settings; the table of the settings has the values."
    return Plot("settings", "Accuracy of the settings", about, figure)


def differences_plot(grid: GridResults) -> Plot | None:
    """Plot the paired differences from the baseline with their intervals; None where nothing can be compared."""
    every = [(_label(grid, title, row), grid.comparisons.get(row.name)) for title, row in grid.titled]
    found: list[tuple[str, Comparison]] = [(name, c) for name, c in every if c is not None and c.paired is not None]
    if not found:
        return None
    with drawing():
        figure, axis = new_figure(0.75 + 0.45 * len(found))
        axis.axvline(0, color=DIM, lw=1)
        for y, (_, comparison) in enumerate(found):
            pair = comparison.paired
            assert pair is not None
            shown = comparison.verdict in ("better", "worse")
            low, high = pair.interval or (pair.mean, pair.mean)
            error = [[max(0.0, 100 * (pair.mean - low))], [max(0.0, 100 * (high - pair.mean))]]
            style = {"fmt": "o", "ms": 6, "color": SERIES[0], "mfc": SERIES[0] if shown else "none", "mew": 1.4}
            axis.errorbar([100 * pair.mean], [y], xerr=error, **style)
        _name_rows(axis, [name for name, _ in found])
        axis.set_xlabel("points of top-1 above the baseline")
    base = grid.baseline_name or "the baseline"
    about = f"Paired differences of {len(found)} rows from {base}, with 95% intervals. A full point is shown to differ."
    return Plot("differences", f"Differences from {base}", about, figure)


def _label(grid: GridResults, title: str, row: Row) -> str:
    labels = [row.label(axis) for axis in grid.axes] or [grid.plans.name]
    base = " (baseline)" if grid.comparisons and grid.is_baseline(row) else ""
    return f"{title}  {short(', '.join(labels), 34)}{base}"


def _name_rows(axis: Any, names: Sequence[str]) -> None:
    """Write the name of each row above its points, so that long names take no room from them."""
    for y, name in enumerate(names):
        axis.text(0, y - 0.3, name, transform=axis.get_yaxis_transform(), va="center", color=INK)
    axis.set_yticks([])
    axis.set_ylim(len(names) - 0.5, -0.6)
    axis.spines["left"].set_visible(False)
    axis.grid(visible=True, axis="x", color=LINE)
