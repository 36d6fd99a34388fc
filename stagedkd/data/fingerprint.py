"""Fingerprints of data on the disk: relative paths, sizes and content hashes. Torch-free.

A file is hashed once and then recognised by its size and time of change, so that a second look at a large set only
lists the folders.
"""

from __future__ import annotations

import re
from pathlib import Path

from stagedkd.data.address import Address
from stagedkd.data.layouts import list_clips
from stagedkd.errors import Advice, DataError, LockError
from stagedkd.files import DamagedError, read_record, record_text, write_whole
from stagedkd.plan.key import digest
from stagedkd.plan.lock import DataLock
from stagedkd.spec.schema import Videos
from stagedkd.store.manifest import file_digest


class HashMemo:
    """Keeps the SHA-256 of files in a record (files.py), by path, size and times of change. Losing that file costs only
    time: one that is damaged, or has no digest, counts as missing.

    Args:
        path: of the record; None keeps nothing beyond this object.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.changed = path, False
        self.known = read_memo(path) if path is not None else {}

    def sha256(self, path: Path) -> tuple[int, str]:
        """Return the size and the SHA-256 of a file."""
        stat = path.stat()
        mark = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"
        entry = self.known.get(str(path))
        if not entry or entry[0] != mark:
            entry = self.known[str(path)] = [mark, file_digest(path)]
            self.changed = True
        return stat.st_size, entry[1]

    def pictures(self, folder: Path, pattern: re.Pattern[str]) -> tuple[int, str]:
        """Return the size of the numbered pictures in a folder together, and the SHA-256 over their names and contents.
        They are read again if any of them has changed."""
        found = sorted(
            ((p.name, p.stat(), p) for p in folder.iterdir() if pattern.fullmatch(p.name)), key=lambda x: x[0]
        )
        mark = digest([[n, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for n, stat, _ in found])
        known = f"{folder}/{pattern.pattern}"
        entry = self.known.get(known)
        if not entry or entry[0] != mark:
            entry = self.known[known] = [mark, digest([[name, file_digest(path)] for name, _, path in found])]
            self.changed = True
        return sum(stat.st_size for _, stat, _ in found), entry[1]

    def clip(self, address: Address) -> tuple[int, str]:
        """Return the size and the SHA-256 of what an address names; -1 and "" if it does not exist.

        Raises:
            DataError: a file cannot be read.
        """
        pattern = address.pictures
        try:
            if pattern is not None and address.file.parent.is_dir():
                return self.pictures(address.file.parent, pattern)
            return self.sha256(address.file) if address.file.is_file() else (-1, "")
        except OSError as error:
            hint = "give yourself the right to read it, or take it out of the set"
            raise DataError(f"{error.filename} cannot be read: {error.strerror}", hint=hint) from None

    def save(self) -> None:
        """Write the JSON file if it has changed."""
        if self.changed and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, record_text({"files": self.known}))


def read_memo(path: Path) -> dict[str, list[str]]:
    """Read the file of a `HashMemo`; {} if it is missing, damaged or has no digest."""
    try:
        values, has_digest = read_record(path.read_bytes())
    except (OSError, DamagedError):
        return {}
    return values.get("files", {}) if has_digest else {}


def damaged_memo(path: Path) -> list[str]:
    """Return what is wrong with the file of a `HashMemo`; none if nothing is, or if an earlier version wrote it."""
    try:
        read_record(path.read_bytes())
    except FileNotFoundError:
        return []
    except DamagedError as error:
        return [f"{path} {error}"]
    return []


def require_locked(memo: HashMemo, address: Address, locked: str) -> None:
    """Compare a clip with its entry of the lock, "size:sha256". Raises LockError: they differ. DataError: see
    `HashMemo.clip`."""
    if "{}:{}".format(*memo.clip(address)) != locked:
        hint = Advice("restore the file, or accept it as it is", "lock")
        raise LockError(f"{address.file} was changed: it differs from stagedkd.lock", hint=hint)


def fingerprint(data: Videos, data_dir: Path, memo: HashMemo) -> DataLock:
    """Return the entry of the lock for a data set. A listed clip that does not exist has size -1 and no hash."""
    listing = list_clips(data, data_dir)
    files: dict[str, str] = {}
    for entry in listing.entries:
        size, sha256 = memo.clip(Address.read(listing.root, entry.path))
        files[entry.path] = f"{size}:{sha256}"
    lists = {name: "{}:{}".format(*memo.sha256(path)) for name, path in sorted(listing.lists.items())}
    table = next(iter(lists.values())) if len(lists) == 1 else digest(lists) if lists else ""
    memo.save()
    # Classes that are sorted as text say nothing new; so data sets that were locked before keep their fingerprint.
    order = [] if listing.classes == tuple(sorted(listing.classes)) else [listing.classes]
    mark = digest([table, sorted(files.items()), *order])
    return DataLock(fingerprint=mark, classes=listing.classes, clips=len(files), files=files, table=table)


def require_equal(name: str, locked: DataLock, current: DataLock) -> None:
    """Raise LockError if the data differ from the lock; it lists the files and names the command that accepts them."""
    if locked.fingerprint == current.fingerprint:
        return
    changed = sorted(f for f in locked.files.keys() & current.files.keys() if locked.files[f] != current.files[f])
    rows = [f"changed  {f}" for f in changed]
    rows += ["changed  the table or lists"] if locked.table != current.table else []
    rows += ["changed  the order of the classes"] if locked.classes != current.classes else []
    rows += [f"missing  {f}" for f in sorted(locked.files.keys() - current.files.keys())]
    rows += [f"new      {f}" for f in sorted(current.files.keys() - locked.files.keys())]
    lines = rows[:20] + ([f"... and {len(rows) - 20} more"] if len(rows) > 20 else [])
    message = f"the data of {name} differ from stagedkd.lock:\n    " + "\n    ".join(lines)
    raise LockError(message, hint=Advice("restore the files, or accept them as they are", "lock"))
