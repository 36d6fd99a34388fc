"""The context that the function of every kind of work receives: inputs, workspace, runtime and listener."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from stagedkd.errors import Interrupted
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.runtime import Runtime
from stagedkd.store.leases import Lease
from stagedkd.store.manifest import Manifest
from stagedkd.store.store import Artifact, Workspace
from stagedkd.train.rehearsal import Rehearsal


class Listener(Protocol):
    """Receives the progress of a run, in the process and the thread that called `run`.

    A class of yours inherits from `Silent` and overrides what it wants to hear. An exception that a method raises ends
    the run, as an error of the stage that runs.
    """

    def cell(self, number: int, of: int, name: str) -> None:
        """A cell of a grid begins: the `number`th, from 1, of `of`. `name` holds its axes, as in `recipe=kd,seed=0`."""
        ...

    def stage(self, number: int, of: int, stage: Stage, state: str) -> None:
        """A stage is looked at: the `number`th, from 1, of `of`. `state` is hit (the store has it), resumable or miss.
        `stage.name` is a name such as student, `stage.folder` its folder in the store."""
        ...

    def note(self, text: str) -> None:
        """There is something that the user should know, in a sentence."""
        ...

    def step(self, fields: Mapping[str, Any]) -> None:
        """Losses of a training were read, every `runtime.loss_every` steps. `fields` are plain values: `phase`, `epoch`
        and `epochs` of the phase, `step` of the whole training, `lr`, `losses` (means over this epoch so far, by name),
        `clips_per_s`, `done` (the part of the training, in 0..1), `seconds` of training and validation, and `top1`, the
        accuracy of the last validation in 0..1, None before the first. From other processes come at most ten a second.
        """
        ...

    def count(self, what: str, done: int, of: int) -> None:
        """Work that is counted goes on, such as "clips evaluated"."""
        ...

    def finished(self, stage: Stage, seconds: float) -> None:
        """A stage was made, and is in the store. A hit does not finish."""
        ...

    def failed(self, stage: Stage, message: str) -> None:
        """A stage failed while others run at once. If a stage runs alone, the run raises the error instead."""
        ...

    def beside(self, stage: Stage, label: str) -> Listener:
        """Several stages run at once: return the listener for this one. `label` names the stage in the whole run."""
        ...


class Silent:
    """A listener that does nothing, for classes that override some of its methods. Of stages that run at once it hears
    the notes, with the label of the stage before them; `beside` may return another listener that hears more."""

    def cell(self, number: int, of: int, name: str) -> None: ...
    def stage(self, number: int, of: int, stage: Stage, state: str) -> None: ...
    def note(self, text: str) -> None: ...
    def step(self, fields: Mapping[str, Any]) -> None: ...
    def count(self, what: str, done: int, of: int) -> None: ...
    def finished(self, stage: Stage, seconds: float) -> None: ...
    def failed(self, stage: Stage, message: str) -> None: ...

    def beside(self, stage: Stage, label: str) -> Listener:
        return Beside(self, label)


class Beside(Silent):
    """The listener of one of several stages that run at once: its notes have the label of the stage before them."""

    def __init__(self, listener: Listener, label: str) -> None:
        self.listener, self.label = listener, label

    def note(self, text: str) -> None:
        name = self.label.rpartition(" ")[2]  # many notes begin with the name of their stage, as the label ends
        self.listener.note(f"{self.label}: {text.removeprefix(f'{name}: ')}")


@dataclass
class Stop:
    """A stop that a signal requested, to be acted on at the next safe moment. `number` is the number of the signal, or
    None if none came. `guard` raises StoreError if the stage must end at once because its lease is lost."""

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
        """Inside, `get` and `check` raise StoreError once the lease is lost."""

        def guard() -> None:
            if lease.lost:
                lease.require()

        self.guard = guard
        try:
            yield
        finally:
            self.guard = lambda: None


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that stop a run: SIGTERM, SIGINT, and SIGHUP (the terminal has gone) unless it is ignored, as under
    `nohup`."""
    hangs_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if hangs_up else ()))


def _leave_terminal() -> None:
    """Drop what is printed from now on to a terminal that has gone: writing to it would fail, and so would the work."""
    for descriptor in (1, 2):
        try:
            os.tcgetpgrp(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@contextmanager
def catching_signals() -> Generator[Stop]:
    """Inside, the signals of `stop_signals` set a `Stop`. A second signal ends the process at once, but
    not a SIGHUP: when a terminal goes, its shell and the system send one each."""
    stop = Stop()

    def set_stop(number: int, _frame: Any) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        elif stop.number is not None:
            os._exit(128 + number)
        stop.number = stop.number or number

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set signal handlers
        return
    before = {number: signal.signal(number, set_stop) for number in stop_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, kw_only=True)
class Session:
    """What is needed to read clips and to report progress, in a stage and in the commands that inspect data.

    `rehearsals` collects what a rehearsal measures: trainings and evaluations end after a few steps, and the store is
    one of the rehearsal. None: they run to their end.
    """

    plan: Graph
    runtime: Runtime
    listener: Listener
    stop: Stop
    rehearsals: list[Rehearsal] | None = None

    @property
    def root(self) -> Path:
        """The project's folder."""
        return Path(self.runtime.root)

    def rehearsal(self, times: int = 1) -> Rehearsal | None:
        """Begin to rehearse a training or evaluation, of which the stage has `times` alike; None if it is for real."""
        if self.rehearsals is None:
            return None
        self.rehearsals.append(Rehearsal(times))
        return self.rehearsals[-1]


@dataclass(frozen=True, kw_only=True)
class Context(Session):
    """The context of a stage that is about to run. `inputs` holds the artifacts that it needs, by input name;
    `manifest` is the manifest of the stage, without files. If several processes (`ranks`) do the stage together, only
    the first one writes."""

    stage: Stage
    inputs: Mapping[str, Artifact]
    workspace: Workspace
    manifest: Manifest
    rank: int = 0
    ranks: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files of the stage."""
        return self.rank == 0


@dataclass(frozen=True)
class Result:
    """The result of a stage. `metrics` go into the manifest, `run` (facts that vary from run to run) into run.json."""

    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    run: Mapping[str, Any] = field(default_factory=dict[str, Any])


Do: TypeAlias = Callable[[Context], Result]
