"""Tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from stagedkd.plan.graph import Plan, Plans
from stagedkd.plan.key import Key
from stagedkd.report.comparison import Comparison, flops_text, p_text
from stagedkd.report.grid import GridResults
from stagedkd.report.results import LossShares, NetworkResult, Refinement, Results, share_text
from stagedkd.report.units import Summary

STATE_COLOURS = {"hit": "green", "resumable": "yellow", "miss": "cyan", "unlocked": "magenta"}


def plan_table(plan: Plan, states: Mapping[Key, str], why: Mapping[str, str]) -> Table:
    """Return a table of stages with their keys, states (given by identity) and reasons for a miss (given by name)."""
    table = Table("stage", "kind", "key", "state", "inputs", "why", box=None, header_style="bold", pad_edge=False)
    for stage in plan.stages:
        state = states[stage.identity]
        inputs = ", ".join(stage.needs.values())
        coloured = f"[{STATE_COLOURS[state]}]{state}[/]"
        key = stage.key.short if stage.key else "unlocked"
        table.add_row(stage.name, stage.work.kind, key, coloured, inputs, Text(why.get(stage.name, "")))
    return table


def plan_json(plans: Plans, states: Mapping[Key, str], why: Mapping[str, str]) -> dict[str, Any]:
    """Return plans as plain values: the stages, or for a grid its cells, each with its stages."""
    cells = [
        {
            "cell": name,
            "labels": dict(plans.labels[name]),
            "notes": plan.notes,
            "stages": [
                {
                    "stage": s.name,
                    "kind": s.work.kind,
                    "key": s.key,
                    "state": states[s.identity],
                    "needs": dict(s.needs),
                    "why": why.get(s.name, ""),
                    "work": s.work.model_dump(mode="json"),
                }
                for s in plan.stages
            ],
        }
        for name, plan in plans.cells.items()
    ]
    if plans.is_grid:
        return {"name": plans.name, "unique": len(plans.unique), "cells": cells}
    return {"name": plans.name, "notes": cells[0]["notes"], "stages": cells[0]["stages"]}


def grid_plan_lines(plans: Plans, states: Mapping[Key, str]) -> Iterator[str]:
    """Yield the cells with the states of their stages; then the unique stages by kind, and what sharing saves."""
    width = max(len(name) for name in plans.cells)
    for name, plan in plans.cells.items():
        count = Counter(states[stage.identity] for stage in plan.stages)
        yield f"{name:<{width}}  " + ", ".join(f"{count[state]} {state}" for state in STATE_COLOURS if count[state])
    unique, total = plans.unique, sum(len(plan.stages) for plan in plans.cells.values())
    kinds = Counter(stage.work.kind for stage in unique.values())
    yield ""
    yield f"{len(plans.cells)} cells, {total} stages, {len(unique)} of them unique: " + ", ".join(
        f"{count} {kind}" for kind, count in kinds.items()
    )
    alone = sum(stage.work.epochs_run for plan in plans.cells.values() for stage in plan.stages)
    shared = sum(stage.work.epochs_run for stage in unique.values())
    saved = 100 * (1 - shared / alone) if alone else 0.0
    yield f"sharing saves {saved:.0f}% of the training: {shared:,} epochs instead of {alone:,}"
    count = Counter(states[key] for key in unique)
    yield "of the unique stages: " + ", ".join(f"{count[state]} {state}" for state in STATE_COLOURS if count[state])
    for first, second in plans.twins:
        yield f"note: {first} and {second} are the same experiment"


def grid_tables(grid: GridResults) -> Iterator[Table]:
    """Yield the table of settings; then, if there are several, that of their comparison with the baseline."""
    yield grid_table(grid)
    if grid.comparisons:
        yield comparison_table(grid)


def grid_table(grid: GridResults) -> Table:
    """Return a table with a row for each setting of the axes, aggregated over seeds and folds, and for each mean."""
    rows = (*grid.rows, *grid.means)
    table = Table(*grid.axes, box=None, header_style="bold", pad_edge=False)
    names = ["student", "teacher", *(["control"] if any(row.control for row in rows) else [])]
    sizes = ("parameters", "compute of all hops", "of the teacher")
    for column in (f"{grid.unit}s", *names, "IQM", "failed", "dead", *sizes):
        table.add_column(column, justify="right")
    for row in rows:
        summaries = [_summary_text(getattr(row, name)) for name in names]
        count = (str(row.student.n) if row.student else "0") + (f" ({row.missing} missing)" if row.missing else "")
        labels = [row.label(axis) for axis in grid.axes]
        compute = (flops_text(row.train_flops), flops_text(row.teacher_flops))
        spread = _spread_cells(row.student)
        table.add_row(*labels, count, *summaries, *spread, f"{row.params:,}" if row.params else "-", *compute)
    return table


def _spread_cells(summary: Summary | None) -> tuple[str, str, str]:
    """The interquartile mean of a setting's students, the number of failed seeds, and the share of dead channels."""
    if summary is None:
        return "-", "-", "-"
    dead = "-" if summary.dead is None else f"{100 * summary.dead:.0f}%"
    return f"{100 * summary.iqm:.1f}", str(summary.failed), dead


def comparison_table(grid: GridResults) -> Table:
    """Return a table of the differences between each setting's students and the baseline's, in points of top-1."""
    title = f"\nstudents minus those of {grid.baseline_name}, in points of top-1, paired over {grid.unit}s"
    table = Table(*grid.axes, box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in ("pairs", "difference", "95% BCa", "p", "p, alone or Holm" if grid.primary else "p, Holm"):
        table.add_column(column, justify="right")
    table.add_column("finding")
    for row in (*grid.rows, *grid.means):
        labels = [row.label(axis) for axis in grid.axes]
        comparison = grid.comparisons.get(row.name)
        cells = _comparison_cells(comparison) if comparison else ("", "", "", "", "", "the baseline")
        table.add_row(*labels, *cells)
    return table


def _comparison_cells(comparison: Comparison) -> tuple[str, ...]:
    pair = comparison.paired
    if pair is None:
        return "0", "-", "-", "-", "-", comparison.finding
    interval = "-" if pair.interval is None else f"{100 * pair.interval[0]:+.1f} to {100 * pair.interval[1]:+.1f}"
    p_values = (p_text(pair.p), p_text(comparison.p_holm))
    return str(pair.n), f"{100 * pair.mean:+.1f}", interval, *p_values, comparison.finding


def _summary_text(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    low, high = summary.interval
    return f"{100 * summary.top1:.1f} \\[{100 * low:.1f} to {100 * high:.1f}]"


def results_tables(results: Results, width: int = 160) -> Iterator[Table]:
    """Yield the table of networks, in `width` characters; then those of the shares of the losses and of label
    refinement, if there are any."""
    yield results_table(results, width)
    if results.loss_shares:
        yield shares_table(results.loss_shares)
    if results.refinements:
        yield refinement_table(results.refinements)


def shares_table(rows: Sequence[LossShares]) -> Table:
    """Return a table of the share of each weighted loss in the total, by phase."""
    losses = list(dict.fromkeys(name for row in rows for name in row.shares))
    title = "\nlosses: share of the total"  # no wider than the table
    table = Table("network", "phase", box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for name in losses:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.network, row.phase, *(share_text(row.shares.get(name)) for name in losses))
    return table


def refinement_table(rounds: Iterable[Refinement]) -> Table:
    """Return a table of what each round did to the labels, measured against the hidden truth."""
    title = "\nlabel refinement, measured against the hidden truth"
    table = Table("round", "outcome", box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in (
        "right before",
        "right after",
        "coverage",
        "precision",
        "ECE",
        "NLL",
        "wrong to right",
        "right to wrong",
        "lowest recall",
    ):
        table.add_column(column, justify="right")
    for r in rounds:
        worst = f"{r.worst} {_percent(r.recall[r.worst])}" if r.worst else "-"
        fractions = [_percent(fraction) for fraction in (r.before, r.after, r.coverage, r.precision)]
        measured = ["-" if value is None else f"{value:.3f}" for value in (r.ece, r.nll)]
        flips = (f"{r.wrong_to_right:,}", f"{r.right_to_wrong:,}")
        table.add_row(str(r.round), Text(r.outcome), *fractions, *measured, *flips, Text(worst))
    return table


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}%"


NARROW = ("compute", "MFLOPs", "size", "latency", "parameters")  # columns that a narrow terminal lacks, in this order


def results_table(results: Results, width: int = 160) -> Table:
    """Return a table with a row for each network: teacher, assistants, student, control. Columns that do not fit into
    `width` characters are left out, and the table says so."""
    rows = [_network_cells(network, results.teacher) for network in results.networks]
    columns, dropped = list(rows[0]), list[str]()
    for column in NARROW:
        if sum(max(len(column), *(len(row[column]) for row in rows)) + 2 for column in columns) - 2 > width:
            columns.remove(column)
            dropped.append(column)
    caption = f"too narrow for {', '.join(dropped)}: see the report" if dropped else None
    table = Table(box=None, header_style="bold", pad_edge=False, caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "network" else "right")
    for network, row in zip(results.networks, rows, strict=True):
        table.add_row(*(Text(row[c]) for c in columns), style="bold" if network is results.student else "")
    return table


def _network_cells(n: NetworkResult, teacher: NetworkResult) -> dict[str, str]:
    low, high = n.interval
    return {
        "network": n.name,
        "top-1": f"{100 * n.top1:.1f}%" if n.measured else "-",
        "95% interval": f"{100 * low:.1f} to {100 * high:.1f}" if n.measured else "-",
        "parameters": f"{n.params:,}" if n.params else "-",
        "MFLOPs": f"{n.flops / 1e6:,.1f}",
        "smaller": f"{ratio:.1f}x" if (ratio := n.smaller_than(teacher)) is not None else "-",
        "labels used": n.labels_used,
        "latency": "-" if n.latency is None else f"{1000 * n.latency:.1f} ms",
        "size": "-" if n.size is None else decimal(n.size),
        "compute": flops_text(n.train_flops),
    }


def survey_table(counts: Mapping[str, Mapping[str, int]], groups: Mapping[str, int]) -> Table:
    """Return a table of the clips of each class and split, and of the groups of each split."""
    table = Table(box=None, header_style="bold")
    table.add_column("class")
    for split in groups:
        table.add_column(split, justify="right")
    for name, row in counts.items():
        table.add_row(Text(name), *(f"{row[split]:,}" for split in groups))
    table.add_row("all", *(f"{sum(row[s] for row in counts.values()):,}" for s in groups), style="bold")
    table.add_row("groups", *(f"{count:,}" for count in groups.values()), style="dim")
    return table


def survey_lines(survey: Mapping[str, Any]) -> list[str]:
    """Return what else there is to know of a data set besides its counts."""
    empty = [name for name, row in survey["counts"].items() if not row["train"]]
    lines = [f"no training clip for {', '.join(empty)}"] if empty else []
    lines += [f"{survey['unlabelled']:,} clips have no label"] if survey["unlabelled"] else []
    lines += [f"{survey['unused']:,} clips are not in the lists of this split"] if survey["unused"] else []
    copies = survey["duplicates"]
    if copies:
        lines.append(f"{len(copies):,} sets of copies, {survey['leaks']:,} of them in more than one split")
        lines += [f"  {' = '.join(paths)}" for paths in copies[:10]]
    for what, paths in (("listed but missing", survey["missing"]), ("present but not listed", survey["unlisted"])):
        if paths:
            lines.append(f"{len(paths):,} videos {what}")
            lines += [f"  {path}" for path in paths[:10]] + (["  ..."] if len(paths) > 10 else [])
    lines = lines or ["no video is missing, and there are no copies"]
    if survey["left_out"]:
        rows = ", ".join(f"{count:,} {reason}" for reason, count in survey["left_out"].items())
        lines.append(f"{survey['clips']:,} clips; files that are none: {rows}")
    return [*survey["notes"], *lines]


def shapes_tables(
    networks: list[tuple[str, int, int, int]],
    pairs: list[tuple[str, str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]],
) -> list[Table]:
    """Return a table of the sizes of networks (name, parameters, parameters without head, FLOPs per clip) and, if there
    are any, one of the pairs of each hop (hop, number, student and teacher map as C, T, H, W, common grid)."""
    sizes = Table("network", box=None, header_style="bold", pad_edge=False)
    for column in ("parameters", "without head", "MFLOPs per clip"):
        sizes.add_column(column, justify="right")
    for name, params, trunk, flops in networks:
        sizes.add_row(name, f"{params:,}", f"{trunk:,}", f"{flops / 1e6:,.1f}")
    rows = Table("hop", "pair", "student CxTxHxW", "teacher CxTxHxW", "common grid", box=None, header_style="bold")
    for hop, number, student, teacher, grid in pairs:
        rows.add_row(hop, number, *("x".join(map(str, shape)) for shape in (student, teacher, grid)))
    return [sizes, rows] if pairs else [sizes]
