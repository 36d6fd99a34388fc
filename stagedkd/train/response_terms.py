"""The losses of a step on logits: with the logits of the guides, or with labels.

Shape legend: B clips, N classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stagedkd import losses
from stagedkd.data.mix import Batch
from stagedkd.spec.schema import Loss, Losses
from stagedkd.train.step import StepModels, loss_function


def logit_loss(
    models: StepModels,
    name: str,
    loss: Loss,
    student_BN: Tensor,
    guide_logits: Sequence[tuple[Tensor, float]],
    batch: Batch,
) -> Tensor:
    """The mean of a loss over the guides, weighted by their weights."""
    function = loss_function(models, name, loss)
    labels = (batch.labels_B,) if loss.takes_labels else ()
    weighted = [weight * function(student_BN, teacher_BN, *labels) for teacher_BN, weight in guide_logits]
    return torch.stack(weighted).sum() / sum(weight for _, weight in guide_logits)


def label_losses(named: Losses, student_BN: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The losses on labels. In a mixed batch, the loss on each of the two labels is weighted by its fraction."""

    def mixed(loss: Callable[[Tensor | slice], Tensor]) -> Tensor:
        first = loss(slice(None))
        return first if batch.order_B is None else batch.fraction * first + (1 - batch.fraction) * loss(batch.order_B)

    parts: dict[str, Tensor] = {}
    if named.ce is not None:
        smoothing, weights_N = named.ce.smoothing, batch.class_weights_N
        if weights_N is None:
            parts["ce"] = mixed(lambda rows: losses.ce(student_BN, batch.labels_B[rows], smoothing=smoothing))
        else:
            parts["ce"] = mixed(lambda rows: weighted_ce(student_BN, batch.labels_B[rows], weights_N, smoothing))
    if named.pseudo is not None:
        posterior_BN, accepted_B = batch.posterior_BN, batch.accepted_B
        assert posterior_BN is not None and accepted_B is not None
        parts["pseudo"] = mixed(lambda rows: losses.pseudo(student_BN, posterior_BN[rows], accepted_B[rows]))
    return parts


def weighted_ce(student_BN: Tensor, labels_B: Tensor, weights_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with weights of classes: sum of weight(label) * loss over the labelled clips, divided by the sum of
    weight(label). Zero, with zero gradient, if no clip is labelled; it is computed in at least float32."""
    known = labels_B >= 0
    if not bool(known.any()):
        return (student_BN * 0.0).sum()
    logits_BN, labels_B = student_BN[known], labels_B[known]
    with torch.autocast(student_BN.device.type, enabled=False):
        wide_BN = logits_BN if logits_BN.dtype == torch.float64 else logits_BN.float()
        each_B = F.cross_entropy(wide_BN, labels_B, reduction="none", label_smoothing=smoothing)
        weights_B = weights_N.to(wide_BN.dtype)[labels_B]
        return (weights_B * each_B).sum() / weights_B.sum()
