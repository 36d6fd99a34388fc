"""Losses on given labels that may be wrong. Clips without a label (-1) are left out, as in `ce`.

Shape legend: B clips of a batch, L of them labelled, n clips of the training set, N classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagedkd.losses._clips import mean_over_clips
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
    if not bool(known_B.any()):
        return (student_BN * 0.0).sum()
    log_p_L = _log_probability(student_BN[known_B], labels_B[known_B])
    return mean_over_clips(-torch.expm1(q * log_p_L) / q, None if weights_B is None else weights_B[known_B])


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
    if not bool(known_B.any()):
        return (student_BN * 0.0).sum()
    log_p_L = _log_probability(student_BN[known_B], labels_B[known_B])
    each_L = -alpha * log_p_L + beta * log_zero * torch.expm1(log_p_L)
    return mean_over_clips(each_L, None if weights_B is None else weights_B[known_B])


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
            ValueError: a row is out of range.
        """
        if bool(((rows_B < 0) | (rows_B >= self.clips)).any()):
            raise ValueError(f"rows of clips {rows_B.tolist()} must be in 0..{self.clips - 1}")
        known_B = labels_B >= 0
        if not bool(known_B.any()):
            return (student_BN * 0.0).sum()
        logits_LN, rows_L = student_BN[known_B], rows_B[known_B]
        p_LN = F.softmax(logits_LN, dim=1).clamp(LEAST, 1 - LEAST)
        said_LN = p_LN.detach() / p_LN.detach().sum(1, keepdim=True)
        t_LN = momentum * self.targets[rows_L].to(p_LN.dtype) + (1 - momentum) * said_LN
        if self.training:
            self._remember(rows_L, t_LN)
        each_L = -_log_probability(logits_LN, labels_B[known_B]) + strength * torch.log1p(-(p_LN * t_LN).sum(1))
        return mean_over_clips(each_L, None if weights_B is None else weights_B[known_B])

    @torch.no_grad()
    def _remember(self, rows_L: Tensor, t_LN: Tensor) -> None:
        # a batch across the end of a round may hold a clip twice: the first one is remembered, on every device
        places_L = torch.arange(len(rows_L), device=rows_L.device)
        new_L = ~((rows_L[:, None] == rows_L[None]) & (places_L[None] < places_L[:, None])).any(1)
        self.targets.index_copy_(0, rows_L[new_L], t_LN[new_L].to(self.targets.dtype))


def _log_probability(logits_LN: Tensor, labels_L: Tensor) -> Tensor:
    """Return the log-probability of the label of each clip (L,)."""
    return F.log_softmax(logits_LN, dim=1).gather(1, labels_L[:, None])[:, 0]
