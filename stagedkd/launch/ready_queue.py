"""The ready-queue: gives workers the missing stages of an experiment, each when the store has all that it needs.

It knows no launcher. `submit` takes the name of a request below the run's folder and gives the result of its worker
later: Parsl's workers (parsl.py), or processes on this machine (local.py). worker.py is the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from stagedkd.errors import Interrupted, StagedkdError, TrainingError
from stagedkd.files import write_whole
from stagedkd.launch.protocol import ProgressReader, error_from_json
from stagedkd.launch.worker import WorkerRequest
from stagedkd.plan.graph import Graph, Plans, Stage
from stagedkd.plan.key import Key
from stagedkd.stages.context import Listener, Stop
from stagedkd.store.store import WORK, Store

POLL_SECONDS = 0.1
Submit: TypeAlias = Callable[[str], "Future[dict[str, Any]]"]


class Request(Protocol):
    """Makes the request for a stage. `waits`: whether its worker waits for a stage that another run is making."""

    def __call__(self, graph: Graph, stage: Stage, *, waits: bool) -> WorkerRequest: ...


class WorkerLost(Exception):
    """A worker ended while it made a stage. The message says how."""


class _WorkerTraceback(Exception):
    """The traceback of a worker, as text."""


@dataclass
class Job:
    """A stage that the store lacks, the `number`-th of `of` stages.

    `future` is the result of its worker while one works on it, and `progress` reads that worker's progress. `started`
    says whether that worker has reported its start, `postponed` whether another run was making the stage. `lost` counts
    the workers that were lost with this stage, and `tries` all that got it.
    """

    plan: Graph
    stage: Stage
    number: int
    of: int
    future: Future[dict[str, Any]] | None = None
    progress: ProgressReader | None = None
    started: bool = False
    postponed: bool = False
    lost: int = 0
    tries: int = 0

    @property
    def label(self) -> str:
        return f"[{self.number}/{self.of}] {self.stage.name}"


def missing_stages(plans: Plans, store: Store) -> dict[Key, Job]:
    """The stages of an experiment that the store lacks, each once, those that a stage needs before it."""
    unique = plans.unique
    numbers = {key: number for number, key in enumerate(unique, 1)}
    lacking = {key for key, stage in unique.items() if store.state(stage) != "hit"}
    jobs: dict[Key, Job] = {}
    for plan in plans.cells.values():
        for stage in plan.stages:
            if stage.identity in lacking and stage.identity not in jobs:
                jobs[stage.identity] = Job(plan, stage, numbers[stage.identity], len(numbers))
    return jobs


def run_folder(store: Store, name: str) -> Path:
    """Make the folder of a run below the store, for what the launcher and the workers tell each other."""
    folder = (store.root / WORK / name).resolve()
    for part in ("requests", "progress"):
        (folder / part).mkdir(parents=True)
    return folder


@dataclass
class ReadyQueue:
    """Gives missing stages to workers in the order of the plans, and collects the results.

    `slots` is the number of stages that are submitted at once; None leaves it to the launcher. `lost_errors` are the
    launcher's errors that mean that a worker was lost; its stage is submitted again at most `retries` times. `outcomes`
    holds the stages that have ended, by key: whether they were made just now, or why they failed. `interrupted` holds
    the errors of the stages that a signal stopped. `keep_logs`: something failed that the launcher's logs may explain.
    """

    missing: Mapping[Key, Job]
    submit: Submit
    folder: Path
    request: Request
    listener: Listener
    stop: Stop
    slots: int | None = None
    lost_errors: tuple[type[BaseException], ...] = (WorkerLost,)
    retries: int = 0
    outcomes: dict[Key, bool | StagedkdError] = field(default_factory=dict[Key, "bool | StagedkdError"])
    interrupted: list[Interrupted] = field(default_factory=list[Interrupted])
    keep_logs: bool = False

    def run(self) -> None:
        """Run until no stage is submitted; after a signal, until every stage that was started has ended."""
        announced = False
        while True:
            stopped = self.stop.number is not None
            if stopped and not announced:
                write_whole(self.folder / "stop", str(self.stop.number))
                announced = True
            if not stopped:
                self._fill()
            submitted = [job for job in self.missing.values() if job.future is not None]
            awaited = [job.future for job in submitted if job.future and not (stopped and not job.started)]
            if not awaited:
                return
            wait(awaited, POLL_SECONDS, FIRST_COMPLETED)
            for job in submitted:
                self._poll(job)

    def _fill(self) -> None:
        """Submit as many ready stages as there are free slots. Those that other runs are making come last."""
        ready = [job for job in self.missing.values() if job.future is None and self._is_ready(job)]
        running = sum(job.future is not None for job in self.missing.values())
        free = None if self.slots is None else self.slots - running
        for job in sorted(ready, key=lambda job: job.postponed)[:free]:
            self._submit(job)

    def _is_ready(self, job: Job) -> bool:
        """Whether the store has all inputs of a stage, and the stage has not ended."""
        needs = [above.identity for above in job.plan.inputs(job.stage).values()]
        have_inputs = all(key not in self.missing or isinstance(self.outcomes.get(key), bool) for key in needs)
        return have_inputs and job.stage.identity not in self.outcomes

    def _submit(self, job: Job) -> None:
        """Submit a stage to the next free worker."""
        name = f"{job.stage.folder}.{job.tries}"
        request = self.request(job.plan, job.stage, waits=job.postponed or self.slots is None)
        write_whole(self.folder / "requests" / f"{name}.json", request.model_dump_json())
        path, beside = self.folder / "progress" / f"{name}.jsonl", self.listener.beside(job.stage, job.label)
        job.progress, job.started = ProgressReader(path, beside, partial(self._begin, job)), False
        job.tries += 1
        job.future = self.submit(name)

    def _begin(self, job: Job, state: str) -> None:
        """A worker has begun with a stage, of which the store has `state`."""
        self.listener.stage(job.number, job.of, job.stage, state)
        job.started = True

    def _poll(self, job: Job) -> None:
        """Show the progress of a worker, and take its result when it is done."""
        assert job.progress is not None and job.future is not None
        done = job.future.done()
        job.progress.relay()
        if done:
            future, job.future = job.future, None
            error = future.exception()
            self._take_result(job, error, {} if error else future.result())

    def _take_result(self, job: Job, error: BaseException | None, result: Mapping[str, Any]) -> None:
        """Record how a stage ended: the store has it, it failed, another run is making it, or its worker was lost.

        Args:
            error: where the worker returned nothing. result: what the worker returned.
        """
        if result.get("busy"):
            job.postponed = True
            return
        if error is None and "error" not in result:
            self.outcomes[job.stage.identity] = result["ran"]
            if result["ran"]:
                self.listener.finished(job.stage, result["seconds"])
            return
        stage_error = error_from_json(result["error"]) if error is None else None
        if isinstance(stage_error, Interrupted) and self.stop.number is not None:
            self.interrupted.append(stage_error)
        elif stage_error is not None and not isinstance(stage_error, Interrupted):
            stage_error.__cause__ = _WorkerTraceback(f"in the worker\n{result['trace']}")
            self._fail(job, stage_error)
        elif self.stop.number is None:
            self._retry(job, error or stage_error)

    def _retry(self, job: Job, error: BaseException | None) -> None:
        """Let a stage whose worker was lost be submitted again, to resume from its last checkpoint, or record that it
        failed: after too many tries, or if the error is another one."""
        lost = isinstance(error, (*self.lost_errors, Interrupted))
        text = str(error) if isinstance(error, WorkerLost) else f"{type(error).__name__}: {error}".strip()
        if lost and job.lost < self.retries:
            job.lost += 1
            self.listener.note(f"{job.label}: its worker was lost; try {job.lost + 1} of {self.retries + 1} ({text})")
            return
        self.keep_logs = True
        words = f"{job.lost + 1} workers were lost; the last error is " if lost and self.retries else ""
        hint = f"see the logs of the workers in {self.folder}; the same command resumes from the last checkpoint"
        self._fail(job, TrainingError(f"stage {job.stage.name}: {words}{text}", hint=hint))

    def _fail(self, job: Job, error: StagedkdError) -> None:
        self.outcomes[job.stage.identity] = error
        self.listener.failed(job.stage, error.message)
