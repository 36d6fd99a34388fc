"""One event file per stage, JSON lines, which later sinks can read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events: {"event": name, "time": seconds since 1970, ...}."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def size(self) -> int:
        """Bytes written so far: a checkpoint notes it, so that a resumed run repeats no event."""
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        """Drop what was written after a checkpoint."""
        with self.path.open("rb+") as stream:
            stream.truncate(size)
