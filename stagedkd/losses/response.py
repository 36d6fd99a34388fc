"""Losses on logits.

Shape legend: B clips, N classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from stagedkd.losses._precision import full_precision, require_equal_shapes


@full_precision
def ce(student_BN: Tensor, labels_B: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, mean over the labelled clips; label smoothing as Szegedy et al. 2016.

    Args:
        student_BN: logits. labels_B: int64 class ids, -1 for none. smoothing: in [0, 1).
    Returns:
        scalar; zero, with zero gradient, where no clip is labelled.
    """
    known = labels_B >= 0
    if not bool(known.any()):
        return (student_BN * 0.0).sum()
    return F.cross_entropy(student_BN[known], labels_B[known], label_smoothing=smoothing)


@full_precision
def kd(student_BN: Tensor, teacher_BN: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Hinton et al. 2015: temperature^2 * KL(teacher || student), summed over classes, mean over the batch.

    Stays in log space, so that logit gaps of 500 and more are finite. The teacher gets no gradient.

    Raises:
        ValueError: shapes differ.
    """
    require_equal_shapes(student_BN, teacher_BN, "both networks need the same classes")
    student = F.log_softmax(student_BN / temperature, dim=1)
    teacher = F.log_softmax(teacher_BN.detach() / temperature, dim=1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(1).mean()
