"""One event file per stage, JSON lines, which later sinks can read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events: {"event": name, "time": seconds since 1970, ...}. A `muted` one writes nothing: of several
    processes that make one training the first alone tells."""

    def __init__(self, path: Path, *, muted: bool = False) -> None:
        self.path, self.muted = path, muted
        if not muted:
            path.touch()

    def write(self, event: str, **fields: Any) -> None:
        if self.muted:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def size(self) -> int:
        """Bytes written so far: a checkpoint notes it, so that a resumed run repeats no event."""
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        """Drop what was written after a checkpoint."""
        if self.muted:
            return
        with self.path.open("rb+") as stream:
            stream.truncate(size)
