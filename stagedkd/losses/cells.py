"""The sets of features whose distributions are compared: those of a clip, a frame or the batch, in cells of the grid.

Shape legend: B clips, C channels, T frames, H, W positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-6  # of the teacher's features, by which losses are scaled


def cells_problem(grid: Sequence[int], samples: str | None, cells: Sequence[int] | None) -> tuple[str, str]:
    """Return (message, hint): why a grid (T, H, W) cannot be compared by these samples and cells; ("", "") if it can.

    Args:
        samples, cells: as in `split_samples`.
    """
    shape = "x".join(map(str, grid))
    if cells is not None and any(count > size for count, size in zip(cells, grid, strict=True)):
        return f"cells {list(cells)} are more than the positions of the grid, {shape}", f"use at most {list(grid)}"
    if samples in ("positions", "frames"):
        parts = (1, *grid[1:]) if samples == "frames" else grid
        if prod(min(b - a for a, b in _bounds(n, size)) for n, size in zip(cells or (1, 1, 1), parts, strict=True)) < 2:
            where = "a frame" if samples == "frames" else "a clip"
            part = f"a cell of {where}" if cells else where
            return f"{part} has one position of the grid, {shape}: one sample is no distribution", "use samples: batch"
    return "", ""


def resolve_samples(grid: Sequence[int], samples: str, cells: Sequence[int] | None) -> str:
    """Return `samples` with `auto` resolved for a grid (T, H, W): positions, unless a clip, or a cell of it, has only
    one position; then batch."""
    if samples != "auto":
        return samples
    sizes = [min(b - a for a, b in _bounds(n, size)) for n, size in zip(cells or (1, 1, 1), grid, strict=True)]
    return "positions" if prod(sizes) > 1 else "batch"


def split_map(feat_BCTHW: Tensor, samples: str, cells: Sequence[int] | None) -> tuple[list[Tensor], str]:
    """Return the parts of a map, one for each cell, and over what each is a distribution: `positions` or `batch`.

    Args:
        samples: `positions`: each clip has a distribution, whose samples are its positions. `frames`: each frame of a
            clip has one, whose samples are the positions of the frame. `batch`: there is one for all clips. `auto`:
            positions, unless a clip, or a cell of it, has only one; then batch.
        cells: the numbers of cells along T, H and W, each with its own distribution; None is one cell. Cell i of n
            along an axis of L positions reaches from floor(i L / n) to ceil((i + 1) L / n), as in adaptive pooling: if
            n does not divide L, neighbours share a position. Under `frames` the first number must be 1.
    Raises:
        ValueError: there are more cells than positions, or frames have cells in time.
    """
    if samples == "frames":
        if cells is not None and cells[0] != 1:
            raise ValueError(f"cells {list(cells)}: under samples: frames each frame stands alone, so use 1 in time")
        feat_BCTHW, samples = feat_BCTHW.transpose(1, 2).flatten(0, 1)[:, :, None], "positions"
    grid = list(feat_BCTHW.shape[2:])
    message, hint = cells_problem(grid, None, cells)
    if message:
        raise ValueError(f"{message}: {hint}")
    samples = resolve_samples(grid, samples, cells)
    if cells is None:
        return [feat_BCTHW], samples
    slices = [[slice(a, b) for a, b in _bounds(n, size)] for n, size in zip(cells, grid, strict=True)]
    return [feat_BCTHW[(..., *cell)] for cell in product(*slices)], samples


def split_samples(
    student_BCTHW: Tensor, teacher_BCTHW: Tensor, samples: str, cells: Sequence[int] | None
) -> tuple[list[tuple[Tensor, Tensor]], str]:
    """Return the parts of both maps, which have one grid, as `split_map` does."""
    student, over = split_map(student_BCTHW, samples, cells)
    teacher, _ = split_map(teacher_BCTHW, samples, cells)
    return list(zip(student, teacher, strict=True)), over


def mean_of(values: Sequence[Tensor]) -> Tensor:
    """Return the mean of scalars; a single one stays as it is."""
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean()


def teacher_variance(teacher_BCTHW: Tensor) -> Tensor:
    """Return the variance of the teacher's features: biased, of each channel over the clips and positions of the batch,
    then the mean over channels; at least 1e-6. It has no gradient.

    Raises:
        ValueError: there is one sample, which has no variance.
    """
    if teacher_BCTHW.numel() == teacher_BCTHW.shape[1]:
        raise ValueError("scale: teacher_variance of one sample is 0: use a batch of two or more")
    return teacher_BCTHW.detach().var((0, 2, 3, 4), correction=0).mean().clamp_min(VARIANCE_FLOOR)


def _bounds(count: int, size: int) -> list[tuple[int, int]]:
    """Return where each of `count` cells of an axis begins and ends."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
