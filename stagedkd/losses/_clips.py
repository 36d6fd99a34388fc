"""Means over clips, with or without weights.

Shape legend: B clips.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_over_clips(each_B: Tensor, weights_B: Tensor | None) -> Tensor:
    """Return the mean of a value of each clip. Weights are 0 or more, without gradient; they are scaled to a mean of 1
    over these clips. If all of them are zero, so is the result, with zero gradient."""
    if weights_B is None:
        return each_B.mean()
    weights_B = weights_B.detach().to(each_B.dtype)
    whole = weights_B.sum()
    return (weights_B * each_B).sum() / torch.where(whole > 0, whole, torch.ones_like(whole))
