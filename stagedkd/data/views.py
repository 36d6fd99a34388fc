"""Views: which frames and pixels of a clip a network sees, as a function of (seed, epoch, index) alone.

Parameters are drawn on the host; crops and colours are applied on the device with torchvision's functionals.

Shape legend: B clips, C = 3 channels, T frames, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from stagedkd.data.draws import uniform
from stagedkd.spec.schema import Augment, Clip

MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)  # Kinetics, as torchvision's weights expect


@dataclass(frozen=True)
class View:
    """Frame numbers, crop box (top, left, height, width; in pixels), mirror, brightness and contrast factors."""

    frames: npt.NDArray[np.int64]
    box: tuple[int, int, int, int]
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0


def train_view(
    clip: Clip, augment: Augment, seed: int, epoch: int, index: int, length: int, height: int, width: int
) -> View:
    """The random view of a clip in an epoch: start, crop, mirror and colours."""
    draw = uniform(seed, 91, epoch, index, np.arange(7)).tolist()
    span = _span(clip)
    start = int(draw[0] * (max(0, length - span) + 1))
    area = augment.crop + (1 - augment.crop) * draw[1]
    side = min(height, width) * area**0.5
    tall, wide = max(1, min(height, round(side))), max(1, min(width, round(side)))
    top, left = int(draw[2] * (height - tall + 1)), int(draw[3] * (width - wide + 1))
    light, contrast = (1 + augment.jitter * (2 * d - 1) for d in draw[5:7])
    flip = draw[4] < (augment.flip or 0.0)
    return View(frame_numbers(clip, start, length), (top, left, tall, wide), flip, light, contrast)


def eval_views(clip: Clip, clips: int, crops: Literal[1, 3], length: int, height: int, width: int) -> list[View]:
    """`clips` x `crops` views: evenly in time, squares along the longer side (one: the centre)."""
    room, side = max(0, length - _span(clip)), min(height, width)
    starts = [room // 2] if clips == 1 else [round(i * room / (clips - 1)) for i in range(clips)]
    places = [0.5] if crops == 1 else [0.0, 0.5, 1.0]
    boxes = [(round(p * (height - side)), round(p * (width - side)), side, side) for p in places]
    return [View(frame_numbers(clip, start, length), box) for start in starts for box in boxes]


def _span(clip: Clip) -> int:
    return (clip.frames - 1) * clip.stride + 1


def frame_numbers(clip: Clip, start: int, length: int) -> npt.NDArray[np.int64]:
    """T frame numbers from `start`; beyond the end a clip loops, or stays at its last frame (`short: pad`)."""
    numbers = start + np.arange(clip.frames, dtype=np.int64) * clip.stride
    return np.minimum(numbers, length - 1) if clip.short == "pad" else numbers % length


def apply_view(frames_TCHW: Tensor, view: View, size: int) -> Tensor:
    """Crop, mirror and colour uint8 frames that were already picked.

    Returns:
        float32 (3, T, size, size), values in 0..1.
    """
    top, left, height, width = view.box
    if (height, width) == (size, size):
        picture = tv.crop(frames_TCHW, top, left, height, width)
    else:
        picture = tv.resized_crop(frames_TCHW, top, left, height, width, [size, size], antialias=True)
    if view.flip:
        picture = tv.horizontal_flip(picture)
    picture = picture.to(torch.float32) / 255
    if view.brightness != 1.0 or view.contrast != 1.0:
        centre = picture.mean()
        picture = ((picture - centre) * view.contrast + centre) * view.brightness
    return picture.clamp(0, 1).transpose(0, 1)


def normalise(clip_BCTHW: Tensor) -> Tensor:
    """From 0..1 to Kinetics' zero mean and unit deviation per channel."""
    mean, std = (clip_BCTHW.new_tensor(v).view(1, 3, 1, 1, 1) for v in (MEAN, STD))
    return (clip_BCTHW - mean) / std
