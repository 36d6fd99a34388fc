"""`bench.json`: what `stagedkd bench` has measured of a student, kept beside it, and shown in its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from stagedkd.spec.schema import Section
from stagedkd.train.spread import BUSY

FILE = "bench.json"
Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(ge=0)]


class Timing(Section):
    """What a runtime takes."""

    runtime: str
    """`torch`, `teacher`, or the name of an export."""
    median: Seconds
    """Seconds until the logits of a clip that comes alone."""
    p95: Seconds
    """The 95th percentile of these."""
    spread: Annotated[float, Field(ge=0)]
    """The range of the medians of the turns, relative to the median."""
    throughput: Annotated[float, Field(gt=0)]
    """The most clips a second."""
    batch: Annotated[int, Field(ge=1)]
    """Clips at once that give them."""
    memory: Bytes | None
    """The peak of the resident memory of its process, in bytes, libraries included; null if unknown."""
    bytes: Bytes
    """The size of its files."""

    @property
    def busy(self) -> bool:
        """Whether the machine was too busy for the figures to count."""
        return self.spread > BUSY


class Bench(Section):
    """The timings of a student, and what they were taken on."""

    weights: str
    """SHA-256 of the student's weights."""
    threads: Annotated[int, Field(ge=1)]
    machine: str
    """The model of the CPU."""
    cores: int | None
    """How many the machine has; null if unknown."""
    load: float | None
    """Processes that the machine was running before, in the mean of a minute; null where the system does not tell."""
    timings: tuple[Timing, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")

    @property
    def taken_on(self) -> str:
        """The machine, in words."""
        cores = "" if self.cores is None else f" of {self.cores} cores"
        load = "" if self.load is None else f", load {self.load:.1f} before"
        return f"{self.machine}, {self.threads} thread{'s' * (self.threads != 1)}{cores}{load}"

    @property
    def note(self) -> str:
        """Says which figures do not count, "" if all do."""
        busy = ", ".join(each.runtime for each in self.timings if each.busy)
        return (
            f"the machine was busy: the latency of {busy} varied by more than {BUSY:.0%} between turns" if busy else ""
        )


def read_bench(folder: Path, weights: str) -> tuple[Bench | None, str]:
    """Read the bench of a student.

    Args:
        folder: of the student. weights: the digest of its weights.
    Returns:
        the bench, None if there is none of this student; and why a file that is there is not shown, or "".
    """
    path = folder / FILE
    repeat = f"run stagedkd bench {folder} again, or remove it"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{path} is not shown, since it cannot be read: {error.strerror}; {repeat}"
    try:
        bench = Bench.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = _place(first)
        return None, f"{path} is not shown, since it is no bench of this version{where}: {first['msg']}; {repeat}"
    if bench.weights != weights:
        return None, f"{path} is not shown, since it is of another student ({bench.weights[:12]}); {repeat}"
    return bench, ""


def _place(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    return f" at {place}" if place else ""
