"""`Runtime`: where and how a plan is executed. Nothing here is part of a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, Tag, ValidationError

from stagedkd.errors import Problem, SpecError, UsageError
from stagedkd.plan.cpus import limit_instructions, usable_cpus
from stagedkd.plan.loggers import LoggerName
from stagedkd.spec.schema import Section
from stagedkd.spec.schema.base import Word, by_form
from stagedkd.spec.yaml import Node, read_yaml

Auto = Annotated[Literal["auto"], Tag("word")]
Several = Annotated[Annotated[int, Field(ge=1, le=256)], Tag("number")]

KEPT_OUTPUTS, REHEARSALS = "kept", "rehearsed"  # folders in the cache, beside those of clips


class Runtime(Section):
    """The section `runtime` of params.yaml. All folders are relative to the project's folder.

    Attributes:
        device: the device for training and evaluation.
        gpus: the number of processes that train each network together on this machine, one for each GPU. On the CPU,
            the same number of processes with `threads` threads each; 0 threads means an equal part of the CPUs.
        threads: CPU threads for torch; 0 means all CPUs that this process may use: the least of its affinity, the quota
            of its control group, OMP_NUM_THREADS and SLURM_CPUS_PER_TASK. If `jobs` is a number, 0 means an equal part.
        jobs: stages that run side by side on this machine, each in a process with `threads` threads. `auto` means as
            many as the CPUs have room for and the plan has work for, on the CPU; with `threads: 0`, and elsewhere, one.
        workers: threads that decode videos; 0 means two.
        compile: whether networks are compiled with torch.compile.
        bits: native, all instructions of the CPU; portable, none newer than AVX2, so that more x86 machines give the
            same bits: a teacher then takes longer on CPUs with newer ones.
        cache_teacher: whether the outputs of frozen networks are kept where views come back, so that these networks do
            not run again: auto, where there is room; off, never. Both give the same bits.
        checkpoint_seconds: the shortest training time between two checkpoints. Checkpoints are written at the end of an
            epoch.
        loss_every: the losses are read from the device after so many steps. A larger number lets a GPU run on without
            waiting; no result changes, but a loss that is not finite is found later, though before any checkpoint.
        lease_seconds: a run that gives no sign of life for so many seconds loses the stage that it holds: the next run
            that needs the stage takes it over.
        print_plots: whether a report also writes each plot of its page as PDF and PNG, which takes about half a second
            a plot.
        data_dir: the folder of the data sets.
        store: the folder of the artifacts.
        results: the folder of the reports.
        cache: the folder of decoded clips and of kept outputs.
        cluster: the file that describes the workers of `--engine parsl`; "" means one worker for each GPU of this
            machine.
        log: tools that trainings are logged with, beside the project's own event log: tensorboard, wandb, mlflow or
            trackio. Each is an extra of the package, and logs to this machine (docs/logging.md).
        logs: the folder of what these tools write.
        root: the project's folder.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    jobs: Annotated[Several | Auto, by_form("auto or a number")] = "auto"
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    compile: bool = False
    bits: Literal["native", "portable"] = "native"
    cache_teacher: Literal["auto", "off"] = "auto"
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 5.0
    loss_every: Annotated[int, Field(ge=1, le=10_000)] = 1
    lease_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    print_plots: bool = True
    data_dir: str = "data"
    store: str = "store"
    results: str = "results"
    cache: str = "cache"
    cluster: str = ""
    log: tuple[LoggerName, ...] = ()
    logs: str = "logs"
    root: str = "."

    def folder(self, name: Literal["data_dir", "store", "results", "cache", "logs"]) -> Path:
        """The absolute path of a folder."""
        return (Path(self.root) / getattr(self, name)).resolve()

    @property
    def lock_path(self) -> Path:
        """The path of stagedkd.lock."""
        return Path(self.root) / "stagedkd.lock"

    @property
    def used_threads(self) -> int:
        """The number of threads for torch. Results are equal bit for bit only if this number is equal. So it follows
        from the settings and the machine alone, never from what the store has."""
        jobs = self.jobs if isinstance(self.jobs, int) else 1
        return self.threads or max(1, usable_cpus().count // jobs)


class Tracked(Section):
    """The section `dvc` of params.yaml. `specs` are the specs whose stages `stagedkd dvc sync` writes into dvc.yaml, as
    paths relative to the project's folder."""

    specs: Annotated[tuple[Word, ...], Field(min_length=1)]


def load_runtime(root: Path, **overrides: Any) -> Runtime:
    """Read the section `runtime` of `root`/params.yaml. The environment variable STAGEDKD_DATA takes precedence over
    it, and overrides that are not None take precedence over both.

    Raises:
        SpecError: params.yaml is wrong; the problems have places. UsageError: an override is wrong.
    """
    document, values = _section(root, "runtime")
    if os.environ.get("STAGEDKD_DATA"):
        values["data_dir"] = str(Path(os.environ["STAGEDKD_DATA"]).resolve())
    for name, value in overrides.items():
        if value is not None:
            values[name] = str(value.resolve()) if isinstance(value, Path) else value
            if isinstance(value, list):
                values[name] = tuple(cast("list[str]", value))
    try:
        return Runtime.model_validate({**values, "root": str(root.resolve())})
    except ValidationError as error:
        for problem in error.errors():
            option = str(problem["loc"][0])
            if overrides.get(option) is not None:
                value = problem["input"] if len(problem["loc"]) > 1 else overrides[option]
                raise UsageError(f"--{option.replace('_', '-')} {value}: {problem['msg']}") from None
        raise SpecError(_problems(error, document, "runtime")) from None


def prepare_libraries(runtime: Runtime) -> None:
    """Set what torch and its libraries read when they are loaded.

    Raises:
        UsageError: it is too late for that.
    """
    if runtime.bits == "portable":
        limit_instructions()


def load_tracked(root: Path) -> Tracked | None:
    """Read the section `dvc` of `root`/params.yaml. Returns None if there is none.

    Raises:
        SpecError: the section is wrong; the problems have places.
    """
    document, values = _section(root, "dvc")
    if document is None or document.below("dvc") is None:
        return None
    try:
        return Tracked.model_validate(values)
    except ValidationError as error:
        raise SpecError(_problems(error, document, "dvc")) from None


def tracked_params(root: Path) -> tuple[str, ...]:
    """The keys of `root`/params.yaml that dvc.yaml depends on, as far as the file has them."""
    _, values = _section(root, "runtime")
    return ("dvc", *(f"runtime.{name}" for name in ("store", "results") if name in values))


def _section(root: Path, name: str) -> tuple[Node | None, dict[str, Any]]:
    """Read params.yaml. Returns its document (None if the file does not exist) and the plain values of a section, which
    are empty if the section is missing or not a map."""
    path = root / "params.yaml"
    document = read_yaml(path) if path.exists() else None
    section = document.below(name) if document else None
    return document, {key: node.plain() for key, node in section.map.items()} if section else {}


def _problems(error: ValidationError, document: Node | None, section: str) -> list[Problem]:
    """The problems that pydantic found in a section, each with its place in params.yaml."""
    problems: list[Problem] = []
    for each in error.errors():
        at = (section, *each["loc"])
        place = document.where(at, key=True) if document else None
        problems.append(Problem(f"'{'.'.join(map(str, at))}': {each['msg']}", place))
    return problems
