"""What the processes that do a stage tell each other, in files of JSON: orders, progress, signals and faults.

The launcher writes orders and `stop` (a signal's number), the other side its progress, and why it failed. Both are
ranks of one training (ranks.py, rank.py), or workers with a stage each (cluster.py, worker.py).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from stagedkd import errors
from stagedkd.errors import Interrupted, StagedkdError, TrainingError
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.lock import Lock
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.schema import Clip, Section
from stagedkd.stages.context import Listener, Silent, Stop

SAY_SECONDS = 0.1
KINDS = (errors.UsageError, errors.LockError, errors.DataError, errors.StoreError)


class Order(Section):
    """What is to be done: `stage` of a plan that holds it and all above it."""

    name: str
    lock: Lock
    stages: tuple[Stage, ...]
    clip: Clip
    stage: str
    runtime: Runtime

    @classmethod
    def read(cls, path: Path) -> Self:
        """An order, from its file."""
        return cls.model_validate_json(path.read_bytes(), strict=False)

    @property
    def graph(self) -> Graph:
        return Graph(self.name, self.lock, self.stages, self.clip)


def order(plan: Graph, stage: Stage, runtime: Runtime) -> Order:
    """The order of a stage of a plan."""
    return Order(
        name=plan.name, lock=plan.lock, stages=plan.closure(stage), clip=plan.clip, stage=stage.name, runtime=runtime
    )


class Saying(Silent):
    """Writes what there is to show where the launcher reads it; of the steps no more than a person can read."""

    def __init__(self, path: Path) -> None:
        self.stream = path.open("a", encoding="utf-8", buffering=1)
        self.last = 0.0

    def stage(self, number: int, of: int, stage: Stage, state: str) -> None:
        self._say({"begins": state})

    def note(self, text: str) -> None:
        self._say({"note": text})

    def step(self, fields: Mapping[str, Any]) -> None:
        if time.monotonic() - self.last > SAY_SECONDS or fields["done"] >= 1:
            self.last = time.monotonic()
            self._say({"step": dict(fields)})

    def count(self, what: str, done: int, of: int) -> None:
        if time.monotonic() - self.last > SAY_SECONDS or done == of:
            self.last = time.monotonic()
            self._say({"count": [what, done, of]})

    def _say(self, row: dict[str, Any]) -> None:
        self.stream.write(json.dumps(row) + "\n")


class Said:
    """What a `Saying` wrote, read on from where it was left. `begun` is the state in which its stage was found."""

    def __init__(self, path: Path, listener: Listener) -> None:
        self.path, self.listener, self.at = path, listener, 0
        self.begun: str | None = None

    def relay(self) -> None:
        """Pass whole lines on."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(self.at)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.at += len(whole)
        for line in whole.splitlines():
            match json.loads(line):
                case {"begins": str(state)}:
                    self.begun = state
                case {"note": str(note)}:
                    self.listener.note(note)
                case {"step": dict(fields)}:
                    self.listener.step(fields)
                case {"count": [str(what), int(done), int(of)]}:
                    self.listener.count(what, done, of)


@contextmanager
def stopped_by(path: Path, stop: Stop) -> Generator[Stop]:
    """Within, the file sets `stop` as a signal of the number in it would."""
    over = threading.Event()

    def look() -> None:
        while not path.exists():
            if over.wait(SAY_SECONDS):
                return
        stop.number = int(path.read_text("utf-8"))

    threading.Thread(target=look, daemon=True).start()
    try:
        yield stop
    finally:
        over.set()


def fault_of(error: BaseException) -> dict[str, Any]:
    """An error as plain values."""
    ours = isinstance(error, StagedkdError)
    fault = {"ours": ours, "kind": type(error).__name__, "message": str(error), "hint": ""}
    if isinstance(error, StagedkdError):
        fault |= {"message": error.message, "hint": error.hint}
    else:
        fault["message"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if isinstance(error, Interrupted):
        fault["signal"] = error.exit_code - 128
    return fault


def error_of(fault: Mapping[str, Any]) -> StagedkdError:
    """An error of ours that another process raised, anew."""
    if fault["kind"] == Interrupted.__name__:
        return Interrupted(fault["signal"], fault["message"])
    kind = next((known for known in KINDS if known.__name__ == fault["kind"]), TrainingError)
    return kind(fault["message"], hint=fault["hint"])
