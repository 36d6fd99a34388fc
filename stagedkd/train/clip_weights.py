"""The weights of the clips of a batch in a loss (`weigh`).

Shape legend: B clips, N classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagedkd.data.mix import Batch
from stagedkd.spec.schema import Loss

Weights = Mapping[str, Tensor]  # by the file of a table: the weight of each training clip (n,)


@dataclass(frozen=True)
class GuideLogits:
    """The logits of a guide (B, N), its weight among the guides, and, where a loss needs them, the logits of every
    position of its last map (B, N, T, H, W)."""

    logits: Tensor
    weight: float
    positions: Tensor | None = None


def clip_weights(
    loss: Loss,
    batch: Batch,
    guides: Sequence[GuideLogits],
    tables: Weights,
    labels_B: Tensor | None = None,
    rows: Tensor | slice | None = None,
) -> Tensor | None:
    """Return the weight of each clip in a loss (B,), before it is scaled to a mean of 1; None if all weigh the same.

    Args:
        tables: see `Weights`. labels_B: the labels that the loss is given (-1: none); None if it is given none.
        rows: in a loss on labels, the places of the clips from which the labels come. None: in a mixed batch the weight
            of a table is mixed, too.
    """
    weigh = loss.weighing
    if weigh is None:
        return None
    if not isinstance(weigh, str):
        assert batch.rows_B is not None
        of_clips_B = tables[weigh.file].to(batch.labels_B.device)[batch.rows_B]
        if rows is not None:
            return of_clips_B[rows]
        mixed = batch.order_B is not None
        return batch.fraction * of_clips_B + (1 - batch.fraction) * of_clips_B[batch.order_B] if mixed else of_clips_B
    p_BN = probabilities(guides)
    if weigh == "entropy":
        return certainty(p_BN)
    best_B = p_BN.max(1).values
    if labels_B is None:
        return best_B
    return torch.where(labels_B >= 0, p_BN.gather(1, labels_B.clamp(min=0)[:, None])[:, 0], best_B)


def probabilities(guides: Sequence[GuideLogits]) -> Tensor:
    """Return the mean probabilities (B, N) of the guides, weighed by their weights, in at least float32."""
    weighted = [guide.weight * guide.logits.detach().float().softmax(1) for guide in guides]
    return torch.stack(weighted).sum(0) / sum(guide.weight for guide in guides)


def certainty(p_BN: Tensor) -> Tensor:
    """Return 1 - H / log N of each clip (B,), with the entropy H of its probabilities: 0 for equal ones, 1 for one-hot
    ones."""
    if p_BN.shape[1] < 2:
        return torch.ones_like(p_BN[:, 0])
    entropy_B = -torch.xlogy(p_BN, p_BN).sum(1)
    return (1 - entropy_B / math.log(p_BN.shape[1])).clamp(min=0)
