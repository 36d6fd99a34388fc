"""Fingerprints of data on the disk: relative paths, sizes and content hashes. Torch-free.

A file is hashed once and then known by its size and time of change, so that a second look at a large set is a walk.
"""

from __future__ import annotations

import json
from pathlib import Path

from stagedkd.data.layouts import list_clips
from stagedkd.errors import LockError
from stagedkd.files import write_whole
from stagedkd.plan.key import digest
from stagedkd.plan.lock import DataLock
from stagedkd.spec.schema import Videos
from stagedkd.store.manifest import file_digest


class HashMemo:
    """SHA-256 of files, remembered in a JSON file by path, size and time of change. Losing it costs time only."""

    def __init__(self, path: Path) -> None:
        self.path, self.changed = path, False
        try:
            known = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            known = {}
        self.known: dict[str, list[str]] = known if isinstance(known, dict) else {}

    def sha256(self, path: Path) -> tuple[int, str]:
        """Size and SHA-256 of a file."""
        stat = path.stat()
        mark = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        entry = self.known.get(str(path))
        if not entry or entry[0] != mark:
            entry = self.known[str(path)] = [mark, file_digest(path)]
            self.changed = True
        return stat.st_size, entry[1]

    def save(self) -> None:
        if self.changed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(self.known))


def fingerprint(data: Videos, data_dir: Path, memo: HashMemo) -> DataLock:
    """What the lock holds of a data set. A file that the table names and the disk lacks has size -1 and no hash."""
    found = list_clips(data, data_dir)
    files: dict[str, str] = {}
    for entry in found.entries:
        path = found.root / entry.path
        size, sha256 = memo.sha256(path) if path.is_file() else (-1, "")
        files[entry.path] = f"{size}:{sha256}"
    lists = {name: "{}:{}".format(*memo.sha256(path)) for name, path in sorted(found.lists.items())}
    table = next(iter(lists.values())) if len(lists) == 1 else digest(lists) if lists else ""
    memo.save()
    mark = digest([table, sorted(files.items())])
    return DataLock(fingerprint=mark, classes=found.classes, clips=len(files), files=files, table=table)


def require_equal(name: str, locked: DataLock, found: DataLock) -> None:
    """Raises LockError listing the files that differ, and the command that accepts them."""
    if locked.fingerprint == found.fingerprint:
        return
    changed = sorted(f for f in locked.files.keys() & found.files.keys() if locked.files[f] != found.files[f])
    rows = [f"changed  {f}" for f in changed]
    rows += ["changed  the table or lists"] if locked.table != found.table else []
    rows += [f"missing  {f}" for f in sorted(locked.files.keys() - found.files.keys())]
    rows += [f"new      {f}" for f in sorted(found.files.keys() - locked.files.keys())]
    shown = rows[:20] + ([f"... and {len(rows) - 20} more"] if len(rows) > 20 else [])
    message = f"the data of {name} differ from stagedkd.lock:\n    " + "\n    ".join(shown)
    raise LockError(message, hint="restore the files, or accept them as they are: stagedkd lock SPEC")
