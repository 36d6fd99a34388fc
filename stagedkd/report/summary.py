"""What DVC shows of results: summary.json for `dvc metrics` and `dvc exp show`, tables for `dvc plots`.

Nothing volatile is in them, such as times: the same artifacts give the same bytes, whatever machine made them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from stagedkd.dvc.pipeline import CLASSES, NETWORKS
from stagedkd.report.collect import NetworkResult, Results
from stagedkd.report.grid import GridResults

Row: TypeAlias = dict[str, "str | float"]


def summary(results: Results) -> dict[str, Any]:
    """Figures by network, the student first, and the shares of right labels by round of refinement. Shares in 0..1."""
    others = [network for network in results.networks if network is not results.student]
    values: dict[str, Any] = {network.name: _figures(network) for network in (results.student, *others)}
    for made in results.refinements:
        figures = {"right_before": made.before, "right_after": made.after, "coverage": made.coverage}
        values[made.name] = {name: share for name, share in figures.items() if share is not None}
    return values


def grid_summary(found: GridResults) -> dict[str, Any]:
    """The students' mean top-1 in 0..1 with its 95% interval, by row of the grid."""
    return {
        _named(row.name): {
            "top1": row.student.top1,
            "low95": row.student.interval[0],
            "high95": row.student.interval[1],
            "seeds": row.student.seeds,
            "parameters": row.params,
        }
        for row in found.rows
        if row.student
    }


def plots(results: Results) -> dict[str, list[Row]]:
    """The files of `dvc plots`: top-1 by network, and the student's by class."""
    networks = [_row(n.name, n.top1, n.interval, n.params) for n in results.networks]
    classes: list[Row] = [{"class": name, "top1": share} for name, share in results.student.per_class.items()]
    return {NETWORKS: networks, CLASSES: classes}


def grid_plots(found: GridResults) -> dict[str, list[Row]]:
    """As `plots`, for the students of a grid's rows."""
    made = [(_named(row.name), row.student, row.params) for row in found.rows]
    return {NETWORKS: [_row(name, s.top1, s.interval, params) for name, s, params in made if s]}


def _row(name: str, top1: float, interval: tuple[float, float], parameters: int) -> Row:
    return {"network": name, "top1": top1, "low95": interval[0], "high95": interval[1], "parameters": parameters}


def _named(row: str) -> str:
    return row or "student"  # the only row of a grid over seeds


def _figures(network: NetworkResult) -> dict[str, float]:
    figures = {
        "top1": network.top1,
        "top5": network.top5,
        "ece": network.ece,
        "parameters": network.params,
        "flops": network.flops,
        "train_flops": network.train_flops,
    }
    return {name: value for name, value in figures.items() if value is not None}
