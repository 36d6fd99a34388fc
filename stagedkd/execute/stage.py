"""One stage: its workspace, its work, its publication."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from typing import assert_never

from stagedkd.errors import StagedkdError, StoreError, TrainingError
from stagedkd.execute.context import Context, Done, Listener, Stop
from stagedkd.execute.environment import environment
from stagedkd.execute.ranks import wants_ranks, work_in_ranks
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.runtime import Runtime
from stagedkd.plan.work import Distill, Evaluate, Prepare, Refine, Teach, Weaken
from stagedkd.store.leases import Lease
from stagedkd.store.manifest import manifest_of
from stagedkd.store.store import Artifact, Store


def make_stage(
    plan: Graph, stage: Stage, made: Mapping[str, Artifact], store: Store, lease: Lease, runtime: Runtime,
    show: Listener, stop: Stop,
) -> None:  # fmt: skip
    """Run a stage whose lease is held, from the artifacts `made` by the names of their stages, and publish it.

    Raises:
        StagedkdError: by stage name, whatever went wrong.
    """
    inputs = {role: made[name] for role, name in stage.needs.items()}
    started = time.time()
    try:
        manifest = manifest_of(plan, stage)
        context = Context(plan, stage, inputs, store.open(stage, lease), manifest, runtime, show, stop)
        done = work_in_ranks(context) if wants_ranks(stage, runtime) else work_on(context)
        manifest = manifest.model_copy(update={"metrics": dict(done.metrics)})
        facts = {**_facts(started), **environment(), "compile": runtime.compile, **done.run}
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
        case Prepare():
            from stagedkd.execute.prepare import prepare

            return prepare(context, work)
        case Weaken():
            from stagedkd.execute.prepare import weaken_labels

            return weaken_labels(context, work)
        case Teach():
            from stagedkd.execute.train import teach

            return teach(context, work)
        case Refine():
            from stagedkd.execute.refine import refine

            return refine(context, work)
        case Distill():
            from stagedkd.execute.train import distill

            return distill(context, work)
        case Evaluate():
            from stagedkd.execute.evaluate import evaluate

            return evaluate(context, work)
        case _:
            assert_never(work)
