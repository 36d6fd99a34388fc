"""Means over clips, with or without weights.

Shape legend: B clips.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_over_labelled(each_B: Tensor, known_B: Tensor, weights_B: Tensor | None) -> Tensor:
    """Return the mean of a value over the clips that are known (bool): the others weigh nothing. It waits for no
    device, as choosing the clips would. See `mean_over_clips`."""
    weights_B = torch.ones_like(each_B) if weights_B is None else weights_B.to(each_B.dtype)
    nothing_B = torch.zeros_like(each_B)
    return mean_over_clips(torch.where(known_B, each_B, nothing_B), torch.where(known_B, weights_B, nothing_B))


def first_places(rows_B: Tensor) -> Tensor:
    """Return for each clip the place of the first clip of the batch with its row, int64 (B,)."""
    places_B = torch.arange(len(rows_B), device=rows_B.device)
    return torch.where(rows_B[:, None] == rows_B[None], places_B[None], len(rows_B)).amin(1)


def mean_over_clips(each_B: Tensor, weights_B: Tensor | None) -> Tensor:
    """Return the mean of a value of each clip. Weights are 0 or more, without gradient; they are scaled to a mean of 1
    over these clips. If all of them are zero, so is the result, with zero gradient."""
    if weights_B is None:
        return each_B.mean()
    weights_B = weights_B.detach().to(each_B.dtype)
    whole = weights_B.sum()
    return (weights_B * each_B).sum() / torch.where(whole > 0, whole, torch.ones_like(whole))
