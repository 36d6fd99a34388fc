"""The index of a shard of the clip cache: where its clips are, and their checksums. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stagedkd.errors import StoreError
from stagedkd.files import DamagedError, read_record

INDEX_BEFORE = {"bytes", "clips"}  # the fields of an index of an earlier version, which has no digest
INDEX = {*INDEX_BEFORE, "times"}


class DamagedIndexError(StoreError):
    """The `.json` of a shard is damaged. `index` is its path."""

    def __init__(self, index: Path, what: str) -> None:
        super().__init__(f"the clip cache's index {index} {what}", hint=f"remove {index}: the next run builds it again")
        self.index = index


def read_index(path: Path) -> dict[str, Any]:
    """Read the index of a shard. Raises DamagedIndexError."""
    try:
        listed, has_digest = read_record(path.read_bytes())
    except DamagedError as error:
        raise DamagedIndexError(path, str(error)) from None
    if listed.keys() != (INDEX if has_digest else INDEX_BEFORE):
        raise DamagedIndexError(path, "is damaged: it lacks a field, or has another one")
    return listed


def damaged_indexes(cache: Path) -> Iterator[str]:
    """Check the indexes of all clip caches below a folder. Yields a line for each that is damaged."""
    for path in sorted(cache.glob("*/shard-*.json")):
        try:
            read_index(path)
        except FileNotFoundError:  # a run is building it anew
            continue
        except DamagedIndexError as error:
            yield error.message
