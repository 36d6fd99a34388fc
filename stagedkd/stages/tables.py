"""The Parquet tables that stages hand on: clips, hidden truth, given labels, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length; the same content gives the same bytes."""
    pq.write_table(pa.table(dict(columns)), path, compression="zstd")


def read_table(path: Path) -> dict[str, list[Any]]:
    """Columns by name."""
    return pq.read_table(path).to_pydict()
