"""`Cluster`: the workers of `stagedkd run --engine parsl`, from a YAML file of its own. Never part of a key.

The providers are Parsl's, and their fields have Parsl's names and meaning. A field that the file leaves out has Parsl's
default, unless this file sets another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from stagedkd.errors import SpecError, UsageError
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.problems import problems_of
from stagedkd.spec.schema import Section
from stagedkd.spec.schema.base import Word, by_form
from stagedkd.spec.yaml import read_yaml

Several = Annotated[int, Field(ge=1, le=1024)]
Name = Annotated[Annotated[int, Tag("number")] | Annotated[Word, Tag("word")], by_form("a number or a word")]
Devices = Annotated[
    Annotated[int, Field(ge=0, le=1024), Tag("number")] | Annotated[tuple[Name, ...], Field(min_length=1), Tag("list")],
    by_form("a count or a list of names"),
]


class Local(Section):
    """Workers on this machine."""

    kind: Literal["local"] = "local"
    worker_init: str | None = None


class Slurm(Section):
    """Workers in jobs (blocks) that are submitted to Slurm; the number of jobs follows the work that is left."""

    kind: Literal["slurm"]
    walltime: Annotated[str, Field(pattern=r"^(\d+-)?\d+:\d\d:\d\d$")]
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    clusters: Word | None = None
    nodes_per_block: Several | None = None
    cores_per_node: Several | None = None
    mem_per_node: Annotated[int, Field(ge=1)] | None = None
    gpus_per_node: Several | None = None
    gres: Word | None = None
    init_blocks: Annotated[int, Field(ge=0, le=1024)] | None = None
    min_blocks: Annotated[int, Field(ge=0, le=1024)] | None = None
    max_blocks: Several | None = None
    parallelism: Annotated[float, Field(ge=0, le=1)] | None = None
    scheduler_options: str | None = None
    worker_init: str | None = None
    cmd_timeout: Annotated[int, Field(ge=1)] | None = None
    exclusive: bool = False


class Kubernetes(Section):
    """Workers in pods of a cluster. `persistent_volumes` maps claims to the folders where they are mounted."""

    kind: Literal["kubernetes"]
    image: Word
    persistent_volumes: Annotated[Mapping[Word, Word], Field(min_length=1)]
    namespace: Word | None = None
    init_blocks: Annotated[int, Field(ge=0, le=1024)] = 1
    min_blocks: Annotated[int, Field(ge=0, le=1024)] | None = None
    max_blocks: Several = 1
    parallelism: Annotated[float, Field(ge=0, le=1)] | None = None
    init_cpu: Annotated[float, Field(gt=0)] = 1.0
    max_cpu: Annotated[float, Field(gt=0)] = 4.0
    init_mem: Word = "4Gi"
    max_mem: Word = "16Gi"
    extra_requests: Mapping[Word, Word] | None = None
    extra_limits: Mapping[Word, Word] | None = None
    worker_init: str | None = None
    secret: Word | None = None
    service_account_name: Word | None = None
    annotations: Mapping[Word, Word] | None = None
    user_id: Word | None = None
    group_id: Word | None = None
    run_as_non_root: bool | None = None


Provider = Annotated[Local | Slurm | Kubernetes, Discriminator("kind")]


class Cluster(Section):
    """The workers that make the stages, and how many work at once.

    `accelerators` are those of each node, as a count or as names that CUDA_VISIBLE_DEVICES takes; unset: all that are
    visible (local), `gpus_per_node` (Slurm), none (Kubernetes). `per_accelerator` is the number of stages on one
    accelerator at once. `workers` is the number of workers of a node; unset: `per_accelerator` for each accelerator, or
    one if there is none. A stage whose worker is lost is started again, at most `retries` times. `address` is the
    address at which workers reach this machine; unset: they try all of its addresses.
    """

    provider: Provider = Local()
    workers: Several | None = None
    accelerators: Devices | None = None
    per_accelerator: Several = 1
    retries: Annotated[int, Field(ge=0, le=1000)] = 3
    address: Word | None = None

    @model_validator(mode="after")
    def _check_workers(self) -> Cluster:
        names = self.accelerators
        count = len(names) if isinstance(names, tuple) else names
        if count and self.workers and self.workers > count * self.per_accelerator:
            limit = f"{count} accelerators with per_accelerator {self.per_accelerator}"
            raise ValueError(f"{self.workers} workers, but {limit}")
        return self

    def devices(self, visible: int) -> tuple[str, ...] | int:
        """The accelerators of a node: their names or their number. `visible` is the number of GPUs of this machine."""
        if isinstance(self.accelerators, tuple):
            return tuple(map(str, self.accelerators))
        if self.accelerators is not None:
            return self.accelerators
        provider = self.provider
        return visible if isinstance(provider, Local) else (isinstance(provider, Slurm) and provider.gpus_per_node) or 0

    def slots(self, visible: int) -> int:
        """The number of workers of a node."""
        devices = self.devices(visible)
        count = len(devices) if isinstance(devices, tuple) else devices
        return min(self.workers or 1024, count * self.per_accelerator) if count else self.workers or 1


def load_cluster(runtime: Runtime) -> Cluster:
    """Read the file that the runtime names. Without a file, the workers are on this machine.

    Raises:
        SpecError: the file is wrong; its problems have places. UsageError: the file does not exist.
    """
    if not runtime.cluster:
        return Cluster()
    path = Path(runtime.root) / runtime.cluster
    if not path.is_file():
        raise UsageError(f"{path} does not exist", hint="write it as this page describes: stagedkd docs cluster")
    tree = read_yaml(path)
    try:
        return Cluster.model_validate(tree.plain())
    except ValidationError as error:
        raise SpecError(problems_of(error, tree, Cluster)) from None
