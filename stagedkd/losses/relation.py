"""Losses on the relations between the clips of a batch.

Shape legend: B clips, C channels, T frames, H, W positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stagedkd.losses._precision import full_precision
from stagedkd.losses.feature import pool_to_common


@full_precision
def sp(student_BCTHW: Tensor, teacher_BCTHW: Tensor) -> Tensor:
    """Similarity-preserving, Tung & Mori 2019: ||G_s - G_t||_F^2 / B^2 with row-normalised Gram matrices.

    Channels and grids may differ. A clip whose features are all zero gives a zero row. The teacher gets no gradient.

    Raises:
        ValueError: the batches differ in size.
    """
    if len(student_BCTHW) != len(teacher_BCTHW):
        raise ValueError(f"student has {len(student_BCTHW)} clips, teacher {len(teacher_BCTHW)}")
    difference = _similarity(student_BCTHW) - _similarity(teacher_BCTHW.detach())
    return difference.square().sum() / len(student_BCTHW) ** 2


def _similarity(feat_BCTHW: Tensor) -> Tensor:
    """Return the row-normalised Gram matrix of the clips (B, B)."""
    flat = feat_BCTHW.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


@full_precision
def rkd(student_BCTHW: Tensor, teacher_BCTHW: Tensor, *, alpha: float = 1.0, beta: float = 2.0) -> Tensor:
    """Relational KD, Park et al. 2019: alpha * distance + beta * angle, each a Huber loss between the clips' relations.

    Distances are divided by their mean over all pairs, angles are cosines over all triples. With a weight of 25 the
    defaults are the paper's 25 and 50. Channels and grids may differ. The teacher gets no gradient.

    Raises:
        ValueError: the batches differ in size, or have fewer than two clips.
    """
    student, teacher = student_BCTHW.flatten(1), teacher_BCTHW.detach().flatten(1)
    if len(student) != len(teacher):
        raise ValueError(f"student has {len(student)} clips, teacher {len(teacher)}")
    if len(student) < 2:
        raise ValueError("rkd relates clips: use a batch of two or more")
    student_BB, teacher_BB = _distances(student), _distances(teacher)
    distance = F.smooth_l1_loss(_over_mean(student_BB), _over_mean(teacher_BB))
    return alpha * distance + beta * F.smooth_l1_loss(_angles(student_BB), _angles(teacher_BB))


def _distances(feat_BD: Tensor) -> Tensor:
    """Return the distances of all pairs (B, B), not by a Gram matrix: close pairs are exact. Equal clips get no
    gradient."""
    return torch.cdist(feat_BD, feat_BD, compute_mode="donot_use_mm_for_euclid_dist")


def _over_mean(distances_BB: Tensor) -> Tensor:
    """Divide distances by their mean; a floor keeps a batch of equal clips finite."""
    count = len(distances_BB)
    return distances_BB / (distances_BB.sum() / (count * (count - 1))).clamp_min(1e-6)


def _angles(distances_BB: Tensor) -> Tensor:
    """Return the cosines of the angles at each clip between every two others (B, B, B). The law of cosines gives them
    from the distances alone, which saves B^3 products of whole features. A cosine is zero if one of the two clips
    equals the clip at the angle."""
    squared = distances_BB.square()
    sides = distances_BB[:, :, None] * distances_BB[:, None, :]
    apart = sides > 0
    cosines = (squared[:, :, None] + squared[:, None, :] - squared[None]) / (2 * torch.where(apart, sides, 1))
    return torch.where(apart, cosines, 0)


@full_precision
def pkt(student_BCTHW: Tensor, teacher_BCTHW: Tensor) -> Tensor:
    """Probabilistic knowledge transfer, Passalis & Tefas 2018: KL(teacher || student) of the clips' neighbourhoods.
    These are cosine similarities shifted to 0..1 and normalised over each row. The mean is over all pairs, as in the
    authors' code.

    Channels and grids may differ. The teacher gets no gradient.

    Raises:
        ValueError: the batches differ in size.
    """
    if len(student_BCTHW) != len(teacher_BCTHW):
        raise ValueError(f"student has {len(student_BCTHW)} clips, teacher {len(teacher_BCTHW)}")
    student, teacher = _neighbours(student_BCTHW), _neighbours(teacher_BCTHW.detach())
    return (teacher * ((teacher + 1e-7) / (student + 1e-7)).log()).mean()


def _neighbours(feat_BCTHW: Tensor) -> Tensor:
    """Return each clip's neighbourhood as a row of probabilities (B, B)."""
    flat = F.normalize(feat_BCTHW.flatten(1), dim=1, eps=1e-7)
    similar = (flat @ flat.T + 1) / 2
    return similar / similar.sum(1, keepdim=True)


@full_precision
def cka(x_nD: Tensor, y_nE: Tensor, *, debiased: bool = True) -> Tensor:
    """Linear centred kernel alignment, Kornblith et al. 2019; debiased as Nguyen et al. 2021 (Song et al. 2012).

    This is a similarity, not a loss: 1 for features that are equal up to rotation and scale, about 0 for independent
    ones. The biased estimate is near 1 for any features if n is small compared with their width.

    Args:
        x_nD, y_nE: features of the same n clips; n is at least 4 if debiased, else 2.
    Raises:
        ValueError: the numbers of clips differ or are too small.
    """
    count = len(x_nD)
    if count != len(y_nE):
        raise ValueError(f"features of {count} and of {len(y_nE)} clips: both networks must see the same clips")
    if count < (4 if debiased else 2):
        raise ValueError(f"cka of {count} clips: use a batch of {4 if debiased else 2} or more")
    gram_x, gram_y = (_gram(features) for features in (x_nD, y_nE))
    if debiased:
        gram_x, gram_y = u_centred(gram_x), u_centred(gram_y)
    norms = gram_x.square().sum() * gram_y.square().sum()
    return (gram_x * gram_y).sum() / norms.clamp_min(1e-24).sqrt()


def cka_distance(student_BCTHW: Tensor, teacher_BCTHW: Tensor, *, debiased: bool = True) -> Tensor:
    """One minus `cka` (Kornblith et al. 2019) of the flattened maps. The teacher gets no gradient.

    Channels and grids may differ.

    Raises:
        ValueError: as in `cka`.
    """
    return 1 - cka(student_BCTHW.flatten(1), teacher_BCTHW.detach().flatten(1), debiased=debiased)


def _gram(features_nD: Tensor) -> Tensor:
    """Return the Gram matrix of centred features, scaled to a largest entry of one: cka does not depend on the scale,
    but float32 could overflow."""
    centred = features_nD - features_nD.mean(0)
    centred = centred / centred.detach().abs().amax().clamp_min(1e-12)
    gram = centred @ centred.T
    return gram / gram.detach().abs().amax().clamp_min(1e-12)


def u_centred(gram_nn: Tensor) -> Tensor:
    """U-centre a Gram matrix (n, n), n at least 4, as Szekely & Rizzo 2014. The inner product of two such matrices is
    the debiased HSIC of Song et al. 2012 times n(n-3)."""
    n = len(gram_nn)
    apart = ~torch.eye(n, dtype=torch.bool, device=gram_nn.device)
    gram_nn = gram_nn * apart
    rows = gram_nn.sum(1) / (n - 2)
    return (gram_nn - rows[:, None] - rows[None] + rows.sum() / (n - 1)) * apart


@full_precision
def stage_cka(students_BCTHW: Sequence[Tensor], teachers_BCTHW: Sequence[Tensor], *, debiased: bool = True) -> Tensor:
    """||A_s - A_t||_F^2 / K^2 of the K x K matrices of `cka` among the substages of one network (our formulation).

    Two substages are pooled to their common grid and flattened before they are compared. The diagonals are one. The
    loss asks the student to change its features from substage to substage as the teacher does, not to have the same
    features. Channels and grids may differ, also between the networks. The teacher gets no gradient. A substage whose
    clips all have the same features has similarity zero to every other and gets no gradient either.

    Args:
        students_BCTHW, teachers_BCTHW: the K maps of the substages of each network, first to last.
        debiased: as in `cka`; the biased estimate is drawn towards one if there are few clips.
    Raises:
        ValueError: the networks differ in their numbers of substages or clips, there are fewer than two substages, or
            too few clips (at least four if debiased, else two).
    """
    count = len(students_BCTHW)
    if count != len(teachers_BCTHW):
        raise ValueError(f"student has {count} substages, teacher {len(teachers_BCTHW)}: pair them one to one")
    if count < 2:
        raise ValueError(f"stage_cka compares substages and {count} is too few: cut the networks into two or more")
    if len(students_BCTHW[0]) != len(teachers_BCTHW[0]):
        raise ValueError(f"student has {len(students_BCTHW[0])} clips, teacher {len(teachers_BCTHW[0])}")
    student = _substage_similarities(students_BCTHW, debiased)
    teacher = _substage_similarities([feat.detach() for feat in teachers_BCTHW], debiased)
    return 2 * (student - teacher).square().sum() / count**2


def _substage_similarities(feats_BCTHW: Sequence[Tensor], debiased: bool) -> Tensor:
    """Return `cka` of every two substages: the upper triangle, flat."""
    similarities: list[Tensor] = []
    for i, earlier in enumerate(feats_BCTHW):
        for later in feats_BCTHW[i + 1 :]:
            x, y = pool_to_common(earlier, later)
            similarities.append(cka(x.flatten(1), y.flatten(1), debiased=debiased))
    return torch.stack(similarities)
