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
    ours, theirs = _distances(student), _distances(teacher)
    distance = F.smooth_l1_loss(_over_mean(ours), _over_mean(theirs))
    return alpha * distance + beta * F.smooth_l1_loss(_angles(ours), _angles(theirs))


def _distances(feat_BD: Tensor) -> Tensor:
    """Distances of all pairs (B, B), not by a Gram matrix: close pairs are exact. Equal clips get no gradient."""
    return torch.cdist(feat_BD, feat_BD, compute_mode="donot_use_mm_for_euclid_dist")


def _over_mean(far_BB: Tensor) -> Tensor:
    """Distances over their mean; a floor keeps a batch of equal clips finite."""
    count = len(far_BB)
    return far_BB / (far_BB.sum() / (count * (count - 1))).clamp_min(1e-6)


def _angles(far_BB: Tensor) -> Tensor:
    """Cosines at each clip between every two others (B, B, B), by the law of cosines: from the distances alone, which
    spares B^3 products of whole features. Zero where a clip equals the one at the angle."""
    squared = far_BB.square()
    sides = far_BB[:, :, None] * far_BB[:, None, :]
    apart = sides > 0
    cosines = (squared[:, :, None] + squared[:, None, :] - squared[None]) / (2 * torch.where(apart, sides, 1))
    return torch.where(apart, cosines, 0)


@full_precision
def pkt(student_BCTHW: Tensor, teacher_BCTHW: Tensor) -> Tensor:
    """Probabilistic knowledge transfer, Passalis & Tefas 2018: KL(teacher || student) of the clips' neighbourhoods,
    from cosine similarities shifted to 0..1 and normalised over each row; mean over all pairs, as in the authors' code.

    Channels and grids may differ. The teacher gets no gradient.

    Raises:
        ValueError: the batches differ in size.
    """
    if len(student_BCTHW) != len(teacher_BCTHW):
        raise ValueError(f"student has {len(student_BCTHW)} clips, teacher {len(teacher_BCTHW)}")
    student, teacher = _neighbours(student_BCTHW), _neighbours(teacher_BCTHW.detach())
    return (teacher * ((teacher + 1e-7) / (student + 1e-7)).log()).mean()


def _neighbours(feat_BCTHW: Tensor) -> Tensor:
    flat = F.normalize(feat_BCTHW.flatten(1), dim=1, eps=1e-7)
    similar = (flat @ flat.T + 1) / 2
    return similar / similar.sum(1, keepdim=True)


@full_precision
def cka(x_nD: Tensor, y_nE: Tensor, *, debiased: bool = True) -> Tensor:
    """Linear centred kernel alignment, Kornblith et al. 2019; debiased as Nguyen et al. 2021 (Song et al. 2012).

    A similarity, not a loss: 1 for equal features up to rotation and scale, about 0 for independent ones; the biased
    one is near 1 for any features where n is small against their width.

    Args:
        x_nD, y_nE: features of the same n clips; n of at least 4 if debiased, else 2.
    Raises:
        ValueError: the numbers of clips differ, or are too small.
    """
    count = len(x_nD)
    if count != len(y_nE):
        raise ValueError(f"{count} and {len(y_nE)} clips: both networks must see the same")
    if count < (4 if debiased else 2):
        raise ValueError(f"cka of {count} clips: use a batch of {4 if debiased else 2} or more")
    gram_x, gram_y = (_gram(features) for features in (x_nD, y_nE))
    if debiased:
        gram_x, gram_y = u_centred(gram_x), u_centred(gram_y)
    own = gram_x.square().sum() * gram_y.square().sum()
    return (gram_x * gram_y).sum() / own.clamp_min(1e-24).sqrt()


def cka_distance(student_BCTHW: Tensor, teacher_BCTHW: Tensor, *, debiased: bool = True) -> Tensor:
    """One minus `cka` (Kornblith et al. 2019) of the flattened maps. The teacher gets no gradient.

    Channels and grids may differ.

    Raises:
        ValueError: as `cka`.
    """
    return 1 - cka(student_BCTHW.flatten(1), teacher_BCTHW.detach().flatten(1), debiased=debiased)


def _gram(features_nD: Tensor) -> Tensor:
    """Gram matrix of centred features, scaled to a largest entry of one: cka does not see the scale, float32 does."""
    centred = features_nD - features_nD.mean(0)
    centred = centred / centred.detach().abs().amax().clamp_min(1e-12)
    gram = centred @ centred.T
    return gram / gram.detach().abs().amax().clamp_min(1e-12)


def u_centred(gram_nn: Tensor) -> Tensor:
    """A Gram matrix (n, n), n of at least 4, U-centred as Szekely & Rizzo 2014: the inner product of two is Song's
    debiased HSIC times n(n-3)."""
    n = len(gram_nn)
    apart = ~torch.eye(n, dtype=torch.bool, device=gram_nn.device)
    gram_nn = gram_nn * apart
    rows = gram_nn.sum(1) / (n - 2)
    return (gram_nn - rows[:, None] - rows[None] + rows.sum() / (n - 1)) * apart


@full_precision
def stage_cka(students_BCTHW: Sequence[Tensor], teachers_BCTHW: Sequence[Tensor], *, debiased: bool = True) -> Tensor:
    """||A_s - A_t||_F^2 / K^2 of the K x K matrices of `cka` among a network's own substages (our formulation).

    Two substages are pooled to their common grid and flattened before they are compared. Their diagonals are one. It
    asks the student to change its features from substage to substage as the teacher does, not to have the same.
    Channels and grids may differ, also between the networks. The teachers get no gradient. A substage whose clips all
    have the same features is similar to none, and gets none either.

    Args:
        students_BCTHW, teachers_BCTHW: the maps of the substages of each network, first to last, K of them each.
        debiased: as in `cka`; the biased one moves towards one where clips are few.
    Raises:
        ValueError: the networks differ in their numbers of substages or clips, there are fewer than two substages, or
            too few clips: four if debiased, else two.
    """
    count = len(students_BCTHW)
    if count != len(teachers_BCTHW):
        raise ValueError(f"student has {count} substages, teacher {len(teachers_BCTHW)}: pair them one to one")
    if count < 2:
        raise ValueError(f"stage_cka relates substages, {count} is too few: cut the networks in two or more")
    if len(students_BCTHW[0]) != len(teachers_BCTHW[0]):
        raise ValueError(f"student has {len(students_BCTHW[0])} clips, teacher {len(teachers_BCTHW[0])}")
    student = _inter_stage(students_BCTHW, debiased)
    teacher = _inter_stage([feat.detach() for feat in teachers_BCTHW], debiased)
    return 2 * (student - teacher).square().sum() / count**2


def _inter_stage(feats_BCTHW: Sequence[Tensor], debiased: bool) -> Tensor:
    """`cka` of every two substages: the upper triangle, flat."""
    found: list[Tensor] = []
    for i, earlier in enumerate(feats_BCTHW):
        for later in feats_BCTHW[i + 1 :]:
            x, y = pool_to_common(earlier, later)
            found.append(cka(x.flatten(1), y.flatten(1), debiased=debiased))
    return torch.stack(found)
