"""A grid's results as CSV and LaTeX."""

from __future__ import annotations

import csv
import io

from stagedkd.report.comparison import Comparison, p_text
from stagedkd.report.grid import TIDY, GridResults, Summary, tidy


def as_csv(found: GridResults) -> str:
    """Tidy rows: a line for every network of every cell, a column for every axis. Shares in 0..1."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*found.plans.axes, *TIDY], lineterminator="\n")
    writer.writeheader()
    writer.writerows(tidy(found))
    return text.getvalue()


def as_latex(found: GridResults) -> str:
    """A booktabs table: a row for every setting, top-1 in percent with its 95% interval, and the students' difference
    to the baseline's in points."""
    rows = found.rows
    with_control = any(row.control for row in rows)
    heads = [*found.axes, "seeds", "student", "teacher", *(["control"] if with_control else []), "parameters"]
    heads += ["difference", "p (Holm)"] if found.comparisons else []
    lines = [
        f"% {found.plans.name}: top-1 in percent on the {found.split} split; 95% intervals: {found.intervals}",
        *_about(found),
        rf"\begin{{tabular}}{{{'l' * len(found.axes)}{'r' * (len(heads) - len(found.axes))}}}",
        r"\toprule",
        " & ".join(_plain(head) for head in heads) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        cells = [_plain(row.labels[axis]) for axis in found.axes]
        cells += [str(row.student.seeds) if row.student else "0", _latex(row.student), _latex(row.teacher)]
        cells += [_latex(row.control)] if with_control else []
        cells += [f"{row.params:,}" if row.student else "--"]
        cells += _compared(found.comparisons.get(row.name)) if found.comparisons else []
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex(found: Summary | None) -> str:
    if found is None:
        return "--"
    low, high = found.interval
    return f"{100 * found.top1:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _about(found: GridResults) -> list[str]:
    if not found.comparisons:
        return []
    how = "in points with BCa 95% intervals, paired over seeds; sign-flip tests, corrected by Holm"
    return [f"% differences: students less those of {found.baseline_row.name}, {how}"]


def _compared(found: Comparison | None) -> list[str]:
    if found is None or found.paired is None:
        return ["--", "--"]
    mean, *edges = (f"${100 * share:+.1f}$" for share in (found.paired.mean, *(found.paired.interval or ())))
    tested = "--" if found.p_holm is None else p_text(found.p_holm).replace("<", "$<$")
    return [f"{mean} [{', '.join(edges)}]" if edges else mean, tested]


_SPECIAL = {sign: "\\" + sign for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _plain(text: str) -> str:
    return text.translate(str.maketrans(_SPECIAL))
