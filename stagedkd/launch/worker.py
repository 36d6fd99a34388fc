"""The processes of workers. Each makes one stage at a time, as a file in the run's folder requests; ready_queue.py is
the other side.

    python -m stagedkd.launch.worker FOLDER        a worker that local.py starts; Parsl's workers call `make_stage`

In the run's folder, below the store: `requests/<stage>.json`, `progress/<stage>.jsonl`, `stop`. A local worker reads
the names of requests from stdin, a line each, writes each result to stdout as a line of JSON, and ends with its stdin.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from stagedkd.launch.protocol import ProgressWriter, StageRequest, error_as_json, stop_by_file
from stagedkd.plan.cpus import limit_spinning, usable_cpus
from stagedkd.plan.graph import Stage
from stagedkd.plan.runtime import prepare_libraries
from stagedkd.stages.context import catching_signals


class WorkerRequest(StageRequest):
    """A request to a worker.

    Attributes:
        devices: the accelerators of its node: their names or their number.
        steps: whether the progress has steps and counts.
        waits: whether it waits for a stage that another run is making.
        rehearses: whether the stage is only rehearsed, in a store of the rehearsal.
    """

    devices: tuple[str, ...] | int = 0
    steps: bool = False
    waits: bool = True
    rehearses: bool = False


def make_stage(place: str, name: str) -> dict[str, Any]:
    """Make a stage, unless the store has it by now. `place` is the run's folder.

    Returns:
        whether it `ran`, and its `seconds`; or `busy`, if another run is making it; or the `error` and the `trace`.
        These are plain values, so that no class of stagedkd is pickled.
    """
    folder = Path(place)
    try:
        request = WorkerRequest.read(folder / "requests" / f"{name}.json")
        progress = _WorkerProgress(folder / "progress" / f"{name}.jsonl", steps=request.steps)
        pin(request.devices)
        limit_spinning()
        prepare_libraries(request.runtime)
        threads = request.runtime.threads or threads_per_worker()
        os.environ["OMP_NUM_THREADS"] = str(threads)
        from stagedkd.launch.torchrun import wants_ranks, work_in_ranks
        from stagedkd.stages.stage import Busy, get_alone, work_on

        runtime, graph = request.runtime.model_copy(update={"threads": threads}), request.graph
        stage = graph.stage(request.stage)

        def postpone() -> None:
            raise Busy(stage)

        waiting = None if request.waits else postpone
        with catching_signals() as stop, stop_by_file(folder / "stop", stop):
            stop.check()
            try:
                rehearses = request.rehearses
                do = work_in_ranks if rehearses and wants_ranks(stage, runtime) else work_on
                _, ran = get_alone(graph, stage, runtime, progress, stop, do, waiting, rehearses=rehearses)
            except Busy:
                return {"busy": True}
        return {"ran": ran, "seconds": progress.seconds}
    except Exception as error:
        return {"error": error_as_json(error), "trace": traceback.format_exc()}


@cache
def pin(devices: tuple[str, ...] | int) -> None:
    """Restrict this process to one accelerator, by its number among the workers of the node. Call it before torch lists
    the devices. A count of devices starts at the first device that the scheduler has assigned to the job."""
    if not devices:
        return
    if isinstance(devices, int):
        assigned = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = tuple(filter(None, assigned.split(","))) or tuple(map(str, range(devices)))
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(os.environ["PARSL_WORKER_RANK"]) % len(devices)]


@cache
def threads_per_worker() -> int:
    """The CPUs that this process may use, divided evenly among the workers of the node. Found once, since this process
    sets OMP_NUM_THREADS itself."""
    return max(1, usable_cpus().count // int(os.environ["PARSL_WORKER_COUNT"]))


class _WorkerProgress(ProgressWriter):
    """Writes the progress of a stage. Without `steps`, it leaves out steps and counts, which a file system of a cluster
    need not carry."""

    def __init__(self, path: Path, *, steps: bool) -> None:
        super().__init__(path)
        self.steps, self.seconds = steps, 0.0

    def step(self, fields: Mapping[str, Any]) -> None:
        if self.steps:
            super().step(fields)

    def count(self, what: str, done: int, of: int) -> None:
        if self.steps:
            super().count(what, done, of)

    def finished(self, stage: Stage, seconds: float) -> None:
        self.seconds = seconds


def main() -> None:
    """Make the stages whose names come from stdin. stdout is kept for the results; what else prints goes to stderr."""
    folder, results = sys.argv[1], os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    names = SimpleQueue[str]()

    def read() -> None:
        for line in sys.stdin:
            names.put(line.strip())
        os._exit(0)  # the launcher has ended, or needs no worker; at once, whatever this process does

    Thread(target=read, daemon=True).start()
    while True:
        results.write(json.dumps(make_stage(folder, names.get())) + "\n")


if __name__ == "__main__":
    main()
