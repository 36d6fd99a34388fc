"""Views: the frames and pixels of a clip that a network sees, as a function of (seed, epoch, clip id) alone.

The parameters of a view are drawn on the host; torchvision's functionals apply crops and colours on the device.

Shape legend: B clips, 3 = RGB, T frames, H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data import functional as tv
from stagedkd.data.draws import Stream, permutation, uniform
from stagedkd.spec.schema import Augment, Clip, Frames, Input, Size, sides


@dataclass(frozen=True, slots=True)
class Video:
    """What a view is drawn from: the number of frames, height and width in pixels, and the time of each frame in
    seconds, which only `sampling: time` needs."""

    frames: int
    height: int
    width: int
    times: Sequence[float] | npt.NDArray[np.float64] = ()


@dataclass(frozen=True)
class View:
    """The frame indices of a view, its crop box (top, left, height, width; in pixels), whether it is mirrored, its
    factors of brightness, contrast and saturation, and the rotation of its hue (in turns)."""

    frames: npt.NDArray[np.int64]
    box: tuple[int, int, int, int]
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    def is_plain(self, size: Size) -> bool:
        """Return whether the view leaves a picture of this size (as in `Clip.size`) unchanged."""
        factors = (self.brightness, self.contrast, self.saturation)
        return self.box == (0, 0, *sides(size)) and not self.flip and factors == (1, 1, 1) and self.hue == 0


def draw_views(seed: int, epochs_B: npt.NDArray[np.int64], clip_ids_B: npt.NDArray[np.int64]) -> list[list[float]]:
    """Draw the numbers in [0, 1) from which the views of clips are made, 11 for each, all at once."""
    return uniform(seed, Stream.VIEW, epochs_B[:, None], clip_ids_B[:, None], np.arange(11)).tolist()


def train_view(
    clip: Clip,
    augment: Augment,
    seed: int,
    epoch: int,
    clip_id: int,
    video: Video,
    draw: Sequence[float] | None = None,
) -> View:
    """Make the view of a clip in an epoch: its frames, its crop, whether it is mirrored, and its colours. `draw` is the
    clip's row of `draw_views`, if it is known."""
    draw = draw_views(seed, np.array([epoch]), np.array([clip_id]))[0] if draw is None else draw
    tempo = 1 + augment.tempo * (2 * draw[10] - 1)
    if clip.sampler == "segments":
        places = _in_segments(clip, video, uniform(seed, Stream.SEGMENTS, epoch, clip_id, np.arange(clip.frames)))
    else:
        room = max(0.0, _length(clip, video) - ((clip.frames - 1) * clip.stride * tempo + 1))
        start = int(draw[0] * (int(room) + 1)) if clip.sampling == "count" else draw[0] * room
        places = start + np.arange(clip.frames, dtype=np.float64) * clip.stride * tempo
    brightness, contrast, saturation = (1 + augment.jitter * (2 * d - 1) for d in draw[5:8])
    flip = draw[4] < (augment.flip or 0.0)
    hue = augment.hue * (2 * draw[8] - 1)
    box = _draw_crop(clip, augment, video, draw)
    return View(_frames_at(clip, video, places), box, flip, brightness, contrast, saturation, hue)


def largest_box(clip: Clip, video: Video) -> tuple[int, int]:
    """Return height and width of the largest box in the frame that has the view's shape, to the nearest pixel."""
    height, width = sides(clip.size)
    if video.height * width <= video.width * height:
        return video.height, max(1, round(video.height * width / height))
    return max(1, round(video.width * height / width)), video.width


def _draw_crop(clip: Clip, augment: Augment, video: Video, draw: Sequence[float]) -> tuple[int, int, int, int]:
    """Return the crop box: top, left, height and width in pixels."""
    tall, wide = largest_box(clip, video)
    if augment.crop < 1:
        scale = (augment.crop + (1 - augment.crop) * draw[1]) ** 0.5
        # stretch is the root of the ratio of the sides, relative to that of the view
        stretch = math.exp((draw[9] - 0.5) * math.log(augment.ratio))
        tall, wide = max(1, round(tall * scale / stretch)), max(1, round(wide * scale * stretch))
    tall, wide = min(video.height, tall), min(video.width, wide)
    return int(draw[2] * (video.height - tall + 1)), int(draw[3] * (video.width - wide + 1)), tall, wide


def eval_views(clip: Clip, clips: int, crops: Literal[1, 3], video: Video) -> list[View]:
    """Return `clips` x `crops` views: evenly spaced in time; the largest boxes of the view's shape, along the side that
    leaves them room (one crop: the centre)."""
    tall, wide = largest_box(clip, video)
    rows: list[npt.NDArray[np.float64]]
    if clip.sampler == "segments":
        rows = [_in_segments(clip, video, np.full(clip.frames, (i + 0.5) / clips)) for i in range(clips)]
    else:
        room = max(0.0, _length(clip, video) - clip.span)
        starts = [room / 2] if clips == 1 else [i * room / (clips - 1) for i in range(clips)]
        if clip.sampling == "count":
            starts = [int(room) // 2] if clips == 1 else [round(start) for start in starts]
        steps = np.arange(clip.frames, dtype=np.float64) * clip.stride
        rows = [steps + start for start in starts]
    places = [0.5] if crops == 1 else [0.0, 0.5, 1.0]
    boxes = [(round(p * (video.height - tall)), round(p * (video.width - wide)), tall, wide) for p in places]
    return [View(_frames_at(clip, video, row), box) for row in rows for box in boxes]


def _length(clip: Clip, video: Video) -> float:
    """Return the length of a video, in frames or in ticks of `clip.rate`."""
    if clip.sampling == "count":
        return video.frames
    assert clip.rate is not None
    return _seconds(video) * clip.rate


def _seconds(video: Video) -> float:
    """Return the duration of a video; the last frame is taken to last as long as the others do on average."""
    between = video.times[-1] - video.times[0]
    return between * video.frames / max(1, video.frames - 1) if between > 0 else 1.0


def _in_segments(clip: Clip, video: Video, inside: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return one place in each of `clip.frames` equal parts; `inside` (T,) in [0, 1) is the position in the part."""
    return (np.arange(clip.frames) + inside) * (_length(clip, video) / clip.frames)


def _frames_at(clip: Clip, video: Video, places: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the frame indices at places; beyond its end a clip loops, or stays at its last frame (`short: pad`)."""
    length = _length(clip, video)
    places = np.minimum(places, length - 1e-6) if clip.short == "pad" else np.mod(places, length)
    if clip.sampling == "count":
        return np.minimum(np.floor(places + 1e-9).astype(np.int64), video.frames - 1)
    assert clip.rate is not None
    times = np.asarray(video.times) - video.times[0]
    return np.maximum(np.searchsorted(times, places / clip.rate + 1e-6, side="right") - 1, 0).astype(np.int64)


def apply_view(frames_T3HW: Tensor, view: View, size: Size) -> Tensor:
    """Crop, mirror and colour the uint8 frames of a view; see `apply_views`. Returns float32 (3, T, height, width)."""
    return apply_views([frames_T3HW], [view], size)[0]


def apply_views(frames_T3HW: Sequence[Tensor], views: Sequence[View], size: Size) -> Tensor:
    """Crop, mirror and colour the frames of a batch, as torchvision's functionals do, within 1e-6.

    Every clip is written into its place of the batch and coloured there: a new tensor for each step would cost more
    than the step.

    Args:
        frames_T3HW: uint8, one a view, all with the same number of frames.
        size: as in `Clip.size`.
    Returns:
        float32 (B, 3, T, height, width), values in 0..1.
    """
    shape = (len(frames_T3HW), 3, len(frames_T3HW[0]), *sides(size))
    clip_B3THW = torch.empty(shape, dtype=torch.float32, device=frames_T3HW[0].device)
    for clip_3THW, picture_T3HW, view in zip(clip_B3THW, frames_T3HW, views, strict=True):
        clip_3THW.copy_(_cut(picture_T3HW, view, size).transpose(0, 1))
        _colour(clip_3THW, view)
    return clip_B3THW


def _cut(frames_T3HW: Tensor, view: View, size: Size) -> Tensor:
    """Crop, scale and mirror uint8 frames. Frames that lie in memory as decoded (T, H, W, 3) are scaled fastest."""
    top, left, height, width = view.box
    picture = frames_T3HW[..., top : top + height, left : left + width]
    if (height, width) != sides(size):
        picture = tv.resize(picture, list(sides(size)), antialias=True)
    return tv.horizontal_flip(picture) if view.flip else picture


def _colour(clip_3THW: Tensor, view: View) -> None:
    """Scale the values 0..255 of a clip to 0..1 and change its colours, in place.

    The order of the changes is that of torchvision's `adjust_*`. Where no value can leave 0..1 there is no clamp:
    factors up to 1 move a value towards a grey, whose weights add up to 0.9999.
    """
    scale = view.brightness / 255
    if view.brightness > 1:
        clip_3THW.clamp_(max=1 / scale)
    if view.contrast == 1 and view.brightness == 1:
        clip_3THW.div_(255)  # a picture whose colours stay is exact
    elif view.contrast == 1:
        clip_3THW.mul_(scale).clamp_(max=1)
    else:
        mean_T311 = clip_3THW.mean((2, 3), keepdim=True).transpose(0, 1)
        grey_T11 = tv.rgb_to_grayscale(mean_T311)[:, 0] * (scale * (1 - view.contrast))
        clip_3THW.mul_(scale * view.contrast).add_(grey_T11)
        if view.contrast > 1:
            clip_3THW.clamp_(0, 1)
    if view.saturation != 1:
        grey_THW = tv.rgb_to_grayscale(clip_3THW.transpose(0, 1))[:, 0]
        torch.lerp(grey_THW, clip_3THW, view.saturation, out=clip_3THW)
        if view.saturation > 1:
            clip_3THW.clamp_(0, 1)
    if view.hue != 0:
        clip_3THW.copy_(tv.adjust_hue(clip_3THW.transpose(0, 1), view.hue).transpose(0, 1))


def layout(device: torch.device) -> torch.memory_format:
    """The memory layout of clips and of the weights of convolutions: channels last, in which most networks train faster
    (docs/decisions/0027), except on MPS, which has no such 3-D layout."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last_3d


def arrange_frames(view_B3THW: Tensor, clip_ids: Sequence[int], frames: Frames | None) -> Tensor:
    """The views of clips with their frames in an order that is drawn for each clip (`shuffled`), or with the middle one
    of each alone, repeated (`single`); None: as they are."""
    length = view_B3THW.shape[2]
    if frames is None:
        return view_B3THW
    if frames == "single":
        return view_B3THW[:, :, length // 2, None].expand_as(view_B3THW).contiguous()
    orders = (permutation(length, 0, Stream.FRAMES_SHUFFLED, clip_id) for clip_id in clip_ids)
    return torch.stack([clip_3THW[:, order] for clip_3THW, order in zip(view_B3THW, orders, strict=True)])


def fit_input(clip_B3THW: Tensor, wanted: Input | None) -> Tensor:
    """Turn the shared view into the input of one network: its frames, its size, its normalisation, and the layout of
    the device.

    Args:
        clip_B3THW: float32 in 0..1.
        wanted: the network's `input` section; None takes the defaults.
    """
    wanted = wanted or Input()
    _, _, frames, height, width = clip_B3THW.shape
    if wanted.frames and wanted.frames != frames:
        clip_B3THW = clip_B3THW[:, :, torch.tensor(wanted.taken(frames), device=clip_B3THW.device)]
    if wanted.size and sides(wanted.size) != (height, width):
        flat = tv.resize(clip_B3THW.transpose(1, 2).flatten(0, 1), list(sides(wanted.size)), antialias=True)
        clip_B3THW = flat.unflatten(0, (len(clip_B3THW), -1)).transpose(1, 2)
    fitted_B3THW = torch.empty_like(clip_B3THW, memory_format=layout(clip_B3THW.device))
    for channel, (mean, deviation) in enumerate(zip(*wanted.statistics, strict=True)):  # no copy from here
        torch.sub(clip_B3THW[:, channel], mean, out=fitted_B3THW[:, channel])
        fitted_B3THW[:, channel].div_(deviation)
    return fitted_B3THW
