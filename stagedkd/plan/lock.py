"""`stagedkd.lock`: facts about data and weight files that only the disk knows. It is committed beside the specs, so
that keys can be computed without the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from stagedkd.errors import LockError
from stagedkd.files import write_whole
from stagedkd.spec.families import class_names
from stagedkd.spec.schema import Architecture, Data, Section, Simulated, is_weight_file


class DataLock(Section):
    """A data set at the time when it was locked.

    Attributes:
        fingerprint: the digest of `table` and `files`, 64 hex digits; it enters keys.
        classes: the names of the classes.
        clips: the number of files.
        files: maps the path of each video to "size:sha256".
        table: stands for the lists that say which files belong to the set, such as the csv: "size:sha256" of a single
            list, the digest of several lists, "" if there is none.
    """

    fingerprint: str
    classes: tuple[str, ...]
    clips: int
    files: Mapping[str, str]
    table: str = ""


class Lock(Section):
    """The content of stagedkd.lock: data sets by `data_id`, and the SHA-256 of weight files by `weights_id`."""

    version: int = 1
    data: Mapping[str, DataLock] = Field(default_factory=dict[str, DataLock])
    weights: Mapping[str, str] = Field(default_factory=dict[str, str])

    def classes_of(self, data: Data) -> tuple[str, ...]:
        """The classes of a data set, from the simulator or from its entry; () if it has no entry yet."""
        if isinstance(data, Simulated):
            return class_names(data)
        entry = self.data.get(str(data_id(data)))
        return entry.classes if entry else ()

    def with_data(self, name: str, entry: DataLock) -> Lock:
        """A copy with this entry for a data set."""
        return Lock(data={**self.data, name: entry}, weights=self.weights)

    def with_weights(self, name: str, sha256: str) -> Lock:
        """A copy with this entry for a weight file."""
        return Lock(data=self.data, weights={**self.weights, name: sha256})


def data_id(data: Data) -> str | None:
    """The name of a data set in the lock. None for simulated sets, which need no entry."""
    if isinstance(data, Simulated):
        return None
    return f"{data.kind}:{data.path}{data.lock_mark}"


def weights_id(name: str, arch: Architecture) -> str:
    """The name in the lock of the weights that a spec gives as `weights: name`. A path is its own name. A torchvision
    name follows the name of its network, since IMAGENET1K_V1 is a different file for each network."""
    owner = arch.torchvision_name
    return name if owner is None or is_weight_file(name) else f"{owner}/{name}"


def read_lock(path: Path) -> Lock:
    """Read the lock at `path`. Returns an empty lock if the file does not exist.

    Raises:
        LockError: the file cannot be read.
    """
    if path.exists() and not path.is_file():
        raise LockError(f"{path} is not a file", hint="move it away, and restore the lock from git")
    try:
        return Lock.model_validate_json(path.read_text("utf-8"), strict=False)
    except FileNotFoundError:
        return Lock()
    except (ValidationError, UnicodeDecodeError) as error:
        hint = "restore it from git, or remove it: the next run writes it again"
        raise LockError(f"{path} is not a lock file: {str(error).splitlines()[0]}", hint=hint) from None


def write_lock(path: Path, lock: Lock) -> None:
    """Write the lock atomically, with its entries in a stable order."""
    text = json.dumps(lock.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, text)
