"""The results of a grid: a row for each setting, aggregated over seeds, and what the rows are compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from string import ascii_lowercase
from typing import Literal, TypeAlias

from stagedkd.errors import Advice, StoreError, UsageError
from stagedkd.plan.graph import Plan, Plans
from stagedkd.report.collect import collect
from stagedkd.report.comparison import Comparison, Effort, average, compare, compute_notes, power_notes
from stagedkd.report.results import NetworkResult, Results
from stagedkd.report.units import (
    Counts,
    Scores,
    Summary,
    Unit,
    mean_of,
    over_groups,
    over_seeds,
    pooled,
    read_counts,
    summarize,
)
from stagedkd.spec.declared import Labels
from stagedkd.spec.fields import nearest
from stagedkd.spec.grid import FOLD, REPEATS, SEED, canonical, setting_of
from stagedkd.spec.tuned import ALL
from stagedkd.store.store import Store

PERCENT = re.compile(r"\d+(?:\.\d+)?%")
Role: TypeAlias = Literal["student", "teacher", "control"]


@dataclass(frozen=True)
class Row:
    """One setting of all axes but seed and fold, or the mean `over` several, with labels of some axes alone. `steps`
    and `train_flops` (2 x multiply-adds, None where unknown) are those of all hops of its first cell; `teacher_flops`
    are the teacher's; a mean has what its settings share, else 0 and None. `missing` counts the cells without a result.
    `latency` is the mean of the students', in seconds, None where none was measured. `by_group` is the students' mean
    top-1 for each group, where intervals are over groups; else it is empty."""

    labels: Labels
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
    over: int = 1

    def label(self, axis: str) -> str:
        """The row's label on an axis; a mean says of how many settings it is."""
        return self.labels.get(axis, f"(mean of {self.over})")

    @property
    def name(self) -> str:
        """The labels of all axes of the row, such as recipe=kd,student=w8."""
        return setting_of(self.labels)


@dataclass(frozen=True)
class GridResults:
    """The results of a grid. `cells` maps each finished cell to its results, `missing` each other cell to the reason.
    `baseline` has labels of all axes, those of the row that the others are compared with, or of some axes: then every
    row is compared with the one that has these labels and its own others. `counts` are the right clips of each group,
    by cell and network, where folds take turns; else it is empty."""

    plans: Plans
    cells: Mapping[str, Results]
    missing: Mapping[str, str]
    baseline: Labels
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
        return tuple(self._row(dict(zip(self.axes, at, strict=True)), names) for at, names in self._names.items())

    @cached_property
    def _names(self) -> dict[tuple[str, ...], list[str]]:
        return settings(self.plans)

    def _row(self, labels: Labels, names: list[str]) -> Row:
        results = [self.cells[name] for name in names if name in self.cells]
        first = results[0] if results else None
        scores = self._scores(names, "student")
        return Row(
            labels,
            self._summary(names, "student"),
            self._summary(names, "teacher"),
            self._summary(names, "control"),
            first.student.params if first else 0,
            sum(n.steps for n in first.hops) if first else 0,
            first and first.train_flops,
            first and first.teacher.train_flops,
            len(names) - len(results),
            _mean([r.student.latency for r in results]),
            {group: mean_of(repeats) for group, repeats in sorted(scores.items())} if self.unit == "group" else {},
        )

    @cached_property
    def means(self) -> tuple[Row, ...]:
        """Where the baseline has labels of some axes alone: a row for each combination of labels of these axes, the
        mean of all its rows that can be compared. Of a single one there is none: it is that row."""
        return tuple(self._mean_row(rows) for rows in self._pools.values())

    @cached_property
    def _pools(self) -> dict[str, list[Row]]:
        """The rows behind each mean, by its name."""
        if self.is_one_row:
            return {}
        pools: dict[str, list[Row]] = {}
        compared = {*self.baselines, *(row.name for row in self.baselines.values())}
        for row in self.rows:
            if row.name in compared:
                pools.setdefault(setting_of({axis: row.labels[axis] for axis in self.baseline}), []).append(row)
        return {name: rows for name, rows in pools.items() if len(rows) > 1}

    def _mean_row(self, rows: Sequence[Row]) -> Row:
        return Row(
            {axis: rows[0].labels[axis] for axis in self.baseline},
            summarize(self._pooled(rows, "student"), {}),
            summarize(self._pooled(rows, "teacher"), {}),
            summarize(self._pooled(rows, "control"), {}),
            _shared([row.params for row in rows]) or 0,
            _shared([row.steps for row in rows]) or 0,
            _shared([row.train_flops for row in rows]),
            _shared([row.teacher_flops for row in rows]),
            sum(row.missing for row in rows),
            over=len(rows),
        )

    @property
    def titled(self) -> tuple[tuple[str, Row], ...]:
        """The rows, each with its number from 1, and the means with letters."""
        letters = (ascii_lowercase[i % 26] * (i // 26 + 1) for i in range(len(self.means)))
        return (*((f"{i + 1}", row) for i, row in enumerate(self.rows)), *zip(letters, self.means, strict=True))

    @property
    def baseline_name(self) -> str:
        """The labels of the baseline, such as recipe=kd."""
        return setting_of(self.baseline)

    @property
    def is_one_row(self) -> bool:
        """Whether all rows are compared with the same one."""
        return len(self.baseline) == len(self.axes)

    def is_baseline(self, row: Row) -> bool:
        """Whether other rows are compared with this one."""
        return self.baseline.items() <= row.labels.items()

    @cached_property
    def baselines(self) -> Mapping[str, Row]:
        """The row that each other row is compared with, by its name. What the grid lacks is left out."""
        every = {row.name: row for row in self.rows}
        beside = {row.name: every.get(setting_of({**row.labels, **self.baseline})) for row in self.rows}
        return {name: base for name, base in beside.items() if base and base.name != name}

    @cached_property
    def comparisons(self) -> Mapping[str, Comparison]:
        """The comparison of every row's and mean's students with those of its baseline, paired over units, by name."""
        others = {row.name: [row] for row in self.rows if row.name in self.baselines}
        others |= {mean.name: self._pools[mean.name] for mean in self.means if not self.is_baseline(mean)}
        pairs = {name: (rows, [self.baselines[row.name] for row in rows]) for name, rows in others.items()}
        scores = {n: (self._pooled(own, "student"), self._pooled(base, "student")) for n, (own, base) in pairs.items()}
        efforts = {n: (self._efforts(own), self._efforts(base)) for n, (own, base) in pairs.items()}
        alone = [row.name for row in self.rows if row.name not in pairs and not self.is_baseline(row)]
        found = compare(scores, self.primary, efforts, self.unit)
        return found | dict.fromkeys(alone, Comparison(None, None, "the grid has no such baseline"))

    @property
    def primary(self) -> str:
        """The row or mean of the one comparison that was declared; "" if none was, if the baseline is another, or if
        settings of it are not among the rows."""
        declared = self.plans.declared
        if declared is None or declared.baseline != self.baseline:
            return ""
        name = setting_of(declared.primary)
        return name if any(row.name == name and row.over == declared.over for row in (*self.rows, *self.means)) else ""

    def _efforts(self, rows: Sequence[Row]) -> Effort:
        """Return what each of these settings was given, on average."""
        return average([self._effort(row) for row in rows])

    def _effort(self, row: Row) -> Effort:
        """Return what a setting was given. Trainings to tune are known where the spec takes a tuned file."""
        first = next((self.cells[name] for name in self._names_of(row) if name in self.cells), None)
        tuned = self.plans.tuned.get(row.name or ALL)
        trainings = tuned.trainings if tuned else None
        taken = tuned is not None and tuned.taken
        return Effort(row.train_flops, first and first.labels_behind, trainings, row.teacher_flops, taken)

    def _names_of(self, row: Row) -> list[str]:
        """Return the names of a setting's cells."""
        return self._names[tuple(row.labels.values())]

    def _networks(self, names: list[str], role: Role) -> dict[str, NetworkResult]:
        """Return one network of each finished cell of a setting, by cell."""
        found = {name: getattr(self.cells[name], role) for name in names if name in self.cells}
        return {name: network for name, network in found.items() if network is not None}

    def _scores(self, names: list[str], role: Role) -> Scores:
        """Return the scores of one network of a setting, given the names of its cells."""
        networks, labels = self._networks(names, role), self.plans.labels
        at = {name: (labels[name].get(SEED, ""), labels[name].get(FOLD, "")) for name in networks}
        by_repeat = {at[name]: network for name, network in networks.items()}
        if self.unit == "group":
            return over_groups(by_repeat, {at[name]: self.counts.get(name, {}) for name in networks})
        clips = {name: self.cells[name].data["clips"][self.cells[name].split] for name in networks}
        return over_seeds(by_repeat, {at[name]: count for name, count in clips.items()})

    def _pooled(self, rows: Sequence[Row], role: Role) -> Scores:
        """Return the scores of several rows together, or those of one."""
        if len(rows) == 1:
            return self._scores(self._names_of(rows[0]), role)
        rest = {setting_of({a: b for a, b in row.labels.items() if a not in self.baseline}): row for row in rows}
        return pooled({name: self._scores(self._names_of(row), role) for name, row in rest.items()})

    def _summary(self, names: list[str], role: Role) -> Summary | None:
        dead = {network.key: network.dead for network in self._networks(names, role).values()}
        return summarize(self._scores(names, role), dead)

    @property
    def intervals(self) -> str:
        """How the 95% intervals are computed, in words."""
        counts = {row.student.n for row in (*self.rows, *self.means) if row.student}
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
        rows = ranges([note for result in self.cells.values() for note in result.notes])
        rows += [f"cells {a} and {b} are the same experiment" for a, b in self.plans.twins]
        rows += [f"no result for {name}: {reason}" for name, reason in self.missing.items()]
        return tuple(dict.fromkeys([*rows, *self.comparison_notes]))

    @property
    def comparison_notes(self) -> tuple[str, ...]:
        """The limits of the comparisons: too few seeds, unequal compute, a baseline without results."""
        rows = list(power_notes(self.comparisons, self.unit))
        advice = "; choose another with --baseline" * self.is_one_row
        for row in filter(self.is_baseline, self.rows if self.comparisons else ()):
            if row.student is None:
                rows.append(f"the baseline {row.name} has no result{advice}")
        declared = self.plans.declared
        if declared is not None and self.comparisons:
            what = f"{setting_of(declared.primary)} with {setting_of(declared.baseline)}"
            if not self.primary:
                rows.append(f"the declared comparison, {what}, is not shown: every comparison here is exploratory")
            elif len(self.comparisons) > 1:
                rows.append(f"one comparison was declared, {what}; it is tested alone")
        flops = {row.name: row.train_flops for row in self.rows}
        return (*rows, *compute_notes(flops, {name: row.name for name, row in self.baselines.items()}))

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


def find_baseline(plans: Plans, text: str) -> Labels:
    """Return the labels that `text`, such as `axis=label,...`, names, or those of the one row that it picks. An empty
    text stands for what the spec declares, else for the first row.

    Raises:
        UsageError: no row has these labels.
    """
    axes = _axes(plans)
    rows = [dict(zip(axes, at, strict=True)) for at in settings(plans)]
    wanted: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, sign, label = (piece.strip() for piece in part.partition("="))
        if not sign or name not in axes:
            message = f"the rows have no axis '{name}'" if sign else f"{part.strip()!r} is not of the form axis=label"
            raise UsageError(f"--baseline {text}: {message}", hint=f"the axes of the rows are {', '.join(axes)}")
        if name in wanted:
            raise UsageError(f"--baseline {text}: two labels are of axis '{name}'", hint="give one label of each axis")
        known = dict.fromkeys(row[name] for row in rows)
        wanted[name] = canonical(label, known)
        if wanted[name] not in known:
            raise UsageError(f"--baseline {text}: axis '{name}' has no '{label}'", hint=nearest(label, known))
    declared = plans.declared.baseline if plans.declared else rows[0]
    if not text or wanted == declared:
        return declared if any(declared.items() <= row.items() for row in rows) else rows[0]  # rows may be picked
    picked = [row for row in rows if wanted.items() <= row.items()]
    if not picked:
        some = "\n    ".join([setting_of(row) for row in rows][:12]) + ("\n    ..." if len(rows) > 12 else "")
        raise UsageError(f"--baseline {text} picks no row", hint=f"name one of\n    {some}")
    return picked[0] if len(picked) == 1 else {axis: wanted[axis] for axis in axes if axis in wanted}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def ranges(notes: Sequence[str]) -> list[str]:
    """Return notes, each once; those that differ in one percentage alone, as cells do, become one with the range."""
    found: dict[str, set[str]] = {}
    for note in notes:
        parts = PERCENT.split(note)
        found.setdefault("{}".join(parts) if len(parts) == 2 else note, set()).update(PERCENT.findall(note)[:1])
    rows: list[str] = []
    for note, values in found.items():
        low, *high = sorted(values, key=lambda text: float(text[:-1])) or ("",)
        rows.append(note.replace("{}", f"{low} to {high[-1]}" if high else low, 1) if note not in notes else note)
    return rows


def _shared(values: Sequence[int | None]) -> int | None:
    """Return the value that all have in common."""
    return values[0] if len(set(values)) == 1 else None


def collect_grid(plans: Plans, store: Store, baseline: str = "") -> GridResults:
    """Read what the store has of a grid. `baseline` names what to compare with, as in `find_baseline`.

    Raises:
        StoreError: the store has no finished cell.
        UsageError: no row has the labels of `baseline`.
    """
    compared_with = find_baseline(plans, baseline)
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
            missing[name] = error.message.replace(f"{store.root}/", "")  # no folder of this machine in the results
    if not cells:
        name, reason = next(iter(missing.items()))
        raise StoreError(f"no cell has finished; {name or plans.name}: {reason}", hint=Advice("run", "run"))
    return GridResults(plans, cells, missing, compared_with, counts)
