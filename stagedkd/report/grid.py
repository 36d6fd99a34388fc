"""The results of a grid: a row for each setting, aggregated over seeds, and tidy rows, one for each network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any, TypeAlias

from stagedkd.errors import Advice, StoreError, UsageError
from stagedkd.plan.graph import Plan, Plans
from stagedkd.report.collect import collect
from stagedkd.report.comparison import SMALLEST_EFFECT, Comparison, Effort, compare, compute_note, power_notes
from stagedkd.report.results import NetworkResult, Results
from stagedkd.report.units import (
    Counts,
    Scores,
    Summary,
    Unit,
    mean_of,
    over_groups,
    over_seeds,
    read_counts,
    summarize,
)
from stagedkd.spec.fields import nearest
from stagedkd.spec.grid import FOLD, REPEATS, SEED, canonical
from stagedkd.spec.tuned import ALL
from stagedkd.store.store import Store

Pick: TypeAlias = Callable[[Results], NetworkResult | None]
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


@dataclass(frozen=True)
class Row:
    """One setting of all axes but seed and fold. `steps` and `train_flops` (2 x multiply-adds, None where unknown) are
    those of all hops of its first cell; `teacher_flops` are the teacher's. `missing` counts the cells without a result.
    `latency` is the mean of the students', in seconds, None where none was measured. `by_group` is the students' mean
    top-1 for each group, where intervals are over groups; else it is empty."""

    labels: Mapping[str, str]
    student: Summary | None
    teacher: Summary | None
    control: Summary | None
    params: int
    steps: int
    train_flops: int | None
    teacher_flops: int | None
    missing: int
    latency: float | None = None
    by_group: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def name(self) -> str:
        """The labels of all axes of the row, such as recipe=kd,student=w8."""
        return ",".join(f"{axis}={label}" for axis, label in self.labels.items())


@dataclass(frozen=True)
class GridResults:
    """The results of a grid. `cells` maps each finished cell to its results, `missing` each other cell to the reason.
    `baseline` is the number of the row that the others are compared with. `counts` are the right clips of each group,
    by cell and network, where folds take turns; else it is empty."""

    plans: Plans
    cells: Mapping[str, Results]
    missing: Mapping[str, str]
    baseline: int = 0
    counts: Mapping[str, Mapping[str, Counts]] = field(default_factory=dict[str, Mapping[str, Counts]])

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the rows: all axes but seed and fold."""
        return _axes(self.plans)

    @property
    def unit(self) -> Unit:
        """What intervals and tests are made over: groups where folds take turns, else seeds."""
        return "group" if FOLD in self.plans.axes else "seed"

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows, one for each setting, in the order of the grid."""
        groups = settings(self.plans).items()
        return tuple(self._row(dict(zip(self.axes, at, strict=True)), names) for at, names in groups)

    def _row(self, labels: Mapping[str, str], names: list[str]) -> Row:
        results = [self.cells[name] for name in names if name in self.cells]
        first = results[0] if results else None
        return Row(
            labels,
            self._summary(names, lambda r: r.student),
            self._summary(names, lambda r: r.teacher),
            self._summary(names, lambda r: r.control),
            first.student.params if first else 0,
            sum(n.steps for n in first.hops) if first else 0,
            first and first.train_flops,
            first and first.teacher.train_flops,
            len(names) - len(results),
            _mean([r.student.latency for r in results]),
            self._by_group(names),
        )

    def _by_group(self, names: list[str]) -> dict[str, float]:
        if self.unit == "seed":
            return {}
        scores = self._scores(self._networks(names, lambda r: r.student))
        return {group: mean_of(repeats) for group, repeats in sorted(scores.items())}

    @property
    def baseline_row(self) -> Row:
        """The row that the others are compared with."""
        return self.rows[self.baseline]

    @cached_property
    def comparisons(self) -> Mapping[str, Comparison]:
        """The comparison of every other row's students with the baseline's, paired over units, by the row's name."""
        groups = list(zip(self.rows, settings(self.plans).values(), strict=True))
        students = {row.name: self._scores(self._networks(names, lambda r: r.student)) for row, names in groups}
        efforts = {row.name: self._effort(row, names) for row, names in groups}
        return compare(students, self.baseline_row.name, self.primary, efforts, self.unit)

    @property
    def primary(self) -> str:
        """The row of the one comparison that was declared; "" if none was, or if the baseline is another one."""
        declared = self.plans.declared
        if declared is None or declared.baseline != self.baseline_row.name:
            return ""
        return declared.primary if any(row.name == declared.primary for row in self.rows) else ""

    def _effort(self, row: Row, names: list[str]) -> Effort:
        """Return what a setting was given. Trainings to tune are known where the spec takes a tuned file."""
        first = next((self.cells[name] for name in names if name in self.cells), None)
        tuned = self.plans.tuned.get(row.name or ALL)
        return Effort(row.train_flops, first and first.labels_behind, tuned.trainings if tuned else None)

    def _networks(self, names: list[str], pick: Pick) -> dict[str, NetworkResult]:
        """Return one network of each finished cell of a setting, by cell."""
        found = {name: pick(self.cells[name]) for name in names if name in self.cells}
        return {name: network for name, network in found.items() if network is not None}

    def _scores(self, networks: Mapping[str, NetworkResult]) -> Scores:
        """Return the scores of one network of a setting, given by cell."""
        labels = self.plans.labels
        at = {name: (labels[name].get(SEED, ""), labels[name].get(FOLD, "")) for name in networks}
        by_repeat = {at[name]: network for name, network in networks.items()}
        if self.unit == "group":
            return over_groups(by_repeat, {at[name]: self.counts.get(name, {}) for name in networks})
        clips = {name: self.cells[name].data["clips"][self.cells[name].split] for name in networks}
        return over_seeds(by_repeat, {at[name]: count for name, count in clips.items()})

    def _summary(self, names: list[str], pick: Pick) -> Summary | None:
        networks = self._networks(names, pick)
        return summarize(self._scores(networks), {network.key: network.dead for network in networks.values()})

    @property
    def intervals(self) -> str:
        """How the 95% intervals are computed, in words."""
        counts = {row.student.n for row in self.rows if row.student}
        wilson = f"one {self.unit}: Wilson's, clips taken as independent"
        if counts <= {1}:
            return wilson
        *names, last = self.drawn_once or ("",)
        given = f", given one draw of {', '.join(names)}{' and ' * bool(names)}{last}" if last else ""
        over = "seeds" if self.unit == "seed" else "groups of clips, each the mean of its seeds"
        return f"Student's over {over}{given}" + ("; with " + wilson if 1 in counts else "")

    @cached_property
    def drawn_once(self) -> tuple[str, ...]:
        """What all seeds of each setting (and fold) have in common, of data, labels and teacher: intervals say nothing
        about other draws of these. Folds are made of one data set, which needs no word."""
        repeated: dict[tuple[str, ...], list[Plan]] = {}
        for name, plan in self.plans.cells.items():
            at = tuple(label for axis, label in self.plans.labels[name].items() if axis != SEED)
            repeated.setdefault(at, []).append(plan)
        groups = repeated.values()
        return tuple(
            name
            for name in ("data", "labels", "teacher")[self.unit == "group" :]
            if all(len({plan.stage(name).identity for plan in plans}) == 1 for plans in groups)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes that a reader must know, each once."""
        rows = [note for result in self.cells.values() for note in result.notes]
        rows += [f"cells {a} and {b} are the same experiment" for a, b in self.plans.twins]
        rows += [f"no result for {name}: {reason}" for name, reason in self.missing.items()]
        return tuple(dict.fromkeys([*rows, *self.comparison_notes]))

    @property
    def comparison_notes(self) -> tuple[str, ...]:
        """The limits of the comparisons: too few seeds, unequal compute, a baseline without results."""
        rows = list(power_notes(self.comparisons, self.unit))
        if self.comparisons and self.baseline_row.student is None:
            rows.append(f"the baseline {self.baseline_row.name} has no result; choose another with --baseline")
        declared = self.plans.declared
        if declared is not None and self.comparisons and not self.primary:
            what = f"the declared comparison, {declared.primary} with {declared.baseline}, is not shown"
            rows.append(f"{what}: every comparison here is exploratory")
        elif declared is not None and len(self.comparisons) > 1:
            rows.append(f"one comparison was declared, {declared.primary} with {declared.baseline}; it is tested alone")
        rows.append(compute_note({row.name: row.train_flops for row in self.rows}, self.baseline_row.name))
        return tuple(filter(None, rows))

    def _repr_html_(self) -> str:
        """The tables of the terminal, for notebooks."""
        from stagedkd.report.notebook import grid_html

        return grid_html(self)

    @property
    def split(self) -> str:
        """The splits that the networks were evaluated on."""
        return " and ".join(sorted({result.split for result in self.cells.values()}))


def _axes(plans: Plans) -> tuple[str, ...]:
    return tuple(name for name in plans.axes if name not in REPEATS)


def settings(plans: Plans) -> dict[tuple[str, ...], list[str]]:
    """Map each setting (the labels of all axes but seed and fold) to the names of its cells, in the grid's order."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, labels in plans.labels.items():
        groups.setdefault(tuple(labels[axis] for axis in _axes(plans)), []).append(name)
    return groups


def find_baseline(plans: Plans, text: str) -> int:
    """Return the number of the one row that `text`, such as `axis=label,...`, picks. An empty text picks the one that
    the spec declares, else the first.

    Raises:
        UsageError: it picks no row, or several.
    """
    axes = _axes(plans)
    rows = [dict(zip(axes, at, strict=True)) for at in settings(plans)]
    wanted: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, sign, label = (piece.strip() for piece in part.partition("="))
        if not sign or name not in axes:
            message = f"the rows have no axis '{name}'" if sign else f"{part.strip()!r} is not of the form axis=label"
            raise UsageError(f"--baseline {text}: {message}", hint=f"the axes of the rows are {', '.join(axes)}")
        known = dict.fromkeys(row[name] for row in rows)
        wanted[name] = canonical(label, known)
        if wanted[name] not in known:
            raise UsageError(f"--baseline {text}: axis '{name}' has no '{label}'", hint=nearest(label, known))
    picked = [i for i, row in enumerate(rows) if wanted.items() <= row.items()] if text else [_declared(plans, rows)]
    if len(picked) != 1:
        names = [",".join(f"{a}={b}" for a, b in rows[i].items()) for i in picked or range(len(rows))]
        some = "\n    ".join(names[:12]) + ("\n    ..." if len(names) > 12 else "")
        count = f"{len(picked)} rows" if picked else "no row"
        raise UsageError(f"--baseline {text} picks {count}", hint=f"name one of\n    {some}")
    return picked[0]


def _declared(plans: Plans, rows: list[dict[str, str]]) -> int:
    """Return the number of the row that the spec declares as the baseline; that of the first row if it has none."""
    names = [",".join(f"{axis}={label}" for axis, label in row.items()) for row in rows]
    baseline = plans.declared.baseline if plans.declared else ""
    return names.index(baseline) if baseline in names else 0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def collect_grid(plans: Plans, store: Store, baseline: str = "") -> GridResults:
    """Read what the store has of a grid. `baseline` picks the row to compare with, as `find_baseline` does.

    Raises:
        StoreError: the store has no finished cell.
        UsageError: `baseline` picks no row, or several.
    """
    number = find_baseline(plans, baseline)
    cells: dict[str, Results] = {}
    missing: dict[str, str] = {}
    counts: dict[str, Mapping[str, Counts]] = {}
    for name, plan in plans.cells.items():
        try:
            found = collect(plan, store)
            if FOLD in plans.axes:
                counts[name] = read_counts(plan, store)
            cells[name] = found
        except StoreError as error:
            missing[name] = error.message
    if not cells:
        name, reason = next(iter(missing.items()))
        raise StoreError(f"no cell has finished; {name or plans.name}: {reason}", hint=Advice("run", "run"))
    return GridResults(plans, cells, missing, number, counts)


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
    """Return the values of a grid's metrics.json: the rows, and the student's top-1 in each cell."""
    return {
        "name": grid.plans.name,
        "axes": {name: list(labels) for name, labels in grid.plans.axes.items()},
        "split": grid.split,
        "intervals": grid.intervals,
        "rows": [
            {
                **row.labels,
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
            for row in grid.rows
        ],
        "baseline": dict(grid.baseline_row.labels),
        "primary": grid.primary or None,
        "smallest_effect": SMALLEST_EFFECT,
        "cells": {name: {"student": results.student.top1} for name, results in grid.cells.items()},
        "missing": dict(grid.missing),
        "notes": list(grid.notes),
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
