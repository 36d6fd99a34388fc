"""What an export is made of and run by: one class for each form.

Shape legend: B clips, T frames, H, W pixels, 3 = RGB, N classes.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from stagedkd.errors import StagedkdError, TrainingError, UsageError, host_error
from stagedkd.models.network import Network
from stagedkd.report.card import StudentCard

Clips = npt.NDArray[np.uint8]  # (B, T, H, W, 3)
Run = Callable[[Clips], npt.NDArray[np.float32]]  # clips to logits (B, N)


@dataclass(frozen=True)
class Order:
    """What is to be exported.

    Attributes:
        new_network: makes the network with its weights, anew at each call, on the CPU in the plain layout.
        batch: the fixed number of clips that the export takes at once; None: any.
        calibration: training clips, one by one, by which int8 ranges are found; () for float32, and for a student
            that was trained for int8 and has its ranges.
    """

    card: StudentCard
    new_network: Callable[[], Network]
    batch: int | None = None
    calibration: Sequence[Clips] = ()

    @property
    def int8(self) -> bool:
        """Whether weights and activations become bytes."""
        return bool(self.calibration) or self.card.quantised is not None


@dataclass(frozen=True)
class Operators:
    """The convolutions and matrix products of an int8 graph as the runtime executes it, by type: those in int8, and
    those that stayed in float32."""

    int8: Mapping[str, int] = field(default_factory=dict[str, int])
    float32: Mapping[str, int] = field(default_factory=dict[str, int])


class Form(Protocol):
    """A form of export. `name` is that of --to; `file` the main file; `packages` what it needs, which the extra
    `stagedkd[extra]` installs; `int8` whether it has a way to int8."""

    name: ClassVar[str]
    file: ClassVar[str]
    extra: ClassVar[str]
    packages: ClassVar[Mapping[str, str]]  # module -> distribution, whose versions are told
    int8: ClassVar[bool]
    how: ClassVar[str]  # what it takes and gives, for its README.md

    def write(self, order: Order, folder: Path) -> Operators:
        """Write the files. Raises StagedkdError: the network cannot be taken."""
        ...

    def load(self, folder: Path, threads: int) -> Run | None:
        """Load the files in their own runtime; None if it does not run on this machine."""
        ...


@contextmanager
def foreign_errors(problem: str, hint: str) -> Generator[None]:
    """Inside, an error of another library becomes a TrainingError that begins with `problem`. Those of stagedkd, and of
    a machine that is full or refuses a file, stay as they are."""
    try:
        yield
    except StagedkdError:
        raise
    except Exception as error:
        if host_error(error) is not None:
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
        raise TrainingError(f"{problem}: {type(error).__name__}: {reason}", hint=hint) from error


@contextmanager
def sending_nothing() -> Generator[None]:
    """Inside, OpenVINO and NNCF take this machine for one of a CI service, from which they send no statistics of use.
    Elsewhere OpenVINO 2026.4 sends them from `convert_model` unless the user has declined, and keeps an identifier in
    ~/intel."""
    names = {"CI": "true", "NNCF_CI": "1"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def require(form: type[Form], *, int8: bool) -> dict[str, str]:
    """Import what a form needs. Returns the versions by distribution.

    Raises:
        UsageError: a package is missing, or the form has no int8.
    """
    if int8 and not form.int8:
        raise UsageError(f"--to {form.name} has no --int8", hint="export --int8 to onnx or openvino")
    os.environ.setdefault("TQDM_DISABLE", "1")  # their progress bars
    for name in (*form.packages, "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)  # what they say of their own parts that are not installed
    versions: dict[str, str] = {}
    for module, distribution in form.packages.items():
        try:
            with sending_nothing():
                importlib.import_module(module)
            versions[distribution] = importlib.metadata.version(distribution)
        except ImportError as error:
            hint = f"install it: pip install 'stagedkd[{form.extra}]'"
            raise UsageError(f"--to {form.name} needs {distribution}: {error}", hint=hint) from None
    return versions
