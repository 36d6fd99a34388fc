"""The page of a grid: its settings, what they cost, and how they compare with the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stagedkd.report.comparison import SMALLEST_EFFECT, flops_text, p_text, points
from stagedkd.report.grid import GridResults, Row
from stagedkd.report.headline import pct
from stagedkd.report.page import Page, links, rendered, without_folders
from stagedkd.report.plots.settings import costs, differences_plot, front, pareto_plot, settings_plot
from stagedkd.report.tables import DASH, Cell, Link, Table, maybe
from stagedkd.report.units import Summary


def grid_page(
    grid: GridResults,
    looks: str = "",
    pages: Mapping[str, str] | None = None,
    files: Sequence[Path] = (),
    root: Path | None = None,
    *,
    prints: bool = True,
) -> Page:
    """Make the page of a grid.

    Args:
        looks: a note on looks at the test split. pages: the addresses of the pages of cells, by the cell's name.
        files: those that lie beside the page, relative to it. root: the project's folder, which the page does not name.
        prints: the plots for print lie beside the page.
    """
    plot, differences = settings_plot(grid), differences_plot(grid)
    paretos = [pareto_plot(grid, cost) for cost in costs(grid)]
    values = {
        "r": grid,
        "prints": prints,
        "lead": grid_headline(grid),
        "notes": [without_folders(note, root or Path()) for note in (*grid.notes, looks) if note],
        "plot": plot,
        "paretos": paretos,
        "differences": differences,
        "settings": settings_table(grid),
        "effort": effort_table(grid),
        "comparison": comparison_table(grid),
        "tested": sum(found.p_holm is not None and found.role != "primary" for found in grid.comparisons.values()),
        "groups": groups_table(grid),
        "cells": cells_table(grid, pages or {}),
        "files": links(files),
        "smallest": points(SMALLEST_EFFECT),
    }
    drawn = (plot, *paretos, *((differences,) if differences else ()))
    return Page(rendered("grid.html.j2", values), drawn)


def grid_headline(grid: GridResults) -> tuple[str, ...]:
    """Return the sentences: the best setting, and what its comparison with the baseline shows."""
    rows = [(row.student.top1, row, row.student) for row in grid.rows if row.student]
    if not rows:
        return ("No setting has a result.",)
    _, best, student = max(rows, key=lambda each: each[0])
    name = best.name or "the student"
    over = f"{student.n} {grid.unit}s" if student.n > 1 else f"one {grid.unit}"
    interval = f"95% interval {pct(student.interval[0])} to {pct(student.interval[1])}"
    if len(grid.rows) == 1:
        return (f"The students have {pct(student.top1)} top-1 on average over {over} ({interval}).",)
    if len(rows) == 1:
        return (
            f"Of {len(grid.rows)} settings, {name} alone has a result: {pct(student.top1)} over {over} ({interval}).",
        )
    some = "" if len(rows) == len(grid.rows) else " that have a result"
    first = f"Of {len(rows)} settings{some}, {name} has the highest mean top-1: {pct(student.top1)} over {over}"
    declared = [row for row in (*grid.rows, *grid.means) if row.name == grid.primary and row is not best]
    return f"{first} ({interval}).", _beside_baseline(grid, best), *(_declared(grid, row) for row in declared)


def _declared(grid: GridResults, primary: Row) -> str:
    """Say what the comparison shows that was declared, where the best setting is another one."""
    comparison = grid.comparisons[primary.name]
    over = f"Over {primary.over} settings of the other axes, " if primary.over > 1 else "As was declared, "
    over += primary.name
    if comparison.paired is None:
        return f"{over} cannot be compared with {grid.baseline_name}: {comparison.remark}."
    shown = comparison.verdict in ("better", "worse")
    verdict = f"is {comparison.verdict} than" if shown else "is not shown to differ from"
    p = "" if comparison.p_holm is None else f" (p {p_text(comparison.p_holm)})"
    return f"{over} {verdict} {grid.baseline_name}: {100 * comparison.paired.mean:+.1f} points{p}."


def _beside_baseline(grid: GridResults, best: Row) -> str:
    """Say what the comparison of the best setting with the baseline shows."""
    base, comparison = grid.baselines.get(best.name), grid.comparisons.get(best.name)
    if grid.is_baseline(best):
        if grid.is_one_row:
            return "It is the baseline that the others are compared with."
        return (
            f"It is a baseline: settings that differ from it in {', '.join(grid.baseline)} alone are compared with it."
        )
    if base is None or comparison is None or comparison.paired is None:
        return f"It cannot be compared with the baseline, {base.name if base else grid.baseline_name}."
    pair = comparison.paired
    mean = f"{100 * pair.mean:+.1f} points over {pair.n} paired {grid.unit}{'s' * (pair.n != 1)}"
    if comparison.verdict in ("better", "worse"):
        how = "" if comparison.role == "primary" else ", corrected for all comparisons"
        return (
            f"It is {comparison.verdict} than the baseline, {base.name}: {mean} (p {p_text(comparison.p_holm)}{how})."
        )
    return f"That it is better than the baseline, {base.name}, is not shown: {mean}."


def settings_table(grid: GridResults) -> Table:
    """The settings: seeds or groups, and the top-1 of each network with its interval."""
    control = any(row.control for row in grid.rows)

    def row(title: str, r: Row) -> list[str]:
        count = f"{r.student.n if r.student else 0}" + (f" ({r.missing} missing)" if r.missing else "")
        tops = [_summary(s) for s in (r.student, r.teacher, *((r.control,) if control else ()))]
        mark = " (baseline)" if grid.comparisons and grid.is_baseline(r) else ""
        return [f"{title}{mark}", *(r.label(axis) for axis in grid.axes), count, *tops]

    heads = ["setting", *grid.axes, f"{grid.unit}s", "student", "teacher", *(["control"] if control else [])]
    rows = [row(title, r) for title, r in grid.titled]
    return Table("Top-1 in percent with 95% intervals", heads, rows, range(1, 1 + len(grid.axes)))


def effort_table(grid: GridResults) -> Table:
    """The settings: how steady they are over seeds, and what they took."""
    fronts = {cost.name: front(grid, cost) for cost in costs(grid)}

    def row(number: int, r: Row) -> list[str]:
        s = r.student
        best = ", ".join(name for name, numbers in fronts.items() if number in numbers)
        return [
            f"{number + 1}",
            f"{100 * s.iqm:.1f}" if s else DASH,
            f"{s.failed}" if s else DASH,
            maybe(s.dead if s else None, pct),
            f"{r.params:,}" if s else DASH,
            f"{r.steps:,}" if s else DASH,
            flops_text(r.train_flops),
            flops_text(r.teacher_flops),
            maybe(r.latency, lambda value: f"{1000 * value:.1f} ms"),
            *([best or DASH] if fronts else []),
        ]

    heads = ["setting", "IQM", "failed seeds", "dead channels", "parameters", "steps of all hops"]
    heads += ["compute of all hops", "of the teacher", "latency", *(["on the front of"] if fronts else [])]
    return Table("Steadiness and cost", heads, [row(n, r) for n, r in enumerate(grid.rows)], (9,))


def comparison_table(grid: GridResults) -> Table | None:
    """The paired differences from the baseline; None where there is nothing to compare."""
    if not grid.comparisons:
        return None
    rows: list[list[Cell]] = []
    for title, row in grid.titled:
        comparison = grid.comparisons.get(row.name)
        labels = [title, *(row.label(axis) for axis in grid.axes)]
        if comparison is None:
            rows.append([*labels, *[DASH] * 5, "the baseline"])
            continue
        pair = comparison.paired
        span = " to ".join(f"{100 * edge:+.1f}" for edge in pair.interval) if pair and pair.interval else DASH
        mean = f"{100 * pair.mean:+.1f}" if pair else DASH
        tests = [p_text(pair.p if pair else None), p_text(comparison.p_holm)]
        rows.append([*labels, f"{pair.n if pair else 0}", mean, span, *tests, comparison.finding])
    heads = ["setting", *grid.axes, "pairs", "difference", "95% interval", "p"]
    heads += ["p, alone or Holm" if grid.primary else "p, Holm", "finding"]
    texts = (*range(1, 1 + len(grid.axes)), len(heads) - 1)
    return Table(f"Students minus those of {grid.baseline_name}, in points of top-1", heads, rows, texts)


def groups_table(grid: GridResults) -> Table | None:
    """The students' mean top-1 for each group and setting; None where intervals are over seeds."""
    if grid.unit == "seed":
        return None
    groups = sorted({group for row in grid.rows for group in row.by_group})
    rows = [[group, *(maybe(row.by_group.get(group), pct) for row in grid.rows)] for group in groups]
    return Table("Students' mean top-1 by group", ("group", *(f"{n + 1}" for n in range(len(grid.rows)))), rows)


def cells_table(grid: GridResults, pages: Mapping[str, str]) -> Table:
    """The cells: the student's top-1 and artifact, or why there is none, with links to the pages of cells."""
    rows: list[list[Cell]] = []
    for name, plan in grid.plans.cells.items():
        title = name or plan.name
        first = Link(title, pages[name]) if name in pages else title
        known = name in grid.cells
        top1 = pct(grid.cells[name].student.top1) if known else DASH
        rows.append([first, top1, plan.stage("student").folder if known else grid.missing[name]])
    return Table("Cells", ("cell", "student", "artifact"), rows, (2,))


def _summary(summary: Summary | None) -> str:
    if summary is None:
        return DASH
    low, high = summary.interval
    return f"{100 * summary.top1:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
