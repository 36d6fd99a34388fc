"""The processes of workers. Each makes one stage at a time, as a file in the run's folder requests; parsl.py is the
launcher.

In the run's folder, below the store: `requests/<stage>.json`, `progress/<stage>.jsonl` (the start and notes), `stop`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stagedkd.launch.protocol import ProgressWriter, StageRequest, error_as_json, stop_by_file
from stagedkd.plan.graph import Stage
from stagedkd.stages.context import catching_signals


class WorkerRequest(StageRequest):
    """A request to a worker, with the accelerators of its node: their names or their number."""

    devices: tuple[str, ...] | int


def make_stage(place: str, name: str) -> dict[str, Any]:
    """Make a stage, unless the store has it by now. `place` is the run's folder.

    Returns:
        whether it `ran`, and its `seconds`; or the `error` and the `trace`. These are plain values, so that no class of
        stagedkd is pickled.
    """
    folder = Path(place)
    progress = _WorkerProgress(folder / "progress" / f"{name}.jsonl")
    try:
        request = WorkerRequest.read(folder / "requests" / f"{name}.json")
        pin(request.devices)
        threads = request.runtime.threads or threads_per_worker()
        os.environ["OMP_NUM_THREADS"] = str(threads)
        from stagedkd.stages.stage import get_alone

        runtime, graph = request.runtime.model_copy(update={"threads": threads}), request.graph
        with catching_signals() as stop, stop_by_file(folder / "stop", stop):
            stop.check()
            _, ran = get_alone(graph, graph.stage(request.stage), runtime, progress, stop)
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


def threads_per_worker() -> int:
    """The cores that this process may use, divided evenly among the workers of the node."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ["PARSL_WORKER_COUNT"]))


class _WorkerProgress(ProgressWriter):
    """Writes the progress of a stage without steps and counts, since several stages are made at once."""

    seconds = 0.0

    def step(self, fields: Mapping[str, Any]) -> None: ...
    def count(self, what: str, done: int, of: int) -> None: ...

    def finished(self, stage: Stage, seconds: float) -> None:
        self.seconds = seconds
