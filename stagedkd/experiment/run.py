"""The walk: lock, compile, then every stage in turn, skipped where the store has it. Torch comes with the first stage
that needs it, so a run with nothing to do loads none."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, assert_never

from stagedkd.errors import Interrupted, StagedkdError, StoreError, TrainingError
from stagedkd.experiment.locking import lock_specs
from stagedkd.launch.cluster import Cluster, load_cluster
from stagedkd.launch.torchrun import check_ranks, wants_ranks, work_in_ranks
from stagedkd.plan.compile import compile_experiment, compile_plan
from stagedkd.plan.graph import Graph, Plan, Plans, Stage
from stagedkd.plan.key import Key
from stagedkd.plan.runtime import Runtime, load_runtime
from stagedkd.plan.work import DistillWork, EvaluateWork, PrepareWork, RefineWork, TeachWork, WeakenWork
from stagedkd.spec.load import Experiment
from stagedkd.spec.schema import Spec
from stagedkd.stages.context import Context, Done, Listener, Silent, Stop, catching_signals
from stagedkd.stages.pieces import began
from stagedkd.stages.provenance import environment
from stagedkd.store.leases import Lease
from stagedkd.store.manifest import manifest_of
from stagedkd.store.store import Artifact, Store

Engine: TypeAlias = Literal["in-process", "parsl"]


@dataclass(frozen=True)
class Outcome:
    """What a run gave: the plan, an artifact for every stage by name, and which of its stages were run just now."""

    plan: Plan
    artifacts: dict[str, Artifact]
    ran: tuple[str, ...]
    runtime: Runtime


@dataclass(frozen=True)
class GridOutcome:
    """What the run of an experiment gave: the cells that finished, why others did not, and the keys run just now."""

    plans: Plans
    finished: Mapping[str, Outcome]
    failed: Mapping[str, StagedkdError]
    ran: tuple[str, ...]
    runtime: Runtime


def run(spec: Spec, runtime: Runtime | None = None, listener: Listener | None = None) -> Outcome:
    """Execute a spec: run every stage that the store does not have.

    Args:
        spec: from `load_spec`. runtime: from `load_runtime`; params.yaml of the working folder if None.
    Raises:
        SpecError, LockError, UsageError: before anything is run.
        DataError, TrainingError, StoreError: a stage failed; what was finished stays.
        Interrupted: a signal came; the same call goes on.
    """
    outcome = run_experiment(Experiment.of(spec), runtime, listener)
    for error in outcome.failed.values():
        raise error
    return outcome.finished[""]


def run_experiment(
    experiment: Experiment,
    runtime: Runtime | None = None,
    listener: Listener | None = None,
    engine: Engine = "in-process",
) -> GridOutcome:
    """Execute all cells of an experiment, each unique stage once. A cell that fails does not stop the others.

    Args:
        engine: in-process does stage after stage; parsl has workers do many at once, by the file `runtime.cluster`.
    Raises:
        SpecError, LockError, UsageError: before anything is run.
        Interrupted: a signal came; the same call goes on.
    """
    runtime = runtime or load_runtime(Path())
    show = listener or Silent()
    cluster = load_cluster(runtime) if engine == "parsl" else None
    plans, walk = _prepared(experiment, runtime, show, cluster)
    with catching_signals() as stop, walk.store.at_work(plans.name, plans.unique) as mark:
        if cluster is not None:
            from stagedkd.launch.parsl import run_elsewhere

            walk.elsewhere = run_elsewhere(plans, cluster, walk.store, mark, runtime, show, stop)
        finished, failed = _cells(plans, walk, show, stop)
    return GridOutcome(plans, finished, failed, tuple(walk.ran), runtime)


def _cells(
    plans: Plans, walk: _Walk, show: Listener, stop: Stop
) -> tuple[dict[str, Outcome], dict[str, StagedkdError]]:
    """Every cell, in order, but one that needs what another run is at comes after those that do not. Only where nothing
    else is left to do is there a wait, for the first of them."""
    finished: dict[str, Outcome] = {}
    failed: dict[str, StagedkdError] = {}
    left, rule = dict(plans.cells), "no" if plans.is_grid else "always"
    walk.waits = rule
    while left:
        before, busy = (len(left), len(walk.ran)), set[str]()
        for number, (name, plan) in enumerate(plans.cells.items(), 1):
            if name not in left or any(stage.identity in busy for stage in plan.stages):
                continue
            if plans.is_grid:
                show.cell(number, len(plans.cells), name)
            try:
                finished[name] = walk.plan(plan, stop)
            except _Busy as found:
                show.note(f"another run is at {found.stage.name}; what needs it comes later")
                busy.add(found.stage.identity)
                continue
            except Interrupted:
                raise
            except StagedkdError as error:
                failed[name] = error
                if plans.is_grid:
                    show.note(f"cell {name} failed: {error.message}")
            del left[name]
            walk.waits = rule
        if plans.is_grid and before == (len(left), len(walk.ran)):
            walk.waits = "once"
    return {name: finished[name] for name in plans.cells if name in finished}, failed


def run_stage(plan: Plan, stage: Stage, runtime: Runtime, listener: Listener) -> tuple[Artifact, bool]:
    """Run one stage of a plan, unless the store has it. The stages that it needs must be there.

    Returns:
        its artifact, and whether it was run just now.
    Raises:
        StoreError: what it needs is missing, or what the store has of it is damaged. Else what `run` raises.
    """
    store = _store(runtime)
    if store.state(stage) != "hit":
        if wants_ranks(stage, runtime):
            check_ranks([stage], runtime)
        lock_specs([plan.spec], runtime, accept=False)  # the stage may read the disk: it must be as the plan has it
    with catching_signals() as stop, store.at_work("", (above.identity for above in plan.closure(stage))):
        return run_in(plan, stage, runtime, listener, stop)


def run_in(graph: Graph, stage: Stage, runtime: Runtime, listener: Listener, stop: Stop) -> tuple[Artifact, bool]:
    """`run_stage` where data and weights were held against the lock before."""
    store = _store(runtime)
    inputs: dict[str, Artifact] = {}
    if store.state(stage) != "hit":
        for above in graph.inputs(stage).values():
            if store.state(above) != "hit":
                message = f"stage {stage.name} needs {above.name} ({above.folder}), which the store does not have"
                raise StoreError(message, hint=f"stagedkd stage {above.identity.short} makes it")
            inputs[above.name] = store.artifact(above)
    walk = _Walk(store, runtime, listener, {stage.identity: 1})
    return walk.stage(graph, stage, inputs, stop), bool(walk.ran)


def locked_plan(spec: Spec, runtime: Runtime, listener: Listener) -> Plan:
    """The plan of a spec, its data and weights locked and held against the disk.

    Raises:
        LockError, UsageError: they are not what they should be.
    """
    lock, lines = lock_specs([spec], runtime, accept=False)
    for line in lines:
        listener.note(f"locked {line}")
    return compile_plan(spec, lock)


def run_graph(
    graph: Graph, runtime: Runtime, listener: Listener, runtimes: Mapping[Key, Runtime]
) -> dict[str, Artifact]:
    """Run every stage of a graph that needs no spec, some of them (by key) with a runtime of their own, and give their
    artifacts; raises what `run` raises."""
    from stagedkd.experiment.preflight import preflight

    preflight(graph, Path(runtime.root))
    numbers = {stage.identity: i for i, stage in enumerate(graph.stages, 1)}
    with catching_signals() as stop:
        return _Walk(_store(runtime), runtime, listener, numbers, runtimes).stages(graph, stop)


def _prepared(experiment: Experiment, runtime: Runtime, show: Listener, cluster: Cluster | None) -> tuple[Plans, _Walk]:
    """Everything that can be found wrong before a stage runs: data and weights, networks, pairs, the device."""
    lock, lines = lock_specs((cell.spec for cell in experiment.cells), runtime, accept=False)
    for line in lines:
        show.note(f"locked {line}")
    plans = compile_experiment(experiment, lock)
    for note in dict.fromkeys(note for plan in plans.cells.values() for note in plan.notes):
        show.note(note)
    walk = _Walk(_store(runtime), runtime, show, {key: i for i, key in enumerate(plans.unique, 1)})
    if any(walk.store.state(stage) != "hit" for stage in plans.unique.values()):
        from stagedkd.experiment.preflight import preflight
        from stagedkd.stages.networks import device_of

        if cluster is not None:
            from stagedkd.launch.parsl import check_cluster

            check_cluster(cluster, runtime)
        else:
            device_of(runtime.device)
            check_ranks((s for s in plans.unique.values() if walk.store.state(s) != "hit"), runtime)
        seen: dict[str, Any] = {}
        for plan in plans.cells.values():
            preflight(plan, Path(runtime.root), seen)
    return plans, walk


def _store(runtime: Runtime) -> Store:
    return Store(runtime.folder("store"), runtime.lease_seconds)


class _Busy(Exception):
    """Another run is at a stage, and this one does not wait."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.name)
        self.stage = stage


@dataclass
class _Walk:
    """One pass over the plans of an experiment: what was made or found, and what failed, by key. `runtimes` has those
    stages that want another runtime; `elsewhere` those that workers did: whether they ran, or why they failed. `waits`
    says whether a stage that another run is at is waited for, the next one alone or each; else it raises _Busy."""

    store: Store
    runtime: Runtime
    show: Listener
    numbers: Mapping[Key, int]
    runtimes: Mapping[Key, Runtime] = field(default_factory=dict[Key, Runtime])
    elsewhere: Mapping[str, bool | StagedkdError] = field(default_factory=dict[str, "bool | StagedkdError"])
    made: dict[str, Artifact] = field(default_factory=dict[str, Artifact])
    failed: dict[str, StagedkdError] = field(default_factory=dict[str, StagedkdError])
    ran: list[str] = field(default_factory=list[str])
    waits: Literal["always", "once", "no"] = "always"

    def plan(self, plan: Plan, stop: Stop) -> Outcome:
        """Every stage of a plan in turn; raises what a stage raises, and again for each plan that needs it."""
        artifacts, ran = self.stages(plan, stop), set(self.ran)
        return Outcome(plan, artifacts, tuple(s.name for s in plan.stages if s.identity in ran), self.runtime)

    def stages(self, plan: Graph, stop: Stop) -> dict[str, Artifact]:
        """Every stage in turn, each after those that it needs."""
        artifacts: dict[str, Artifact] = {}
        for stage in plan.stages:
            stop.check()
            if stage.identity in self.failed:
                raise self.failed[stage.identity]
            try:
                if stage.identity not in self.made:
                    self.made[stage.identity] = self.stage(plan, stage, artifacts, stop)
            except Interrupted:
                raise
            except StagedkdError as error:
                self.failed[stage.identity] = error
                raise
            artifacts[stage.name] = self.made[stage.identity]
        return artifacts

    def stage(self, plan: Graph, stage: Stage, artifacts: dict[str, Artifact], stop: Stop) -> Artifact:
        """One stage: from the store, or run while this process has its lease."""
        store, there = self.store, self.elsewhere.get(stage.identity)
        if isinstance(there, StagedkdError):
            raise there
        if there is not None:
            self.ran += [stage.identity] if there else []
            return store.artifact(stage)
        state = store.state(stage)
        if state == "hit":
            self._show(stage, state)
            artifact = store.artifact(stage)
            artifact.verify()
            return artifact
        with store.held(stage, partial(self._taken, stage), stop.check) as lease, stop.guarded(lease):
            state = store.state(stage)
            self._show(stage, state)
            if state != "hit":  # it may have been made while we waited
                runtime = self.runtimes.get(stage.identity, self.runtime)
                _make(plan, stage, artifacts, store, lease, runtime, self.show, stop)
                self.ran.append(stage.identity)
            return store.artifact(stage)

    def _show(self, stage: Stage, state: str) -> None:
        self.show.stage(self.numbers[stage.identity], len(self.numbers), stage, state)

    def _taken(self, stage: Stage) -> None:
        if self.waits == "no":
            raise _Busy(stage)
        if self.waits == "once":
            self.waits = "no"
        self.show.note(f"another run is at {stage.name}; waiting for it")


def _make(
    plan: Graph,
    stage: Stage,
    made: Mapping[str, Artifact],
    store: Store,
    lease: Lease,
    runtime: Runtime,
    show: Listener,
    stop: Stop,
) -> None:
    """Run a stage whose lease is held, from the artifacts `made` by the names of their stages, and publish it.

    Raises:
        StagedkdError: by stage name, whatever went wrong.
    """
    inputs = {given: made[name] for given, name in stage.needs.items()}
    started = time.time()
    try:
        manifest = manifest_of(plan, stage)
        context = Context(plan, stage, inputs, store.open(stage, lease), manifest, runtime, show, stop)
        done = work_in_ranks(context) if wants_ranks(stage, runtime) else work_on(context)
        manifest = manifest.model_copy(update={"metrics": dict(done.metrics)})
        facts = {**_facts(started), **environment(), "compile": runtime.compile, **done.run}
        facts |= began(context.workspace.scratch)
        store.publish(stage, context.workspace, manifest, facts, lease)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space; the same command goes on" if full else "the same command tries again"
        raise StoreError(f"stage {stage.name}: {error}", hint=hint) from error
    except StagedkdError:
        raise
    except Exception as error:
        message = f"stage {stage.name} failed: {type(error).__name__}: {error}"
        raise TrainingError(message, hint="run with -v for the traceback") from error
    show.finished(stage, time.time() - started)


def _facts(started: float) -> dict[str, object]:
    return {"started": started, "seconds": time.time() - started}


def work_on(context: Context) -> Done:
    """The one place where a kind of work meets its function."""
    work = context.stage.work
    match work:
        case PrepareWork():
            from stagedkd.stages.prepare import prepare

            return prepare(context, work)
        case WeakenWork():
            from stagedkd.stages.prepare import weaken_labels

            return weaken_labels(context, work)
        case TeachWork():
            from stagedkd.stages.distill import teach

            return teach(context, work)
        case RefineWork():
            from stagedkd.stages.refine import refine

            return refine(context, work)
        case DistillWork():
            from stagedkd.stages.distill import distill

            return distill(context, work)
        case EvaluateWork():
            from stagedkd.stages.evaluate import evaluate

            return evaluate(context, work)
        case _:
            assert_never(work)
