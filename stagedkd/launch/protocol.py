"""The protocol between the processes that make a stage: requests, progress, stop and errors as JSON files.

The launcher writes the request and `stop` (the number of a signal); the other side writes its progress, and its error.
The other side is either the ranks of one training (torchrun.py, rank.py), or workers with a stage each (ready_queue.py,
worker.py).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

from stagedkd import errors
from stagedkd.errors import Interrupted, StagedkdError, StoreError, TrainingError
from stagedkd.files import DamagedError, read_record, record_text, write_whole
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.lock import Lock
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.schema import Clip, Section
from stagedkd.stages.context import Context, Listener, Silent, Stop
from stagedkd.store.manifest import manifest_of
from stagedkd.store.store import LISTS, Store, Workspace

MEETING = "STAGEDKD_MEETING"  # the variable that holds the folder in which ranks meet
PROGRESS_SECONDS = 0.1  # the shortest time between two lines of progress
KINDS = (errors.UsageError, errors.LockError, errors.DataError, errors.StoreError, errors.HostError)


class StageRequest(Section):
    """A request to make `stage`, with all stages above it. `name`, `clip` and
    `validate_every` are those of its graph.

    `lock` has the entries that these stages depend on, without the lists of files, which have a line for each clip.
    These lie in the store, each once, under the fingerprints of their data sets; `listed` names the entries that have
    one.
    """

    name: str
    lock: Lock
    listed: tuple[str, ...]
    stages: tuple[Stage, ...]
    clip: Clip
    validate_every: int | None
    stage: str
    runtime: Runtime

    @classmethod
    def of(cls, graph: Graph, stage: Stage, runtime: Runtime, **fields: Any) -> Self:
        """The request for a stage of a graph. `fields` are those that a subclass adds. Writes lists of files that the
        store does not have yet."""
        lock = manifest_of(graph, stage).lock
        files = {name: graph.lock.data[name].files for name in lock.data}
        for name, entry in lock.data.items():
            path = _list_path(runtime, entry.fingerprint)
            if files[name] and not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, record_text({"files": dict(files[name])}))
        return cls(
            name=graph.name,
            lock=lock,
            listed=tuple(name for name in lock.data if files[name]),
            stages=graph.closure(stage),
            clip=graph.clip,
            validate_every=graph.validate_every,
            stage=stage.name,
            runtime=runtime,
            **fields,
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a request from its file."""
        return cls.model_validate_json(path.read_bytes(), strict=False)

    @property
    def graph(self) -> Graph:
        """The stage with all stages above it, and the lock with its lists of files."""
        lock = self.lock
        for name in self.listed:
            path = _list_path(self.runtime, lock.data[name].fingerprint)
            lock = lock.with_data(name, lock.data[name].model_copy(update={"files": _read_list(path)}))
        return Graph(self.name, lock, self.stages, self.clip, self.validate_every)


def _list_path(runtime: Runtime, fingerprint: str) -> Path:
    """Where the list of files of a data set lies."""
    return runtime.folder("store") / LISTS / f"{fingerprint}.json"


@cache
def _read_list(path: Path) -> Mapping[str, str]:
    """Read a list of files, once in a process: its name says what is in it. Raises StoreError: it is damaged."""
    try:
        return read_record(path.read_bytes())[0]["files"]
    except DamagedError as error:
        raise StoreError(f"{path} {error}", hint=f"remove {path}, and run again: it is written anew") from None


class WorkRequest(StageRequest):
    """A request to do the work of `stage`, whose lease the launcher holds. `files` and `scratch` are its workspace;
    `rehearses`: the work is only rehearsed."""

    files: str
    scratch: str
    rehearses: bool = False

    @classmethod
    def of_context(cls, context: Context, runtime: Runtime) -> Self:
        """The request for the stage of a context."""
        workspace = context.workspace
        folders = {"files": str(workspace.files.resolve()), "scratch": str(workspace.scratch.resolve())}
        rehearses = context.rehearsals is not None
        return cls.of(context.plan, context.stage, runtime, **folders, rehearses=rehearses)

    def context(self, listener: Listener, stop: Stop, rank: int = 0, ranks: int = 1) -> Context:
        """The launcher's context, made again on the other side from the request and the store."""
        graph, store = self.graph, Store(self.runtime.folder("store"))
        stage = graph.stage(self.stage)
        return Context(
            plan=graph,
            runtime=self.runtime,
            listener=listener,
            stop=stop,
            stage=stage,
            inputs={label: store.artifact(other) for label, other in graph.inputs(stage).items()},
            workspace=Workspace(Path(self.files), Path(self.scratch)),
            manifest=manifest_of(graph, stage),
            rank=rank,
            ranks=ranks,
            rehearsals=[] if self.rehearses else None,
        )


class ProgressWriter(Silent):
    """A listener that writes the progress of a stage to a file, with no more steps a second than a person can read."""

    def __init__(self, path: Path) -> None:
        self.stream = path.open("a", encoding="utf-8", buffering=1)
        self.last = 0.0

    def stage(self, number: int, of: int, stage: Stage, state: str) -> None:
        self._write({"begins": state})

    def note(self, text: str) -> None:
        self._write({"note": text})

    def step(self, fields: Mapping[str, Any]) -> None:
        if time.monotonic() - self.last > PROGRESS_SECONDS or fields["done"] >= 1:
            self.last = time.monotonic()
            self._write({"step": dict(fields)})

    def count(self, what: str, done: int, of: int) -> None:
        if time.monotonic() - self.last > PROGRESS_SECONDS or done == of:
            self.last = time.monotonic()
            self._write({"count": [what, done, of]})

    def _write(self, row: dict[str, Any]) -> None:
        self.stream.write(json.dumps(row) + "\n")


class ProgressReader:
    """Reads what a `ProgressWriter` writes and passes it on to a listener. `begin` is called when the work of the stage
    starts, with what the store has of it then."""

    def __init__(self, path: Path, listener: Listener, begin: Callable[[str], None] = lambda _: None) -> None:
        self.path, self.listener, self.begin, self.at = path, listener, begin, 0

    def relay(self) -> None:
        """Pass on the whole lines that were written since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(self.at)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.at += len(whole)
        for line in whole.splitlines():
            row: dict[str, Any] = json.loads(line)
            if "begins" in row:
                self.begin(row["begins"])
            elif "note" in row:
                self.listener.note(row["note"])
            elif "step" in row:
                self.listener.step(row["step"])
            elif "count" in row:
                self.listener.count(*row["count"])


@contextmanager
def stop_by_file(path: Path, stop: Stop) -> Generator[Stop]:
    """Inside, the file sets `stop` like a signal whose number it contains."""
    over = threading.Event()

    def watch() -> None:
        while not path.exists():
            if over.wait(PROGRESS_SECONDS):
                return
        stop.number = int(path.read_text("utf-8"))

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield stop
    finally:
        over.set()


def error_as_json(error: BaseException) -> dict[str, Any]:
    """An error as plain values. `ours` says whether it is an error of stagedkd, as is what the machine refuses."""
    error = errors.host_error(error) or error
    values: dict[str, Any] = {"ours": isinstance(error, StagedkdError), "kind": type(error).__name__}
    if isinstance(error, StagedkdError):
        values |= {"message": error.message, "hint": error.advice.words, "command": error.advice.command}
    else:
        message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        values |= {"message": message, "hint": "", "command": ""}
    if isinstance(error, Interrupted):
        values["signal"] = error.exit_code - 128
    return values


def error_from_json(values: Mapping[str, Any]) -> StagedkdError:
    """The error of stagedkd that another process raised."""
    hint = errors.Advice(values["hint"], values["command"])
    if values["kind"] == Interrupted.__name__:
        return Interrupted(values["signal"], values["message"], hint=hint)
    kind = next((known for known in KINDS if known.__name__ == values["kind"]), TrainingError)
    return kind(values["message"], hint=hint)
