"""Sinks: they receive the events of a training. A new sink is one class here, and one entry in `open_log`. The sink of
TensorBoard and the like is in loggers/."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from stagedkd.errors import Interrupted
from stagedkd.store.runlog import EVENTS, event_line


class Sink(Protocol):
    """Receives the events of a training. `docs/extending.md` lists the events with their fields."""

    def write(self, event: str, **fields: Any) -> None:
        """Receive one event. `fields` are plain JSON values."""
        ...


class EventLog:
    """The sink that every training has: a file of JSON lines, {"event": name, "time": seconds since 1970, ...}, each
    with a checksum at its end (store/runlog.py). It passes each event on to further sinks.

    A `muted` log writes nothing: if several processes share a training, only the first one writes. A training runs
    inside the log (`with log`): at its end the further sinks get the event `ended`, which is not in the file.
    """

    def __init__(self, path: Path, *, muted: bool = False, sinks: Sequence[Sink] = ()) -> None:
        self.path, self.muted, self.sinks = path, muted, tuple(sinks)
        if not muted:
            path.touch()

    def write(self, event: str, **fields: Any) -> None:
        if self.muted:
            return
        line = event_line({"event": event, "time": round(time.time(), 3), **fields})
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        for sink in self.sinks:
            sink.write(event, **fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = "finished" if error is None else "interrupted" if isinstance(error, Interrupted) else "failed"
        for sink in () if self.muted else self.sinks:
            sink.write("ended", state=state)

    @property
    def failures(self) -> dict[str, str]:
        """The errors of the loggers that failed, by their names."""
        return {name: text for sink in self.sinks for name, text in getattr(sink, "failures", {}).items()}

    def flush(self) -> int:
        """Flush all events to the disk.

        Returns:
            the bytes written so far. A checkpoint states this size, so that a resumed run repeats no event.
        """
        with self.path.open("rb") as stream:
            os.fsync(stream.fileno())
            return os.fstat(stream.fileno()).st_size

    def truncate(self, size: int) -> int:
        """Drop the events that were written after a checkpoint. A file that is shorter stays as it is, up to its last
        whole line.

        Returns:
            the bytes that are missing.
        """
        if self.muted:
            return 0
        with self.path.open("rb+") as stream:
            content = stream.read(size)
            whole = len(content) if len(content) == size else content.rfind(b"\n") + 1
            stream.truncate(whole)
            return size - whole


def open_log(folder: Path, name: str = "", *, muted: bool = False, loggers: Sequence[Sink] = ()) -> EventLog:
    """Open the event log of a training, with all sinks.

    Args:
        folder: where the file of JSON lines goes; it is removed when the stage is published.
        name: of the training, such as distill-1183da6ced05, for sinks that need one.
        loggers: the sinks that the user chose.
    """
    return EventLog(folder / EVENTS, muted=muted, sinks=(*loggers,))
