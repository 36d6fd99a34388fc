"""`Runtime`: where and how a plan is executed. Never part of a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from stagedkd.errors import Problem, SpecError, UsageError
from stagedkd.spec.schema import Section
from stagedkd.spec.schema.base import Word
from stagedkd.spec.yaml import Node, read_yaml


class Runtime(Section):
    """The knobs of params.yaml. Folders are relative to the project's folder. `threads` 0 means all cores;
    `checkpoint_seconds` is the shortest training time between two checkpoints, which are written at epoch ends; a run
    that gives no sign of life for `lease_seconds` loses the stage that it holds to the next that wants it. `gpus` is
    the number of processes that share each training on this machine, one for each GPU; on the CPU as many processes,
    with `threads` threads each (0: an even share of the cores). `cluster` is the file that
    says where `--engine parsl` has its workers."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    compile: bool = False
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 5.0
    lease_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    data_dir: str = "data"
    store: str = "store"
    results: str = "results"
    cache: str = "cache"
    cluster: str = ""
    root: str = "."

    def folder(self, name: Literal["data_dir", "store", "results", "cache"]) -> Path:
        """An absolute folder."""
        return (Path(self.root) / getattr(self, name)).resolve()

    @property
    def lock_path(self) -> Path:
        return Path(self.root) / "stagedkd.lock"

    @property
    def used_threads(self) -> int:
        """Threads for torch; part of what must be equal for equal bits."""
        return self.threads or os.cpu_count() or 1


class Tracked(Section):
    """The section `dvc` of params.yaml: the specs whose stages `stagedkd dvc sync` writes into dvc.yaml, as paths
    relative to the project's folder."""

    specs: Annotated[tuple[Word, ...], Field(min_length=1)]


def load_runtime(root: Path, **overrides: Any) -> Runtime:
    """Runtime knobs of `root`/params.yaml (section `runtime`), then STAGEDKD_DATA, then the set overrides.

    Raises:
        SpecError: params.yaml is wrong, with places. UsageError: an override is.
    """
    document, values = _section(root, "runtime")
    if os.environ.get("STAGEDKD_DATA"):
        values["data_dir"] = str(Path(os.environ["STAGEDKD_DATA"]).resolve())
    for name, value in overrides.items():
        if value is not None:
            values[name] = str(value.resolve()) if isinstance(value, Path) else value
    try:
        return Runtime.model_validate({**values, "root": str(root.resolve())})
    except ValidationError as error:
        for fault in error.errors():
            option = str(fault["loc"][0])
            if overrides.get(option) is not None:
                raise UsageError(f"--{option.replace('_', '-')} {overrides[option]}: {fault['msg']}") from None
        raise SpecError(_problems(error, document, "runtime")) from None


def load_tracked(root: Path) -> Tracked | None:
    """The section `dvc` of `root`/params.yaml; None where there is none.

    Raises:
        SpecError: it is wrong, with places.
    """
    document, values = _section(root, "dvc")
    if document is None or document.below("dvc") is None:
        return None
    try:
        return Tracked.model_validate(values)
    except ValidationError as error:
        raise SpecError(_problems(error, document, "dvc")) from None


def tracked_params(root: Path) -> tuple[str, ...]:
    """The keys of `root`/params.yaml that dvc.yaml depends on, of those that are there."""
    _, values = _section(root, "runtime")
    return ("dvc", *(f"runtime.{name}" for name in ("store", "results") if name in values))


def _section(root: Path, name: str) -> tuple[Node | None, dict[str, Any]]:
    """params.yaml, if there is one, and the plain values of a section of it; none where it is no map."""
    path = root / "params.yaml"
    document = read_yaml(path) if path.exists() else None
    section = document.below(name) if document else None
    return document, {key: node.plain() for key, node in section.map.items()} if section else {}


def _problems(error: ValidationError, document: Node | None, section: str) -> list[Problem]:
    found: list[Problem] = []
    for fault in error.errors():
        at = (section, *fault["loc"])
        place = document.where(at, key=True) if document else None
        found.append(Problem(f"'{'.'.join(map(str, at))}': {fault['msg']}", place))
    return found
