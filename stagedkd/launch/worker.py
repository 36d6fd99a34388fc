"""What a worker of the cluster does: one stage, by an order in the run's folder. cluster.py is the launcher's side.

In the run's folder, which is below the store: `orders/<stage>.json`, `says/<stage>.jsonl` (begin and notes), `stop`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stagedkd.launch.protocol import Order, Saying, fault_of, stopped_by
from stagedkd.plan.graph import Stage
from stagedkd.stages.context import catching_signals


class WorkersOrder(Order):
    """What a worker is told to do, and the accelerators of its node: their names, or how many."""

    devices: tuple[str, ...] | int


def work(place: str, name: str) -> dict[str, Any]:
    """Do a stage, unless the store has it by now.

    Returns:
        whether it `ran`, and its `seconds`; or its `fault` and the `trace`. Plain values: nothing of ours is pickled.
    """
    folder = Path(place)
    said = _Brief(folder / "says" / f"{name}.jsonl")
    try:
        order = WorkersOrder.read(folder / "orders" / f"{name}.json")
        pin(order.devices)
        threads = order.runtime.threads or share_of_cores()
        os.environ["OMP_NUM_THREADS"] = str(threads)
        from stagedkd.experiment.run import run_in

        runtime, graph = order.runtime.model_copy(update={"threads": threads}), order.graph
        with catching_signals() as stop, stopped_by(folder / "stop", stop):
            stop.check()
            _, ran = run_in(graph, graph.stage(order.stage), runtime, said, stop)
        return {"ran": ran, "seconds": said.seconds}
    except Exception as error:
        return {"fault": fault_of(error), "trace": traceback.format_exc()}


@cache
def pin(devices: tuple[str, ...] | int) -> None:
    """Show this process one accelerator, that of its number among the node's workers; before torch looks for them. Of
    devices that are counted the first is the first that a scheduler has given to the job."""
    if not devices:
        return
    if isinstance(devices, int):
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = tuple(filter(None, given.split(","))) or tuple(map(str, range(devices)))
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(os.environ["PARSL_WORKER_RANK"]) % len(devices)]


def share_of_cores() -> int:
    """An even share of the cores that this process may use, for each worker of the node."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, own // int(os.environ["PARSL_WORKER_COUNT"]))


class _Brief(Saying):
    """Says no steps: there are several stages at once."""

    seconds = 0.0

    def step(self, fields: Mapping[str, Any]) -> None: ...
    def count(self, what: str, done: int, of: int) -> None: ...

    def finished(self, stage: Stage, seconds: float) -> None:
        self.seconds = seconds
