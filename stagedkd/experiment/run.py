"""Run an experiment: lock, compile, then run all cells in turn, each unique stage once unless the store has it.

This is the one place that knows both the stages and the launchers. Torch is loaded by the first stage that needs it, so
a run with nothing to do loads none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, assert_never

from stagedkd.errors import Interrupted, StagedkdError, about
from stagedkd.experiment.locking import lock_specs
from stagedkd.html import html_table
from stagedkd.launch import Engine
from stagedkd.launch.cluster import Cluster, load_cluster
from stagedkd.launch.local import cpu_notes, jobs_for, run_in_processes
from stagedkd.launch.torchrun import check_ranks, wants_ranks, work_in_ranks
from stagedkd.plan.compile import compile_experiment, compile_plan
from stagedkd.plan.cpus import usable_cpus
from stagedkd.plan.graph import Graph, Plan, Plans, Stage
from stagedkd.plan.key import Key
from stagedkd.plan.loggers import missing as missing_loggers
from stagedkd.plan.runtime import Runtime, load_runtime, prepare_libraries
from stagedkd.spec.load import Experiment
from stagedkd.spec.schema import Spec
from stagedkd.stages.context import Context, Do, Listener, Result, Session, Silent, Stop, catching_signals
from stagedkd.stages.stage import WAITING, Busy, get_alone, get_stage, store_of, work_on
from stagedkd.store.store import Artifact, Store


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run of one plan: its artifacts by stage name, and which of its stages were made just now."""

    plan: Plan
    artifacts: dict[str, Artifact]
    ran: tuple[str, ...]
    runtime: Runtime

    def _repr_html_(self) -> str:
        """The stages, and which of them were made just now, for notebooks."""
        rows = [(s.name, s.folder, "made now" if s.name in self.ran else "in the store") for s in self.plan.stages]
        return html_table(("stage", "artifact", "state"), rows)


@dataclass(frozen=True)
class GridOutcome:
    """The outcome of a run of an experiment: the cells that finished, the errors of those that failed, and the keys of
    the stages that were made just now."""

    plans: Plans
    finished: Mapping[str, Outcome]
    failed: Mapping[str, StagedkdError]
    ran: tuple[Key, ...]
    runtime: Runtime


def run(spec: Spec, runtime: Runtime | None = None, listener: Listener | None = None) -> Outcome:
    """Execute a spec: run every stage that the store does not have.

    Args:
        spec: from `load_spec`. runtime: from `load_runtime`; params.yaml of the working folder if None.
    Raises:
        SpecError, LockError, UsageError: before anything is run.
        DataError, TrainingError, StoreError: a stage failed; finished stages stay in the store.
        Interrupted: a signal came; the same call resumes.
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
    cut: Callable[[Plan], Plan] = lambda plan: plan,
    first: Callable[[Plans, Sequence[Stage]], None] = lambda plans, missing: None,
    protection: ExitStack | None = None,
) -> GridOutcome:
    """Execute all cells of an experiment, each unique stage once. A cell that fails does not stop the others.

    Args:
        cut: returns the part of each cell's plan that is to be run. first: called with the plans and the stages that
            the store lacks, before the first one is made.
        protection: keeps what the run needs from `store gc` until it is closed; None: until the run ends.
        engine: in-process makes one stage after the other, or `runtime.jobs` at once in processes on this machine;
            parsl starts workers that make several at once, as the file `runtime.cluster` says.
    Raises:
        SpecError, LockError, UsageError: before anything is run.
        Interrupted: a signal came; the same call resumes.
    """
    runtime = runtime or load_runtime(Path())
    listener = listener or Silent()
    runtime = with_installed_loggers(runtime, listener)
    prepare_libraries(runtime)
    cluster = load_cluster(runtime) if engine == "parsl" else None
    with about(experiment.origin):
        plans, store = compiled(experiment, runtime, listener), store_of(runtime)
        plans = replace(plans, cells={name: cut(plan) for name, plan in plans.cells.items()})
        missing = [stage for stage in plans.unique.values() if store.state(stage) != "hit"]
        _check(plans, missing, runtime, cluster)
        first(plans, missing)
        jobs = 1 if engine != "in-process" else _jobs(plans, missing, runtime, listener)
    with ExitStack() as own, about(experiment.origin), catching_signals() as stop:
        mark = (protection or own).enter_context(store.at_work(plans.name, plans.unique))
        numbers = {key: i for i, key in enumerate(plans.unique, 1)}
        runner = _Runner(store, runtime, listener, stop, numbers, do=work_of(engine))
        if cluster is not None:
            from stagedkd.launch.parsl import run_in_workers

            runner.worker_outcomes = run_in_workers(plans, cluster, store, mark, runtime, listener, stop)
        elif jobs > 1:
            runner.worker_outcomes = run_in_processes(plans, jobs, store, mark, runtime, listener, stop)
        finished, failed = _run_cells(plans, runner)
    return GridOutcome(plans, finished, failed, tuple(runner.ran), runtime)


def with_installed_loggers(runtime: Runtime, listener: Listener) -> Runtime:
    """The runtime without the loggers whose package is not installed: the listener gets a note."""
    absent = missing_loggers(runtime.log)
    for name in absent:
        listener.note(f"{name} is not installed, so it logs nothing: pip install 'stagedkd[{name}]'")
    return runtime.model_copy(update={"log": tuple(name for name in runtime.log if name not in absent)})


def run_stage(plan: Plan, stage: Stage, runtime: Runtime, listener: Listener) -> tuple[Artifact, bool]:
    """Run one stage of a plan, unless the store has it. The store must have the stages that it needs.

    Returns:
        its artifact, and whether it was made just now.
    Raises:
        StoreError: an input is missing, or the artifact in the store is damaged. Also raises what `run` raises.
    """
    prepare_libraries(runtime)
    store = store_of(runtime)
    with about(plan.spec.origin):
        if store.state(stage) != "hit":
            if wants_ranks(stage, runtime):
                check_ranks([stage], runtime)
            lock_specs(
                [plan.spec], runtime, accept=False
            )  # the stage may read the disk, which must agree with the plan
    with (
        about(plan.spec.origin),
        catching_signals() as stop,
        store.at_work("", (above.identity for above in plan.closure(stage))),
    ):
        return get_alone(plan, stage, runtime, listener, stop, do_here)


def run_graph(
    graph: Graph, runtime: Runtime, listener: Listener, runtimes: Mapping[Key, Runtime]
) -> dict[str, Artifact]:
    """Run every stage of a graph, which needs no spec.

    Args:
        runtimes: the runtime of those stages (by key) that need another one.
    Returns:
        the artifacts by stage name.
    Raises:
        the errors that `run` raises.
    """
    from stagedkd.experiment.preflight import preflight

    preflight(graph, Path(runtime.root))
    numbers = {stage.identity: i for i, stage in enumerate(graph.stages, 1)}
    with catching_signals() as stop:
        return _Runner(store_of(runtime), runtime, listener, stop, numbers, runtimes).run_stages(graph)


def locked_plan(spec: Spec, runtime: Runtime, listener: Listener) -> Plan:
    """Compile the plan of a spec, with data and weights locked and compared with the disk.

    Raises:
        LockError, UsageError: data or weights are missing, or differ from the lock.
    """
    lock, lines = lock_specs([spec], runtime, accept=False)
    for line in lines:
        listener.note(f"locked {line}")
    return compile_plan(spec, lock)


def do_here(context: Context) -> Result:
    """Do the work of a stage on this machine: in this process, or in `gpus` processes where it trains."""
    return work_in_ranks(context) if wants_ranks(context.stage, context.runtime) else work_on(context)


def work_of(engine: Engine) -> Do:
    """The function that does the work of the stages that this process makes."""
    match engine:
        case "in-process" | "parsl":  # under parsl, workers make most stages, and this process the others
            return do_here
        case _:
            assert_never(engine)


def compiled(experiment: Experiment, runtime: Runtime, listener: Listener) -> Plans:
    """Compile the plans of an experiment, with data and weights locked."""
    lock, lines = lock_specs((cell.spec for cell in experiment.cells), runtime, accept=False)
    for line in lines:
        listener.note(f"locked {line}")
    plans = compile_experiment(experiment, lock)
    for note in dict.fromkeys(note for plan in plans.cells.values() for note in plan.notes):
        listener.note(note)
    return plans


def _check(plans: Plans, missing: Sequence[Stage], runtime: Runtime, cluster: Cluster | None) -> None:
    """Check, before a stage runs, the device, the cluster, the networks, the cuts, the pairs and the weights."""
    if not missing:
        return
    from stagedkd.experiment.preflight import check_weights, preflight
    from stagedkd.stages.networks import device_of

    if cluster is not None:
        from stagedkd.launch.parsl import check_cluster

        check_cluster(cluster, runtime)
    else:
        device_of(runtime.device)
        check_ranks(missing, runtime)
    shapes: dict[str, Any] = {}
    identities, checked = {stage.identity for stage in missing}, set[str]()
    for plan in plans.cells.values():
        preflight(plan, Path(runtime.root), shapes)
        check_weights(plan, identities, runtime, checked)


def _jobs(plans: Plans, missing: Sequence[Stage], runtime: Runtime, listener: Listener) -> int:
    """The number of stages to make side by side on this machine, with notes on what limits a run on the CPU."""
    graphs, cpus = plans.cells.values(), usable_cpus()
    for note in cpu_notes(graphs, missing, runtime, cpus):
        listener.note(note)
    return jobs_for(graphs, missing, runtime, cpus.count)


def _run_cells(plans: Plans, runner: _Runner) -> tuple[dict[str, Outcome], dict[str, StagedkdError]]:
    """Run every cell in order, but postpone the cells that need a stage that another run is making. Wait for such a
    stage only if nothing else is left to do, and then only for the first one.

    Returns:
        the outcomes of the finished cells and the errors of the failed ones, by cell name.
    """
    finished: dict[str, Outcome] = {}
    failed: dict[str, StagedkdError] = {}
    left, waits = dict(plans.cells), "no" if plans.is_grid else "always"
    runner.waits = waits
    while left:
        before, busy = (len(left), len(runner.ran)), set[str]()
        for number, (name, plan) in enumerate(plans.cells.items(), 1):
            if name not in left or any(stage.identity in busy for stage in plan.stages):
                continue
            if plans.is_grid and not runner.worker_outcomes:
                runner.listener.cell(number, len(plans.cells), name)
            try:
                finished[name] = runner.run_plan(plan)
            except Busy as error:
                being_made = f"{error.stage.name} is being made by another run"
                runner.listener.note(f"{being_made}; continuing with cells that do not need it")
                busy.add(error.stage.identity)
                continue
            except Interrupted:
                raise
            except StagedkdError as error:
                failed[name] = error
                if plans.is_grid:
                    runner.listener.note(f"cell {name} failed: {error.message}")
            del left[name]
            runner.waits = waits
        if plans.is_grid and before == (len(left), len(runner.ran)):
            runner.waits = "once"
    return {name: finished[name] for name in plans.cells if name in finished}, failed


@dataclass
class _Runner:
    """Runs the plans of an experiment, and holds the artifacts and the errors so far, by key.

    `numbers` are the numbers of the stages for the listener. `runtimes` holds the runtime of those stages that need
    another one. `worker_outcomes` holds the stages that workers have ended: whether they were made just now, or why
    they failed. `waits` says whether the run waits for a stage that another run is making: always, for the next one
    alone, or not at all (then Busy is raised).
    """

    store: Store
    runtime: Runtime
    listener: Listener
    stop: Stop
    numbers: Mapping[Key, int]
    runtimes: Mapping[Key, Runtime] = field(default_factory=dict[Key, Runtime])
    worker_outcomes: Mapping[Key, bool | StagedkdError] = field(default_factory=dict[Key, "bool | StagedkdError"])
    artifacts: dict[Key, Artifact] = field(default_factory=dict[Key, Artifact])
    failed: dict[Key, StagedkdError] = field(default_factory=dict[Key, StagedkdError])
    ran: list[Key] = field(default_factory=list[Key])
    waits: Literal["always", "once", "no"] = "always"
    do: Do = do_here

    def run_plan(self, plan: Plan) -> Outcome:
        """Run every stage of a plan. The error of a stage is raised for every plan that needs the stage."""
        with about(plan.spec.origin):
            artifacts, ran = self.run_stages(plan), set(self.ran)
        return Outcome(plan, artifacts, tuple(s.name for s in plan.stages if s.identity in ran), self.runtime)

    def run_stages(self, graph: Graph) -> dict[str, Artifact]:
        """Run every stage of a graph in turn, each after those that it needs; give the artifacts by stage name."""
        artifacts: dict[str, Artifact] = {}
        for stage in graph.stages:
            self.stop.check()
            if stage.identity in self.failed:
                raise self.failed[stage.identity]
            try:
                if stage.identity not in self.artifacts:
                    self.artifacts[stage.identity] = self._get_stage(graph, stage, artifacts)
            except Interrupted:
                raise
            except StagedkdError as error:
                self.failed[stage.identity] = error
                raise
            artifacts[stage.name] = self.artifacts[stage.identity]
        return artifacts

    def _get_stage(self, graph: Graph, stage: Stage, inputs: Mapping[str, Artifact]) -> Artifact:
        """Get a stage from the workers or the store, or make it."""
        outcome = self.worker_outcomes.get(stage.identity)
        if isinstance(outcome, StagedkdError):
            raise outcome
        if outcome is not None:
            self.ran += [stage.identity] if outcome else []
            return self.store.artifact(stage)
        runtime = self.runtimes.get(stage.identity, self.runtime)
        session = Session(plan=graph, runtime=runtime, listener=self.listener, stop=self.stop)
        place = (self.numbers[stage.identity], len(self.numbers))
        waiting = partial(self._waiting, stage)
        artifact, ran = get_stage(session, stage, inputs, self.store, do=self.do, place=place, waiting=waiting)
        self.ran += [stage.identity] if ran else []
        return artifact

    def _waiting(self, stage: Stage) -> None:
        if self.waits == "no":
            raise Busy(stage)
        if self.waits == "once":
            self.waits = "no"
        self.listener.note(WAITING.format(stage.name))
