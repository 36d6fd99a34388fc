"""Write the results of a grid as CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from stagedkd.report.comparison import SMALLEST_EFFECT, Comparison, p_text
from stagedkd.report.grid import GridResults, Row
from stagedkd.report.units import Summary, Unit

TIDY_COLUMNS = (
    "network",
    "arch",
    "split",
    "views",
    "clips",
    "top1",
    "top1_low95",
    "top1_high95",
    "top5",
    "ece",
    "params",
    "flops",
    "steps",
    "train_flops",
    "labels",
    "weights",
    "declared",
    "labelled_clips",
    "training_clips",
    "seconds",
    "latency",
    "dead",
    "key",
)


def as_csv(grid: GridResults) -> str:
    """Return tidy rows: a line for each network of each cell, a column for each axis. Fractions are in 0..1."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*grid.plans.axes, *TIDY_COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(tidy_rows(grid))
    return text.getvalue()


def tidy_rows(grid: GridResults) -> Iterator[dict[str, Any]]:
    """Yield a row for each network of each finished cell: the labels of the axes, then `TIDY_COLUMNS`."""
    for name, results in grid.cells.items():
        for network in results.networks:
            low, high = network.interval
            values = network.__dict__ | {
                "network": network.name,
                "split": results.split,
                "views": results.views,
                "top1_low95": low,
                "top1_high95": high,
                **({} if network.measured else dict.fromkeys(("top1", "ece", "top1_low95", "top1_high95"))),
                "clips": results.data["clips"][results.split],
            }
            yield {**grid.plans.labels[name], **{key: values[key] for key in TIDY_COLUMNS}}


def as_json(grid: GridResults) -> dict[str, Any]:
    """Return the values of a grid's metrics.json: the rows, their means, and the student's top-1 in each cell."""
    return {
        "name": grid.plans.name,
        "axes": {name: list(labels) for name, labels in grid.plans.axes.items()},
        "split": grid.split,
        "intervals": grid.intervals,
        "rows": [_row_json(grid, row) for row in grid.rows],
        "means": [_row_json(grid, row) for row in grid.means],
        "baseline": dict(grid.baseline),
        "primary": grid.primary or None,
        "smallest_effect": SMALLEST_EFFECT,
        "cells": {name: {"student": results.student.top1} for name, results in grid.cells.items()},
        "missing": dict(grid.missing),
        "notes": list(grid.notes),
    }


def _row_json(grid: GridResults, row: Row) -> dict[str, Any]:
    return {
        **row.labels,
        **({"over": row.over} if row.over > 1 else {}),
        "student": _summary_json(row.student, grid.unit),
        "teacher": _summary_json(row.teacher, grid.unit),
        "control": _summary_json(row.control, grid.unit),
        "params": row.params,
        "steps": row.steps,
        "train_flops": row.train_flops,
        "teacher_train_flops": row.teacher_flops,
        "missing": row.missing,
        **({"by_group": dict(row.by_group)} if row.by_group else {}),
        "comparison": grid.comparisons[row.name].as_json() if row.name in grid.comparisons else None,
    }


def _summary_json(summary: Summary | None, unit: Unit) -> dict[str, Any] | None:
    return summary and {
        "top1": summary.top1,
        "interval95": list(summary.interval),
        f"{unit}s": summary.n,
        "iqm": summary.iqm,
        "failed_seeds": summary.failed,
        "dead_channels": summary.dead,
    }


def as_latex(grid: GridResults) -> str:
    """Return a booktabs table with a row for each setting: top-1 in percent with its 95% interval, and the difference
    between the students and the baseline's in points."""
    rows = (*grid.rows, *grid.means)
    with_control = any(row.control for row in rows)
    heads = [*grid.axes, f"{grid.unit}s", "student", "teacher", *(["control"] if with_control else []), "parameters"]
    heads += ["difference", "p (Holm)"] if grid.comparisons else []
    lines = [
        f"% {grid.plans.name}: top-1 in percent on the {grid.split} split; 95% intervals: {grid.intervals}",
        *_comparison_comment(grid),
        rf"\begin{{tabular}}{{{'l' * len(grid.axes)}{'r' * (len(heads) - len(grid.axes))}}}",
        r"\toprule",
        " & ".join(_escaped(head) for head in heads) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        cells = [_escaped(row.label(axis)) for axis in grid.axes]
        cells += [
            str(row.student.n) if row.student else "0",
            _summary_text(row.student),
            _summary_text(row.teacher),
        ]
        cells += [_summary_text(row.control)] if with_control else []
        cells += [f"{row.params:,}" if row.params else "--"]
        cells += _comparison_cells(grid.comparisons.get(row.name)) if grid.comparisons else []
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _summary_text(summary: Summary | None) -> str:
    if summary is None:
        return "--"
    low, high = summary.interval
    return f"{100 * summary.top1:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _comparison_comment(grid: GridResults) -> list[str]:
    if not grid.comparisons:
        return []
    how = f"in points with BCa 95% intervals, paired over {grid.unit}s; sign-flip tests, corrected by Holm"
    lines = [f"% differences: students minus those of {grid.baseline_name}, {how}"]
    if grid.primary:
        lines.append(f"% {grid.primary} is the primary comparison, tested alone; the others are exploratory")
    unequal = {name: c.unequal for name, c in grid.comparisons.items() if c.unequal}
    return lines + [f"% {name} has {', '.join(parts)}" for name, parts in unequal.items()]


def _comparison_cells(comparison: Comparison | None) -> list[str]:
    if comparison is None or comparison.paired is None:
        return ["--", "--"]
    pair, p = comparison.paired, comparison.p_holm
    mean, *edges = (f"${100 * value:+.1f}$" for value in (pair.mean, *(pair.interval or ())))
    test = "--" if p is None else p_text(p).replace("<", "$<$")
    return [f"{mean} [{', '.join(edges)}]" if edges else mean, test]


_SPECIAL = {sign: "\\" + sign for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _escaped(text: str) -> str:
    return text.translate(str.maketrans(_SPECIAL))
