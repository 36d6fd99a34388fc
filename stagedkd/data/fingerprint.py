"""Fingerprints of data on the disk: relative paths, sizes and content hashes. Torch-free.

A file is hashed once and then recognised by its size and time of change, so that a second look at a large set only
lists the folders.
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
    """Keeps the SHA-256 of files in a JSON file, by path, size and time of change. Losing that file costs only time."""

    def __init__(self, path: Path) -> None:
        self.path, self.changed = path, False
        try:
            known = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            known = {}
        self.known: dict[str, list[str]] = known if isinstance(known, dict) else {}

    def sha256(self, path: Path) -> tuple[int, str]:
        """Return the size and the SHA-256 of a file."""
        stat = path.stat()
        mark = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        entry = self.known.get(str(path))
        if not entry or entry[0] != mark:
            entry = self.known[str(path)] = [mark, file_digest(path)]
            self.changed = True
        return stat.st_size, entry[1]

    def save(self) -> None:
        """Write the JSON file if it has changed."""
        if self.changed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(self.known))


def fingerprint(data: Videos, data_dir: Path, memo: HashMemo) -> DataLock:
    """Return the entry of the lock for a data set. A listed file that does not exist has size -1 and no hash."""
    listing = list_clips(data, data_dir)
    files: dict[str, str] = {}
    for entry in listing.entries:
        path = listing.root / entry.path
        size, sha256 = memo.sha256(path) if path.is_file() else (-1, "")
        files[entry.path] = f"{size}:{sha256}"
    lists = {name: "{}:{}".format(*memo.sha256(path)) for name, path in sorted(listing.lists.items())}
    table = next(iter(lists.values())) if len(lists) == 1 else digest(lists) if lists else ""
    memo.save()
    mark = digest([table, sorted(files.items())])
    return DataLock(fingerprint=mark, classes=listing.classes, clips=len(files), files=files, table=table)


def require_equal(name: str, locked: DataLock, current: DataLock) -> None:
    """Raise LockError if the data differ from the lock; it lists the files and names the command that accepts them."""
    if locked.fingerprint == current.fingerprint:
        return
    changed = sorted(f for f in locked.files.keys() & current.files.keys() if locked.files[f] != current.files[f])
    rows = [f"changed  {f}" for f in changed]
    rows += ["changed  the table or lists"] if locked.table != current.table else []
    rows += [f"missing  {f}" for f in sorted(locked.files.keys() - current.files.keys())]
    rows += [f"new      {f}" for f in sorted(current.files.keys() - locked.files.keys())]
    lines = rows[:20] + ([f"... and {len(rows) - 20} more"] if len(rows) > 20 else [])
    message = f"the data of {name} differ from stagedkd.lock:\n    " + "\n    ".join(lines)
    raise LockError(message, hint="restore the files, or accept them as they are: stagedkd lock SPEC")
