"""Which runs there were: `.runs/<digest>.json` names the stages that a run needs; its time of change is when such a run
was last started. `stagedkd store gc` keeps what the last ones need."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNS = ".runs"


@dataclass(frozen=True)
class Record:
    """A run: the name of its results, the keys of all its stages, and when it was last started (seconds since 1970, as
    the file system has it)."""

    name: str
    keys: tuple[str, ...]
    started: float


def record(root: Path, name: str, keys: Iterable[str]) -> None:
    """Note that a run starts, which needs the stages of these keys."""
    text = json.dumps({"name": name, "keys": sorted(keys)}, indent=1) + "\n"
    path = root / RUNS / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    try:
        os.utime(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
        part.write_text(text, "utf-8")
        part.replace(path)


def records(root: Path) -> list[Record]:
    """The runs there were, the last one first."""
    found: list[Record] = []
    for path in (root / RUNS).glob("*.json"):
        try:
            values: Any = json.loads(path.read_text("utf-8"))
            found.append(Record(str(values["name"]), tuple(map(str, values["keys"])), path.stat().st_mtime))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # cut by a full disk, or removed just now
    return sorted(found, key=lambda run: (-run.started, run.name))
