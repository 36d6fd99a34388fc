"""The walk: lock, compile, then every stage in turn, skipped where the store has it. Torch comes with the first stage
that needs it, so a run with nothing to do loads none."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from stagedkd._version import __version__
from stagedkd.errors import StagedkdError, StoreError, TrainingError
from stagedkd.execute.context import Context, Done, Listener, Silent, Stop, catching_signals
from stagedkd.execute.locking import lock_spec
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.graph import Plan, Stage
from stagedkd.plan.runtime import Runtime, load_runtime
from stagedkd.plan.work import Distill, Evaluate, Prepare, Teach, Weaken
from stagedkd.spec.schema import Spec
from stagedkd.store.manifest import manifest_of
from stagedkd.store.store import Artifact, Store


@dataclass(frozen=True)
class Outcome:
    """What a run gave: the plan, an artifact for every stage by name, and which stages were run just now."""

    plan: Plan
    artifacts: dict[str, Artifact]
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
    runtime = runtime or load_runtime(Path())
    show = listener or Silent()
    lock, lines = lock_spec(spec, runtime, accept=False)
    for line in lines:
        show.note(f"locked {line}")
    plan = compile_plan(spec, lock)
    for note in plan.notes:
        show.note(note)
    store = Store(runtime.folder("store"))
    if any(store.state(stage) != "hit" for stage in plan.stages):
        from stagedkd.execute.networks import device_of
        from stagedkd.execute.preflight import preflight

        device_of(runtime.device)
        preflight(plan, Path(runtime.root))
    artifacts: dict[str, Artifact] = {}
    ran: list[str] = []
    with catching_signals() as stop:
        for number, stage in enumerate(plan.stages, 1):
            stop.check()
            state = store.state(stage)
            show.stage(number, len(plan.stages), stage, state)
            if state == "hit":
                artifacts[stage.name] = store.artifact(stage)
                artifacts[stage.name].verify()
                continue
            with store.held(stage, lambda: show.note("another run holds this stage; waiting for it")):
                if store.state(stage) != "hit":  # it may have been made while we waited
                    _run_stage(plan, stage, artifacts, store, runtime, show, stop)
                    ran.append(stage.name)
                artifacts[stage.name] = store.artifact(stage)
    return Outcome(plan, artifacts, tuple(ran), runtime)


def _run_stage(
    plan: Plan, stage: Stage, made: dict[str, Artifact], store: Store, runtime: Runtime, show: Listener, stop: Stop
) -> None:
    inputs = {role: made[name] for role, name in stage.needs.items()}
    started = time.time()
    try:
        manifest = manifest_of(plan, stage)
        context = Context(plan, stage, inputs, store.open(stage), manifest, runtime, show, stop)
        done = work_on(context)
        manifest = manifest.model_copy(update={"metrics": dict(done.metrics)})
        facts = {**_facts(started), **done.run}
        store.publish(stage, context.workspace, manifest, facts)
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
    return {"started": started, "seconds": time.time() - started, "stagedkd": __version__}


def work_on(context: Context) -> Done:
    """The one place where a kind of work meets its function."""
    work = context.stage.work
    match work:
        case Prepare():
            from stagedkd.execute.prepare import prepare

            return prepare(context, work)
        case Weaken():
            from stagedkd.execute.prepare import weaken_labels

            return weaken_labels(context, work)
        case Teach():
            from stagedkd.execute.train import teach

            return teach(context, work)
        case Distill():
            from stagedkd.execute.train import distill

            return distill(context, work)
        case Evaluate():
            from stagedkd.execute.evaluate import evaluate

            return evaluate(context, work)
        case _:
            assert_never(work)
