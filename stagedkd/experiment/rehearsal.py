"""Rehearse a run: take a few steps of every training and a few batches of every evaluation, at full size, before the
first stage trains; and say from that what each stage will take.

The stages are made by a worker, with the functions that will make them later, into a store of the rehearsal that is
removed at the end. Stages that differ in seeds and rates alone take the same, so one of them is rehearsed.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stagedkd.errors import DataError, StagedkdError, about
from stagedkd.experiment.costs import Costs, Estimate, alike_stages, costs_of, keep_costs
from stagedkd.experiment.run import compiled, run_experiment
from stagedkd.launch.local import submitting
from stagedkd.launch.protocol import ProgressReader, error_from_json
from stagedkd.launch.ready_queue import Submit, WorkerLost, run_folder
from stagedkd.launch.torchrun import check_ranks, threads_of_ranks, wants_ranks
from stagedkd.launch.worker import WorkerRequest
from stagedkd.plan.graph import Graph, Plan, Plans, Stage
from stagedkd.plan.key import Key, digest
from stagedkd.plan.runtime import Runtime
from stagedkd.plan.work import PrepareWork, WeakenWork, Work
from stagedkd.spec.load import Experiment
from stagedkd.stages.context import Listener, Silent, Stop, catching_signals
from stagedkd.stages.stage import store_of
from stagedkd.store.store import Artifact, Store

POLL_SECONDS = 0.1
LONG_SECONDS = 600.0  # a run that will take so long is rehearsed
WORTH_SAYING = 60.0
SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "was ended by SIGKILL")  # of torch, and of stagedkd
BATCH = re.compile(r'"batch": ?(\d+)')
GROUND = (PrepareWork, WeakenWork)  # are made, not rehearsed: the trainings read clips and labels


def rehearse(experiment: Experiment, runtime: Runtime, listener: Listener) -> Costs:
    """Rehearse every stage that the store lacks. Clips are read and labels drawn for real, for the trainings to come.

    Raises:
        SpecError, LockError, UsageError: before anything is run.
        DataError, TrainingError, StoreError: a stage will fail; if memory is short, with the largest batch that fits.
        Interrupted: a signal came.
    """
    ground = run_experiment(experiment, runtime, listener, cut=_ground)
    for error in ground.failed.values():
        raise error
    with about(experiment.origin), catching_signals() as stop:
        plans, store = compiled(experiment, runtime, Silent()), store_of(runtime)
        lacking = {key for key, stage in plans.unique.items() if store.state(stage) != "hit"}
        check_ranks((plans.unique[key] for key in lacking), runtime)
        alike = alike_stages(plans, lacking)
        with store.at_work(plans.name, plans.unique) as mark:
            folder = run_folder(store, f"rehearsal-{mark}")
            try:
                found = Rehearser(plans, folder, store, runtime, listener, stop).run(lacking, alike)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    try:
        keep_costs(plans, found, runtime)
    except OSError as error:
        listener.note(f"what was measured is not kept for later runs: {error}")
    costs = costs_of(plans, lacking, runtime, measured=found)
    _require_room(store, costs.disk)
    return costs


def rehearse_if_long(
    experiment: Experiment, runtime: Runtime, listener: Listener, wanted: bool, plans: Plans, missing: Sequence[Stage]
) -> dict[Key, float]:
    """Note what a run will take if it is over a minute. If it is `wanted`, one that takes over ten minutes and was not
    rehearsed on this machine is rehearsed first.

    Returns:
        the seconds that each missing stage is expected to take, 0 where unknown; nothing if none of them trains.
    """
    if not any(stage.work.trainings for stage in missing):
        return {}
    costs = costs_of(plans, {stage.identity for stage in missing}, runtime)
    if wanted and costs.guessed and costs.seconds >= LONG_SECONDS:
        listener.note("the run will take over ten minutes, so it is rehearsed first (--no-rehearsal leaves that out)")
        costs = rehearse(experiment, runtime, listener)
    if costs.seconds >= WORTH_SAYING:
        listener.note(costs.text)
    estimates = costs.estimates
    return {s.identity: estimates[s.identity].seconds if s.identity in estimates else 0.0 for s in missing}


def _ground(plan: Plan) -> Plan:
    """The stages that read the data and draw the labels."""
    return replace(plan, stages=tuple(stage for stage in plan.stages if isinstance(stage.work, GROUND)))


def _renamed(plan: Plan, lacking: set[Key]) -> Graph:
    """The plan with other keys for what is only rehearsed, so that nothing of it can be taken for the real one."""
    stages = (
        replace(each, identity=Key(digest(["rehearsed", each.identity]))) if each.identity in lacking else each
        for each in plan.stages
    )
    return replace(plan, stages=tuple(stages))


def _with_batch(work: Work, most: int) -> Work:
    """A work with no larger batch than `most`."""
    text = BATCH.sub(lambda found: f'"batch":{min(int(found[1]), most)}', work.model_dump_json())
    return type(work).model_validate_json(text, strict=False)


def _require_room(store: Store, disk: int) -> None:
    """Raise DataError if the disk of the store has no room for so many bytes."""
    free = shutil.disk_usage(store.root).free
    if disk > free:
        message = f"the run writes about {disk:,} bytes to {store.root}, and {free:,} are free"
        raise DataError(message, hint="free some space, or name another store with --store")


@dataclass
class Rehearser:
    """Makes the stages of a rehearsal, one after the other, in a worker; a worker that is lost is replaced."""

    plans: Plans
    folder: Path
    real: Store
    runtime: Runtime
    listener: Listener
    stop: Stop

    def run(self, lacking: set[Key], alike: Mapping[Key, Stage]) -> dict[Key, Estimate]:
        """Rehearse the stages that stand for others, in order, and give what each takes, by key."""
        wanted = {stage.identity for stage in alike.values()}
        store = Store(self.folder / "store")
        store.root.mkdir()
        found: dict[Key, Estimate] = {}
        runtime = self.runtime.model_copy(update={"store": str(store.root)})
        with submitting(self.folder, 1, runtime.used_threads) as submit:
            for plan in self.plans.cells.values():
                graph = _renamed(plan, lacking)
                for stage, like in zip(plan.stages, graph.stages, strict=True):
                    if stage.identity not in lacking:
                        self._link(store, stage)
                    elif stage.identity in wanted and stage.identity not in found:
                        self.stop.check()
                        self._complete(graph, like, store, runtime, submit)
                        found[stage.identity] = estimate_of(store.artifact(like))
        return found

    def _link(self, store: Store, stage: Stage) -> None:
        """Let the rehearsal read an artifact of the real store."""
        place = store.root / stage.folder
        if not place.exists():
            place.symlink_to(self.real.artifact(stage).folder, target_is_directory=True)

    def _complete(self, graph: Graph, stage: Stage, store: Store, runtime: Runtime, submit: Submit) -> None:
        """Make a stage and those above it that were not rehearsed, since another stands for them."""
        for above in graph.closure(stage):
            if store.state(above) == "hit":
                continue
            error, short = self.make(graph, above, runtime, submit)
            if error is not None and short:
                raise self.too_large(graph, above, runtime, submit, error)
            if error is not None:
                raise error

    def too_large(
        self,
        graph: Graph,
        stage: Stage,
        runtime: Runtime,
        submit: Submit,
        error: StagedkdError,
    ) -> StagedkdError:
        """Find the largest batch that fits, by halving, for the error of a stage that needs too much memory."""
        share = runtime.gpus if wants_ranks(stage, runtime) else 1  # a batch is divided evenly among the ranks
        batch = max(map(int, BATCH.findall(stage.work.model_dump_json())), default=share)
        while batch >= 2 * share:
            batch = batch // 2 // share * share
            work, key = _with_batch(stage.work, batch), Key(digest([stage.identity, batch]))
            smaller = replace(stage, work=work, identity=key)
            stages = tuple(smaller if each is stage else each for each in graph.stages)
            failed, short = self.make(replace(graph, stages=stages), smaller, runtime, submit)
            if failed is None:
                field = "train.batch" if stage.work.trainings else "evaluate.batch"
                return DataError(error.message, hint=f"set {field}: {batch}, which fits")
            if not short:
                return failed
        return DataError(error.message, hint="no batch fits: lower clip.size or clip.frames, or use a smaller network")

    def make(self, graph: Graph, stage: Stage, runtime: Runtime, submit: Submit) -> tuple[StagedkdError | None, bool]:
        """Make a stage in the worker. Give its error, and whether memory was short."""
        name = f"{stage.folder}"
        threads = threads_of_ranks(runtime) if wants_ranks(stage, runtime) else runtime.used_threads
        runtime = runtime.model_copy(update={"threads": threads})
        request = WorkerRequest.of(graph, stage, runtime, rehearses=True)
        (self.folder / "requests" / f"{name}.json").write_text(request.model_dump_json(), "utf-8")
        self.listener.note(f"rehearsing {stage.name}")
        reader = ProgressReader(self.folder / "progress" / f"{name}.jsonl", self.listener)
        future = submit(name)
        while not future.done():
            if self.stop.number is not None:
                (self.folder / "stop").write_text(str(self.stop.number), "utf-8")
            try:
                future.exception(POLL_SECONDS)
            except TimeoutError:
                reader.relay()
        try:
            result = future.result()
        except WorkerLost as lost:
            killed = signal.SIGKILL.name in str(lost)  # what Linux does when memory is used up
            return DataError(f"stage {stage.name}: {lost}", hint="run it with -v --no-rehearsal to see why"), killed
        if "error" not in result:
            return None, False
        error = error_from_json(result["error"])
        return error, any(words in error.message for words in SHORT_OF_MEMORY)


def estimate_of(artifact: Artifact) -> Estimate:
    """What a stage will take, from its rehearsal."""
    facts = artifact.run or {}
    rehearsed: Sequence[Mapping[str, Any]] = facts.get("rehearsed", ())
    beside = max(0.0, facts["seconds"] - sum(row["spent"] for row in rehearsed))
    steps = {name: seconds for row in rehearsed for name, seconds in row["steps"].items()}
    disk = sum(path.stat().st_size for path in artifact.folder.rglob("*") if path.is_file())
    seconds = beside + sum(row["seconds"] for row in rehearsed)
    checkpoint = max((row["checkpoint"] for row in rehearsed), default=0)
    return Estimate(seconds, steps, facts.get("memory", {}), disk, checkpoint)
