"""`stagedkd.lock`: what only the disk knows, committed beside the specs, so that keys are known without the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from stagedkd.errors import LockError
from stagedkd.files import write_whole
from stagedkd.spec.schema import Architecture, Data, Section, Simulated, is_weight_file


class DataLock(Section):
    """A data set as it was when locked. `files` maps each video to "size:sha256"; `table` stands for the lists that say
    what belongs to it, such as the csv."""

    fingerprint: str
    classes: tuple[str, ...]
    clips: int
    files: Mapping[str, str]
    table: str = ""


class Lock(Section):
    """All entries: data sets by `data_id`, weight files by `weights_id` (value: SHA-256)."""

    version: int = 1
    data: Mapping[str, DataLock] = Field(default_factory=dict[str, DataLock])
    weights: Mapping[str, str] = Field(default_factory=dict[str, str])

    def with_data(self, name: str, entry: DataLock) -> Lock:
        return Lock(data={**self.data, name: entry}, weights=self.weights)

    def with_weights(self, name: str, sha256: str) -> Lock:
        return Lock(data=self.data, weights={**self.weights, name: sha256})


def data_id(data: Data) -> str | None:
    """The name of a data set in the lock; None for simulated ones, which need no entry."""
    if isinstance(data, Simulated):
        return None
    return f"{data.kind}:{data.path}{data.lock_mark}"


def weights_id(name: str, arch: Architecture) -> str:
    """The name of `weights: name` in the lock: a path as it is; a torchvision name behind that of its network, since
    IMAGENET1K_V1 is a file for each."""
    owner = arch.torchvision_name
    return name if owner is None or is_weight_file(name) else f"{owner}/{name}"


def read_lock(path: Path) -> Lock:
    """The lock at `path`, empty where there is none.

    Raises:
        LockError: the file cannot be read.
    """
    try:
        return Lock.model_validate_json(path.read_text("utf-8"), strict=False)
    except FileNotFoundError:
        return Lock()
    except (ValidationError, UnicodeDecodeError) as error:
        hint = "restore it from git, or remove it and run: stagedkd lock SPEC"
        raise LockError(f"{path} is not a lock file: {str(error).splitlines()[0]}", hint=hint) from None


def write_lock(path: Path, lock: Lock) -> None:
    """Write atomically, in a stable order."""
    text = json.dumps(lock.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, text)
