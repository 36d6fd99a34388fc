"""Simulated families of clips: `base` holds what is common to all, and each family is one file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.simulate import figures, shapes
from stagedkd.data.simulate.base import Family, paint
from stagedkd.spec import families
from stagedkd.spec.schema import Simulated

FAMILIES: dict[str, Family] = {"shapes": shapes.FAMILY, "figures": figures.FAMILY}
if FAMILIES.keys() != families.FAMILIES.keys():
    raise ImportError("the families of FAMILIES are not those of spec/families.py")


def render(
    clip_ids: npt.NDArray[np.int64], data: Simulated, split: str, frames: int, size: int, device: torch.device
) -> Tensor:
    """Render clips of a set: uint8 (B, 3, T, H, W) on `device`. A clip id gives the same clip in any batch.

    Args:
        clip_ids: (B,). split: train, val or test, which decides how the clips look.
        frames, size: T, and H = W in pixels.
    """
    return paint(FAMILIES[data.kind], clip_ids, data, data.domain_of(split), frames, size, device)
