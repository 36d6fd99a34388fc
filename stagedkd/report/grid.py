"""The results of a grid: a row for every setting, aggregated over seeds, and tidy rows, one for every network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from stagedkd.errors import StoreError
from stagedkd.plan.graph import Plans
from stagedkd.report.collect import NetworkResult, Results, collect
from stagedkd.report.statistics import mean_interval
from stagedkd.store.store import Store

SEED = "seed"
TIDY = (
    "network", "arch", "split", "views", "clips", "top1", "top1_low95", "top1_high95", "top5", "ece", "params", "flops",
    "steps", "labels", "labelled_clips", "training_clips", "seconds", "latency", "key",
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """One network at one setting: mean top-1 in 0..1 over `seeds` results with its 95% interval."""

    top1: float
    interval: tuple[float, float]
    seeds: int


@dataclass(frozen=True)
class Row:
    """One setting of the axes other than the seed. `steps` are those of all hops of one seed; `missing` cells have no
    result in the store."""

    labels: Mapping[str, str]
    student: Summary | None
    teacher: Summary | None
    control: Summary | None
    params: int
    steps: int
    missing: int


@dataclass(frozen=True)
class GridResults:
    """All cells of a grid: `cells` with their results, `missing` ones with the reason."""

    plans: Plans
    cells: Mapping[str, Results]
    missing: Mapping[str, str]

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the rows: all but the seed."""
        return tuple(name for name in self.plans.axes if name != SEED)

    @property
    def rows(self) -> tuple[Row, ...]:
        """A row for every setting, in the order of the grid."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, labels in self.plans.labels.items():
            groups.setdefault(tuple(labels[axis] for axis in self.axes), []).append(name)
        return tuple(self._row(dict(zip(self.axes, at, strict=True)), names) for at, names in groups.items())

    def _row(self, labels: Mapping[str, str], names: list[str]) -> Row:
        found = [self.cells[name] for name in names if name in self.cells]
        return Row(
            labels, summary([r.student for r in found]), summary([r.teacher for r in found]),
            summary([r.control for r in found if r.control]), found[0].student.params if found else 0,
            sum(n.steps for n in (*found[0].assistants, found[0].student)) if found else 0, len(names) - len(found),
        )  # fmt: skip

    @property
    def intervals(self) -> str:
        """How the intervals were made."""
        seeds = {row.student.seeds for row in self.rows if row.student}
        one = "one seed: Wilson's, clips taken as independent"
        return one if seeds <= {1} else "Student's over seeds" + ("; with " + one if 1 in seeds else "")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know, each line once."""
        rows = [note for result in self.cells.values() for note in result.notes]
        rows += [f"cells {a} and {b} are the same experiment" for a, b in self.plans.twins]
        rows += [f"no result for {name}: {reason}" for name, reason in self.missing.items()]
        return tuple(dict.fromkeys(rows))

    @property
    def split(self) -> str:
        """The splits on which the figures were taken."""
        return " and ".join(sorted({result.split for result in self.cells.values()}))


def summary(networks: list[NetworkResult]) -> Summary | None:
    """Mean and interval of one network over its seeds; networks that seeds share count once."""
    unique = list({network.key: network for network in networks}.values())
    if not unique:
        return None
    values = [network.top1 for network in unique]
    interval = unique[0].interval if len(values) == 1 else mean_interval(values)
    return Summary(fmean(values), interval, len(values))


def collect_grid(plans: Plans, store: Store) -> GridResults:
    """Read what the store has of a grid.

    Raises:
        StoreError: it has no finished cell.
    """
    cells: dict[str, Results] = {}
    missing: dict[str, str] = {}
    for name, plan in plans.cells.items():
        try:
            cells[name] = collect(plan, store)
        except StoreError as error:
            missing[name] = error.message
    if not cells:
        name, reason = next(iter(missing.items()))
        raise StoreError(f"no cell has finished; {name or plans.name}: {reason}", hint="stagedkd run SPEC makes them")
    return GridResults(plans, cells, missing)


def tidy(found: GridResults) -> Iterator[dict[str, Any]]:
    """One row for every network of every finished cell: the axes, then `TIDY`."""
    for name, results in found.cells.items():
        for network in results.networks:
            low, high = network.interval
            values = network.__dict__ | {
                "network": network.name, "split": results.split, "views": results.views, "top1_low95": low,
                "top1_high95": high, "clips": results.data["clips"][results.split],
            }  # fmt: skip
            yield {**found.plans.labels[name], **{key: values[key] for key in TIDY}}


def as_json(found: GridResults) -> dict[str, Any]:
    """What metrics.json of a grid holds: the rows, and the student's figures by cell."""
    return {
        "name": found.plans.name,
        "axes": {name: list(labels) for name, labels in found.plans.axes.items()},
        "split": found.split,
        "intervals": found.intervals,
        "rows": [
            {**row.labels, "student": _summary_json(row.student), "teacher": _summary_json(row.teacher),
             "control": _summary_json(row.control), "params": row.params, "steps": row.steps, "missing": row.missing}
            for row in found.rows
        ],
        "cells": {name: {"student": results.student.top1} for name, results in found.cells.items()},
        "missing": dict(found.missing),
        "notes": list(found.notes),
    }  # fmt: skip


def _summary_json(found: Summary | None) -> dict[str, Any] | None:
    return found and {"top1": found.top1, "interval95": list(found.interval), "seeds": found.seeds}
