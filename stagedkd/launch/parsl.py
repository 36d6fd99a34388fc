"""The launcher of workers (`run --engine parsl`). Parsl starts the workers, on this machine or through a scheduler.

A stage is submitted when all its inputs are in the store. Its worker takes the lease and publishes the artifact, as any
run does, and returns plain data. So the launcher knows whether a stage is in the store, has failed, or lost its worker.
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
CORES_UNCOUNTED = 1e-6  # the cluster file sets the workers of a node, and each worker sets its threads
LOCAL_HEARTBEAT, REMOTE_HEARTBEAT = (2, 20), (10, 60)  # seconds: the period, and the silence after which one is lost
STRATEGY_SECONDS = 1  # until the first block is requested; schedulers are polled at longer periods of their own
Submit = Callable[[str, str], "Future[dict[str, Any]]"]


class _WorkerTraceback(Exception):
    """The traceback of a worker, as text."""


def check_cluster(cluster: Cluster, runtime: Runtime) -> None:
    """Check, before anything runs, that the workers can be started.

    Raises:
        UsageError: Parsl is not installed, this machine lacks the device, or each stage needs several devices.
    """
    for module, needed in (("parsl", True), ("kubernetes", isinstance(cluster.provider, Kubernetes))):
        if needed and importlib.util.find_spec(module) is None:
            package = '"stagedkd[cluster]"' if module == "parsl" else "kubernetes"
            raise UsageError(f"--engine parsl needs the package {module}", hint=f"run: pip install {package}")
    if runtime.gpus > 1:
        message = f"gpus: {runtime.gpus} divides one training among devices, but --engine parsl gives each stage one"
        raise UsageError(message, hint="set gpus: 1, or leave out --engine parsl")
    if isinstance(cluster.provider, Local):
        from stagedkd.stages.networks import device_of

        device_of(runtime.device)


def run_in_workers(
    plans: Plans, cluster: Cluster, store: Store, mark: str, runtime: Runtime, listener: Listener, stop: Stop
) -> Mapping[Key, bool | StagedkdError]:
    """Run every stage that the store does not have. `mark` identifies the run in the store, and names its folder there.

    Returns:
        by key, whether the stage was made just now, or why it failed; stages that need a failed one are left out.
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
    owner, visible = Owner.new(store.lease_seconds), _visible_gpus(cluster, runtime)
    folder = (store.root / WORK / f"parsl-{mark}").resolve()
    for part in ("requests", "progress"):
        (folder / part).mkdir(parents=True)
    with _submitting(cluster, folder, owner, visible) as submit:
        devices = cluster.devices(visible)
        dispatch = _Dispatch(missing, submit, folder, devices, cluster.retries, runtime, listener, stop)
        dispatch.run()
    if not dispatch.keep_logs:
        shutil.rmtree(folder, ignore_errors=True)
    if stop.number is not None:
        message = f"stopped by signal {stop.number}; the running stages have written checkpoints"
        raise Interrupted(stop.number, message)
    store.refresh_listing()
    return dispatch.outcomes


def _visible_gpus(cluster: Cluster, runtime: Runtime) -> int:
    """The number of GPUs of this machine that local workers may use."""
    if runtime.device not in ("auto", "cuda") or not isinstance(cluster.provider, Local):
        return 0
    import torch

    return torch.cuda.device_count()


@dataclass
class _Job:
    """A stage that the store lacks, the `number`-th of `of` stages.

    `future` is the result of its worker while one works on it, and `progress` reads that worker's progress. `started`
    says whether that worker has reported its start. `lost` counts the workers that were lost with this stage.
    """

    plan: Graph
    stage: Stage
    number: int
    of: int
    future: Future[dict[str, Any]] | None = None
    progress: ProgressReader | None = None
    started: bool = False
    lost: int = 0

    @property
    def label(self) -> str:
        return f"[{self.number}/{self.of}] {self.stage.name}"


@dataclass
class _Dispatch:
    """Gives missing stages to workers and collects the results.

    `outcomes` holds the stages that have ended, by key: whether they were made just now, or why they failed.
    `keep_logs`: something failed that Parsl's logs may explain.
    """

    missing: Mapping[Key, _Job]
    submit: Submit
    folder: Path
    devices: tuple[str, ...] | int
    retries: int
    runtime: Runtime
    listener: Listener
    stop: Stop
    outcomes: dict[Key, bool | StagedkdError] = field(default_factory=dict[Key, "bool | StagedkdError"])
    keep_logs: bool = False

    def run(self) -> None:
        """Run until no stage is submitted; after a signal, until every stage that was started has ended."""
        announced = False
        while True:
            stopped = self.stop.number is not None
            if stopped and not announced:
                write_whole(self.folder / "stop", str(self.stop.number))
                announced = True
            for job in self.missing.values():
                if not stopped and job.future is None and self._is_ready(job):
                    self._submit(job)
            submitted = [job for job in self.missing.values() if job.future is not None and job.progress is not None]
            awaited = [job.future for job in submitted if job.future and not (stopped and not job.started)]
            if not awaited:
                return
            wait(awaited, POLL_SECONDS, FIRST_COMPLETED)
            for job in submitted:
                self._poll(job)

    def _is_ready(self, job: _Job) -> bool:
        """Whether the store has all inputs of a stage, and the stage has not ended."""
        needs = [above.identity for above in job.plan.inputs(job.stage).values()]
        have_inputs = all(key not in self.missing or isinstance(self.outcomes.get(key), bool) for key in needs)
        return have_inputs and job.stage.identity not in self.outcomes

    def _submit(self, job: _Job) -> None:
        """Submit a stage to the next free worker."""
        name = f"{job.stage.folder}.{job.lost}"
        request = WorkerRequest.of(job.plan, job.stage, self.runtime, devices=self.devices)
        write_whole(self.folder / "requests" / f"{name}.json", request.model_dump_json())
        notes = _Notes(job.label, self.listener)
        job.progress, job.started = ProgressReader(self.folder / "progress" / f"{name}.jsonl", notes), False
        job.future = self.submit(str(self.folder), name)

    def _poll(self, job: _Job) -> None:
        """Show the progress of a worker, and take its result when it is done."""
        assert job.progress is not None and job.future is not None
        done = job.future.done()
        job.progress.relay()
        if job.progress.begun and not job.started:
            self.listener.stage(job.number, job.of, job.stage, job.progress.begun)
            job.started = True
        if done:
            future, job.future = job.future, None
            error, result = future.exception(), {} if future.exception() else future.result()
            self._take_result(job, error, result)

    def _take_result(self, job: _Job, error: BaseException | None, result: Mapping[str, Any]) -> None:
        """Record how a stage ended: the store has it, it failed, or its worker was lost.

        Args:
            error: Parsl's error, where the worker returned nothing. result: what the worker returned.
        """
        if error is None and "error" not in result:
            self.outcomes[job.stage.identity] = result["ran"]
            if result["ran"]:
                self.listener.finished(job.stage, result["seconds"])
            return
        stage_error = error_from_json(result["error"]) if error is None else None
        if stage_error is not None and not isinstance(stage_error, Interrupted):
            stage_error.__cause__ = _WorkerTraceback(f"in the worker\n{result['trace']}")
            self.outcomes[job.stage.identity] = stage_error
        elif self.stop.number is None:
            self._retry(job, error or stage_error)

    def _retry(self, job: _Job, error: BaseException | None) -> None:
        """Let a stage whose worker was lost be submitted again, to resume from its last checkpoint, or record that it
        failed: after too many tries, or if the error is another one."""
        from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

        text = f"{type(error).__name__}: {error}".strip()
        worker_lost = isinstance(error, ManagerLost | WorkerLost | Interrupted)
        if worker_lost and job.lost < self.retries:
            job.lost += 1
            self.listener.note(f"{job.label}: its worker was lost; try {job.lost + 1} of {self.retries + 1} ({text})")
            return
        self.keep_logs = True
        lost = f"{job.lost + 1} workers were lost; the last error is " if worker_lost else ""
        hint = f"see Parsl's logs in {self.folder}; the same command resumes from the last checkpoint"
        self.outcomes[job.stage.identity] = TrainingError(f"stage {job.stage.name}: {lost}{text}", hint=hint)


class _Notes(Silent):
    """Passes the notes of a worker on, with the label of its stage before them."""

    def __init__(self, label: str, listener: Listener) -> None:
        self.label, self.listener = label, listener

    def note(self, text: str) -> None:
        self.listener.note(f"{self.label}: {text}")


@contextmanager
def _submitting(cluster: Cluster, folder: Path, owner: Owner, visible: int) -> Generator[Submit]:
    """Start the workers and give the function that submits a stage to them; end the workers at the end."""
    from parsl import DataFlowKernel, python_app

    try:
        kernel = DataFlowKernel(config_of(cluster, folder, owner, visible))
    except Exception as error:  # whatever a provider or its library raises
        message = f"the workers cannot be started: {type(error).__name__}: {error}"
        raise UsageError(message, hint=f"see Parsl's logs in {folder}") from error
    try:
        yield python_app(make_stage, data_flow_kernel=kernel)
    finally:
        kernel.cleanup()


def config_of(cluster: Cluster, folder: Path, owner: Owner, visible: int) -> Any:
    """Parsl's `Config`. Parsl writes below `folder` only, and its processes end with the launcher (watchdog.py)."""
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
    from parsl.jobs.error_handlers import windowed_error_handler

    local = isinstance(cluster.provider, Local)
    period, threshold = LOCAL_HEARTBEAT if local else REMOTE_HEARTBEAT
    watched = f"-m stagedkd.launch.watchdog {owner.name} {HTEX}"
    python = "python" if isinstance(cluster.provider, Kubernetes) else shlex.quote(sys.executable)
    executor = HighThroughputExecutor(
        label="stages",
        provider=provider_of(cluster.provider),
        # started by the interpreter's path, since Parsl would search the PATH, which may lack the scripts of a venv
        launch_cmd=DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", f"{python} {watched}.process_worker_pool", 1),
        interchange_launch_cmd=(sys.executable, *f"{watched}.interchange".split()),
        address=cluster.address or LOOPBACK,
        max_workers_per_node=cluster.slots(visible),
        cores_per_worker=CORES_UNCOUNTED,
        heartbeat_period=period,
        heartbeat_threshold=threshold,
        block_error_handler=windowed_error_handler,
    )
    if not local and cluster.address is None:  # Parsl would also ask a web service for one more address
        executor.address, executor.all_addresses = None, local_addresses()
    return Config(
        executors=[executor],
        run_dir=str(folder / "parsl"),
        strategy="simple",  # htex_auto_scale ends a block that has just started if there are fewer stages than workers
        strategy_period=STRATEGY_SECONDS,
        retries=0,  # _Dispatch retries: it tells a lost worker from a stage that failed
        usage_tracking=0,
    )


def local_addresses() -> set[str]:
    """The IPv4 addresses of this machine. Workers try all of them."""
    import psutil

    addresses = (address for interface in psutil.net_if_addrs().values() for address in interface)
    return {address.address for address in addresses if address.family == socket.AF_INET}


def provider_of(provider: Local | Slurm | Kubernetes) -> Any:
    """Parsl's provider, with the fields that the cluster file sets."""
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
