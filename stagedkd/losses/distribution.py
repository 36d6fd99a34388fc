"""Losses on the distribution of features.

Shape legend: B clips, C channels, T frames, H, W positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from stagedkd.losses._precision import full_precision, require_equal_shapes
from stagedkd.losses.cells import mean_of, split_map, split_samples, teacher_variance

Samples: TypeAlias = Literal["auto", "positions", "frames", "batch"]
EPSILON = 1e-5
MIN_VARIANCE = 1e-4  # of gaussian_kl


@dataclass(frozen=True)
class Gaussians:
    """Diagonal Gaussians of the channels of a map: for each cell, means and biased variances (K, C). K is the number of
    clips, or of frames of all clips, or 1."""

    cells: tuple[tuple[Tensor, Tensor], ...]


@full_precision
def gaussians(feat_BCTHW: Tensor, samples: str, cells: Sequence[int] | None) -> Gaussians:
    """Return the Gaussians of a map.

    Args:
        samples, cells: of what each Gaussian is, see `split_map`; `batch`: one over all clips and positions.
    Raises:
        ValueError: there is only one sample, which has no variance, or cells do not fit the grid.
    """
    parts, over = split_map(feat_BCTHW, samples, cells)
    return Gaussians(tuple(_moments(part, _axes(part, over)) for part in parts))


@full_precision
def gaussian_w2(
    student_BCTHW: Tensor,
    teacher_BCTHW: Tensor | Gaussians,
    *,
    gamma: float = 1.0,
    samples: Samples = "auto",
    cells: Sequence[int] | None = None,
    scale: Literal["teacher_variance"] | None = None,
) -> Tensor:
    """Squared 2-Wasserstein distance of diagonal channel Gaussians, the feature loss of WKD (Lv et al. 2024).

    gamma * ||mu_s - mu_t||^2 + ||sigma_s - sigma_t||^2, summed over channels, with sigma = sqrt(var + 1e-5) and the
    biased variance; the mean over clips (or frames) and cells. The teacher gets no gradient.

    Args:
        teacher_BCTHW: its map (B, C, T, H, W), or the `gaussians` of its map, by the same samples and cells.
        gamma: weight of the means; 1 is the closed form; WKD-F uses 2.
        samples, cells: as in `gaussians`.
        scale: teacher_variance divides by the sum of the channels' variances, C * `teacher_variance` (ours); it needs
            the teacher's map.
    Raises:
        ValueError: shapes differ, there is only one sample, which has no variance, or cells do not fit the grid.
    """
    distances: list[Tensor] = []
    for (mean_s, var_s), (mean_t, var_t) in _gaussian_pairs(student_BCTHW, teacher_BCTHW, samples, cells):
        deviation_s, deviation_t = (var_s + EPSILON).sqrt(), (var_t + EPSILON).sqrt()
        distance = gamma * (mean_s - mean_t).square() + (deviation_s - deviation_t).square()
        distances.append(distance.sum(-1).mean())
    if scale is None:
        return mean_of(distances)
    if isinstance(teacher_BCTHW, Gaussians):
        raise ValueError("scale: teacher_variance needs the teacher's map, not its Gaussians")
    return mean_of(distances) / (student_BCTHW.shape[1] * teacher_variance(teacher_BCTHW))


def _gaussian_pairs(
    student_BCTHW: Tensor, teacher: Tensor | Gaussians, samples: str, cells: Sequence[int] | None
) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Yield the Gaussians of both networks, cell by cell."""
    if isinstance(teacher, Tensor):
        require_equal_shapes(student_BCTHW, teacher, "project the channels and pool to a common grid first")
        teacher = gaussians(teacher.detach(), samples, cells)
    return zip(gaussians(student_BCTHW, samples, cells).cells, teacher.cells, strict=True)


def _axes(feat_BCTHW: Tensor, samples: str) -> tuple[int, ...]:
    """Return the axes over which statistics are computed. Raises ValueError: there is only one sample."""
    positions = feat_BCTHW[0, 0].numel()
    count = positions if samples == "positions" else positions * len(feat_BCTHW)
    if count < 2:
        hint = "use samples: batch" if samples == "positions" else "use a batch of two or more"
        raise ValueError(f"one sample has no variance (map {tuple(feat_BCTHW.shape)}, samples {samples}): {hint}")
    return (2, 3, 4) if samples == "positions" else (0, 2, 3, 4)


class _Moments(torch.autograd.Function):
    """Means and biased variances over some axes, (K, C). Torch's `var` is slower on a CPU, and autograd
    would pass over the map once for each operation; the gradient is one pass, feat * slope + offset."""

    @staticmethod
    def forward(ctx: Any, feat_BCTHW: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        mean = feat_BCTHW.mean(axes, keepdim=True)
        variance = (feat_BCTHW - mean).square_().mean(axes, keepdim=True)
        ctx.save_for_backward(feat_BCTHW, mean)
        shape = (-1, feat_BCTHW.shape[1]) if 0 not in axes else (feat_BCTHW.shape[1],)
        return mean.view(shape), variance.view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        feat_BCTHW, mean = ctx.saved_tensors
        samples = feat_BCTHW.numel() // mean.numel()
        slope = of_variance.view_as(mean) * (2 / samples)
        return torch.addcmul(of_mean.view_as(mean) / samples - slope * mean, feat_BCTHW, slope), None


def _moments(feat_BCTHW: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return means and biased variances over the axes."""
    return cast(tuple[Tensor, Tensor], _Moments.apply(feat_BCTHW, axes))


@full_precision
def gaussian_kl(
    student_BCTHW: Tensor,
    teacher_BCTHW: Tensor | Gaussians,
    *,
    samples: Samples = "auto",
    cells: Sequence[int] | None = None,
) -> Tensor:
    """KL(teacher || student) of diagonal channel Gaussians, summed over channels (our formulation).

    Variances are biased and at least 1e-4, since a dead channel of the teacher would make the loss explode. Arguments
    as in `gaussian_w2`.

    Raises:
        ValueError: shapes differ, there is only one sample, or cells do not fit the grid.
    """
    divergences: list[Tensor] = []
    for (mean_s, var_s), (mean_t, var_t) in _gaussian_pairs(student_BCTHW, teacher_BCTHW, samples, cells):
        var_s, var_t = var_s.clamp_min(MIN_VARIANCE), var_t.clamp_min(MIN_VARIANCE)
        divergence = 0.5 * ((var_s / var_t).log() + (var_t + (mean_t - mean_s).square()) / var_s - 1)
        divergences.append(divergence.sum(-1).mean())
    return mean_of(divergences)


@full_precision
def mmd(
    student_BCTHW: Tensor,
    teacher_BCTHW: Tensor,
    *,
    bandwidths: Sequence[float] = (0.5, 1.0, 2.0),
    samples: Samples = "auto",
    cells: Sequence[int] | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy with a sum of RBF kernels (Gretton et al. 2012), as a paired U-statistic: i != j
    in all three terms, so that equal features give zero. The loss may be slightly negative.

    Args:
        bandwidths: of the kernels, in units of the mean squared distance between all features, which gets no gradient.
        samples, cells: see `split_samples`; the mean is over clips (or frames) and cells. `batch`: the samples are the
            clips' mean features. Each cell has its own mean squared distance.
    Raises:
        ValueError: shapes differ, there is only one sample, or cells do not fit the grid.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    parts, over = split_samples(student_BCTHW, teacher_BCTHW.detach(), samples, cells)
    return mean_of([_mmd(_sampled(student, over), _sampled(teacher, over), bandwidths) for student, teacher in parts])


def _mmd(student: Tensor, teacher: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Return the discrepancy of two sets of samples (K, n, C), the mean over K."""
    squared = [_distances(a, b) for a, b in ((student, student), (teacher, teacher), (student, teacher))]
    count = student.shape[1]
    apart = ~torch.eye(count, dtype=torch.bool, device=student.device)
    pairs = len(student) * count * (count - 1)
    scale = torch.stack([(d.detach() * apart).sum() / pairs for d in squared]).mean().clamp_min(1e-12)
    kernels = [sum((torch.exp(-d / (width * scale)) for width in bandwidths), torch.zeros_like(d)) for d in squared]
    within_s, within_t, between = ((kernel * apart).sum() / pairs for kernel in kernels)
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
def coral(
    student_BCTHW: Tensor,
    teacher_BCTHW: Tensor,
    *,
    shrinkage: float = 0.1,
    samples: Literal["positions", "frames", "batch"] | None = None,
    cells: Sequence[int] | None = None,
) -> Tensor:
    """Deep CORAL, Sun & Saenko 2016: ||C_s - C_t||_F^2 / (4 C^2) of the covariances, and the squared difference of the
    means over C (our addition).

    If there are no more samples than channels, covariances are shrunk towards the mean of their diagonal.

    Args:
        shrinkage: the fraction of that mean. samples, cells: see `split_samples`; None is `batch`, over all positions
            of the batch.
    Raises:
        ValueError: shapes differ, there is only one sample, or cells do not fit the grid.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    parts, over = split_samples(student_BCTHW, teacher_BCTHW.detach(), samples or "batch", cells)
    return mean_of([_coral(_columns(student, over), _columns(teacher, over), shrinkage) for student, teacher in parts])


def _columns(feat_BCTHW: Tensor, samples: str) -> Tensor:
    """Return samples as columns (K, C, n): the positions of each clip, or those of all clips."""
    return feat_BCTHW.flatten(2) if samples == "positions" else feat_BCTHW.transpose(0, 1).flatten(1)[None]


def _coral(student_KCn: Tensor, teacher_KCn: Tensor, shrinkage: float) -> Tensor:
    channels, count = student_KCn.shape[1:]
    if count < 2:
        raise ValueError("one sample has no covariance: use a batch of two or more")
    shrink = shrinkage if count <= channels else 0.0
    difference = _covariance(student_KCn, shrink) - _covariance(teacher_KCn, shrink)
    means = (student_KCn.mean(2) - teacher_KCn.mean(2)).square().mean(1)
    return (difference.square().sum((1, 2)) / (4 * channels**2) + means).mean()


def _covariance(samples_KCn: Tensor, shrink: float) -> Tensor:
    """Return covariances (K, C, C), of which the fraction `shrink` is the mean of their diagonal."""
    centred = samples_KCn - samples_KCn.mean(2, keepdim=True)
    raw = centred @ centred.transpose(1, 2) / (samples_KCn.shape[2] - 1)
    mean_K11 = raw.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    return (1 - shrink) * raw + shrink * mean_K11 * torch.eye(raw.shape[1], dtype=raw.dtype, device=raw.device)


@full_precision
def sliced_w2(
    student_BCTHW: Tensor,
    teacher_BCTHW: Tensor,
    *,
    directions: int | Tensor = 50,
    samples: Samples = "auto",
    cells: Sequence[int] | None = None,
) -> Tensor:
    """Squared sliced 2-Wasserstein distance (Bonneel et al. 2015): mean over unit directions of the squared difference
    of sorted projections. `samples` and `cells` as in `mmd`; all cells have the same directions.

    Args:
        directions: how many to draw from torch's generator, or unit vectors (P, C).
    Raises:
        ValueError: shapes differ, or cells do not fit the grid.
    """
    require_equal_shapes(student_BCTHW, teacher_BCTHW, "project the channels and pool to a common grid first")
    parts, over = split_samples(student_BCTHW, teacher_BCTHW.detach(), samples, cells)
    if isinstance(directions, int):
        channels, like = student_BCTHW.shape[1], student_BCTHW
        directions = F.normalize(torch.randn(directions, channels, device=like.device, dtype=like.dtype), dim=1)
    axes = directions.to(student_BCTHW.dtype).T

    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        return ((student @ axes).sort(1).values - (teacher @ axes).sort(1).values).square().mean()

    return mean_of([distance(_sampled(student, over), _sampled(teacher, over)) for student, teacher in parts])


def _sampled(feat_BCTHW: Tensor, samples: str) -> Tensor:
    """Return samples (K, n, C): the positions of each clip, or one set of the clips' mean features."""
    positions = feat_BCTHW[0, 0].numel()
    if samples == "positions":
        count, rows = positions, feat_BCTHW.flatten(2).transpose(1, 2)
    else:
        count, rows = len(feat_BCTHW), feat_BCTHW.flatten(2).mean(2)[None]
    if count < 2:
        shape = tuple(feat_BCTHW.shape)
        raise ValueError(f"one sample is not a distribution (map {shape}): use more clips or positions")
    return rows
