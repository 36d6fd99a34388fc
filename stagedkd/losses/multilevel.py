"""Losses that compare the logits of student and teacher at several temperatures, regions or exits.

`weights_B` is a weight for each clip; see `mean_over_clips`. Teachers get no gradient.

Shape legend: B clips, N classes, T, H, W positions of the last feature map, R regions, E exits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stagedkd.losses._clips import mean_over_clips
from stagedkd.losses._precision import full_precision, require_equal_shapes
from stagedkd.losses.response import decoupled_divergence, soft_divergence, standardise, targets

CLASSES = "both networks need the same classes"


@full_precision
def wttm(
    student_BN: Tensor, teacher_BN: Tensor, *, temperature: float = 4.0, weights_B: Tensor | None = None
) -> Tensor:
    """Weighted transformed teacher matching, Zheng & Yang 2024, eq. 22 without its cross-entropy: the mean over the
    clips of U * KL(p^(1/T) / U || q). p and q are the plain probabilities of teacher and student, and U = sum_c
    p(c)^(1/T) weighs a clip by how smooth the teacher is. There is no temperature on the student's side.

    Raises:
        ValueError: shapes differ.
    """
    require_equal_shapes(student_BN, teacher_BN, CLASSES)
    student, teacher = F.log_softmax(student_BN, dim=1), F.log_softmax(teacher_BN.detach(), dim=1) / temperature
    log_u_B1 = teacher.logsumexp(1, keepdim=True)
    matched = teacher - log_u_B1  # log of p^(1/T) / U
    each_B = (matched.exp() * (matched - student)).sum(1)
    return mean_over_clips(log_u_B1[:, 0].exp() * each_B, weights_B)


@full_precision
def mlld(
    student_BN: Tensor,
    teacher_BN: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instances: float = 1.0,
    batches: float = 1.0,
    classes: float = 1.0,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Multi-level logit distillation, Jin et al. 2023, as a sum over the temperatures T:
    instances * kd_T + batches * ||P_s P_s' - P_t P_t'||_F^2 / B + classes * ||P_s' P_s - P_t' P_t||_F^2 / N,
    with the probabilities P (B, N) at T. Their second, strongly augmented view and the masks by confidence of their
    code are left out.

    Raises:
        ValueError: shapes differ, or clips have weights and `batches` or `classes` is not 0: these levels have no
            value for each clip.
    """
    require_equal_shapes(student_BN, teacher_BN, CLASSES)
    if weights_B is not None and (batches or classes):
        raise ValueError("mlld compares clips of a batch: clips can have weights only with batches = 0 and classes = 0")
    total = (student_BN * 0.0).sum()
    for temperature in temperatures:
        each_B = soft_divergence(student_BN, teacher_BN, temperature)
        total = total + instances * temperature**2 * mean_over_clips(each_B, weights_B)
        student = F.softmax(student_BN / temperature, dim=1)
        teacher = F.softmax(teacher_BN.detach() / temperature, dim=1)
        if batches:
            total = total + batches * (student @ student.T - teacher @ teacher.T).square().sum() / len(student)
        if classes:
            total = total + classes * (student.T @ student - teacher.T @ teacher).square().sum() / student.shape[1]
    return total


@full_precision
def sdd(
    student_BNTHW: Tensor,
    teacher_BNTHW: Tensor,
    labels_B: Tensor,
    *,
    temperature: float = 4.0,
    scales: Sequence[Sequence[int]] = ((1, 1, 1), (1, 2, 2), (1, 4, 4)),
    complementary: float = 2.0,
    alpha: float | None = None,
    beta: float | None = None,
    standardised: bool = False,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Scale decoupled distillation, Wei et al. 2024, in three dimensions: the mean over all regions of all scales, and
    over the clips, of w * temperature^2 * KL between the logits of the region; with `alpha` and `beta`, of w times the
    decoupled divergence (`dkd`).

    w is `complementary` where, in the teacher, either the region or the whole clip has the class of the label, and 1
    where both or none do (the paper's complementary and consistent terms, 2 and 1). For a clip without a label (-1) the
    label is the class that the teacher predicts (our formulation). The authors' code divides by the number of regions
    and clips, as we do.

    Args:
        student_BNTHW, teacher_BNTHW: the logits of every position of the last feature map; their mean is the network's.
            Grids may differ.
        scales: (frames, rows, columns) of regions; cut down to the smaller grid, and equal ones count once.
        standardised: the logits of each region are standardised first.
    Raises:
        ValueError: batches or classes differ.
    """
    require_equal_shapes(student_BNTHW.mean((2, 3, 4)), teacher_BNTHW.mean((2, 3, 4)), CLASSES)
    teacher_BNTHW = teacher_BNTHW.detach()
    label_B = targets(teacher_BNTHW.mean((2, 3, 4)), labels_B)
    right_B1 = teacher_BNTHW.mean((2, 3, 4)).argmax(1)[:, None] == label_B[:, None]
    student_RN, teacher_RN, regions = _regions(student_BNTHW, teacher_BNTHW, scales)
    right_BR = teacher_RN.argmax(1).view(-1, regions) == label_B[:, None]
    factor_BR = torch.where(right_BR == right_B1, 1.0, complementary)
    if standardised:
        student_RN, teacher_RN = standardise(student_RN), standardise(teacher_RN)
    if alpha is None or beta is None:
        each = soft_divergence(student_RN, teacher_RN, temperature)
    else:
        label_R = label_B.repeat_interleave(regions)
        each = decoupled_divergence(student_RN, teacher_RN, label_R, alpha, beta, temperature)
    each_B = (factor_BR.to(each.dtype) * each.view(-1, regions)).mean(1)
    return temperature**2 * mean_over_clips(each_B, weights_B)


def _regions(
    student_BNTHW: Tensor, teacher_BNTHW: Tensor, scales: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, int]:
    """Return the logits of the regions of both networks (B * R, N), and R; the regions of a clip follow each other."""
    grids = zip(student_BNTHW.shape[2:], teacher_BNTHW.shape[2:], strict=True)
    frames, rows, columns = (min(sizes) for sizes in grids)
    cut = dict.fromkeys((min(t, frames), min(h, rows), min(w, columns)) for t, h, w in scales)

    def pooled(scores_BNTHW: Tensor) -> Tensor:
        parts = [F.adaptive_avg_pool3d(scores_BNTHW, cells).flatten(2) for cells in cut]
        return torch.cat(parts, 2).transpose(1, 2)  # (B, R, N)

    student_BRN, teacher_BRN = pooled(student_BNTHW), pooled(teacher_BNTHW)
    return student_BRN.flatten(0, 1), teacher_BRN.flatten(0, 1), student_BRN.shape[1]


@full_precision
def ofa(
    student_BN: Tensor,
    teacher_BN: Tensor,
    labels_B: Tensor,
    exits_EBN: Sequence[Tensor] = (),
    *,
    gamma: float = 1.0,
    temperature: float = 1.0,
    exits: float = 1.0,
    weights_B: Tensor | None = None,
) -> Tensor:
    """One-for-all KD, Hao et al. 2023 (eq. 5 and their code): l(student) + exits * sum of l(exit), with
    l(z) = -sum_c ((p(c) + [c is the label])^gamma - [c is the label]) log q_z(c), mean over the clips, where p are the
    teacher's probabilities and q_z those of the logits z. At gamma = 1 it is the cross-entropy with p. A clip without
    a label (-1) has no target: every c counts p(c)^gamma (our formulation).

    Args:
        exits_EBN: the logits of each exit.
    Raises:
        ValueError: shapes differ.
    """
    teacher_p = F.softmax(teacher_BN.detach() / temperature, dim=1)
    classes_N = torch.arange(teacher_BN.shape[1], device=teacher_BN.device)
    target_BN = (labels_B[:, None] == classes_N[None]).to(teacher_p.dtype)
    enhanced_BN = (teacher_p + target_BN) ** gamma - target_BN
    own, *others = _cross_entropies([student_BN, *exits_EBN], teacher_BN, enhanced_BN, temperature)
    total = mean_over_clips(own, weights_B)
    return total + exits * sum((mean_over_clips(each_B, weights_B) for each_B in others), torch.zeros_like(total))


def _cross_entropies(
    logits_EBN: Sequence[Tensor], teacher_BN: Tensor, wanted_BN: Tensor, temperature: float
) -> Iterator[Tensor]:
    """Yield -sum_c wanted(c) log q(c) of each clip (B,), for each of the logits."""
    for logits_BN in logits_EBN:
        require_equal_shapes(logits_BN, teacher_BN, CLASSES)
        yield -(wanted_BN * F.log_softmax(logits_BN / temperature, dim=1)).sum(1)
