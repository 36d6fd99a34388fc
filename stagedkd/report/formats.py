"""Write the results of a grid as CSV and LaTeX."""

from __future__ import annotations

import csv
import io

from stagedkd.report.comparison import Comparison, p_text
from stagedkd.report.grid import TIDY_COLUMNS, GridResults, Summary, tidy_rows


def as_csv(grid: GridResults) -> str:
    """Return tidy rows: a line for each network of each cell, a column for each axis. Fractions are in 0..1."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*grid.plans.axes, *TIDY_COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(tidy_rows(grid))
    return text.getvalue()


def as_latex(grid: GridResults) -> str:
    """Return a booktabs table with a row for each setting: top-1 in percent with its 95% interval, and the difference
    between the students and the baseline's in points."""
    rows = grid.rows
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
        cells = [_escaped(row.labels[axis]) for axis in grid.axes]
        cells += [
            str(row.student.n) if row.student else "0",
            _summary_text(row.student),
            _summary_text(row.teacher),
        ]
        cells += [_summary_text(row.control)] if with_control else []
        cells += [f"{row.params:,}" if row.student else "--"]
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
    lines = [f"% differences: students minus those of {grid.baseline_row.name}, {how}"]
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
