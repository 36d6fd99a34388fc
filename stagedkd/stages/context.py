"""What every kind of work is handed: its inputs, its workspace, the runtime, and whom to tell."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stagedkd.errors import Interrupted
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.runtime import Runtime
from stagedkd.store.leases import Lease
from stagedkd.store.manifest import Manifest
from stagedkd.store.store import Artifact, Workspace


class Listener(Protocol):
    """Whoever shows the run. Every call may be ignored."""

    def cell(self, number: int, of: int, name: str) -> None: ...
    def stage(self, number: int, of: int, stage: Stage, state: str) -> None: ...
    def note(self, text: str) -> None: ...
    def step(self, fields: Mapping[str, Any]) -> None: ...
    def count(self, what: str, done: int, of: int) -> None: ...
    def finished(self, stage: Stage, seconds: float) -> None: ...


class Silent:
    """A listener that shows nothing."""

    def cell(self, number: int, of: int, name: str) -> None: ...
    def stage(self, number: int, of: int, stage: Stage, state: str) -> None: ...
    def note(self, text: str) -> None: ...
    def step(self, fields: Mapping[str, Any]) -> None: ...
    def count(self, what: str, done: int, of: int) -> None: ...
    def finished(self, stage: Stage, seconds: float) -> None: ...


@dataclass
class Stop:
    """A signal that came, to be acted on at the next safe moment. `guard` raises where a stage may not go on: its lease
    is lost."""

    number: int | None = None
    guard: Callable[[], None] = lambda: None

    def get(self) -> int | None:
        self.guard()
        return self.number

    def check(self) -> None:
        """Raise Interrupted if a signal came; for work that has nothing to save."""
        self.guard()
        if self.number is not None:
            raise Interrupted(self.number, f"stopped by signal {self.number}")

    @contextmanager
    def guarded(self, lease: Lease) -> Generator[None]:
        """Within, a lost lease raises StoreError at the next look."""

        def guard() -> None:
            if lease.lost:
                lease.require()

        self.guard = guard
        try:
            yield
        finally:
            self.guard = lambda: None


@contextmanager
def catching_signals() -> Generator[Stop]:
    """SIGTERM and SIGINT are noted in a `Stop`; a second one of them ends the process at once."""
    stop = Stop()

    def note(number: int, _frame: Any) -> None:
        if stop.number is not None:
            os._exit(128 + number)
        stop.number = number

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread's owner
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Context:
    """One stage about to run. `inputs` are the artifacts it needs by input; `manifest` its own, without files. Of
    several processes that do it together (`ranks`) the first alone writes."""

    plan: Graph
    stage: Stage
    inputs: Mapping[str, Artifact]
    workspace: Workspace
    manifest: Manifest
    runtime: Runtime
    listener: Listener
    stop: Stop
    rank: int = 0
    ranks: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what is kept."""
        return self.rank == 0

    @property
    def root(self) -> Path:
        return Path(self.runtime.root)


@dataclass(frozen=True)
class Done:
    """What a stage reports: `metrics` go into the manifest, `run` (volatile) into run.json."""

    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    run: Mapping[str, Any] = field(default_factory=dict[str, Any])


Worker = Callable[[Context], Done]
