"""Rehearse a run: take a few steps of every training and a few batches of every evaluation, at full size, before the
first stage trains; and say from that what each stage will take.

The stages are made by a worker, with the functions that will make them later, into a store of the rehearsal that is
removed at the end. Stages that differ in seeds and rates alone take the same, so one of them is rehearsed.
"""

from __future__ import annotations

import heapq
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rich.filesize import decimal

from stagedkd.errors import DataError, StagedkdError, about
from stagedkd.experiment.run import compiled, run_experiment
from stagedkd.launch.local import submitting
from stagedkd.launch.protocol import ProgressReader, error_from_json
from stagedkd.launch.ready_queue import Submit, WorkerLost, run_folder
from stagedkd.launch.worker import WorkerRequest
from stagedkd.plan.graph import Graph, Plan, Plans, Stage
from stagedkd.plan.key import Key, digest
from stagedkd.plan.runtime import Runtime
from stagedkd.plan.work import PrepareWork, WeakenWork, Work
from stagedkd.spec.load import Experiment
from stagedkd.spec.schema import Simulated
from stagedkd.stages.context import Listener, Silent, Stop, catching_signals
from stagedkd.stages.stage import store_of
from stagedkd.store.store import Artifact, Store

POLL_SECONDS = 0.1
LONG_SECONDS = 600.0  # a run that will take so long is rehearsed
CPU_FLOPS, GPU_FLOPS = 1e10, 5e12  # a second, of one CPU thread and of one GPU: what small 3-D networks reach, roughly
SHORT_OF_MEMORY = ("out of memory", "can't allocate memory")  # in messages of torch and of stagedkd
VARIED = frozenset({"seed", "lr", "weight_decay", "weight"})  # fields that change what is learned, not what it takes
BATCH = re.compile(r'"batch": ?(\d+)')
GROUND = (PrepareWork, WeakenWork)  # are made, not rehearsed: the trainings read clips and labels


@dataclass(frozen=True)
class Estimate:
    """What a stage will take.

    Attributes:
        seconds: of the whole stage. steps: seconds of a step by phase, in later epochs.
        memory: peak in bytes: `resident` (of the process) and `device`.
        disk: bytes of its artifact. checkpoint: bytes of one checkpoint, which lies beside it until the stage ends.
    """

    seconds: float
    steps: Mapping[str, float] = field(default_factory=dict[str, float])
    memory: Mapping[str, int] = field(default_factory=dict[str, int])
    disk: int = 0
    checkpoint: int = 0


@dataclass(frozen=True)
class Rehearsed:
    """The outcome of a rehearsal: the stages of a run that the store lacks, by key, with what each will take; which
    stage was rehearsed for it; and the seconds of the whole run."""

    plans: Plans
    estimates: Mapping[Key, Estimate]
    alike: Mapping[Key, Stage]
    seconds: float

    @property
    def disk(self) -> int:
        """The bytes that the artifacts and the largest checkpoint will take."""
        found = self.estimates.values()
        return sum(each.disk for each in found) + max((each.checkpoint for each in found), default=0)


def rehearse(experiment: Experiment, runtime: Runtime, listener: Listener) -> Rehearsed:
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
        alike = alike_stages(plans, lacking)
        with store.at_work(plans.name, plans.unique) as mark:
            folder = run_folder(store, f"rehearsal-{mark}")
            try:
                found = Rehearser(plans, folder, store, runtime, listener, stop).run(lacking, alike)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    estimates = {key: found[stage.identity] for key, stage in alike.items()}
    jobs = runtime.jobs if isinstance(runtime.jobs, int) else 1
    rehearsed = Rehearsed(plans, estimates, alike, wall_seconds(plans, estimates, jobs))
    _require_room(store, rehearsed.disk)
    return rehearsed


def rehearse_if_long(
    experiment: Experiment, runtime: Runtime, listener: Listener, wanted: bool, plans: Plans, missing: Sequence[Stage]
) -> None:
    """If it is `wanted`, rehearse a run that will take over ten minutes, by a rough guess from FLOPs, and note what it
    will take."""
    if not wanted or rough_seconds(plans, missing, runtime) < LONG_SECONDS:
        return
    listener.note("the run will take over ten minutes, so it is rehearsed first (--no-rehearsal leaves that out)")
    found = rehearse(experiment, runtime, listener)
    minutes, most = round(found.seconds / 60), max(e.memory.get("resident", 0) for e in found.estimates.values())
    listener.note(f"rehearsed: the run will take about {minutes} min, and {decimal(most)} of memory")


def rough_seconds(plans: Plans, missing: Sequence[Stage], runtime: Runtime) -> float:
    """Guess the seconds of the trainings of these stages, one after the other, from FLOPs: a forward and a backward
    pass are three forward passes. A guess by a factor of three is good."""
    if not any(stage.work.trainings for stage in missing):
        return 0.0
    from stagedkd.experiment.preflight import preflight
    from stagedkd.stages.networks import device_of

    cpu = device_of(runtime.device).type == "cpu"
    rate = CPU_FLOPS * runtime.used_threads if cpu else GPU_FLOPS * runtime.gpus
    left, shapes, flops = {stage.identity for stage in missing}, dict[str, Any](), 0.0
    for plan in plans.cells.values():
        networks = preflight(plan, Path(runtime.root), shapes).networks
        most = max((shape.flops for shape in networks.values()), default=0)
        for stage in plan.stages:
            if stage.identity not in left or not stage.work.trainings:
                continue
            left.discard(stage.identity)
            own = networks[stage.name].flops if stage.name in networks else most
            teacher = networks.get(stage.needs.get("teacher", ""))
            per_clip = 3 * own + (teacher.flops if teacher else 0)
            flops += stage.work.epochs_run * _clips(plan) * per_clip
    return flops / rate


def _clips(plan: Plan) -> int:
    """About how many training clips a plan has."""
    data = plan.spec.data
    if isinstance(data, Simulated):
        return data.train
    return sum(entry.clips for entry in plan.lock.data.values())


def wall_seconds(plans: Plans, estimates: Mapping[Key, Estimate], jobs: int) -> float:
    """The seconds of a run that makes `jobs` stages at once, in the order of the plans."""
    ended: dict[Key, float] = {}
    free = [0.0] * jobs
    for plan in plans.cells.values():
        for stage in plan.stages:
            if stage.identity in ended:
                continue
            ready = max((ended[above.identity] for above in plan.inputs(stage).values()), default=0.0)
            estimate = estimates.get(stage.identity)
            if estimate is None:
                ended[stage.identity] = 0.0
                continue
            begins = max(ready, heapq.heappop(free))
            ended[stage.identity] = begins + estimate.seconds
            heapq.heappush(free, ended[stage.identity])
    return max(ended.values(), default=0.0)


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


def alike_stages(plans: Plans, lacking: set[Key]) -> dict[Key, Stage]:
    """For each stage that the store lacks, the first one that takes the same: its work differs in seeds and rates
    alone, and so do those above it."""
    costs: dict[Key, str] = {}
    first: dict[str, Stage] = {}
    alike: dict[Key, Stage] = {}
    for plan in plans.cells.values():
        for stage in plan.stages:
            if stage.identity in costs:
                continue
            above = {name: costs[upstream.identity] for name, upstream in plan.inputs(stage).items()}
            costs[stage.identity] = digest([stage.work.kind, _fixed(stage.work.model_dump(mode="json")), above])
            if stage.identity in lacking:
                alike[stage.identity] = first.setdefault(costs[stage.identity], stage)
    return alike


def _fixed(value: object) -> object:
    """A work's values without those that vary."""
    if isinstance(value, dict):
        values = cast("dict[str, object]", value)
        return {name: _fixed(inner) for name, inner in values.items() if name not in VARIED}
    return [_fixed(inner) for inner in cast("list[object]", value)] if isinstance(value, list) else value


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
        runtime = self.runtime.model_copy(update={"store": str(store.root), "threads": self.runtime.used_threads})
        with submitting(self.folder, 1, runtime.threads) as submit:
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
        batch = max(map(int, BATCH.findall(stage.work.model_dump_json())), default=1)
        while batch > 1:
            batch //= 2
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
