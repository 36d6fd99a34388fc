"""The results that DVC shows: summary.json for `dvc metrics` and `dvc exp show`, and tables for `dvc plots`.

They hold nothing volatile, such as times: the same artifacts give the same bytes on every machine.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from stagedkd.dvc.pipeline import CLASSES, NETWORKS
from stagedkd.report.grid import GridResults
from stagedkd.report.results import NetworkResult, Results

Row: TypeAlias = dict[str, "str | float"]


def summary(results: Results) -> dict[str, Any]:
    """Return the metrics of each network, the student first, and the fractions of right labels in each round of
    refinement. Fractions are in 0..1."""
    others = [network for network in results.networks if network is not results.student]
    values: dict[str, Any] = {network.name: _metrics(network) for network in (results.student, *others)}
    for row in results.loss_shares:
        values[row.network].setdefault("loss_shares", {})[row.phase] = dict(row.shares)
    for refinement in results.refinements:
        right = {"right_before": refinement.before, "right_after": refinement.after}
        metrics = right | {"coverage": refinement.coverage}
        values[refinement.name] = {name: value for name, value in metrics.items() if value is not None}
    return values


def grid_summary(grid: GridResults) -> dict[str, Any]:
    """Return the students' mean top-1 in 0..1 with its 95% interval, by row of the grid."""
    return {
        _row_name(row.name): {
            "top1": row.student.top1,
            "low95": row.student.interval[0],
            "high95": row.student.interval[1],
            f"{grid.unit}s": row.student.n,
            "parameters": row.params,
        }
        for row in grid.rows
        if row.student
    }


def plots(results: Results) -> dict[str, list[Row]]:
    """Return the files of `dvc plots`: the top-1 of each network, and the student's for each class."""
    networks = [_row(n.name, n.top1, n.interval, n.params) for n in results.networks if n.measured]
    classes: list[Row] = [{"class": name, "top1": top1} for name, top1 in results.student.per_class.items()]
    return {NETWORKS: networks, CLASSES: classes}


def grid_plots(grid: GridResults) -> dict[str, list[Row]]:
    """Return the files of `dvc plots` for a grid: the top-1 of the students of each row."""
    students = [(_row_name(row.name), row.student, row.params) for row in grid.rows]
    return {NETWORKS: [_row(name, s.top1, s.interval, params) for name, s, params in students if s]}


def _row(name: str, top1: float, interval: tuple[float, float], parameters: int) -> Row:
    return {"network": name, "top1": top1, "low95": interval[0], "high95": interval[1], "parameters": parameters}


def _row_name(row: str) -> str:
    return row or "student"  # a grid over seeds alone has one row, without a name


def _metrics(network: NetworkResult) -> dict[str, float]:
    metrics = {
        "top1": network.top1,
        "top5": network.top5,
        "ece": network.ece,
        "parameters": network.params,
        "flops": network.flops,
        "train_flops": network.train_flops,
    }
    if not network.measured:
        metrics |= {"top1": None, "ece": None}
    return {name: value for name, value in metrics.items() if value is not None}
