"""Which runs there were: `.runs/<mark>.json` names the stages that a run needs; its time of change is when such a run
was last started. `stagedkd store gc` keeps what the last ones need, and what living ones do (`Store.at_work`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagedkd.files import write_whole
from stagedkd.plan.key import Key

RUNS = ".runs"


@dataclass(frozen=True)
class Record:
    """A run: the name of its results ("": it has none, and is needed as long as it lives), the keys of all its stages,
    and when it was last started (seconds since 1970, as the file system has it)."""

    mark: str
    name: str
    keys: tuple[Key, ...]
    started: float


def record(root: Path, name: str, keys: Iterable[str]) -> str:
    """Note that a run starts, which needs the stages of these keys. Gives the mark of such runs."""
    text = json.dumps({"name": name, "keys": sorted(keys)}, indent=1) + "\n"
    mark = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = root / RUNS / f"{mark}.json"
    try:
        os.utime(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    return mark


def records(root: Path) -> list[Record]:
    """The runs there were, the last one first."""
    found: list[Record] = []
    for path in (root / RUNS).glob("*.json"):
        try:
            values: Any = json.loads(path.read_text("utf-8"))
            found.append(Record(path.stem, str(values["name"]), tuple(map(Key, values["keys"])), path.stat().st_mtime))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # cut by a full disk, or removed just now
    return sorted(found, key=lambda run: (-run.started, run.name))
