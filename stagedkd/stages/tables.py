"""The Parquet tables that stages pass on: clips, hidden true labels, given labels, predictions."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

TIMES = "times"  # the column of clips.parquet with a number for each frame


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length; the same content gives the same bytes. A column of lists may hold arrays."""
    pq.write_table(pa.table(dict(columns)), path, compression="zstd")


def read_table(content: bytes, *names: str) -> dict[str, list[Any]]:
    """Read the columns of these names as lists from the content of a file; without names, all columns. No threads are
    used: where no more can be started, pyarrow would wait for them for ever."""
    with pq.ParquetFile(pa.BufferReader(content), pre_buffer=False) as file:
        return file.read(columns=list(names) or None, use_threads=False).to_pydict()


def read_times(content: bytes) -> list[npt.NDArray[np.float64]]:
    """Read the times of the frames of each clip in clips.parquet, in seconds, (frames,) each.

    Clips whose times are the same, or the beginning of another clip's, share one array, as most clips of one frame rate
    do. So the memory is that of the different clocks and not that of all frames.
    """
    clocks: dict[bytes, npt.NDArray[np.float64]] = {}
    clips: list[npt.NDArray[np.float64]] = []
    file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
    for batch in file.iter_batches(batch_size=1024, columns=[TIMES], use_threads=False):
        column = batch.column(0)
        ends = column.offsets.to_numpy()
        values = column.values.to_numpy()
        for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            clips.append(_shared(clocks, values[start:end]))
    return clips


def _shared(clocks: dict[bytes, npt.NDArray[np.float64]], times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return equal times that lie in one of `clocks`, by their first three; add them where they are new."""
    known = clocks.get(mark := times[:3].tobytes())
    if known is not None and np.array_equal(known[: len(times)], times):
        return known[: len(times)]
    times = times.copy()
    if known is None or len(times) > len(known):
        clocks[mark] = times
    return times
