"""Sinks: they receive the events of a training. A new sink is one class here, and one entry in `open_log`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """Receives the events of a training. `docs/extending.md` lists the events with their fields."""

    def write(self, event: str, **fields: Any) -> None:
        """Receive one event. `fields` are plain JSON values."""
        ...


class EventLog:
    """The sink that every training has: a file of JSON lines, {"event": name, "time": seconds since 1970, ...}. It
    passes each event on to further sinks.

    A `muted` log writes nothing: if several processes share a training, only the first one writes.
    """

    def __init__(self, path: Path, *, muted: bool = False, sinks: Sequence[Sink] = ()) -> None:
        self.path, self.muted, self.sinks = path, muted, tuple(sinks)
        if not muted:
            path.touch()

    def write(self, event: str, **fields: Any) -> None:
        if self.muted:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        for sink in self.sinks:
            sink.write(event, **fields)

    def size(self) -> int:
        """The bytes written so far. A checkpoint stores this size, so that a resumed run repeats no event."""
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        """Drop the events that were written after a checkpoint."""
        if self.muted:
            return
        with self.path.open("rb+") as stream:
            stream.truncate(size)


def open_log(folder: Path, name: str = "", *, muted: bool = False) -> EventLog:
    """Open the event log of a training, with all sinks.

    Args:
        folder: where the file of JSON lines goes; it is removed when the stage is published.
        name: of the training, such as distill-1183da6ced05, for sinks that need one.
    """
    return EventLog(folder / "events.jsonl", muted=muted, sinks=())
