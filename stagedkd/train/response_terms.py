"""The losses of a step on logits: with the logits of the guides, or with labels.

Shape legend: B clips, N classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
        params = named.ce.params
        parts["ce"] = mixed(lambda rows: losses.ce(student_BN, batch.labels_B[rows], **params))
    if named.pseudo is not None:
        posterior_BN, accepted_B = batch.posterior_BN, batch.accepted_B
        assert posterior_BN is not None and accepted_B is not None
        parts["pseudo"] = mixed(lambda rows: losses.pseudo(student_BN, posterior_BN[rows], accepted_B[rows]))
    return parts
