"""The launcher of workers on this machine (`run --jobs n`): each worker is a process that makes one stage at a time.

ready_queue.py says which stage is made when, and worker.py is the other side. A worker makes many stages, so that torch
is loaded once in each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from stagedkd.errors import Interrupted, StagedkdError, UsageError
from stagedkd.launch.ready_queue import ReadyQueue, Submit, WorkerLost, missing_stages, run_folder
from stagedkd.launch.worker import WorkerRequest
from stagedkd.plan.cpus import Cpus
from stagedkd.plan.graph import Graph, Plans, Stage
from stagedkd.plan.key import Key
from stagedkd.plan.runtime import Runtime
from stagedkd.stages.context import Listener, Stop
from stagedkd.store.store import Store

END_SECONDS = 5.0  # from closing a worker's stdin until it is killed


def jobs_for(graphs: Iterable[Graph], missing: Iterable[Stage], runtime: Runtime, cpus: int) -> int:
    """The number of stages to make side by side: as the runtime says, but no more than the missing stages have room
    for. 1 means in this process. Loads torch if there is something to decide.

    Raises:
        UsageError: `jobs` and `gpus` are both above 1.
    """
    if isinstance(runtime.jobs, int) and runtime.jobs > 1 and runtime.gpus > 1:
        message = f"gpus: {runtime.gpus} divides each training among processes, so jobs must be 1"
        raise UsageError(message, hint="leave out --jobs, or set gpus: 1")
    levels = _levels(graphs, {stage.identity: 1 for stage in missing})
    room = max(Counter(levels.values()).values(), default=1)
    if isinstance(runtime.jobs, int):
        return min(runtime.jobs, room)
    count = min(cpus // runtime.used_threads, room)
    return count if count > 1 and _on_cpus(runtime) else 1


def cpu_notes(graphs: Iterable[Graph], missing: Iterable[Stage], runtime: Runtime, cpus: Cpus) -> Iterator[str]:
    """Yield what limits the threads of a run on the CPU, and what `jobs` could do for it, if there is much to do."""
    epochs = {stage.identity: stage.work.epochs_run for stage in missing}
    if runtime.threads or not any(epochs.values()) or not _on_cpus(runtime):
        return
    if cpus.limited:
        yield f"threads: {runtime.used_threads}, since {cpus.limit} is {cpus.count} (--threads sets another number)"
    longest = max(_levels(graphs, epochs).values())
    count = min(cpus.count, sum(epochs.values()) // longest)
    if runtime.jobs == "auto" and count > 1:
        each = cpus.count // count
        yield (
            f"--jobs {count} would make {count} stages at once, on {each} of {cpus.count} threads each, and give other "
            "last bits"
        )


def _levels(graphs: Iterable[Graph], weights: Mapping[Key, int]) -> dict[Key, int]:
    """The largest sum of weights on a path of these stages to each of them. With weights of 1, stages of one level do
    not need each other, so they can be made at once."""
    levels: dict[Key, int] = {}
    for graph in graphs:
        for stage in graph.stages:
            if stage.identity in weights and stage.identity not in levels:
                above = (levels.get(upstream.identity, 0) for upstream in graph.inputs(stage).values())
                levels[stage.identity] = weights[stage.identity] + max(above, default=0)
    return levels


def _on_cpus(runtime: Runtime) -> bool:
    from stagedkd.stages.networks import device_of

    return runtime.gpus == 1 and device_of(runtime.device).type == "cpu"


def run_in_processes(
    plans: Plans, jobs: int, store: Store, mark: str, runtime: Runtime, listener: Listener, stop: Stop
) -> Mapping[Key, bool | StagedkdError]:
    """Run every stage that the store does not have, `jobs` at once. `mark` identifies the run in the store.

    Returns:
        by key, whether the stage was made just now, or why it failed; stages that need a failed one are left out.
    Raises:
        Interrupted: a signal came; the workers have written checkpoints.
    """
    threads, folder = runtime.used_threads, run_folder(store, f"jobs-{mark}")
    runtime = runtime.model_copy(update={"threads": threads})
    request = partial(WorkerRequest.of, runtime=runtime, steps=True)
    with submitting(folder, jobs, threads) as submit:
        queue = ReadyQueue(missing_stages(plans, store), submit, folder, request, listener, stop, slots=jobs)
        queue.run()
    if not queue.keep_logs:
        shutil.rmtree(folder, ignore_errors=True)
    if stop.number is not None:
        if len(queue.interrupted) == 1:
            raise queue.interrupted[0]
        message = f"stopped by signal {stop.number}; the running stages have written checkpoints"
        raise Interrupted(stop.number, message, hint="run the same command to resume from the checkpoints")
    store.refresh_listing()
    return queue.outcomes


class _Worker:
    """A worker process. It ends when its stdin closes, for whatever reason this process ends."""

    def __init__(self, folder: Path, threads: int) -> None:
        command = [sys.executable, "-m", "stagedkd.launch.worker", str(folder)]
        # the safe path: otherwise -m looks for modules in the working folder first
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONSAFEPATH": "1"}
        with (folder / "workers.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # so that Ctrl-C reaches this process alone, and a stage reaches its checkpoint
            )

    def make(self, name: str) -> dict[str, Any]:
        """Make the stage that a request names, and give what `make_stage` returns.

        Raises:
            WorkerLost: the process has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        code = self.process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        memory = "; perhaps memory was short, so try fewer --jobs" if code == -signal.SIGKILL else ""
        raise WorkerLost(f"its worker {how}{memory}")

    def end(self) -> None:
        """End the process, whatever it does."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextmanager
def submitting(folder: Path, jobs: int, threads: int) -> Generator[Submit]:
    """Give the function that submits a stage. A worker is started when no idle one is left; all end at the end."""
    idle, workers = SimpleQueue[_Worker](), list[_Worker]()
    pool = ThreadPoolExecutor(jobs)  # a thread for each worker, which waits for it

    def make(worker: _Worker, name: str) -> dict[str, Any]:
        result = worker.make(name)
        idle.put(worker)
        return result

    def submit(name: str) -> Future[dict[str, Any]]:
        try:
            worker = idle.get_nowait()
        except Empty:
            worker = _Worker(folder, threads)
            workers.append(worker)
        return pool.submit(make, worker, name)

    try:
        yield submit
    finally:
        for worker in workers:
            worker.end()
        pool.shutdown()
