"""Losses on feature maps, and pooling of two maps to a common grid.

Shape legend: B clips, C channels, T frames, H, W positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from stagedkd.losses._precision import full_precision, require_equal_shapes
from stagedkd.losses.cells import teacher_variance


def pool_to_common(student_BCTHW: Tensor, teacher_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Average both maps down to the element-wise minimum of their (T, H, W) grids; equal grids stay as they are."""
    grid = [min(a, b) for a, b in zip(student_BCTHW.shape[2:], teacher_BCTHW.shape[2:], strict=True)]
    return pool_to(student_BCTHW, grid), pool_to(teacher_BCTHW, grid)


def pool_to(feat_BCTHW: Tensor, grid: Sequence[int]) -> Tensor:
    """Average a map down to a (T, H, W) grid; an equal grid stays as it is."""
    return (
        feat_BCTHW
        if tuple(feat_BCTHW.shape[2:]) == tuple(grid)
        else F.adaptive_avg_pool3d(feat_BCTHW, (grid[0], grid[1], grid[2]))
    )


@full_precision
def hint(student_BCTHW: Tensor, teacher_BCTHW: Tensor, *, scale: Literal["teacher_variance"] | None = None) -> Tensor:
    """FitNets, Romero et al. 2015: mean squared error over all elements. The teacher gets no gradient.

    Args:
        scale: teacher_variance divides by the variance of the teacher's features, `teacher_variance` (ours): the mean
            feature of the teacher then has the loss 1.
    Raises:
        ValueError: shapes differ, or one sample is scaled.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    error = (student_BCTHW - teacher_BCTHW.detach()).square().mean()
    return error if scale is None else error / teacher_variance(teacher_BCTHW)


@full_precision
def at(student_BCTHW: Tensor, teacher_BCTHW: Tensor) -> Tensor:
    """Attention transfer, Zagoruyko & Komodakis 2017: squared difference of the attention maps, mean over all elements
    (the authors' code; their paper sums). A map is the mean square over channels, normalised over its positions.

    Channels may differ. The teacher gets no gradient.

    Raises:
        ValueError: the grids differ.
    """
    student, teacher = _attention(student_BCTHW), _attention(teacher_BCTHW.detach())
    require_equal_shapes(student, teacher, "pool to a common grid first")
    return (student - teacher).square().mean()


def _attention(feat_BCTHW: Tensor) -> Tensor:
    """Return the attention map of each clip over its positions, normalised: (B, T*H*W)."""
    return F.normalize(feat_BCTHW.square().mean(1).flatten(1), dim=1)


@full_precision
def review(student_BCTHW: Tensor, teacher_BCTHW: Tensor, *, levels: Sequence[int] = (4, 2, 1)) -> Tensor:
    """Hierarchical context loss of ReviewKD, Chen et al. 2021 (section 3.3), over T, H and W: mean squared errors of
    the maps and of their averages over ever coarser grids, weighted 1, 1/2, 1/4, ... over the sum of the weights, as in
    the authors' code. ReviewKD's attention fusion is not part of it. The teacher gets no gradient.

    Args:
        levels: sides of the grids, each 1 or more, in falling order. A shorter axis keeps its length. A level that
            would not change the map is skipped and gets no weight.
    Raises:
        ValueError: shapes differ.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    difference = student_BCTHW - teacher_BCTHW.detach()
    size = list(difference.shape[2:])
    grids = [size, *(grid for level in levels if (grid := [min(level, side) for side in size]) != size)]
    # averaging is linear: the difference of the averages is the average of the difference
    errors = [pool_to(difference, grid).square().mean() * 0.5**i for i, grid in enumerate(grids)]
    return sum(errors[1:], errors[0]) / sum(0.5**i for i in range(len(grids)))
