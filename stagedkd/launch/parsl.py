"""The launcher of workers (`run --engine parsl`). Parsl starts the workers, on this machine or through a scheduler.

ready_queue.py says which stage is submitted when. Its worker takes the lease and publishes the artifact, as any run
does, and returns plain data. So the launcher knows whether a stage is in the store, has failed, or lost its worker.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import importlib.util
import shlex
import shutil
import socket
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from stagedkd.errors import Interrupted, StagedkdError, UsageError
from stagedkd.launch.cluster import Cluster, Kubernetes, Local, Slurm
from stagedkd.launch.ready_queue import ReadyQueue, Submit, missing_stages, run_folder
from stagedkd.launch.worker import WorkerRequest, make_stage
from stagedkd.plan.graph import Plans
from stagedkd.plan.key import Key
from stagedkd.plan.runtime import Runtime
from stagedkd.stages.context import Listener, Stop
from stagedkd.store.leases import Owner
from stagedkd.store.store import Store

LOOPBACK = "127.0.0.1"
HTEX = "parsl.executors.high_throughput"
CORES_UNCOUNTED = 1e-6  # the cluster file sets the workers of a node, and each worker sets its threads
LOCAL_HEARTBEAT, REMOTE_HEARTBEAT = (2, 20), (10, 60)  # seconds: the period, and the silence after which one is lost
STRATEGY_SECONDS = 1  # until the first block is requested; schedulers are polled at longer periods of their own


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
    owner, visible = Owner.new(store.lease_seconds), _visible_gpus(cluster, runtime)
    missing = missing_stages(plans, store)
    if not missing:
        return {}
    folder = run_folder(store, f"parsl-{mark}")
    request = partial(WorkerRequest.of, runtime=runtime, devices=cluster.devices(visible))
    with _submitting(cluster, folder, owner, visible) as submit:
        queue = ReadyQueue(
            missing, submit, folder, request, listener, stop, lost_errors=_lost_errors(), retries=cluster.retries
        )
        queue.run()
    if not queue.keep_logs:
        shutil.rmtree(folder, ignore_errors=True)
    if stop.number is not None:
        message = f"stopped by signal {stop.number}; the running stages have written checkpoints"
        raise Interrupted(stop.number, message)
    store.refresh_listing()
    return queue.outcomes


def _visible_gpus(cluster: Cluster, runtime: Runtime) -> int:
    """The number of GPUs of this machine that local workers may use."""
    if runtime.device not in ("auto", "cuda") or not isinstance(cluster.provider, Local):
        return 0
    import torch

    return torch.cuda.device_count()


def _lost_errors() -> tuple[type[BaseException], ...]:
    """Parsl's errors that mean that a worker was lost."""
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    return ManagerLost, WorkerLost


@contextmanager
def _submitting(cluster: Cluster, folder: Path, owner: Owner, visible: int) -> Generator[Submit]:
    """Start the workers and give the function that submits a stage to them; end the workers at the end."""
    from parsl import DataFlowKernel, python_app

    try:
        kernel = DataFlowKernel(config_of(cluster, folder, owner, visible))
    except Exception as error:  # whatever a provider or its library raises
        message = f"the workers cannot be started: {type(error).__name__}: {error}"
        raise UsageError(message, hint=f"see Parsl's logs in {folder}") from error
    app: Any = python_app(make_stage, data_flow_kernel=kernel)
    try:
        yield partial(app, str(folder))
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
