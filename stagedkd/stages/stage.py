"""One stage: taken from the store, or made under the lease of its key and published.

The function that does the work is a parameter (`do`): `work_on` in this process, or a launcher of other processes. So
this layer knows no launcher. Torch is loaded by the first kind of work that needs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import assert_never

from stagedkd.errors import StagedkdError, StoreError, TrainingError, host_error, remedy
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.runtime import Runtime
from stagedkd.plan.work import DistillWork, EvaluateWork, PrepareWork, RefineWork, TeachWork, WeakenWork
from stagedkd.stages import memory
from stagedkd.stages.context import Context, Do, Listener, Result, Session, Stop
from stagedkd.stages.inputs import note_inputs, require_unchanged
from stagedkd.stages.provenance import environment, several_environments
from stagedkd.store.leases import Lease
from stagedkd.store.manifest import manifest_of, upstream_digests
from stagedkd.store.store import Artifact, Store
from stagedkd.train.rehearsal import Rehearsal

WAITING = "{} is being made by another run; waiting for it"


class Busy(Exception):
    """Another run is making a stage, and this run does not wait for it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.name)
        self.stage = stage


def work_on(context: Context) -> Result:
    """Do the work of a stage in this process. A rehearsal also gives what it measured."""
    if context.rehearsals is None:
        return _work(context)
    memory.reset_peak()
    result = _work(context)
    rehearsed = [each.facts() for each in context.rehearsals]
    return replace(result, run={**result.run, "rehearsed": rehearsed, "memory": memory.peak_memory()})


def _work(context: Context) -> Result:
    """Do the work: the one place where a kind of work meets its function."""
    work = context.stage.work
    match work:
        case PrepareWork():
            from stagedkd.stages.prepare import prepare

            return prepare(context, work)
        case WeakenWork():
            from stagedkd.stages.weaken import weaken

            return weaken(context, work)
        case TeachWork():
            from stagedkd.stages.teach import teach

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


def get_stage(
    session: Session,
    stage: Stage,
    inputs: Mapping[str, Artifact],
    store: Store,
    *,
    do: Do = work_on,
    place: tuple[int, int] = (1, 1),
    waiting: Callable[[], None] | None = None,
) -> tuple[Artifact, bool]:
    """Get the artifact of a stage from the store, or make it while this process holds the lease of its key.

    Args:
        inputs: the artifacts that the stage needs, by the names of their stages.
        do: does the work. place: the stage's number and the number of all stages, for the listener.
        waiting: called once if another run holds the lease; it may raise. None: the listener gets a note.
    Returns:
        the artifact, and whether it was made just now.
    Raises:
        StagedkdError: the stage failed; what was finished stays. StoreError: its artifact is damaged.
        Interrupted: a signal came; the same call resumes.
    """
    state = store.state(stage)
    if state == "hit":
        session.listener.stage(*place, stage, state)
        artifact = store.artifact(stage)
        artifact.verify()
        return artifact, False
    waiting = waiting or partial(session.listener.note, WAITING.format(stage.name))
    held = store.held(stage, waiting, session.stop.check, session.listener.note)
    with held as lease, session.stop.guarded(lease):
        state = store.state(stage)
        session.listener.stage(*place, stage, state)
        if state != "hit":  # it may have been made while we waited
            _make(session, stage, inputs, store, lease, do)
        return store.artifact(stage), state != "hit"


def get_alone(
    graph: Graph,
    stage: Stage,
    runtime: Runtime,
    listener: Listener,
    stop: Stop,
    do: Do = work_on,
    waiting: Callable[[], None] | None = None,
    *,
    rehearses: bool = False,
) -> tuple[Artifact, bool]:
    """`get_stage` for one stage of a graph, with its inputs taken from the store. `rehearses`: it is only rehearsed, so
    the store must be one of a rehearsal.

    Raises:
        StoreError: the store lacks an input of the stage. Also raises what `get_stage` raises.
    """
    store = store_of(runtime)
    inputs: dict[str, Artifact] = {}
    if store.state(stage) != "hit":
        for above in graph.inputs(stage).values():
            if store.state(above) != "hit":
                message = f"stage {stage.name} needs {above.name} ({above.folder}), which the store does not have"
                raise StoreError(message, hint=f"run: stagedkd stage {above.identity.short}")
            inputs[above.name] = store.artifact(above)
    rehearsals = list[Rehearsal]() if rehearses else None
    session = Session(plan=graph, runtime=runtime, listener=listener, stop=stop, rehearsals=rehearsals)
    return get_stage(session, stage, inputs, store, do=do, waiting=waiting)


def store_of(runtime: Runtime) -> Store:
    """The store that a runtime names."""
    return Store(runtime.folder("store"), runtime.lease_seconds)


def _make(session: Session, stage: Stage, inputs: Mapping[str, Artifact], store: Store, lease: Lease, do: Do) -> None:
    """Do the work of a stage whose lease is held, and publish the artifact.

    Raises:
        StagedkdError: the work or the publishing failed.
    """
    started = time.time()
    try:
        workspace, manifest = store.open(stage, lease), manifest_of(session.plan, stage)
        note_inputs(workspace.scratch, {label: inputs[name] for label, name in stage.needs.items()})
        context = Context(
            plan=session.plan,
            runtime=session.runtime,
            listener=session.listener,
            stop=session.stop,
            rehearsals=session.rehearsals,
            stage=stage,
            inputs={label: inputs[name] for label, name in stage.needs.items()},
            workspace=workspace,
            manifest=manifest,
        )
        result = do(context)
        require_unchanged(context)
        upstream = upstream_digests([artifact.manifest for artifact in context.inputs.values()])
        manifest = manifest.model_copy(update={"metrics": dict(result.metrics), "inputs": upstream})
        times = {"started": started, "seconds": time.time() - started}
        facts = {**times, **environment(), "compile": session.runtime.compile, **result.run}
        facts |= several_environments(workspace.scratch)
        store.publish(stage, workspace, manifest, facts, lease)
    except OSError as error:
        hint = f"{remedy(error)}, then run the same command again"
        raise StoreError(f"stage {stage.name}: {error}", hint=hint) from error
    except StagedkdError:
        raise
    except Exception as error:
        refused = host_error(error)
        what = refused.message if refused else f"{type(error).__name__}: {error}"
        hint = refused.hint if refused else "run with -v for the traceback"
        raise TrainingError(f"stage {stage.name} failed: {what}", hint=hint) from error
    session.listener.finished(stage, time.time() - started)
