"""Losses on the distribution of features.

Shape legend: B clips, C channels, T frames, H, W positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stagedkd.losses._precision import full_precision, require_equal_shapes

EPSILON = 1e-5
MIN_VARIANCE = 1e-4  # of gaussian_kl


@full_precision
def gaussian_w2(
    student_BCTHW: Tensor,
    teacher_BCTHW: Tensor,
    *,
    gamma: float = 1.0,
    samples: Literal["auto", "positions", "batch"] = "auto",
) -> Tensor:
    """Squared 2-Wasserstein distance of diagonal channel Gaussians, the feature loss of WKD (Lv et al. 2024).

    gamma * ||mu_s - mu_t||^2 + ||sigma_s - sigma_t||^2, summed over channels, with sigma = sqrt(var + 1e-5) and the
    biased variance. The teacher gets no gradient.

    Args:
        gamma: weight of the means; 1 is the closed form; WKD-F uses 2.
        samples: `positions`: statistics over the T*H*W positions of each clip, then the mean over clips; `batch`: one
            Gaussian over all clips and positions; `auto`: positions, unless a map is 1x1x1, then the batch.
    Raises:
        ValueError: shapes differ, or there is only one sample, which has no variance.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    axes = _axes(student_BCTHW, samples)
    mean_s, deviation_s = _moments(student_BCTHW, axes)
    mean_t, deviation_t = _moments(teacher_BCTHW.detach(), axes)
    distance = gamma * (mean_s - mean_t).square() + (deviation_s - deviation_t).square()
    return distance.sum(-1).mean()


def _axes(feat_BCTHW: Tensor, samples: str) -> tuple[int, ...]:
    """Return the axes over which statistics are computed. Raises ValueError: there is only one sample."""
    positions = feat_BCTHW[0, 0].numel()
    if samples == "auto":
        samples = "positions" if positions > 1 else "batch"
    count = positions if samples == "positions" else positions * len(feat_BCTHW)
    if count < 2:
        hint = "use samples: batch" if samples == "positions" else "use a batch of two or more"
        raise ValueError(f"one sample has no variance (map {tuple(feat_BCTHW.shape)}, samples {samples}): {hint}")
    return (2, 3, 4) if samples == "positions" else (0, 2, 3, 4)


def _moments(feat_BCTHW: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the axes."""
    return feat_BCTHW.mean(axes), (feat_BCTHW.var(axes, correction=0) + EPSILON).sqrt()


@full_precision
def gaussian_kl(
    student_BCTHW: Tensor,
    teacher_BCTHW: Tensor,
    *,
    samples: Literal["auto", "positions", "batch"] = "auto",
) -> Tensor:
    """KL(teacher || student) of diagonal channel Gaussians, summed over channels (our formulation).

    Variances are biased and at least 1e-4, since a dead channel of the teacher would make the loss explode. Arguments
    as in `gaussian_w2`.

    Raises:
        ValueError: shapes differ, or there is only one sample.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    axes = _axes(student_BCTHW, samples)
    mean_s, var_s = student_BCTHW.mean(axes), student_BCTHW.var(axes, correction=0).clamp_min(MIN_VARIANCE)
    teacher = teacher_BCTHW.detach()
    mean_t, var_t = teacher.mean(axes), teacher.var(axes, correction=0).clamp_min(MIN_VARIANCE)
    divergence = 0.5 * ((var_s / var_t).log() + (var_t + (mean_t - mean_s).square()) / var_s - 1)
    return divergence.sum(-1).mean()


@full_precision
def mmd(
    student_BCTHW: Tensor,
    teacher_BCTHW: Tensor,
    *,
    bandwidths: Sequence[float] = (0.5, 1.0, 2.0),
    samples: Literal["auto", "positions", "batch"] = "auto",
) -> Tensor:
    """Squared maximum mean discrepancy with a sum of RBF kernels (Gretton et al. 2012), as a paired U-statistic: i != j
    in all three terms, so that equal features give zero. The loss may be slightly negative.

    Args:
        bandwidths: of the kernels, in units of the mean squared distance between all features, which gets no gradient.
        samples: `positions`: the T*H*W positions of each clip, then the mean over clips; `batch`: the clips' mean
            features; `auto`: positions, unless a map is 1x1x1.
    Raises:
        ValueError: shapes differ, or there is only one sample.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    student, teacher = (_sampled(feat, samples) for feat in (student_BCTHW, teacher_BCTHW.detach()))
    squared = [_distances(a, b) for a, b in ((student, student), (teacher, teacher), (student, teacher))]
    count = student.shape[1]
    apart = ~torch.eye(count, dtype=torch.bool, device=student.device)
    scale = torch.stack([d.detach()[:, apart].mean() for d in squared]).mean().clamp_min(1e-12)
    kernels = [sum((torch.exp(-d / (width * scale)) for width in bandwidths), torch.zeros_like(d)) for d in squared]
    within_s, within_t, between = (kernel[:, apart].mean() for kernel in kernels)
    return within_s + within_t - 2 * between


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared distances (K, n, n) between two sets of samples (K, n, C)."""
    return (x[:, :, None] - y[:, None]).square().sum(-1)


@full_precision
def nst(student_BCTHW: Tensor, teacher_BCTHW: Tensor) -> Tensor:
    """Neuron selectivity transfer, Huang & Wang 2017: squared MMD with the kernel (x . y)^2 over channels, whose
    samples are their normalised maps; mean over the batch. Channels may differ. The teacher gets no gradient.

    Raises:
        ValueError: the grids differ.
    """
    student, teacher = (F.normalize(f.flatten(2), dim=2) for f in (student_BCTHW, teacher_BCTHW.detach()))
    if student.shape[2] != teacher.shape[2]:
        raise ValueError(f"{student.shape[2]} and {teacher.shape[2]} positions differ: pool to a common grid first")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.transpose(1, 2)).square().mean()

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


@full_precision
def coral(student_BCTHW: Tensor, teacher_BCTHW: Tensor, *, shrinkage: float = 0.1) -> Tensor:
    """Deep CORAL, Sun & Saenko 2016: ||C_s - C_t||_F^2 / (4 C^2) of the covariances over all positions of the batch,
    and the squared difference of the means over C (our addition).

    If there are no more samples than channels, covariances are shrunk towards the mean of their diagonal.

    Raises:
        ValueError: shapes differ, or there is only one sample.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    student, teacher = (f.transpose(0, 1).flatten(1) for f in (student_BCTHW, teacher_BCTHW.detach()))
    channels, count = student.shape
    if count < 2:
        raise ValueError("one sample has no covariance: use a batch of two or more")
    shrink = shrinkage if count <= channels else 0.0
    difference = _covariance(student, shrink) - _covariance(teacher, shrink)
    means = (student.mean(1) - teacher.mean(1)).square().mean()
    return difference.square().sum() / (4 * channels**2) + means


def _covariance(samples_Cn: Tensor, shrink: float) -> Tensor:
    """Return the covariance (C, C), of which the fraction `shrink` is the mean of its diagonal."""
    centred = samples_Cn - samples_Cn.mean(1, keepdim=True)
    raw = centred @ centred.T / (samples_Cn.shape[1] - 1)
    target = raw.diagonal().mean() * torch.eye(len(raw), dtype=raw.dtype, device=raw.device)
    return (1 - shrink) * raw + shrink * target


@full_precision
def sliced_w2(
    student_BCTHW: Tensor,
    teacher_BCTHW: Tensor,
    *,
    directions: int | Tensor = 50,
    samples: Literal["auto", "positions", "batch"] = "auto",
) -> Tensor:
    """Squared sliced 2-Wasserstein distance (Bonneel et al. 2015): mean over unit directions of the squared difference
    of sorted projections. `samples` as in `mmd`.

    Args:
        directions: how many to draw from torch's generator, or unit vectors (P, C).
    Raises:
        ValueError: shapes differ.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    student, teacher = (_sampled(feat, samples) for feat in (student_BCTHW, teacher_BCTHW.detach()))
    if isinstance(directions, int):
        drawn = torch.randn(directions, student.shape[2], device=student.device, dtype=student.dtype)
        directions = F.normalize(drawn, dim=1)
    axes = directions.to(student.dtype).T
    return ((student @ axes).sort(1).values - (teacher @ axes).sort(1).values).square().mean()


def _sampled(feat_BCTHW: Tensor, samples: str) -> Tensor:
    """Return samples (K, n, C): the positions of each clip, or one set of the clips' mean features."""
    positions = feat_BCTHW[0, 0].numel()
    if samples == "positions" or (samples == "auto" and positions > 1):
        count, rows = positions, feat_BCTHW.flatten(2).transpose(1, 2)
    else:
        count, rows = len(feat_BCTHW), feat_BCTHW.flatten(2).mean(2)[None]
    if count < 2:
        shape = tuple(feat_BCTHW.shape)
        raise ValueError(f"one sample is not a distribution (map {shape}): use more clips or positions")
    return rows
