"""Losses on logits.

Every loss that is a mean over clips takes `weights_B`, a weight of 0 or more for each clip (None: all weigh the same),
which it scales to a mean of 1 over the clips of that mean.

Shape legend: B clips, N classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stagedkd.losses._clips import mean_over_clips, mean_over_labelled
from stagedkd.losses._precision import full_precision, require_equal_shapes


@full_precision
def ce(student_BN: Tensor, labels_B: Tensor, *, smoothing: float = 0.0, weights_B: Tensor | None = None) -> Tensor:
    """Cross-entropy, mean over the labelled clips; label smoothing as in Szegedy et al. 2016.

    Args:
        student_BN: logits. labels_B: int64 class ids, -1 for none. smoothing: in [0, 1).
    Returns:
        scalar; zero, with zero gradient, if no clip is labelled.
    """
    known = labels_B >= 0
    each_B = F.cross_entropy(student_BN, labels_B.clamp_min(0), label_smoothing=smoothing, reduction="none")
    return mean_over_labelled(each_B, known, weights_B)


@full_precision
def pseudo(student_BN: Tensor, posterior_BN: Tensor, accepted_B: Tensor, *, weights_B: Tensor | None = None) -> Tensor:
    """Cross-entropy on refined labels: -sum_c q_i(c) log p_i(c) of the accepted clips, divided by the number
    of all clips of the batch, as in FixMatch's unlabelled term (Sohn et al. 2020, eq. 4).

    Args:
        student_BN: logits. posterior_BN: probabilities. accepted_B: bool.
    """
    each_B = -(posterior_BN * F.log_softmax(student_BN, dim=1)).sum(1)
    return mean_over_clips(torch.where(accepted_B, each_B, torch.zeros_like(each_B)), weights_B)


@full_precision
def fixmatch(
    strong_BN: Tensor, plain_BN: Tensor, *, threshold: float = 0.95, weights_B: Tensor | None = None
) -> Tensor:
    """FixMatch, Sohn et al. 2020, eq. 4: cross-entropy of the strong view's logits with the class that the plain view
    predicts, for clips where its probability reaches `threshold`; mean over all clips. The plain view gets no gradient.

    Raises:
        ValueError: shapes differ.
    """
    require_equal_shapes(strong_BN, plain_BN, "both are logits of the same clips")
    sure_B, class_B = F.softmax(plain_BN.detach(), dim=1).max(1)
    each_B = F.cross_entropy(strong_BN, class_B, reduction="none") * (sure_B >= threshold)
    return mean_over_clips(each_B, weights_B)


@full_precision
def mean_teacher(strong_BN: Tensor, average_BN: Tensor, *, weights_B: Tensor | None = None) -> Tensor:
    """Mean Teacher's consistency, Tarvainen & Valpola 2017: the squared error between the probabilities of the student
    for one view and those of the average of its weights for another, mean over classes and clips. The average gets no
    gradient.

    Raises:
        ValueError: shapes differ.
    """
    require_equal_shapes(strong_BN, average_BN, "both are logits of the same clips")
    each_B = (F.softmax(strong_BN, dim=1) - F.softmax(average_BN.detach(), dim=1)).square().mean(1)
    return mean_over_clips(each_B, weights_B)


@full_precision
def kd(student_BN: Tensor, teacher_BN: Tensor, *, temperature: float = 4.0, weights_B: Tensor | None = None) -> Tensor:
    """Hinton et al. 2015: temperature^2 * KL(teacher || student), summed over classes, mean over the batch.

    It is computed in log space, so that logit gaps of 500 and more stay finite. The teacher gets no gradient.

    Raises:
        ValueError: shapes differ.
    """
    require_equal_shapes(student_BN, teacher_BN, "both networks need the same classes")
    return temperature**2 * mean_over_clips(soft_divergence(student_BN, teacher_BN, temperature), weights_B)


def soft_divergence(student_BN: Tensor, teacher_BN: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student) of the softened probabilities of each clip (B,), in log space. The teacher gets no
    gradient."""
    student = F.log_softmax(student_BN / temperature, dim=1)
    teacher = F.log_softmax(teacher_BN.detach() / temperature, dim=1)
    return (teacher.exp() * (teacher - student)).sum(1)


@full_precision
def dkd(
    student_BN: Tensor,
    teacher_BN: Tensor,
    labels_B: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    weights_B: Tensor | None = None,
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
    target_B = targets(teacher_BN, labels_B)
    each_B = decoupled_divergence(student_BN, teacher_BN, target_B, alpha, beta, temperature)
    return temperature**2 * mean_over_clips(each_B, weights_B)


def targets(teacher_BN: Tensor, labels_B: Tensor) -> Tensor:
    """Return the label of each clip (B,), or the class that the teacher predicts if it has none (-1)."""
    return torch.where(labels_B >= 0, labels_B, teacher_BN.detach().argmax(1))


def decoupled_divergence(
    student_BN: Tensor, teacher_BN: Tensor, target_B: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Return alpha * TCKD + beta * NCKD of each clip (B,); see `dkd`."""
    target_s, rest_s, others_s = _decoupled(student_BN / temperature, target_B[:, None])
    target_t, rest_t, others_t = _decoupled(teacher_BN.detach() / temperature, target_B[:, None])
    tckd = target_t.exp() * (target_t - target_s) + rest_t.exp() * (rest_t - rest_s)
    nckd = (others_t.exp() * (others_t - others_s)).sum(1)
    return alpha * tckd + beta * nckd


def _decoupled(logits_BN: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities: the target (B,), all the rest (B,), and the others among themselves (B, N-1)."""
    places = torch.arange(logits_BN.shape[1] - 1, device=logits_BN.device)
    others = logits_BN.gather(1, places + (places >= target_B1))
    rest, whole = others.logsumexp(1), logits_BN.logsumexp(1)
    return logits_BN.gather(1, target_B1)[:, 0] - whole, rest - whole, others - rest[:, None]


@full_precision
def dist(
    student_BN: Tensor,
    teacher_BN: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    weights_B: Tensor | None = None,
) -> Tensor:
    """DIST, Huang et al. 2022: temperature^2 * (beta * inter + gamma * intra), each one minus Pearson's correlation of
    probabilities: inter over the rows (classes of a clip), intra over the columns (clips of a class).

    The teacher gets no gradient. A batch of one clip has no columns to correlate and gives the inter part alone.

    Raises:
        ValueError: shapes differ, or clips have weights and gamma is not 0: intra has no value for each clip.
    """
    require_equal_shapes(student_BN, teacher_BN, "both networks need the same classes")
    if weights_B is not None and gamma:
        raise ValueError("dist correlates the clips of a batch: clips can have weights only with gamma = 0")
    student = F.softmax(student_BN / temperature, dim=1)
    teacher = F.softmax(teacher_BN.detach() / temperature, dim=1)
    parts = beta * mean_over_clips(1 - _pearson(student, teacher), weights_B)
    if len(student) > 1 and gamma:
        parts = parts + gamma * (1 - _pearson(student.T, teacher.T)).mean()
    return temperature**2 * parts


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    """Return the correlation of each pair of rows."""
    return F.cosine_similarity(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True), dim=1, eps=1e-8)


@full_precision
def logit_std(
    student_BN: Tensor, teacher_BN: Tensor, *, temperature: float = 2.0, weights_B: Tensor | None = None
) -> Tensor:
    """KD on standardised logits, Sun et al. 2024: `standardise`, then `kd`.

    Raises:
        ValueError: shapes differ, or there are fewer than two classes.
    """
    return kd(standardise(student_BN), standardise(teacher_BN), temperature=temperature, weights_B=weights_B)


@full_precision
def standardise(logits_BN: Tensor) -> Tensor:
    """Return logits of zero mean and unit standard deviation over the classes, dim 1 (the Z-score of Sun et al. 2024).

    Raises:
        ValueError: there are fewer than two classes.
    """
    if logits_BN.shape[1] < 2:
        raise ValueError("standardised logits need two classes or more: one logit has no standard deviation")
    return (logits_BN - logits_BN.mean(1, keepdim=True)) / (logits_BN.std(1, keepdim=True) + 1e-7)
