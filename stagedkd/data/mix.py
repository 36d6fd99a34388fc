"""MixUp and CutMix of a batch, and its strong view. They follow the views and are drawn by (seed, epoch, step).

Shape legend: B clips, 3 = RGB, T frames, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.draws import Stream, bits, permutation, uniform
from stagedkd.data.views import fit_input
from stagedkd.spec.schema import Augment, Input


@dataclass(frozen=True)
class Batch:
    """Clips in 0..1 and their labels (-1: none).

    If several processes do one training, each has its local clips and the labels of the whole batch. `rows_B` are the
    rows of the clips among the training clips; `posterior_BN` and `accepted_B` are the refined labels, if there are
    any; `class_weights_N` are the weights of the classes in `ce`, None if all weigh 1. In a mixed batch, the part
    1 - `fraction` of each clip, and therefore of its label, comes from the clip at `order_B`. `slots` (B,) say
    where outputs for these clips in these views are kept; None if no view comes back.
    """

    clip_B3THW: Tensor
    labels_B: Tensor
    rows_B: Tensor | None = None
    posterior_BN: Tensor | None = None
    accepted_B: Tensor | None = None
    order_B: Tensor | None = None
    fraction: float = 1.0
    class_weights_N: Tensor | None = None
    slots: npt.NDArray[np.int64] | None = None
    _views: dict[Input | None, Tensor] = field(default_factory=dict["Input | None", Tensor], init=False, repr=False)

    def view(self, wanted: Input | None) -> Tensor:
        """Return the clips as the normalised input of a network; networks with equal inputs use one tensor."""
        if wanted not in self._views:
            self._views[wanted] = fit_input(self.clip_B3THW, wanted)
        return self._views[wanted]


def mix(batch: Batch, augment: Augment, seed: int, epoch: int, step: int) -> Batch:
    """Mix each clip with another of the batch: MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019), with one
    fraction for the whole batch and the same box in all frames."""
    chosen = [a for a in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if a[1] > 0]
    clip = batch.clip_B3THW
    if not chosen or len(clip) < 2:
        return batch
    draw = uniform(seed, Stream.MIX, epoch, step, np.arange(3)).tolist()
    kind, alpha = chosen[int(draw[0] * len(chosen))]
    dice = np.random.default_rng(int(bits(seed, Stream.MIX_FRACTION, epoch, step).item()))
    fraction = float(dice.beta(alpha, alpha))
    order = torch.from_numpy(permutation(len(clip), seed, Stream.MIX_ORDER, epoch, step))
    order = order.to(clip.device, non_blocking=True)
    if kind == "mixup":
        return replace(
            batch, clip_B3THW=fraction * clip + (1 - fraction) * clip[order], order_B=order, fraction=fraction
        )
    height, width = clip.shape[-2:]
    tall, wide = round(height * (1 - fraction) ** 0.5), round(width * (1 - fraction) ** 0.5)
    top, left = int(draw[1] * (height - tall + 1)), int(draw[2] * (width - wide + 1))
    mixed = clip.clone()
    mixed[..., top : top + tall, left : left + wide] = clip[order][..., top : top + tall, left : left + wide]
    return replace(batch, clip_B3THW=mixed, order_B=order, fraction=1 - tall * wide / (height * width))


def strong_view(clip_B3THW: Tensor, seed: int, phase: int, step: int, first: int = 0, whole: int = 0) -> Tensor:
    """Return the strong view of the clips for FixMatch: brightness, contrast and saturation change by up to a half, and
    a grey box of half the height and width replaces the same place in all frames (our choice after Cubuk et al. 2020
    and DeVries & Taylor 2017).

    Args:
        first, whole: if the clips are a part of a batch, the index of the first one in it and the size of the batch.
    """
    whole, (height, width) = whole or len(clip_B3THW), clip_B3THW.shape[-2:]
    dice = uniform(seed, Stream.STRONG_VIEW, phase, step, np.arange(whole * 5)).reshape(5, whole)
    dice = dice[:, first : first + len(clip_B3THW)]
    light, contrast, colour = torch.from_numpy(0.5 + dice[:3]).to(clip_B3THW, non_blocking=True)[
        :, :, None, None, None, None
    ]
    clip = clip_B3THW * light
    clip = (clip - clip.mean((1, 2, 3, 4), keepdim=True)) * contrast + clip.mean((1, 2, 3, 4), keepdim=True)
    grey = clip.mean(1, keepdim=True)
    clip = ((clip - grey) * colour + grey).clamp(0, 1)
    tall, wide = max(1, height // 2), max(1, width // 2)
    for i, (y, x) in enumerate(dice[3:].T.tolist()):
        top, left = int(y * (height - tall + 1)), int(x * (width - wide + 1))
        clip[i, ..., top : top + tall, left : left + wide] = 0.5
    return clip
