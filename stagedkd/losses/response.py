"""Losses on logits.

Shape legend: B clips, N classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stagedkd.losses._precision import full_precision, require_equal_shapes


@full_precision
def ce(student_BN: Tensor, labels_B: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, mean over the labelled clips; label smoothing as in Szegedy et al. 2016.

    Args:
        student_BN: logits. labels_B: int64 class ids, -1 for none. smoothing: in [0, 1).
    Returns:
        scalar; zero, with zero gradient, if no clip is labelled.
    """
    known = labels_B >= 0
    if not bool(known.any()):
        return (student_BN * 0.0).sum()
    return F.cross_entropy(student_BN[known], labels_B[known], label_smoothing=smoothing)


@full_precision
def pseudo(student_BN: Tensor, posterior_BN: Tensor, accepted_B: Tensor) -> Tensor:
    """Cross-entropy on refined labels: -sum_c q_i(c) log p_i(c) of the accepted clips, divided by the number
    of all clips of the batch, as in FixMatch's unlabelled term (Sohn et al. 2020, eq. 4).

    Args:
        student_BN: logits. posterior_BN: probabilities. accepted_B: bool.
    """
    each_B = -(posterior_BN * F.log_softmax(student_BN, dim=1)).sum(1)
    return torch.where(accepted_B, each_B, torch.zeros_like(each_B)).mean()


@full_precision
def fixmatch(strong_BN: Tensor, plain_BN: Tensor, *, threshold: float = 0.95) -> Tensor:
    """FixMatch, Sohn et al. 2020, eq. 4: cross-entropy of the strong view's logits with the class that the plain view
    predicts, for clips where its probability reaches `threshold`; mean over all clips. The plain view gets no gradient.

    Raises:
        ValueError: shapes differ.
    """
    require_equal_shapes(strong_BN, plain_BN, "both are logits of the same clips")
    sure_B, class_B = F.softmax(plain_BN.detach(), dim=1).max(1)
    return (F.cross_entropy(strong_BN, class_B, reduction="none") * (sure_B >= threshold)).mean()


@full_precision
def kd(student_BN: Tensor, teacher_BN: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Hinton et al. 2015: temperature^2 * KL(teacher || student), summed over classes, mean over the batch.

    It is computed in log space, so that logit gaps of 500 and more stay finite. The teacher gets no gradient.

    Raises:
        ValueError: shapes differ.
    """
    require_equal_shapes(student_BN, teacher_BN, "both networks need the same classes")
    student = F.log_softmax(student_BN / temperature, dim=1)
    teacher = F.log_softmax(teacher_BN.detach() / temperature, dim=1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(1).mean()


@full_precision
def dkd(
    student_BN: Tensor,
    teacher_BN: Tensor,
    labels_B: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled KD, Zhao et al. 2022: temperature^2 * (alpha * TCKD + beta * NCKD), mean over the batch.

    TCKD compares the target with the rest, NCKD the other classes among themselves, both in log space. The teacher gets
    no gradient. The target of a clip without a label (-1) is the class that the teacher predicts (our formulation: in
    the paper all clips have labels).

    Raises:
        ValueError: shapes differ, or there are fewer than two classes.
    """
    require_equal_shapes(student_BN, teacher_BN, "both networks need the same classes")
    if student_BN.shape[1] < 2:
        raise ValueError("dkd needs two classes or more: it compares the target with the others")
    teacher_BN = teacher_BN.detach()
    target = torch.where(labels_B >= 0, labels_B, teacher_BN.argmax(1))[:, None]
    target_s, rest_s, others_s = _decoupled(student_BN / temperature, target)
    target_t, rest_t, others_t = _decoupled(teacher_BN / temperature, target)
    tckd = target_t.exp() * (target_t - target_s) + rest_t.exp() * (rest_t - rest_s)
    nckd = (others_t.exp() * (others_t - others_s)).sum(1)
    return temperature**2 * (alpha * tckd + beta * nckd).mean()


def _decoupled(logits_BN: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities: the target (B,), all the rest (B,), and the others among themselves (B, N-1)."""
    classes = torch.arange(logits_BN.shape[1], device=logits_BN.device)
    others = logits_BN[classes[None] != target_B1].view(len(logits_BN), -1)
    rest, whole = others.logsumexp(1), logits_BN.logsumexp(1)
    return logits_BN.gather(1, target_B1)[:, 0] - whole, rest - whole, others - rest[:, None]


@full_precision
def dist(
    student_BN: Tensor, teacher_BN: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """DIST, Huang et al. 2022: temperature^2 * (beta * inter + gamma * intra), each one minus Pearson's correlation of
    probabilities: inter over the rows (classes of a clip), intra over the columns (clips of a class).

    The teacher gets no gradient. A batch of one clip has no columns to correlate and gives the inter part alone.

    Raises:
        ValueError: shapes differ.
    """
    require_equal_shapes(student_BN, teacher_BN, "both networks need the same classes")
    student = F.softmax(student_BN / temperature, dim=1)
    teacher = F.softmax(teacher_BN.detach() / temperature, dim=1)
    parts = beta * (1 - _pearson(student, teacher)).mean()
    if len(student) > 1:
        parts = parts + gamma * (1 - _pearson(student.T, teacher.T)).mean()
    return temperature**2 * parts


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    """Return the correlation of each pair of rows."""
    return F.cosine_similarity(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True), dim=1, eps=1e-8)


@full_precision
def logit_std(student_BN: Tensor, teacher_BN: Tensor, *, temperature: float = 2.0) -> Tensor:
    """KD on standardised logits, Sun et al. 2024: each clip's logits get zero mean and unit standard
    deviation, then `kd`.

    Raises:
        ValueError: shapes differ, or there are fewer than two classes.
    """
    if student_BN.shape[1] < 2:
        raise ValueError("logit_std needs two classes or more: one logit has no standard deviation")
    return kd(_standardise(student_BN), _standardise(teacher_BN), temperature=temperature)


def _standardise(logits_BN: Tensor) -> Tensor:
    """Return logits of zero mean and unit standard deviation over the classes."""
    return (logits_BN - logits_BN.mean(1, keepdim=True)) / (logits_BN.std(1, keepdim=True) + 1e-7)
