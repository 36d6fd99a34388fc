"""Read the user's tables of clip weights (`weigh: {file: ...}`) and check them against the clips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.layouts.tables import Row, read_columns
from stagedkd.errors import DataError
from stagedkd.files import FileBytes
from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.fields import nearest
from stagedkd.spec.schema.losses.clipwise import WeightFile
from stagedkd.stages.context import Context
from stagedkd.stages.tables import read_table
from stagedkd.store.pinned import read_pinned


def clip_weights(context: Context, phases: Sequence[PhaseWork], clip_ids: npt.NDArray[np.int64]) -> dict[str, Tensor]:
    """Read the weights of the training clips (n,), float32, by the file of their table.

    Raises:
        DataError: a table cannot be read, has changed since the spec was loaded, names a clip that is not in the data
            or twice, lacks a training clip, or has a weight that is no number of 0 or more; names file and line.
    """
    paths: list[str] = []
    weights: dict[str, Tensor] = {}
    for table in _tables(phases):
        if table.file in weights:
            continue
        paths = paths or [
            str(path) for path in read_table(context.inputs["data"].read("clips.parquet"), "path")["path"]
        ]
        file = read_pinned(context.root / table.file, table.digest)
        path, by_path = file.path, read_weights(file, paths)
        wanted = [paths[int(clip)] for clip in clip_ids]
        missing = [name for name in wanted if name not in by_path]
        if missing:
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            hint = "give every training clip a weight; 0 leaves a clip out of the loss"
            raise DataError(f"{path} has no weight for the training clip {missing[0]}{more}", hint=hint)
        weights[table.file] = torch.tensor([by_path[name] for name in wanted], dtype=torch.float32)
        if not bool(weights[table.file].any()):
            raise DataError(f"{path}: all training clips weigh 0", hint="give some clips a weight above 0")
    return weights


def _tables(phases: Sequence[PhaseWork]) -> Iterator[WeightFile]:
    for phase in phases:
        for loss in phase.losses.named().values():
            if isinstance(loss.weighing, WeightFile):
                yield loss.weighing


def read_weights(file: FileBytes, clips: Sequence[str]) -> dict[str, float]:
    """Read a table with the columns `path` and `weight`, separated by commas.

    Args:
        clips: the clips of all splits.
    Raises:
        DataError: see `clip_weights`.
    """
    known, weights, lines, path = set(clips), dict[str, float](), dict[str, int](), file.path
    for row in read_columns(path, ",", ("path", "weight"), content=file.content):
        name = row.cells["path"]
        if name not in known:
            hint = nearest(name, clips) if len(clips) <= 10_000 else ""
            hint = hint if hint.startswith("did you") else f"clips are named by their path, such as {clips[0]}"
            raise DataError(f"{path}:{row.line}: there is no clip '{name}' in the data", hint=hint)
        if name in weights:
            raise DataError(f"{path}:{row.line}: '{name}' is also in line {lines[name]}", hint="keep one of the lines")
        weights[name], lines[name] = _weight(path, row), row.line
    return weights


def _weight(path: Path, row: Row) -> float:
    text = row.cells["weight"]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        hint = "a weight is a number of 0 or more; weights are scaled to a mean of 1 in each batch"
        raise DataError(f"{path}:{row.line}: '{text}' is no weight", hint=hint)
    return value
