"""Losses on the distribution of features.

Shape legend: B clips, C channels, T frames, H, W positions.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from stagedkd.losses._precision import full_precision, require_equal_shapes

EPSILON = 1e-5


@full_precision
def gaussian_w2(
    student_BCTHW: Tensor,
    teacher_BCTHW: Tensor,
    *,
    gamma: float = 1.0,
    samples: Literal["auto", "positions", "batch"] = "auto",
) -> Tensor:
    """Squared 2-Wasserstein distance of diagonal channel Gaussians, as the features of WKD (Lv et al. 2024).

    gamma * ||mu_s - mu_t||^2 + ||sigma_s - sigma_t||^2, summed over channels, with sigma = sqrt(var + 1e-5) and the
    biased variance. The teacher gets no gradient.

    Args:
        gamma: weight of the means; 1 is the closed form, WKD-F uses 2.
        samples: `positions`: statistics over the T*H*W positions of each clip, then the mean over clips; `batch`: one
            Gaussian over all clips and positions; `auto`: positions, unless a map is 1x1x1, then the batch.
    Raises:
        ValueError: shapes differ, or there is one sample only, which has no variance.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    positions = student_BCTHW[0, 0].numel()
    if samples == "auto":
        samples = "positions" if positions > 1 else "batch"
    count = positions if samples == "positions" else positions * len(student_BCTHW)
    if count < 2:
        mend = "use samples: batch" if samples == "positions" else "use a batch of two or more"
        raise ValueError(f"one sample has no variance (map {tuple(student_BCTHW.shape)}, samples {samples}): {mend}")
    axes = (2, 3, 4) if samples == "positions" else (0, 2, 3, 4)
    mean_s, deviation_s = _moments(student_BCTHW, axes)
    mean_t, deviation_t = _moments(teacher_BCTHW.detach(), axes)
    distance = gamma * (mean_s - mean_t).square() + (deviation_s - deviation_t).square()
    return distance.sum(-1).mean()


def _moments(feat_BCTHW: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return feat_BCTHW.mean(axes), (feat_BCTHW.var(axes, correction=0) + EPSILON).sqrt()
