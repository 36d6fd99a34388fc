"""`Runtime`: where and how a plan is executed. Never part of a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from stagedkd.errors import Problem, SpecError, UsageError
from stagedkd.spec.schema import Section
from stagedkd.spec.yaml import read_yaml


class Runtime(Section):
    """The knobs of params.yaml. Folders are relative to the project's folder. `threads` 0 means all cores;
    `checkpoint_seconds` is the shortest training time between two checkpoints, which are written at epoch ends; a run
    that gives no sign of life for `lease_seconds` loses the stage that it holds to the next that wants it."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    compile: bool = False
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 5.0
    lease_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    data_dir: str = "data"
    store: str = "store"
    results: str = "results"
    cache: str = "cache"
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


def load_runtime(root: Path, **overrides: Any) -> Runtime:
    """Runtime knobs of `root`/params.yaml (section `runtime`), then STAGEDKD_DATA, then the set overrides.

    Raises:
        SpecError: params.yaml is wrong, with places. UsageError: an override is.
    """
    path = root / "params.yaml"
    document = read_yaml(path) if path.exists() else None
    section = document.below("runtime") if document else None
    values: dict[str, Any] = dict(section.plain()) if section and section.map else {}
    if os.environ.get("STAGEDKD_DATA"):
        values["data_dir"] = str(Path(os.environ["STAGEDKD_DATA"]).resolve())
    for name, value in overrides.items():
        if value is not None:
            values[name] = str(value.resolve()) if isinstance(value, Path) else value
    try:
        return Runtime.model_validate({**values, "root": str(root.resolve())})
    except ValidationError as error:
        problems: list[Problem] = []
        for fault in error.errors():
            option = str(fault["loc"][0])
            if overrides.get(option) is not None:
                raise UsageError(f"--{option.replace('_', '-')} {overrides[option]}: {fault['msg']}") from None
            at = ("runtime", *fault["loc"])
            place = document.where(at, key=True) if document else None
            problems.append(Problem(f"'{'.'.join(map(str, at))}': {fault['msg']}", place))
        raise SpecError(problems) from None
