"""The launcher of workers (`run --engine parsl`). Parsl starts them, here or by a scheduler.

A stage is submitted when all its inputs are in the store. Its worker takes the lease and publishes, as any run does,
and returns plain data. So this side knows of each stage that it is there, that it failed, or that its worker was lost.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import importlib.util
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from stagedkd.errors import Interrupted, StagedkdError, TrainingError, UsageError
from stagedkd.files import write_whole
from stagedkd.launch.cluster import Cluster, Kubernetes, Local, Slurm
from stagedkd.launch.protocol import ProgressReader, error_from_json
from stagedkd.launch.worker import WorkerRequest, make_stage
from stagedkd.plan.graph import Graph, Plans, Stage
from stagedkd.plan.key import Key
from stagedkd.plan.runtime import Runtime
from stagedkd.stages.context import Listener, Silent, Stop
from stagedkd.store.leases import Owner
from stagedkd.store.store import WORK, Store

POLL_SECONDS = 0.1
LOOPBACK = "127.0.0.1"
HTEX = "parsl.executors.high_throughput"
CORES_UNCOUNTED = 1e-6  # the file says how many workers a node has, and each of them how many threads
HERE, AWAY = (2, 20), (10, 60)  # seconds between heartbeats, and without one until the other side is lost
STRATEGY_SECONDS = 1  # until the first block is asked for; schedulers are asked by their own, longer periods
Submit = Callable[[str, str], "Future[dict[str, Any]]"]


class _WorkerTraceback(Exception):
    """The traceback of a worker, as text."""


def check_cluster(cluster: Cluster, runtime: Runtime) -> None:
    """What can be known before anything runs.

    Raises:
        UsageError: Parsl is not installed, the device is not here, or each stage wants several devices.
    """
    for module, wanted in (("parsl", True), ("kubernetes", isinstance(cluster.provider, Kubernetes))):
        if wanted and importlib.util.find_spec(module) is None:
            hint = 'pip install "stagedkd[cluster]"' if module == "parsl" else "pip install kubernetes"
            raise UsageError(f"--engine parsl needs the package {module}", hint=hint)
    if runtime.gpus > 1:
        message = f"gpus: {runtime.gpus} shares one training over devices, --engine parsl gives each stage one of them"
        raise UsageError(message, hint="gpus: 1 with --engine parsl, or the default engine")
    if isinstance(cluster.provider, Local):
        from stagedkd.stages.networks import device_of

        device_of(runtime.device)


def run_in_workers(
    plans: Plans, cluster: Cluster, store: Store, mark: str, runtime: Runtime, show: Listener, stop: Stop
) -> Mapping[Key, bool | StagedkdError]:
    """Run every stage that the store does not have. `mark` is the run's in the store, for its folder there.

    Returns:
        by key whether it was run just now, or why it failed; without the stages that need a failed one.
    Raises:
        UsageError: the workers cannot be started.
        Interrupted: a signal came; the workers have written checkpoints.
    """
    unique = list(plans.unique)
    missing = {
        stage.identity: _Job(plan, stage, unique.index(stage.identity) + 1, len(unique))
        for plan in plans.cells.values()
        for stage in plan.stages
        if store.state(stage) != "hit"
    }
    if not missing:
        return {}
    owner, visible = Owner.new(store.lease_seconds), _visible(cluster, runtime)
    folder = (store.root / WORK / f"parsl-{mark}").resolve()
    for part in ("requests", "progress"):
        (folder / part).mkdir(parents=True)
    with _submitting(cluster, folder, owner, visible) as submit:
        dispatch = _Dispatch(missing, submit, folder, cluster.devices(visible), cluster.retries, runtime, show, stop)
        dispatch.run()
    if not dispatch.broken:
        shutil.rmtree(folder, ignore_errors=True)
    if stop.number is not None:
        message = f"stopped by signal {stop.number}; stages that were at work have written their checkpoints"
        raise Interrupted(stop.number, message)
    store.refresh_listing()
    return dispatch.outcomes


def _visible(cluster: Cluster, runtime: Runtime) -> int:
    """GPUs of this machine that workers here may use."""
    if runtime.device not in ("auto", "cuda") or not isinstance(cluster.provider, Local):
        return 0
    import torch

    return torch.cuda.device_count()


@dataclass
class _Job:
    """A stage that is missing, the `number`-th of so many. `tries` counts workers that were lost over it."""

    plan: Graph
    stage: Stage
    number: int
    of: int
    future: Future[dict[str, Any]] | None = None
    progress: ProgressReader | None = None
    shown: bool = False
    tries: int = 0

    @property
    def label(self) -> str:
        return f"[{self.number}/{self.of}] {self.stage.name}"


@dataclass
class _Dispatch:
    """Who is at which stage. `outcomes` has the stages that came to an end, by key: whether they ran, or why not.
    `broken`: something failed that Parsl's logs may explain."""

    missing: Mapping[Key, _Job]
    submit: Submit
    folder: Path
    devices: tuple[str, ...] | int
    retries: int
    runtime: Runtime
    show: Listener
    stop: Stop
    outcomes: dict[Key, bool | StagedkdError] = field(default_factory=dict[Key, "bool | StagedkdError"])
    broken: bool = False

    def run(self) -> None:
        """Until nothing is on its way; after a signal until every stage that has begun has come to an end."""
        told = False
        while True:
            stopped = self.stop.number is not None
            if stopped and not told:
                write_whole(self.folder / "stop", str(self.stop.number))
                told = True
            for job in self.missing.values():
                if not stopped and job.future is None and self._may_begin(job):
                    self._begin(job)
            going = [job for job in self.missing.values() if job.future is not None and job.progress is not None]
            waited = [job.future for job in going if job.future and not (stopped and not job.shown)]
            if not waited:
                return
            wait(waited, POLL_SECONDS, FIRST_COMPLETED)
            for job in going:
                self._look(job)

    def _may_begin(self, job: _Job) -> bool:
        """All that a stage needs is there, and it has not come to its end."""
        needs = [above.identity for above in job.plan.inputs(job.stage).values()]
        there = all(key not in self.missing or isinstance(self.outcomes.get(key), bool) for key in needs)
        return there and job.stage.identity not in self.outcomes

    def _begin(self, job: _Job) -> None:
        """Hand a stage to whoever is free."""
        name = f"{job.stage.folder}.{job.tries}"
        request = WorkerRequest.of(job.plan, job.stage, self.runtime, devices=self.devices)
        write_whole(self.folder / "requests" / f"{name}.json", request.model_dump_json())
        notes = _Notes(job.label, self.show)
        job.progress, job.shown = ProgressReader(self.folder / "progress" / f"{name}.jsonl", notes), False
        job.future = self.submit(str(self.folder), name)

    def _look(self, job: _Job) -> None:
        """Show the progress of a worker, and take the result."""
        assert job.progress is not None and job.future is not None
        done = job.future.done()
        job.progress.relay()
        if job.progress.begun and not job.shown:
            self.show.stage(job.number, job.of, job.stage, job.progress.begun)
            job.shown = True
        if done:
            future, job.future = job.future, None
            error, result = future.exception(), {} if future.exception() else future.result()
            self._settle(job, error, result)

    def _settle(self, job: _Job, error: BaseException | None, result: Mapping[str, Any]) -> None:
        """Note the end of a stage: it is there, it failed, or its worker was lost."""
        if error is None and "error" not in result:
            self.outcomes[job.stage.identity] = result["ran"]
            if result["ran"]:
                self.show.finished(job.stage, result["seconds"])
            return
        own = error_from_json(result["error"]) if error is None else None
        if own is not None and not isinstance(own, Interrupted):
            own.__cause__ = _WorkerTraceback(f"in the worker\n{result['trace']}")
            self.outcomes[job.stage.identity] = own
        elif self.stop.number is None:
            self._lost(job, error or own)

    def _lost(self, job: _Job, error: BaseException | None) -> None:
        """A stage whose worker was lost is begun again, by another or the same, from its last checkpoint."""
        from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

        text = f"{type(error).__name__}: {error}".strip()
        lost = isinstance(error, ManagerLost | WorkerLost | Interrupted)
        if lost and job.tries < self.retries:
            job.tries += 1
            self.show.note(f"{job.label}: its worker was lost; try {job.tries + 1} of {self.retries + 1} ({text})")
            return
        self.broken = True
        message = f"stage {job.stage.name}: " + (f"{job.tries + 1} workers were lost, the last by " if lost else "")
        hint = f"Parsl's logs are in {self.folder}; the same command resumes from the last checkpoint"
        self.outcomes[job.stage.identity] = TrainingError(message + text, hint=hint)


class _Notes(Silent):
    """Passes a worker's notes on under its stage's name."""

    def __init__(self, label: str, show: Listener) -> None:
        self.label, self.show = label, show

    def note(self, text: str) -> None:
        self.show.note(f"{self.label}: {text}")


@contextmanager
def _submitting(cluster: Cluster, folder: Path, owner: Owner, visible: int) -> Generator[Submit]:
    """Workers, and what hands them a stage; they are ended at the end."""
    from parsl import DataFlowKernel, python_app

    try:
        kernel = DataFlowKernel(config_of(cluster, folder, owner, visible))
    except Exception as error:  # whatever a provider or its library raises
        message = f"the workers cannot be started: {type(error).__name__}: {error}"
        raise UsageError(message, hint=f"Parsl's logs are in {folder}") from error
    try:
        yield python_app(make_stage, data_flow_kernel=kernel)
    finally:
        kernel.cleanup()


def config_of(cluster: Cluster, folder: Path, owner: Owner, visible: int) -> Any:
    """Parsl's `Config`. All that it writes is in `folder`; heartbeats and the launcher's end are described above."""
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
    from parsl.jobs.error_handlers import windowed_error_handler

    here = isinstance(cluster.provider, Local)
    period, threshold = HERE if here else AWAY
    watched = f"-m stagedkd.launch.watchdog {owner.name} {HTEX}"
    python = "python" if isinstance(cluster.provider, Kubernetes) else shlex.quote(sys.executable)
    executor = HighThroughputExecutor(
        label="stages",
        provider=provider_of(cluster.provider),
        # by the interpreter's path: Parsl looks for scripts on the PATH, where those of a venv may not be
        launch_cmd=DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", f"{python} {watched}.process_worker_pool", 1),
        interchange_launch_cmd=(sys.executable, *f"{watched}.interchange".split()),
        address=cluster.address or LOOPBACK,
        max_workers_per_node=cluster.slots(visible),
        cores_per_worker=CORES_UNCOUNTED,
        heartbeat_period=period,
        heartbeat_threshold=threshold,
        block_error_handler=windowed_error_handler,
    )
    if not here and cluster.address is None:  # Parsl would find these, and ask a web service for one more
        executor.address, executor.all_addresses = None, own_addresses()
    return Config(
        executors=[executor],
        run_dir=str(folder / "parsl"),
        strategy="simple",  # htex_auto_scale ends a block that has just begun when there are fewer stages than workers
        strategy_period=STRATEGY_SECONDS,
        retries=0,  # ours (_Dispatch), which tell a lost worker from a stage that failed
        usage_tracking=0,
    )


def own_addresses() -> set[str]:
    """The IPv4 addresses of this machine; workers try all of them."""
    import psutil

    every = (address for addresses in psutil.net_if_addrs().values() for address in addresses)
    return {found.address for found in every if found.family == socket.AF_INET}


def provider_of(provider: Local | Slurm | Kubernetes) -> Any:
    """Parsl's provider, with what the file says."""
    fields = {name: getattr(provider, name) for name in type(provider).model_fields if name != "kind"}
    fields = {name: value for name, value in fields.items() if value is not None}
    match provider:
        case Local():
            from parsl.providers import LocalProvider

            return LocalProvider(**fields)
        case Slurm():
            from parsl.launchers import SrunLauncher
            from parsl.providers import SlurmProvider

            if (provider.nodes_per_block or 1) > 1:
                fields["launcher"] = SrunLauncher()
            return SlurmProvider(**fields)
        case Kubernetes():
            from parsl.providers import KubernetesProvider

            fields["persistent_volumes"] = list(provider.persistent_volumes.items())
            return KubernetesProvider(**fields)
        case _:
            assert_never(provider)
