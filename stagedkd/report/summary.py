"""What DVC shows of results: summary.json for `dvc metrics` and `dvc exp show`, CSV files for `dvc plots`.

Nothing volatile is in them, such as times: the same artifacts give the same bytes, whatever machine made them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from stagedkd.plan.dvcfile import CLASSES, NETWORKS
from stagedkd.report.collect import NetworkResult, Results
from stagedkd.report.grid import GridResults, Summary

COLUMNS = ("network", "top1", "low95", "high95", "parameters")


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
        _named(row.name): {"top1": row.student.top1, "low95": row.student.interval[0],
                           "high95": row.student.interval[1], "seeds": row.student.seeds, "parameters": row.params}
        for row in found.rows if row.student
    }  # fmt: skip


def plots(results: Results) -> dict[str, str]:
    """The files of `dvc plots`: top-1 by network, and the student's by class."""
    rows = [(n.name, n.top1, *n.interval, n.params) for n in results.networks]
    classes = [(name, share) for name, share in results.student.per_class.items()]
    return {NETWORKS: _csv(COLUMNS, rows), CLASSES: _csv(("class", "top1"), classes)}


def grid_plots(found: GridResults) -> dict[str, str]:
    """As `plots`, for the students of a grid's rows."""
    made: list[tuple[str, Summary, int]] = [(_named(r.name), r.student, r.params) for r in found.rows if r.student]
    return {NETWORKS: _csv(COLUMNS, [(name, s.top1, *s.interval, params) for name, s, params in made])}


def _named(row: str) -> str:
    return row or "student"  # the only row of a grid over seeds


def _figures(network: NetworkResult) -> dict[str, float]:
    figures = {"top1": network.top1, "top5": network.top5, "ece": network.ece, "parameters": network.params,
               "flops": network.flops, "train_flops": network.train_flops}  # fmt: skip
    return {name: value for name, value in figures.items() if value is not None}


def _csv(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
