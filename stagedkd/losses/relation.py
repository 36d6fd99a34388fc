"""Losses on the relations between the clips of a batch.

Shape legend: B clips, C channels, T frames, H, W positions.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from stagedkd.losses._precision import full_precision


@full_precision
def sp(student_BCTHW: Tensor, teacher_BCTHW: Tensor) -> Tensor:
    """Similarity-preserving, Tung & Mori 2019: ||G_s - G_t||_F^2 / B^2 with row-normalised Gram matrices.

    Channels and grids may differ. A clip of zero features gives a zero row. The teacher gets no gradient.

    Raises:
        ValueError: the batches differ in size.
    """
    if len(student_BCTHW) != len(teacher_BCTHW):
        raise ValueError(f"student has {len(student_BCTHW)} clips, teacher {len(teacher_BCTHW)}")
    difference = _similarity(student_BCTHW) - _similarity(teacher_BCTHW.detach())
    return difference.square().sum() / len(student_BCTHW) ** 2


def _similarity(feat_BCTHW: Tensor) -> Tensor:
    flat = feat_BCTHW.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)
