"""MixUp and CutMix of a batch, drawn by (seed, epoch, step): what comes after the views.

Shape legend: B clips, 3 = RGB, T frames, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stagedkd.data.draws import bits, permutation, uniform
from stagedkd.spec.schema import Augment


@dataclass(frozen=True)
class Batch:
    """Clips in 0..1 and their labels (-1: none). Of a mixed batch a share of 1 - `share` of each clip, and so of its
    label, is `other`'s."""

    clip_B3THW: Tensor
    labels_B: Tensor
    other_B: Tensor | None = None
    share: float = 1.0


def mix(batch: Batch, augment: Augment, seed: int, epoch: int, step: int) -> Batch:
    """Mix each clip with another of the batch: MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019), one share for the
    whole batch, the same box in all frames."""
    chosen = [a for a in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if a[1] > 0]
    clip = batch.clip_B3THW
    if not chosen or len(clip) < 2:
        return batch
    draw = uniform(seed, 95, epoch, step, np.arange(3)).tolist()
    kind, alpha = chosen[int(draw[0] * len(chosen))]
    dice = np.random.default_rng(int(bits(seed, 96, epoch, step).item()))
    share = float(dice.beta(alpha, alpha))
    order = torch.from_numpy(permutation(len(clip), seed, 97, epoch, step)).to(clip.device)
    if kind == "mixup":
        return Batch(share * clip + (1 - share) * clip[order], batch.labels_B, batch.labels_B[order], share)
    height, width = clip.shape[-2:]
    tall, wide = round(height * (1 - share) ** 0.5), round(width * (1 - share) ** 0.5)
    top, left = int(draw[1] * (height - tall + 1)), int(draw[2] * (width - wide + 1))
    mixed = clip.clone()
    mixed[..., top : top + tall, left : left + wide] = clip[order][..., top : top + tall, left : left + wide]
    return Batch(mixed, batch.labels_B, batch.labels_B[order], 1 - tall * wide / (height * width))
