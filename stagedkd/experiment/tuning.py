"""Tune a spec: try the values of its section `tune` on validation, and write the choices to SPEC.tuned.yaml.

Every trial is a cell like any other: its stages are in the store, so that trials share teachers, and an interrupted
tuning resumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from stagedkd.errors import StagedkdError, TrainingError
from stagedkd.experiment.run import GridOutcome, run_experiment
from stagedkd.files import write_whole
from stagedkd.launch import Engine
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.graph import Plan
from stagedkd.plan.lock import read_lock
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.tune import choose, edge_of
from stagedkd.spec.tuned import ALL, FORM, edge_notes, read_tuned, tuned_path, tuned_text
from stagedkd.spec.tuning import Trial, Tuning, load_tuning
from stagedkd.spec.yaml import Node
from stagedkd.stages.context import Listener


@dataclass(frozen=True)
class Row:
    """One combination of values that was tried for a network of a setting: top-1 in 0..1 and the folder of the
    evaluation, by tuning seed; None where the training diverged."""

    network: str
    labels: Mapping[str, str]
    top1: Mapping[str, float | None]
    keys: Mapping[str, str | None]
    chosen: bool = False


@dataclass(frozen=True)
class TuneResult:
    """What a tuning chose: the rows of each setting, the tuned file, and notes on choices at the edge."""

    path: Path
    rows: Mapping[str, tuple[Row, ...]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DryRun:
    """The trials of one network: its name, its cells, its unique stages, and how many of these the store lacks. For a
    network that follows another one, the missing stages are those of the first value of that one."""

    network: str
    cells: int
    stages: int
    missing: int


def tune(path: Path, runtime: Runtime, listener: Listener, engine: Engine = "in-process") -> TuneResult:
    """Run the trials of a spec's section `tune`, network by network, and write SPEC.tuned.yaml.

    Raises:
        SpecError, LockError, UsageError: before anything is run.
        TrainingError: every training of a setting diverged. A trial fails otherwise: its error.
        Interrupted: a signal came; the same call resumes.
    """
    tuning = load_tuning(path)
    chosen: dict[str, dict[str, str]] = {name: {} for name in tuning.settings}
    rows: dict[str, list[Row]] = {name: [] for name in tuning.settings}
    for network in tuning.tune.networks:
        experiment, trials = tuning.trials(network, chosen)
        outcome = run_experiment(experiment, runtime, listener, engine, partial(_upto, network))
        for name, found in _rows(network, trials, outcome).items():
            best = _best(name, found, tuning)
            chosen[name] |= found[best].labels
            rows[name] += [replace(row, chosen=i == best) for i, row in enumerate(found)]
    target = tuned_path(path)
    write_whole(target, tuned_text(_values(tuning, rows, chosen), path))
    tuned = read_tuned(Node(target.name, tuning.tune.place), path)
    return TuneResult(target, {name: tuple(found) for name, found in rows.items()}, edge_notes(tuned.settings))


def dry_run(path: Path, runtime: Runtime) -> list[DryRun]:
    """Count the cells and the stages of a tuning, network by network; nothing is run."""
    from stagedkd.store.store import Store

    tuning, store = load_tuning(path), Store(runtime.folder("store"))
    chosen: dict[str, dict[str, str]] = {name: {} for name in tuning.settings}
    counts: list[DryRun] = []
    for network in tuning.tune.networks:
        experiment, trials = tuning.trials(network, chosen)
        plans = compile_experiment(experiment, read_lock(runtime.lock_path))
        stages = {s.identity: s for plan in plans.cells.values() for s in _upto(network, plan).stages}
        missing = sum(store.state(stage) != "hit" for stage in stages.values())
        counts.append(DryRun(network, len(plans.cells), len(stages), missing))
        for trial in reversed(trials.values()):
            chosen[trial.setting] |= trial.labels
    return counts


def _upto(network: str, plan: Plan) -> Plan:
    """Return the part of a plan that the evaluation of a network needs."""
    return replace(plan, stages=plan.closure(plan.stage(f"evaluate-{network}")))


def _rows(network: str, trials: Mapping[str, Trial], outcome: GridOutcome) -> dict[str, list[Row]]:
    """Return the rows of each setting, in the order of the values.

    Raises:
        StagedkdError: a cell failed for another reason than that its training diverged.
    """
    rows: dict[str, dict[tuple[str, ...], Row]] = {}
    for cell, trial in trials.items():
        found = rows.setdefault(trial.setting, {})
        row = found.setdefault(tuple(trial.labels.values()), Row(network, trial.labels, {}, {}))
        top1, key = None, None
        if cell in outcome.finished:
            done = outcome.finished[cell]
            stage = done.plan.stage(f"evaluate-{network}")
            top1, key = float(done.artifacts[stage.name].manifest.metrics["top1"]), stage.folder
        elif not _diverged(outcome.failed[cell]):
            raise outcome.failed[cell]
        found[tuple(trial.labels.values())] = replace(
            row, top1={**row.top1, trial.seed: top1}, keys={**row.keys, trial.seed: key}
        )
    return {name: list(found.values()) for name, found in rows.items()}


def _diverged(error: StagedkdError) -> bool:
    """Return whether a training failed because its loss is not finite, which says something about its values."""
    from stagedkd.train.loop import NAN_HINT

    return isinstance(error, TrainingError) and error.advice.words == NAN_HINT


def _best(setting: str, rows: list[Row], tuning: Tuning) -> int:
    try:
        return choose([list(row.top1.values()) for row in rows], tuning.tune.rule)
    except ValueError:
        message = f"every training of {setting or 'the spec'} diverged with the values of {', '.join(rows[0].labels)}"
        raise TrainingError(message, hint="try lower learning rates in tune.values") from None


def _values(tuning: Tuning, rows: Mapping[str, list[Row]], chosen: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the content of the tuned file."""
    fields = {axis.name: axis for axis in tuning.tune.fields}

    def plain(labels: Mapping[str, str]) -> dict[str, Any]:
        return {name: _lists(fields[name].values[label].plain()) for name, label in labels.items()}

    settings: dict[str, Any] = {}
    for name, found in rows.items():
        edges = {field: edge_of(fields[field], label) for field, label in chosen[name].items()}
        settings[name or ALL] = {
            "choice": plain(chosen[name]),
            **({"edge": {f: edge for f, edge in edges.items() if edge}} if any(edges.values()) else {}),
            "tried": [
                {
                    "network": row.network,
                    "values": plain(row.labels),
                    "top1": {int(seed): None if value is None else round(value, 6) for seed, value in row.top1.items()},
                    "keys": {int(seed): key for seed, key in row.keys.items()},
                }
                for row in found
            ],
        }
    return {
        "form": FORM,
        "spec": tuning.path.name,
        "made_from": tuning.made_from,
        "rule": tuning.tune.rule,
        "seeds": [int(label) for label in tuning.tune.seeds.values],
        "settings": settings,
    }


def _lists(value: Any) -> Any:
    """Return a plain value with lists in place of tuples, which YAML has not."""
    if isinstance(value, dict):
        return {name: _lists(below) for name, below in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return [_lists(item) for item in value] if isinstance(value, tuple) else value  # pyright: ignore
