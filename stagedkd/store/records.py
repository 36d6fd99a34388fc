"""Records of runs. `.runs/<mark>.json` lists the keys of the stages that a run needs; its modification time is when
such a run was last started. `stagedkd store gc` keeps what the last runs need, and what running ones need
(`Store.at_work`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagedkd.errors import StoreError
from stagedkd.files import write_whole
from stagedkd.plan.key import Key

RUNS = ".runs"


@dataclass(frozen=True)
class Record:
    """One run. `name` is that of its results; "" if it has none, and then the record counts only while it runs. `keys`
    are those of all its stages. `started` is the last start in seconds since 1970, by the file system's clock. `mark`
    is the hash of name and keys."""

    mark: str
    name: str
    keys: tuple[Key, ...]
    started: float


def record(root: Path, name: str, keys: Iterable[str]) -> str:
    """Record that a run starts which needs the stages of these keys. Returns its mark, 16 hex digits."""
    text = json.dumps({"name": name, "keys": sorted(keys)}, indent=1) + "\n"
    mark = _mark(text.encode())
    path = root / RUNS / f"{mark}.json"
    try:
        os.utime(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    return mark


def records(root: Path, *, strict: bool = False) -> list[Record]:
    """All recorded runs, the last one first. A file that cannot be read, or is not what was written, is left out, or is
    an error under `strict`.

    Raises:
        StoreError: only under `strict`.
    """
    runs: list[Record] = []
    for path in (root / RUNS).glob("*.json"):
        try:
            text = path.read_bytes()
            if not is_whole(path, text):
                raise ValueError("it is not what was written")
            values: Any = json.loads(text)
            runs.append(Record(path.stem, str(values["name"]), tuple(map(Key, values["keys"])), path.stat().st_mtime))
        except FileNotFoundError:
            continue  # removed just now
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not strict:
                continue
            reason = error.strerror if isinstance(error, OSError) else "it is not what a run writes"
            hint = "run its spec again, which writes it anew, or remove the file: then that run keeps nothing"
            message = f"the record of a run cannot be read, so what it needs is not known: {path}: {reason}"
            raise StoreError(message, hint=hint) from None
    return sorted(runs, key=lambda run: (-run.started, run.name))


def is_whole(path: Path, content: bytes) -> bool:
    """Whether the file of a record has the content that was written: its name is the hash of it."""
    return _mark(content) == path.stem


def _mark(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
