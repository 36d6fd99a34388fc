"""Losses on given labels that may be wrong. Clips without a label (-1) are left out, as in `ce`.

Shape legend: B clips of a batch, L of them labelled, n clips of the training set, N classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagedkd.losses._clips import first_places, mean_over_labelled
from stagedkd.losses._precision import full_precision

LEAST = 1e-4  # probabilities are clamped to LEAST .. 1 - LEAST in `elr`, as in its authors' code


@full_precision
def gce(student_BN: Tensor, labels_B: Tensor, *, q: float = 0.7, weights_B: Tensor | None = None) -> Tensor:
    """Generalised cross-entropy, Zhang & Sabuncu 2018, eq. 6: (1 - p^q) / q of the probability p of the label, mean
    over the labelled clips. Towards q = 0 it is the cross-entropy, at q = 1 half of the mean absolute error. Their
    truncated form, which prunes clips in turns, is left out.

    Args:
        student_BN: logits. labels_B: int64 class ids, -1 for none. q: in (0, 1]. weights_B: see `mean_over_clips`.
    Returns:
        scalar; zero, with zero gradient, if no clip is labelled.
    """
    known_B = labels_B >= 0
    log_p_B = _log_probability(student_BN, labels_B)
    return mean_over_labelled(-torch.expm1(q * log_p_B) / q, known_B, weights_B)


@full_precision
def sce(
    student_BN: Tensor,
    labels_B: Tensor,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Symmetric cross-entropy, Wang et al. 2019, eq. 7: alpha * CE + beta * RCE, mean over the labelled clips. RCE =
    -sum_k p(k) log q(k) with the one-hot label q, where log 0 is `log_zero` (their A): -A (1 - p(label)).

    Args:
        student_BN: logits. labels_B: int64 class ids, -1 for none. log_zero: below 0. weights_B: see `mean_over_clips`.
    Returns:
        scalar; zero, with zero gradient, if no clip is labelled.
    """
    known_B = labels_B >= 0
    log_p_B = _log_probability(student_BN, labels_B)
    each_B = -alpha * log_p_B + beta * log_zero * torch.expm1(log_p_B)
    return mean_over_labelled(each_B, known_B, weights_B)


class ELR(nn.Module):
    """Early-learning regularisation, Liu et al. 2020, eq. 6: CE + strength * log(1 - <p, t>), mean over the labelled
    clips. p are the student's probabilities, clamped as in the authors' code; t is the clip's moving average of them,
    momentum * t + (1 - momentum) * p, which starts at zero, includes the present p, and gets no gradient.

    The memory of n * N numbers is a buffer, so that checkpoints contain it; it changes in `train()` mode only.

    Args:
        clips: n, the number of training clips. classes: N.
    """

    targets: Tensor  # (n, N)

    def __init__(self, *, clips: int, classes: int) -> None:
        super().__init__()
        self.clips = clips
        self.register_buffer("targets", torch.zeros(clips, classes))

    @full_precision
    def forward(
        self,
        student_BN: Tensor,
        labels_B: Tensor,
        rows_B: Tensor,
        *,
        strength: float = 3.0,
        momentum: float = 0.7,
        weights_B: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; zero, with zero gradient, if no clip is labelled.

        Args:
            student_BN: logits. labels_B: int64 class ids, -1 for none. rows_B: int64, the rows of these clips among the
                n training clips. If a row occurs twice, its first clip is remembered.
            weights_B: see `mean_over_clips`.
        Raises:
            IndexError: a row is out of range; on a GPU, CUDA's error.
        """
        known_B = labels_B >= 0
        p_BN = F.softmax(student_BN, dim=1).clamp(LEAST, 1 - LEAST)
        said_BN = p_BN.detach() / p_BN.detach().sum(1, keepdim=True)
        before_BN = self.targets[rows_B].to(p_BN.dtype)
        t_BN = momentum * before_BN + (1 - momentum) * said_BN
        if self.training:
            self._remember(rows_B, torch.where(known_B[:, None], t_BN, before_BN))
        each_B = -_log_probability(student_BN, labels_B) + strength * torch.log1p(-(p_BN * t_BN).sum(1))
        return mean_over_labelled(each_B, known_B, weights_B)

    @torch.no_grad()
    def _remember(self, rows_B: Tensor, t_BN: Tensor) -> None:
        # a batch across the end of a round may hold a clip twice: the first one is remembered, on every device
        self.targets.index_copy_(0, rows_B, t_BN[first_places(rows_B)].to(self.targets.dtype))


def _log_probability(logits_BN: Tensor, labels_B: Tensor) -> Tensor:
    """Return the log-probability of the label of each clip (B,); of class 0 where there is none."""
    return F.log_softmax(logits_BN, dim=1).gather(1, labels_B.clamp_min(0)[:, None])[:, 0]
