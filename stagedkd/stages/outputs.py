"""Teachers from elsewhere: read their outputs by clip, and hold them against the classes and the clips of the data."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load, save_file

from stagedkd.errors import DataError
from stagedkd.files import FileBytes, usual_rights
from stagedkd.spec.schema import OutputsArch
from stagedkd.stages.context import Context
from stagedkd.stages.networks import network_file
from stagedkd.stages.tables import read_table
from stagedkd.store.pinned import read_pinned
from stagedkd.store.store import Artifact
from stagedkd.train.guides import TableGuide

FLOOR = 1e-6  # of a probability, so that its logarithm is finite
SUM_ERROR = 1e-3  # by which the probabilities of a row may miss 1
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class ClipOutputs:
    """The outputs of n clips: their addresses or their numbers, and float32 logits (n, N) in the order of the classes,
    or embeddings (n, C)."""

    clips: tuple[str | int, ...]
    values: npt.NDArray[np.float32]

    def rows_of(self, paths: Sequence[str], clip_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the row of each clip, (len(clip_ids),); -1 for a clip that has none.

        Args:
            paths: the addresses of all clips of the data set. clip_ids: the clips that are looked up.
        """
        places = {clip: row for row, clip in enumerate(self.clips)}
        named = [clip if clip in places else paths[clip] for clip in clip_ids]
        return np.array([places.get(name, -1) for name in named], np.int64)


def read_outputs(arch: OutputsArch, root: Path, classes: Sequence[str]) -> ClipOutputs:
    """Read the outputs of a teacher from elsewhere.

    Args:
        root: the project's folder. classes: of the data, in the order of the outputs.
    Raises:
        DataError: the file cannot be read, lacks a class or has another one, names a clip twice, or has a row with
            something that is no number, or that does not sum to 1. The message names the file and the row.
    """
    columns, first = _columns(read_pinned(root / arch.outputs, arch.digest))
    named = [name for name in ("path", "clip") if name in columns]
    if len(named) != 1:
        what = "both the columns 'path' and 'clip'" if named else "no column 'path' or 'clip'"
        raise DataError(f"{arch.outputs} has {what}", hint="name the clips in one column, by address or by number")
    clips = _clips(arch, named[0], columns.pop(named[0]), first)
    values = (_embeddings if arch.embeds else partial(_scores, classes=classes))(arch, columns, first=first)
    _check_rows(arch, values, first)
    if arch.kind == "probabilities":
        values = np.log(np.maximum(values, FLOOR))
    return ClipOutputs(clips, values.astype(np.float32))


def _columns(file: FileBytes) -> tuple[dict[str, list[Any]], int]:
    """Read the columns of a file, and the number of its first row in messages: the line of a csv, or 1."""
    path, content = file.path, file.content
    try:
        if path.suffix.lower() == ".parquet":
            return read_table(content), 1
        if path.suffix.lower() == ".safetensors":
            tensors = load(content)
            known = tensors.pop("sums", np.ones(len(tensors["clip"]))) != 0  # rows of a kept file that are filled
            return {name: values[known].tolist() for name, values in tensors.items()}, 1
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except Exception as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}", hint="write it again") from None
    if not rows:
        raise DataError(f"{path} is empty", hint="its first line names the columns: path, then the classes")
    header = [name.strip() for name in rows[0]]
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            message = f"{path.name}:{line} has {len(row)} values, but the header {len(header)}"
            raise DataError(message, hint="write a value for each column")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path.name} has the column '{twice[0]}' twice", hint="keep one of them")
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(header)}, 2


def _row(arch: OutputsArch, first: int, row: int) -> str:
    """The place of a row, counted from 0, in words."""
    return f"{arch.outputs}:{first + row}" if first > 1 else f"{arch.outputs}, row {row + 1}"


def _clips(arch: OutputsArch, column: str, values: Sequence[Any], first: int) -> tuple[str | int, ...]:
    """The clips that the rows are for, each once."""
    clips: list[str | int] = []
    seen: dict[str | int, int] = {}
    for row, value in enumerate(values):
        if value is None or (column == "clip" and not str(value).strip().isdecimal()):
            raise DataError(f"{_row(arch, first, row)}: '{value}' is no clip", hint=f"fill the column '{column}'")
        clip = int(value) if column == "clip" else str(value)
        if clip in seen:
            message = f"{_row(arch, first, row)}: clip {clip} has a row already, {_row(arch, first, seen[clip])}"
            raise DataError(message, hint="keep one row for each clip")
        seen[clip] = row
        clips.append(clip)
    return tuple(clips)


def _embeddings(arch: OutputsArch, columns: Mapping[str, Sequence[Any]], first: int) -> npt.NDArray[np.float64]:
    """The embeddings of the rows, (n, C): a column of lists, or all columns in their order."""
    if arch.kind in columns:
        rows = [value if isinstance(value, list) else [value] for value in columns[arch.kind]]
    else:
        rows = [list(values) for values in zip(*columns.values(), strict=True)]
    width = len(rows[0]) if rows else 0
    if not width:
        hint = f"write a column of lists '{arch.kind}', or a column for each number"
        raise DataError(f"{arch.outputs} has no embeddings", hint=hint)
    for row, values in enumerate(rows):
        if len(values) != width:
            message = f"{_row(arch, first, row)}: {len(values)} values, but {width} in the first row"
            raise DataError(message, hint="write as many values for each clip")
    return _numbers(arch, rows, [str(i + 1) for i in range(width)], first)


def _scores(
    arch: OutputsArch, columns: Mapping[str, Sequence[Any]], first: int, classes: Sequence[str]
) -> npt.NDArray[np.float64]:
    """The probabilities or logits of the rows, (n, N), in the order of the classes."""
    if arch.classes is not None:
        _check_classes(f"{arch.outputs}: classes", arch.classes, classes)
        if arch.kind not in columns:
            hint = f"name the column of lists '{arch.kind}', or remove classes"
            raise DataError(f"{arch.outputs} has no column '{arch.kind}'", hint=hint)
        lists = columns[arch.kind]
        for row, values in enumerate(lists):
            if not isinstance(values, list) or len(values) != len(classes):
                count = len(values) if isinstance(values, list) else "no list of"
                message = f"{_row(arch, first, row)}: {count} values for {len(classes)} classes"
                raise DataError(message, hint="write a list with a value for each class")
        order = [arch.classes.index(name) for name in classes]
        rows = [[values[i] for i in order] for values in lists]
    else:
        _check_classes(arch.outputs, tuple(columns), classes)
        rows = [list(values) for values in zip(*(columns[name] for name in classes), strict=True)]
    return _numbers(arch, rows, [f"of class '{name}'" for name in classes], first)


def _numbers(
    arch: OutputsArch, rows: Sequence[Sequence[Any]], names: Sequence[str], first: int
) -> npt.NDArray[np.float64]:
    """The rows as numbers. `names` are the names of the values of a row in messages."""
    try:
        return np.array(rows, np.float64).reshape(len(rows), len(names))
    except (TypeError, ValueError):
        row, i = next((row, i) for row, values in enumerate(rows) for i, v in enumerate(values) if not _is_number(v))
        message = f"{_row(arch, first, row)}: '{rows[row][i]}' {names[i]} is no number"
        raise DataError(message, hint="write a number for each value") from None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _check_classes(where: str, named: Sequence[str], classes: Sequence[str]) -> None:
    """Compare the classes of a file with those of the data."""
    missing = [name for name in classes if name not in named]
    extra = [name for name in named if name not in classes]
    if missing or extra:
        parts = [f"lacks {_some(missing)}"] if missing else []
        parts += [f"has {_some(extra)}, which the data does not have"] if extra else []
        hint = f"the classes are {', '.join(classes[:12])}{', ...' if len(classes) > 12 else ''}"
        raise DataError(f"{where} {' and '.join(parts)}", hint=hint)


def _check_rows(arch: OutputsArch, values: npt.NDArray[np.float64], first: int) -> None:
    """Check that all numbers are finite, and probabilities in 0..1 with sum 1."""
    infinite = np.flatnonzero(~np.isfinite(values).all(1))
    if len(infinite):
        row = int(infinite[0])
        bad = values[row][~np.isfinite(values[row])][0]
        raise DataError(f"{_row(arch, first, row)}: a value is {bad}", hint="write finite numbers")
    wrong = np.flatnonzero((values < 0).any(1) | (abs(values.sum(1) - 1) > SUM_ERROR))
    if arch.kind == "probabilities" and len(wrong):
        row = int(wrong[0])
        low, total = float(values[row].min()), float(values[row].sum())
        what = f"a value is {low:g}" if low < 0 else f"the values sum to {total:g}"
        hint = "probabilities are at least 0 and sum to 1; for scores of another scale, set kind: logits"
        raise DataError(f"{_row(arch, first, row)}: {what}", hint=hint)


def teach_outputs(context: Context, arch: OutputsArch, classes: Sequence[str]) -> None:
    """Write the outputs of the clips of the data set that have any, in the file of a network: the tensors `clip` (n,)
    and `logits` (n, N) or `embeddings` (n, C). Raises DataError: see `read_outputs`; or a training clip has none."""
    outputs = read_outputs(arch, context.root, classes)
    table = read_table(context.inputs["data"].read("clips.parquet"), "path", "split")
    paths: list[str] = table["path"]
    rows = outputs.rows_of(paths, range(len(paths)))
    train = [i for i, split in enumerate(table["split"]) if split == "train"]
    require_clips(arch, rows[train], [paths[i] for i in train])
    known = np.flatnonzero(rows >= 0)
    if unknown := len(outputs.clips) - len(known):
        context.listener.note(f"{arch.outputs}: {unknown} rows are for clips that the data set does not use")
    if context.first:
        tensors = {"clip": known, _tensor(arch): np.ascontiguousarray(outputs.values[rows[known]])}
        path = context.workspace.files / network_file(context.stage.work)
        with usual_rights(path):
            save_file(tensors, path)


def load_outputs(artifact: Artifact) -> dict[int, npt.NDArray[np.float32]]:
    """Read the logits (N,) or the embedding (C,) of each clip that has any from the artifact of `teach_outputs`."""
    tensors = load(artifact.read(network_file(artifact.manifest.work)))
    clips = tensors.pop("clip").tolist()
    (values,) = tensors.values()
    return dict(zip(clips, values, strict=True))


def outputs_guide(
    artifact: Artifact, arch: OutputsArch, clip_ids: Sequence[int], weight: float, device: torch.device
) -> TableGuide:
    """Make the guide of a hop from the artifact of a teacher from elsewhere."""
    outputs = load_outputs(artifact)
    values = torch.from_numpy(np.stack([outputs[clip] for clip in clip_ids])).to(device)
    return TableGuide(weight=weight, **{"embeddings_nC" if arch.embeds else "logits_nN": values})


def embedding_width(artifact: Artifact) -> int:
    """The numbers of an embedding; 0 if the outputs are scores of the classes."""
    tensors = load(artifact.read(network_file(artifact.manifest.work)))
    return tensors["embeddings"].shape[1] if "embeddings" in tensors else 0


def _tensor(arch: OutputsArch) -> str:
    """The name of the tensor of the outputs."""
    return "embeddings" if arch.embeds else "logits"


def require_clips(arch: OutputsArch, rows: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    """Check that every training clip has outputs.

    Args:
        rows: from `rows_of`. names: the addresses of these clips.
    Raises:
        DataError: clips have none.
    """
    missing = [name for row, name in zip(rows.tolist(), names, strict=True) if row < 0]
    if missing:
        hint = "add a row for each training clip, named by its address as in stagedkd data index"
        raise DataError(
            f"{arch.outputs} lacks {len(missing)} of {len(names)} training clips: {_some(missing)}", hint=hint
        )


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + more
